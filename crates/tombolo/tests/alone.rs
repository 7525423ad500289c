//! A mount that works alone in a directory has it to itself: what it is told is done others see all the same, and nothing of it is
//! lost when it is killed, falls silent, or ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Cluster, wait};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_is_done_alone_others_see_at_once() {
    need_namespaces!();
    let mut cluster = Cluster::new(3);
    let (one, two) = (cluster.mount(0), cluster.mount(1));
    fs::create_dir(one.join("d")).unwrap();
    for round in 0..300 {
        // Closed here, it is read there as it is, at its first and its only name.
        let text = format!("round {round}").repeat(round % 40 + 1);
        fs::write(one.join(format!("d/new {round}")), &text).unwrap();
        fs::write(one.join("d/again"), &text).unwrap();
        fs::rename(one.join(format!("d/new {round}")), one.join(format!("d/old {round}"))).unwrap();
        fs::create_dir(one.join(format!("d/dir {round}"))).unwrap();
        fs::write(one.join(format!("d/dir {round}/deep")), &text).unwrap();
        if round % 7 == 0 {
            assert_eq!(fs::read_to_string(two.join(format!("d/old {round}"))).unwrap(), text);
            assert_eq!(fs::read_to_string(two.join("d/again")).unwrap(), text, "round {round}");
            assert_eq!(fs::read_to_string(two.join(format!("d/dir {round}/deep"))).unwrap(), text);
        }
        if round % 50 == 49 {
            assert_eq!(names(&two.join("d")), names(&one.join("d")));
        }
    }
    // Each makes what the other must not.
    let made = |dir: &Path, n: usize| File::create_new(dir.join(format!("d/one of us {n}"))).is_ok();
    for n in 0..60 {
        let (mine, others) = std::thread::scope(|s| {
            let other = s.spawn(|| made(&two, n));
            (made(&one, n), other.join().unwrap())
        });
        assert!(mine != others, "{n}: {mine} and {others}");
    }
    let said = cluster.nodes[2].tell(&["fsck", "shared"]);
    assert!(said.contains("All is as it should be."), "{said}");
}

/// What the files below a directory hold.
fn contents(top: &Path) -> BTreeSet<String> {
    let (mut out, mut todo) = (BTreeSet::new(), vec![top.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { todo.push(path) } else { out.extend(fs::read_to_string(&path)) }
        }
    }
    out
}

/// Writes files until it is time to stop; what was told to be done is noted.
fn write_on(dir: PathBuf, who: &str, sync: bool, stop: &AtomicBool, done: &Mutex<Vec<String>>) {
    for n in 0.. {
        let text = format!("{who} {n}");
        let write = |name: String| {
            let mut file = File::create(dir.join(name))?;
            file.write_all(text.as_bytes())?;
            if sync { file.sync_all() } else { Ok(()) }
        };
        // A name of its own, or one that the other writes, too.
        let written = write(if n % 3 == 0 { format!("same {n}") } else { format!("{who} {n}") });
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // An error is told of what could not land: that was not told to be done.
        if written.is_ok() {
            done.lock().unwrap().push(text);
        }
    }
}

/// Has the writer stop, however the test ends.
struct Halt<'a>(&'a AtomicBool);

impl Drop for Halt<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the node go on, however the test ends.
struct Awake<'a>(&'a common::Node);

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.0.signal("CONT");
    }
}

#[test]
fn what_is_on_disc_outlives_the_mount_that_had_it_alone() {
    need_namespaces!();
    let mut cluster = Cluster::new(3);
    let (one, two) = (cluster.mount(0), cluster.mount(1));
    fs::create_dir(one.join("d")).unwrap();
    let (stop, done) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let dir = one.join("d");
    std::thread::scope(|s| {
        let _halt = Halt(&stop);
        s.spawn(|| write_on(dir.clone(), "one", true, &stop, &done));
        wait("some are on disc", 60, || done.lock().unwrap().len() > 100);
        cluster.nodes[0].kill();
    });
    let done = done.into_inner().unwrap();
    wait("another has all of them", 60, || {
        let there = contents(&two.join("d"));
        done.iter().all(|text| there.contains(text))
    });
    fs::write(two.join("d/mine"), "by now").unwrap();
}

#[test]
fn nothing_is_lost_of_a_mount_that_falls_silent() {
    need_namespaces!();
    let mut cluster = Cluster::new(3);
    let (one, two) = (cluster.mount(0), cluster.mount(1));
    fs::create_dir(one.join("d")).unwrap();
    let stop = AtomicBool::new(false);
    let (mine, others) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let dir = one.join("d");
    std::thread::scope(|s| {
        let _halt = Halt(&stop);
        s.spawn(|| write_on(dir.clone(), "one", false, &stop, &mine));
        for _ in 0..2 {
            let (before, theirs) = (mine.lock().unwrap().len(), others.lock().unwrap().len());
            wait("it is at work", 60, || mine.lock().unwrap().len() > before + 200);
            cluster.nodes[0].signal("STOP");
            let _awake = Awake(&cluster.nodes[0]);
            let halt = AtomicBool::new(false);
            std::thread::scope(|s| {
                let _halt = Halt(&halt);
                s.spawn(|| write_on(two.join("d"), "two", false, &halt, &others));
                wait("the other has gone on", 60, || others.lock().unwrap().len() > theirs + 50);
            });
        }
    });
    // One of a name that both wrote was written over by whoever saw it; all that stands must be one of the two.
    let own = |texts: Vec<String>, who: &str| -> Vec<String> {
        let number = |text: &String| text[who.len() + 1..].parse::<u32>().unwrap();
        texts.into_iter().filter(|text| number(text) % 3 != 0).collect()
    };
    let wanted: BTreeSet<String> =
        own(mine.into_inner().unwrap(), "one").into_iter().chain(own(others.into_inner().unwrap(), "two")).collect();
    cluster.nodes.iter().for_each(|n| n.sees(3, 60));
    let missing = || wanted.difference(&contents(&two)).cloned().collect::<Vec<_>>();
    common::wait_or(|| format!("all is there but {:?}", missing()), 60, || missing().is_empty());
    wait("both see the same", 60, || contents(&one) == contents(&two));
    let said = cluster.nodes[2].tell(&["fsck", "shared"]);
    assert!(said.contains("All is as it should be."), "{said}");
}

#[test]
fn what_was_done_before_a_mount_ends_is_there() {
    need_namespaces!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.mount(0), cluster.mount(1));
    fs::create_dir(one.join("d")).unwrap();
    for n in 0..500 {
        fs::write(one.join(format!("d/{n}")), n.to_string()).unwrap();
    }
    cluster.nodes[0].tell(&["umount", &one.to_string_lossy()]);
    assert_eq!(contents(&two.join("d")).len(), 500);
}
