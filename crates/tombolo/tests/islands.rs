//! Islands on a real wire: cut, written on both sides, joined again, and every acknowledged write accounted for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Net, Node, Scratch, cluster, says, three, wait, wait_or};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// What became of writes that were acknowledged, by key: all values that may be there, or in the ledger.
type Written = BTreeMap<String, Vec<String>>;

fn put(node: &Node, key: &str, value: &str) -> bool {
    node.ask(&["put", "t", key, value]).status.success()
}

fn rows(node: &Node) -> BTreeMap<String, String> {
    let out = node.tell(&["scan", "t"]);
    out.lines().filter_map(|l| l.split_once('\t')).map(|(k, v)| (k.into(), v.into())).collect()
}

/// A field of each object of a JSON array, one object a line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.split(&format!("\"{name}\":\"")).nth(1)?;
    rest.split('"').next()
}

/// Writes keys of its own and keys that the other side writes, too.
fn write(node: &Node, side: &str, count: usize, written: &mut Written) {
    for i in 0..count {
        for key in [format!("{side}{i}"), format!("same{i}")] {
            wait(format!("{side} serves"), 20, || put(node, &key, side));
            written.entry(key).or_default().push(side.into());
        }
    }
}

fn partitioned(nodes: &[Node], missing: usize) {
    for node in nodes {
        wait_or(
            || format!("the cut is noticed: {}", node.status()),
            20,
            || {
                let status = node.status();
                let line = status.split("\"missing\":[").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("");
                line.matches("\"n").count() == missing
            },
        );
    }
}

/// Every write is the value under its key, or stands in the ledger; and all nodes show the same.
fn account(nodes: &[Node], written: &Written) {
    let all = rows(&nodes[0]);
    let out = nodes[0].ask(&["conflicts", "t", "--json"]);
    let (conflicts, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    for (key, values) in written {
        for value in values {
            let kept = all.get(key) == Some(value);
            let named = |line: &&str| line.contains(&format!("\"key\":{{\"text\":\"{key}\"}}"));
            let lost =
                conflicts.lines().filter(named).any(|l| l.contains(&format!("\"value\":{{\"text\":\"{value}\"}}")));
            assert!(
                kept || lost,
                "{value} of {key} was acknowledged and is nowhere: {:?}\n{conflicts}\n{said}",
                all.get(key)
            );
        }
    }
    for node in &nodes[1..] {
        assert_eq!(rows(node), all);
    }
}

#[test]
fn five_nodes_are_cut_three_to_two_and_account_for_every_write() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(5));
    let mut nodes = cluster(&scratch, &net, 5);
    nodes[0].tell(&["table", "create", "t", "--copies", "5", "--fragments", "4"]);
    nodes[0].in_sync(5, 40);
    let (left_dir, right_dir) = (scratch.path("left"), scratch.path("right"));
    nodes[0].mount("shared", &left_dir);
    nodes[4].mount("shared", &right_dir);
    std::fs::write(left_dir.join("before"), "before").unwrap();
    let mut written = Written::new();
    for i in 0..10 {
        assert!(put(&nodes[i % 5], &format!("before{i}"), "b"));
        written.insert(format!("before{i}"), vec!["b".into()]);
    }
    net.split(&[4, 5]);
    partitioned(&nodes[..3], 2);
    partitioned(&nodes[3..], 3);
    write(&nodes[1], "left", 15, &mut written);
    write(&nodes[3], "right", 15, &mut written);
    // What one side deletes and the other leaves alone stays deleted.
    nodes[2].tell(&["del", "t", "before0"]);
    written.remove("before0");
    std::fs::write(left_dir.join("of the left"), "left").unwrap();
    net.split(&[]);
    net.join(4);
    net.join(5);
    nodes.iter().for_each(|n| n.sees(5, 30));
    wait_or(
        || format!("all copies are level: {}", nodes[4].log()),
        30,
        || rows(&nodes[0]) == rows(&nodes[4]) && rows(&nodes[0]).len() == 9 + 15 * 3,
    );
    account(&nodes, &written);
    assert!(!rows(&nodes[0]).contains_key("before0"));
    wait("files of the other side are there", 30, || {
        let there = |file: &str| std::fs::read_to_string(right_dir.join(file)).ok();
        there("of the left") == Some("left".into()) && there("before") == Some("before".into())
    });
    let heals = nodes[2].tell(&["heals"]);
    let met = || {
        nodes
            .iter()
            .map(|n| n.log())
            .collect::<String>()
            .lines()
            .filter(|l| l.contains("islands met"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(heals.contains("15 conflicts") && heals.contains("tables"), "{heals}{}", met());
    the_ledger(&nodes, &written);
}

/// What lost can be had back, and be dropped; and stays so on all nodes.
fn the_ledger(nodes: &[Node], written: &Written) {
    let list = nodes[1].tell(&["conflicts", "t", "--json"]);
    let line = list.lines().find(|l| l.contains("\"same3\"")).expect("a conflict of same3");
    let (id, lost) =
        (field(line, "id").unwrap(), if line.contains("\"lost\":{\"node\"") { line } else { panic!("{line}") });
    let before = rows(&nodes[0])["same3"].clone();
    let other = written["same3"].iter().find(|v| **v != before).expect("the other side's value");
    assert!(lost.contains(&format!("\"text\":\"{other}\"")), "{lost}");
    nodes[3].tell(&["conflicts", "--restore", id]);
    wait("what was restored is there on the other side", 10, || rows(&nodes[0])["same3"] == *other);
    says(&nodes[0].ask(&["conflicts", "--restore", id]), 1, &["no conflict has the id"]);
    assert_eq!(nodes[4].tell(&["conflicts", "t"]).matches("  lost  ").count(), 14);
    assert_eq!(nodes[4].tell(&["conflicts", "t", "--forget", "all"]), "14 dropped\n");
    wait("nothing is listed any more", 10, || nodes[0].tell(&["conflicts", "t"]).starts_with("no conflicts"));
    says(&nodes[0].ask(&["conflicts", "t", "--restore", "xyz"]), 2, &["16 hexadecimal digits"]);
    says(&nodes[0].ask(&["conflicts", "none"]), 1, &["there is no table \"none\""]);
    says(&nodes[0].ask(&["conflicts", "--forget", "all"]), 2, &["needs the name of a table"]);
}

#[test]
fn two_nodes_are_cut_and_account_for_every_write() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    let nodes = cluster(&scratch, &net, 2);
    nodes[0].tell(&["table", "create", "t", "--fragments", "2"]);
    nodes[0].in_sync(2, 30);
    let mut written = Written::new();
    // Cut twice: what lost the first time is not lost the second time.
    for round in 0..2 {
        net.cut(2);
        partitioned(&nodes, 1);
        write(&nodes[0], &format!("left-{round}-"), 5, &mut written);
        write(&nodes[1], &format!("right-{round}-"), 5, &mut written);
        net.join(2);
        nodes.iter().for_each(|n| n.sees(2, 30));
        nodes[0].in_sync(2, 30);
        wait("both show the same", 30, || {
            rows(&nodes[0]) == rows(&nodes[1]) && rows(&nodes[0]).len() == 10 * (round + 1) + 5
        });
        // The first round's survivors are replaced knowingly in the second.
        if round == 0 {
            account(&nodes, &written);
            (0..5).for_each(|i| drop(written.remove(&format!("same{i}"))));
        }
    }
    account(&nodes, &written);
}

/// Rules other than the usual one, on a real wire.
#[test]
fn tables_merge_by_the_rules_that_they_ask_for() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    let nodes = cluster(&scratch, &net, 2);
    for rule in ["union", "keep-both", "island:n1"] {
        let name = format!("t-{}", rule.replace(':', "-"));
        nodes[0].tell(&["table", "create", &name, "--fragments", "2", "--on-conflict", rule]);
    }
    says(&nodes[0].ask(&["table", "create", "x", "--on-conflict", "island:nobody"]), 2, &["no node of that name"]);
    nodes[0].in_sync(2, 30);
    let set = |node: &Node, table: &str, value: &str| node.ask(&["put", table, "k", value]).status.success();
    assert!(set(&nodes[0], "t-union", "a\nb\nc"));
    net.cut(2);
    partitioned(&nodes, 1);
    for (node, union, other) in [(&nodes[0], "a\nb\nleft", "left"), (&nodes[1], "b\nc\nright", "right")] {
        wait("it serves", 20, || set(node, "t-union", union));
        wait("it serves", 20, || set(node, "t-keep-both", other));
        wait("it serves", 20, || set(node, "t-island-n1", other));
    }
    net.join(2);
    nodes.iter().for_each(|n| n.sees(2, 30));
    let is = |table: &str, want: &str| {
        wait_or(
            || format!("{table}: {:?}\n{}", nodes[1].ask(&["scan", table]), nodes[0].log()),
            30,
            || nodes.iter().all(|n| String::from_utf8_lossy(&n.ask(&["get", table, "k"]).stdout) == want),
        );
    };
    is("t-union", "b\nleft\nright");
    is("t-keep-both", "right");
    is("t-island-n1", "left");
    let beside = nodes[0].tell(&["scan", "t-keep-both"]);
    let key = beside.lines().find(|l| l.starts_with("k~conflict-")).and_then(|l| l.split('\t').next()).expect("both");
    for node in &nodes {
        assert_eq!(node.tell(&["get", "t-keep-both", key]), "left");
    }
    nodes[1].tell(&["del", "t-keep-both", key]);
}

/// SIGKILL to every node at once, under load; what was acknowledged with `sync` is there.
#[test]
fn all_nodes_killed_at_once_under_load_keep_what_they_acknowledged() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&["table", "create", "t", "--durability", "sync", "--fragments", "4"]);
    nodes[0].in_sync(3, 30);
    let stop = AtomicBool::new(false);
    let acknowledged: Vec<String> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|w| {
                let (node, stop) = (&nodes[w], &stop);
                scope.spawn(move || {
                    let keys = (0..).map(|i| format!("w{w}-{i}"));
                    keys.take_while(|_| !stop.load(Ordering::Relaxed)).filter(|k| put(node, k, k)).collect::<Vec<_>>()
                })
            })
            .collect();
        wait("writes are under way", 30, || rows(&nodes[0]).len() > 60);
        nodes.iter().for_each(|n| n.signal("KILL"));
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert!(acknowledged.len() > 60);
    nodes.iter_mut().for_each(Node::kill);
    nodes.iter_mut().for_each(Node::start);
    nodes.iter().for_each(|n| n.sees(3, 40));
    wait("it serves again", 30, || nodes[0].ask(&["scan", "t", "--limit", "1"]).status.success());
    let all = rows(&nodes[1]);
    for key in acknowledged {
        assert_eq!(all.get(&key), Some(&key));
    }
}

/// Two copies on five nodes, cut three to two, twice: some fragments have no copy on the smaller side.
#[test]
fn an_island_without_a_copy_takes_writes_and_says_what_it_does_not_know() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(5));
    let nodes = cluster(&scratch, &net, 5);
    nodes[0].tell(&["table", "create", "t", "--copies", "2", "--fragments", "10"]);
    nodes[0].in_sync(2, 40);
    for i in 0..40 {
        assert!(put(&nodes[i % 5], &format!("k{i}"), "before"));
    }
    // Whoever stood in once does so again.
    for round in 1..=2 {
        stand_in_and_meet(&nodes, &net, round);
    }
}

fn stand_in_and_meet(nodes: &[Node], net: &Net, round: usize) {
    let key = |i: usize| format!("k{i}");
    net.split(&[4, 5]);
    partitioned(&nodes[..3], 2);
    partitioned(&nodes[3..], 3);
    // Every key can be written on both sides.
    let mut written = Written::new();
    for i in 0..40 {
        for (node, side) in [(&nodes[1], "left"), (&nodes[4], "right")] {
            let value = format!("{side}{round}");
            wait_or(|| format!("{side} takes {}: {}", key(i), node.log()), 20, || put(node, &key(i), &value));
            written.entry(key(i)).or_default().push(value);
        }
        assert_eq!(
            nodes[3].tell(&["get", "t", &key(i)]),
            format!("right{round}"),
            "what was written here is read here"
        );
    }
    // What was not written here is not called absent: it is here, or elsewhere.
    let mut elsewhere = 0;
    for i in 0..40 {
        let out = nodes[4].ask(&["get", "t", &format!("other{i}")]);
        match out.status.code() {
            Some(1) => {}
            Some(3) => {
                elsewhere += 1;
                says(&out, 3, &["unavailable here", "on the other side of a cut"]);
                let absent = nodes[3].ask(&["put", "t", &format!("other{i}"), "x", "--if-absent"]);
                says(&absent, 3, &["on the other side of a cut"]);
            }
            other => panic!("exit status {other:?}"),
        }
    }
    assert!(elsewhere > 0, "each fragment has a copy on both sides: {}", nodes[4].tell(&["table", "info", "t"]));
    net.join(4);
    net.join(5);
    nodes.iter().for_each(|n| n.sees(5, 30));
    // Each key was written on both sides: one of the two values is there, the other in the ledger.
    wait_or(
        || format!("they meet: {}", nodes[4].log()),
        40,
        || {
            let shown: Vec<_> = nodes.iter().map(|n| n.ask(&["scan", "t"])).collect();
            let conflicts = nodes[0].ask(&["conflicts", "t"]);
            shown.iter().all(|out| out.status.success() && out.stdout == shown[0].stdout)
                && conflicts.stderr.is_empty()
                && String::from_utf8_lossy(&conflicts.stdout).matches("  lost  ").count() >= 40 * round
        },
    );
    // Nobody stands in any more, and nothing is elsewhere.
    wait("stand-ins go", 30, || {
        let info = nodes[4].tell(&["table", "info", "t", "--json"]);
        nodes[4].ask(&["get", "t", "other1"]).status.code() == Some(1) && info.contains("\"index\":9")
    });
    account(nodes, &written);
}

/// Two clusters that were formed apart, with one secret and a table of the same name.
#[test]
fn clusters_that_were_formed_apart_become_one() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    net.split(&[3, 4]);
    let mut nodes: Vec<Node> =
        (1..=4u8).map(|i| Node::new(&scratch, &format!("n{i}"), Some(net.host(i)), &[])).collect();
    nodes.iter_mut().for_each(Node::start);
    nodes.iter().for_each(|n| n.sees(2, 40));
    let mut written = Written::new();
    for (node, side) in [(&nodes[0], "left"), (&nodes[2], "right")] {
        node.tell(&["table", "create", "t", "--fragments", "2"]);
        write(node, side, 10, &mut written);
    }
    nodes[0].tell(&["table", "create", "mine", "--copies", "1"]);
    nodes[2].tell(&["table", "create", "mine", "--copies", "1", "--fragments", "4"]);
    assert!(nodes[0].ask(&["put", "mine", "k", "left"]).status.success());
    assert!(nodes[2].ask(&["put", "mine", "k", "right"]).status.success());
    net.join(3);
    net.join(4);
    nodes.iter().for_each(|n| n.sees(4, 40));
    wait_or(
        || format!("they become one: {}", nodes[0].log()),
        30,
        || rows(&nodes[0]).len() == 30 && nodes.iter().all(|n| rows(n) == rows(&nodes[0])),
    );
    account(&nodes, &written);
    wait("they say so", 10, || nodes.iter().any(|n| n.log().contains("formed apart")));
    // Two tables of one name and two shapes: both are there.
    let tables = nodes[1].tell(&["table", "list"]);
    let other = tables.lines().find_map(|l| l.split_whitespace().find(|w| w.starts_with("mine~conflict-")));
    let other = other.unwrap_or_else(|| panic!("the other table is gone: {tables}")).trim_end_matches(',');
    wait("both serve", 20, || {
        let get = |table: &str| String::from_utf8_lossy(&nodes[3].ask(&["get", table, "k"]).stdout).into_owned();
        let both = [get("mine"), get(other)];
        both.contains(&"left".into()) && both.contains(&"right".into())
    });
    // A table that both made is one, and when it is dropped neither side's description of it brings it back.
    for table in [other, "t"] {
        nodes[1].tell(&["table", "drop", table]);
        let named = |list: &str| list.split_whitespace().any(|w| w.trim_end_matches(',').starts_with(table));
        wait_or(|| nodes[3].tell(&["table", "list"]), 10, || !named(&nodes[3].tell(&["table", "list"])));
    }
    assert!(nodes[3].tell(&["table", "list"]).contains("mine"));
}

/// Dropped on one side of a cut, written on the other: what was acknowledged turns up under a name of its own.
#[test]
fn what_is_written_to_a_table_that_the_other_side_drops_is_not_lost() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    let nodes = cluster(&scratch, &net, 2);
    for table in ["t", "idle", "kept"] {
        nodes[0].tell(&["table", "create", table, "--fragments", "2"]);
        wait("it serves", 20, || nodes[0].ask(&["put", table, "before", "b"]).status.success());
    }
    nodes[0].in_sync(2, 30);
    net.cut(2);
    partitioned(&nodes, 1);
    wait("it serves", 20, || put(&nodes[1], "after", "a"));
    nodes[0].tell(&["table", "drop", "t"]);
    nodes[0].tell(&["table", "drop", "idle"]);
    // One that is dropped here and changed there, later, lives on.
    nodes[0].tell(&["table", "drop", "kept"]);
    nodes[1].tell(&["table", "alter", "kept", "--ttl", "1h"]);
    net.join(2);
    nodes.iter().for_each(|n| n.sees(2, 30));
    let shown = |n: &Node| -> Vec<String> {
        let list = n.tell(&["status", "--json"]);
        list.split("\"name\":\"")
            .skip(1)
            .filter_map(|l| l.split('"').next())
            .filter(|w| w.contains("~dropped-"))
            .map(String::from)
            .collect()
    };
    wait_or(
        || format!("it turns up: {}\n{}", nodes[1].status(), nodes[1].log()),
        30,
        || nodes.iter().all(|n| shown(n).len() == 1),
    );
    let name = shown(&nodes[0])[0].clone();
    assert!(name.starts_with("t~dropped-"), "{name}");
    wait("what was written is there", 20, || {
        nodes.iter().all(|n| String::from_utf8_lossy(&n.ask(&["get", &name, "after"]).stdout) == "a")
    });
    assert!(!nodes[0].ask(&["get", "t", "after"]).status.success(), "the table itself is gone");
    // A table of the old name is another one; and what turned up can be dropped, too.
    nodes[1].tell(&["table", "create", "t", "--fragments", "2"]);
    wait("the new one is empty", 20, || nodes[0].ask(&["get", "t", "after"]).status.code() == Some(1));
    nodes[1].tell(&["table", "drop", &name]);
    wait("it is gone", 20, || nodes.iter().all(|n| shown(n).is_empty()));
    wait("the table that was changed has what it had", 20, || {
        nodes.iter().all(|n| n.ask(&["get", "kept", "before"]).stdout == b"b")
    });
}

/// A side on which nothing was written has nothing to give: it is merged as soon as any, and not asked for it again and again.
#[test]
fn a_node_that_slept_is_back_at_once_though_nothing_happened_meanwhile() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t", "--fragments", "12", "--copies", "3"]);
    nodes[0].in_sync(3, 40);
    nodes[2].signal("STOP");
    partitioned(&nodes[..2], 1);
    // The others lead what it led.
    nodes[0].in_sync(2, 30);
    nodes[2].signal("CONT");
    nodes.iter().for_each(|n| n.sees(3, 40));
    // Far less than the longest that a heal that does not get on is waited for.
    nodes.iter().for_each(|n| n.in_sync(3, 30));
    for node in &nodes {
        wait_or(|| node.status(), 30, || node.status().contains("\"healing\":null"));
    }
}
