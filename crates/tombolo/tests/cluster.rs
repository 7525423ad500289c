//! Real clusters in network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Net, Node, Scratch, three, wait, write_secret};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Puts a record through any node; the exit status.
fn put(node: &Node, table: &str, key: &str, value: &str) -> i32 {
    node.ask(&["put", table, key, value]).status.code().unwrap()
}

fn rows(node: &Node, table: &str) -> BTreeMap<String, String> {
    let out = node.tell(&["scan", table]);
    out.lines().filter_map(|l| l.split_once('\t')).map(|(k, v)| (k.into(), v.into())).collect()
}

#[test]
fn three_nodes_find_each_other_by_multicast_and_one_with_another_cookie_never_appears() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    write_secret(&scratch.path("other"), "another secret");
    let mut stranger = Node::new(&scratch, "stranger", Some(net.host(4)), &["--join", "10.74.0.1:7474"]);
    stranger = stranger.cookie(scratch.path("other"));
    stranger.start();
    let nodes = three(&scratch, &net);
    // It has been heard, and counted, and nothing else.
    wait("the stranger is counted", 30, || !nodes[0].status().contains("\"foreign\":0"));
    for node in &nodes {
        assert!(!node.status().contains("stranger"), "{}", node.status());
        assert!(!node.log().contains("stranger"), "{}", node.log());
    }
    stranger.sees(1, 10);
    assert!(stranger.status().contains("\"state\":\"solo\""));
}

#[test]
fn a_killed_node_leaves_the_view_and_catches_up_when_it_is_back() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t", "--fragments", "4"]);
    nodes[0].in_sync(3, 30);
    for i in 0..50 {
        assert_eq!(put(&nodes[i % 3], "t", &format!("before{i}"), "x"), 0);
    }
    // Killed in the middle of writing: the others go on.
    let mut acknowledged = Vec::new();
    for i in 0..60 {
        if i == 20 {
            nodes[2].kill();
        }
        let key = format!("during{i}");
        match put(&nodes[i % 2], "t", &key, "y") {
            0 => acknowledged.push(key),
            // Its leader died with it: honest, and rare.
            5 => {}
            other => panic!("exit status {other} for {key}"),
        }
    }
    assert!(acknowledged.len() >= 55, "{} of 60 were acknowledged", acknowledged.len());
    wait("the killed node is out of view", 15, || nodes[0].status().contains("\"state\":\"partitioned\""));
    nodes[2].start();
    nodes[2].sees(3, 30);
    nodes[0].in_sync(3, 30);
    // Its copies are the same: alone it shows what the others had shown.
    let all = rows(&nodes[0], "t");
    nodes[0].kill();
    nodes[1].kill();
    wait("it serves alone", 30, || nodes[2].ask(&["get", "t", "before0"]).status.success());
    assert_eq!(rows(&nodes[2], "t"), all);
    for key in acknowledged {
        assert!(all.contains_key(&key), "{key} was acknowledged and is gone");
    }
}

#[test]
fn all_killed_at_once_come_back_with_every_sync_write() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t", "--durability", "sync", "--fragments", "4"]);
    nodes[0].in_sync(3, 30);
    let keys: Vec<String> = (0..60).map(|i| format!("k{i}")).collect();
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(put(&nodes[i % 3], "t", key, key), 0);
    }
    nodes.iter_mut().for_each(Node::kill);
    nodes.iter_mut().for_each(Node::start);
    nodes.iter().for_each(|n| n.sees(3, 40));
    wait("it serves again", 30, || nodes[0].ask(&["scan", "t", "--limit", "1"]).status.success());
    let all = rows(&nodes[1], "t");
    assert_eq!(all.len(), keys.len());
    assert!(keys.iter().all(|k| all.get(k) == Some(k)));
}

#[test]
fn both_sides_of_a_cut_serve_and_meet_again_with_all_writes() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t", "--fragments", "2"]);
    nodes[0].in_sync(3, 30);
    assert_eq!(put(&nodes[0], "t", "same", "before"), 0);
    net.cut(3);
    wait("the cut is noticed on both sides", 20, || {
        nodes[0].status().contains("\"missing\":[\"n3\"]") && nodes[2].status().contains("\"missing\":[\"n1\",\"n2\"]")
    });
    let mut written = BTreeMap::new();
    for i in 0..20 {
        for (side, node) in [("left", &nodes[0]), ("right", &nodes[2])] {
            let key = format!("{side}{i}");
            wait(format!("{side} serves"), 20, || put(node, "t", &key, side) == 0);
            written.insert(key, side.to_string());
        }
    }
    assert_eq!(put(&nodes[1], "t", "same", "left"), 0);
    assert_eq!(put(&nodes[2], "t", "same", "right"), 0);
    net.join(3);
    nodes.iter().for_each(|n| n.sees(3, 40));
    nodes[0].in_sync(3, 40);
    for node in &nodes {
        let all = rows(node, "t");
        for (key, value) in &written {
            assert_eq!(all.get(key), Some(value), "{key} at {}", node.data.display());
        }
        assert_eq!(all.get("same").map(String::as_str), Some("right"), "the later write stays");
    }
}

/// Real files, at least so many: the sources of the crates that this was built from, or the system's headers and documents.
fn tree(into: &Path, least: usize) {
    let mut count = 0;
    let mut stack = vec![std::path::PathBuf::from("/usr/share"), "/usr/include".into(), "/usr/lib/python3".into()];
    while let Some(dir) = stack.pop() {
        let Ok(list) = std::fs::read_dir(&dir) else { continue };
        for entry in list.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() {
                stack.push(path);
            } else if kind.is_file() && entry.metadata().is_ok_and(|m| m.len() < 200_000) && count < least {
                let target = into.join(path.strip_prefix("/usr").unwrap());
                std::fs::create_dir_all(target.parent().unwrap()).unwrap();
                std::fs::copy(&path, target).unwrap();
                count += 1;
            }
        }
    }
    assert!(count >= least, "only {count} real files found under /usr");
}

#[test]
fn a_tree_of_three_thousand_files_reads_back_the_same_through_another_mount() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = three(&scratch, &net);
    let (source, one, two) = (scratch.path("source"), scratch.path("one"), scratch.path("two"));
    tree(&source, 3000);
    nodes[0].mount("shared", &one);
    nodes[1].mount("shared", &two);
    let copy = Command::new("cp").arg("-a").arg(&source).arg(one.join("tree")).status().unwrap();
    assert!(copy.success());
    let same = Command::new("diff").arg("-r").arg(&source).arg(two.join("tree")).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    // What is killed and started again can be mounted again, over its own dead mount point.
    nodes[1].kill();
    assert!(std::fs::metadata(&two).is_err(), "a dead mount point");
    nodes[1].start();
    nodes[1].sees(3, 30);
    nodes[1].mount("shared", &two);
    let part = std::fs::read_dir(&source).unwrap().next().unwrap().unwrap().file_name();
    let count = |dir: &Path| Command::new("find").arg(dir).output().unwrap().stdout.split(|b| *b == b'\n').count();
    assert_eq!(count(&two.join("tree").join(&part)), count(&source.join(&part)));
}

/// What its disc got last must be in order: else it would refuse to start.
#[test]
fn a_node_that_is_stopped_under_load_starts_again() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = three(&scratch, &net);
    let (stopped, others) = nodes.split_first_mut().unwrap();
    let others = &*others;
    std::thread::scope(|scope| {
        let args = ["bench", "kv", "--clients", "32", "--keys", "1000", "--warm", "0", "--seconds", "8", "--json"];
        let load = scope.spawn(move || others[0].ask(&args));
        for _ in 0..2 {
            let busy =
                || String::from_utf8_lossy(&others[1].ask(&["table", "info", "tombolo-bench"]).stdout).into_owned();
            wait("the load is on", 20, || busy().contains("1000 records"));
            assert_eq!(stopped.terminate(), Some(0), "{}", stopped.log());
            stopped.start();
            stopped.sees(3, 30);
        }
        assert!(load.join().unwrap().status.success());
    });
    assert!(!stopped.log().contains("damaged"), "{}", stopped.log());
}
