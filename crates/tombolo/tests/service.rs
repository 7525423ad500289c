//! What is in `packaging/`, run for real.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{BIN, Scratch, unavailable, wait, wait_or};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(name)
}

fn config(scratch: &Scratch) -> PathBuf {
    let path = scratch.path("tombolo.toml");
    let cookie = scratch.path("cookie");
    let text =
        format!("cookie_file = {:?}\nmulticast = false\nlisten = \"127.0.0.1:0\"\n", cookie.display().to_string());
    std::fs::write(&path, text).unwrap();
    path
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The unit's command, its paths replaced, beside a socket that stands for the manager's.
#[test]
fn the_unit_s_command_says_that_it_is_ready_alive_and_stopping() {
    let scratch = Scratch::new();
    let socket = UnixDatagram::bind(scratch.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    let unit = std::fs::read_to_string(packaged("tombolo.service")).unwrap();
    let command = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
    let replaced = |word: &str| match word {
        "/usr/bin/tombolo" => BIN.into(),
        "/etc/tombolo/tombolo.toml" => config(&scratch),
        "/var/lib/tombolo" => scratch.path("data"),
        other => other.into(),
    };
    let words: Vec<PathBuf> = command.split(' ').map(replaced).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("NOTIFY_SOCKET", scratch.path("notify")).env("WATCHDOG_USEC", "300000");
    let mut node = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let next = |wanted: &str| {
        let mut buffer = [0; 4096];
        let until = Instant::now() + Duration::from_secs(40);
        loop {
            let n = socket.recv(&mut buffer).expect("it says something");
            let said = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if said.lines().any(|l| l == wanted) {
                return said;
            }
            assert!(Instant::now() < until, "no {wanted}, but {said}");
        }
    };
    next("READY=1");
    assert!(Command::new(BIN).arg("--data").arg(scratch.path("data")).arg("status").output().unwrap().status.success());
    for _ in 0..3 {
        assert!(next("WATCHDOG=1").contains("STATUS=solo (no other live node is known)"));
    }
    assert!(Command::new("kill").arg(node.0.id().to_string()).status().unwrap().success());
    next("STOPPING=1");
    assert_eq!(node.0.wait().unwrap().code(), Some(0));
}

#[test]
fn the_unit_makes_sense_to_systemd() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must run this test: systemd-analyze is not there");
        return println!("SKIPPED: no systemd-analyze (Debian: systemd)");
    }
    let scratch = Scratch::new();
    let unit = scratch.path("tombolo.service");
    let text = std::fs::read_to_string(packaged("tombolo.service")).unwrap();
    std::fs::write(&unit, text.replace("/usr/bin/tombolo", BIN)).unwrap();
    let out = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !said.contains("tombolo"), "{said}");
}

/// Runs the init script; what it left running ends with this.
struct Init {
    scratch: Scratch,
}

impl Init {
    fn run(&self, what: &str) -> Output {
        let script = packaged("tombolo.init");
        Command::new("sh").arg(script).arg(what).env("DEFAULTS", self.scratch.path("defaults")).output().unwrap()
    }

    fn done(&self, what: &str) {
        let out = self.run(what);
        let said = String::from_utf8_lossy(&out.stderr);
        let log = std::fs::read_to_string(self.scratch.path("log")).unwrap_or_default();
        assert!(out.status.success(), "{what}: {said}\n{log}");
    }

    fn ask(&self, args: &[&str]) -> Output {
        Command::new(BIN).arg("--data").arg(self.scratch.path("data")).args(args).output().unwrap()
    }

    /// The process of the node, by the lock that it holds; `None`: it has ended.
    fn pid(&self) -> Option<String> {
        let pid = std::fs::read_to_string(self.scratch.path("data/lock")).ok()?.trim().to_string();
        Path::new("/proc").join(&pid).exists().then_some(pid)
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.run("stop");
    }
}

#[test]
fn the_init_script_starts_restarts_keeps_and_stops_a_node() {
    if let Some(why) = unavailable() {
        return println!("SKIPPED: {why}");
    }
    let scratch = Scratch::new();
    let paths = [("CONFIG", config(&scratch)), ("DATA", scratch.path("data")), ("LOG", scratch.path("log"))];
    let paths = paths.into_iter().chain([("PROGRAM", BIN.into()), ("PIDFILE", scratch.path("pid"))]);
    let text: String = paths.map(|(name, path)| format!("{name}='{}'\n", path.display())).collect();
    std::fs::write(scratch.path("defaults"), text).unwrap();
    let init = Init { scratch };
    assert_eq!(init.run("nonsense").status.code(), Some(2));
    assert!(!init.run("status").status.success());
    init.done("start");
    init.done("start");
    init.done("status");
    wait("it takes part", 30, || init.ask(&["table", "create", "t", "--durability", "sync"]).status.success());
    wait("the table serves", 30, || init.ask(&["put", "t", "k", "v"]).status.success());
    init.done("restart");
    wait("the value is back", 30, || init.ask(&["get", "t", "k"]).stdout == b"v");
    let before = init.pid().expect("it runs");
    assert!(Command::new("kill").args(["-KILL", &before]).status().unwrap().success());
    wait_or(|| format!("{:?} after {before}", init.pid()), 30, || init.pid().is_some_and(|pid| pid != before));
    wait("the value is back again", 30, || init.ask(&["get", "t", "k"]).stdout == b"v");
    init.done("stop");
    assert_eq!(init.pid(), None);
    assert!(!init.scratch.path("pid").exists());
}

#[test]
fn the_example_config_is_read_and_says_what_holds_anyway() {
    let show = |path: &Path| {
        let out = Command::new(BIN).args(["--data", "/nowhere", "--config"]).arg(path).arg("config").output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(!show(&packaged("tombolo.toml")).contains("# the config file"), "as it comes it changes nothing");
    let scratch = Scratch::new();
    let all = std::fs::read_to_string(packaged("tombolo.toml")).unwrap();
    let is_option = |l: &&str| l.starts_with('#') && l.contains(" = ") && !l.starts_with("# ");
    let options: Vec<&str> = all.lines().filter(is_option).map(|l| &l[1..]).collect();
    std::fs::write(scratch.path("all.toml"), options.join("\n")).unwrap();
    let shown = show(&scratch.path("all.toml"));
    for option in options {
        let name = option.split(' ').next().unwrap();
        assert!(shown.lines().any(|l| l.starts_with(&format!("{name} = "))), "{name} in {shown}");
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let scratch = Scratch::new();
    let out = Command::new(BIN).arg("man").arg(scratch.path("man")).output().unwrap();
    assert!(out.status.success());
    let page = |name: &str| std::fs::read_to_string(scratch.path("man").join(format!("{name}.1"))).unwrap();
    assert!(page("tombolo").contains("Exit status"));
    for command in ["up", "nodes", "condemn", "table-create", "mount", "conflicts"] {
        assert!(page(&format!("tombolo-{command}")).contains(".SH DESCRIPTION"), "{command}");
    }
}
