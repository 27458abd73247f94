//! The tested daemon when its log is not available to the test.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use super::{Client, Php, Port, Standin, eventually, notification, serving_by};

/// A daemon with predetermined ports, since the test cannot read them from the log.
pub struct UnloggedDaemon {
    process: Child,
    browsers: Port,
    zeromq: Port,
}

impl UnloggedDaemon {
    pub fn start(standin: &Standin, program: Command, stderr: impl Into<Stdio>) -> Self {
        let (browsers, zeromq) = (Port::reserve(), Port::reserve());
        let mut command = serving_by(program, standin.path());
        command.args(["--debug", "--no-worker"]);
        command.args(["--listen", &browsers.address().to_string()]);
        command.args(["--zeromq", &format!("tcp://{}", zeromq.address())]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let process = command.spawn().unwrap();
        eventually("the port accepts connections", || {
            std::net::TcpStream::connect(browsers.address()).is_ok()
        });
        Self { process, browsers, zeromq }
    }

    /// The address for browsers.
    pub fn address(&self) -> SocketAddr {
        self.browsers.address()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A tab of alice that receives notifications.
    pub fn alice(&self) -> Client {
        let mut alice = Client::open(self.browsers.address(), "alice", "tok-alice");
        alice.expect_welcome();
        alice.subscribe("newNotification");
        alice.expect_silence();
        alice
    }

    pub fn expect_alive(&mut self, alice: &mut Client, number: usize) {
        assert_eq!(self.process.try_wait().unwrap(), None);
        alice.expect_silence();
        Php::send(&format!("tcp://{}", self.zeromq.address()), &[notification(number)]);
        alice.expect_event(&notification(number));
    }
}

impl Drop for UnloggedDaemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
