//! One filesystem on two sides of a real cut, both of which go on; and what is there when they have met.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Net, Node, Scratch, says, three, wait, wait_or};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Every path below a directory: a file with how it begins and its length, a directory with nothing.
fn tree(top: &Path) -> BTreeMap<String, String> {
    let (mut out, mut todo) = (BTreeMap::new(), vec![top.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(top).unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                out.insert(name, String::new());
                todo.push(path);
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                let start: String = String::from_utf8_lossy(&bytes).chars().take(8).collect();
                out.insert(name, format!("{start} {}", bytes.len()));
            }
        }
    }
    out
}

fn sound(node: &Node) {
    let said = node.tell(&["fsck", "shared"]);
    assert!(said.contains("All is as it should be."), "{said}");
}

/// What each side does while they do not see each other.
fn change_both(left: &Path, right: &Path) {
    for (top, side, large) in [(left, "left", 10), (right, "right", 300_000)] {
        let write = |path: &str, bytes: String| {
            wait(format!("{side} serves"), 30, || fs::write(top.join(path), &bytes).is_ok());
        };
        write("new.txt", format!("{side} made this"));
        write("both", side.repeat(large));
        fs::create_dir(top.join("shared")).unwrap();
        write(&format!("shared/of {side}"), side.into());
        write("shared/alike", "alike".into());
    }
    fs::remove_dir_all(left.join("gone")).unwrap();
    fs::write(right.join("gone/deep/kept"), "kept").unwrap();
    fs::remove_file(left.join("removed")).unwrap();
    fs::write(right.join("removed"), "written all the same").unwrap();
    fs::rename(left.join("moved"), left.join("moved left")).unwrap();
    fs::rename(right.join("moved"), right.join("moved right")).unwrap();
    fs::rename(left.join("one"), left.join("two/one")).unwrap();
    fs::rename(right.join("two"), right.join("one/two")).unwrap();
    fs::remove_file(right.join("untouched")).unwrap();
}

/// What became of files of one name is told, until somebody takes it off the list.
fn what_was_settled_is_told(node: &Node) {
    let told = node.tell(&["conflicts", "fs.shared", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&told).unwrap();
    let of_files = |row: &&serde_json::Value| row["settled"].as_str().is_some_and(|what| what.contains("(conflict n"));
    let row = rows.as_array().unwrap().iter().find(of_files).unwrap_or_else(|| panic!("{told}"));
    let id = row["id"].as_str().unwrap();
    says(&node.ask(&["conflicts", "--restore", id]), 1, &["was settled among files"]);
    assert_eq!(node.tell(&["conflicts", "--forget", id]), "1 dropped\n");
    says(&node.ask(&["conflicts", "--forget", id]), 1, &["no conflict has the id"]);
}

#[test]
fn a_tree_that_was_changed_on_both_sides_of_a_cut_becomes_one() {
    need_namespaces!();
    let (scratch, net) = (Scratch::new(), Net::new(3));
    let mut nodes = three(&scratch, &net);
    let (left, right) = (scratch.path("left"), scratch.path("right"));
    nodes[0].mount("shared", &left);
    nodes[2].mount("shared", &right);
    for dir in ["gone/deep", "one", "two"] {
        fs::create_dir_all(left.join(dir)).unwrap();
    }
    for file in ["both", "removed", "moved", "untouched"] {
        fs::write(left.join(file), format!("{file} before")).unwrap();
    }
    wait("the other side has all of it", 20, || tree(&left) == tree(&right) && tree(&left).len() == 8);
    net.split(&[3]);
    for node in [&nodes[0], &nodes[2]] {
        wait("the cut is noticed", 30, || node.status().contains("\"state\":\"partitioned\""));
    }
    change_both(&left, &right);
    net.join(3);
    nodes.iter().for_each(|n| n.sees(3, 40));
    let settled = || {
        let (one, two) = (tree(&left), tree(&right));
        let conflicts = one.keys().filter(|path| path.contains(" (conflict n")).count();
        one == two
            && conflicts == 2
            && one.contains_key("gone/deep/kept")
            && nodes[0].ask(&["fsck", "shared"]).status.success()
    };
    let left_over = || String::from_utf8_lossy(&nodes[0].ask(&["fsck", "shared"]).stdout).into_owned();
    wait_or(|| format!("{:#?}\n{:#?}\n{}", tree(&left), tree(&right), left_over()), 60, settled);
    let all = tree(&left);
    let text = |path: &str| fs::read_to_string(right.join(path)).unwrap();
    let conflict = |of: &str| {
        let found = all.keys().find(|path| path.starts_with(&format!("{of} (conflict n")));
        found.unwrap_or_else(|| panic!("no conflict of {of}: {all:#?}")).clone()
    };
    // Two files of one name, and two versions of one file, of which one is in the blocks table.
    let mut made = [text("new.txt"), text(&conflict("new"))];
    made.sort();
    assert_eq!(made, ["left made this", "right made this"]);
    assert!(conflict("new").ends_with(").txt"), "{}", conflict("new"));
    let mut versions = [text("both"), text(&conflict("both"))];
    versions.sort_by_key(String::len);
    assert!(versions == ["left".repeat(10), "right".repeat(300_000)]);
    // One directory of two; what is alike in it is there once.
    let shared: Vec<&String> = all.keys().filter(|path| path.starts_with("shared")).collect();
    assert_eq!(shared, ["shared", "shared/alike", "shared/of left", "shared/of right"]);
    assert_eq!(text("removed"), "written all the same");
    assert_eq!(all.keys().filter(|path| path.starts_with("moved ")).count(), 1);
    // Moved into each other, one of the two went back.
    let two = ["one/two", "two/one"].iter().filter(|path| all.contains_key(**path)).count();
    assert!(two == 1 && all.contains_key("one") != all.contains_key("two"), "{all:#?}");
    assert!(!all.contains_key("untouched"), "removed by one side, left alone by the other");
    sound(&nodes[1]);
    what_was_settled_is_told(&nodes[1]);
    says(&nodes[1].ask(&["fsck", "none"]), 1, &["no filesystem", "fs list"]);
    // It all goes on.
    fs::write(left.join("after"), "after").unwrap();
    wait("one filesystem", 20, || fs::read_to_string(right.join("after")).is_ok_and(|t| t == "after"));
    fs::remove_dir_all(right.join("shared")).unwrap();
    wait("on both sides", 20, || !left.join("shared").exists());
    sound(&nodes[2]);
}

#[test]
fn fsck_counts_what_it_looked_at() {
    need_namespaces!();
    let scratch = Scratch::new();
    let mut node = common::alone(&scratch, "n1");
    let dir = scratch.path("mnt");
    node.mount("shared", &dir);
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/small"), "small").unwrap();
    fs::write(dir.join("d/large"), vec![7; 300_000]).unwrap();
    sound(&node);
    let json = node.tell(&["fsck", "shared", "--repair", "--json"]);
    assert!(
        json.contains("\"inodes\":4") && json.contains("\"bytes\":300005") && json.contains("\"mended\":0"),
        "{json}"
    );
    assert_eq!(tree(&dir).len(), 3);
}
