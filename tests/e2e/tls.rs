//! Our own TLS.
