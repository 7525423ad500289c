//! The cluster as files, as an operator looks at it: with the tools that everybody has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod common;

use common::*;
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EINVAL: i32 = 22;

/// The files of a node's cluster, until this goes.
struct Mounted(PathBuf);

impl Mounted {
    fn new(node: &Node) -> Mounted {
        let dir = node.data.with_extension("proc");
        let _ = fs::create_dir(&dir);
        let out = node.tell(&["mount", "--proc", &dir.to_string_lossy(), "--background"]);
        assert!(out.contains("is mounted on"), "{out}");
        Mounted(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A busy machine's node may take longer to answer than it has: it is looked at again.
    fn read(&self, path: &str) -> String {
        let mut text = Err(std::io::ErrorKind::Other.into());
        wait(path, 20, || {
            text = fs::read_to_string(self.at(path));
            text.as_ref().err().and_then(std::io::Error::raw_os_error) != Some(EIO)
        });
        text.unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn errno<T>(done: std::io::Result<T>) -> Option<i32> {
        done.err().and_then(|e| e.raw_os_error())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn shell(script: &str) -> Output {
    Command::new("sh").args(["-c", script]).stdin(Stdio::null()).output().unwrap()
}

const RECORDS: u64 = 20;

/// Three nodes with the table `users`, of four fragments and some records.
fn users(scratch: &Scratch, net: &Net) -> Vec<Node> {
    let nodes = three(scratch, net);
    nodes[0].tell(&["table", "create", "users", "--fragments", "4", "--copies", "3"]);
    nodes[0].in_sync(3, 40);
    (0..RECORDS).for_each(|n| drop(nodes[0].tell(&["put", "users", &n.to_string(), "somebody"])));
    nodes
}

/// The recipes of the manual, in their order.
fn recipes() -> Vec<String> {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/procfs.md");
    let text = fs::read_to_string(manual).unwrap();
    let book = text.split("## Cookbook").nth(1).and_then(|rest| rest.split("```sh\n").nth(1)).unwrap();
    let book = book.split("```").next().unwrap();
    book.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(String::from).collect()
}

#[test]
fn every_recipe_of_the_manual_works() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = users(&scratch, &net);
    let proc = Mounted::new(&nodes[0]);
    // What each prints, at least; in the order of the manual.
    let expected: &[&[&str]] = &[
        &["The cluster is whole"],
        &["nodes/n1/status:whole", "nodes/n2/status:whole", "nodes/n3/status:whole"],
        &["all are here"],
        &[""],
        &["3 0."],
        &["none"],
        &[""],
        &[" n1\n"],
        &["20\n"],
        &["users/info/bytes_here:"],
        &["nodes/n1/memory/resident:", "nodes/n3/memory/resident:"],
        &["peers/n2/rtt:", "peers/n3/rtt:"],
        &["nodes/n2/load:"],
        &["nothing"],
        &["is in view"],
        &["slow_ms was not set"],
        &["forgotten"],
        &[""],
        &["50000000\n"],
        &["paused\n"],
        &["debug\n"],
        &["users/"],
        &["n1", "n2"],
        &["\"fragments\": {", "\"options\": {"],
        &["table=\"users\"", "node=\"n2\""],
    ];
    let recipes = recipes();
    assert!(recipes.len() >= 15 && recipes.len() == expected.len(), "{} recipes", recipes.len());
    // Something went wrong, so that there is something to be found.
    assert_eq!(Mounted::errno(fs::write(proc.at("sys/slow_ms"), "soon")), Some(EINVAL));
    for (recipe, expected) in recipes.iter().zip(expected) {
        let script = recipe.replace("/mnt/proc", &proc.0.to_string_lossy()).replace("tail -f", "timeout 2 tail -f");
        // How long a peer took to answer is known a moment after somebody looked.
        wait_or(
            || format!("{recipe}\n{:?}", shell(&script)),
            20,
            || {
                let out = shell(&script);
                let (text, ends) = (String::from_utf8_lossy(&out.stdout).into_owned(), recipe.contains("tail -f"));
                let done = out.status.success() || ends;
                done && out.stderr.is_empty() && expected.iter().all(|words| text.contains(words))
            },
        );
    }
}

#[test]
fn each_value_is_a_file_and_each_directory_has_its_json() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = users(&scratch, &net);
    let proc = Mounted::new(&nodes[0]);
    // Every directory, with the JSON beside it: the same names, and the same values.
    let mut dirs = vec![(proc.at("tables/users"), proc.at("tables/users.json"))];
    let mut values = 0;
    while let Some((dir, json)) = dirs.pop() {
        let json: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push((entry.path(), dir.join(format!("{name}.json"))));
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap();
            assert!(text.is_empty() || text.ends_with('\n'), "{name}: {text:?}");
            assert_eq!(text.len() as u64, fs::metadata(entry.path()).unwrap().len(), "{name}");
            let told = match &json[&name] {
                Value::Null if name.ends_with(".json") => continue,
                Value::Null => "-\n".into(),
                Value::Bool(flag) => if *flag { "yes\n" } else { "no\n" }.into(),
                Value::Array(all) => all.iter().map(|v| v.as_str().unwrap().to_string() + "\n").collect(),
                Value::String(text) => format!("{text}\n"),
                other => format!("{other}\n"),
            };
            assert_eq!(text, told, "{name}");
            values += 1;
        }
    }
    assert!(values > 4 * 9 + 14, "{values} values");
    // A value that changes is another file; one that does not is as old as it was.
    let records = || -> u64 {
        (0..4).map(|n| proc.read(&format!("tables/users/fragments/{n}/records")).trim().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(records(), RECORDS);
    let changed = |path: &str| fs::metadata(proc.at(path)).unwrap().modified().unwrap();
    let before = (changed("tables/users/info/records_here"), changed("tables/users/options/copies"));
    nodes[1].tell(&["put", "users", "one more", "a"]);
    wait("the record is seen", 20, || records() == RECORDS + 1);
    wait("its time is seen", 20, || changed("tables/users/info/records_here") > before.0);
    assert_eq!(changed("tables/users/options/copies"), before.1);
    // Of other nodes, by themselves.
    assert_eq!(proc.read("nodes/n2/name"), "n2\n");
    assert_eq!(fs::read_link(proc.at("nodes/n1")).unwrap(), Path::new(".."));
    wait("all nodes tell of themselves", 20, || {
        let all: Value = serde_json::from_str(&proc.read("nodes.json")).unwrap();
        ["n1", "n2", "n3"].iter().all(|n| all[n]["status"] == "whole")
    });
    assert!(proc.read("nodes/n3/metrics").contains("tombolo_nodes_in_view{node=\"n3\"} 3"));
    // Names that are not there, and things that cannot be done.
    assert!(!proc.at("tables/none").exists() && !proc.at("nodes/n9/why").exists() && !proc.at("why.json").exists());
    assert_eq!(Mounted::errno(fs::write(proc.at("tables/x"), "")), Some(EPERM));
    assert_eq!(Mounted::errno(fs::create_dir(proc.at("x"))), Some(EPERM));
    assert_eq!(Mounted::errno(fs::remove_file(proc.at("why"))), Some(EPERM));
    assert_eq!(Mounted::errno(fs::rename(proc.at("why"), proc.at("x"))), Some(EPERM));
    // It goes when the table goes.
    nodes[2].tell(&["table", "drop", "users"]);
    wait("the table is gone", 20, || !proc.at("tables/users").exists());
}

#[test]
fn knobs_take_what_makes_sense_and_nothing_else() {
    need_namespaces!();
    let scratch = Scratch::new();
    let node = alone(&scratch, "n1");
    let proc = Mounted::new(&node);
    let turn = |knob: &str, value: &str| Mounted::errno(fs::write(proc.at(knob), value));
    let good = [
        ("slow_ms", "0"),
        ("slow_ms", "7\n"),
        ("memory_max", "1GiB"),
        ("memory_max", "none"),
        ("balance", "paused"),
        ("balance", "on"),
        ("copy_rate", "5000000"),
        ("copy_rate", "none"),
        ("disc_max", "4GiB"),
        ("log", "debug"),
    ];
    for (knob, value) in good {
        let knob = format!("sys/{knob}");
        assert_eq!(turn(&knob, value), None, "{knob} {value}");
        let shown = match value {
            "1GiB" => "1073741824".into(),
            "4GiB" => "4294967296".into(),
            other => other.trim().to_string(),
        };
        // Those of the cluster are read from its table.
        wait_or(|| format!("{knob} is {shown}, not {}", proc.read(&knob)), 20, || proc.read(&knob).trim() == shown);
    }
    let bad = [
        ("slow_ms", "soon"),
        ("slow_ms", "-1"),
        ("slow_ms", ""),
        ("memory_max", "1KiB"),
        ("memory_max", "lots"),
        ("balance", "off"),
        ("copy_rate", "1"),
        ("disc_max", "-3"),
        ("log", "a=b=c"),
    ];
    for (knob, value) in bad.into_iter().filter(|(_, value)| !value.is_empty()) {
        let (path, before) = (format!("sys/{knob}"), proc.read(&format!("sys/{knob}")));
        assert_eq!(turn(&path, value), Some(EINVAL), "{knob} {value}");
        assert_eq!(proc.read(&path), before);
        wait_or(
            || format!("the log tells of {knob}: {}", proc.read("log")),
            20,
            || proc.read("log").lines().any(|l| l.contains(&format!("{knob} was not set to \"{value}\": "))),
        );
    }
    assert_eq!(Mounted::errno(fs::write(proc.at("sys/slow_ms"), vec![b'1'; 100_000])), Some(EINVAL));
    assert_eq!(Mounted::errno(fs::write(proc.at("sys/slow_ms"), [0xff, 0xfe])), Some(EINVAL));
    assert_eq!(turn("why", "x"), Some(EPERM));
    assert_eq!(proc.read("sys/slow_ms"), "7\n");
    // All requests are told of, each by a name of its own, at the node that was asked.
    table(&node);
    assert_eq!(turn("sys/slow_ms", "0"), None);
    node.tell(&["put", "t", "k", "v"]);
    wait_or(
        || proc.read("log"),
        20,
        || proc.read("log").lines().any(|l| l.contains("slow write ") && l.contains(" of t: ")),
    );
}

#[test]
fn a_request_leaves_its_lines_on_every_node_that_had_a_part_in_it() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = users(&scratch, &net);
    let proc = Mounted::new(&nodes[0]);
    for node in ["n1", "n2", "n3"] {
        wait(node, 20, || fs::write(proc.at(&format!("nodes/{node}/sys/slow_ms")), "0").is_ok());
    }
    // Some of these are led by others.
    (0..20).for_each(|n| drop(nodes[0].tell(&["put", "users", &format!("k{n}"), "v"])));
    let mine = || -> Vec<String> {
        let log = proc.read("log");
        let lines =
            log.lines().filter(|l| l.contains("slow write ") && l.contains(" ms with n") && !l.contains(" with n1"));
        lines.map(|l| l.split("slow write ").nth(1).unwrap().split(' ').next().unwrap().to_string()).collect()
    };
    wait_or(|| proc.read("log"), 20, || !mine().is_empty());
    let there = |name: &String| {
        ["n2", "n3"].iter().any(|node| {
            let log = proc.read(&format!("nodes/{node}/log"));
            log.lines().any(|l| {
                l.contains(name.as_str()) && l.contains("answered here, for n1") && l.contains("acknowledged last")
            })
        })
    };
    wait_or(|| format!("{:?}\n{}", mine(), proc.read("nodes/n2/log")), 20, || mine().iter().any(there));
}

#[test]
fn logs_and_events_are_followed() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = three(&scratch, &net);
    let proc = Mounted::new(&nodes[0]);
    let mut tails: Vec<_> = ["events", "nodes/n2/events", "log"]
        .iter()
        .map(|file| {
            let mut command = Command::new("tail");
            command.args(["-n", "0", "-s", "0.1", "-f"]).arg(proc.at(file)).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    net.cut(3);
    for tail in &mut tails {
        let mut out = tail.stdout.take().unwrap();
        let (send, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut text, mut part) = (String::new(), [0; 4096]);
            while let Ok(n) = out.read(&mut part) {
                if n == 0 {
                    break;
                }
                text.push_str(&String::from_utf8_lossy(&part[..n]));
                let _ = send.send(text.clone());
            }
        });
        wait("the cut is told of", 30, || {
            heard.try_iter().last().is_some_and(|text| text.contains("n3 is out of view"))
        });
        let _ = tail.kill();
        let _ = tail.wait();
    }
}

#[test]
fn a_stopped_node_keeps_nobody_waiting() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = users(&scratch, &net);
    let proc = Mounted::new(&nodes[0]);
    assert_eq!(proc.read("nodes/n3/status"), "whole\n");
    nodes[2].signal("STOP");
    // It says nothing more, and its files say so; everything else is there, and so is its name.
    wait("its files say that it does not answer", 20, || {
        Mounted::errno(fs::read_to_string(proc.at("nodes/n3/status"))) == Some(EIO)
    });
    let (mut longest, mut read) = (Duration::ZERO, 0);
    let mut dirs = vec![proc.0.clone()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            assert!(dir.starts_with(proc.at("nodes/n3")), "{dir:?}");
            continue;
        };
        for entry in entries {
            let Ok(entry) = entry else {
                assert!(dir.starts_with(proc.at("nodes")), "{dir:?}");
                continue;
            };
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
            if !entry.file_type().unwrap().is_file() {
                continue;
            }
            let begun = Instant::now();
            let there = fs::read(entry.path()).is_ok();
            longest = longest.max(begun.elapsed());
            // Of this node all; another may be busy for a moment.
            assert!(there || entry.path().starts_with(proc.at("nodes")), "{:?}", entry.path());
            read += u32::from(there);
        }
    }
    println!("{read} files, the longest took {longest:?}");
    assert!(read > 100);
    // Nothing waits without an end.
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    assert!(fs::read_dir(proc.at("nodes")).unwrap().any(|e| e.unwrap().file_name() == "n3"));
    wait_or(|| proc.read("roster/n3/why"), 30, || proc.read("roster/n3/why").contains("out of view"));
    nodes[2].signal("CONT");
    wait("it answers again", 30, || fs::read_to_string(proc.at("nodes/n3/status")).is_ok_and(|s| s == "whole\n"));
}

#[test]
fn a_mounted_filesystem_holds_the_cluster_where_nobody_stumbles_over_it() {
    need_namespaces!();
    let scratch = Scratch::new();
    let mut node = alone(&scratch, "n1");
    let dir = scratch.path("mnt");
    node.mount("shared", &dir);
    fs::write(dir.join("file"), "content").unwrap();
    let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    let proc = dir.join(".tombolo");
    assert!(fs::read_to_string(proc.join("why")).unwrap().starts_with("The cluster is solo"));
    let seen: Vec<_> = fs::read_dir(proc.join("mounts")).unwrap().map(|e| e.unwrap().path()).collect();
    let mount = seen.iter().find(|path| path.is_dir()).unwrap();
    assert_eq!(fs::read_to_string(mount.join("fs")).unwrap(), "shared\n");
    assert_ne!(fs::read_to_string(mount.join("calls")).unwrap(), "0\n");
    fs::write(proc.join("sys/slow_ms"), "9").unwrap();
    assert_eq!(fs::read_to_string(proc.join("sys/slow_ms")).unwrap(), "9\n");
    assert_eq!(Mounted::errno(fs::write(proc.join("sys/slow_ms"), "soon")), Some(EINVAL));
    // It is nothing that can be made, moved or removed.
    assert_eq!(Mounted::errno(fs::create_dir(&proc)), Some(17));
    assert_eq!(Mounted::errno(fs::rename(dir.join("file"), proc.join("file"))), Some(EPERM));
    assert_eq!(Mounted::errno(fs::rename(&proc, dir.join("mine"))), Some(EPERM));
    assert_eq!(Mounted::errno(fs::remove_dir(&proc)), Some(EPERM));
    assert_eq!(Mounted::errno(fs::hard_link(proc.join("why"), dir.join("why"))), Some(EPERM));
    assert_eq!(Mounted::errno(fs::write(proc.join("mine"), "")), Some(EPERM));
    // And why a file is as it is.
    let why = node.tell(&["why", &dir.join("file").to_string_lossy()]);
    assert!(why.contains("7 bytes") && why.contains("3 copies are wanted, and 1 node is in view"), "{why}");
    says(&node.ask(&["why", "/nowhere"]), 1, &["/nowhere", "no filesystem"]);
}

#[test]
fn why_top_and_prometheus() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = users(&scratch, &net);
    assert!(nodes[0].tell(&["why", "users"]).contains("It is well: each of its 4 fragments"));
    assert!(nodes[0].tell(&["why", "users/2"]).contains("with 3 copies in sync"));
    assert!(nodes[0].tell(&["why", "node", "n2"]).contains("n2 is present"));
    says(&nodes[0].ask(&["why", "nothing"]), 1, &["nothing", "tombolo table list"]);
    says(&nodes[0].ask(&["why", "users/9"]), 1, &["users", "9"]);
    says(&nodes[0].ask(&["why", "planet", "earth"]), 2, &["planet"]);
    nodes[2].kill();
    wait_or(
        || nodes[0].tell(&["why", "users"]),
        30,
        || nodes[0].tell(&["why", "users"]).contains("have fewer than 3 copies in sync"),
    );
    let why = nodes[0].tell(&["why", "users/1"]);
    assert!(why.contains("Out of view: n3"), "{why}");
    let why = nodes[0].tell(&["why", "n3"]);
    assert!(why.contains("out of view") && why.contains("Its process is gone"), "{why}");
    let top = || nodes[0].tell(&["top", "--once", "--every", "200ms"]);
    // Until what the node led that is gone is led by others.
    wait_or(top, 30, || {
        let top = top();
        let row = |name: &str| top.lines().skip(4).find(|l| l.starts_with(&format!("{name} "))).unwrap_or_default();
        let table = row("users").contains("4/4") && row("users").contains("2/3");
        table && row("n3").contains('-') && row("n1").contains('%')
    });
    says(&nodes[0].ask(&["top"]), 2, &["--once"]);
    says(&nodes[0].ask(&["top", "--once", "--every", "often"]), 2, &["often"]);
}

/// Asks by HTTP, as simply as can be; the head, and the body.
fn get(addr: &str, request: &str) -> (String, String) {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.write_all(format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
    (head.into(), body.into())
}

#[test]
fn prometheus_reads_what_is_counted() {
    need_namespaces!();
    let scratch = Scratch::new();
    let args = [&ALONE[..], &["--http", "127.0.0.1:0"]].concat();
    let mut node = Node::new(&scratch, "n1", None, &args);
    node.start();
    node.sees(1, 20);
    table(&node);
    let log = node.log();
    let addr = log.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("the log names the address");
    let (head, body) = get(addr, "GET /metrics HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    for name in ["tombolo_info", "tombolo_heals_total", "tombolo_swim_suspicions_total", "tombolo_disc_flushes_total"] {
        assert!(body.contains(&format!("\n{name}{{node=\"n1\"")), "{name}: {body}");
    }
    // The parser that it is meant for.
    if let Some(mut promtool) = promtool(&["check", "metrics"]) {
        let mut child = promtool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), body.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    }
    assert!(get(addr, "GET /metrics?all HTTP/1.1").1.contains("tombolo_info"));
    assert!(get(addr, "GET /nothing HTTP/1.1").0.starts_with("HTTP/1.1 404"));
    assert!(get(addr, "POST /metrics HTTP/1.1\r\nContent-Length: 0").0.starts_with("HTTP/1.1 405"));
    assert!(get(addr, "\x01\x02 nonsense").0.starts_with("HTTP/1.1 400"));
    // An address that is taken.
    let taken = [&ALONE[..], &["--http", addr]].concat();
    let mut other = Node::new(&scratch, "n2", None, &taken);
    other.start();
    wait("it ends", 20, || !other.is_running());
    assert!(other.log().contains("give another address with --http"), "{}", other.log());
}

/// Prometheus' own tool, where it is installed. CI must not do without.
fn promtool(args: &[&str]) -> Option<Command> {
    if Command::new("promtool").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have promtool (Debian: prometheus)");
        return None;
    }
    let mut command = Command::new("promtool");
    command.args(args);
    Some(command)
}

/// Every name of a rule or a panel is one that nodes tell, and Prometheus takes the rules.
#[test]
fn alerts_and_dashboard_speak_of_what_is_counted() {
    let packaging = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging"));
    let rules = packaging.join("prometheus/tombolo.rules.yml");
    let dashboard = packaging.join("grafana/tombolo.json");
    let mut names = 0;
    for file in [&rules, &dashboard] {
        let text = fs::read_to_string(file).unwrap();
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| w.starts_with("tombolo_"))
        {
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            let known = procfs::exposition::FAMILIES.iter().any(|(name, ..)| *name == word || *name == plain);
            assert!(known, "{word} in {file:?} is not counted");
            names += 1;
        }
    }
    assert!(names > 20, "{names}");
    let board: Value = serde_json::from_str(&fs::read_to_string(&dashboard).unwrap()).unwrap();
    assert!(board["panels"].as_array().unwrap().len() >= 8);
    if let Some(mut promtool) = promtool(&["check", "rules"]) {
        let out = promtool.arg(&rules).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }
}
