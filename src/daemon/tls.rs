//! TLS, with the certificate and key named by EspoCRM's configuration.

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

/// Creates TLS connections: TLS 1.2 and 1.3, one certificate.
#[derive(Clone)]
pub(crate) struct Acceptor {
    config: Arc<ServerConfig>,
    certificate: PathBuf,
    /// When the certificate expires, if known.
    end: Option<Date>,
}

const CERTIFICATE: &str = "webSocketSslCertificateFile";
const KEY: &str = "webSocketSslCertificateLocalPrivateKey";
const PASSPHRASE: &str = "webSocketSslCertificatePassphrase";

/// Iterations of PBKDF2 for the encryption key of a private key; about a second. openssl's default
/// is 2,048.
const MAX_ITERATIONS: u32 = 1_000_000;

/// The memory of scrypt for the same purpose, times its parallelization. openssl's default is 16
/// MiB.
const MAX_SCRYPT: u64 = 64 * 1024 * 1024;

impl Acceptor {
    /// Loads certificate and key. Paths are relative to EspoCRM's `root`. They come from EspoCRM's
    /// configuration and are therefore read with the permissions of the site user.
    ///
    /// # Errors
    /// If they cannot be read, parsed or decrypted, or do not match: the file, the parameter that
    /// names it, and what to do.
    pub(crate) fn load(root: &Path, files: &TlsFiles, identity: &Identity) -> Result<Self> {
        let path = root.join(&files.certificate);
        let pem = read(&path, CERTIFICATE, identity)?;
        let chain =
            CertificateDer::pem_slice_iter(&pem).collect::<std::result::Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| problem(&path, CERTIFICATE, &malformed(&error)))?;
        if chain.is_empty() {
            return Err(problem(&path, CERTIFICATE, "it contains no certificate in PEM format"));
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
                rustls::Error::InconsistentKeys(_) => "it does not match the key".to_owned(),
                error => error.to_string(),
            };
            problem(&path, CERTIFICATE, &why)
        })?;
        Ok(Self { config: Arc::new(config), certificate: path, end })
    }

    /// Logs when the certificate expires, unless it expires at the same time as that of `before`.
    pub(crate) fn log_validity(&self, before: Option<&Self>) {
        let Some(end) = self.end else { return };
        let path = self.certificate.display();
        if end < Date(clock::unix_millis()) {
            warn!(
                "The certificate {path} expired on {}. Browsers reject it. Renew it; the daemon \
                 reloads it automatically.",
                end.day()
            );
        } else if before.is_none_or(|before| before.end != self.end) {
            info!("The certificate {path} is valid until {}.", end.day());
        }
    }

    /// Creates the TLS state of a connection.
    ///
    /// # Errors
    /// None that a client could cause.
    pub(crate) fn accept(&self) -> io::Result<ServerConnection> {
        let mut connection =
            ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        // Output waits in the outbound queue, where frames are shared and accounted for.
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
    // A client that reconnects resumes its TLS session with its ticket: cheap, and without state in
    // the daemon.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn read(path: &Path, parameter: &str, identity: &Identity) -> Result<Vec<u8>> {
    let content =
        identity.with_permissions(|| regular_file::read(path)).and_then(|content| content);
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
            "legacy PEM encryption (Proc-Type: 4,ENCRYPTED) is not supported. Convert the key: \
             openssl pkcs8 -topk8 -in OLD -out NEW (openssl prompts for the old and the new \
             passphrase)",
        ));
    }
    if let Some(encrypted) = section(&text, "ENCRYPTED PRIVATE KEY") {
        let lines: String = encrypted.split_whitespace().collect();
        let der = Base64::decode_vec(&lines);
        let der = der.map_err(|_| problem("its encrypted key is damaged"))?;
        let info = EncryptedPrivateKeyInfo::try_from(&*der)
            .map_err(|error| problem(&unsupported(&error)))?;
        let Some(passphrase) = passphrase else {
            return Err(problem(&format!("its key is encrypted, but {PASSPHRASE} is not set")));
        };
        if is_too_costly(&info.encryption_algorithm) {
            return Err(problem(&format!(
                "decrypting its key takes too long or too much memory: the limits are \
                 {MAX_ITERATIONS} iterations of PBKDF2, and {} MiB for scrypt. Encrypt it again: openssl \
                 pkcs8 -topk8 -v2 aes256 -in OLD -out NEW",
                MAX_SCRYPT >> 20
            )));
        }
        let key = info.decrypt(passphrase).map_err(|error| match error {
            // With a wrong passphrase the padding is wrong, or the result is not a key.
            pkcs8::Error::EncryptedPrivateKey(
                pkcs8::pkcs5::Error::DecryptFailed | pkcs8::pkcs5::Error::EncryptFailed,
            )
            | pkcs8::Error::Asn1(_) => {
                problem(&format!("its key cannot be decrypted: {PASSPHRASE} is wrong"))
            }
            error => problem(&unsupported(&error)),
        })?;
        return Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into());
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound if parameter == CERTIFICATE => {
            problem(&format!("it contains no private key, and {KEY} is not set"))
        }
        rustls::pki_types::pem::Error::NoItemsFound => problem("it contains no private key"),
        error => problem(&format!("its key is damaged: {}", malformed(&error))),
    })
}

/// Why PEM could not be parsed. The crate's own message lists the bytes of the line as numbers.
fn malformed(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::MissingSectionEnd { .. } => "an END line is missing".to_owned(),
        Error::IllegalSectionStart { .. } => "a BEGIN line is malformed".to_owned(),
        error => error.to_string(),
    }
}

/// Whether decryption would block the event loop for long or use much memory. The author of the key
/// file chooses these parameters.
fn is_too_costly(scheme: &EncryptionScheme<'_>) -> bool {
    let EncryptionScheme::Pbes2(parameters) = scheme else { return false };
    match &parameters.kdf {
        Kdf::Pbkdf2(kdf) => kdf.iteration_count > MAX_ITERATIONS,
        Kdf::Scrypt(kdf) => {
            // The memory for one block. Blocks are computed one after the other.
            let memory = kdf.cost_parameter.saturating_mul(128 * u64::from(kdf.block_size));
            let cost = memory.saturating_mul(u64::from(kdf.parallelization));
            // The crate does not handle 0.
            cost == 0 || cost > MAX_SCRYPT
        }
        _ => false,
    }
}

fn unsupported(error: &impl std::fmt::Display) -> String {
    format!(
        "its key has an unsupported encryption ({error}). Convert it: openssl pkcs8 -topk8 -v2 \
         aes256 -in OLD -out NEW"
    )
}

/// The text between `-----BEGIN name-----` and its end.
fn section<'a>(pem: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = pem.split_once(&format!("-----BEGIN {name}-----"))?;
    Some(rest.split_once(&format!("-----END {name}-----"))?.0)
}

fn problem(path: &Path, parameter: &str, why: &str) -> Exit {
    Exit::error(format!("Cannot enable TLS with EspoCRM's {parameter}, {}: {why}.", path.display()))
}
