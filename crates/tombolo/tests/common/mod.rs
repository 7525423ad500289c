//! Real processes on a network of namespaces, all of it gone when a test ends, however it ends.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const BIN: &str = env!("CARGO_BIN_EXE_tombolo");

/// Waits until a condition holds; a test never sleeps and hopes.
pub fn wait(what: impl Display, seconds: u64, holds: impl FnMut() -> bool) {
    wait_or(|| what.to_string(), seconds, holds);
}

/// The same; what to say is found out when it has not come true.
pub fn wait_or(what: impl Fn() -> String, seconds: u64, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < end, "not within {seconds} s: {}", what());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Why namespaces cannot be had; `None` if they can. CI must not skip.
pub fn unavailable() -> Option<&'static str> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let ip = Command::new("ip").arg("-V").output().is_ok();
    let why = match (root, ip, Path::new("/dev/fuse").exists()) {
        (false, ..) => "not root",
        (_, false, _) => "no ip command (Debian: iproute2)",
        (.., false) => "no /dev/fuse",
        _ => return None,
    };
    assert!(std::env::var_os("CI").is_none(), "CI must run the cluster tests: {why}");
    Some(why)
}

/// Returns from the test, saying why, where real clusters cannot be had.
#[macro_export]
macro_rules! need_namespaces {
    () => {
        if let Some(why) = common::unavailable() {
            println!("SKIPPED: {why}");
            return;
        }
    };
}

fn run(program: &str, args: &[&str]) -> Output {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

static NETS: AtomicU32 = AtomicU32::new(0);

/// A bridge in a namespace of its own, and a namespace per host.
pub struct Net {
    tag: String,
    hosts: u8,
}

impl Net {
    pub fn new(hosts: u8) -> Net {
        let tag = format!("tb{:x}x{}", std::process::id(), NETS.fetch_add(1, Ordering::Relaxed));
        let net = Net { tag, hosts };
        let bridge = net.bridge();
        run("ip", &["netns", "add", &bridge]);
        let on_bridge = |args: &[&str]| run("ip", &[&["-n", &bridge], args].concat());
        on_bridge(&["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        on_bridge(&["link", "set", "br0", "up"]);
        for host in 1..=hosts {
            let (name, port) = (net.host(host), format!("v{host}"));
            run("ip", &["netns", "add", &name]);
            on_bridge(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            on_bridge(&["link", "set", &port, "master", "br0", "up"]);
            let in_host = |args: &[&str]| run("ip", &[&["-n", &name], args].concat());
            in_host(&["addr", "add", &format!("10.74.0.{host}/24"), "dev", "eth0"]);
            in_host(&["link", "set", "eth0", "up"]);
            in_host(&["link", "set", "lo", "up"]);
            in_host(&["route", "add", "224.0.0.0/4", "dev", "eth0"]);
        }
        net
    }

    fn bridge(&self) -> String {
        format!("{}-br", self.tag)
    }

    pub fn host(&self, host: u8) -> String {
        format!("{}-{host}", self.tag)
    }

    /// Puts these hosts on a wire of their own: they see each other, and none of the rest.
    pub fn split(&self, hosts: &[u8]) {
        let on_bridge = |args: &[&str]| Command::new("ip").args(["-n", &self.bridge()]).args(args).output().unwrap();
        // It may be there from a cut before.
        on_bridge(&["link", "add", "br1", "type", "bridge", "mcast_snooping", "0"]);
        run("ip", &["-n", &self.bridge(), "link", "set", "br1", "up"]);
        for host in hosts {
            run("ip", &["-n", &self.bridge(), "link", "set", &format!("v{host}"), "master", "br1"]);
        }
    }

    /// Takes a host off the wire.
    pub fn cut(&self, host: u8) {
        run("ip", &["-n", &self.bridge(), "link", "set", &format!("v{host}"), "nomaster"]);
    }

    /// Puts it back.
    pub fn join(&self, host: u8) {
        run("ip", &["-n", &self.bridge(), "link", "set", &format!("v{host}"), "master", "br0"]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in 1..=self.hosts {
            let _ = Command::new("ip").args(["netns", "del", &self.host(host)]).output();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.bridge()]).output();
    }
}

/// A scratch directory with a cookie in it.
pub struct Scratch(pub tempfile::TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        write_secret(&dir.path().join("cookie"), "correct horse battery staple");
        Scratch(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

pub fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// A node: its process, while it runs, and its data directory.
pub struct Node {
    pub data: PathBuf,
    cookie: PathBuf,
    namespace: Option<String>,
    args: Vec<String>,
    child: Option<Child>,
    mounts: Vec<PathBuf>,
}

impl Node {
    /// A node in a namespace; without one, on loopback.
    pub fn new(scratch: &Scratch, name: &str, namespace: Option<String>, args: &[&str]) -> Node {
        let mut args: Vec<String> = args.iter().map(ToString::to_string).collect();
        args.extend(["--name".into(), name.into()]);
        let (data, cookie) = (scratch.path(name), scratch.path("cookie"));
        Node { data, cookie, namespace, args, child: None, mounts: Vec::new() }
    }

    pub fn cookie(mut self, path: PathBuf) -> Node {
        self.cookie = path;
        self
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.data.with_extension("log")).unwrap();
        let mut command = match &self.namespace {
            Some(name) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg(BIN);
                command
            }
            None => Command::new(BIN),
        };
        command.arg("--data").arg(&self.data).arg("up").arg("--cookie-file").arg(&self.cookie).args(&self.args);
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("log")).unwrap_or_default()
    }

    /// SIGKILL, now.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL ends a stopped process, too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; its exit status.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        run("kill", &["-TERM", &child.id().to_string()]);
        child.wait().unwrap().code()
    }

    /// Of its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal by name. Not by a program: one that is started closes the files of this process, and would wait for those on a
    /// node that is stopped.
    pub fn signal(&self, name: &str) {
        let signal = match name {
            "STOP" => Signal::STOP,
            "CONT" => Signal::CONT,
            _ => Signal::KILL,
        };
        kill_process(Pid::from_raw(self.pid() as i32).unwrap(), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| c.try_wait().unwrap().is_none())
    }

    /// Runs a command on this node's data directory.
    pub fn ask(&self, args: &[&str]) -> Output {
        Command::new(BIN).arg("--data").arg(&self.data).args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// The same; must succeed. What it printed.
    pub fn tell(&self, args: &[&str]) -> String {
        let out = self.ask(args);
        let (code, error) = (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned());
        assert_eq!(code, Some(0), "{args:?}: {error}\n{}", self.log());
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// The JSON of `status`, as text; empty when the node does not answer.
    pub fn status(&self) -> String {
        let out = self.ask(&["status", "--json"]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Waits until it sees so many nodes, itself included.
    pub fn sees(&self, nodes: usize, seconds: u64) {
        let why = || format!("{nodes} nodes in view: {}\n{}", self.status(), self.log());
        wait_or(why, seconds, || {
            let status = self.status();
            let state = if nodes == 1 { "" } else { "\"state\":\"whole\"" };
            status.contains(state) && status.matches("\"reachable\":true").count() == nodes
        });
    }

    /// Waits until every table has so many copies in sync.
    pub fn in_sync(&self, copies: usize, seconds: u64) {
        wait_or(
            || format!("{copies} copies in sync: {}\n{}", self.status(), self.log()),
            seconds,
            || {
                let status = self.status();
                let tables = status.matches("\"in_sync\":").count();
                tables > 0
                    && status.matches(&format!("\"in_sync\":{copies}")).count() == tables
                    && !status.contains("\"led\":0")
            },
        );
    }

    /// Mounts a filesystem, and unmounts it when this value goes.
    pub fn mount(&mut self, fs: &str, dir: &Path) {
        // Left over from a crash it cannot be made, and need not.
        let _ = std::fs::create_dir(dir);
        let out = self.tell(&["mount", fs, &dir.to_string_lossy(), "--background"]);
        assert!(out.contains("is mounted on"), "{out}");
        self.mounts.push(dir.into());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for dir in &self.mounts {
            let _ = Command::new("umount").arg("-l").arg(dir).output();
        }
        self.kill();
    }
}

pub const ALONE: [&str; 3] = ["--no-multicast", "--listen", "127.0.0.1:0"];

/// A node that takes part, and meets nobody.
pub fn alone(scratch: &Scratch, name: &str) -> Node {
    let mut node = Node::new(scratch, name, None, &ALONE);
    node.start();
    node.sees(1, 20);
    wait("it takes part", 20, || node.status().contains("\"status\":\"up\""));
    node
}

/// Makes the table `t`, which serves when this returns.
pub fn table(node: &Node) {
    node.tell(&["table", "create", "t", "--fragments", "2"]);
    wait("the table serves", 20, || node.ask(&["put", "t", "ready", "1"]).status.success());
}

/// A command ended with this status, and its error has these words.
pub fn says(out: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    words.iter().for_each(|w| assert!(text.contains(w), "{w:?} is not in: {text}"));
}

/// Where a node says that it listens.
pub fn listen(node: &Node) -> SocketAddr {
    let log = node.log();
    let addr = log.split("listens on ").nth(1).and_then(|rest| rest.split(' ').next());
    addr.and_then(|a| a.parse().ok()).expect("the log names the address")
}

/// Three nodes, on three hosts, that have found each other.
pub fn three(scratch: &Scratch, net: &Net) -> Vec<Node> {
    cluster(scratch, net, 3)
}

/// So many nodes, each on a host, that have found each other.
pub fn cluster(scratch: &Scratch, net: &Net, count: u8) -> Vec<Node> {
    let mut nodes: Vec<Node> =
        (1..=count).map(|i| Node::new(scratch, &format!("n{i}"), Some(net.host(i)), &[])).collect();
    nodes.iter_mut().for_each(Node::start);
    nodes.iter().for_each(|n| n.sees(usize::from(count), 40));
    nodes
}

static CLUSTERS: AtomicU16 = AtomicU16::new(0);

/// Nodes on loopback, and mounts of the filesystem `shared`.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub scratch: Scratch,
}

impl Cluster {
    /// Nodes on loopback that know the first.
    pub fn new(count: u16) -> Cluster {
        let scratch = Scratch::new();
        // Below the ports that the system hands out by itself, and another for each cluster of this process.
        let first = 12_000 + (std::process::id() % 20_000) as u16 + 4 * CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let join = format!("127.0.0.1:{first}");
        let nodes = (0..count).map(|i| {
            let listen = format!("127.0.0.1:{}", first + i);
            Node::new(&scratch, &format!("n{i}"), None, &["--no-multicast", "--listen", &listen, "--join", &join])
        });
        let mut nodes: Vec<Node> = nodes.collect();
        nodes.iter_mut().for_each(Node::start);
        nodes.iter().for_each(|n| n.sees(usize::from(count), 30));
        Cluster { nodes, scratch }
    }

    pub fn mount(&mut self, node: usize) -> PathBuf {
        let dir = self.scratch.path(&format!("mnt{node}"));
        self.nodes[node].mount("shared", &dir);
        dir
    }
}
