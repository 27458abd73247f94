//! A certificate authority for one test.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::support::{TempDir, is_root};

pub struct Authority(TempDir);

/// A server certificate and its key, PEM.
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

const CONFIG: &str = "\
    [req]\ndistinguished_name = name\n[name]\n\
    [authority]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign\n\
    [server]\nbasicConstraints = CA:FALSE\nsubjectAltName = DNS:localhost\n";

pub const EC: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub const RSA: &[&str] = &["-newkey", "rsa:2048"];

impl Authority {
    pub fn new() -> Self {
        let authority = Self(TempDir::new("tls"));
        std::fs::write(authority.path("openssl.cnf"), CONFIG).unwrap();
        authority.openssl(
            "req -x509 -config openssl.cnf -extensions authority -days 2 -nodes -keyout ca.key \
             -out ca.pem -subj /CN=Authority -newkey ec -pkeyopt ec_paramgen_curve:P-256",
        );
        authority
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs openssl in its directory.
    pub fn openssl(&self, arguments: &str) {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split_whitespace()).current_dir(self.0.path());
        let output = openssl.output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
        // openssl makes keys private, but if the test runs as root, the stand-in's user is a
        // different one.
        if is_root() {
            for entry in std::fs::read_dir(self.0.path()).unwrap() {
                let path = entry.unwrap().path();
                std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
            }
        }
    }

    /// A certificate for localhost, with a new key of this kind.
    pub fn issue(&self, name: &str, kind: &[&str]) -> Issued {
        self.issue_by("ca", name, kind, "server")
    }

    /// A certificate authority below this one, which can issue certificates.
    pub fn issue_authority(&self, name: &str) {
        self.issue_by("ca", name, EC, "authority");
    }

    pub fn issue_by(&self, issuer: &str, name: &str, kind: &[&str], extensions: &str) -> Issued {
        static SERIAL: AtomicU32 = AtomicU32::new(1);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        self.openssl(&format!(
            "req -config openssl.cnf -nodes -keyout {name}.key -out {name}.csr -subj /CN={name} {}",
            kind.join(" ")
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -set_serial {serial} \
             -extfile openssl.cnf -extensions {extensions} -days 2 -out {name}.pem"
        ));
        let file = |extension| self.path(&format!("{name}.{extension}"));
        Issued { certificate: file("pem"), key: file("key") }
    }

    /// A browser that trusts it.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

impl Issued {
    /// The certificate that a client receives.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.certificate).unwrap()
    }

    /// Replaces these files with others, as a renewal does.
    pub fn replace(&self, other: &Self) {
        std::fs::rename(&self.certificate, &other.certificate).unwrap();
        std::fs::rename(&self.key, &other.key).unwrap();
    }
}

/// The contents of several files, concatenated.
pub fn join(files: &[&Path]) -> Vec<u8> {
    files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect()
}
