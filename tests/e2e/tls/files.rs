//! Certificates and keys that are not regular files: nothing blocks, and memory stays bounded.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::authority::{Authority, EC};
use super::{BOTH, alice, expect_alive, secure};
use crate::support::{Daemon, Standin, command, run};

const NOT_REGULAR: &str = "it is not a regular file";
const TOO_LARGE: &str = "it is larger than 1 MiB";

/// Creates a file that cannot be read like a regular one.
type Make = fn(&Path);

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn link_to_fifo(path: &Path) {
    let target = path.with_extension("target");
    let _ = fs::remove_file(&target);
    fifo(&target);
    symlink(target, path).unwrap();
}

/// 1 TiB without a block on the disk.
fn endless(path: &Path) {
    File::create(path).unwrap().set_len(1 << 40).unwrap();
}

const HOSTILE: [(Make, &str); 6] = [
    (fifo, NOT_REGULAR),
    (link_to_fifo, NOT_REGULAR),
    (|path| symlink("/dev/zero", path).unwrap(), NOT_REGULAR),
    (|path| symlink("/dev/full", path).unwrap(), NOT_REGULAR),
    (|path| fs::create_dir(path).unwrap(), NOT_REGULAR),
    (endless, TOO_LARGE),
];

#[test]
fn a_special_file_fails_at_startup_without_blocking() {
    let authority = Authority::new();
    let issued = authority.issue("server", EC);
    let mut standin = Standin::new();
    secure(&mut standin, &issued);
    standin.config("webSocketSslCertificatePassphrase", "passphrase-of-the-key");
    for (number, (make, why)) in HOSTILE.into_iter().enumerate() {
        let name = format!("hostile-{number}");
        make(&authority.path(&name));
        let path = authority.path(&name).display().to_string();
        for (parameter, good) in [
            ("webSocketSslCertificateFile", &issued.certificate),
            ("webSocketSslCertificateLocalPrivateKey", &issued.key),
        ] {
            standin.config(parameter, &*path);
            for arguments in [&["run", "--listen", "127.0.0.1"][..], &["config", "--check"]] {
                let mut command = command();
                command.args(arguments).args(["--config", "/dev/null", "--control", "off"]);
                command.arg("--espocrm").arg(standin.path());
                let output = run(command);
                assert_eq!(output.status.code(), Some(1), "{path}: {output:?}");
                let error = String::from_utf8(output.stderr).unwrap();
                assert!(error.contains(&format!("{path}: {why}")), "{error}");
                assert!(error.contains(parameter), "{error}");
            }
            standin.config(parameter, good.to_str());
        }
    }
}

#[test]
fn a_reload_with_special_files_keeps_the_certificate_and_the_tabs() {
    let authority = Authority::new();
    let client = authority.client(BOTH);
    let issued = authority.issue("server", EC);
    let good = issued.der();
    let mut standin = Standin::new();
    secure(&mut standin, &issued);
    let mut daemon = Daemon::start(&standin);
    let mut before = alice(&daemon, &client);
    for (number, (make, why)) in HOSTILE.into_iter().enumerate() {
        for path in [&issued.certificate, &issued.key] {
            let kept = path.with_extension("kept");
            fs::rename(path, &kept).unwrap();
            make(path);
            daemon.reload(&format!("{}: {why}", path.display()));
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir(path).unwrap();
            }
            // It replaces the remaining special file.
            fs::rename(&kept, path).unwrap();
        }
        let after = alice(&daemon, &client);
        assert_eq!(after.stream.conn.peer_certificates().unwrap()[0], good);
        drop(after);
        expect_alive(&daemon, &mut before, number);
    }
    // The endless files have not increased the memory.
    assert!(daemon.status("VmHWM") < 100_000, "{} kB", daemon.status("VmHWM"));
}

/// The iteration count keeps its length, so that no other length in the file changes.
#[test]
fn a_key_that_takes_too_long_to_decrypt_is_rejected() {
    let authority = Authority::new();
    let issued = authority.issue("server", EC);
    let mut standin = Standin::new();
    secure(&mut standin, &issued);
    standin.config("webSocketSslCertificatePassphrase", "passphrase-of-the-key");
    fs::copy(&issued.key, authority.path("plain.key")).unwrap();
    let encrypt = "pkcs8 -topk8 -passout pass:passphrase-of-the-key -in plain.key -out slow.key";
    for (flags, from, to) in [
        ("-v2 aes256 -iter 65537", &[2, 3, 1, 0, 1][..], &[2, 3, 0x7f, 0xff, 0xff][..]),
        // N = 2^14 and r = 8 become r = 127: 254 MiB.
        ("-scrypt", &[2, 2, 0x40, 0, 2, 1, 8], &[2, 2, 0x40, 0, 2, 1, 127]),
    ] {
        authority.openssl(&format!("{encrypt} {flags}"));
        authority.openssl("pkey -in slow.key -passin pass:passphrase-of-the-key -noout");
        let pem = fs::read_to_string(authority.path("slow.key")).unwrap();
        authority.openssl("asn1parse -in slow.key -out slow.der -noout");
        let mut der = fs::read(authority.path("slow.der")).unwrap();
        let place = der.windows(from.len()).position(|bytes| bytes == from).unwrap();
        der[place..place + to.len()].copy_from_slice(to);
        fs::write(authority.path("slow.der"), der).unwrap();
        authority.openssl("enc -base64 -in slow.der -out slow.base64");
        let base64 = fs::read_to_string(authority.path("slow.base64")).unwrap();
        let (begin, end) = (pem.lines().next().unwrap(), pem.lines().last().unwrap());
        fs::write(&issued.key, format!("{begin}\n{base64}{end}\n")).unwrap();
        let mut command = command();
        command.args(["config", "--check", "--config", "/dev/null", "--espocrm"]);
        command.arg(standin.path());
        let output = run(command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("decrypting its key takes too long"), "{error}");
    }
}
