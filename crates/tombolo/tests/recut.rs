//! The number of a table's fragments changes while it is used.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Net, Node, Scratch, cluster, says, three, wait, wait_or};

/// What a table's fragments are like: how many there are, if all are led and in step and no change is under way.
fn cut_into(node: &Node, table: &str) -> Option<usize> {
    let info: serde_json::Value = serde_json::from_slice(&node.ask(&["table", "info", table, "--json"]).stdout).ok()?;
    let fragments = info["fragments"].as_array()?;
    let led = fragments.iter().all(|f| f["leader"].is_string());
    (led && info["changing"].is_null()).then_some(fragments.len())
}

#[test]
fn fragments_are_cut_and_joined_while_clients_write() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    let mut nodes = cluster(&scratch, &net, 4);
    nodes[0].tell(&["table", "create", "t", "--copies", "2", "--fragments", "4"]);
    nodes[0].in_sync(2, 30);
    for i in 0..60 {
        nodes[i % 4].tell(&["put", "t", &format!("k{i}"), &format!("v{i}")]);
    }
    nodes[0].tell(&["del", "t", "k7"]);
    let all = |node: &Node| {
        for i in (0..60).filter(|i| *i != 7) {
            assert_eq!(node.tell(&["get", "t", &format!("k{i}")]), format!("v{i}"));
        }
        assert_eq!(node.ask(&["get", "t", "k7"]).status.code(), Some(1));
        assert_eq!(node.tell(&["scan", "t"]).lines().count(), 59);
    };
    // While somebody writes into it: none fails.
    let load = [
        "bench",
        "kv",
        "--op",
        "put",
        "--clients",
        "4",
        "--seconds",
        "25",
        "--warm",
        "0",
        "--fragments",
        "2",
        "--json",
    ];
    let report = std::thread::scope(|scope| {
        let report = scope.spawn(|| nodes[0].tell(&load));
        wait_or(|| "no load".into(), 10, || cut_into(&nodes[2], "tombolo-bench") == Some(2));
        for (table, count) in [("t", 12), ("tombolo-bench", 4), ("t", 6), ("tombolo-bench", 2), ("t", 2), ("t", 8)] {
            alter(&nodes, table, count);
        }
        report.join().unwrap()
    });
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["failed"], 0, "{report}");
    nodes.iter().for_each(all);
    // Killed, all of them, they come back with it.
    nodes.iter_mut().for_each(Node::kill);
    nodes.iter_mut().for_each(Node::start);
    nodes[0].sees(4, 30);
    nodes[0].in_sync(2, 60);
    nodes.iter().for_each(all);
    alter(&nodes, "t", 1);
    nodes.iter().for_each(all);
}

/// Has the number of fragments changed, and waits until that is over.
fn alter(nodes: &[Node], table: &str, count: usize) {
    nodes[1].tell(&["table", "alter", table, "--fragments", &count.to_string()]);
    becomes(nodes, table, count);
}

fn becomes(nodes: &[Node], table: &str, count: usize) {
    wait_or(
        || nodes.iter().map(|n| n.tell(&["table", "info", table]) + &n.log()).collect(),
        90,
        || nodes.iter().all(|node| cut_into(node, table) == Some(count)),
    );
}

fn holds(node: &Node, keys: &[String]) {
    for key in keys {
        assert_eq!(node.tell(&["get", "t", key]), "v", "{key}");
    }
    assert_eq!(node.tell(&["scan", "t"]).lines().count(), keys.len());
    assert_eq!(node.tell(&["export", "t"]).lines().filter(|line| line.contains("\"k\"")).count(), keys.len());
}

/// Cut while it goes on, and killed: what either side took is there, and it comes to its end.
#[test]
fn a_change_of_fragments_survives_a_cut_and_crashes() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t", "--copies", "3", "--fragments", "16"]);
    nodes[0].in_sync(3, 30);
    let mut keys: Vec<String> = (0..60).map(|i| format!("before{i}")).collect();
    let put = |node: &Node, keys: &[String]| keys.iter().for_each(|key| drop(node.tell(&["put", "t", key, "v"])));
    put(&nodes[0], &keys);
    nodes[1].tell(&["table", "alter", "t", "--fragments", "64"]);
    wait("some are changed", 20, || {
        let info = nodes[0].tell(&["table", "info", "t"]);
        info.contains("on its way to 64 fragments") && !info.contains(": 0 of")
    });
    net.cut(3);
    wait("both sides know", 30, || {
        nodes[0].status().contains("partitioned") && nodes[2].status().contains("partitioned")
    });
    let (left, right): (Vec<_>, Vec<_>) = (0..40).map(|i| (format!("left{i}"), format!("right{i}"))).unzip();
    put(&nodes[0], &left);
    put(&nodes[2], &right);
    nodes[1].tell(&["del", "t", "before3"]);
    nodes[1].kill();
    nodes[1].start();
    nodes[2].kill();
    nodes[2].start();
    net.join(3);
    nodes[0].sees(3, 30);
    becomes(&nodes, "t", 64);
    keys.retain(|key| key != "before3");
    keys.extend(left.into_iter().chain(right));
    wait("all have met", 30, || nodes.iter().all(|n| n.tell(&["scan", "t"]).lines().count() == keys.len()));
    nodes.iter().for_each(|node| holds(node, &keys));
    // Joined, and all killed half way.
    nodes[2].tell(&["table", "alter", "t", "--fragments", "8"]);
    wait("some are changed", 30, || nodes[0].tell(&["table", "info", "t"]).contains("on its way to 8 fragments"));
    nodes.iter_mut().for_each(Node::kill);
    nodes.iter_mut().for_each(Node::start);
    nodes[0].sees(3, 30);
    becomes(&nodes, "t", 8);
    nodes.iter().for_each(|node| holds(node, &keys));
    // Nothing of what they were made of is left on the disc: a start finds what is there.
    nodes.iter_mut().for_each(Node::kill);
    nodes.iter_mut().for_each(Node::start);
    nodes[0].sees(3, 30);
    becomes(&nodes, "t", 8);
    nodes.iter().for_each(|node| holds(node, &keys));
}

#[test]
fn what_a_number_of_fragments_cannot_be() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    let mut nodes = cluster(&scratch, &net, 2);
    nodes[0].tell(&["table", "create", "t", "--copies", "2", "--fragments", "6"]);
    nodes[0].tell(&["table", "create", "beside", "--copies", "2", "--beside", "t"]);
    nodes[0].tell(&["table", "create", "u", "--copies", "1", "--fragments", "4", "--storage", "disc_only"]);
    nodes[0].tell(&["table", "create", "w", "--copies", "2", "--fragments", "4", "--max-records", "8"]);
    let bad = |node: &Node, table: &str, count: &str, code, words: &[&str]| {
        says(&node.ask(&["table", "alter", table, "--fragments", count]), code, words);
    };
    for table in ["t", "beside"] {
        bad(&nodes[0], table, "12", 2, &["lies beside", "--beside"]);
    }
    nodes[0].tell(&["table", "drop", "beside"]);
    for count in ["4", "9", "5"] {
        bad(&nodes[0], "t", count, 2, &["6 fragments", "multiple", "divisors"]);
    }
    for count in ["0", "1025", "many", ""] {
        bad(&nodes[0], "t", count, 2, &["--fragments"]);
    }
    bad(&nodes[0], "nowhere", "8", 1, &["nowhere", "table list"]);
    bad(&nodes[0], "u", "8", 2, &["on disc only", "--storage disc"]);
    nodes[0].tell(&["rebalance", "--pause"]);
    bad(&nodes[1], "t", "3", 2, &["rebalance --resume"]);
    nodes[0].tell(&["rebalance", "--resume"]);
    // A bound is shared among as many as there are; one of which each has nothing is none.
    bad(&nodes[0], "w", "16", 2, &["bound", "fewer fragments"]);
    nodes[0].tell(&["table", "alter", "w", "--fragments", "1"]);
    becomes(&nodes, "w", 1);
    (0..8).for_each(|i| drop(nodes[1].tell(&["put", "w", &format!("k{i}"), "v"])));
    says(&nodes[0].ask(&["put", "w", "one more", "v"]), 3, &["full"]);
    // As it is.
    nodes[0].tell(&["table", "alter", "t", "--fragments", "6"]);
    assert_eq!(cut_into(&nodes[0], "t"), Some(6));
    nodes[1].kill();
    wait("it is missed", 30, || !nodes[0].status().contains("whole"));
    bad(&nodes[0], "t", "12", 2, &["no node is missing", "tombolo status"]);
    nodes[1].start();
    nodes[0].sees(2, 30);
    wait("it is whole", 30, || nodes[0].ask(&["table", "alter", "t", "--fragments", "12"]).status.success());
    bad(&nodes[0], "t", "24", 2, &["being changed", "rebalance"]);
    says(&nodes[1].ask(&["rebalance"]), 0, &[]);
    assert_eq!(cut_into(&nodes[0], "t"), Some(12));
    // As files: what was there stays there.
    let dir = scratch.path("mnt");
    std::fs::create_dir_all(&dir).unwrap();
    nodes[0].mount("fs", &dir);
    (0..20).for_each(|i| std::fs::write(dir.join(format!("f{i}")), vec![b'x'; 300_000]).unwrap());
    let tables = nodes[0].tell(&["table", "list"]);
    for table in tables.lines().filter_map(|line| line.split('\t').next()).filter(|table| table.starts_with("fs.")) {
        let out = nodes[0].ask(&["table", "alter", table, "--fragments", "16"]);
        let text = String::from_utf8_lossy(&out.stderr).to_string();
        assert!(out.status.success() || text.contains("beside") || text.contains("disc only"), "{table}: {text}");
    }
    (20..40).for_each(|i| std::fs::write(dir.join(format!("f{i}")), vec![b'x'; 300_000]).unwrap());
    says(&nodes[1].ask(&["rebalance"]), 0, &[]);
    for i in 0..40 {
        assert!(std::fs::read(dir.join(format!("f{i}"))).unwrap().iter().all(|b| *b == b'x'), "f{i}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 40);
}
