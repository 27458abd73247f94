//! How many connections, and how many logins that wait, each client address has.

use std::collections::HashMap;

use crate::engine::protocol::client_address::ClientKey;

/// Counts by client address; an address without connections is forgotten. About 48 B for each.
#[derive(Debug, Default)]
pub struct Addresses(HashMap<ClientKey, Count>);

/// What one address has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Connections, however far they have come.
    pub connections: u32,
    /// Those whose login waits to be checked.
    pub logins: u32,
}

impl Addresses {
    /// What an address has.
    #[must_use]
    pub fn count(&self, client: ClientKey) -> Count {
        self.0.get(&client).copied().unwrap_or_default()
    }

    /// A connection has come.
    pub fn join(&mut self, client: ClientKey) {
        self.0.entry(client).or_default().connections += 1;
    }

    /// One has ended.
    pub fn leave(&mut self, client: ClientKey) {
        if let Some(count) = self.0.get_mut(&client) {
            count.connections = count.connections.saturating_sub(1);
            if count.connections == 0 {
                self.0.remove(&client);
            }
        }
        // After a rush its memory is given back.
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to_fit();
        }
    }

    /// The login of one waits.
    pub fn begin_login(&mut self, client: ClientKey) {
        if let Some(count) = self.0.get_mut(&client) {
            count.logins += 1;
        }
    }

    /// It waits no longer.
    pub fn end_login(&mut self, client: ClientKey) {
        if let Some(count) = self.0.get_mut(&client) {
            count.logins = count.logins.saturating_sub(1);
        }
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_forgotten_with_its_last_connection() {
        let mut addresses = Addresses::default();
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|text| ClientKey::of(text.parse().unwrap()));
        addresses.join(a);
        addresses.join(a);
        addresses.join(b);
        addresses.begin_login(a);
        assert_eq!(addresses.count(a), Count { connections: 2, logins: 1 });
        assert_eq!(addresses.count(b), Count { connections: 1, logins: 0 });
        addresses.end_login(a);
        addresses.leave(a);
        addresses.leave(b);
        assert_eq!(addresses.count(a), Count { connections: 1, logins: 0 });
        assert_eq!(addresses.count(b), Count::default());
        addresses.leave(a);
        assert!(addresses.is_empty());
        // What was never counted is not counted down.
        addresses.leave(a);
        addresses.end_login(a);
        addresses.begin_login(a);
        assert!(addresses.is_empty());
    }
}
