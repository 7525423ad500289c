//! Mounting as `mount(8)` and fstab do, and what options do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{BIN, Scratch, alone, says, wait};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program under the name by which `mount(8)` calls it.
fn mount(scratch: &Scratch, dir: &Path, options: &str) -> Output {
    let helper = scratch.path("mount.walkenfs");
    let _ = symlink(BIN, &helper);
    let options = format!("data={},{options}", scratch.path("n1").display());
    Command::new(helper).arg("shared").arg(dir).args(["-o", &options]).output().unwrap()
}

/// Both of its outputs: what runs in the background speaks through a file.
fn tells(out: &Output, code: i32, words: &str) {
    let text = [&out.stdout[..], &out.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(out.status.code() == Some(code) && text.contains(words), "{:?} {text}", out.status);
}

/// A mount point that is left behind by no test, however it ends.
struct Point(PathBuf);

impl Point {
    fn new(scratch: &Scratch) -> Point {
        let dir = scratch.path("mnt");
        fs::create_dir(&dir).unwrap();
        Point(dir)
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn umount(dir: &Path) {
    assert!(Command::new("umount").arg(dir).status().unwrap().success());
    wait("nothing is mounted", 20, || {
        !fs::read_to_string("/proc/mounts").unwrap().contains(&dir.to_string_lossy().into_owned())
    });
}

#[test]
fn it_is_mounted_like_any_filesystem() {
    need_namespaces!();
    let scratch = Scratch::new();
    let node = alone(&scratch, "n1");
    let point = Point::new(&scratch);
    let dir = point.0.clone();
    tells(&mount(&scratch, &dir, "_netdev,nofail,x-systemd.automount,noexec"), 0, "is mounted on");
    fs::write(dir.join("f"), "text").unwrap();
    let line = fs::read_to_string("/proc/mounts").unwrap();
    let line = line.lines().find(|l| l.contains(&*dir.to_string_lossy())).unwrap().to_owned();
    assert!(line.starts_with("shared ") && line.contains("noexec") && !line.contains("nosuid"), "{line}");
    assert!(line.contains(" fuse.walkenfs "), "{line}");
    // Read-only from now on, and not any more, as of any filesystem.
    let remount = |how: &str| Command::new("mount").args(["-i", "-o", how]).arg(&dir).status().unwrap().success();
    assert!(remount("remount,ro"));
    assert_eq!(fs::write(dir.join("g"), "").unwrap_err().raw_os_error(), Some(30), "EROFS");
    assert!(remount("remount,rw"));
    fs::write(dir.join("g"), "text").unwrap();
    fs::remove_file(dir.join("g")).unwrap();
    tells(&mount(&scratch, &dir, ""), 1, "is a mount point already");
    umount(&dir);
    // What was written is there when it is mounted again, read-only and as somebody else's.
    tells(&mount(&scratch, &dir, "ro,uid=12,gid=34"), 0, "is mounted on");
    let meta = fs::metadata(dir.join("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.len()), (12, 34, 4));
    assert_eq!(fs::write(dir.join("g"), "").unwrap_err().raw_os_error(), Some(30), "EROFS");
    umount(&dir);
    says(&mount(&scratch, &dir, "strikt"), 2, &["strikt", "strict", "cache=SIZE"]);
    says(&Command::new(scratch.path("mount.walkenfs")).arg("shared").output().unwrap(), 1, &["Usage: mount.walkenfs"]);
    drop(node);
}

#[test]
fn reading_is_written_down_where_that_is_asked_for() {
    need_namespaces!();
    let scratch = Scratch::new();
    let _node = alone(&scratch, "n1");
    let point = Point::new(&scratch);
    let dir = point.0.clone();
    let times = |name: &str| {
        let meta = fs::metadata(dir.join(name)).unwrap();
        ((meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()))
    };
    for (options, noted) in [("noatime", false), ("relatime", true), ("relatime,strict", true)] {
        tells(&mount(&scratch, &dir, options), 0, "is mounted on");
        fs::write(dir.join("f"), "text").unwrap();
        let (atime, mtime) = times("f");
        assert!(atime <= mtime, "{options}");
        assert_eq!(fs::read(dir.join("f")).unwrap(), b"text");
        let is_noted = || times("f").0 > times("f").1;
        if noted {
            wait("it is noted that it was read", 10, is_noted);
        } else {
            assert!(!is_noted());
        }
        umount(&dir);
    }
}

#[test]
fn a_mount_says_how_its_files_stand() {
    need_namespaces!();
    let mut cluster = common::Cluster::new(3);
    let dir = cluster.mount(0);
    let facts = dir.join(".tombolo/mounts").join(dir.to_string_lossy().replace('/', "%2F"));
    let says = |what: &str| fs::read_to_string(facts.join(what)).unwrap_or_default().trim().to_string();
    wait("all copies are there", 30, || says("state") == "whole");
    let mut n = 0;
    wait("it has the directory that it works in to itself", 30, || {
        n += 1;
        fs::write(dir.join(format!("{n}")), "x").unwrap();
        says("alone") == "1"
    });
    cluster.nodes[2].kill();
    wait("a copy is missing", 60, || says("state").starts_with("degraded: 2 of 3 copies of fs.shared"));
    wait("and the log says so", 30, || cluster.nodes[0].log().contains("files are degraded: 2 of 3"));
    cluster.nodes[2].start();
    wait("all copies are there again", 60, || says("state") == "whole");
    wait("and the log says so", 30, || cluster.nodes[0].log().contains("files are whole again"));
}

/// A process that ends with its test, whatever that comes to.
struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without any right of root's: a node, a mount that nobody else sees, and its end.
#[test]
fn whoever_is_not_root_mounts_through_fusermount3() {
    need_namespaces!();
    let scratch = Scratch::new();
    let point = Point::new(&scratch);
    let (bin, data, cookie) = (scratch.path("tombolo"), scratch.path("n1"), scratch.path("cookie"));
    fs::copy(BIN, &bin).unwrap();
    let nobody = "65534";
    for path in [scratch.0.path(), &point.0, &bin, &cookie] {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    // Most systems let everybody open it; this one need not, so there is another for these processes alone.
    let enter = "mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse; exec \"$@\"";
    let as_nobody = |begin: &[&str], program: &Path| {
        let mut command = Command::new(begin[0]);
        command.args(&begin[1..]).args(["setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups"]);
        command.arg(program).env("HOME", scratch.0.path()).current_dir(scratch.0.path());
        command
    };
    let begin = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", enter, "sh"];
    let log = fs::File::create(scratch.path("log")).unwrap();
    let mut up = as_nobody(&begin, &bin);
    up.arg("--data").arg(&data).args(["up", "--cookie-file"]).arg(&cookie).args(common::ALONE);
    let node = Ends(up.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    let (space, here) =
        (format!("--mount=/proc/{}/ns/mnt", node.0.id()), format!("--wd={}", scratch.0.path().display()));
    let within = ["nsenter", &space, &here];
    let tombolo = |args: &[&str]| {
        let mut command = as_nobody(&within, &bin);
        command.arg("--data").arg(&data).args(args);
        command
    };
    let said = || fs::read_to_string(scratch.path("log")).unwrap_or_default();
    common::wait_or(said, 30, || {
        let out = tombolo(&["status", "--json"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).contains("\"status\":\"up\"")
    });
    let dir = point.0.to_string_lossy().into_owned();
    tells(&tombolo(&["mount", "shared", &dir, "--background"]).output().unwrap(), 0, "is mounted on");
    let sh = |script: &str| as_nobody(&within, Path::new("sh")).args(["-euc", script]).output().unwrap();
    tells(&sh("echo text >mnt/f; mkdir mnt/d; mv mnt/f mnt/d/g; cat mnt/d/g; stat -c %u mnt/d/g"), 0, "text\n65534");
    let mounts = || fs::read_to_string(format!("/proc/{}/mounts", node.0.id())).unwrap();
    let all = mounts();
    let line = all.lines().find(|l| l.contains(&dir)).unwrap();
    assert!(line.contains("user_id=65534") && line.contains("nosuid") && line.contains("nodev"), "{line}");
    let root = Command::new("nsenter").args([&space, "ls", &dir]).output().unwrap();
    assert!(!root.status.success(), "without allow_other not even root sees it");
    tells(&sh("fusermount3 -u mnt"), 0, "");
    wait("nothing is mounted", 20, || !mounts().contains(&dir));
}
