//! Certificates and keys, valid and invalid.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::authority::{Authority, EC, Issued, RSA, join};
use super::{BOTH, alice, expect_alive, secure};
use crate::support::{Daemon, Standin, command, command_as_nobody, is_root, run};

const CERTIFICATE: &str = "webSocketSslCertificateFile";
const KEY: &str = "webSocketSslCertificateLocalPrivateKey";
const PASSPHRASE: &str = "webSocketSslCertificatePassphrase";

/// Its first and last characters must be preserved, and so must those that are special in PHP or a
/// shell.
const SECRET: &str = "s3cret'\\ $x \"";

#[test]
fn ec_and_rsa_keys_work_with_tls_1_2_and_1_3() {
    let authority = Authority::new();
    for kind in [RSA, EC] {
        let issued = authority.issue("server", kind);
        let mut standin = Standin::new();
        secure(&mut standin, &issued);
        let daemon = Daemon::start(&standin);
        for version in BOTH {
            let mut alice = alice(&daemon, &authority.client(&[version]));
            let connection = &alice.stream.conn;
            assert_eq!(connection.protocol_version(), Some(version.version));
            expect_alive(&daemon, &mut alice, 1);
        }
    }
}

#[test]
fn the_certificate_file_may_contain_the_key() {
    let authority = Authority::new();
    let issued = authority.issue("server", EC);
    let (certificate, key) = (&*issued.certificate, &*issued.key);
    for files in [[certificate, key], [key, certificate]] {
        let mut standin = Standin::new();
        // A name without a leading slash is relative to EspoCRM's root directory.
        std::fs::write(standin.path().join("data/both.pem"), join(&files)).unwrap();
        secure(&mut standin, &issued);
        standin.config(CERTIFICATE, "data/both.pem");
        standin.config(KEY, Value::Null);
        expect_served(&standin, &authority, "both.pem");
    }
}

#[test]
fn the_whole_chain_is_sent() {
    let authority = Authority::new();
    authority.issue_authority("between");
    let issued = authority.issue_by("between", "server", EC, "server");
    let chain = join(&[&issued.certificate, &authority.path("between.pem")]);
    std::fs::write(&issued.certificate, chain).unwrap();
    let mut standin = Standin::new();
    secure(&mut standin, &issued);
    expect_served(&standin, &authority, "a chain");
}

#[test]
fn every_common_key_format_is_supported() {
    let authority = Authority::new();
    let rsa = authority.issue("rsa", RSA);
    let ec = authority.issue("ec", EC);
    std::fs::write(authority.path("secret"), SECRET).unwrap();
    let encrypt = "pkcs8 -topk8 -passout file:secret -in";
    for (issued, format) in [
        (&rsa, "rsa -traditional -in rsa.key"),
        (&rsa, "pkcs8 -topk8 -nocrypt -in rsa.key"),
        (&ec, "ec -in ec.key"),
        (&ec, "pkcs8 -topk8 -nocrypt -in ec.key"),
        (&rsa, &format!("{encrypt} rsa.key")),
        (&rsa, &format!("{encrypt} rsa.key -v2 aes-256-cbc -v2prf hmacWithSHA1")),
        (&ec, &format!("{encrypt} ec.key -v2 aes-256-cbc -v2prf hmacWithSHA256")),
        (&ec, &format!("{encrypt} ec.key -v2 aes-256-cbc -v2prf hmacWithSHA512")),
        (&ec, &format!("{encrypt} ec.key -v2 aes-192-cbc")),
        (&rsa, &format!("{encrypt} rsa.key -v2 aes-128-cbc")),
        (&rsa, &format!("{encrypt} rsa.key -v2 des3 -v2prf hmacWithSHA1")),
        (&ec, &format!("{encrypt} ec.key -v2 des3 -v2prf hmacWithSHA256")),
        (&ec, &format!("{encrypt} ec.key -scrypt")),
    ] {
        authority.openssl(&format!("{format} -out converted.key"));
        let mut standin = Standin::new();
        secure(&mut standin, issued);
        standin.config(KEY, authority.path("converted.key").to_str());
        standin.config(PASSPHRASE, SECRET);
        expect_served(&standin, &authority, format);
    }
}

#[test]
fn a_key_after_ec_parameters_is_found() {
    let authority = Authority::new();
    let issued = authority.issue("server", EC);
    authority.openssl("ecparam -name prime256v1 -out parameters");
    authority.openssl("ec -in server.key -out sec1");
    std::fs::write(&issued.key, join(&[&authority.path("parameters"), &authority.path("sec1")]))
        .unwrap();
    let mut standin = Standin::new();
    secure(&mut standin, &issued);
    expect_served(&standin, &authority, "EC PARAMETERS");
}

/// Serves it and connects with TLS.
fn expect_served(standin: &Standin, authority: &Authority, what: &str) {
    println!("{what}");
    let daemon = Daemon::start(standin);
    alice(&daemon, &authority.client(BOTH));
}

/// Changes by a test: the content of files, the parameters.
type Change<'a> = &'a dyn Fn(&mut Standin, &Issued);

#[test]
fn unusable_certificates_and_keys_are_reported() {
    let authority = Authority::new();
    authority.issue("other", EC);
    let other = authority.path("other.key");
    let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    let cases: [(Change, &[&str]); 12] = [
        (
            &|_, issued| std::fs::remove_file(&issued.certificate).unwrap(),
            &["server.pem: No such file", CERTIFICATE],
        ),
        (&|_, issued| std::fs::remove_file(&issued.key).unwrap(), &["server.key: No such", KEY]),
        (
            &|_, issued| write(&issued.certificate, ""),
            &["server.pem: it contains no cert", CERTIFICATE],
        ),
        (&|_, issued| write(&issued.key, ""), &["server.key: it contains no private key", KEY]),
        (
            &|it, _| it.config(CERTIFICATE, "data"),
            &["/data: it is not a regular file", CERTIFICATE],
        ),
        (&|it, _| it.config(CERTIFICATE, ""), &["names no file", CERTIFICATE]),
        (
            &|it, _| it.config(KEY, ""),
            &["server.pem: it contains no private key", CERTIFICATE, KEY],
        ),
        (&|it, _| it.config(KEY, other.to_str()), &["does not match the key", "server.pem"]),
        (
            &|_, issued| {
                let text = std::fs::read_to_string(&issued.certificate).unwrap();
                write(&issued.certificate, &text[..text.len() / 2]);
            },
            &["server.pem: an END line is missing", CERTIFICATE],
        ),
        (
            &|_, issued| {
                let text = std::fs::read_to_string(&issued.key).unwrap();
                write(&issued.key, &text[..text.len() / 2]);
            },
            &["server.key", KEY],
        ),
        (
            &|_, issued| {
                write(
                    &issued.certificate,
                    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                );
            },
            &["server.pem", CERTIFICATE],
        ),
        (
            &|_, issued| {
                write(
                    &issued.key,
                    "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                );
            },
            // The key is invalid; the file that contains it can no longer be determined.
            &["server.", "webSocketSslCertificate"],
        ),
    ];
    for (number, (change, words)) in cases.into_iter().enumerate() {
        println!("{number}");
        let mut standin = Standin::new();
        let issued = authority.issue("server", EC);
        secure(&mut standin, &issued);
        change(&mut standin, &issued);
        expect_refusal(&standin, words);
    }
}

#[test]
fn an_encrypted_key_that_cannot_be_decrypted_is_reported() {
    let authority = Authority::new();
    let issued = authority.issue("server", RSA);
    std::fs::write(authority.path("secret"), SECRET).unwrap();
    let secret = "-passout file:secret -in server.key -out";
    authority.openssl(&format!("pkcs8 -topk8 {secret} modern"));
    authority.openssl(&format!("rsa -traditional -aes128 {secret} legacy"));
    std::fs::write(authority.path("damaged"), {
        let text = std::fs::read_to_string(authority.path("modern")).unwrap();
        text.replacen('M', "é", 1)
    })
    .unwrap();
    let convert = "openssl pkcs8 -topk8";
    for (key, passphrase, words) in [
        ("modern", None, ["is encrypted", &format!("{PASSPHRASE} is not set")]),
        ("modern", Some(""), ["is encrypted", &format!("{PASSPHRASE} is not set")]),
        ("legacy", Some(SECRET), ["legacy PEM encryption", convert]),
        ("legacy", None, ["legacy PEM encryption", convert]),
        ("damaged", Some(SECRET), ["encrypted key is damaged", KEY]),
    ] {
        println!("{key} {passphrase:?}");
        let mut standin = Standin::new();
        secure(&mut standin, &issued);
        standin.config(KEY, authority.path(key).to_str());
        standin.config(PASSPHRASE, passphrase);
        let printed = expect_refusal(&standin, &[key, KEY]);
        for word in words {
            assert!(printed.contains(word), "{word:?} is missing in: {printed}");
        }
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}

#[test]
fn a_wrong_passphrase_is_reported_as_such() {
    let authority = Authority::new();
    let issued = authority.issue("server", EC);
    for way in ["-v2 aes-256-cbc", "-v2 des3", "-scrypt"] {
        authority.openssl(&format!(
            "pkcs8 -topk8 {way} -passout pass:right -in server.key -out encrypted"
        ));
        let mut standin = Standin::new();
        secure(&mut standin, &issued);
        standin.config(KEY, authority.path("encrypted").to_str());
        standin.config(PASSPHRASE, "not it");
        let printed = expect_refusal(&standin, &["encrypted", KEY, PASSPHRASE, "is wrong"]);
        assert!(!printed.contains("not it"), "{printed}");
    }
    // For one wrong passphrase in 256 the result looks correctly decrypted.
    let mut standin = Standin::new();
    std::fs::write(authority.path("lottery"), WEAKLY_PADDED_KEY).unwrap();
    secure(&mut standin, &issued);
    standin.config(KEY, authority.path("lottery").to_str());
    standin.config(PASSPHRASE, "wrong341");
    expect_refusal(&standin, &["lottery", KEY, PASSPHRASE, "is wrong"]);
}

/// Of the wrong passphrases from `wrong0` on, `wrong341` is the first with well-formed padding.
const WEAKLY_PADDED_KEY: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHrMFYGCSqGSIb3DQEFDTBJMCgGCSqGSIb3DQEFDDAbBAgQ1iLuYKh1bQIBATAM
BggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQ8JDc5PltDI9oCPFgMx2EZASBkA22
IZWQq+xG72L+uir2mvys8KzWSYiT8kmnVKPpcUyy+FAB6DJ+jltfKa/I85qaLup8
E4BfyZFkirmwtANyUuOi3n59o7MavscMF4ircQ6SK3ALiwbpvxKxGgbKIfViG0Q0
dfkrRS9Q3vO+UaN6DWjX01ZABh26Qkhi7nXnE18xO4SkRAkc/0ehQK3sDXT6vQ==
-----END ENCRYPTED PRIVATE KEY-----
";

#[test]
fn a_passphrase_may_end_with_a_space() {
    let authority = Authority::new();
    let issued = authority.issue("server", EC);
    std::fs::write(authority.path("secret"), "the end ").unwrap();
    authority.openssl("pkcs8 -topk8 -passout file:secret -in server.key -out encrypted");
    let mut standin = Standin::new();
    secure(&mut standin, &issued);
    standin.config(KEY, authority.path("encrypted").to_str());
    standin.config(PASSPHRASE, "the end ");
    expect_served(&standin, &authority, "a space");
}

#[test]
fn an_unusually_encrypted_key_must_be_converted() {
    let authority = Authority::new();
    let issued = authority.issue("server", RSA);
    authority.openssl(
        "pkcs8 -topk8 -v1 PBE-SHA1-3DES -passout pass:right -in server.key -out encrypted",
    );
    let mut standin = Standin::new();
    secure(&mut standin, &issued);
    standin.config(KEY, authority.path("encrypted").to_str());
    standin.config(PASSPHRASE, "right");
    expect_refusal(&standin, &["encrypted", KEY, "openssl pkcs8 -topk8"]);
}

#[test]
fn an_unreadable_key_is_reported() {
    let authority = Authority::new();
    let mut standin = Standin::new();
    let issued = authority.issue("server", EC);
    secure(&mut standin, &issued);
    let forbidden = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(&issued.key, forbidden).unwrap();
    let words = ["server.key: user", "has no permission to read it", KEY, "deploy hook"];
    expect_refusal_of(command_as_nobody(&standin), &standin, &words);
}

/// The site configures these files, and a check as root must find the problem that the service
/// would find.
#[test]
fn a_check_as_root_rejects_keys_that_the_site_user_cannot_read() {
    if !is_root() {
        return;
    }
    let authority = Authority::new();
    let mut standin = Standin::new();
    let issued = authority.issue("server", EC);
    let private = authority.path("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
    let key = private.join("server.key");
    std::fs::copy(&issued.key, &key).unwrap();
    secure(&mut standin, &Issued { key, ..issued });
    let words = ["private/server.key: user nobody has no permission to read it", KEY];
    expect_refusal(&standin, &words);
    let check = || {
        let mut command = command();
        command.args(["config", "--check", "--config", "/dev/null", "--espocrm"]);
        run({
            command.arg(standin.path());
            command
        })
    };
    let output = check();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains(words[0]), "{printed}");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(check().status.code(), Some(0));
}

/// Runs a command that must not start and must print these words; returns its output.
fn expect_refusal(standin: &Standin, words: &[&str]) -> String {
    expect_refusal_of(command(), standin, words)
}

fn expect_refusal_of(mut command: Command, standin: &Standin, words: &[&str]) -> String {
    command.args(["run", "--config", "/dev/null", "--listen", "127.0.0.1", "--espocrm"]);
    command.arg(standin.path());
    let output = run(command);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stderr).unwrap();
    for word in words {
        assert!(printed.contains(word), "{word:?} is missing in: {printed}");
    }
    printed
}
