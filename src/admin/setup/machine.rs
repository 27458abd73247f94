//! The machine that `setup` and `adopt` change.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use super::files::{Files, failed};
use super::systemctl::Systemctl;
use crate::engine::printable::printable_lines;
use crate::platform::exit::{Exit, Result};
use crate::platform::sys;

/// This machine, or a system image.
pub(crate) struct Machine {
    pub files: Files,
    /// `None` if systemd does not run, or in an image.
    pub systemctl: Option<Systemctl>,
    /// The output for the administrator.
    pub out: Option<File>,
}

impl Machine {
    /// This machine, or the image in `root`.
    ///
    /// # Errors
    /// If the user is not root, or the image does not exist.
    pub(crate) fn open(root: Option<&Path>) -> Result<Self> {
        let out = io::stdout().as_fd().try_clone_to_owned().ok().map(File::from);
        if let Some(root) = root {
            let root = root.canonicalize().map_err(|error| failed(root, "opened", &error))?;
            return Ok(Self { files: Files::below(&root), systemctl: None, out });
        }
        if !sys::is_root() {
            return Err(Exit::error("This command changes files in /etc: run it as root."));
        }
        Ok(Self { files: Files::below(Path::new("/")), systemctl: Systemctl::here(), out })
    }

    /// Prints a message. A closed output is no reason to stop halfway.
    pub(crate) fn print(&self, text: &str) {
        let text = printable_lines(text) + "\n";
        let _ = self.out.as_ref().map(|mut out| out.write_all(text.as_bytes()));
    }
}
