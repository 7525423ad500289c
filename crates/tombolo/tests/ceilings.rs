//! How much of its machine a node takes, and what it does when that is all.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

#[macro_use]
mod common;

use common::*;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const VALUE: usize = 900_000;

/// Puts a large value that no two have in common.
fn fill(node: &Node, scratch: &Scratch, table: &str, key: &str) -> Output {
    let path = scratch.path(&format!("value.{}", node.pid()));
    let mut random = key.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    };
    let value: Vec<u8> = (0..VALUE).map(|_| next()).collect();
    std::fs::write(&path, value).unwrap();
    let value = std::fs::File::open(&path).unwrap();
    Command::new(BIN).arg("--data").arg(&node.data).args(["put", table, key, "-"]).stdin(value).output().unwrap()
}

fn resident_mib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() / 1024
}

fn records(node: &Node, table: &str) -> usize {
    node.tell(&["scan", table, "--limit", "1000"]).lines().count()
}

/// Fills a table until writes are refused, and go on being refused; how many were taken.
fn until_full(node: &Node, scratch: &Scratch, table: &str, most: usize) -> usize {
    let (mut taken, mut since) = (0, None::<Instant>);
    while taken < most {
        let out = fill(node, scratch, table, &format!("k{taken}"));
        if out.status.success() {
            (taken, since) = (taken + 1, None);
            continue;
        }
        says(&out, 3, &["no space", "tombolo nodes"]);
        if since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(8) {
            return taken;
        }
    }
    panic!("{table} takes {most} values\n{}", node.log());
}

fn serves(node: &Node, table: &str) {
    wait("the table serves", 20, || node.ask(&["put", table, "ready", "1"]).status.success());
}

/// A node with so many values in a table that makes room, and an empty one that does not.
fn with_a_cache(scratch: &Scratch, ceiling: [&str; 2], storage: &str, values: usize) -> Node {
    let mut node = Node::new(scratch, "n1", None, &[&ALONE[..], &ceiling].concat());
    node.start();
    node.sees(1, 20);
    let alike = ["--fragments", "1", "--storage", storage];
    let bounded = ["--max-bytes", "1GiB", "--evict", "fifo"];
    node.tell(&[&["table", "create", "cache"], &alike[..], &bounded].concat());
    node.tell(&[&["table", "create", "kept"], &alike[..]].concat());
    for i in 0..values {
        let key = format!("k{i}");
        wait("it is put", 20, || fill(&node, scratch, "cache", &key).status.success());
    }
    assert_eq!(records(&node, "cache"), values);
    serves(&node, "kept");
    node
}

#[test]
fn near_its_memory_ceiling_a_node_takes_from_bounded_tables_first_and_then_refuses() {
    let scratch = Scratch::new();
    let mut node = with_a_cache(&scratch, ["--memory-max", "160MiB"], "ram", 60);
    let taken = until_full(&node, &scratch, "kept", 300);
    // What had a bound went for what had none, and nothing else did.
    assert!(records(&node, "cache") <= 2, "{}", node.log());
    assert!(taken > 120 && node.is_running(), "{taken} values were taken");
    for i in 0..taken {
        assert_eq!(node.ask(&["get", "kept", &format!("k{i}")]).stdout.len(), VALUE);
    }
    let text = node.tell(&["nodes"]);
    assert!(text.contains("short of memory: takes no writes that need more"), "{text}");
    // The allocator keeps some of what is freed among what is not.
    assert!(resident_mib(&node) < 160 * 3 / 2, "{} MiB", resident_mib(&node));
    for part in ["bounded tables on this node make room", "takes no writes until there is room"] {
        assert!(node.log().contains(part), "{part}: {}", node.log());
    }
    node.tell(&["table", "drop", "kept"]);
    wait_or(|| node.log(), 60, || fill(&node, &scratch, "cache", "again").status.success());
    wait_or(
        || node.log(),
        20,
        || node.log().lines().any(|l| l.contains("memory: ") && l.contains("there is room again")),
    );
    says(&node.ask(&["up", "--memory-max", "1MiB"]), 4, &["memory_max", "at least 64 MiB"]);
    says(&node.ask(&["up", "--memory-max", "lots"]), 4, &["memory_max", "is not a size"]);
}

/// Whoever leads, a copy on a small machine is not drowned.
#[test]
fn a_follower_at_its_ceiling_has_its_leader_refuse() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    let mut nodes: Vec<Node> = [("n1", "none"), ("n2", "100MiB")]
        .iter()
        .zip(1..)
        .map(|((name, max), host)| Node::new(&scratch, name, Some(net.host(host)), &["--memory-max", max]))
        .collect();
    nodes.iter_mut().for_each(Node::start);
    nodes[0].sees(2, 40);
    nodes[0].tell(&["table", "create", "kept", "--fragments", "4", "--copies", "2", "--storage", "ram"]);
    nodes[0].in_sync(2, 40);
    serves(&nodes[0], "kept");
    let mut taken = Vec::new();
    let refused = (0..400).find_map(|i| {
        let key = format!("k{i}");
        let out = fill(&nodes[0], &scratch, "kept", &key);
        if out.status.success() {
            taken.push(key);
        }
        (!out.status.success()).then_some(out)
    });
    says(&refused.expect("it fills up"), 3, &["no space"]);
    let text = nodes[0].tell(&["nodes"]);
    assert_eq!(text.matches("short of memory").count(), 1, "{text}");
    assert!(resident_mib(&nodes[1]) < 140, "{} MiB", resident_mib(&nodes[1]));
    assert!(nodes[1].is_running());
    for key in &taken {
        assert_eq!(nodes[1].ask(&["get", "kept", key]).stdout.len(), VALUE);
    }
}

#[test]
fn near_its_disc_ceiling_a_node_makes_room_and_then_refuses() {
    let scratch = Scratch::new();
    let mut node = with_a_cache(&scratch, ["--disc-max", "512MiB"], "disc_only", 100);
    let taken = until_full(&node, &scratch, "kept", 600);
    wait_or(|| node.log(), 60, || records(&node, "cache") < 100);
    assert!(taken > 100 && node.is_running(), "{taken} values were taken");
    let text = node.tell(&["nodes"]);
    assert!(text.contains("short of room on its disc"), "{text}");
    for i in 0..taken {
        assert_eq!(node.ask(&["get", "kept", &format!("k{i}")]).stdout.len(), VALUE);
    }
    says(&node.ask(&["up", "--disc-max", "100MiB"]), 4, &["disc_max", "at least 512 MiB"]);
}
