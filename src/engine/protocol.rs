//! Protocols of browsers, proxies and clients of the control socket: HTTP, RFC 6455, WAMP v1 and
//! the PROXY protocol.

pub mod client_address;
pub mod control;
pub mod frame;
pub mod http;
pub mod origin;
pub mod outbox;
pub mod proxy_header;
pub mod reader;
pub mod wamp;
