//! The configuration of nginx, as far as the doctor needs it.

use std::path::Path;

use crate::admin::setup::{Files, SITES, Token, next_token};

/// The blocks of the configuration. Each parent precedes its children.
pub(super) struct Nginx<'a> {
    files: &'a Files,
    blocks: Vec<Block>,
    files_left: usize,
}

#[derive(Default)]
struct Block {
    parent: usize,
    /// The words of each directive, first those before the block itself.
    directives: Vec<Vec<String>>,
}

const MAIN: &str = "/etc/nginx/nginx.conf";

/// Limits on the number of files and on the depth of includes.
pub(super) const MAX_FILES: usize = 500;
const MAX_DEPTH: usize = 5;

impl<'a> Nginx<'a> {
    pub(super) fn read(files: &'a Files) -> Self {
        let mut nginx = Self { files, blocks: vec![Block::default()], files_left: MAX_FILES };
        if files.resolve(Path::new(MAIN)).is_ok() {
            nginx.include(Path::new(MAIN), 0, 0);
        } else {
            let sites = SITES.iter().filter(|it| it.contains("nginx"));
            for site in sites.flat_map(|pattern| files.find(pattern)) {
                nginx.include(&site, 0, 0);
            }
        }
        nginx
    }

    /// Reads a file as part of the block `current`. `depth`: the depth of includes.
    fn include(&mut self, path: &Path, mut current: usize, depth: usize) {
        if self.files_left == 0 || depth > MAX_DEPTH {
            return;
        }
        self.files_left -= 1;
        let text = self.files.read(path).unwrap_or_default();
        let mut rest = &text[..];
        let mut words: Vec<String> = Vec::new();
        while let Some((token, after)) = next_token(rest) {
            rest = after;
            let end = match token {
                Token::Word(word) => {
                    words.push(String::from_utf8_lossy(&word).into_owned());
                    continue;
                }
                Token::End(b'\n') => continue,
                Token::End(end) => end,
            };
            let directive = std::mem::take(&mut words);
            let Some(block) = self.blocks.get_mut(current) else { return };
            match (end, &*directive) {
                (b'{', _) => {
                    self.blocks.push(Block { parent: current, directives: vec![directive] });
                    current = self.blocks.len() - 1;
                }
                (b'}', _) => current = block.parent,
                (_, [name, pattern, ..]) if name == "include" => {
                    let pattern = Path::new("/etc/nginx").join(pattern);
                    for path in self.files.find(&pattern.to_string_lossy()) {
                        self.include(&path, current, depth + 1);
                    }
                }
                _ => block.directives.push(directive),
            }
        }
    }

    /// The blocks that forward to this port.
    pub(super) fn forwarding(&self, port: u16) -> Vec<usize> {
        let is_upstream = |block: &&Block| block.values("server").any(|it| has_port(it, port));
        let upstreams = self.blocks.iter().filter(is_upstream);
        let upstreams: Vec<_> = upstreams.flat_map(|block| block.values("upstream")).collect();
        let forwards = |target: &str| {
            let (_, target) = target.split_once("://").unwrap_or(("", target));
            let host = target.split('/').next().unwrap_or_default();
            has_port(host, port) || upstreams.contains(&host)
        };
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.filter(|(_, block)| block.values("proxy_pass").any(forwards));
        blocks.map(|(number, _)| number).collect()
    }

    /// The arguments of the directives with this name that apply in a block: those of the innermost
    /// block that has any.
    pub(super) fn applying(&self, mut block: usize, name: &str) -> Vec<&[String]> {
        loop {
            let Some(current) = self.blocks.get(block) else { return Vec::new() };
            let found: Vec<_> = current.named(name).collect();
            if !found.is_empty() || current.parent == block {
                return found;
            }
            block = current.parent;
        }
    }
}

impl Block {
    /// The arguments of each directive with this name.
    fn named(&self, name: &str) -> impl Iterator<Item = &[String]> {
        self.directives.iter().filter_map(move |words| match &**words {
            [first, arguments @ ..] if first == name && !arguments.is_empty() => Some(arguments),
            _ => None,
        })
    }

    /// The first argument of each directive with this name.
    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.named(name).filter_map(|arguments| arguments.first()).map(|first| &**first)
    }
}

/// Whether a host is followed by this port.
pub(super) fn has_port(host: &str, port: u16) -> bool {
    let Some((_, rest)) = host.rsplit_once(':') else { return false };
    // A variable may follow.
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end).is_some_and(|number| number.parse() == Ok(port))
}
