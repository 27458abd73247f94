//! The idle timeout of the proxy. It must be longer than the daemon's ping interval, or the proxy
//! closes connections again and again.

use std::path::Path;
use std::time::Duration;

use super::proxy::Proxy;
use super::public_url::Daemon;
use super::report::Finding;
use crate::admin::doctor::public_address::PublicAddress;
use crate::admin::setup::{Files, SITES, Token, next_token};

/// A configured timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Timeout {
    seconds: u64,
    /// The directive, or a note that it is the default.
    by: String,
}

/// A block of nginx's configuration.
#[derive(Default)]
pub(super) struct Block {
    pub parent: usize,
    /// The arguments of each `access_log` and `log_format` in it.
    pub access_logs: Vec<Vec<String>>,
    pub log_formats: Vec<Vec<String>>,
    /// The name of an upstream.
    pub upstream: Option<String>,
    pub read_timeout: Option<u64>,
    pub proxy_pass: Option<String>,
    /// Whether this is an upstream with the daemon as a server.
    pub forwards: bool,
}

const NGINX: &str = "/etc/nginx/nginx.conf";

/// Limits on the number of files and on the depth of includes.
const MAX_FILES: usize = 500;
const MAX_DEPTH: usize = 5;

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
    let timeout = match proxy {
        Proxy::Nginx => nginx(files, daemon.port),
        Proxy::Apache => apache(files, daemon.port),
        Proxy::Caddy => {
            return Finding::ok(STEP, "Caddy does not close idle connections by default");
        }
        Proxy::Traefik | Proxy::Unknown => {
            nginx(files, daemon.port).or_else(|| apache(files, daemon.port))
        }
    };
    timeout.map_or_else(
        || {
            Finding::unknown(
                STEP,
                format!(
                    "Idle timeout of the proxy: no configuration in /etc/nginx, /etc/apache2 or \
                     /etc/httpd forwards to port {}; the default of nginx and Apache is 60 s",
                    daemon.port
                ),
            )
        },
        |timeout| judge(STEP, &timeout, ping),
    )
}

fn judge(step: &'static str, timeout: &Timeout, ping: Duration) -> Finding {
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
    if *seconds > 2 * ping {
        Finding::ok(step, found)
    } else if *seconds > ping {
        Finding::warning(step, found, fix)
    } else {
        Finding::failure(step, found, ["Idle browser tabs lose their connection.\n", &fix].concat())
    }
}

/// The blocks of nginx's configuration.
pub(super) fn nginx_blocks(files: &Files, port: u16) -> Vec<Block> {
    let mut reader = Reader { files, port, blocks: vec![Block::default()], files_left: MAX_FILES };
    if files.resolve(Path::new(NGINX)).is_ok() {
        reader.read(Path::new(NGINX), 0, 0);
    } else {
        let sites = SITES.iter().filter(|it| it.contains("nginx"));
        for site in sites.flat_map(|pattern| files.find(pattern)) {
            reader.read(&site, 0, 0);
        }
    }
    reader.blocks
}

/// The blocks that forward to the daemon.
pub(super) fn forwarding(blocks: &[Block], port: u16) -> Vec<&Block> {
    let upstreams: Vec<&str> = blocks
        .iter()
        .filter(|block| block.forwards)
        .filter_map(|block| block.upstream.as_deref())
        .collect();
    let forwards = |block: &&Block| {
        block.proxy_pass.as_deref().is_some_and(|target| {
            let (_, target) = target.split_once("://").unwrap_or(("", target));
            let host = target.split('/').next().unwrap_or_default();
            has_port(host, port) || upstreams.contains(&host)
        })
    };
    blocks.iter().filter(forwards).collect()
}

fn nginx(files: &Files, port: u16) -> Option<Timeout> {
    let blocks = nginx_blocks(files, port);
    let timeout = |block: &Block| {
        let mut block = block;
        // Each parent precedes its children.
        loop {
            if let Some(seconds) = block.read_timeout {
                return Timeout { seconds, by: "proxy_read_timeout".to_owned() };
            }
            match blocks.get(block.parent) {
                Some(parent) if !std::ptr::eq(parent, block) => block = parent,
                _ => {
                    let by = "proxy_read_timeout is not set".to_owned();
                    return Timeout { seconds: DEFAULT, by };
                }
            }
        }
    };
    forwarding(&blocks, port).into_iter().map(timeout).min_by_key(|timeout| timeout.seconds)
}

/// Reads nginx's configuration files.
struct Reader<'a> {
    files: &'a Files,
    port: u16,
    blocks: Vec<Block>,
    files_left: usize,
}

impl Reader<'_> {
    /// Reads a file as part of the block `current`. `depth`: the depth of includes.
    fn read(&mut self, path: &Path, mut current: usize, depth: usize) {
        if self.files_left == 0 || depth > MAX_DEPTH {
            return;
        }
        self.files_left -= 1;
        let text = self.files.read(path).unwrap_or_default();
        let mut rest = &text[..];
        let mut words: Vec<String> = Vec::new();
        while let Some((token, after)) = next_token(rest) {
            rest = after;
            match token {
                Token::Word(word) => words.push(String::from_utf8_lossy(&word).into_owned()),
                Token::End(b'\n') => {}
                Token::End(b'{') => {
                    let is_upstream = words.first().is_some_and(|it| it == "upstream");
                    let upstream = words.get(1).filter(|_| is_upstream).cloned();
                    self.blocks.push(Block { parent: current, upstream, ..Block::default() });
                    current = self.blocks.len() - 1;
                    words.clear();
                }
                Token::End(b'}') => {
                    current = self.blocks.get(current).map_or(0, |block| block.parent);
                    words.clear();
                }
                Token::End(_) => {
                    let (name, value) = (words.first(), words.get(1));
                    if let (Some(name), Some(value), Some(block)) =
                        (name, value, self.blocks.get_mut(current))
                    {
                        let arguments = || words.iter().skip(1).cloned().collect();
                        match &**name {
                            "access_log" => block.access_logs.push(arguments()),
                            "log_format" => block.log_formats.push(arguments()),
                            "proxy_pass" => block.proxy_pass = Some(value.clone()),
                            "proxy_read_timeout" => block.read_timeout = seconds(value),
                            "server" if block.upstream.is_some() => {
                                block.forwards |= has_port(value, self.port);
                            }
                            "include" => {
                                let whole = Path::new("/etc/nginx").join(value);
                                for path in self.files.find(&whole.to_string_lossy()) {
                                    self.read(&path, current, depth + 1);
                                }
                            }
                            _ => {}
                        }
                    }
                    words.clear();
                }
            }
        }
    }
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
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_it = |word: &String| {
        let target = word.trim_matches(['"', '\'']);
        let (_, target) = target.split_once("://").unwrap_or_default();
        has_port(target.split('/').next().unwrap_or_default(), port)
    };
    let mut forwarding = site
        .replace("\\\n", " ")
        .lines()
        .map(words)
        .filter(|words| !words.first().is_some_and(|it| it.starts_with('#')))
        .filter(|words| words.iter().any(is_it))
        .collect::<Vec<_>>();
    let line = forwarding.pop()?;
    let own = line.iter().find_map(|word| seconds(word.strip_prefix("timeout=")?));
    if let Some(seconds) = own {
        return Some(Timeout { seconds, by: "timeout= of ProxyPass".to_owned() });
    }
    let named = |text: &str, name: &str| {
        text.lines().map(words).find_map(|words| {
            let [first, value, ..] = &words[..] else { return None };
            first.eq_ignore_ascii_case(name).then(|| seconds(value))?
        })
    };
    for name in ["ProxyTimeout", "Timeout"] {
        if let Some(seconds) = named(site, name).or_else(|| named(main, name)) {
            return Some(Timeout { seconds, by: name.to_owned() });
        }
    }
    Some(Timeout { seconds: DEFAULT, by: "Timeout is not set".to_owned() })
}

/// Whether a host is followed by this port.
fn has_port(host: &str, port: u16) -> bool {
    let Some((_, rest)) = host.rsplit_once(':') else { return false };
    // A variable may follow.
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end).is_some_and(|number| number.parse() == Ok(port))
}

/// Parses a time in the format of nginx and Apache: `60`, `1m30s`, `500ms`.
fn seconds(text: &str) -> Option<u64> {
    let mut total = 0_u64;
    let mut rest = text.trim_end_matches(['"', '\'']);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, after) = rest.split_at_checked(end)?;
        let number: u64 = digits.parse().ok()?;
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        let factor = match unit {
            "" | "s" => 1,
            "ms" => {
                total = total.checked_add(number / 1_000)?;
                rest = after;
                continue;
            }
            "m" | "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = after.trim_start();
    }
    Some(total)
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

    fn nginx_of(image: &Image, port: u16) -> Option<(u64, String)> {
        found(nginx(&Files::below(&image.at("/")), port))
    }

    fn found(timeout: Option<Timeout>) -> Option<(u64, String)> {
        timeout.map(|it| (it.seconds, it.by))
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
        let own = || "proxy_read_timeout".to_owned();
        assert_eq!(nginx_of(&several, 8080), Some((10, own())));
        assert_eq!(nginx_of(&several, 8081), Some((90, own())));
        assert_eq!(nginx_of(&several, 8082), Some((120, own())));
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
        for (text, expected) in [
            ("60", Some(60)),
            ("60s", Some(60)),
            ("1m30s", Some(90)),
            ("1h", Some(3600)),
            ("1500ms", Some(1)),
            ("", None),
            ("$timeout", None),
            ("1y", None),
            ("s", None),
            ("99999999999999999999", None),
            ("9999999999999999999d", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn the_timeout_should_exceed_two_ping_intervals() {
        for (seconds, state) in
            [(10, State::Failure), (25, State::Failure), (50, State::Warning), (60, State::Ok)]
        {
            let timeout = Timeout { seconds, by: "proxy_read_timeout".to_owned() };
            assert_eq!(judge("idle", &timeout, Duration::from_secs(25)).state, state);
        }
    }
}
