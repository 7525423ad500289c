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
    says(&nodes[0].ask(&["condemn", "n4"]), 1, &["n4 is in view", "stop it first"]);
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
    // It comes back with its old directory: nobody takes anything from it, and it serves what it has.
    nodes[3].start();
    wait_or(|| nodes[3].log(), 30, || nodes[3].log().contains("the other nodes have buried this one"));
    wait("it serves alone", 30, || nodes[3].ask(&["put", "t", "mine", "v"]).status.success());
    assert!(nodes[3].tell(&["status"]).contains("have buried this one"));
    assert_eq!(nodes[0].ask(&["get", "t", "mine"]).status.code(), Some(1));
    assert!(!line(&nodes[0], "n4").contains("up"), "{}", nodes_of(&nodes[0]));
    for i in 0..40 {
        assert_eq!(nodes[0].tell(&["get", "t", &format!("k{i}")]), "v");
    }
    // With an empty directory it is a new node.
    nodes[3].terminate();
    let mut fresh = Node::new(&scratch, "n4-fresh", Some(net.host(4)), &[]);
    fresh.start();
    fresh.sees(4, 30);
    assert_eq!(fresh.tell(&["get", "t", "k1"]), "v");
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
