//! What a machine adds to the package's unit.

use crate::shell::shell_word::is_plain;

/// The drop-in of a service.
pub struct DropIn<'a> {
    /// Whom it runs as.
    pub user: &'a str,
    /// EspoCRM's `data/`, where it really is.
    pub data: &'a str,
    /// Directories in people's homes, all of which are hidden otherwise.
    pub homes: &'a [&'a str],
}

impl DropIn<'_> {
    /// Its text. `again` is the command that writes it anew.
    pub fn render(&self, again: &str) -> String {
        let mut text = format!(
            "# Written by `{again}`, which writes it anew. Your own changes belong into another \
             file beside it:\n# that of systemctl edit.\n[Service]\nUser={}\n",
            self.user
        );
        text = text + "ReadWritePaths=" + &escape(self.data) + "\n";
        if !self.homes.is_empty() {
            text += "ProtectHome=tmpfs\n";
        }
        for home in self.homes {
            text = text + "BindPaths=" + &escape(home) + "\n";
        }
        text
    }
}

/// A path as systemd reads it in a list of such. It must not hold control characters.
fn escape(path: &str) -> String {
    if is_plain(path) {
        return path.to_owned();
    }
    let path = path.replace('%', "%%").replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{path}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMENT: &str = "# Written by `espocrm-websocket setup`, which writes it anew. Your own \
        changes belong into another file beside it:\n# that of systemctl edit.\n";

    #[test]
    fn user_and_data_are_named() {
        let drop_in = DropIn { user: "www-data", data: "/var/www/html/data", homes: &[] };
        let expected = "[Service]\nUser=www-data\nReadWritePaths=/var/www/html/data\n";
        assert_eq!(drop_in.render("espocrm-websocket setup"), [COMMENT, expected].concat());
    }

    #[test]
    fn a_home_is_let_in() {
        let homes = ["/home/ann/my crm", "/home/ann/data"];
        let drop_in = DropIn { user: "1000", data: "/home/ann/data", homes: &homes };
        let expected = "[Service]\nUser=1000\nReadWritePaths=/home/ann/data\nProtectHome=tmpfs\n\
                        BindPaths=\"/home/ann/my crm\"\nBindPaths=/home/ann/data\n";
        assert_eq!(drop_in.render("espocrm-websocket setup"), [COMMENT, expected].concat());
    }

    #[test]
    fn what_systemd_would_take_for_something_else_is_escaped() {
        assert_eq!(escape("/srv/a b:c/100%/\"q\"\\"), r#""/srv/a b:c/100%%/\"q\"\\""#);
        assert_eq!(escape("/srv/\u{e9}"), "\"/srv/\u{e9}\"");
    }
}
