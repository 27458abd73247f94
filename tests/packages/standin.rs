//! The stand-in for EspoCRM, at the path where an administrator would install the real one.

use serde_json::{Value, json};

use crate::container::Container;

/// EspoCRM's default port.
pub const PORT: u16 = 8080;

/// Installs the stand-in at `path`. As with the real one, the web server's user owns all files.
pub fn add(container: &Container, path: &str) {
    add_with(container, path, PORT, 5555);
}

/// The same with these ports.
pub fn add_with(container: &Container, path: &str, port: u16, zeromq: u16) {
    container.run(&format!("mkdir -p {path} && cp -r /tests/standin/. {path}"));
    container.write(
        &format!("{path}/data/config.php"),
        &format!(
            "<?php return [
                'useWebSocket' => true,
                'siteUrl' => 'http://localhost',
                'webSocketPort' => {port},
                'webSocketZeroMQSubscriberDsn' => 'tcp://127.0.0.1:{zeromq}',
                'webSocketDebugMode' => true,
            ];"
        ),
    );
    container.write(&format!("{path}/index.php"), "<?php\n");
    container.run(&format!("chown -R www-data:www-data {path}"));
}

/// A message for the tabs of alice.
pub fn notification(number: usize) -> Value {
    json!({"topicId": "newNotification", "userId": "alice", "number": number})
}
