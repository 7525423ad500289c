//! Copies and leadership are spread evenly by themselves, while clients work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Net, Node, Scratch, cluster, says, wait_or};
use std::collections::{BTreeMap, BTreeSet};

fn map(node: &Node) -> serde_json::Value {
    serde_json::from_str(&node.tell(&["fragments", "--json"])).unwrap()
}

/// Of each node its copies and how many of them lead, if nothing is under way.
fn settled(node: &Node) -> Option<BTreeMap<String, (u64, u64)>> {
    let map = map(node);
    let list = |v: &serde_json::Value| v.as_array().unwrap().clone();
    let fragments = list(&map["tables"]).into_iter().flat_map(|t| list(&t["fragments"]));
    let still = list(&map["moves"]).is_empty()
        && fragments.into_iter().all(|f| list(&f["behind"]).is_empty() && f["leader"].is_string());
    let line = |n: &serde_json::Value| {
        let number = |what: &str| n[what].as_u64().unwrap();
        (n["name"].as_str().unwrap().to_string(), (number("copies"), number("leads")))
    };
    still.then(|| list(&map["nodes"]).iter().map(line).collect())
}

/// Waits until each of these nodes has so many copies and leads so many, rounded up or down.
fn even(node: &Node, want: &[(&str, u64, u64)]) {
    let near = |is: u64, want: u64| is == want || is == want + 1;
    wait_or(
        || node.tell(&["fragments"]) + &node.tell(&["rebalance", "--dry-run"]),
        60,
        || {
            let Some(all) = settled(node) else { return false };
            want.iter()
                .all(|(name, copies, leads)| all.get(*name).is_some_and(|(c, l)| near(*c, *copies) && near(*l, *leads)))
        },
    );
}

#[test]
fn whoever_comes_gets_its_share_while_clients_write_and_whoever_goes_leaves_it() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    let mut nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&["table", "create", "t", "--copies", "3", "--fragments", "12"]);
    nodes[0].in_sync(3, 30);
    even(&nodes[0], &[("n1", 12, 4), ("n2", 12, 4), ("n3", 12, 4)]);
    for i in 0..60 {
        nodes[0].tell(&["put", "t", &format!("k{i}"), "first"]);
    }
    // One more, while clients write: nothing fails.
    let load = ["bench", "kv", "--op", "put", "--clients", "8", "--seconds", "8", "--warm", "0", "--keep", "--json"];
    let (report, fourth) = std::thread::scope(|scope| {
        let report = scope.spawn(|| nodes[0].tell(&load));
        let mut fourth = Node::new(&scratch, "n4", Some(net.host(4)), &[]);
        fourth.start();
        (report.join().unwrap(), fourth)
    });
    nodes.push(fourth);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["failed"], 0, "{report}");
    nodes[0].sees(4, 30);
    nodes[0].tell(&["table", "drop", "tombolo-bench"]);
    even(&nodes[3], &[("n1", 9, 3), ("n2", 9, 3), ("n3", 9, 3), ("n4", 9, 3)]);
    says(&nodes[2].ask(&["rebalance"]), 0, &[]);
    assert!(nodes[2].tell(&["rebalance"]).contains("every node holds and leads its share"));
    for i in 0..60 {
        assert_eq!(nodes[3].tell(&["get", "t", &format!("k{i}")]), "first");
    }
    // Who gave copies away and starts again does not begin them anew.
    nodes[0].kill();
    nodes[0].start();
    even(&nodes[1], &[("n1", 9, 3), ("n2", 9, 3), ("n3", 9, 3), ("n4", 9, 3)]);
    for i in 0..60 {
        assert_eq!(nodes[0].tell(&["get", "t", &format!("k{i}")]), "first");
    }
    // Fewer copies, and more again.
    nodes[1].tell(&["table", "alter", "t", "--copies", "2"]);
    even(&nodes[1], &[("n1", 6, 3), ("n2", 6, 3), ("n3", 6, 3), ("n4", 6, 3)]);
    assert!(nodes[3].tell(&["table", "info", "t"]).contains("2 copies of 12 fragments"));
    nodes[1].tell(&["table", "alter", "t", "--copies", "4"]);
    even(&nodes[1], &[("n1", 12, 3), ("n2", 12, 3), ("n3", 12, 3), ("n4", 12, 3)]);
    nodes[1].tell(&["table", "alter", "t", "--copies", "2"]);
    even(&nodes[1], &[("n1", 6, 3), ("n2", 6, 3), ("n3", 6, 3), ("n4", 6, 3)]);
    // One goes.
    nodes[3].tell(&["leave"]);
    even(&nodes[0], &[("n1", 8, 4), ("n2", 8, 4), ("n3", 8, 4)]);
    for i in 0..60 {
        assert_eq!(nodes[1].tell(&["get", "t", &format!("k{i}")]), "first");
    }
}

#[test]
fn weights_count_and_a_pause_holds() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes: Vec<Node> = Vec::new();
    for (i, weight) in [(1, "100"), (2, "200")] {
        let mut node = Node::new(&scratch, &format!("n{i}"), Some(net.host(i)), &["--weight", weight]);
        node.start();
        nodes.push(node);
    }
    nodes[0].sees(2, 30);
    nodes[0].tell(&["table", "create", "t", "--copies", "1", "--fragments", "12"]);
    even(&nodes[0], &[("n1", 4, 4), ("n2", 8, 8)]);
    assert!(nodes[0].tell(&["rebalance", "--pause"]).contains("--resume"));
    let mut third = Node::new(&scratch, "n3", Some(net.host(3)), &["--weight", "0"]);
    third.start();
    nodes.push(third);
    nodes[0].sees(3, 30);
    // It weighs more from here on; nothing moves while it is paused.
    nodes[2].terminate();
    let mut third = Node::new(&scratch, "n3", Some(net.host(3)), &["--weight", "300"]);
    third.start();
    nodes[2] = third;
    wait_or(|| nodes[0].tell(&["fragments"]), 30, || map(&nodes[0])["nodes"][2]["weight"] == 300);
    even(&nodes[0], &[("n1", 4, 4), ("n2", 8, 8), ("n3", 0, 0)]);
    let paused = nodes[0].ask(&["rebalance"]);
    assert_eq!(paused.status.code(), Some(1));
    assert!(nodes[0].tell(&["fragments"]).contains("not evened out"));
    nodes[2].tell(&["rebalance", "--resume"]);
    even(&nodes[0], &[("n1", 2, 2), ("n2", 4, 4), ("n3", 6, 6)]);
    // What cannot be.
    let bad = |args: &[&str], code, words: &[&str]| says(&nodes[0].ask(args), code, words);
    bad(&["table", "alter", "t"], 2, &["nothing to change", "--copies"]);
    bad(&["table", "alter", "t", "--copies", "0"], 2, &["copies must be 1 to 64"]);
    bad(&["table", "alter", "nowhere", "--copies", "2"], 1, &["nowhere", "table list"]);
    bad(&["table", "alter", "t", "--min-in-sync", "3"], 2, &["min-in-sync"]);
    bad(&["rebalance", "--pause", "--resume"], 2, &["cannot be used with"]);
    bad(&["rebalance", "--rate", "1MiB"], 2, &["1.0 MiB", "4.0 MiB or more"]);
    bad(&["rebalance", "--rate", "much"], 2, &["much", "10MiB"]);
    assert!(nodes[0].tell(&["rebalance", "--rate", "4MiB"]).contains("takes in 4.0 MiB a second"));
    wait_or(|| nodes[1].tell(&["fragments"]), 10, || nodes[1].tell(&["fragments"]).contains("--rate none"));
    nodes[0].tell(&["table", "alter", "t", "--copies", "3"]);
    even(&nodes[0], &[("n1", 12, 4), ("n2", 12, 4), ("n3", 12, 4)]);
    assert!(nodes[0].tell(&["rebalance", "--rate", "none"]).contains("as much as it can"));
    let heavy = Node::new(&scratch, "n9", Some(net.host(3)), &[]);
    says(&heavy.ask(&["up", "--weight", "1001"]), 2, &["1001", "1000"]);
}

/// A table beside another, whatever becomes of that one.
#[test]
fn tables_lie_beside_others() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&["table", "create", "t", "--copies", "1", "--fragments", "12"]);
    nodes[0].tell(&["table", "create", "u", "--beside", "t", "--storage", "ram"]);
    even(&nodes[0], &[("n1", 8, 8), ("n2", 8, 8), ("n3", 8, 8)]);
    let together = |nodes: &[Node]| {
        let map = map(&nodes[0]);
        let lies = |t: usize| {
            let fragments = map["tables"][t]["fragments"].as_array().unwrap().iter();
            fragments.map(|f| f["in_sync"].as_array().unwrap().iter().map(|n| n.to_string()).collect::<BTreeSet<_>>())
        };
        assert!(lies(0).eq(lies(1)), "{map}");
    };
    together(&nodes);
    nodes[0].tell(&["table", "alter", "t", "--copies", "2"]);
    even(&nodes[0], &[("n1", 16, 8), ("n2", 16, 8), ("n3", 16, 8)]);
    together(&nodes);
    assert!(nodes[2].tell(&["table", "info", "u"]).contains("where those of table t do"));
    nodes[0].tell(&["table", "create", "v", "--copies", "1", "--fragments", "3"]);
    says(&nodes[0].ask(&["table", "alter", "v", "--beside", "t"]), 2, &["v cannot lie beside", "as many fragments"]);
    says(&nodes[0].ask(&["table", "alter", "t", "--beside", "u"]), 2, &["t cannot lie beside"]);
    says(&nodes[0].ask(&["table", "alter", "u", "--copies", "3"]), 2, &["u lies beside another"]);
    nodes[0].tell(&["table", "alter", "u", "--min-in-sync", "2"]);
    says(&nodes[0].ask(&["table", "alter", "t", "--copies", "1"]), 2, &["table u", "min-in-sync"]);
    nodes[0].tell(&["table", "alter", "u", "--min-in-sync", "1"]);
    says(&nodes[0].ask(&["table", "create", "w", "--beside", "nowhere"]), 2, &["nowhere", "table list"]);
    nodes[0].tell(&["table", "alter", "u", "--beside", "", "--copies", "1"]);
    // One whose neighbour is dropped lies by itself.
    nodes[0].tell(&["table", "create", "w", "--beside", "v"]);
    nodes[0].tell(&["table", "drop", "v"]);
    nodes[0].tell(&["table", "alter", "w", "--copies", "2"]);
    assert!(!nodes[0].tell(&["table", "info", "w"]).contains("lie where"));
    nodes[0].tell(&["table", "drop", "w"]);
    even(&nodes[0], &[("n1", 12, 8), ("n2", 12, 8), ("n3", 12, 8)]);
}

/// On both sides of a cut what lacks copies can be used, whoever the table began with; and when they meet nothing is lost.
#[test]
fn founders_that_gave_their_copies_away_do_not_keep_an_island_from_serving() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    let mut nodes = cluster(&scratch, &net, 2);
    nodes[0].tell(&["table", "create", "t", "--copies", "1", "--fragments", "8"]);
    for i in 0..40 {
        nodes[0].tell(&["put", "t", &format!("k{i}"), "v"]);
    }
    for host in [3, 4] {
        let mut node = Node::new(&scratch, &format!("n{host}"), Some(net.host(host)), &[]);
        node.start();
        nodes.push(node);
    }
    nodes[0].sees(4, 30);
    even(&nodes[0], &[("n1", 2, 2), ("n2", 2, 2), ("n3", 2, 2), ("n4", 2, 2)]);
    net.split(&[3, 4]);
    for (side, node) in [(0, &nodes[0]), (1, &nodes[3])] {
        for i in 0..40 {
            let key = format!("new{side}-{i}");
            wait_or(|| node.status(), 30, || node.ask(&["put", "t", &key, "w"]).status.success());
            // What is on the other side is not `not found`.
            let code = node.ask(&["get", "t", &format!("k{i}")]).status.code();
            assert!(code == Some(0) || code == Some(3), "k{i}: {code:?}");
        }
    }
    [3, 4].into_iter().for_each(|host| net.join(host));
    nodes[0].sees(4, 30);
    even(&nodes[0], &[("n1", 2, 2), ("n2", 2, 2), ("n3", 2, 2), ("n4", 2, 2)]);
    for i in 0..40 {
        for key in [format!("k{i}"), format!("new0-{i}"), format!("new1-{i}")] {
            let node = &nodes[i % 4];
            wait_or(|| format!("{key}: {}", node.status()), 30, || node.ask(&["get", "t", &key]).status.success());
        }
    }
}

/// Waits until every copy of a table is kept in this way.
fn kept(nodes: &[Node], table: &str, storage: &str) {
    let ended = || {
        let here = |node: &Node| {
            let out = node.tell(&["table", "info", table, "--json"]);
            let info: serde_json::Value = serde_json::from_str(&out).unwrap();
            info["table"]["storage"] == storage
                && info["fragments"].as_array().unwrap().iter().all(|f| f["storage"] == storage)
        };
        nodes.iter().all(here) && map(&nodes[0])["nodes"].as_array().unwrap().iter().all(|n| n["changing"] == 0)
    };
    wait_or(|| nodes[0].tell(&["fragments"]) + &nodes[0].tell(&["table", "info", table]), 60, ended);
}

#[test]
fn nothing_fails_while_a_table_changes_where_its_records_are() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = cluster(&scratch, &net, 3);
    let load = ["bench", "kv", "--name", "t", "--op", "mixed", "--clients", "8", "--seconds", "12", "--keys", "20000"];
    let load = [&load[..], &["--fragments", "6", "--value-size", "1000", "--warm", "0", "--keep", "--json"]].concat();
    std::thread::scope(|scope| {
        let report = scope.spawn(|| nodes[1].tell(&load));
        wait_or(|| nodes[0].status(), 20, || nodes[0].tell(&["table", "list"]).contains("t\t"));
        for storage in ["ram", "disc_only", "disc", "disc_only", "ram", "disc"] {
            nodes[2].tell(&["table", "alter", "t", "--storage", storage]);
            kept(&nodes, "t", storage);
        }
        let report: serde_json::Value = serde_json::from_str(&report.join().unwrap()).unwrap();
        assert_eq!(report["failed"], 0, "{report}");
    });
}

#[test]
fn a_table_comes_to_the_disc_and_leaves_it() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&["table", "create", "t", "--fragments", "6", "--storage", "ram"]);
    nodes[0].in_sync(3, 30);
    let put = |node: &Node, value: &str| {
        for i in 0..40 {
            node.tell(&["put", "t", &format!("k{i}"), value]);
        }
    };
    let holds = |nodes: &[Node], value: &str| {
        for i in 0..40 {
            assert_eq!(nodes[i % 3].tell(&["get", "t", &format!("k{i}")]), value, "k{i}");
        }
    };
    let crash = |nodes: &mut Vec<Node>| {
        nodes.iter_mut().for_each(Node::kill);
        nodes.iter_mut().for_each(Node::start);
        nodes.iter().for_each(|n| n.sees(3, 40));
        nodes[0].in_sync(3, 40);
    };
    put(&nodes[0], "ram");
    let mut last = "ram";
    for storage in ["disc", "disc_only", "disc"] {
        nodes[2].tell(&["table", "alter", "t", "--storage", storage]);
        kept(&nodes, "t", storage);
        // All at once: only the disc can have it.
        crash(&mut nodes);
        holds(&nodes, last);
        put(&nodes[0], storage);
        last = storage;
        holds(&nodes, last);
    }
    for storage in ["disc_only", "ram"] {
        nodes[2].tell(&["table", "alter", "t", "--storage", storage]);
        kept(&nodes, "t", storage);
    }
    // One after the other: the rest have it.
    for node in &mut nodes {
        node.kill();
        node.start();
        node.sees(3, 40);
        node.in_sync(3, 40);
    }
    holds(&nodes, "disc");
    // Nothing of it was left on disc.
    crash(&mut nodes);
    assert_eq!(nodes[0].ask(&["get", "t", "k1"]).status.code(), Some(1));
    says(&nodes[0].ask(&["table", "alter", "t", "--storage", "tape"]), 2, &["tape", "disc_only"]);
}

/// By what `status` says, as whoever updates the machines one after the other would.
#[test]
fn what_is_in_ram_outlives_a_restart_of_one_node_after_the_other() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&["table", "create", "t", "--fragments", "6", "--storage", "ram"]);
    nodes[0].in_sync(3, 30);
    (0..40).for_each(|i| drop(nodes[0].tell(&["put", "t", &format!("k{i}"), "v"])));
    for round in 0..3 {
        for node in &mut nodes {
            node.kill();
            node.start();
            node.sees(3, 40);
            node.in_sync(3, 40);
        }
        for i in 0..40 {
            assert_eq!(nodes[i % 3].tell(&["get", "t", &format!("k{i}")]), "v", "round {round}, k{i}");
        }
    }
}
