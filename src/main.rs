//! See `espocrm-websocket --help`.

use std::process::ExitCode;

use espocrm_websocket::cli::Command;

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("espocrm-websocket: {error}\nTry: espocrm-websocket --help");
            return ExitCode::from(2);
        }
    };
    match command.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_stop() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("espocrm-websocket: {error}");
            ExitCode::FAILURE
        }
    }
}
