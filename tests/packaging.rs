//! Units, man pages and completions, which packages contain besides the binary. They must agree
//! with the binary and work as documented. `tools/check-packages` checks the packages themselves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test panics"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output};

use espocrm_websocket::cli::commands::{COMMANDS, Info};

const BINARY: &str = env!("CARGO_BIN_EXE_espocrm-websocket");

const SERVICE: &str = "packaging/systemd/espocrm-websocket.service";
const INSTANCE: &str = "packaging/systemd/espocrm-websocket@.service";
const SOCKET: &str = "packaging/systemd/espocrm-websocket.socket";
const INSTANCE_SOCKET: &str = "packaging/systemd/espocrm-websocket@.socket";
const MANUAL: &str = "docs/man/espocrm-websocket.8";
const SETTINGS_MANUAL: &str = "docs/man/espocrm-websocket.toml.5";
const BASH: &str = "packaging/completions/espocrm-websocket.bash";
const FISH: &str = "packaging/completions/espocrm-websocket.fish";
const ZSH: &str = "packaging/completions/_espocrm-websocket";

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(path(""));
    // For man: no pager, and plain text.
    command.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80");
    command.output().unwrap_or_else(|error| panic!("{program}: {error}; see tools/install test"))
}

/// Runs a program that must succeed without warnings.
fn run_without_complaint(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The words that follow `prefix` in `text`.
fn words_after(text: &str, prefix: &str) -> BTreeSet<String> {
    let word = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && !"_-".contains(c));
        rest[..end.unwrap_or(rest.len())].to_owned()
    };
    text.split(prefix).skip(1).map(word).filter(|word| !word.is_empty()).collect()
}

fn help() -> String {
    let of = |info: &Info| run_without_complaint(BINARY, &["help", info.name]);
    run_without_complaint(BINARY, &["--help"]) + &COMMANDS.iter().map(of).collect::<String>()
}

/// All flags without their dashes.
fn flags() -> BTreeSet<String> {
    let flags = words_after(&help(), "--");
    assert!(flags.len() > 10, "{flags:?}");
    flags
}

fn commands() -> BTreeSet<String> {
    COMMANDS.iter().map(|info| info.name.to_owned()).collect()
}

#[test]
fn the_manual_has_every_flag_and_no_other() {
    assert_eq!(words_after(&read(MANUAL), "Fl -"), flags());
}

#[test]
fn the_manual_has_every_command_and_no_other() {
    assert_eq!(words_after(&read(MANUAL), "\n.It Cm "), commands());
}

#[test]
fn manuals_are_well_formed() {
    for file in [MANUAL, SETTINGS_MANUAL] {
        // Its style warnings depend on the other installed manuals.
        let complaints = run("mandoc", &["-T", "lint", "-W", "warning", file]);
        assert_eq!(String::from_utf8_lossy(&complaints.stdout), "");
        let text = run_without_complaint("man", &["--warnings", "-E", "UTF-8", "-l", file]);
        assert!(text.contains("SEE ALSO"), "{text}");
    }
}

#[test]
fn completions_work_in_each_shell() {
    run_without_complaint("bash", &["-n", BASH]);
    run_without_complaint("bash", &["-c", &format!(". {BASH}; complete -p espocrm-websocket")]);
    run_without_complaint("zsh", &["-n", ZSH]);
    run_without_complaint("fish", &["-n", FISH]);
    let offered = run_without_complaint(
        "fish",
        &["-N", "-c", &format!("source {FISH}; complete -C 'espocrm-websocket adopt --'")],
    );
    assert!(offered.contains("--undo") && !offered.contains("--php"), "{offered}");
    for script in ["postinst", "prerm", "postrm"] {
        let script = format!("packaging/deb/espocrm-websocket.{script}");
        run_without_complaint("sh", &["-n", &script]);
    }
}

/// The settings of a unit in their order, without comments.
fn unit(file: &str) -> String {
    let text = read(file);
    text.split_inclusive('\n').filter(|line| !line.starts_with(['#', '\n'])).collect()
}

#[test]
fn the_service_units_differ_only_in_their_name() {
    let expected = unit(SERVICE)
        .replace("/config.toml", "/%i.toml")
        .replace("of EspoCRM\n", "of EspoCRM (%i)\n")
        .replace("espocrm-websocket reload\n", "espocrm-websocket reload --name %i\n")
        .replace("SyslogIdentifier=espocrm-websocket\n", "SyslogIdentifier=espocrm-websocket@%i\n")
        .replace("RuntimeDirectory=espocrm-websocket\n", "RuntimeDirectory=espocrm-websocket-%i\n");
    assert_eq!(unit(INSTANCE), expected);
}

#[test]
fn the_socket_units_differ_only_in_their_name() {
    let expected = unit(SOCKET)
        .replace("/config.toml", "/%i.toml")
        .replace("of EspoCRM\n", "of EspoCRM (%i)\n");
    assert_eq!(unit(INSTANCE_SOCKET), expected);
}

#[test]
fn packages_contain_every_unit() {
    let spec = read("packaging/rpm/espocrm-websocket.spec");
    let (rules, check) = (read("packaging/deb/rules"), read("tools/check-packages"));
    for entry in fs::read_dir(path("packaging/systemd")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(spec.contains(&format!("\n%{{unitdir}}/{name}\n")), "{name}");
        assert!(check.contains(&format!(" UNITS/{name}\n")), "{name}");
        let words = rules.split_whitespace();
        assert!(words.into_iter().any(|word| word == name), "{name}");
    }
}

#[test]
fn units_run_existing_commands() {
    let units = unit(SERVICE);
    let (used, known) = (words_after(&units, " --"), flags());
    assert!(used.is_subset(&known), "{used:?}");
    let used = words_after(&units, "/usr/bin/espocrm-websocket ");
    assert!(used.is_subset(&commands()), "{used:?}");
    assert!(units.contains("\nConditionPathExists=/etc/espocrm-websocket/config.toml\n"));
}

#[test]
fn the_open_file_limit_suffices_for_the_default_number_of_connections() {
    let after = |text: &str, prefix: &str| {
        let (_, rest) = text.split_once(prefix).unwrap_or_else(|| panic!("{prefix} is missing"));
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
        rest[..end].parse::<u64>().unwrap()
    };
    let connections = after(&read("packaging/config.toml"), "\n#max_connections = ");
    let reserved = espocrm_websocket::engine::limits::RESERVED_DESCRIPTORS;
    let over_limit = espocrm_websocket::engine::admission::OVER_LIMIT as u64;
    // The soft limit alone; the daemon raises it to the hard limit.
    let granted = after(&unit(SERVICE), "\nLimitNOFILE=");
    assert!(connections + reserved + over_limit <= granted, "{granted}");
}

/// A directory with the units as they are after `setup`, which run this binary.
struct Configured {
    dir: PathBuf,
}

impl Configured {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for (file, name) in [
            (SERVICE, "espocrm-websocket.service"),
            (INSTANCE, "espocrm-websocket@crm.service"),
            (SOCKET, "espocrm-websocket.socket"),
            (INSTANCE_SOCKET, "espocrm-websocket@crm.socket"),
        ] {
            let text = read(file).replace("/usr/bin/espocrm-websocket", BINARY);
            fs::write(dir.join(name), text).unwrap();
            let drop_in = dir.join(format!("{name}.d"));
            if Path::new(name).extension().is_some_and(|extension| extension == "service") {
                fs::create_dir(&drop_in).unwrap();
                let text = "[Service]\nUser=www-data\nReadWritePaths=/var/www/html/data\n";
                fs::write(drop_in.join("10-setup.conf"), text).unwrap();
            }
        }
        Self { dir }
    }

    fn unit(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn systemd_accepts_all_units() {
    let units = Configured::new("units-verified");
    for unit in [
        "espocrm-websocket.service",
        "espocrm-websocket@crm.service",
        "espocrm-websocket.socket",
        "espocrm-websocket@crm.socket",
    ] {
        let output = run("systemd-analyze", &["verify", "--man=no", &units.unit(unit)]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        // systemd-analyze also checks the machine's own units.
        let ours: Vec<_> = stderr.lines().filter(|line| line.contains("espocrm")).collect();
        assert!(output.status.success() && ours.is_empty(), "{stderr}");
    }
}

/// The files that a Markdown text links to.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let files = targets.filter(|it| !it.contains("://") && !it.starts_with('#'));
    files.map(|it| it.split('#').next().unwrap().to_owned()).collect()
}

#[test]
fn packaged_documents_link_only_to_packaged_files() {
    let has = |file: &str| {
        let is_shipped = ["README.md", "SECURITY.md"].contains(&file) || file.starts_with("docs/");
        is_shipped && !file.starts_with("docs/development/") && path(file).exists()
    };
    for document in ["README.md", "SECURITY.md"] {
        let found = links(&run_without_complaint("tools/package", &["document", document]));
        assert!(found.len() > 1, "{document}: {found:?}");
        for link in found {
            assert!(has(&link), "{document}: {link}");
        }
    }
    let mut linked = links(&read("README.md"));
    let mut pages = Vec::new();
    for entry in fs::read_dir(path("docs")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let name = file.file_name().unwrap().to_str().unwrap();
        for link in links(&read(&format!("docs/{name}"))) {
            let file = link.strip_prefix("../").map_or(format!("docs/{link}"), str::to_owned);
            assert!(has(&file), "docs/{name}: {link}");
            linked.push(file);
        }
        pages.push(format!("docs/{name}"));
    }
    for page in pages {
        assert!(linked.contains(&page), "no page links to {page}");
    }
    // The other files of docs/ that the packages contain.
    for file in ["packaging/deb/espocrm-websocket.install", "packaging/rpm/espocrm-websocket.spec"]
    {
        for dir in ["docs/images", "docs/monitoring", "docs/proxies"] {
            assert!(read(file).contains(dir), "{file}: {dir}");
        }
    }
}

#[test]
fn development_pages_are_linked_and_link_to_files_that_exist() {
    let mut linked = BTreeSet::new();
    let mut pages = vec![PathBuf::from("ARCHITECTURE.md"), PathBuf::from("CONTRIBUTING.md")];
    for entry in fs::read_dir(path("docs/development")).unwrap() {
        pages.push(Path::new("docs/development").join(entry.unwrap().file_name()));
    }
    for page in &pages {
        for link in links(&read(page.to_str().unwrap())).iter().filter(|link| !link.is_empty()) {
            let file = path("").join(page).parent().unwrap().join(link).canonicalize();
            linked.insert(file.unwrap_or_else(|_| panic!("{}: {link}", page.display())));
        }
    }
    for page in pages {
        let file = path(page.to_str().unwrap()).canonicalize().unwrap();
        assert!(linked.contains(&file), "no page links to {}", page.display());
    }
}

/// The first code block of this kind in the installation manual.
fn documented(kind: &str) -> String {
    let manual = read("docs/install.md");
    let (_, block) = manual.split_once(&format!("\n```{kind}\n")).unwrap();
    block.split_once("\n```\n").unwrap().0.to_owned() + "\n"
}

#[test]
fn the_documented_unit_is_valid_and_has_the_directives_that_commands_need() {
    let documented = documented("ini");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unit-documented");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("espocrm-websocket.service");
    fs::write(&file, documented.replace("/usr/local/bin/espocrm-websocket", BINARY)).unwrap();
    let output = run("systemd-analyze", &["verify", "--man=no", file.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = stderr.lines().filter(|line| line.contains("espocrm")).collect();
    assert!(output.status.success() && ours.is_empty(), "{stderr}");
    fs::remove_dir_all(&dir).unwrap();
    // Except for paths, it contains only what the packaged unit contains.
    let (packaged, mut own) = (unit(SERVICE), BTreeSet::new());
    for line in documented.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if !packaged.lines().any(|it| it == line) {
            own.insert(line.split_once('=').unwrap().0.to_owned());
        }
    }
    let expected = ["ExecReload", "ExecStart", "ReadWritePaths"].map(str::to_owned);
    assert_eq!(own, expected.into());
    for line in ["Type=notify", "RuntimeDirectory=espocrm-websocket", "ExecReload="] {
        assert!(documented.contains(&format!("\n{line}")), "{line}");
    }
    for words in documented.split("/usr/local/bin/espocrm-websocket ").skip(1) {
        let command = words.split_whitespace().next().unwrap().to_owned();
        assert!(commands().contains(&command), "{command}");
    }
}

#[test]
fn logrotate_accepts_the_documented_configuration() {
    // The repository may be in a directory that only its owner can enter, such as /root.
    let dir = std::env::temp_dir().join(format!("espocrm-websocket-logrotate-{}", process::id()));
    fs::create_dir_all(&dir).unwrap();
    let log = dir.join("websocket.log");
    fs::write(&log, "x\n").unwrap();
    let text = documented("logrotate");
    assert!(
        text.contains("/var/www/html/data/logs/websocket.log {") && text.contains("su www-data")
    );
    let text = text.replace("/var/www/html/data/logs/websocket.log", log.to_str().unwrap());
    let file = dir.join("espocrm-websocket");
    fs::write(&file, text).unwrap();
    let output = run("logrotate", &["-d", file.to_str().unwrap()]);
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !printed.contains("error:"), "{printed}");
    assert!(
        ["weekly ", "(8 rotations)", log.to_str().unwrap()]
            .iter()
            .all(|part| printed.contains(part)),
        "{printed}"
    );
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_exposure_of_the_service_is_at_most_2_of_10() {
    let units = Configured::new("units-secured");
    for unit in ["espocrm-websocket.service", "espocrm-websocket@crm.service"] {
        let arguments = ["security", "--offline=true", "--threshold=20", &units.unit(unit)];
        let output = run("systemd-analyze", &arguments);
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(report.contains("Overall exposure level"), "{report}");
        assert!(output.status.success(), "{report}");
    }
}

#[test]
fn packages_have_the_version_of_the_binary() {
    let version = run_without_complaint(BINARY, &["--version"]);
    let version = version.trim().rsplit(' ').next().unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let changelog = run_without_complaint("tools/package", &["changelog", "deb"]);
    let head = format!("espocrm-websocket ({version}-1) unstable; urgency=medium\n\n  * ");
    assert!(changelog.starts_with(&head), "{changelog}");
    let changelog = run_without_complaint("tools/package", &["changelog", "rpm"]);
    let head = changelog.lines().next().unwrap();
    assert!(head.starts_with("* ") && head.ends_with(&format!(" - {version}-1")), "{changelog}");
    // The version occurs in no other place.
    let spec = read("packaging/rpm/espocrm-websocket.spec");
    assert!(spec.contains("\nVersion: %{package_version}\n"));
}
