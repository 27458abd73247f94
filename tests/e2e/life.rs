//! Starting, reloading, stopping.
