//! What `setup` and `adopt` work at.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::Path;

use super::files::{Files, failed};
use super::systemctl::Systemctl;
use crate::shell::fatal::{Fatal, Result};
use crate::shell::sys;

/// This machine, or an image of one.
pub struct Machine<'a> {
    pub files: Files,
    /// None if systemd does not run it, as in an image.
    pub systemctl: Option<Systemctl>,
    /// What is told to the administrator.
    pub out: RefCell<Box<dyn Write + 'a>>,
}

impl Machine<'_> {
    /// This machine, or the image in `root`.
    ///
    /// # Errors
    /// If it may not be changed, or there is none.
    pub fn open(root: Option<&Path>) -> Result<Self> {
        let out = RefCell::new(Box::new(io::stdout()) as Box<dyn Write>);
        if let Some(root) = root {
            let root = root.canonicalize().map_err(|error| failed(root, "opened", &error))?;
            return Ok(Self { files: Files::below(&root), systemctl: None, out });
        }
        if !sys::is_root() {
            return Err(Fatal::new("This changes files in /etc: run it as root."));
        }
        Ok(Self { files: Files::below(Path::new("/")), systemctl: Systemctl::here(), out })
    }

    /// Tells something. That nobody listens is no reason to stop halfway.
    pub fn say(&self, text: &str) {
        let _ = writeln!(self.out.borrow_mut(), "{text}");
    }
}
