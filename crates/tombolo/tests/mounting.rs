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
