//! What happened, as a user is told of it.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

#[macro_use]
mod common;

use common::*;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines of a command that goes on, as they come.
fn follow(node: &Node, args: &[&str]) -> (Follower, std::sync::mpsc::Receiver<String>) {
    let mut command = Command::new(BIN);
    let child = command.arg("--data").arg(&node.data).args(args).stdout(Stdio::piped()).stdin(Stdio::null());
    let mut child = child.spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    (Follower(child), lines)
}

#[test]
fn what_happens_anywhere_is_told_everywhere() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = cluster(&scratch, &net, 3);
    // All of it, in the order of time, from each of them.
    let all = nodes[2].tell(&["events"]);
    for name in ["n1", "n2", "n3"] {
        assert!(all.lines().any(|l| l.contains(&format!("  {name} ")) && l.contains("ready with")), "{all}");
    }
    let times: Vec<&str> = all.lines().map(|l| l.split(' ').next().unwrap()).collect();
    assert!(times.is_sorted(), "{all}");
    let one = nodes[0].tell(&["events", "--node", "n2", "--limit", "1"]);
    assert!(one.lines().count() == 1 && one.contains("  n2 "), "{one}");
    says(&nodes[0].ask(&["events", "--node", "n9"]), 4, &["n9", "tombolo nodes"]);

    let (_follower, lines) = follow(&nodes[0], &["events", "--follow", "--json", "--limit", "1"]);
    let mut seen = Vec::new();
    let mut comes = |what: &str, of: &str| {
        wait_or(
            || format!("{what} of {of}"),
            30,
            || {
                seen.extend(lines.try_iter().map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap()));
                seen.iter().any(|event| {
                    event["node"] == of && event["text"].as_str().unwrap().contains(what) && event["at_ms"].is_u64()
                })
            },
        );
    };
    net.split(&[3]);
    comes("n3 is out of view", "n1");
    comes("the cluster is partitioned", "n2");
    // The side that was away is told of when it is back.
    net.join(3);
    comes("n1 is in view", "n3");
    let text = nodes[0].tell(&["events", "--json", "--node", "n1"]);
    let numbers: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["number"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted() && numbers.windows(2).all(|two| two[0] < two[1]), "each once: {numbers:?}");
}

/// What Prometheus would read: every line of a known family, whose kind is said before it; and true.
#[test]
fn what_is_counted_is_told_in_a_form_that_others_read() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n1");
    node.tell(&["table", "create", "t", "--fragments", "1", "--max-records", "3", "--evict", "lru"]);
    wait("the table serves", 20, || node.ask(&["put", "t", "a", "v"]).status.success());
    (0..5).for_each(|i| drop(node.tell(&["put", "t", &i.to_string(), "v"])));
    assert_eq!(node.ask(&["get", "t", "a"]).status.code(), Some(1));
    node.tell(&["get", "t", "4"]);
    let text = node.tell(&["metrics"]);
    let mut kinds = std::collections::BTreeMap::new();
    let mut samples = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (what, value) = line.rsplit_once(' ').unwrap();
            let name = what.split('{').next().unwrap();
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let kind = kinds.get(name).or(plain.and_then(|plain| kinds.get(plain)));
            assert!(kind.is_some(), "{line} comes before its kind");
            assert!(what.contains("{node=\"n1\""), "{line}");
            assert!(samples.insert(what.to_string(), value.parse::<f64>().unwrap()).is_none(), "{what} twice");
        }
    }
    let of = |what: &str| samples.get(what).copied().unwrap_or_else(|| panic!("{what}: {text}"));
    assert_eq!(of("tombolo_table_records{node=\"n1\",table=\"t\"}"), 3.0);
    assert_eq!(of("tombolo_table_evicted_total{node=\"n1\",table=\"t\"}"), 3.0);
    assert_eq!(of("tombolo_table_fullness_ratio{node=\"n1\",table=\"t\"}"), 1.0);
    assert_eq!(of("tombolo_table_reads_found_total{node=\"n1\",table=\"t\"}"), 1.0);
    assert_eq!(of("tombolo_table_reads_missed_total{node=\"n1\",table=\"t\"}"), 1.0);
    assert_eq!((of("tombolo_nodes_in_view{node=\"n1\"}"), of("tombolo_partitioned{node=\"n1\"}")), (1.0, 0.0));
    assert!(of("tombolo_memory_used_bytes{node=\"n1\"}") < of("tombolo_memory_max_bytes{node=\"n1\"}"));
    assert!(of("tombolo_op_seconds_count{node=\"n1\",op=\"write\"}") >= 6.0);
    assert_eq!(
        of("tombolo_op_seconds_bucket{node=\"n1\",op=\"write\",le=\"+Inf\"}"),
        of("tombolo_op_seconds_count{node=\"n1\",op=\"write\"}")
    );
    assert!(of("tombolo_events_total{node=\"n1\",grade=\"info\",kind=\"ready\"}") >= 1.0);
}
