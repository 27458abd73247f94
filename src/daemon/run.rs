//! The commands that serve an EspoCRM, and check or show its settings.

use std::io::{Write, stdout};

use log::{info, warn};

use super::reload::Reloader;
use super::seam::{SettingsReader, Signals};
use super::systemd::{self, Systemd};
use super::tls::Acceptor;
use crate::daemon::event_loop;
use crate::daemon::event_loop::{Backend, Server};
use crate::engine::json::Json;
use crate::engine::printable::{Printable, plural, printable_lines};
use crate::espocrm::{Installation, Router};
use crate::platform::exit::{Exit, Result};
use crate::platform::logging;
use crate::platform::sys;
use crate::settings::{DEFAULT_FILE, Layers, Settings, megabytes};

/// Serves the EspoCRM named by `layers` until a signal ends it.
///
/// # Errors
/// Why that fails, and what to do.
pub(crate) fn serve(layers: Result<Layers>, print_addresses: bool) -> Result<()> {
    let served = layers.and_then(|layers| {
        logging::start(layers.log_file().as_deref())?;
        until_stopped(layers, print_addresses)
    });
    if let Err(error) = &served
        && *error != Exit::Stopped
    {
        Systemd::from_environment().failed(error);
    }
    served
}

fn until_stopped(layers: Layers, print_addresses: bool) -> Result<()> {
    // First, before another file can get their descriptor numbers.
    let sockets = systemd::listening_sockets()?;
    let mut signals = Signals::new().map_err(|error| Exit::error(error.to_string()))?;
    let (reader, settings) = SettingsReader::open(layers, || signals.take().stop)?;
    let root = reader.root().display().to_string();
    info!(
        "espocrm-websocket {} for EspoCRM {} in {root}, {}, {}.",
        env!("CARGO_PKG_VERSION"),
        settings.version,
        plural(settings.categories.iter().count() as u64, "category", "categories"),
        reader.php(),
    );
    match reader.file_name() {
        Some(file) => info!("The configuration file is {}.", file.display()),
        None => info!(
            "There is no configuration file {DEFAULT_FILE}. Using EspoCRM's settings and the defaults."
        ),
    }
    settings.log_doubts();
    settings.log_mode();
    warn_of_user(&reader);
    Router::sweep();
    let scheme = if settings.tls.value.is_some() { "wss" } else { "ws" };
    let backend = Backend::Espocrm(reader.installation().clone());
    let reloader = Some(Reloader::new(reader));
    let mut server = Server::new(settings, backend, reloader, sockets, signals)?;
    info!("Browsers are served at {scheme}://{}.", server.address());
    info!("EspoCRM's messages are received at {}.", server.endpoint());
    let settings = server.settings();
    info!(
        "Limits: {} and {} of memory. Access checks use up to {} of PHP in addition, with about \
         50 MB each.",
        plural(settings.max_connections.value as u64, "connection", "connections"),
        megabytes(settings.worst_case()),
        plural(settings.max_checks.value as u64, "process", "processes"),
    );
    if print_addresses {
        write_addresses(&server);
    }
    server.run(Systemd::from_environment())
}

/// Prints the addresses for a program that has started the daemon on any free ports.
pub(super) fn write_addresses(server: &Server) {
    let mut json = Json::object();
    json.text("listen", &server.address().to_string()).text("zeromq", server.endpoint());
    // A closed standard output is no reason to fail.
    let _ = writeln!(stdout(), "{}", json.end());
}

/// Warns if the daemon or PHP runs as an unsuitable user.
fn warn_of_user(reader: &SettingsReader) {
    let data = reader.root().join("data");
    let (identity, shown) = (reader.identity(), data.display());
    if identity.is_root() {
        warn!(
            "PHP runs as root because of --allow-root: the web site's code has full control of \
             this machine. Change the owner of {shown} to the web server's user, and run the \
             daemon as that user."
        );
    } else if sys::is_root() {
        warn!(
            "The daemon runs as root, which it does not need; PHP runs as {name}. To run the daemon \
             as {name}, use espocrm-websocket setup.",
            name = identity.name()
        );
    } else if !identity.owns(&data) {
        warn!(
            "The daemon and PHP run as {}, who does not own {shown}: PHP may be unable to write \
             EspoCRM's caches and logs. Run the daemon as the owner: espocrm-websocket setup, as \
             root, does that.",
            identity.name()
        );
    }
}

/// Reads the settings of the EspoCRM named by `layers`, as the daemon does when it starts.
///
/// # Errors
/// If there is no EspoCRM, it does not answer, or its settings are invalid.
pub(crate) fn load(layers: Layers) -> Result<(Installation, Settings)> {
    let (reader, settings) = SettingsReader::open(layers, || false)?;
    Ok((reader.installation().clone(), settings))
}

/// Checks the settings without printing them.
///
/// # Errors
/// The first problem, and what to do.
pub(crate) fn check(layers: Layers) -> Result<()> {
    let (reader, settings) = SettingsReader::open(layers, || false)?;
    settings.log_doubts();
    if let Some(files) = &settings.tls.value {
        Acceptor::load(reader.root(), files, reader.identity())?;
    }
    Ok(())
}

/// Prints the effective settings.
///
/// # Errors
/// Why that fails, and what to do.
pub(crate) fn show(layers: Layers) -> Result<()> {
    let file = layers.file_name().map_or("none".to_owned(), |path| path.display().to_string());
    let (reader, mut settings) = SettingsReader::open(layers, || false)?;
    settings.log_doubts();
    event_loop::limit_to_open_files(&mut settings);
    let root = reader.root().display();
    let (file, root) = (Printable(file), Printable(root));
    let text = format!("{:<18}{file}\n{:<18}{root}\n{settings}", "file", "root");
    let text = printable_lines(&text);
    stdout().write_all(text.as_bytes()).map_err(|error| Exit::error(error.to_string()))
}
