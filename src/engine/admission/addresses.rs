//! Number of connections and of pending logins per client address.

use std::collections::HashMap;

use crate::engine::protocol::client_address::ClientKey;

/// Counts per client address. Addresses without connections are removed; each costs about 48 B.
#[derive(Debug, Default)]
pub struct Addresses(HashMap<ClientKey, Count>);

/// The counts of one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Connections in any phase.
    pub connections: u32,
    /// Connections that wait for the check of their login.
    pub logins: u32,
}

impl Addresses {
    /// The counts of an address.
    #[must_use]
    pub fn count(&self, client: ClientKey) -> Count {
        self.0.get(&client).copied().unwrap_or_default()
    }

    /// Counts a new connection.
    pub fn add(&mut self, client: ClientKey) {
        self.0.entry(client).or_default().connections += 1;
    }

    /// Counts the end of a connection.
    pub fn remove(&mut self, client: ClientKey) {
        if let Some(count) = self.0.get_mut(&client) {
            count.connections = count.connections.saturating_sub(1);
            if count.connections == 0 {
                self.0.remove(&client);
            }
        }
        // Release the memory of a burst.
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to_fit();
        }
    }

    /// Counts a pending login.
    pub fn begin_login(&mut self, client: ClientKey) {
        if let Some(count) = self.0.get_mut(&client) {
            count.logins += 1;
        }
    }

    /// Counts the end of a pending login.
    pub fn end_login(&mut self, client: ClientKey) {
        if let Some(count) = self.0.get_mut(&client) {
            count.logins = count.logins.saturating_sub(1);
        }
    }
}

#[cfg(test)]
impl Addresses {
    /// Number of addresses.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_removed_with_its_last_connection() {
        let mut addresses = Addresses::default();
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|text| ClientKey::of(text.parse().unwrap()));
        addresses.add(a);
        addresses.add(a);
        addresses.add(b);
        addresses.begin_login(a);
        assert_eq!(addresses.count(a), Count { connections: 2, logins: 1 });
        assert_eq!(addresses.count(b), Count { connections: 1, logins: 0 });
        addresses.end_login(a);
        addresses.remove(a);
        addresses.remove(b);
        assert_eq!(addresses.count(a), Count { connections: 1, logins: 0 });
        assert_eq!(addresses.count(b), Count::default());
        addresses.remove(a);
        assert_eq!(addresses.len(), 0);
        // Unknown addresses are ignored.
        addresses.remove(a);
        addresses.end_login(a);
        addresses.begin_login(a);
        assert_eq!(addresses.len(), 0);
    }
}
