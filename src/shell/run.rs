//! Serving an EspoCRM, and showing what would be served.

use std::io::Write;

use log::{info, warn};

use super::fatal::{Fatal, Result};
use super::server::{Backend, Espocrm, Server};
use super::settings::Layers;
use super::sys;

/// Serves the EspoCRM that `layers` name until a signal ends it.
///
/// # Errors
/// Why it cannot be served, and what to do.
pub fn serve(layers: Layers) -> Result<()> {
    let (espocrm, settings) = Espocrm::open(layers)?;
    let root = espocrm.root().display().to_string();
    info!(
        "espocrm-websocket {} for EspoCRM {} in {root}, {} categories.",
        env!("CARGO_PKG_VERSION"),
        settings.version,
        settings.categories.iter().count(),
    );
    settings.log_doubts();
    if sys::is_root() {
        warn!(
            "This runs as root, which it does not need: run it as the owner of {root}/data. PHP is \
             run as that owner."
        );
    }
    let scheme = if settings.tls.value.is_some() { "wss" } else { "ws" };
    let mut server = Server::new(settings, Backend::Espocrm(espocrm))?;
    info!("Browsers are served at {scheme}://{}.", server.address());
    info!("EspoCRM's messages are received at {}.", server.endpoint());
    server.run()
}

/// Prints the settings in force.
///
/// # Errors
/// Why they cannot be told, and what to do.
pub fn show(layers: Layers) -> Result<()> {
    let (espocrm, settings) = Espocrm::open(layers)?;
    let text = format!("{:<16}{}\n{settings}", "root", espocrm.root().display());
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Fatal::new(error.to_string()))
}
