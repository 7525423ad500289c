//! Tables that make room by themselves, as a user sees them.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

#[macro_use]
mod common;

use common::*;

fn info(node: &Node, table: &str) -> serde_json::Value {
    serde_json::from_str(&node.tell(&["table", "info", table, "--json"])).unwrap()
}

fn records(node: &Node) -> usize {
    node.tell(&["scan", "t", "--limit", "1000"]).lines().count()
}

#[test]
fn a_full_table_makes_room_and_tells_how_it_fares() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n1");
    node.tell(&["table", "create", "t", "--fragments", "1", "--max-records", "3", "--evict", "lru"]);
    wait("the table serves", 20, || node.ask(&["put", "t", "a", "v"]).status.success());
    for key in ["b", "c", "d", "e"] {
        node.tell(&["put", "t", key, "v"]);
        // What is used stays.
        node.tell(&["get", "t", "a"]);
    }
    assert_eq!(node.tell(&["scan", "t"]).lines().map(|l| &l[..1]).collect::<String>(), "ade");
    assert_eq!(node.ask(&["get", "t", "b"]).status.code(), Some(1));
    let text = node.tell(&["table", "info", "t"]);
    for part in [
        "at most 3 records",
        "evict lru",
        "2 records had to go",
        "80.0 % of 5 reads found something",
        "100.0 % full",
        "the oldest is",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let fill = &info(&node, "t")["fill"];
    assert_eq!((&fill["evicted"], &fill["hits"], &fill["misses"]), (&2.into(), &4.into(), &1.into()), "{fill}");
    wait_or(|| node.log(), 10, || node.log().contains("table t is full"));
    // A bound that is lowered holds at once; one that is lifted lets all stay.
    node.tell(&["table", "alter", "t", "--max-records", "1"]);
    wait("it is within it", 10, || records(&node) == 1);
    node.tell(&["table", "alter", "t", "--max-records", "none"]);
    wait("there is room", 10, || {
        node.tell(&["put", "t", "f", "v"]);
        records(&node) == 2
    });
    assert_eq!(info(&node, "t")["table"]["evict"], "reject");
    // In bytes, and then back to refusing.
    node.tell(&["table", "alter", "t", "--max-bytes", "10KiB", "--evict", "fifo"]);
    wait("something has to go", 20, || {
        node.tell(&["put", "t", &format!("k{}", records(&node)), &"x".repeat(1000)]);
        node.ask(&["get", "t", "f"]).status.code() == Some(1)
    });
    says(&node.ask(&["put", "t", "large", &"x".repeat(20_000)]), 3, &["full", "bytes"]);
    node.tell(&["table", "alter", "t", "--evict", "reject"]);
    wait("it refuses", 20, || node.ask(&["put", "t", "more", &"x".repeat(9000)]).status.code() == Some(3));
}

#[test]
fn what_makes_no_sense_of_a_bound_is_said() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n1");
    let create = |more: &[&str]| node.ask(&[&["table", "create", "u"], more].concat());
    says(&create(&["--evict", "lru"]), 2, &["table u", "no bound", "--max-bytes"]);
    says(&create(&["--max-records", "100", "--evict", "random"]), 2, &["--evict", "random", "s3-fifo"]);
    says(&create(&["--max-records", "100", "--per", "moon"]), 2, &["--per", "moon", "node"]);
    says(&create(&["--max-bytes", "1KiB", "--evict", "fifo"]), 2, &["table u", "fewer fragments"]);
    node.tell(&["table", "create", "t", "--fragments", "1"]);
    says(&node.ask(&["table", "alter", "t", "--evict", "sieve"]), 2, &["table t", "no bound"]);
    for part in ["fs.x", "fs.x.blocks"] {
        says(&node.ask(&["table", "alter", part, "--evict", "lru"]), 2, &[part, "files are not thrown out"]);
    }
}

/// Copies stay alike; both sides of a cut go on and make room, and what they hold together is within the bound soon after they meet.
#[test]
fn islands_that_filled_a_table_apart_are_within_its_bound_when_they_meet() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = cluster(&scratch, &net, 3);
    let bound = ["--fragments", "2", "--max-records", "40", "--evict", "s3-fifo", "--storage", "ram"];
    nodes[0].tell(&[&["table", "create", "t"], &bound[..]].concat());
    nodes[0].in_sync(3, 30);
    let fill = |node: &Node, side: &str| {
        for i in 0..80 {
            let key = format!("{side}{i}");
            wait_or(|| node.status(), 30, || node.ask(&["put", "t", &key, "v"]).status.success());
        }
        assert!((20..=40).contains(&records(node)), "{} of 40", records(node));
    };
    fill(&nodes[0], "first");
    let all = |node: &Node| node.tell(&["scan", "t", "--limit", "1000"]);
    let alike = |nodes: &[Node]| {
        wait_or(
            || nodes.iter().map(|n| n.tell(&["table", "info", "t"])).collect(),
            60,
            || nodes.iter().all(|n| all(n) == all(&nodes[0])) && records(&nodes[0]) <= 40,
        );
    };
    alike(&nodes);
    net.split(&[3]);
    wait("the cut is seen", 30, || nodes[2].status().contains("partitioned"));
    fill(&nodes[0], "left");
    fill(&nodes[2], "right");
    nodes[0].tell(&["put", "t", "last", "left"]);
    // It had to go on the one side, and is written again on the other.
    assert_eq!(nodes[0].ask(&["get", "t", "first79"]).status.code(), Some(1));
    nodes[2].tell(&["put", "t", "first79", "again"]);
    net.join(3);
    nodes[0].sees(3, 60);
    nodes[0].in_sync(3, 60);
    alike(&nodes);
    // What had to go beats nothing, and is no conflict.
    assert_eq!(nodes[0].tell(&["get", "t", "first79"]), "again");
    assert!(!nodes[0].tell(&["conflicts"]).contains("first79"));
    // One that was away begins anew where it has to, and serves with the others.
    nodes[1].kill();
    nodes[1].start();
    nodes[0].sees(3, 40);
    fill(&nodes[0], "then");
    nodes[0].in_sync(3, 60);
    alike(&nodes);
}

/// Of a bound for each node a table on more nodes holds more.
#[test]
fn a_bound_for_each_node_grows_with_the_nodes() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&[
        "table",
        "create",
        "t",
        "--copies",
        "1",
        "--fragments",
        "6",
        "--max-records",
        "40",
        "--per",
        "node",
        "--evict",
        "fifo",
    ]);
    nodes[0].in_sync(1, 30);
    let put = |i: usize| {
        wait_or(|| nodes[0].status(), 20, || nodes[i % 3].ask(&["put", "t", &format!("k{i}"), "v"]).status.success())
    };
    (0..240).for_each(put);
    let here = |node: &Node| {
        let info = info(node, "t");
        info["fragments"].as_array().unwrap().iter().filter_map(|f| f["records"].as_u64()).sum::<u64>()
    };
    wait_or(
        || nodes.iter().map(|n| n.tell(&["table", "info", "t"])).collect(),
        30,
        || {
            let held: Vec<u64> = nodes.iter().map(here).collect();
            held.iter().all(|n| *n <= 40) && held.iter().sum::<u64>() > 80
        },
    );
    let text = nodes[1].tell(&["table", "info", "t"]);
    assert!(text.contains("at most 40 records on each node"), "{text}");
}
