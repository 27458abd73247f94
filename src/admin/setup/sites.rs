//! The document roots in the configuration of a web server.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The directories in nginx's `root` and Apache's `DocumentRoot`. Those that contain variables are
/// omitted.
pub(super) fn document_roots(text: &[u8]) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    let mut rest = text;
    let mut begins = true;
    let mut named = false;
    while let Some((token, after)) = next(rest) {
        rest = after;
        match token {
            // nginx allows the value on the next line.
            Token::End(b'\n') => begins = true,
            Token::End(_) => (begins, named) = (true, false),
            Token::Word(word) if named => {
                if word.starts_with(b"/") && !word.contains(&b'$') {
                    roots.push(PathBuf::from(OsString::from_vec(word)));
                }
                (begins, named) = (false, false);
            }
            Token::Word(word) => {
                named = begins && (word == b"root" || word.eq_ignore_ascii_case(b"DocumentRoot"));
                begins = false;
            }
        }
    }
    roots
}

/// A token of a web server's configuration.
pub(crate) enum Token {
    /// A word, without its quotes.
    Word(Vec<u8>),
    /// A byte that ends a statement.
    End(u8),
}

/// The next token, and the remaining text.
pub(crate) fn next(mut text: &[u8]) -> Option<(Token, &[u8])> {
    loop {
        let (&byte, rest) = text.split_first()?;
        text = match byte {
            b'\n' | b';' | b'{' | b'}' => return Some((Token::End(byte), rest)),
            b'#' => {
                let end = text.iter().position(|byte| *byte == b'\n')?;
                text.get(end..)?
            }
            b'\\' if rest.starts_with(b"\n") => rest.get(1..)?,
            byte if byte.is_ascii_whitespace() => rest,
            _ => return Some(word(text)),
        };
    }
}

fn word(mut text: &[u8]) -> (Token, &[u8]) {
    let mut word = Vec::new();
    let quote = text.first().copied().filter(|byte| matches!(byte, b'"' | b'\''));
    text = text.get(usize::from(quote.is_some())..).unwrap_or_default();
    while let Some((&byte, rest)) = text.split_first() {
        match byte {
            b'\\' if !rest.is_empty() => {
                let (&next, rest) = rest.split_first().unwrap_or((&byte, rest));
                if next != b'\n' {
                    word.push(next);
                }
                text = rest;
                continue;
            }
            _ if quote == Some(byte) => {
                text = rest;
                break;
            }
            b';' | b'{' | b'}' if quote.is_none() => break,
            byte if quote.is_none() && byte.is_ascii_whitespace() => break,
            byte => word.push(byte),
        }
        text = rest;
    }
    (Token::Word(word), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(text: &str) -> Vec<String> {
        let roots = document_roots(text.as_bytes());
        roots.iter().map(|root| root.display().to_string()).collect()
    }

    #[test]
    fn nginx_root_is_found() {
        let text = "user www-data; # root /comment;\nhttp {\n  server { root /var/www/crm/public; \
                    }\nserver{root \"/srv/my crm\" ;location /x {root\n /srv/x;}}\nserver { root \
                    '/srv/it\\'s'; } server { root /srv/a\\ b; }\nroot html; root $dir; root \
                    /srv/$host; fastcgi_param X root /no; rooted /no;\n";
        let expected = ["/var/www/crm/public", "/srv/my crm", "/srv/x", "/srv/it's", "/srv/a b"];
        assert_eq!(roots(text), expected);
    }

    #[test]
    fn apache_document_root_is_found() {
        let text = "# DocumentRoot /comment\n<VirtualHost *:80>\n\tDocumentRoot /var/www/html\n\
                    documentroot \"/srv/my crm/public\"\r\nDocumentRoot ${ROOT}\n\
                    DocumentRoot \\\n  /srv/b\n<Directory /var/www/html>\nOptions All\n";
        assert_eq!(roots(text), ["/var/www/html", "/srv/my crm/public", "/srv/b"]);
    }

    #[test]
    fn any_input_is_parsed_without_a_panic() {
        for text in ["", "root", "root ", "root \"", "root \"/x", "root \\", "#", "root /x\\"] {
            assert!(roots(text).len() <= 1, "{text}");
        }
        assert_eq!(document_roots(b"root /\xff\xfe;").len(), 1);
        let all: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        assert_eq!(document_roots(&all).len(), 0);
        assert_eq!(document_roots("{".repeat(1 << 20).as_bytes()).len(), 0);
    }
}
