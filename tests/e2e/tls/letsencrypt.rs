//! The documented configuration for Let's Encrypt without a proxy.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::authority::{Authority, EC, Issued, RSA};
use super::{BOTH, alice, secure};
use crate::support::{Daemon, Standin, TempDir, command, eventually, is_root, run};

/// The deploy hook in docs/install.md.
fn documented_hook() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/install.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("## TLS with Let's Encrypt without a proxy").unwrap();
    let (_, hook) = section.split_once("```sh\n").unwrap();
    hook.split_once("```").unwrap().0.to_owned()
}

/// Places a certificate where certbot does, and runs the hook as certbot does.
fn renew(issued: &Issued, lineage: &Path, hook: &Path) {
    fs::copy(&issued.certificate, lineage.join("fullchain.pem")).unwrap();
    fs::copy(&issued.key, lineage.join("privkey.pem")).unwrap();
    fs::set_permissions(lineage.join("privkey.pem"), Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(hook);
    assert!(command.env("RENEWED_LINEAGE", lineage).status().unwrap().success());
}

#[test]
fn the_deploy_hook_makes_a_certificate_readable_and_renews_it() {
    if !is_root() {
        return;
    }
    let (dir, authority) = (TempDir::new("letsencrypt"), Authority::new());
    let (live, file) = (dir.path().join("live"), dir.path().join("tls.pem"));
    let lineage = live.join("crm.example.com");
    fs::create_dir_all(&lineage).unwrap();
    fs::set_permissions(&live, Permissions::from_mode(0o700)).unwrap();
    let hook = dir.path().join("hook");
    let mut text = documented_hook();
    for (from, to) in [
        ("/etc/espocrm-websocket/tls.pem", file.to_str().unwrap()),
        ("group=www-data", "group=65534"),
    ] {
        assert!(text.contains(from), "{from}: {text}");
        text = text.replace(from, to);
    }
    let draft = dir.path().join("draft");
    fs::write(&draft, text).unwrap();
    // Not written by this process: a child of another test could hold it open for writing.
    let install = Command::new("install").args(["-m", "755"]).args([&draft, &hook]).status();
    assert!(install.unwrap().success());

    // Without the copy the check fails, although root could read the file.
    let mut standin = Standin::new();
    let first = authority.issue("first", EC);
    renew(&first, &lineage, &hook);
    let original =
        Issued { certificate: lineage.join("fullchain.pem"), key: lineage.join("privkey.pem") };
    secure(&mut standin, &original);
    let check = |standin: &Standin| {
        let mut command = command();
        command.args(["config", "--check", "--config", "/dev/null", "--espocrm"]);
        command.arg(standin.path());
        run(command)
    };
    let output = check(&standin);
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("has no permission to read it"), "{printed}");

    standin.config("webSocketSslCertificateFile", file.to_str());
    standin.config("webSocketSslCertificateLocalPrivateKey", serde_json::Value::Null);
    assert_eq!(check(&standin).status.code(), Some(0));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let daemon = Daemon::start(&standin);
    let client = authority.client(BOTH);
    let shown = |issued: &Issued| {
        let tab = alice(&daemon, &client);
        tab.stream.conn.peer_certificates().unwrap()[0] == issued.der()
    };
    assert!(shown(&first));
    let second = authority.issue("second", RSA);
    renew(&second, &lineage, &hook);
    eventually("the renewed certificate is in use", || shown(&second));
    // The certificate of another site is not copied.
    let other = live.join("other.example.com");
    fs::create_dir(&other).unwrap();
    renew(&first, &other, &hook);
    assert_eq!(
        fs::read(&file).unwrap(),
        super::authority::join(&[&second.certificate, &second.key,])
    );
}
