//! `espocrm-websocket setup` and `adopt` in the image of a machine. What needs a systemd that runs is
//! tested beside the code, with a script in its place, and in containers.

mod adopting;
mod finding;
mod machine;
mod writing;

use machine::Machine;
