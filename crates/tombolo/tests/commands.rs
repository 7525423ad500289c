//! Every command that the tour of the README does not show, as a user gives it; and what it says to nonsense.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Node, Scratch, alone, says, table, wait};
use std::process::Output;

fn text(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn path(scratch: &Scratch, name: &str) -> String {
    scratch.path(name).to_string_lossy().into_owned()
}

/// A node with a table of a few rows, among them one that expires.
fn filled(scratch: &Scratch) -> Node {
    let node = alone(scratch, "n");
    table(&node);
    for n in 0..300 {
        node.tell(&["put", "t", &format!("k{n:03}"), &format!("value \t{n}")]);
    }
    node.tell(&["put", "t", "brief", "x", "--ttl", "1h"]);
    node
}

#[test]
fn a_table_is_exported_and_imported() {
    let scratch = Scratch::new();
    let node = filled(&scratch);
    let (file, before) = (path(&scratch, "t.dump"), node.tell(&["scan", "t"]));
    assert!(node.tell(&["export", "t", &file]).contains("302 rows"));
    assert_eq!(node.tell(&["export", "t"]), std::fs::read_to_string(&file).unwrap(), "as a file, or as output");
    says(&node.ask(&["export", "t", &file]), 2, &["t.dump", "there already"]);
    says(&node.ask(&["export", "nowhere"]), 1, &["nowhere", "table list"]);
    // Into another table, made with the same options.
    assert!(node.tell(&["import", "u", &file]).contains("302 rows were put"));
    assert_eq!(node.tell(&["scan", "u"]), before);
    let shape = |name: &str| node.tell(&["table", "list"]).lines().find(|l| l.starts_with(name)).unwrap().to_string();
    assert_eq!(shape("t")[1..], shape("u")[1..]);
    // Keys that hold a value are left alone when asked to, and else get the export's.
    node.tell(&["put", "u", "k000", "mine"]);
    node.tell(&["del", "u", "k001"]);
    assert!(node.tell(&["import", "u", &file, "--if-absent"]).contains("1 rows were put, 301 keys"));
    assert_eq!(node.tell(&["get", "u", "k000"]), "mine");
    node.tell(&["import", "u", &file]);
    assert_eq!(node.tell(&["scan", "u"]), before);
    assert_eq!(node.ask(&["get", "u", "brief"]).status.code(), Some(0), "it lives as long as it did");
}

#[test]
fn a_dump_that_is_not_whole_puts_nothing() {
    let scratch = Scratch::new();
    let node = filled(&scratch);
    let (file, bad) = (path(&scratch, "t.dump"), path(&scratch, "bad.dump"));
    node.tell(&["export", "t", &file]);
    let good = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let joined = |lines: &[&str]| lines.join("\n") + "\n";
    let cases: [(String, &str); 8] = [
        (joined(&lines[..200]), "cut short after line 200"),
        (good.replacen("\"v\":\"d", "\"v\":\"e", 1), "damaged"),
        (good.replacen("\"version\":1", "\"version\":2", 1), "version 2"),
        (joined(&lines[1..]), "line 1 does not begin a dump"),
        ("what is this\n".into(), "line 1 is not of a dump"),
        (good.replacen("\"k\":\"", "\"k\":\"*", 1), "line 3 holds what is not base64"),
        (joined(&[&lines[..1], &lines[2..]].concat()), "line 2 is a row of no table"),
        (good.clone() + lines[2] + "\n", "comes after the end"),
    ];
    for (content, why) in cases {
        std::fs::write(&bad, content).unwrap();
        says(&node.ask(&["import", "u", &bad]), 4, &["nothing was put", why]);
        says(&node.ask(&["restore", &bad]), 4, &["nothing was put", why]);
        says(&node.ask(&["get", "u", "k000"]), 1, &["no table"]);
    }
    says(&node.ask(&["import", "u", &path(&scratch, "nowhere")]), 4, &["nowhere"]);
}

#[test]
fn a_cluster_is_backed_up_and_restored_into_another() {
    let scratch = Scratch::new();
    let node = filled(&scratch);
    node.tell(&["table", "create", "more", "--unordered", "--storage", "ram", "--fragments", "3"]);
    wait("it serves", 20, || node.ask(&["put", "more", "a", "1"]).status.success());
    let file = path(&scratch, "all.dump");
    assert!(node.tell(&["backup", &file]).contains("2 tables, 303 rows"));
    says(&node.ask(&["restore", &file]), 1, &["t", "more", "--overwrite"]);
    says(&node.ask(&["import", "u", &file]), 2, &["more than one table", "restore"]);
    let other = alone(&scratch, "other");
    assert!(other.tell(&["restore", &file]).contains("303 rows were put"));
    for table in ["t", "more"] {
        assert_eq!(other.tell(&["scan", table]), node.tell(&["scan", table]));
    }
    node.tell(&["put", "t", "k007", "newer"]);
    node.tell(&["restore", &file, "--overwrite"]);
    assert_eq!(node.tell(&["get", "t", "k007"]), "value \t7");
}

#[test]
fn table_info_and_drop() {
    let scratch = Scratch::new();
    let node = filled(&scratch);
    let info = node.tell(&["table", "info", "t", "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let sum = |what: &str| info["fragments"].as_array().unwrap().iter().map(|f| f[what].as_u64().unwrap()).sum::<u64>();
    assert_eq!((info["fragments"].as_array().unwrap().len(), sum("records")), (2, 302));
    assert!(node.tell(&["table", "info", "t"]).contains("302 records"));
    says(&node.ask(&["table", "info", "nowhere"]), 1, &["nowhere", "table list"]);
    says(&node.ask(&["table", "drop", "nowhere"]), 1, &["nowhere"]);
    says(&node.ask(&["table", "drop", "fs.shared.blocks"]), 1, &["filesystem shared", "fs drop"]);
    node.tell(&["table", "drop", "t"]);
    says(&node.ask(&["get", "t", "k000"]), 1, &["no table"]);
    // Made anew, it is empty.
    table(&node);
    assert_eq!(node.tell(&["scan", "t"]), "ready\t1\n");
    says(&node.ask(&["table", "create", "u", "--min-in-sync", "many"]), 2, &["many", "majority"]);
    says(&node.ask(&["table", "create", "u", "--min-in-sync", "4"]), 2, &["min-in-sync", "number of copies"]);
}

#[test]
fn writes_wait_for_copies_that_the_table_asks_for() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n");
    node.tell(&["table", "create", "safe", "--min-in-sync", "2", "--fragments", "1"]);
    says(&node.ask(&["put", "safe", "k", "v"]), 3, &["1 copies are in sync", "asks for 2"]);
    assert_eq!(node.ask(&["get", "safe", "k"]).status.code(), Some(1), "reads are served");
    let port = common::listen(&node).to_string();
    let mut other = Node::new(&scratch, "m", None, &["--no-multicast", "--listen", "127.0.0.1:0", "--join", &port]);
    other.start();
    wait("two copies are in sync", 30, || node.ask(&["put", "safe", "k", "v"]).status.success());
    other.kill();
    // Before it is missed a write may be on its way to it: whether that was done is not known, and nobody is told that it was.
    let mut unknown = false;
    wait("the killed node is missed", 10, || {
        let put = node.ask(&["put", "safe", "k", "w"]);
        unknown |= put.status.code() == Some(5);
        assert!(!put.status.success());
        put.status.code() == Some(3) && String::from_utf8_lossy(&put.stderr).contains("asks for 2")
    });
    let value = node.tell(&["get", "safe", "k"]);
    assert!(value == "v" || (unknown && value == "w"), "{value}");
}

#[test]
fn config_says_what_comes_from_where() {
    let scratch = Scratch::new();
    let node = Node::new(&scratch, "n", None, &[]);
    let file = path(&scratch, "conf.toml");
    std::fs::write(&file, "group = \"g\"\njoin = [\"127.0.0.1:9\"]\n").unwrap();
    let out = node.tell(&["--config", &file, "config", "--name", "me", "--no-multicast"]);
    for line in [
        "name = \"me\"  # the command line",
        "group = \"g\"  # the config file",
        "join = [\"127.0.0.1:9\"]  # the config file",
        "multicast = false  # the command line",
        "# zone is not set",
    ] {
        assert!(out.contains(line), "{line:?} is not in {out}");
    }
    // What it prints is a config file that says the same.
    std::fs::write(&file, &out).unwrap();
    let again = node.tell(&["--config", &file, "config"]);
    let values = |text: &str| text.lines().map(|l| l.split("  #").next().unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(values(&out), values(&again));
}

#[test]
fn completions_doctor_and_json_logs() {
    let scratch = Scratch::new();
    let node = Node::new(&scratch, "n", None, &[]);
    assert!(node.tell(&["completions", "bash"]).contains("_tombolo"));
    assert!(node.tell(&["completions", "zsh"]).contains("#compdef tombolo"));
    says(&node.ask(&["completions", "cmd"]), 2, &["cmd", "bash"]);
    let cookie = path(&scratch, "cookie");
    let out = node.tell(&["doctor", "--json", "--cookie-file", &cookie, "--listen", "127.0.0.1:0"]);
    let all: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let verdict = |what: &str| all.iter().find(|f| f["what"] == what).unwrap()["verdict"].clone();
    assert_eq!((verdict("secret"), verdict("disc"), verdict("port")), ("ok".into(), "ok".into(), "ok".into()));
    std::fs::set_permissions(&cookie, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let out = node.ask(&["doctor", "--cookie-file", &cookie]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).contains("chmod 600"));
    std::fs::set_permissions(&cookie, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut node =
        Node::new(&scratch, "j", None, &["--no-multicast", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    node.start();
    wait("it is ready", 20, || node.log().contains("ready with"));
    let log = node.log();
    let lines: Vec<&str> = log.lines().filter(|l| l.starts_with('{')).collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()), "{log}");
}

#[test]
fn a_load_is_measured_and_leaves_nothing() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n");
    for op in ["put", "get", "put-if-absent", "mixed"] {
        let args =
            ["bench", "kv", "--op", op, "--clients", "4", "--keys", "100", "--seconds", "1", "--warm", "0", "--json"];
        let report: serde_json::Value = serde_json::from_str(&text(&node.ask(&args))).unwrap();
        assert!(report["ops_s"].as_u64().unwrap() > 0 && report["failed"] == 0, "{report}");
        assert!(report["p50_us"].as_f64().unwrap() <= report["p999_us"].as_f64().unwrap(), "{report}");
        assert!(report["cpu_s"].as_object().unwrap().values().all(|s| s.as_f64().unwrap() > 0.0), "{report}");
        wait("the table goes", 10, || !node.tell(&["table", "list"]).contains("tombolo-bench"));
    }
    node.tell(&["bench", "kv", "--clients", "1", "--seconds", "1", "--warm", "0", "--keep"]);
    says(&node.ask(&["bench", "kv"]), 4, &["tombolo-bench", "table drop"]);
    says(&node.ask(&["bench", "kv", "--clients", "0"]), 2, &["--clients"]);
    let dir = path(&scratch, "files");
    std::fs::create_dir(&dir).unwrap();
    let out = node.tell(&["bench", "fs", &dir, "--files", "50", "--mib", "2", "--json"]);
    for op in ["create", "stat", "open", "unlink", "create-parallel", "write", "read", "random-read"] {
        assert!(out.contains(&format!("\"op\":\"{op}\"")), "{op} is not in {out}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    says(&node.ask(&["bench", "fs", "/nowhere"]), 4, &["/nowhere"]);
}

/// The memory that a node's process uses, in MiB.
fn resident_mib(node: &Node) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{}/statm", node.pid())).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / (1 << 20)
}

#[test]
fn a_table_on_disc_only_takes_little_memory_and_is_all_there_after_a_kill() {
    let scratch = Scratch::new();
    let mut node = alone(&scratch, "n");
    node.tell(&["table", "create", "t", "--storage", "disc_only", "--durability", "sync"]);
    assert!(node.tell(&["table", "list"]).contains("storage=disc_only"));
    for round in ["first", "second"] {
        for k in 0..20 {
            let put = || node.ask(&["put", "t", &format!("k{k}"), &format!("{round} {k}")]);
            wait("it is put", 20, || put().status.success());
        }
    }
    node.tell(&["del", "t", "k7"]);
    let load = ["bench", "kv", "--op", "get", "--storage", "disc_only", "--value-size", "65536", "--keys", "6000"];
    let report = node.tell(&[&load[..], &["--seconds", "1", "--warm", "0", "--keep", "--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["failed"], 0, "{report}");
    // What is on its way to the disc is in RAM for that long.
    wait("under 300 MiB are in RAM, of 375 MiB of values", 60, || resident_mib(&node) < 300);
    node.kill();
    node.start();
    let all = || node.ask(&["table", "info", "tombolo-bench"]);
    wait("it has loaded all", 60, || String::from_utf8_lossy(&all().stdout).contains("6000 records"));
    let loaded = resident_mib(&node);
    assert!(loaded < 150, "{loaded} MiB after a start");
    let rows = node.tell(&["scan", "t"]);
    assert_eq!(rows.lines().count(), 19);
    assert!((0..20).filter(|k| *k != 7).all(|k| rows.contains(&format!("k{k}\tsecond {k}"))), "{rows}");
    let rows = node.ask(&["scan", "tombolo-bench", "--limit", "6000"]).stdout;
    assert!(rows.len() > 6000 * 65536, "{} bytes", rows.len());
}

#[test]
fn values_live_as_long_as_they_or_their_table_say() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n1");
    node.tell(&["table", "create", "t", "--fragments", "2", "--ttl", "10m"]);
    wait("the table serves", 20, || node.ask(&["put", "t", "usual", "v"]).status.success());
    node.tell(&["put", "t", "short", "v", "--ttl", "1s"]);
    let left = |key: &str| node.tell(&["ttl", "t", key]).trim().parse::<f64>().unwrap();
    assert!((590.0..=600.0).contains(&left("usual")) && left("short") <= 1.0);
    assert!(node.tell(&["table", "info", "t"]).contains("lives for 600 s"));
    node.tell(&["touch", "t", "usual", "--ttl", "2h"]);
    assert!((7190.0..=7200.0).contains(&left("usual")));
    node.tell(&["touch", "t", "usual"]);
    assert!((590.0..=600.0).contains(&left("usual")));
    node.tell(&["persist", "t", "usual"]);
    assert_eq!(node.tell(&["ttl", "t", "usual"]), "none\n");
    wait("it is gone", 10, || node.ask(&["get", "t", "short"]).status.code() == Some(1));
    for command in [&["ttl", "t", "short"][..], &["touch", "t", "short"], &["persist", "t", "short"]] {
        says(&node.ask(command), 1, &["t short", "no"]);
    }
    // A restored row that lived for good does so again.
    let file = scratch.path("rows");
    node.tell(&["export", "t", &file.to_string_lossy()]);
    node.tell(&["del", "t", "usual"]);
    node.tell(&["import", "t", &file.to_string_lossy()]);
    assert_eq!(node.tell(&["ttl", "t", "usual"]), "none\n");
    node.tell(&["table", "alter", "t", "--ttl", "none"]);
    wait("no time any more", 10, || {
        node.tell(&["put", "t", "later", "v"]);
        node.tell(&["ttl", "t", "later"]) == "none\n"
    });
    says(&node.ask(&["touch", "t", "later"]), 2, &["no time to live of its own", "--ttl 10m"]);
    says(&node.ask(&["table", "alter", "t", "--ttl", "soon"]), 2, &["--ttl", "soon"]);
    says(&node.ask(&["table", "create", "u", "--ttl", "0s"]), 2, &["--ttl", "0s"]);
    says(&node.ask(&["touch", "nowhere", "k"]), 2, &["nowhere"]);
    for part in ["fs.x", "fs.x.blocks"] {
        says(&node.ask(&["table", "alter", part, "--ttl", "1d"]), 2, &[part, "files do not expire"]);
    }
}

#[test]
fn a_table_that_is_full_says_so_and_takes_what_makes_room() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n1");
    node.tell(&["table", "create", "t", "--fragments", "1", "--max-records", "3", "--max-bytes", "2500"]);
    wait("the table serves", 20, || node.ask(&["put", "t", "a", "v"]).status.success());
    node.tell(&["put", "t", "b", "v"]);
    node.tell(&["put", "t", "c", "v"]);
    says(&node.ask(&["put", "t", "d", "v"]), 3, &["t d", "full", "records", "tombolo table alter"]);
    // What is there may change, within the bytes that are left.
    node.tell(&["put", "t", "a", &"x".repeat(1000)]);
    says(&node.ask(&["put", "t", "b", &"x".repeat(100)]), 3, &["full", "bytes"]);
    node.tell(&["put", "t", "a", "v"]);
    node.tell(&["del", "t", "c"]);
    node.tell(&["put", "t", "d", "v"]);
    let info = node.tell(&["table", "info", "t"]);
    assert!(info.contains("at most 3 records and 2.4 KiB in all"), "{info}");
    assert!(info.contains("what would go beyond is refused (evict reject)"), "{info}");
    node.tell(&["table", "alter", "t", "--max-records", "none"]);
    wait("there is room", 10, || node.ask(&["put", "t", "e", "v"]).status.success());
    // Less than there is: nothing goes, and nothing comes.
    node.tell(&["table", "alter", "t", "--max-records", "2"]);
    wait("it is full", 10, || node.ask(&["put", "t", "f", "v"]).status.code() == Some(3));
    assert_eq!(node.tell(&["scan", "t"]).lines().count(), 4);
    says(&node.ask(&["table", "alter", "t", "--max-bytes", "much"]), 2, &["--max-bytes", "much"]);
    says(&node.ask(&["table", "create", "u", "--max-records", "7"]), 2, &["table u", "fewer fragments"]);
}
