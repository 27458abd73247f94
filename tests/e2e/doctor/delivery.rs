//! Messages that are not delivered.

use super::Site;
use crate::support::Port;

/// PHP has the extension but cannot send.
#[test]
fn php_that_cannot_send_is_reported() {
    let site = Site::healthy();
    let shell = "case \"$ESPOCRM_WEBSOCKET_DOCTOR\" in *'\"send\"'*) echo no >&2; exit 9;; esac";
    let php = site.standin.php("php", shell);
    site.settings(&format!("php = '{php}'"));
    let diagnosis = site.examine();
    diagnosis.first_failure("loop", &["status 9: no"]);
    diagnosis.failure("message", &["status 9: no"]);
}

/// Without a listener, PHP waits for a second, and so does every user who saves a record.
#[test]
fn a_message_without_a_receiver_is_reported() {
    let mut site = Site::healthy();
    let unused = Port::reserve().address().port();
    for name in ["webSocketZeroMQSubmissionDsn", "webSocketZeroMQSubscriberDsn"] {
        site.standin.config(name, format!("tcp://127.0.0.1:{unused}"));
    }
    // The daemon was not notified.
    std::fs::write(
        site.config(),
        format!("listen = '127.0.0.1:{}'\ncontrol = 'off'\n", site.port.address().port()),
    )
    .unwrap();
    let diagnosis = site.examine();
    diagnosis.failure(
        "message",
        &[
            "No program receives",
            "Messages are lost",
            "PHP commands such as cron jobs wait a second",
        ],
    );
}

/// Two daemons: messages go to one, browsers connect to the other.
#[test]
fn a_message_received_by_another_daemon_is_reported() {
    let mut site = Site::healthy();
    let other = crate::support::Daemon::demo();
    for name in ["webSocketZeroMQSubmissionDsn", "webSocketZeroMQSubscriberDsn"] {
        site.standin.config(name, other.zeromq.clone());
    }
    let daemon = site.daemon.as_ref().unwrap();
    // The daemon reloads its settings by itself only when they are needed.
    assert_eq!(daemon.count("have changed"), 0);
    let diagnosis = site.examine();
    diagnosis.only_failure("message", &["not by this daemon"]);
}
