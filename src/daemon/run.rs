//! Serving an EspoCRM, and showing what would be served.

use std::io::Write;

use log::{info, warn};

use super::systemd::{self, Systemd};
use super::tls::Acceptor;
use crate::daemon::event_loop;
use crate::daemon::event_loop::{Backend, Espocrm, Server};
use crate::engine::printable::{Printable, plural, printable_lines};
use crate::espocrm::{Installation, Router};
use crate::platform::exit::{Exit, Result};
use crate::platform::logging;
use crate::platform::signals::Signals;
use crate::platform::sys;
use crate::settings::{DEFAULT_FILE, Layers, Settings, megabytes};

/// Serves the EspoCRM that `layers` name until a signal ends it.
///
/// # Errors
/// Why it cannot be served, and what to do.
pub(crate) fn serve(layers: Result<Layers>) -> Result<()> {
    let served = layers.and_then(|layers| {
        logging::start(layers.log_file().as_deref())?;
        until_stopped(layers)
    });
    if let Err(error) = &served
        && *error != Exit::Stopped
    {
        Systemd::of_environment().failed(error);
    }
    served
}

fn until_stopped(layers: Layers) -> Result<()> {
    // First: nothing of ours has their numbers yet.
    let sockets = systemd::listening_sockets()?;
    let mut signals = Signals::new().map_err(|error| Exit::error(error.to_string()))?;
    let (espocrm, settings) = Espocrm::open(layers, || signals.take().stop)?;
    let root = espocrm.root().display().to_string();
    info!(
        "espocrm-websocket {} for EspoCRM {} in {root}, {}, {}.",
        env!("CARGO_PKG_VERSION"),
        settings.version,
        plural(settings.categories.iter().count() as u64, "category", "categories"),
        espocrm.php(),
    );
    match espocrm.file_name() {
        Some(file) => info!("The configuration file is {}.", file.display()),
        None => info!("There is no configuration file {DEFAULT_FILE}: defaults are in force."),
    }
    settings.log_doubts();
    settings.log_mode();
    warn_of_user(&espocrm);
    Router::sweep();
    let scheme = if settings.tls.value.is_some() { "wss" } else { "ws" };
    let mut server = Server::new(settings, Backend::Espocrm(espocrm), sockets, signals)?;
    info!("Browsers are served at {scheme}://{}.", server.address());
    info!("EspoCRM's messages are received at {}.", server.endpoint());
    let settings = server.settings();
    info!(
        "At most {} and {} of memory; and PHP's, up to {} of some 50 MB each while access is \
         checked.",
        plural(settings.max_connections.value as u64, "connection", "connections"),
        megabytes(settings.worst_case()),
        plural(settings.max_checks.value as u64, "process", "processes"),
    );
    server.run(Systemd::of_environment())
}

/// Warns if the daemon or PHP runs as another user than it should.
fn warn_of_user(espocrm: &Espocrm) {
    let data = espocrm.root().join("data");
    let (identity, shown) = (espocrm.identity(), data.display());
    if identity.is_root() {
        warn!(
            "PHP runs as root because of --allow-root: the code of the web site can change \
             everything. Give {shown} to the web server's user, and run the daemon as that user."
        );
    } else if sys::is_root() {
        warn!(
            "The daemon runs as root, which it does not need; PHP runs as {name}. Run the daemon as \
             {name}: espocrm-websocket setup does that.",
            name = identity.name()
        );
    } else if !identity.owns(&data) {
        warn!(
            "The daemon and PHP run as {}, who does not own {shown}: PHP may not be able to write \
             EspoCRM's caches and logs. Run the daemon as the owner: espocrm-websocket setup, as \
             root, does that.",
            identity.name()
        );
    }
}

/// Reads the settings of the EspoCRM that `layers` name, as the daemon does when it starts.
///
/// # Errors
/// If there is no EspoCRM, it does not answer, or its settings cannot be used.
pub(crate) fn load(layers: Layers) -> Result<(Installation, Settings)> {
    let (espocrm, settings) = Espocrm::open(layers, || false)?;
    Ok((espocrm.installation().clone(), settings))
}

/// Finds out whether the settings make sense, and tells nothing else.
///
/// # Errors
/// What is wrong with them, and what to do.
pub(crate) fn check(layers: Layers) -> Result<()> {
    let (espocrm, settings) = Espocrm::open(layers, || false)?;
    settings.log_doubts();
    if let Some(files) = &settings.tls.value {
        Acceptor::load(espocrm.root(), files, espocrm.identity())?;
    }
    Ok(())
}

/// Prints the settings in force.
///
/// # Errors
/// Why they cannot be told, and what to do.
pub(crate) fn show(layers: Layers) -> Result<()> {
    let file = layers.file_name().map_or("none".to_owned(), |path| path.display().to_string());
    let (espocrm, mut settings) = Espocrm::open(layers, || false)?;
    settings.log_doubts();
    event_loop::limit_to_open_files(&mut settings);
    let root = espocrm.root().display();
    let (file, root) = (Printable(file), Printable(root));
    let text = format!("{:<18}{file}\n{:<18}{root}\n{settings}", "file", "root");
    let text = printable_lines(&text);
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Exit::error(error.to_string()))
}
