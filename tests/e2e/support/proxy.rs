//! A real proxy with TLS in front of the daemon, configured as documented.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{Client, DEADLINE, Port, ProcessGroup, TempDir, eventually, program};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    Nginx,
    Apache,
    Caddy,
    Traefik,
}

/// A proxy with its own directory and its own port.
pub struct Proxy {
    kind: ProxyKind,
    process: ProcessGroup,
    port: Port,
    dir: TempDir,
}

/// A TLS connection.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Proxy {
    /// Starts it as documented.
    pub fn start(kind: ProxyKind, daemon: SocketAddr) -> Self {
        Self::start_with(kind, daemon, &[])
    }

    /// Starts it with some of the documented text replaced.
    pub fn start_with(kind: ProxyKind, daemon: SocketAddr, changes: &[(&str, &str)]) -> Self {
        Self::start_as(kind, daemon, changes, certify)
    }

    /// The same, with the files `certificate.pem` and `key.pem` that `certify` writes to a
    /// directory.
    pub fn start_as(
        kind: ProxyKind,
        daemon: SocketAddr,
        changes: &[(&str, &str)],
        certify: impl FnOnce(&Path),
    ) -> Self {
        let dir = TempDir::new("proxy");
        let port = Port::reserve();
        certify(dir.path());
        let mut site = kind.documented();
        let here = kind.substitutes(dir.path(), port.address(), daemon);
        let changes = changes.iter().map(|&(from, to)| (from, to.to_owned()));
        for (from, to) in changes.chain(here) {
            assert!(site.contains(from), "{} has no {from:?}", kind.document().display());
            site = site.replace(from, &to);
        }
        std::fs::write(dir.path().join("site"), site).unwrap();
        let mut command = kind.command(dir.path(), port.address());
        let file = |name| Stdio::from(std::fs::File::create(dir.path().join(name)).unwrap());
        command.stdout(file("stdout.log")).stderr(file("stderr.log"));
        let mut proxy = Self { kind, process: ProcessGroup::start(command), port, dir };
        eventually("the proxy serves", || {
            assert!(proxy.process.is_running(), "it exited: {}", proxy.logs());
            match kind {
                // Traefik listens before it has loaded its site.
                ProxyKind::Traefik => proxy.answers().is_ok(),
                _ => TcpStream::connect(proxy.address()).is_ok(),
            }
        });
        proxy
    }

    /// Whether it responds with its configured certificate.
    fn answers(&self) -> std::io::Result<()> {
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(self.trust(), name).unwrap();
        let tcp = TcpStream::connect(self.address())?;
        tcp.set_read_timeout(Some(DEADLINE))?;
        let mut tls = StreamOwned::new(tls, tcp);
        tls.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        tls.read_exact(&mut [0])
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The path of its certificate, PEM.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// The documented part of its configuration.
    pub fn site(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("site")).unwrap()
    }

    /// The TLS configuration of a browser that trusts it.
    pub fn trust(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(self.certificate());
        roots.add(certificate.unwrap()).unwrap();
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }

    /// A TLS connection on which nothing has been sent.
    pub fn tls(&self) -> Client<Tls> {
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(self.trust(), name).unwrap();
        let tcp = TcpStream::connect(self.address()).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        Client::over(StreamOwned::new(tls, tcp))
    }

    /// An upgraded connection with these credentials, at the path that EspoCRM's client uses.
    pub fn open(&self, user: &str, token: &str) -> Client<Tls> {
        let mut client = self.tls();
        client.upgrade(&format!("/wss?authToken={token}&userId={user}"));
        client
    }

    /// A WebSocket of this user that received its welcome.
    pub fn connect(&self, user: &str) -> Client<Tls> {
        let mut client = self.open(user, &format!("tok-{user}"));
        client.expect_welcome();
        client
    }

    /// Reloads its configuration, as its systemd unit does, and waits until it is in effect.
    pub fn reload(&self) {
        let (signal, printed) = match self.kind {
            ProxyKind::Nginx => ("HUP", "gracefully shutting down"),
            ProxyKind::Apache => ("USR1", "SIGUSR1 received.  Doing graceful restart"),
            ProxyKind::Caddy => {
                let mut command = Command::new("/usr/bin/caddy");
                command.args(["reload", "--force", "--adapter", "caddyfile", "--config"]);
                command.arg(self.dir.path().join("site")).arg("--address");
                command.arg(format!("unix/{}/admin", self.dir.path().display()));
                let output = command.output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                return;
            }
            ProxyKind::Traefik => unreachable!("it reloads its file by itself"),
        };
        self.process.signal(signal);
        eventually("the proxy has reloaded", || self.logs().contains(printed));
    }

    /// Stops it, as its systemd unit does.
    pub fn stop(&self) {
        self.process.signal("TERM");
    }

    /// The content of all its logs.
    pub fn logs(&self) -> String {
        let entries =
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = entries.filter(|path| path.extension().is_some_and(|it| it == "log"));
        logs.map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("The logs of {:?}:\n{}", self.kind, self.logs());
        }
    }
}

impl ProxyKind {
    fn document(self) -> PathBuf {
        let name = match self {
            Self::Nginx => "nginx.conf",
            Self::Apache => "apache.conf",
            Self::Caddy => "Caddyfile",
            Self::Traefik => "traefik.yml",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/proxies").join(name)
    }

    fn documented(self) -> String {
        std::fs::read_to_string(self.document()).unwrap()
    }

    /// The documented example values, and their replacements in this test.
    fn substitutes(
        self,
        dir: &Path,
        address: SocketAddr,
        daemon: SocketAddr,
    ) -> Vec<(&'static str, String)> {
        let dir = dir.display();
        let mut substitutes = vec![("127.0.0.1:8080", daemon.to_string())];
        if matches!(self, Self::Nginx | Self::Apache) {
            substitutes.extend([
                ("/etc/ssl/certs/crm.example.com.pem", format!("{dir}/certificate.pem")),
                ("/etc/ssl/private/crm.example.com.key", format!("{dir}/key.pem")),
            ]);
        }
        substitutes.extend(match self {
            Self::Nginx => vec![
                ("listen 443 ssl", format!("listen {address} ssl")),
                ("/var/log/nginx", dir.to_string()),
            ],
            Self::Apache => vec![("<VirtualHost *:443>", format!("<VirtualHost {address}>"))],
            Self::Caddy => vec![
                (
                    "\n{\n",
                    format!(
                        "\n{{\n\tadmin unix/{dir}/admin\n\tauto_https disable_redirects\n\
                         \thttps_port {}\n\tdefault_bind {}\n",
                        address.port(),
                        address.ip()
                    ),
                ),
                (
                    "\ncrm.example.com {\n",
                    format!("\nlocalhost {{\n\ttls {dir}/certificate.pem {dir}/key.pem\n"),
                ),
                ("/var/log/caddy", dir.to_string()),
            ],
            Self::Traefik => vec![
                ("crm.example.com", "localhost".to_owned()),
                (
                    "\nhttp:\n",
                    format!(
                        "\ntls:\n  certificates:\n    - certFile: {dir}/certificate.pem\n      \
                         keyFile: {dir}/key.pem\nhttp:\n"
                    ),
                ),
            ],
        });
        substitutes
    }

    /// The command that runs it in the foreground, with the documented text embedded as in a
    /// distribution's own files.
    fn command(self, dir: &Path, address: SocketAddr) -> Command {
        let here = dir.display();
        let main = dir.join("main");
        match self {
            Self::Nginx => {
                let text = format!(
                    "daemon off;\npid {here}/pid;\nerror_log {here}/error.log notice;\n\
                     events {{}}\n\
                     http {{\naccess_log {here}/access.log;\ninclude {here}/site;\n{}}}\n",
                    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                        .map(|name| format!("{name}_temp_path {here}/{name};\n"))
                        .concat()
                );
                std::fs::write(&main, text).unwrap();
                let mut command = program("/usr/sbin/nginx");
                command.arg("-p").arg(dir).arg("-c").arg(main);
                command.arg("-e").arg(dir.join("error.log"));
                command
            }
            Self::Apache => {
                let site = std::fs::read_to_string(dir.join("site")).unwrap();
                let enabled = site.lines().find_map(|line| line.strip_prefix("#     a2enmod "));
                let modules = ["mpm_event", "authz_core", "setenvif", "socache_shmcb", "proxy"];
                let modules = modules.into_iter().chain(enabled.unwrap().split(' '));
                let modules = modules.map(|name| {
                    format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")
                });
                let text = format!(
                    "ServerRoot {here}\nDefaultRuntimeDir {here}\nPidFile {here}/pid\n\
                     Mutex file:{here}\nServerName localhost\nListen {address}\n{}\
                     User www-data\nGroup www-data\nErrorLog {here}/error.log\n\
                     LogFormat \"%h %l %u %t \\\"%r\\\" %>s %O\" combined\n\
                     Define APACHE_LOG_DIR {here}\nInclude {here}/site\n",
                    modules.collect::<String>()
                );
                std::fs::write(&main, text).unwrap();
                let mut command = program("/usr/sbin/apache2");
                command.arg("-DFOREGROUND").arg("-f").arg(main);
                command
            }
            Self::Caddy => {
                let mut command = program("/usr/bin/caddy");
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(dir.join("site"));
                for home in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
                    command.env(home, dir);
                }
                command
            }
            Self::Traefik => {
                // Its static configuration. The documented file is for its file provider.
                std::fs::copy(dir.join("site"), dir.join("site.yml")).unwrap();
                let text = format!(
                    "entryPoints:\n  websecure:\n    address: \"{address}\"\n\
                     providers:\n  file:\n    filename: {here}/site.yml\n\
                     accessLog:\n  filePath: {here}/access.log\n\
                     global:\n  checkNewVersion: false\n  sendAnonymousUsage: false\n"
                );
                std::fs::write(dir.join("main.yml"), text).unwrap();
                let traefik = concat!(env!("CARGO_MANIFEST_DIR"), "/target/traefik/bin/traefik");
                let mut command = program(traefik);
                command.arg(format!("--configFile={here}/main.yml"));
                command
            }
        }
    }
}

/// Creates a self-signed certificate for localhost.
fn certify(dir: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-days", "90", "-subj", "/CN=localhost"]);
    openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-out").arg(dir.join("certificate.pem")).arg("-keyout").arg(dir.join("key.pem"));
    let output = openssl.output().expect("the tests need the package openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
