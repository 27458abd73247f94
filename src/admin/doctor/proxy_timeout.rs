//! The idle timeout of the proxy. It must be longer than the daemon's ping interval, or the proxy
//! closes connections again and again.

use std::path::Path;
use std::time::Duration;

use super::nginx::{MAX_FILES, Nginx, has_port};
use super::proxy::Proxy;
use super::public_url::Daemon;
use super::report::Finding;
use crate::admin::doctor::public_address::PublicAddress;
use crate::admin::setup::{Files, SITES};

/// A configured timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timeout {
    seconds: u64,
    /// The directive, or a note that it is the default.
    by: &'static str,
}

/// The default timeout of nginx and Apache, in seconds.
const DEFAULT: u64 = 60;

pub(super) fn examine(
    files: &Files,
    reached: Option<&(PublicAddress, Proxy)>,
    daemon: &Daemon<'_>,
    ping: Duration,
) -> Finding {
    const STEP: &str = "idle-timeout";
    let Some((address, proxy)) = reached else {
        return Finding::unknown(STEP, "Idle timeout of the proxy: the proxy was not found");
    };
    if address.is_direct(daemon.port, daemon.tls) {
        let found = "Browsers connect without a proxy that could close idle connections";
        return Finding::ok(STEP, found);
    }
    let port = daemon.port;
    let timeout = match proxy {
        Proxy::Nginx => nginx(files, port),
        Proxy::Apache => apache(files, port),
        Proxy::Traefik | Proxy::Unknown => nginx(files, port).or_else(|| apache(files, port)),
        Proxy::Caddy => {
            return Finding::ok(STEP, "Caddy does not close idle connections by default");
        }
    };
    let Some(timeout) = timeout else {
        return Finding::unknown(
            STEP,
            format!(
                "Idle timeout of the proxy: no configuration in /etc/nginx, /etc/apache2 or \
                 /etc/httpd forwards to port {port}; the default of nginx and Apache is 60 s"
            ),
        );
    };
    judge(STEP, timeout, ping)
}

fn judge(step: &'static str, timeout: Timeout, ping: Duration) -> Finding {
    let Timeout { seconds, by } = timeout;
    let ping = ping.as_secs().max(1);
    let found = format!(
        "The proxy closes idle connections after {seconds} s ({by}); pings are sent every {ping} s"
    );
    let wanted = (2 * ping + 10).max(DEFAULT);
    let directive = if by.contains("proxy_read_timeout") {
        format!("proxy_read_timeout {wanted}s;")
    } else {
        format!("ProxyPass … timeout={wanted}")
    };
    let fix = format!(
        "The timeout should be longer than two ping intervals: {directive}\nOr reduce \
         ping_interval."
    );
    if seconds > 2 * ping {
        Finding::ok(step, found)
    } else if seconds > ping {
        Finding::warning(step, found, fix)
    } else {
        Finding::failure(step, found, ["Idle browser tabs lose their connection.\n", &fix].concat())
    }
}

fn nginx(files: &Files, port: u16) -> Option<Timeout> {
    let nginx = Nginx::read(files);
    let timeout = |block: usize| {
        let own = nginx.applying(block, "proxy_read_timeout");
        match own.last().and_then(|arguments| seconds(arguments.first()?)) {
            Some(seconds) => Timeout { seconds, by: "proxy_read_timeout" },
            None => Timeout { seconds: DEFAULT, by: "proxy_read_timeout is not set" },
        }
    };
    nginx.forwarding(port).into_iter().map(timeout).min_by_key(|timeout| timeout.seconds)
}

fn apache(files: &Files, port: u16) -> Option<Timeout> {
    const MAIN: [&str; 2] = ["/etc/apache2/apache2.conf", "/etc/httpd/conf/httpd.conf"];
    let text =
        |path: &Path| String::from_utf8_lossy(&files.read(path).unwrap_or_default()).into_owned();
    let main: String = MAIN.iter().map(|path| text(Path::new(path))).collect();
    let sites = SITES.iter().filter(|it| !it.contains("nginx"));
    let sites = sites.flat_map(|pattern| files.find(pattern)).take(MAX_FILES);
    let timeouts = sites.filter_map(|site| in_site(&text(&site), &main, port));
    timeouts.min_by_key(|timeout| timeout.seconds)
}

/// The timeout in a site's file, or else in the main file.
fn in_site(site: &str, main: &str, port: u16) -> Option<Timeout> {
    let site = site.replace("\\\n", " ");
    let forwards = |word: &str| {
        let (_, target) = word.split_once("://").unwrap_or_default();
        has_port(target.split(['/', '"', '\'']).next().unwrap_or_default(), port)
    };
    let mut lines = site.lines().filter(|line| !line.trim_start().starts_with('#'));
    let line = lines.rfind(|line| line.split_whitespace().any(forwards))?;
    let of_line = line.split_whitespace().find_map(|word| seconds(word.strip_prefix("timeout=")?));
    let named = |name: &str| {
        site.lines().chain(main.lines()).find_map(|line| {
            let mut words = line.split_whitespace();
            words.next().filter(|first| first.eq_ignore_ascii_case(name))?;
            seconds(words.next()?)
        })
    };
    let found = of_line
        .map(|seconds| Timeout { seconds, by: "timeout= of ProxyPass" })
        .or_else(|| Some(Timeout { seconds: named("ProxyTimeout")?, by: "ProxyTimeout" }))
        .or_else(|| Some(Timeout { seconds: named("Timeout")?, by: "Timeout" }));
    Some(found.unwrap_or(Timeout { seconds: DEFAULT, by: "Timeout is not set" }))
}

/// Parses a time in the format of nginx and Apache: `60`, `1m30s`, `500ms`.
fn seconds(text: &str) -> Option<u64> {
    let mut millis = 0_u64;
    let mut rest = text.trim_end_matches(['"', '\'']);
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at_checked(end)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        let factor = match unit.trim_end() {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return None,
        };
        millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        if after.is_empty() {
            return Some(millis / 1_000);
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use crate::admin::setup::image::Image;

    fn image(files: &[(&str, &str)]) -> Image {
        let image = Image::new();
        for (path, text) in files {
            image.put(path, text);
        }
        image
    }

    fn nginx_of(image: &Image, port: u16) -> Option<(u64, &'static str)> {
        nginx(&Files::below(&image.at("/")), port).map(|it| (it.seconds, it.by))
    }

    #[test]
    fn nginx_is_followed_through_its_includes() {
        let several = image(&[
            (
                "/etc/nginx/nginx.conf",
                "events {}\nhttp {\n proxy_read_timeout 2m;\n include conf.d/*.conf;\n\
                     include /etc/nginx/sites-enabled/*;\n}\n",
            ),
            (
                "/etc/nginx/conf.d/a.conf",
                "upstream ws { server 127.0.0.1:8081; }\n\
                     server { location / { proxy_pass http://127.0.0.1:80; \
                     proxy_read_timeout 5s; } }",
            ),
            (
                "/etc/nginx/sites-enabled/crm",
                "server { listen 443 ssl;\n# proxy_read_timeout 1s;\n location /wss {\n\
                     proxy_pass http://127.0.0.1:8080; include snippets/ws.conf; }\n\
                     location /x { proxy_pass http://ws/; proxy_read_timeout \"90s\"; }\n\
                     location /y { proxy_pass http://127.0.0.1:8082; } }",
            ),
            ("/etc/nginx/snippets/ws.conf", "proxy_read_timeout 10s;\ninclude ws.conf;\n"),
        ]);
        let own = "proxy_read_timeout";
        assert_eq!(nginx_of(&several, 8080), Some((10, own)));
        assert_eq!(nginx_of(&several, 8081), Some((90, own)));
        assert_eq!(nginx_of(&several, 8082), Some((120, own)));
        assert_eq!(nginx_of(&several, 808), None);
        let site = ("/etc/nginx/sites-enabled/x", "location /wss { proxy_pass http://a:8080; }");
        assert_eq!(nginx_of(&image(&[site]), 8080).unwrap().0, 60);
        let odd = ("/etc/nginx/nginx.conf", "}}}include nginx.conf; {{{ a");
        assert_eq!(nginx_of(&image(&[odd]), 8080), None);
    }

    #[test]
    fn apache_has_several_directives_for_the_timeout() {
        let main = "Timeout 300\n";
        for (site, main, expected) in [
            ("ProxyPass \"/wss\" \"ws://127.0.0.1:8080/\" timeout=20 retry=0", main, Some(20)),
            ("ProxyTimeout 30\n<Location /wss>\nProxyPass ws://[::1]:8080/\n", main, Some(30)),
            ("RewriteRule .* ws://127.0.0.1:8080%{REQUEST_URI} [P]", main, Some(300)),
            ("RewriteRule (.*) ws://127.0.0.1:8080/$1 [P]", main, Some(300)),
            ("ProxyPass /wss ws://127.0.0.1:8080/", "", Some(60)),
            ("# ProxyPass /wss ws://127.0.0.1:8080/", "", None),
            ("ProxyPass /wss ws://127.0.0.1:80800/", "", None),
        ] {
            let seconds = in_site(site, main, 8080).map(|it| it.seconds);
            assert_eq!(seconds, expected, "{site}");
        }
    }

    #[test]
    fn times_are_parsed() {
        let valid = [("60", 60), ("60s", 60), ("1m30s", 90), ("1h", 3600), ("1500ms", 1)];
        for (text, expected) in valid {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in ["", "$timeout", "1y", "s", "99999999999999999999", "9999999999999999999d"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn the_timeout_should_exceed_two_ping_intervals() {
        for (seconds, state) in
            [(10, State::Failure), (25, State::Failure), (50, State::Warning), (60, State::Ok)]
        {
            let timeout = Timeout { seconds, by: "proxy_read_timeout" };
            assert_eq!(judge("idle", timeout, Duration::from_secs(25)).state, state);
        }
    }
}
