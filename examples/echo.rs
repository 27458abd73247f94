//! The demo's server, which with the feature `echo` sends each message back: for tools/autobahn.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use espocrm_websocket::daemon::demo;
use espocrm_websocket::platform::logging;
use espocrm_websocket::settings::{Listen, Overrides};

fn main() -> ExitCode {
    let _ = logging::start(None);
    let flags = Overrides {
        listen: Some(Listen { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: Some(0) }),
        // The test cases do not expect pings.
        ping_interval: Some(Duration::from_secs(3_600).into()),
        ..Overrides::default()
    };
    match demo::serve(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
