//! Line by line what EspoCRM's client relies on, over raw sockets.
