//! Whether the proxy logs access tokens, which are part of the URL's query.

use super::nginx::Nginx;
use super::proxy::{DOCUMENTS, Proxy};
use super::public_url::Daemon;
use super::report::Finding;
use crate::admin::doctor::public_address::PublicAddress;
use crate::admin::setup::Files;

const STEP: &str = "proxy-log";

/// nginx's variables that contain the query.
const WITH_QUERY: [&str; 5] = ["request", "request_uri", "args", "query_string", "arg_authToken"];

pub(super) fn examine(
    files: &Files,
    reached: Option<&(PublicAddress, Proxy)>,
    daemon: &Daemon<'_>,
) -> Finding {
    let unknown = |why: &str| {
        Finding::unknown(STEP, format!("It is unknown whether the proxy logs access tokens: {why}"))
    };
    if reached.is_some_and(|(address, _)| address.is_direct(daemon.port, daemon.tls)) {
        return Finding::ok(STEP, "Browsers connect without a proxy that could log access tokens");
    }
    let nginx = Nginx::read(files);
    let forwarding = nginx.forwarding(daemon.port);
    if forwarding.is_empty() {
        return unknown("no nginx configuration forwards to the daemon");
    }
    let log = forwarding.into_iter().find_map(|block| log_with_tokens(&nginx, block));
    judge(log.as_deref())
}

fn judge(log: Option<&str>) -> Finding {
    let Some(log) = log else {
        return Finding::ok(STEP, "nginx does not log access tokens");
    };
    Finding::warning(
        STEP,
        format!("nginx writes the access tokens of users to a log: {log}"),
        format!(
            "Anyone who can read this log can act as these users. Add to the daemon's location:\n  \
             access_log off;\nor use a log_format without the query, as in \
             {DOCUMENTS}/nginx.conf.\nThen: nginx -t && systemctl reload nginx\nDelete the old \
             logs."
        ),
    )
}

/// The log that receives the tokens of requests that this block forwards.
fn log_with_tokens(nginx: &Nginx<'_>, block: usize) -> Option<String> {
    let logs = nginx.applying(block, "access_log");
    if logs.is_empty() {
        return Some("access.log (the default)".to_owned());
    }
    if logs.iter().any(|log| log.first().is_some_and(|path| path == "off")) {
        return None;
    }
    let with_tokens = logs.iter().find(|log| {
        // A condition may exclude these requests.
        let is_conditional = log.iter().any(|word| word.starts_with("if="));
        let format = log.get(1).filter(|word| !word.contains('='));
        let formats = nginx.applying(block, "log_format");
        !is_conditional && has_query(&formats, format.map_or("combined", |name| name))
    });
    with_tokens.and_then(|log| log.first().cloned())
}

/// Whether a line in this format contains the query.
fn has_query(formats: &[&[String]], format: &str) -> bool {
    format == "combined"
        || formats.iter().any(|words| match words {
            [name, texts @ ..] if name == format => texts.iter().any(|text| names_query(text)),
            _ => false,
        })
}

fn names_query(text: &str) -> bool {
    text.split('$').skip(1).any(|rest| {
        let rest = rest.trim_start_matches('{');
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        rest.get(..end.unwrap_or(rest.len())).is_some_and(|name| WITH_QUERY.contains(&name))
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use crate::admin::setup::image::Image;

    #[test]
    fn variables_that_contain_the_query_are_recognized() {
        for (text, expected) in [
            ("\"$request\" $status", true),
            ("${request_uri}", true),
            ("$uri$is_args$args", true),
            ("$request_method $uri", false),
            ("\"$request_without_token\"", false),
            ("", false),
        ] {
            assert_eq!(names_query(text), expected, "{text}");
        }
    }

    #[test]
    fn the_innermost_access_log_applies() {
        let judged = |http: &[&str], location: &[&str]| {
            let logs = |logs: &[&str]| {
                logs.iter().map(|log| ["access_log ", log, ";\n"].concat()).collect::<String>()
            };
            let image = Image::new();
            image.put(
                "/etc/nginx/nginx.conf",
                &format!(
                    "http {{ log_format short $remote_addr $uri;\n\
                     log_format long escape=json '$request';\n{}\
                     server {{ location /wss {{ proxy_pass http://a:8080; {} }} }} }}",
                    logs(http),
                    logs(location)
                ),
            );
            let files = Files::below(&image.at("/"));
            let nginx = Nginx::read(&files);
            log_with_tokens(&nginx, nginx.forwarding(8080)[0])
        };
        for (http, location, expected) in [
            (&[][..], &[][..], true),
            (&["/a.log"], &[], true),
            (&["/a.log combined buffer=4k"], &[], true),
            (&["/a.log buffer=4k"], &[], true),
            (&["/a.log long"], &[], true),
            (&["/a.log short"], &[], false),
            (&["/a.log"], &["off"], false),
            (&["off"], &["/a.log"], true),
            (&["/a.log"], &["/b.log short"], false),
            (&["/a.log short", "/b.log"], &[], true),
            (&["/a.log combined if=$loggable"], &[], false),
        ] {
            assert_eq!(judged(http, location).is_some(), expected, "{http:?} {location:?}");
        }
        assert_eq!(judge(None).state, State::Ok);
        assert_eq!(judge(Some("/a.log")).state, State::Warning);
    }
}
