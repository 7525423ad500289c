//! The edges of discovery and membership, on real machines' terms: IPv6 alone, an address that changes, secrets that are
//! changed while all runs, floods, and a process that is stopped for a while.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Net, Node, Scratch, says, three, wait, write_secret};
use std::process::Command;

fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().unwrap();
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn machines_with_nothing_but_ipv6_find_each_other() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    for host in 1..=2 {
        ip(&["-n", &net.host(host), "-4", "addr", "flush", "dev", "eth0"]);
        let addr = format!("fd74::{host}/64");
        ip(&["-n", &net.host(host), "addr", "add", &addr, "dev", "eth0", "nodad"]);
    }
    let mut nodes: Vec<Node> =
        (1..=2u8).map(|i| Node::new(&scratch, &format!("n{i}"), Some(net.host(i)), &[])).collect();
    nodes.iter_mut().for_each(Node::start);
    nodes.iter().for_each(|n| n.sees(2, 40));
    wait("the roster has global addresses", 20, || {
        let status = nodes[0].status();
        status.contains("[fd74::1]:7474") && status.contains("[fd74::2]:7474")
    });
    nodes[0].tell(&["table", "create", "t"]);
    nodes[0].in_sync(2, 30);
    assert!(nodes[1].ask(&["put", "t", "k", "v"]).status.success());
    assert_eq!(nodes[0].tell(&["get", "t", "k"]), "v");
}

#[test]
fn a_machine_whose_address_changes_is_found_again() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t"]);
    nodes[0].in_sync(3, 30);
    ip(&["-n", &net.host(3), "addr", "del", "10.74.0.3/24", "dev", "eth0"]);
    ip(&["-n", &net.host(3), "addr", "add", "10.74.0.33/24", "dev", "eth0"]);
    // The kernel takes the routes of the old address along.
    let _ = Command::new("ip").args(["-n", &net.host(3), "route", "add", "224.0.0.0/4", "dev", "eth0"]).output();
    let why = || format!("the roster says where it is now: {}\n{}", nodes[0].status(), nodes[2].log());
    common::wait_or(why, 30, || nodes[0].status().contains("10.74.0.33:7474"));
    nodes.iter().for_each(|n| n.sees(3, 60));
    nodes[0].in_sync(3, 60);
    assert!(nodes[2].ask(&["put", "t", "k", "v"]).status.success());
    assert_eq!(nodes[0].tell(&["get", "t", "k"]), "v");
}

#[test]
fn a_fleet_changes_its_secret_one_node_at_a_time() {
    let scratch = Scratch::new();
    write_secret(&scratch.path("new"), "another secret altogether");
    let (old, new) = (scratch.path("cookie"), scratch.path("new"));
    // Fixed ports, so that a node that starts anew is found where it was.
    let port = |i: usize| 17_900 + (std::process::id() % 50) as u16 * 3 + i as u16;
    let listen = |i: usize| format!("127.0.0.1:{}", port(i));
    let join = (0..3).map(listen).collect::<Vec<_>>().join(",");
    let run = |i: usize, cookie: &std::path::Path, accept: Option<&std::path::Path>| {
        let (name, listen) = (format!("n{i}"), listen(i));
        let mut args = vec!["--no-multicast", "--listen", &listen, "--join", &join];
        let accept = accept.map(|path| path.to_string_lossy().into_owned());
        args.extend(accept.iter().flat_map(|path| ["--accept-cookie-file", path.as_str()]));
        let mut node = Node::new(&scratch, &name, None, &args).cookie(cookie.into());
        node.start();
        node
    };
    let mut nodes: Vec<Node> = (0..3).map(|i| run(i, &old, None)).collect();
    nodes.iter().for_each(|n| n.sees(3, 30));
    nodes[0].tell(&["table", "create", "t"]);
    nodes[0].in_sync(3, 30);
    // All learn to take the new one; then each changes over; then the old one goes.
    for (cookie, accept) in [(&old, Some(&*new)), (&new, Some(&*old)), (&new, None)] {
        for i in 0..3 {
            assert_eq!(nodes[i].terminate(), Some(0));
            nodes[i] = run(i, cookie, accept);
            nodes.iter().for_each(|n| n.sees(3, 30));
            nodes[0].in_sync(3, 30);
            assert!(nodes[(i + 1) % 3].ask(&["put", "t", &format!("{i}"), "v"]).status.success());
        }
    }
    let late = run(4, &old, None);
    late.sees(1, 20);
    nodes.iter().for_each(|n| assert!(!n.status().contains("\"n4\""), "{}", n.status()));
    let missing = Node::new(&scratch, "x", None, &[]);
    let out = missing.ask(&["up", "--accept-cookie-file", "/nowhere"]);
    assert_eq!(out.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nowhere"));
}

#[test]
fn a_flood_from_strangers_costs_a_line_and_no_service() {
    let scratch = Scratch::new();
    let node = common::alone(&scratch, "n");
    common::table(&node);
    let to = common::listen(&node);
    for sender in 0..40 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..500u32 {
            // Some look like a packet of another cookie, some like nothing.
            let mut packet = if n % 2 == 0 { foreign() } else { vec![0; 64] };
            packet.extend(n.to_le_bytes());
            let _ = socket.send_to(&packet, to);
        }
        assert!(node.ask(&["put", "t", &format!("k{sender}"), "v"]).status.success());
    }
    wait("it is counted", 10, || !node.status().contains("\"foreign\":0"));
    let said = node.log().matches("another cookie or group").count();
    assert_eq!(said, 1, "{}", node.log());
}

/// A packet sealed with a key that is not the node's.
fn foreign() -> Vec<u8> {
    let keys = wire::Keys::derive(b"not the secret", "default");
    let header =
        wire::Header { node: base::NodeId(77), incarnation: 1, counter: 1, sent: base::WallMs(1_700_000_000_000) };
    wire::seal(&keys, wire::Kind::Swim, &header, b"payload", [5; 24])
}

#[test]
fn a_process_that_was_stopped_shows_nothing_old() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t", "--fragments", "1"]);
    nodes[0].in_sync(3, 30);
    for round in 0..3 {
        let (paused, other) = (round, (round + 1) % 3);
        let value = format!("v{round}");
        assert!(nodes[paused].ask(&["put", "t", "k", &format!("old{round}")]).status.success());
        // It leads, or holds a lease, or neither; then it stands still.
        assert!(nodes[paused].tell(&["get", "t", "k"]).starts_with("old"));
        nodes[paused].signal("STOP");
        let put = || nodes[other].ask(&["put", "t", "k", &value]).status.success();
        wait("the others take a write without it", 30, put);
        nodes[paused].signal("CONT");
        // The very first thing that it says, and all after it.
        for _ in 0..20 {
            let out = nodes[paused].ask(&["get", "t", "k"]);
            if out.status.success() {
                assert_eq!(String::from_utf8_lossy(&out.stdout), value);
            }
        }
        nodes.iter().for_each(|n| n.sees(3, 30));
        nodes[0].in_sync(3, 30);
        assert_eq!(nodes[paused].tell(&["get", "t", "k"]), value);
    }
}

#[test]
fn a_node_that_comes_and_goes_is_named_and_keeps_nobody_from_writing() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = three(&scratch, &net);
    nodes[0].tell(&["table", "create", "t"]);
    nodes[0].in_sync(3, 30);
    for round in ["1", "2", "3"] {
        nodes[2].kill();
        let missed = |n: &Node| n.status().contains("\"missing\":[\"n3\"]");
        wait("its going is noticed", 20, || nodes[..2].iter().all(missed));
        wait("others write", 10, || nodes[1].ask(&["put", "t", round, "v"]).status.success());
        nodes[2].start();
        nodes.iter().for_each(|n| n.sees(3, 20));
    }
    assert!(nodes[..2].iter().all(|n| n.log().contains("n3 comes and goes")));
    nodes[0].in_sync(3, 30);
    assert_eq!(nodes[2].tell(&["get", "t", "3"]), "v");
}

/// The same by commands: what lies beside the secret is accepted, too.
#[test]
fn a_fleet_turns_to_another_secret_without_a_break() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    let paths = ["one", "two"].map(|name| scratch.path(name));
    paths.iter().for_each(|path| common::write_secret(path, "the first\n"));
    let node = |i: usize| {
        Node::new(&scratch, &format!("n{}", i + 1), Some(net.host(i as u8 + 1)), &[]).cookie(paths[i].clone())
    };
    let mut nodes = [node(0), node(1)];
    nodes.iter_mut().for_each(Node::start);
    nodes.iter().for_each(|n| n.sees(2, 30));
    let ask = |nodes: &[Node], i: usize, args: &[&str]| {
        let file = paths[i].to_string_lossy().into_owned();
        nodes[i].ask(&[&["cookie"], args, &["--cookie-file", &file]].concat())
    };
    says(&ask(&nodes, 0, &["turn"]), 1, &["there is no next secret"]);
    says(&ask(&nodes, 0, &["drop"]), 1, &["nothing was changed"]);
    let made = scratch.path("one.next").to_string_lossy().into_owned();
    let again = |nodes: &mut [Node], i: usize| {
        nodes[i].terminate();
        nodes[i].start();
        nodes.iter().for_each(|n| n.sees(2, 30));
    };
    for (i, args) in [(0, vec!["next"]), (1, vec!["next", "--from", &made])] {
        assert!(ask(&nodes, i, &args).status.success());
        again(&mut nodes, i);
    }
    says(&ask(&nodes, 0, &["next"]), 1, &["is there already"]);
    for step in ["turn", "drop"] {
        for i in 0..2 {
            let out = ask(&nodes, i, &[step]);
            assert!(out.status.success(), "{step}: {}", String::from_utf8_lossy(&out.stderr));
            again(&mut nodes, i);
        }
    }
    let marks = [0, 1].map(|i| {
        let shown = String::from_utf8_lossy(&ask(&nodes, i, &["show"]).stdout).into_owned();
        assert_eq!(shown.lines().count(), 1, "{shown}");
        shown.split_whitespace().nth(1).map(String::from)
    });
    assert_eq!(marks[0], marks[1]);
    assert_ne!(std::fs::read_to_string(&paths[0]).unwrap(), "the first\n");
}
