//! The packages for Linux distributions, in containers with a booted systemd, real php-cli and real
//! nginx: the steps of an administrator and their results. `make test-packages` builds the packages
//! and the containers' root directories and runs these tests; `PACKAGES=DIR` tests other packages.
//!
//! Each test boots its own Debian, and its thread is in that container's network: 127.0.0.1 is the
//! container's. For the rest see `tools/container`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a failing test panics"
)]

#[expect(dead_code, unused_imports, reason = "the tests of the daemon use all of it")]
#[path = "../e2e/support/mod.rs"]
mod support;

mod container;
mod package;
mod standin;
mod tab;

/// Runs each test on each release of Debian.
macro_rules! on_each_release {
    ($($test:ident)*) => {
        mod bookworm {
            $(
                #[test]
                #[ignore = "boots a container: make test-packages"]
                fn $test() { super::$test(crate::container::Release::Bookworm); }
            )*
        }
        mod trixie {
            $(
                #[test]
                #[ignore = "boots a container: make test-packages"]
                fn $test() { super::$test(crate::container::Release::Trixie); }
            )*
        }
    };
}

mod adopt;
mod commands;
mod install;
mod remove;
mod rpm;
mod service;
mod setup;
mod socket;
mod upgrade;
