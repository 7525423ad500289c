//! `tombolo doctor`: what commonly goes wrong on a machine, looked for one by one, with the remedy.

use crate::cli::Up;
use crate::commands::{FAILED, ask};
use crate::control::{Ask, Told};
use crate::settings;
use anyhow::Result;
use node::Status;
use runtime::FREE_BYTES_MIN;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// A disc that needs longer to flush makes `--durability sync` slow.
const FLUSH_SLOW: Duration = Duration::from_millis(20);
/// How many flushes are timed; the median counts.
const FLUSHES: usize = 15;
/// Other nodes get so long to take a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Fewer open files than this are too few for many mounts and nodes.
const FILES_MIN: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    detail: String,
}

type Findings = Vec<Finding>;

fn found(what: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
    Finding { what, verdict, detail: detail.into() }
}

use Verdict::{Fail, Ok as Good, Warn};

/// The command: exit status 1 when something fails.
pub(crate) async fn run(data: &Path, config: Option<&Path>, up: Up, json: bool) -> Result<u8> {
    let (cookie, listen, multicast) = settings::places(data, config, up)?;
    let status = match ask(data, Ask::Status).await {
        Ok(Told::Status(status)) => Some(*status),
        _ => None,
    };
    let mut all = Findings::new();
    all.push(node(data, status.as_ref()));
    all.push(secret(&cookie));
    all.push(port(listen, status.is_some()));
    all.push(if multicast { heard().await } else { found("multicast", Good, "is switched off") });
    all.extend(peers(status.as_ref()).await);
    all.push(clock(status.as_ref()));
    all.extend(disc(data));
    all.push(fuse_device());
    all.push(files());
    if json {
        println!("{}", serde_json::to_string(&all)?);
    } else {
        for Finding { what, verdict, detail } in &all {
            let verdict = match verdict {
                Good => "ok",
                Warn => "WARN",
                Fail => "FAIL",
            };
            println!("{verdict:4}  {what:10}  {detail}");
        }
    }
    Ok(if all.iter().any(|f| f.verdict == Fail) { FAILED } else { 0 })
}

fn node(data: &Path, status: Option<&Status>) -> Finding {
    match status {
        Some(s) if s.missing.is_empty() => found("node", Good, format!("{} runs here and is {}", s.node, s.state)),
        Some(s) => found("node", Warn, format!("{} runs here and is {}: {}", s.node, s.state, s.why)),
        None => found("node", Good, format!("none runs on {}; other nodes are not asked", data.display())),
    }
}

fn secret(path: &Path) -> Finding {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(meta) if meta.mode() & 0o077 != 0 => {
            found("secret", Fail, format!("{shown} can be read by others; run: chmod 600 {shown}"))
        }
        Ok(meta) if meta.len() == 0 => {
            found("secret", Fail, format!("{shown} is empty; remove it, or put the cluster's secret in it"))
        }
        Ok(_) => found("secret", Good, format!("{shown} is there and private")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            found("secret", Good, format!("{shown} is not there; the first start makes it"))
        }
        Err(e) => found("secret", Fail, format!("{shown} cannot be read: {e}")),
    }
}

fn port(listen: Option<SocketAddr>, running: bool) -> Finding {
    if running {
        return found("port", Good, "the node here has it");
    }
    match transport::bind(listen) {
        Ok(bound) => found("port", Good, format!("{} is free, TCP and UDP", bound.addr)),
        Err(e) => found("port", Fail, e.to_string()),
    }
}

async fn heard() -> Finding {
    let remedy = "let UDP port 7473 to 239.255.74.74 and ff02::7474 pass, or name another node with --join";
    match transport::multicast_comes_back().await {
        Ok(0) => found("multicast", Warn, format!("this machine does not hear its own call; {remedy}")),
        Ok(n) => found("multicast", Good, format!("this machine hears its own call on {n} addresses")),
        Err(e) => found("multicast", Warn, format!("cannot be used: {e}; {remedy}")),
    }
}

/// Does each other node of the roster take connections?
async fn peers(status: Option<&Status>) -> Findings {
    let Some(status) = status else { return Findings::new() };
    let others = status.nodes.iter().filter(|n| n.name != status.node && n.status != "stopped");
    let mut all = Findings::new();
    for other in others {
        let Ok(addr) = other.addr.parse::<SocketAddr>() else { continue };
        let (name, port) = (&other.name, addr.port());
        all.push(match tokio::time::timeout(CONNECT_WAIT, TcpStream::connect(addr)).await {
            Ok(Ok(_)) if other.reachable && other.datagrams == Some(false) => {
                let text = format!("{name} ({addr}) answers, but no datagram of it arrives: let UDP port {port} pass");
                found("peer", Warn, text)
            }
            Ok(Ok(_)) => found("peer", Good, format!("{name} ({addr}) takes connections")),
            Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => {
                found("peer", Warn, format!("{name} ({addr}): nothing listens there; is it running?"))
            }
            Ok(Err(e)) => found("peer", Warn, format!("{name} ({addr}): {e}")),
            Err(_) => found(
                "peer",
                Fail,
                format!("{name} ({addr}) does not answer: is a firewall closed to TCP port {port}?"),
            ),
        });
    }
    all
}

fn clock(status: Option<&Status>) -> Finding {
    let others = status.and_then(|s| s.clock_ahead_ms);
    match others {
        _ if wall_year() < 2024 => found("clock", Fail, "this machine's clock is years behind; set it right"),
        Some(ms) if ms.abs() > 4_000 => {
            found("clock", Fail, format!("{ms} ms ahead of the other nodes' (negative: behind); set it right"))
        }
        Some(ms) if ms.abs() > 500 => {
            found("clock", Warn, format!("{ms} ms ahead of the other nodes' (negative: behind); is NTP running?"))
        }
        Some(ms) => found("clock", Good, format!("within {} ms of the other nodes'", ms.abs().max(1))),
        None => found("clock", Good, "no other node to hold it against"),
    }
}

fn wall_year() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    1970 + now.map_or(0, |d| d.as_secs() / 31_557_600)
}

fn disc(data: &Path) -> Findings {
    // The nearest directory that is there: the rest would be made.
    let Some(dir) = data.ancestors().find(|dir| dir.is_dir()) else {
        return vec![found("disc", Fail, format!("{} cannot be reached", data.display()))];
    };
    let shown = dir.display();
    let mut all = Findings::new();
    match rustix::fs::statvfs(dir).map(|s| s.f_bavail.saturating_mul(s.f_frsize)) {
        Ok(free) if free < FREE_BYTES_MIN => {
            all.push(found(
                "disc",
                Fail,
                format!("{shown}: {} MiB are free; a node takes no writes below 192", free >> 20),
            ));
        }
        Ok(free) => all.push(found("disc", Good, format!("{shown}: {} MiB are free", free >> 20))),
        Err(e) => all.push(found("disc", Fail, format!("{shown}: {e}"))),
    }
    all.push(match flush_time(dir) {
        Ok(took) if took > FLUSH_SLOW => {
            found("flush", Warn, format!("{shown}: {} ms each; --durability sync will be slow", took.as_millis()))
        }
        Ok(took) => found("flush", Good, format!("{shown}: {:.1} ms each", took.as_secs_f64() * 1000.0)),
        Err(e) => found("flush", Fail, format!("{shown} cannot be written: {e}")),
    });
    all
}

/// A file that goes, however the look ends.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn flush_time(dir: &Path) -> std::io::Result<Duration> {
    let probe = Probe(dir.join(format!(".tombolo-doctor-{}", std::process::id())));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&probe.0)?;
    let mut took = Vec::new();
    for _ in 0..FLUSHES {
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok(took[FLUSHES / 2])
}

fn fuse_device() -> Finding {
    let root = std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    let on_path = |dir: PathBuf| dir.join("fusermount3").exists();
    let helper = std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(on_path));
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) if root || helper => found("fuse", Good, "filesystems can be mounted"),
        Ok(_) => found("fuse", Warn, "fusermount3 is not there; users other than root need it (Debian: fuse3)"),
        Err(e) => found("fuse", Warn, format!("/dev/fuse: {e}; nothing can be mounted here (modprobe fuse?)")),
    }
}

fn files() -> Finding {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    let soft = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    match soft {
        Some(n) if n < FILES_MIN => {
            found("files", Warn, format!("{n} files may be open at once; raise it: ulimit -n 65536"))
        }
        Some(n) => found("files", Good, format!("{n} files may be open at once")),
        None => found("files", Good, "no limit on open files is known"),
    }
}
