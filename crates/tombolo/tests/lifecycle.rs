//! Nodes that go for good, and what operators say of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Net, Node, Scratch, cluster, says, wait, wait_or};

fn nodes_of(node: &Node) -> String {
    node.tell(&["nodes"])
}

/// The line of `nodes` that begins so.
fn line(node: &Node, name: &str) -> String {
    let all = nodes_of(node);
    all.lines().find(|l| l.split_whitespace().next() == Some(name)).unwrap_or_default().to_string()
}

#[test]
fn a_condemned_node_is_buried_and_what_it_held_is_made_elsewhere() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    let mut nodes = cluster(&scratch, &net, 4);
    nodes[0].tell(&["table", "create", "t", "--copies", "3", "--fragments", "4"]);
    nodes[0].in_sync(3, 30);
    for i in 0..40 {
        nodes[0].tell(&["put", "t", &format!("k{i}"), "v"]);
    }
    // Who is there is not gone.
    says(&nodes[0].ask(&["condemn", "n4"]), 1, &["n4 is in view", "tombolo leave n4"]);
    says(&nodes[0].ask(&["condemn", "n9"]), 1, &["there is no node \"n9\"", "tombolo nodes"]);
    says(&nodes[0].ask(&["admit", "n4"]), 1, &["n4 is not condemned"]);
    nodes[3].kill();
    wait("n4 is missed", 20, || line(&nodes[1], "n4").contains("ago"));
    nodes[1].tell(&["condemn", "n4"]);
    wait_or(|| nodes_of(&nodes[0]), 40, || line(&nodes[0], "n4").contains("buried"));
    assert!(line(&nodes[0], "n4").contains("an operator said that it is gone for good"));
    says(&nodes[0].ask(&["condemn", "n4"]), 1, &["buried already"]);
    // It is missed no more, and its copies are made elsewhere.
    for node in &nodes[..3] {
        wait("whole without it", 20, || node.tell(&["status"]).contains("whole"));
    }
    wait_or(
        || nodes[0].tell(&["table", "info", "t"]),
        30,
        || {
            let info = nodes[0].tell(&["table", "info", "t"]);
            !info.contains("n4") && nodes[0].status().contains("\"led\":4,\"in_sync\":3")
        },
    );
    for i in 0..10 {
        nodes[0].tell(&["del", "t", &format!("k{i}")]);
    }
    // It comes back with its old directory: it is told, comes anew, and what was deleted meanwhile stays deleted.
    nodes[3].start();
    wait_or(|| nodes[3].log(), 30, || nodes[3].log().contains("had buried this one"));
    nodes.iter().for_each(|node| node.sees(4, 30));
    wait_or(|| nodes_of(&nodes[0]), 20, || line(&nodes[0], "n4").contains("up"));
    wait("n1 says so", 10, || nodes[0].log().contains("n4, which was buried, is back"));
    nodes[0].in_sync(3, 30);
    for i in 0..40 {
        let key = format!("k{i}");
        for node in &nodes {
            let found = if i < 10 { Some(1) } else { Some(0) };
            wait(format!("{key} at each node"), 10, || node.ask(&["get", "t", &key]).status.code() == found);
        }
    }
}

/// Two of five are cut off and given up while they go on serving. They come back as they are.
#[test]
fn a_minority_that_was_buried_comes_back_without_a_restart_and_loses_nothing() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(5));
    let nodes = cluster(&scratch, &net, 5);
    nodes[0].tell(&["table", "create", "t", "--copies", "5", "--fragments", "4"]);
    nodes[0].in_sync(5, 30);
    for i in 0..20 {
        nodes[0].tell(&["put", "t", &format!("old{i}"), "v"]);
    }
    let pids: Vec<u32> = nodes.iter().map(Node::pid).collect();
    net.split(&[4, 5]);
    for name in ["n4", "n5"] {
        wait("it is missed", 20, || line(&nodes[1], name).contains("ago"));
        wait("it is condemned", 20, || nodes[1].ask(&["condemn", name]).status.success());
    }
    for name in ["n4", "n5"] {
        wait_or(|| nodes_of(&nodes[0]), 40, || line(&nodes[0], name).contains("buried"));
    }
    let put = |node: &Node, key: String, value: &str| {
        wait_or(|| node.status(), 20, || node.ask(&["put", "t", &key, value]).status.success());
    };
    for i in 0..20 {
        put(&nodes[3], format!("theirs{i}"), "v");
        put(&nodes[0], format!("ours{i}"), "v");
    }
    nodes[0].tell(&["del", "t", "old1"]);
    wait("they serve", 20, || nodes[4].ask(&["del", "t", "old2"]).status.success());
    (4..=5).for_each(|host| net.join(host));
    nodes.iter().for_each(|node| node.sees(5, 60));
    wait_or(|| nodes_of(&nodes[0]), 60, || ["n4", "n5"].iter().all(|name| line(&nodes[0], name).contains("up")));
    nodes[0].in_sync(5, 60);
    assert_eq!(pids, nodes.iter().map(Node::pid).collect::<Vec<_>>(), "nobody was restarted");
    for node in &nodes {
        for i in 0..20 {
            for (key, there) in
                [(format!("old{i}"), i != 1 && i != 2), (format!("theirs{i}"), true), (format!("ours{i}"), true)]
            {
                let code = if there { Some(0) } else { Some(1) };
                assert_eq!(node.ask(&["get", "t", &key]).status.code(), code, "{key}");
            }
        }
    }
}

/// It goes by itself when others have all that it had.
#[test]
fn a_node_leaves_and_its_copies_move_away_first() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&["table", "create", "t", "--copies", "1", "--fragments", "12"]);
    nodes[0].in_sync(1, 30);
    for i in 0..60 {
        nodes[0].tell(&["put", "t", &format!("k{i}"), "v"]);
    }
    let gone = nodes[2].ask(&["leave"]);
    let said = String::from_utf8_lossy(&gone.stdout);
    let why = String::from_utf8_lossy(&gone.stderr);
    assert!(gone.status.success() && said.contains("copies have others to do their work"), "{said} {why}");
    assert!(said.ends_with("n3 has left\n"), "{said}");
    wait("its process has ended", 10, || !nodes[2].is_running());
    for node in &nodes[..2] {
        wait_or(
            || nodes_of(node),
            20,
            || line(node, "n3").contains("buried") && node.tell(&["status"]).contains("whole"),
        );
        for i in 0..60 {
            assert_eq!(node.tell(&["get", "t", &format!("k{i}")]), "v");
        }
    }
    assert!(nodes[0].status().contains("\"led\":12"));
    says(&nodes[0].ask(&["leave", "n3"]), 1, &["buried already"]);
    nodes[0].kill();
    wait("n1 is missed", 20, || line(&nodes[1], "n1").contains("ago"));
    says(&nodes[1].ask(&["leave", "n1"]), 1, &["n1 is not in view", "condemn n1"]);
    says(&nodes[1].ask(&["leave"]), 1, &["n2 is the last node here"]);
    // It may come again.
    nodes[0].start();
    nodes[2].start();
    nodes.iter().for_each(|node| node.sees(3, 40));
}

/// The copies of a node that is away are made elsewhere after a while, and there are not too many when it is back.
#[test]
fn copies_are_replaced_while_a_node_is_away_and_trimmed_when_it_is_back() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    let args = ["--replace-after", "30s"];
    let mut nodes: Vec<Node> =
        (1..=4).map(|i| Node::new(&scratch, &format!("n{i}"), Some(net.host(i)), &args)).collect();
    nodes.iter_mut().for_each(Node::start);
    nodes.iter().for_each(|node| node.sees(4, 30));
    nodes[0].tell(&["table", "create", "t", "--copies", "3", "--fragments", "4"]);
    nodes[0].in_sync(3, 30);
    let held = |node: &Node| -> usize {
        let info = node.tell(&["table", "info", "t"]);
        let line = info.lines().find_map(|l| l.strip_prefix("on this node: ")).unwrap_or_default().to_string();
        line.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let all = |nodes: &[Node]| nodes.iter().map(held).sum::<usize>();
    assert_eq!(all(&nodes), 12);
    nodes[3].kill();
    nodes[0].in_sync(2, 20);
    wait_or(|| nodes[0].status(), 60, || nodes[0].status().contains("\"led\":4,\"in_sync\":3"));
    assert_eq!(all(&nodes[..3]), 12);
    nodes[3].start();
    nodes.iter().for_each(|node| node.sees(4, 30));
    let trimmed = || all(&nodes) == 12 && nodes[0].status().contains("\"led\":4,\"in_sync\":3");
    wait_or(|| format!("{} copies: {}", all(&nodes), nodes[0].status()), 60, trimmed);
}

/// Two nodes, a table with one copy.
#[test]
fn the_last_copy_is_not_buried_by_accident() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(2));
    let mut nodes = cluster(&scratch, &net, 2);
    nodes[0].tell(&["table", "create", "t", "--copies", "1", "--fragments", "8"]);
    nodes[0].in_sync(1, 30);
    nodes[1].kill();
    wait("n2 is missed", 20, || line(&nodes[0], "n2").contains("ago"));
    let refused = nodes[0].ask(&["condemn", "n2"]);
    says(&refused, 1, &["may hold the last copy of fragment", "of table t", "--force"]);
    nodes[0].tell(&["condemn", "n2", "--force"]);
    wait_or(|| nodes_of(&nodes[0]), 40, || line(&nodes[0], "n2").contains("buried"));
    wait("it is whole, alone", 20, || nodes[0].tell(&["status"]).contains("solo"));
    // What was lost is begun anew.
    wait_or(
        || nodes[0].status(),
        30,
        || (0..40).all(|i| nodes[0].ask(&["put", "t", &format!("k{i}"), "new"]).status.success()),
    );
    // It was not gone, after all: what it has comes back, and what is newer stays.
    nodes[1].start();
    wait_or(|| nodes[1].log(), 40, || nodes[1].log().contains("had buried this one"));
    nodes.iter().for_each(|node| node.sees(2, 40));
    assert_eq!(nodes[1].tell(&["get", "t", "k7"]), "new");
}

#[test]
fn what_operators_say_is_kept_and_taken_back() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = cluster(&scratch, &net, 3);
    nodes[0].tell(&["rename-node", "n3", "archive"]);
    wait("n2 calls it so", 10, || nodes_of(&nodes[1]).contains("archive"));
    nodes[1].tell(&["immortalize", "archive"]);
    says(&nodes[0].ask(&["rename-node", "archive", ""]), 2, &["the name \"\" must have"]);
    nodes[2].terminate();
    nodes[2].start();
    nodes.iter().for_each(|node| node.sees(3, 30));
    wait_or(|| nodes_of(&nodes[2]), 20, || line(&nodes[2], "archive").contains("up"));
    nodes[2].kill();
    wait_or(|| nodes_of(&nodes[0]), 20, || line(&nodes[0], "archive").contains("immortal"));
    nodes[0].tell(&["immortalize", "archive", "--undo"]);
    says(&nodes[0].ask(&["immortalize", "archive", "--undo"]), 1, &["not immortal"]);
    wait_or(|| nodes_of(&nodes[0]), 20, || line(&nodes[0], "archive").contains("lost"));
    nodes[2].start();
    nodes.iter().for_each(|node| node.sees(3, 30));
    wait_or(|| nodes_of(&nodes[0]), 20, || line(&nodes[0], "archive").contains("up"));
}

/// Four nodes that are told where they are by a file alone; one of them goes, and the file says so.
#[test]
fn a_list_brings_nodes_together_and_says_who_is_gone() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(4));
    let list = scratch.path("nodes");
    let write = |hosts: &[u8]| {
        let text: Vec<String> = hosts.iter().map(|host| format!("10.74.0.{host}  # n{host}\n")).collect();
        std::fs::write(&list, text.concat()).unwrap();
    };
    write(&[1, 2]);
    let truth = format!("file:{}", list.display());
    let args = ["--no-multicast", "--truth", &truth];
    let mut nodes: Vec<Node> =
        (1..=4).map(|i| Node::new(&scratch, &format!("n{i}"), Some(net.host(i)), &args)).collect();
    nodes[..2].iter_mut().for_each(Node::start);
    nodes[..2].iter().for_each(|node| node.sees(2, 30));
    // It changes while they run.
    write(&[1, 2, 3, 4]);
    nodes[2..].iter_mut().for_each(Node::start);
    nodes.iter().for_each(|node| node.sees(4, 30));
    nodes[3].kill();
    wait_or(|| nodes_of(&nodes[0]), 30, || line(&nodes[0], "n4").contains("partitioned"));
    let exists = || nodes_of(&nodes[1]).contains("those who list the machines say that it exists");
    wait_or(|| nodes_of(&nodes[1]), 30, exists);
    // A list that would have half of them gone is wrong.
    write(&[1, 2]);
    wait("it is not believed", 60, || nodes[0].log().contains("leaves out 2 of 4 nodes"));
    std::fs::write(&list, "10.74.0.1\nnonsense here\n").unwrap();
    wait("it is told", 60, || nodes[0].log().contains("line 2: \"nonsense here\" is no node"));
    assert!(line(&nodes[0], "n4").contains("lost"), "{}", nodes_of(&nodes[0]));
    // Twice, half a minute apart.
    write(&[1, 2, 3]);
    wait_or(|| nodes_of(&nodes[0]), 90, || line(&nodes[0], "n4").contains("buried"));
    assert!(line(&nodes[0], "n4").contains("those who list the machines say that it is gone"));
    wait("whole without it", 20, || nodes[1].tell(&["status"]).contains("whole"));
}
