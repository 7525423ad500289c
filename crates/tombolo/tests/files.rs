//! The filesystem as programs see it, through one mount and through two.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Cluster, wait};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

fn fails(done: std::io::Result<()>, errno: i32) {
    assert_eq!(done.err().and_then(|e| e.raw_os_error()), Some(errno));
}

#[test]
fn names_links_and_attributes() {
    need_namespaces!();
    let mut cluster = Cluster::new(1);
    let m = cluster.mount(0);
    fs::create_dir(m.join("d")).unwrap();
    fs::write(m.join("d/a"), "one").unwrap();
    fails(fs::create_dir(m.join("d")), 17);
    fails(fs::remove_dir(m.join("d")), 39);
    fails(fs::write(m.join("x".repeat(256)), ""), 36);
    fs::hard_link(m.join("d/a"), m.join("b")).unwrap();
    assert_eq!(fs::metadata(m.join("b")).unwrap().nlink(), 2);
    fs::rename(m.join("d/a"), m.join("d/c")).unwrap();
    fs::write(m.join("z"), "replaced").unwrap();
    fs::rename(m.join("b"), m.join("z")).unwrap();
    assert_eq!(fs::read_to_string(m.join("z")).unwrap(), "one");
    assert_eq!((names(&m), names(&m.join("d"))), (vec!["d".into(), "z".into()], vec!["c".into()]));
    // A directory cannot move below itself, and replaces only an empty one.
    fs::create_dir_all(m.join("p/q")).unwrap();
    fails(fs::rename(m.join("p"), m.join("p/q/p")), 22);
    fails(fs::rename(m.join("p"), m.join("d")), 39);
    fs::rename(m.join("p/q"), m.join("d/q")).unwrap();
    symlink("d/c", m.join("s")).unwrap();
    assert_eq!(fs::read_to_string(m.join("s")).unwrap(), "one");
    fs::set_permissions(m.join("z"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(m.join("d/c")).unwrap().mode() & 0o7777, 0o640, "one inode");
    std::os::unix::fs::chown(m.join("z"), Some(12), Some(34)).unwrap();
    let meta = fs::metadata(m.join("z")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
    let fifo = Command::new("mkfifo").arg(m.join("pipe")).status().unwrap();
    assert!(fifo.success());
    fs::remove_file(m.join("z")).unwrap();
    assert_eq!(fs::metadata(m.join("d/c")).unwrap().nlink(), 1);
    for i in 0..300 {
        File::create(m.join(format!("p/{i}"))).unwrap();
    }
    assert_eq!(names(&m.join("p")).len(), 300);
    fs::remove_dir_all(m.join("p")).unwrap();
    assert!(!m.join("p").exists());
}

#[test]
fn bytes_holes_appends_and_truncation() {
    need_namespaces!();
    let mut cluster = Cluster::new(1);
    let m = cluster.mount(0);
    // Random writes and truncations, beside a plain array.
    let (mut plain, mut x) = (Vec::<u8>::new(), 7u64);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(m.join("f")).unwrap();
    for n in 0..120u64 {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (at, len) = ((x >> 20) as usize % 3_000_000, (x >> 45) as usize % 200_000 + 1);
        if n % 17 == 16 {
            file.set_len(at as u64).unwrap();
            plain.resize(at, 0);
        } else {
            let data = vec![n as u8 + 1; len];
            file.write_all_at(&data, at as u64).unwrap();
            plain.resize(plain.len().max(at + len), 0);
            plain[at..at + len].copy_from_slice(&data);
        }
        if n % 40 == 39 {
            file.sync_all().unwrap();
            assert!(fs::read(m.join("f")).unwrap() == plain, "after {n} operations");
        }
    }
    drop(file);
    assert!(fs::read(m.join("f")).unwrap() == plain);
    // More than one page of 16 MiB, written in one go and read back in the middle.
    let big: Vec<u8> = (0..40_000_000u32).map(|i| (i / 1000) as u8).collect();
    fs::write(m.join("big"), &big).unwrap();
    let mut file = File::open(m.join("big")).unwrap();
    file.seek(SeekFrom::Start(16_777_000)).unwrap();
    let mut part = vec![0; 1_000_000];
    file.read_exact(&mut part).unwrap();
    assert!(part[..] == big[16_777_000..17_777_000]);
    // Two handles append in turn; nothing is overwritten.
    let append = || OpenOptions::new().append(true).create(true).open(m.join("log")).unwrap();
    let (mut one, mut two) = (append(), append());
    for i in 0..10 {
        writeln!(if i % 2 == 0 { &mut one } else { &mut two }, "{i}").unwrap();
    }
    assert_eq!(fs::read_to_string(m.join("log")).unwrap(), "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
}

#[test]
fn an_open_file_outlives_its_name_and_its_room_is_given_back() {
    need_namespaces!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.mount(0), cluster.mount(1));
    fs::write(one.join("f"), vec![7; 300_000]).unwrap();
    let mut held = File::open(two.join("f")).unwrap();
    fs::remove_file(one.join("f")).unwrap();
    wait("the other kernel is told", 10, || !two.join("f").exists());
    let mut data = Vec::new();
    held.read_to_end(&mut data).unwrap();
    assert!(data == vec![7; 300_000]);
    let blocks =
        |cluster: &Cluster| cluster.nodes[0].tell(&["scan", "fs.shared.blocks", "--limit", "1"]).lines().count();
    assert_eq!(blocks(&cluster), 1, "held open on the other machine");
    drop(held);
    wait("its blocks are freed", 60, || blocks(&cluster) == 0);
}

#[test]
fn two_mounts_see_each_others_work_and_a_clean_stop_unmounts() {
    need_namespaces!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.mount(0), cluster.mount(1));
    for i in 0..30 {
        let (a, b) = if i % 2 == 0 { (&one, &two) } else { (&two, &one) };
        fs::write(a.join("f"), format!("round {i}")).unwrap();
        assert_eq!(fs::read_to_string(b.join("f")).unwrap(), format!("round {i}"));
    }
    // Creates of one name at once: one wins.
    let create = |dir: PathBuf| {
        std::thread::spawn(move || {
            let won = |i: &u32| OpenOptions::new().write(true).create_new(true).open(dir.join(format!("c{i}"))).is_ok();
            (0..20).filter(won).count()
        })
    };
    let (a, b) = (create(one.clone()), create(two.clone()));
    assert_eq!(a.join().unwrap() + b.join().unwrap(), 20);
    assert_eq!(cluster.nodes[0].tell(&["fs", "list"]), "shared\n");
    assert!(cluster.nodes[0].tell(&["fs", "info", "shared"]).contains("fs.shared.blocks"));
    cluster.nodes[0].tell(&["umount", &one.to_string_lossy()]);
    assert_eq!(names(&one).len(), 0);
    assert_eq!(cluster.nodes[1].terminate(), Some(0));
    assert_eq!(names(&two).len(), 0, "unmounted by the clean stop");
    // What is dropped does not come back under the same name.
    wait("the other node serves alone", 30, || cluster.nodes[0].ask(&["fs", "drop", "shared"]).status.success());
    let again = cluster.mount(0);
    assert_eq!(names(&again).len(), 0);
}

/// Three machines, whose kernels keep what they were told. Whoever opens a file after another has closed it reads what that one wrote.
#[test]
fn what_was_closed_on_one_machine_is_read_on_the_others() {
    need_namespaces!();
    let mut cluster = Cluster::new(3);
    let mounts: Vec<PathBuf> = (0..3).map(|n| cluster.mount(n)).collect();
    for round in 0..60usize {
        let (writer, text) = (round % 3, format!("round {round}").repeat(round * 37 % 400));
        for m in &mounts {
            // The kernels know the file as it was.
            let _ = fs::metadata(m.join("f"));
        }
        fs::write(mounts[writer].join("f"), &text).unwrap();
        for m in &mounts {
            if round == 0 {
                wait("the kernel is told that there is such a file", 10, || m.join("f").exists());
            }
            let got = fs::read_to_string(m.join("f")).unwrap();
            let start: String = got.chars().take(20).collect();
            assert!(got == text, "round {round}, {m:?}: {} bytes of {}: {start:?}...", got.len(), text.len());
        }
    }
    let (one, two) = (&mounts[0], &mounts[1]);
    // Made here, written there.
    for n in 0..20 {
        let name = format!("made{n}");
        File::create(two.join(&name)).unwrap();
        fs::write(one.join(&name), "there").unwrap();
        assert_eq!(fs::read_to_string(two.join(&name)).unwrap(), "there");
    }
    // A name that this kernel knows to be free is made there: whoever does not insist on making it opens it.
    for n in 0..20 {
        let name = format!("free{n}");
        assert!(!two.join(&name).exists());
        fs::write(one.join(&name), "first").unwrap();
        let mut file = OpenOptions::new().append(true).create(true).open(two.join(&name)).unwrap();
        file.write_all(b" second").unwrap();
        assert_eq!(fs::read_to_string(one.join(&name)).unwrap(), "first second");
    }
}

/// What is open here and grows there is never read as anything but what was written.
#[test]
fn a_reader_that_follows_a_file_sees_no_byte_that_was_never_written() {
    need_namespaces!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.mount(0), cluster.mount(1));
    let mut writer = OpenOptions::new().append(true).create(true).open(one.join("log")).unwrap();
    writer.write_all(b"0000000\n").unwrap();
    wait("the name is there", 10, || two.join("log").exists());
    let mut reader = File::open(two.join("log")).unwrap();
    let mut got = String::new();
    for n in 1..200 {
        writer.write_all(format!("{n:07}\n").as_bytes()).unwrap();
        reader.metadata().unwrap();
        reader.read_to_string(&mut got).unwrap();
        assert!(!got.contains('\0'), "after {n}: {got:?}");
    }
    wait("all of it arrives", 10, || {
        reader.read_to_string(&mut got).unwrap();
        got.len() == 200 * 8
    });
    assert!(got.lines().enumerate().all(|(n, line)| line == format!("{n:07}")), "in order");
    // Names come and go, and modes change, within moments.
    fs::write(one.join("a"), "").unwrap();
    wait("a file is there", 10, || two.join("a").exists());
    fs::rename(one.join("a"), one.join("b")).unwrap();
    wait("it was renamed", 10, || !two.join("a").exists() && two.join("b").exists());
    fs::set_permissions(one.join("b"), fs::Permissions::from_mode(0o600)).unwrap();
    wait("its mode changed", 10, || fs::metadata(two.join("b")).unwrap().mode() & 0o777 == 0o600);
    assert_eq!(names(&two), ["b", "log"]);
    fs::remove_file(one.join("b")).unwrap();
    wait("it is gone", 10, || names(&two) == ["log"] && !two.join("b").exists());
}
