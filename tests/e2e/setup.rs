//! `espocrm-websocket setup` and `adopt` in the image of a machine. Everything that needs a running
//! systemd is tested in unit tests, with a script instead of systemd, and in containers.

mod adopt;
mod files;
mod machine;
mod search;

use machine::Machine;
