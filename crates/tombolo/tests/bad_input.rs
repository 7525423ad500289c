//! What a user, a disc or a stranger may get wrong: a clear error or silence, no panic, nothing lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{ALONE, BIN, Node, Scratch, alone, listen, says, table, wait};
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};

fn up(scratch: &Scratch, data: &str, args: &[&str]) -> Output {
    let mut command = Command::new(BIN);
    command.arg("--data").arg(scratch.path(data)).arg("up").arg("--cookie-file").arg(scratch.path("cookie"));
    command.args(args).output().unwrap()
}

#[test]
fn unknown_options_tables_keys_and_policies() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n");
    says(&node.ask(&["status", "--jsn"]), 2, &["--jsn"]);
    says(&node.ask(&["get", "nowhere", "k"]), 1, &["nowhere", "table create"]);
    table(&node);
    says(&node.ask(&["get", "t", "nothing"]), 1, &["t nothing", "not found"]);
    says(&node.ask(&["del", "t", "nothing"]), 1, &["t nothing"]);
    says(&node.ask(&["put", "t", "ready", "2", "--if-absent"]), 1, &["t ready", "already"]);
    says(&node.ask(&["put", "t", "ready", "2", "--if-version", "x"]), 2, &["get --version"]);
    says(&node.ask(&["put", "t", "ready", "2", "--ttl", "soon"]), 2, &["soon", "30s"]);
    says(&node.ask(&["table", "create", "t"]), 1, &["\"t\"", "there already"]);
    says(&node.ask(&["table", "create", "a b"]), 2, &["a b"]);
    says(&node.ask(&["table", "create", "u", "--on-conflict", "most"]), 2, &["most", "latest, max, min"]);
    says(&node.ask(&["table", "create", "u", "--storage", "tape"]), 2, &["tape", "disc, disc_only and ram"]);
    says(&node.ask(&["fs", "info", "nowhere"]), 1, &["nowhere", "fs list"]);
    // What holds, holds: versions, ttl.
    let version = node.tell(&["get", "t", "ready", "--version"]);
    node.tell(&["put", "t", "ready", "3", "--if-version", version.trim()]);
    says(&node.ask(&["put", "t", "ready", "4", "--if-version", version.trim()]), 1, &["t ready"]);
    node.tell(&["put", "t", "brief", "x", "--ttl", "1s"]);
    wait("it expires", 10, || node.ask(&["get", "t", "brief"]).status.code() == Some(1));
    assert_eq!(node.tell(&["get", "t", "ready"]), "3");
}

#[test]
fn no_node_and_unknown_paths() {
    let scratch = Scratch::new();
    let node = Node::new(&scratch, "n", None, &[]);
    says(&node.ask(&["status"]), 3, &["no node runs", "tombolo up"]);
    says(&node.ask(&["--config", "/nowhere.toml", "up"]), 4, &["/nowhere.toml"]);
    std::fs::write(scratch.path("bad.toml"), "nam = 1").unwrap();
    let bad = scratch.path("bad.toml");
    says(&node.ask(&["--config", &bad.to_string_lossy(), "up"]), 4, &["bad.toml", "nam"]);
}

#[test]
fn a_data_directory_in_use_names_the_process() {
    let scratch = Scratch::new();
    let _node = alone(&scratch, "n");
    says(&up(&scratch, "n", &ALONE), 4, &["in use by process", "--data"]);
}

#[test]
fn a_port_taken_names_it() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n");
    let addr = listen(&node).to_string();
    says(&up(&scratch, "other", &["--no-multicast", "--listen", &addr]), 4, &[&addr, "--listen"]);
}

#[test]
fn a_cookie_that_others_can_read_is_refused() {
    let scratch = Scratch::new();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(scratch.path("cookie"), mode).unwrap();
    says(&up(&scratch, "n", &ALONE), 4, &["644", "chmod 600"]);
}

#[test]
fn keys_values_and_frames_over_the_limit() {
    let scratch = Scratch::new();
    let node = alone(&scratch, "n");
    table(&node);
    says(&node.ask(&["put", "t", &"k".repeat(1025), "v"]), 2, &["the key", "1025", "1024"]);
    node.tell(&["put", "t", &"k".repeat(1024), "v"]);
    let put = |bytes: usize| {
        let mut child = Command::new(BIN)
            .arg("--data")
            .arg(&node.data)
            .args(["put", "t", "big", "-"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // A value over the limit may be refused before all of it is read.
        let _ = child.stdin.take().unwrap().write_all(&vec![b'x'; bytes]);
        child.wait_with_output().unwrap()
    };
    says(&put(1024 * 1024 + 1), 2, &["the value", "1048577", "1048576"]);
    says(&put(1024 * 1024), 0, &[]);
    assert_eq!(node.tell(&["get", "t", "big"]).len(), 1024 * 1024);
    // A frame whose length is a lie, and one that is no frame, on the control socket.
    for bytes in [&[0xff; 8][..], &[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]] {
        let mut socket = std::os::unix::net::UnixStream::connect(node.data.join("control.sock")).unwrap();
        socket.write_all(bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut told = Vec::new();
        let _ = socket.read_to_end(&mut told);
    }
    assert_eq!(node.tell(&["get", "t", "ready"]), "1");
}

#[test]
fn packets_that_are_truncated_altered_or_noise_get_silence() {
    let scratch = Scratch::new();
    let mut node = alone(&scratch, "n");
    table(&node);
    let addr = listen(&node);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    // A sealed packet of a stranger, whole, cut short, and with a bit flipped; and noise of every length.
    let keys = wire::Keys::derive(b"not the secret", "default");
    let header =
        wire::Header { node: base::NodeId(9), incarnation: 1, counter: 1, sent: base::WallMs(1_700_000_000_000) };
    let sealed = wire::seal(&keys, wire::Kind::Swim, &header, b"gossip", [7; 24]);
    for len in 0..sealed.len() {
        udp.send_to(&sealed[..len], addr).unwrap();
        let mut altered = sealed.clone();
        altered[len] ^= 1;
        udp.send_to(&altered, addr).unwrap();
        udp.send_to(&vec![len as u8; len * 9], addr).unwrap();
    }
    assert!(udp.recv(&mut [0; 16]).is_err(), "an answer to a stranger");
    wait("the stranger is counted", 10, || !node.status().contains("\"foreign\":0"));
    for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4096], &[0; 3]] {
        let mut tcp = TcpStream::connect(addr).unwrap();
        let _ = tcp.write_all(bytes);
        let _ = tcp.shutdown(std::net::Shutdown::Write);
        let mut told = Vec::new();
        let _ = tcp.read_to_end(&mut told);
        assert!(told.is_empty(), "an answer to a stranger");
    }
    assert!(node.is_running());
    assert_eq!(node.tell(&["get", "t", "ready"]), "1");
    assert_eq!(node.terminate(), Some(0), "a clean stop");
}

fn damage(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            damage(&path);
        } else if path.metadata().unwrap().len() > 16 {
            let mut bytes = std::fs::read(&path).unwrap();
            let len = bytes.len();
            bytes[len / 4..len / 4 + 8].fill(0x5a);
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn a_corrupted_store_is_said_and_left_as_it_is() {
    let scratch = Scratch::new();
    let mut node = alone(&scratch, "n");
    table(&node);
    (0..50).for_each(|i| drop(node.tell(&["put", "t", &format!("k{i}"), "v"])));
    assert_eq!(node.terminate(), Some(0));
    damage(&scratch.path("n/store"));
    says(&up(&scratch, "n", &ALONE), 4, &["damaged", "move the directory aside"]);
}

#[test]
fn a_full_disc_refuses_writes_and_loses_nothing() {
    need_namespaces!();
    let scratch = Scratch::new();
    let small = scratch.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=500m", "tmpfs"]).arg(&small).status().unwrap();
    assert!(mounted.success());
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        }
    }
    let _unmount = Unmount(small.clone());
    let mut node = Node::new(&scratch, "small/n", None, &ALONE);
    node.start();
    node.sees(1, 20);
    table(&node);
    std::fs::write(scratch.path("value"), vec![b'x'; 900_000]).unwrap();
    let fill = |key: &str| {
        let value = std::fs::File::open(scratch.path("value")).unwrap();
        let mut command = Command::new(BIN);
        command.arg("--data").arg(&node.data).args(["put", "t", key, "-"]).stdin(value).output().unwrap()
    };
    let mut kept = Vec::new();
    let refused = (0..500).find_map(|i| {
        let key = format!("fill{i}");
        let out = fill(&key);
        if out.status.success() {
            kept.push(key);
            return None;
        }
        Some(out)
    });
    says(&refused.expect("it fills up"), 3, &["nearly full"]);
    assert!(node.is_running());
    assert_eq!(node.tell(&["get", "t", "ready"]), "1", "reads go on");
    node.tell(&["del", "t", &kept[0]]);
    for key in &kept[1..] {
        assert_eq!(node.tell(&["get", "t", key]).len(), 900_000, "{key}");
    }
}
