//! `tools/install` and `tools/cargo` on machines without the required packages, root privileges or
//! Rust. The package managers, `sudo`, `id` and Rust are scripts here, and nothing is installed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test panics"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The programs of a minimal system that the scripts use.
const SYSTEM: &[&str] = &[
    "sh", "cat", "dirname", "getent", "env", "find", "grep", "head", "id", "install", "mktemp",
    "paste", "realpath", "rm", "sed", "sleep", "sort", "touch", "tr",
];

const NEW: &str = "echo 'cargo 1.99.0 (abc 2030-01-01)'";

/// A Debian with only these programs.
struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("install-{name}"));
        let _ = fs::remove_dir_all(&dir);
        for made in ["bin", "home"] {
            fs::create_dir_all(dir.join(made)).unwrap();
        }
        let path = std::env::var_os("PATH").unwrap();
        for name in SYSTEM {
            let mut places = std::env::split_paths(&path);
            let found = places.find_map(|it| it.join(name).canonicalize().ok());
            symlink(found.expect(name), dir.join("bin").join(name)).unwrap();
        }
        let machine = Self { dir };
        machine.program("apt-get", "");
        machine.program("apt-cache", "exit 100");
        machine.program("dpkg-query", "exit 1");
        machine.program("sudo", "exec \"$@\"");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Adds a program that records each of its calls.
    fn program(&self, name: &str, script: &str) {
        let calls = self.path("calls");
        let (file, calls) = (self.path("bin").join(name), calls.display());
        let _ = fs::remove_file(&file);
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>'{calls}'\n{script}\n");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Makes the user an unprivileged one.
    fn without_root(&self) {
        fs::remove_file(self.path("bin/sudo")).unwrap();
        self.program("id", "echo 1000");
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// The packages that were installed, or would have been.
    fn installed(&self) -> Vec<String> {
        let calls = self.calls();
        let calls = calls.lines().filter(|line| line.starts_with("apt-get install "));
        calls.flat_map(|line| line.split(' ').skip(2).map(str::to_owned)).collect()
    }

    /// The file that keeps services from starting.
    fn policy(&self) -> PathBuf {
        self.path("policy-rc.d")
    }

    fn start(&self, root: &Path, tool: &str, arguments: &[&str]) -> Child {
        let mut command = Command::new(root.join("tools").join(tool));
        command.args(arguments).current_dir(root).env_clear().env("PATH", self.path("bin"));
        command.env("HOME", self.path("home")).env("INSTALL_POLICY", self.policy());
        command.env("TMPDIR", &self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // As in a terminal, where Ctrl-C reaches the whole process group.
        command.process_group(0).spawn().unwrap()
    }

    /// The exit code and the output on standard error.
    fn install(&self, targets: &[&str]) -> (Option<i32>, String) {
        let child = self.start(&root(), "install", targets);
        printed(&child.wait_with_output().unwrap())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn printed(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn services_can_start_again_after_any_interruption() {
    for (signal, status) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let machine = Machine::new(&format!("ended-by-{signal}"));
        machine.program("cargo", NEW);
        let running = machine.path("running");
        let wait =
            format!("[ $1 != install ] || {{ touch '{}'; exec sleep 60; }}", running.display());
        machine.program("apt-get", &wait);
        let child = machine.start(&root(), "install", &["build"]);
        eventually("packages are being installed", || running.exists());
        let policy = fs::read_to_string(machine.policy()).unwrap();
        assert!(policy.ends_with("\nexit 101\n"), "{policy}");
        let group = format!("-{}", child.id());
        assert!(
            Command::new("kill").args(["-s", signal, "--", &group]).status().unwrap().success()
        );
        let (code, text) = printed(&child.wait_with_output().unwrap());
        assert_eq!(code, Some(status), "{text}");
        assert!(!machine.policy().exists(), "after SIG{signal}");
    }
}

#[test]
fn services_can_start_again_after_success_and_failure() {
    for (script, status) in [("", 0), ("[ $1 != install ] || exit 100", 100)] {
        let machine = Machine::new(&format!("ends-with-{status}"));
        machine.program("cargo", NEW);
        machine.program("apt-get", script);
        // An earlier run was killed.
        fs::write(
            machine.policy(),
            "#!/bin/sh\n# By tools/install of espocrm-websocket, until it is done.\nexit 101\n",
        )
        .unwrap();
        let (code, text) = machine.install(&["build"]);
        assert_eq!(code, Some(status), "{text}");
        assert!(!machine.policy().exists());
        assert!(machine.installed().contains(&"g++".to_owned()), "{}", machine.calls());
    }
}

#[test]
fn an_existing_policy_of_the_machine_is_kept() {
    let machine = Machine::new("own-policy");
    machine.program("cargo", NEW);
    fs::write(machine.policy(), "#!/bin/sh\nexit 101\n").unwrap();
    assert_eq!(machine.install(&["build"]).0, Some(0));
    assert_eq!(fs::read_to_string(machine.policy()).unwrap(), "#!/bin/sh\nexit 101\n");
}

#[test]
fn without_root_it_prints_one_command_for_all_packages() {
    let machine = Machine::new("without-root");
    machine.program("cargo", NEW);
    machine.without_root();
    let (code, text) = machine.install(&["test", "deb"]);
    assert_eq!(code, Some(1));
    let commands: Vec<_> = text.lines().filter(|line| line.contains("apt-get ")).collect();
    let [command] = commands[..] else { panic!("{text}") };
    assert!(command.contains(" apt-get update && apt-get install -y "), "{command}");
    let packages: Vec<_> = command.split(' ').collect();
    for package in ["g++", "php-cli", "php-zmq", "debhelper", "build-essential"] {
        assert_eq!(packages.iter().filter(|&&it| it == package).count(), 1, "{package}: {command}");
    }
    assert!(!machine.calls().contains("apt-get"), "{}", machine.calls());
}

/// Expects one message, and that nothing is installed.
fn expect_refusal(machine: &Machine, parts: &[&str]) {
    let (code, text) = machine.install(&["test"]);
    assert_eq!(code, Some(1));
    for part in parts {
        assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
    }
    assert!(text.lines().all(|line| line.starts_with("tools/cargo: ")), "{text}");
    assert_eq!(machine.installed(), Vec::<String>::new());
    assert!(!machine.policy().exists());
}

const REQUIRED: [&str; 2] = ["Rust 1.88 or later is required", "https://rustup.rs"];

#[test]
fn without_rust_and_without_a_rustup_package_it_prints_instructions() {
    // Debian 12.
    expect_refusal(&Machine::new("no-rust"), &REQUIRED);
}

#[test]
fn an_outdated_rust_is_reported() {
    // Debian 13 has rustup, but installing it would remove this Rust.
    let machine = Machine::new("old-rust");
    machine.program("apt-cache", "");
    machine.program("cargo", "echo 'cargo 1.85.1 (d73d2caf9 2024-12-31)'");
    expect_refusal(&machine, &[&REQUIRED[..], &["bin/cargo is 1.85.1"]].concat());
}

#[test]
fn a_failing_rustup_is_reported() {
    let machine = Machine::new("no-toolchain");
    machine.program("c++", "");
    machine.program("rustup", "exit 1");
    machine.program("cargo", "exit 1");
    let (code, text) = machine.install(&["build"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("Rust 1.88 or later is required"), "{text}");
    assert!(text.contains("rustup toolchain install stable"), "{text}");
}

#[test]
fn without_rust_rustup_is_installed_from_a_package() {
    // Debian 13.
    let machine = Machine::new("packaged-rustup");
    machine.program("apt-cache", "");
    let bin = machine.path("bin").display().to_string();
    // Without a toolchain it has no default.
    let rustup = format!(
        "case $1 in
            toolchain) ;;
            default) [ \"${{2:-}}\" ] || exit 1; ln=\"{bin}/cargo\"
                printf '#!/bin/sh\\necho cargo 1.99.0\\n' >\"$ln\"; install -m 755 \"$ln\" \"$ln.new\"
                rm \"$ln\"; install -m 755 \"$ln.new\" \"$ln\" ;;
        esac"
    );
    machine.program("rustup.of-the-package", &rustup);
    machine.program(
        "apt-get",
        &format!("[ $1 != install ] || install -m 755 {bin}/rustup.of-the-package {bin}/rustup"),
    );
    let (code, text) = machine.install(&["build"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(machine.installed().contains(&"rustup".to_owned()), "{}", machine.calls());
}

#[test]
fn rustups_cargo_is_used_if_the_distributions_is_too_old() {
    let machine = Machine::new("two-rusts");
    machine.program("cargo", "echo 'cargo 1.85.1 (d73d2caf9 2024-12-31)'");
    machine.program("cargo.new", NEW);
    let rustups = machine.path("home/.cargo/bin");
    fs::create_dir_all(&rustups).unwrap();
    fs::rename(machine.path("bin/cargo.new"), rustups.join("cargo")).unwrap();
    let output = machine.start(&root(), "cargo", &["--version"]).wait_with_output().unwrap();
    assert_eq!(output.stdout, b"cargo 1.99.0 (abc 2030-01-01)\n");
}

/// The environment in which `tools/cargo` runs cargo, for a project in a path with spaces.
fn environment_of_cargo(machine: &Machine, arguments: &[&str]) -> (PathBuf, String) {
    let project = machine.path("a project's place");
    fs::create_dir_all(project.join("tools")).unwrap();
    for file in ["Cargo.toml", "tools/cargo"] {
        fs::copy(root().join(file), project.join(file)).unwrap();
    }
    machine.program("cargo", &format!("{NEW}\n[ $1 = --version ] || env"));
    // A linker that does not support --icf.
    machine.program("rustc", "exit 1");
    let output = machine.start(&project, "cargo", arguments).wait_with_output().unwrap();
    (project.canonicalize().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn only_release_builds_have_flags() {
    let machine = Machine::new("flags");
    let with_flags = [&["bench"][..], &["build", "--release"], &["test", "-r", "--", "x"]];
    let without = [&["build"][..], &["test", "--", "--release"], &["install", "-r"], &["clippy"]];
    let all = with_flags.map(|it| (it, true)).into_iter().chain(without.map(|it| (it, false)));
    for (arguments, expected) in all {
        let (_, text) = environment_of_cargo(&machine, arguments);
        assert!(text.contains("\nPATH="), "{text}");
        for name in ["CARGO_ENCODED_RUSTFLAGS", "CFLAGS", "CXXFLAGS", "CC_SHELL_ESCAPED_FLAGS"] {
            assert_eq!(text.contains(&format!("{name}=")), expected, "{arguments:?}: {text}");
        }
    }
}

#[test]
fn a_path_with_spaces_is_one_flag() {
    let machine = Machine::new("a b");
    let (place, text) = environment_of_cargo(&machine, &["build", "--release"]);
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("{name}: {text}")).to_owned()
    };
    let flags = value("CARGO_ENCODED_RUSTFLAGS");
    let flags: Vec<_> = flags.split('\u{1f}').collect();
    let place = place.display();
    assert_eq!(flags[0], format!("--remap-path-prefix={place}=espocrm-websocket"));
    assert_eq!(flags[1], format!("--remap-path-prefix={place}/target=espocrm-websocket/target"));
    assert_eq!(flags.len(), 3);
    // The compiler flags are words of a shell.
    let words = Command::new("sh")
        .args(["-c", "eval \"set -- $1\"; printf '%s\\n' \"$@\"", "sh", &value("CFLAGS")])
        .output()
        .unwrap();
    let words = String::from_utf8(words.stdout).unwrap();
    let expected = format!("-ffile-prefix-map={place}=espocrm-websocket");
    assert!(words.lines().any(|word| word == expected), "{words}");
    assert_eq!(value("CC_SHELL_ESCAPED_FLAGS"), "1");
}
