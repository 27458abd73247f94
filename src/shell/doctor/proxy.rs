//! The proxy in front of the daemon: which it is, and what it has to be told.

use super::public_url::{Daemon, Place};
use crate::shell::setup::Files;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Nginx,
    Apache,
    Caddy,
    Traefik,
    Unknown,
}

const NGINX: &str = include_str!("../../../docs/proxies/nginx.conf");
const APACHE: &str = include_str!("../../../docs/proxies/apache.conf");
const CADDY: &str = include_str!("../../../docs/proxies/Caddyfile");
const TRAEFIK: &str = include_str!("../../../docs/proxies/traefik.yml");

/// What the documents name, and is another here.
const HOST: &str = "crm.example.com";
const TARGET: &str = "127.0.0.1:8080";
const LOCATION: &str = "/wss";

/// Where the packages have the documents.
const DOCUMENTS: &str = "/usr/share/doc/espocrm-websocket/docs/proxies";

impl Proxy {
    /// By what it says of itself, or else by what is installed here.
    pub fn find(server: Option<&str>, files: &Files) -> Self {
        let server = server.unwrap_or_default().to_ascii_lowercase();
        let named = [
            ("nginx", Self::Nginx),
            ("openresty", Self::Nginx),
            ("apache", Self::Apache),
            ("caddy", Self::Caddy),
        ];
        if let Some((_, proxy)) = named.iter().find(|(name, _)| server.contains(name)) {
            return *proxy;
        }
        let installed = [
            ("/etc/nginx", Self::Nginx),
            ("/etc/apache2", Self::Apache),
            ("/etc/httpd", Self::Apache),
            ("/etc/caddy", Self::Caddy),
            ("/etc/traefik", Self::Traefik),
        ];
        let here = |dir: &str| files.resolve(dir.as_ref()).is_ok();
        let mut found = installed.iter().filter(|(dir, _)| here(dir)).map(|(_, proxy)| *proxy);
        match (found.next(), found.next()) {
            (Some(only), None) => only,
            _ => Self::Unknown,
        }
    }

    /// What to write into its configuration, for this site.
    pub fn snippet(self, place: &Place, daemon: &Daemon<'_>) -> String {
        let (what, text) = match self {
            Self::Nginx => (
                "nginx, in the server block of this site:",
                between(NGINX, "    location ", "    }\n"),
            ),
            Self::Apache => (
                "Apache, in the VirtualHost of this site, after: a2enmod proxy_http proxy_wstunnel",
                between(APACHE, "    ProxyPass ", "\n"),
            ),
            Self::Caddy => {
                ("Caddy, in the block of this site:", between(CADDY, "\treverse_proxy ", "\n"))
            }
            Self::Traefik => ("Traefik, as a file of its file provider:", TRAEFIK),
            Self::Unknown => {
                return format!(
                    "How nginx, Apache, Caddy and Traefik are told to pass {} on to {}: see the \
                     files in {DOCUMENTS}",
                    place.location(),
                    daemon.address
                );
            }
        };
        let mut snippet = String::from(what);
        for line in text.lines() {
            let content = line.trim_start();
            if !content.is_empty() && !content.starts_with('#') {
                snippet.push_str("\n  ");
                snippet.push_str(&fill(line, place, daemon));
            }
        }
        snippet.replace('\t', "    ") + "\nAll of it: " + DOCUMENTS
    }
}

/// A line of a document with the names of this site.
fn fill(line: &str, place: &Place, daemon: &Daemon<'_>) -> String {
    let mut line = line.replace(TARGET, daemon.address).replace(HOST, &place.host);
    if daemon.tls {
        line = line.replace("http://", "https://").replace("ws://", "wss://");
        line =
            line.replace(&[" ", daemon.address].concat(), &[" https://", daemon.address].concat());
    }
    match place.location() {
        LOCATION => line,
        "/" => line.replace(LOCATION, "/"),
        location => line.replace(LOCATION, location),
    }
}

/// From the first line that begins so to the next such end.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let Some(start) = text.find(&["\n", begin].concat()) else { return "" };
    let text = text.get(start + 1..).unwrap_or_default();
    let length = text.find(end).map_or(text.len(), |at| at + end.len());
    text.get(..length).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snippet(proxy: Proxy, path: &str, tls: bool) -> String {
        let place =
            Place { tls: true, host: "x.example.org".to_owned(), port: 443, path: path.to_owned() };
        let daemon =
            Daemon { serves: true, address: "127.0.0.1:8081", port: 8081, tls, origins: &[] };
        proxy.snippet(&place, &daemon)
    }

    #[test]
    fn snippets_are_the_documented_ones_with_this_sites_names() {
        let nginx = snippet(Proxy::Nginx, "/wss", false);
        for line in [
            "location /wss {",
            "proxy_pass http://127.0.0.1:8081;",
            "proxy_http_version 1.1;",
            "proxy_set_header Upgrade $http_upgrade;",
            "proxy_set_header Connection \"upgrade\";",
            "}",
        ] {
            assert!(nginx.lines().any(|it| it.trim() == line), "{line}: {nginx}");
        }
        let apache = snippet(Proxy::Apache, "/wss", false);
        assert!(
            apache.contains("ProxyPass \"/wss\" \"ws://127.0.0.1:8081/\" timeout=60"),
            "{apache}"
        );
        assert_eq!(apache.lines().count(), 3, "{apache}");
        let caddy = snippet(Proxy::Caddy, "/wss", false);
        assert!(caddy.contains("reverse_proxy /wss* 127.0.0.1:8081\n"), "{caddy}");
        let traefik = snippet(Proxy::Traefik, "/wss", false);
        assert!(traefik.contains("Host(`x.example.org`) && PathPrefix(`/wss`)"), "{traefik}");
        assert!(traefik.contains("url: \"http://127.0.0.1:8081\""), "{traefik}");
        for text in [nginx, apache, caddy, traefik, snippet(Proxy::Unknown, "/wss", false)] {
            assert!(text.contains(DOCUMENTS) && !text.contains(HOST), "{text}");
            assert!(!text.contains("127.0.0.1:8080"), "{text}");
        }
    }

    #[test]
    fn other_paths_and_a_daemon_with_tls_are_filled_in() {
        assert!(snippet(Proxy::Nginx, "/a/b/", false).contains("location /a/b {"));
        assert!(snippet(Proxy::Nginx, "/", false).contains("location / {"));
        assert!(snippet(Proxy::Nginx, "/wss", true).contains("proxy_pass https://127.0.0.1:8081;"));
        assert!(snippet(Proxy::Apache, "/wss", true).contains("\"wss://127.0.0.1:8081/\""));
        let caddy = snippet(Proxy::Caddy, "/wss", true);
        assert!(caddy.contains("reverse_proxy /wss* https://127.0.0.1:8081"), "{caddy}");
    }

    #[test]
    fn a_proxy_is_known_by_its_name() {
        let files = Files::below("/nonexistent".as_ref());
        for (server, proxy) in [
            (Some("nginx/1.22.1"), Proxy::Nginx),
            (Some("Apache/2.4.59 (Debian)"), Proxy::Apache),
            (Some("1.1 Caddy"), Proxy::Caddy),
            (Some("cloudflare"), Proxy::Unknown),
            (None, Proxy::Unknown),
        ] {
            assert_eq!(Proxy::find(server, &files), proxy, "{server:?}");
        }
    }
}
