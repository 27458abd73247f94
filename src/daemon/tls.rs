//! Our own TLS: certificate and key as EspoCRM's configuration names them.

mod validity;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64ct::{Base64, Encoding};
use log::{info, warn};
use pkcs8::EncryptedPrivateKeyInfo;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, ServerConnection};

use crate::engine::time::Date;
use crate::espocrm::Identity;
use crate::platform::clock;
use crate::platform::exit::{Exit, Result};
use crate::platform::regular_file;
use crate::settings::TlsFiles;

/// What a TLS connection is begun with: TLS 1.2 and 1.3, one certificate.
#[derive(Clone)]
pub(crate) struct Acceptor {
    config: Arc<ServerConfig>,
    certificate: PathBuf,
    /// The last moment at which the certificate is valid, if that could be read.
    end: Option<Date>,
}

const CERTIFICATE: &str = "webSocketSslCertificateFile";
const KEY: &str = "webSocketSslCertificateLocalPrivateKey";
const PASSPHRASE: &str = "webSocketSslCertificatePassphrase";

/// Iterations to derive the key that a private key is encrypted with; about a second. openssl's
/// default is 2,048.
const MAX_ITERATIONS: u32 = 1_000_000;

/// Bytes that scrypt uses for that, times its parallelization. openssl's default is 16 MiB.
const MAX_SCRYPT: u64 = 64 * 1024 * 1024;

impl Acceptor {
    /// Reads certificate and key; relative names count from EspoCRM's `root`. EspoCRM's configuration
    /// names them, so that they are read with the permissions of its user.
    ///
    /// # Errors
    /// If they cannot be read, understood or decrypted, or do not belong together: which file, by
    /// which parameter, and what to do.
    pub(crate) fn load(root: &Path, files: &TlsFiles, identity: &Identity) -> Result<Self> {
        let path = root.join(&files.certificate);
        let pem = read(&path, CERTIFICATE, identity)?;
        let chain =
            CertificateDer::pem_slice_iter(&pem).collect::<std::result::Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| problem(&path, CERTIFICATE, &malformed(&error)))?;
        if chain.is_empty() {
            return Err(problem(&path, CERTIFICATE, "it holds no certificate in PEM format"));
        }
        let key = match &files.key {
            None => private_key(&path, CERTIFICATE, &pem, files.passphrase.as_deref())?,
            Some(key) => {
                let path = root.join(key);
                private_key(&path, KEY, &read(&path, KEY, identity)?, files.passphrase.as_deref())?
            }
        };
        let end = chain.first().and_then(|certificate| validity::end(certificate));
        let config = config(chain, key).map_err(|error| {
            let why = match error {
                rustls::Error::InconsistentKeys(_) => "it does not belong to the key".to_owned(),
                error => error.to_string(),
            };
            problem(&path, CERTIFICATE, &why)
        })?;
        Ok(Self { config: Arc::new(config), certificate: path, end })
    }

    /// Tells until when the certificate is valid, unless it is that of `before`.
    pub(crate) fn log_validity(&self, before: Option<&Self>) {
        let Some(end) = self.end else { return };
        let path = self.certificate.display();
        if end < Date(clock::unix_millis()) {
            warn!(
                "The certificate {path} is not valid since {}: browsers do not connect. Renew it; the \
                 new one is noticed.",
                end.day()
            );
        } else if before.is_none_or(|before| before.end != self.end) {
            info!("The certificate {path} is valid until {}.", end.day());
        }
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// None that a peer could cause.
    pub(crate) fn accept(&self) -> io::Result<ServerConnection> {
        let mut connection =
            ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        // What waits to be sent waits in our outbox, where it is shared and counted.
        connection.set_buffer_limit(Some(16 * 1024));
        Ok(connection)
    }
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> std::result::Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key)?;
    // A tab that comes back resumes its session from its own ticket: cheap, and nothing is kept.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn read(path: &Path, parameter: &str, identity: &Identity) -> Result<Vec<u8>> {
    let content = identity.with_files(|| regular_file::read(path)).and_then(|content| content);
    content.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => problem(
            path,
            parameter,
            &format!(
                "user {} has no permission to read it or to search its directory. Copy it for that \
                 user (with Let's Encrypt a deploy hook does that: see docs/install.md)",
                identity.name()
            ),
        ),
        _ => problem(path, parameter, &error.to_string()),
    })
}

/// The first private key in a PEM file: PKCS#8, plain or encrypted, PKCS#1 or SEC1.
fn private_key(
    path: &Path,
    parameter: &str,
    pem: &[u8],
    passphrase: Option<&str>,
) -> Result<PrivateKeyDer<'static>> {
    let problem = |why: &str| problem(path, parameter, why);
    let text = String::from_utf8_lossy(pem);
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(problem(
            "its key is encrypted in a format of the past. Convert it: openssl pkcs8 -topk8 -in \
             OLD -out NEW (it asks for the passphrase, and for the one to use from now on)",
        ));
    }
    if let Some(encrypted) = section(&text, "ENCRYPTED PRIVATE KEY") {
        let lines: String = encrypted.split_whitespace().collect();
        let der = Base64::decode_vec(&lines);
        let der = der.map_err(|_| problem("its encrypted key is damaged"))?;
        let info =
            EncryptedPrivateKeyInfo::try_from(&*der).map_err(|error| problem(&unusual(&error)))?;
        let Some(passphrase) = passphrase else {
            return Err(problem(&format!("its key is encrypted, but {PASSPHRASE} is not set")));
        };
        if is_too_costly(&info.encryption_algorithm) {
            return Err(problem(&format!(
                "to decrypt its key takes too long or too much memory: at most {MAX_ITERATIONS} \
                 iterations of PBKDF2, or {} MiB for scrypt, are accepted. Encrypt it again: openssl \
                 pkcs8 -topk8 -v2 aes256 -in OLD -out NEW",
                MAX_SCRYPT >> 20
            )));
        }
        let key = info.decrypt(passphrase).map_err(|error| match error {
            // What a wrong passphrase makes of it has no padding, or is no key.
            pkcs8::Error::EncryptedPrivateKey(
                pkcs8::pkcs5::Error::DecryptFailed | pkcs8::pkcs5::Error::EncryptFailed,
            )
            | pkcs8::Error::Asn1(_) => {
                problem(&format!("its key cannot be decrypted: {PASSPHRASE} is wrong"))
            }
            error => problem(&unusual(&error)),
        })?;
        return Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into());
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound if parameter == CERTIFICATE => {
            problem(&format!("it holds no private key, and {KEY} names no other file"))
        }
        rustls::pki_types::pem::Error::NoItemsFound => problem("it holds no private key"),
        error => problem(&format!("its key is damaged: {}", malformed(&error))),
    })
}

/// Why PEM could not be read. The crate's own text lists the bytes of the line as numbers.
fn malformed(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::MissingSectionEnd { .. } => "an END line is missing".to_owned(),
        Error::IllegalSectionStart { .. } => "a BEGIN line is malformed".to_owned(),
        error => error.to_string(),
    }
}

/// Whether decryption would hold the event loop up, or use much memory: whoever writes the key file
/// chooses that.
fn is_too_costly(scheme: &EncryptionScheme<'_>) -> bool {
    let EncryptionScheme::Pbes2(parameters) = scheme else { return false };
    match &parameters.kdf {
        Kdf::Pbkdf2(kdf) => kdf.iteration_count > MAX_ITERATIONS,
        Kdf::Scrypt(kdf) => {
            // The memory for one block; blocks are computed one after the other.
            let memory = kdf.cost_parameter.saturating_mul(128 * u64::from(kdf.block_size));
            let cost = memory.saturating_mul(u64::from(kdf.parallelization));
            // The crate does not expect 0.
            cost == 0 || cost > MAX_SCRYPT
        }
        _ => false,
    }
}

fn unusual(error: &impl std::fmt::Display) -> String {
    format!(
        "its key is encrypted in a way that is not known ({error}). Convert it: openssl pkcs8 \
         -topk8 -v2 aes256 -in OLD -out NEW"
    )
}

/// The text between `-----BEGIN name-----` and its end.
fn section<'a>(pem: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = pem.split_once(&format!("-----BEGIN {name}-----"))?;
    Some(rest.split_once(&format!("-----END {name}-----"))?.0)
}

fn problem(path: &Path, parameter: &str, why: &str) -> Exit {
    Exit::error(format!(
        "TLS cannot be used with {}: {why}. It is set by EspoCRM's parameter {parameter}.",
        path.display()
    ))
}
