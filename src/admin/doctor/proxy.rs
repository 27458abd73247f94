//! The proxy in front of the daemon, and the configuration that it needs.

use super::public_url::Daemon;
use crate::admin::doctor::public_address::PublicAddress;
use crate::admin::setup::Files;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    Nginx,
    Apache,
    Caddy,
    Traefik,
    Unknown,
}

// Verbatim from the files in docs/proxies.
const NGINX: &str = "\
location /wss {
    proxy_pass http://127.0.0.1:8080;
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection \"upgrade\";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_read_timeout 60s;
    access_log off;
    error_log /dev/null;
}";
const APACHE: &str = "ProxyPass \"/wss\" \"ws://127.0.0.1:8080/\" timeout=60 retry=0";
const CADDY: &str = "reverse_proxy /wss* 127.0.0.1:8080";
const TRAEFIK: &str = "\
http:
  routers:
    espocrm-websocket:
      rule: \"Host(`crm.example.com`) && PathPrefix(`/wss`)\"
      entryPoints:
        - websecure
      service: espocrm-websocket
      tls: {}
      observability:
        accessLogs: false
        tracing: false
  services:
    espocrm-websocket:
      loadBalancer:
        servers:
          - url: \"http://127.0.0.1:8080\"";

/// The names in the documents, which are replaced by those of the site.
const HOST: &str = "crm.example.com";
const TARGET: &str = "127.0.0.1:8080";
const LOCATION: &str = "/wss";

/// The directory in which the packages install the documents.
pub(super) const DOCUMENTS: &str = "/usr/share/doc/espocrm-websocket/docs/proxies";

impl Proxy {
    /// Identifies the proxy by its `Server` header, or else by the configuration installed here.
    pub(super) fn find(server: Option<&str>, files: &Files) -> Self {
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

    /// The lines for its configuration, with the names of this site.
    pub(super) fn snippet(self, address: &PublicAddress, daemon: &Daemon<'_>) -> String {
        let (what, text) = match self {
            Self::Nginx => ("For nginx, in the server block of this site:", NGINX),
            Self::Apache => (
                "For Apache, in the VirtualHost of this site, after a2enmod proxy_http \
                 proxy_wstunnel:",
                APACHE,
            ),
            Self::Caddy => ("For Caddy, in the block of this site:", CADDY),
            Self::Traefik => ("For Traefik, as a file of its file provider:", TRAEFIK),
            Self::Unknown => {
                return format!(
                    "To forward {} to {} with nginx, Apache, Caddy or Traefik, see the files in \
                     {DOCUMENTS}",
                    address.location(),
                    daemon.address
                );
            }
        };
        let mut snippet = String::from(what);
        for line in text.lines() {
            snippet.push_str("\n  ");
            snippet.push_str(&fill(line, address, daemon));
        }
        snippet + "\nComplete examples: " + DOCUMENTS
    }
}

/// A line of a document with the names of this site.
fn fill(line: &str, address: &PublicAddress, daemon: &Daemon<'_>) -> String {
    let mut line = line.replace(TARGET, daemon.address).replace(HOST, &address.host);
    if daemon.tls {
        line = line.replace("http://", "https://").replace("ws://", "wss://");
        line =
            line.replace(&[" ", daemon.address].concat(), &[" https://", daemon.address].concat());
    }
    match address.location() {
        LOCATION => line,
        "/" => line.replace(LOCATION, "/"),
        location => line.replace(LOCATION, location),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snippet(proxy: Proxy, path: &str, tls: bool) -> String {
        let address = PublicAddress {
            tls: true,
            host: "x.example.org".to_owned(),
            port: 443,
            path: path.to_owned(),
        };
        let daemon =
            Daemon { serves: true, address: "127.0.0.1:8081", port: 8081, tls, origins: &[] };
        proxy.snippet(&address, &daemon)
    }

    /// The lines of a text without comments and empty lines.
    fn lines(text: &str) -> Vec<&str> {
        let lines = text.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }

    #[test]
    fn snippets_are_parts_of_the_documents() {
        for (snippet, document) in [
            (NGINX, include_str!("../../../docs/proxies/nginx.conf")),
            (APACHE, include_str!("../../../docs/proxies/apache.conf")),
            (CADDY, include_str!("../../../docs/proxies/Caddyfile")),
            (TRAEFIK, include_str!("../../../docs/proxies/traefik.yml")),
        ] {
            let (mut snippet, document) = (lines(snippet), lines(document));
            // The document defines a log without tokens instead, outside of the location.
            snippet.retain(|line| *line != "access_log off;");
            assert!(document.windows(snippet.len()).any(|it| it == snippet), "{snippet:#?}");
        }
        assert_eq!(lines(TRAEFIK), lines(include_str!("../../../docs/proxies/traefik.yml")));
    }

    #[test]
    fn snippets_contain_the_names_of_the_site() {
        let nginx = snippet(Proxy::Nginx, "/wss", false);
        for line in [
            "location /wss {",
            "proxy_pass http://127.0.0.1:8081;",
            "proxy_http_version 1.1;",
            "proxy_set_header Upgrade $http_upgrade;",
            "proxy_set_header Connection \"upgrade\";",
            "access_log off;",
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
        for line in ["\n  location /wss {\n", "\n      proxy_pass http", "\n  }\n"] {
            assert!(nginx.contains(line), "{line:?}: {nginx}");
        }
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
    fn a_proxy_is_recognized_by_its_name() {
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
