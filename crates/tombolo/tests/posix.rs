//! What POSIX and Linux promise of a filesystem, as programs see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{BIN, Node, Scratch};
use rustix::fs::{AtFlags, FallocateFlags, RenameFlags, SeekFrom, renameat_with, seek, statat};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn alone(scratch: &Scratch) -> (Node, PathBuf) {
    let mut node = Node::new(scratch, "n1", None, &["--no-multicast", "--listen", "127.0.0.1:0"]);
    node.start();
    node.sees(1, 30);
    let dir = scratch.path("mnt");
    node.mount("shared", &dir);
    (node, dir)
}

fn tell(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs what of `pjdfstest` has this in its name; how many passed.
fn pjdfstest(scratch: &Scratch, dir: &Path, remounts: bool, what: &str) -> u32 {
    let config = scratch.path("pjdfstest.toml");
    let users = "[dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    let features = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n";
    let settings = format!("[settings]\nnaptime = 0.001\nallow_remount = {remounts}\n");
    fs::write(&config, format!("{features}{settings}{users}")).unwrap();
    let path = format!("{}:{}", scratch.path("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("pjdfstest");
    command.env("PATH", path).env("RUST_BACKTRACE", "0");
    let out = command.arg("-c").arg(&config).arg("-p").arg(dir).arg("-s").arg("/dev/shm").arg(what).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let failed: Vec<&str> = text.lines().filter(|l| l.ends_with("FAILED")).collect();
    let summary = text.lines().find(|l| l.starts_with("Summary")).unwrap_or_default();
    assert!(failed.is_empty() && summary.contains("0 failed"), "{summary} {failed:?}\n{text}");
    summary.split(", ").find_map(|p| p.strip_suffix(" passed")).unwrap().parse().unwrap()
}

/// `pjdfstest`, all of it, where it is installed. CI must not do without. Left out is what its own list leaves out on Linux, and
/// LINK_MAX, which it cannot find out.
#[test]
fn the_posix_test_suite_passes() {
    need_namespaces!();
    if Command::new("pjdfstest").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have pjdfstest (cargo install pjdfstest)");
        return println!("SKIPPED: no pjdfstest");
    }
    let scratch = Scratch::new();
    let (_node, dir) = alone(&scratch);
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let passed = pjdfstest(&scratch, &dir, false, "");
    assert!(passed >= 380, "{passed}");
    // Another process: the first leaves files open, and with those nothing is made read-only. `mount` finds our helper in /sbin where it
    // is installed.
    let helper = scratch.path("mount.fuse.walkenfs");
    symlink(BIN, &helper).unwrap();
    fs::create_dir(scratch.path("bin")).unwrap();
    let mount = scratch.path("bin/mount");
    fs::write(&mount, format!("#!/bin/sh\nexec {} shared \"$3\" \"$1\" \"$2\"\n", helper.display())).unwrap();
    fs::set_permissions(&mount, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(pjdfstest(&scratch, &dir, true, "erofs"), 13);
}

#[test]
fn holes_are_made_and_found() {
    need_namespaces!();
    let scratch = Scratch::new();
    let (_node, dir) = alone(&scratch);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.join("holes")).unwrap();
    let far = 20 << 20;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    // In parts, each committed by itself: where they meet is no hole.
    for part in 0..10 {
        file.write_all_at(&[7; 30_000], far + part * 30_000).unwrap();
        file.sync_all().unwrap();
    }
    file.write_all_at(&[8; 5000], 1000).unwrap();
    let find = |from| seek(&file, from).map_err(|e| e.raw_os_error());
    assert_eq!(find(SeekFrom::Data(0)), Ok(1000));
    assert_eq!(find(SeekFrom::Hole(1000)), Ok(6000));
    assert_eq!(find(SeekFrom::Data(6000)), Ok(far));
    assert_eq!(find(SeekFrom::Hole(far)), Ok(far + 300_000), "the end counts as a hole");
    assert_eq!(find(SeekFrom::Data(far + 300_000)), Err(6), "ENXIO");
    // Punched, and zeroed beyond the end.
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, far, 4096).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, far + 290_000, 20_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), far + 310_000);
    let mut plain = vec![7; 310_000];
    plain[..4096].fill(0);
    plain[290_000..].fill(0);
    let mut got = vec![1; 310_000];
    file.read_exact_at(&mut got, far).unwrap();
    assert!(got == plain);
    assert_eq!(find(SeekFrom::Data(6000)), Ok(far + 4096));
    let collapse = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse.map_err(|e| e.raw_os_error()), Err(95), "EOPNOTSUPP");
    // A file over 4 GiB that is nearly all hole.
    file.write_all_at(b"end", 5 << 30).unwrap();
    file.sync_all().unwrap();
    assert_eq!(find(SeekFrom::Data(1 << 30)), Ok(5 << 30));
    assert_eq!(file.metadata().unwrap().len(), (5 << 30) + 3);
}

#[test]
fn renames_that_keep_and_that_exchange() {
    need_namespaces!();
    let scratch = Scratch::new();
    let (_node, dir) = alone(&scratch);
    let at = File::open(&dir).unwrap();
    let rename = |from: &str, to: &str, flags| renameat_with(&at, from, &at, to, flags).map_err(|e| e.raw_os_error());
    fs::create_dir_all(dir.join("d/sub")).unwrap();
    fs::write(dir.join("a"), "one").unwrap();
    fs::write(dir.join("d/b"), "two").unwrap();
    assert_eq!(rename("a", "d/b", RenameFlags::NOREPLACE), Err(17));
    rename("a", "d/b", RenameFlags::EXCHANGE).unwrap();
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!((text("a"), text("d/b")), ("two".into(), "one".into()));
    // A file and a directory change places, and both parents count their directories anew.
    let links = |name: &str| statat(&at, name, AtFlags::empty()).unwrap().st_nlink;
    assert_eq!((links("."), links("d")), (3, 3));
    rename("a", "d/sub", RenameFlags::EXCHANGE).unwrap();
    assert!(dir.join("a").is_dir() && text("d/sub") == "two");
    assert_eq!((links("."), links("d")), (4, 2));
    rename("a", "d", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(text("a/b"), "one");
    // Not into itself, and not with what is not there.
    fs::create_dir(dir.join("a/sub2")).unwrap();
    assert_eq!(rename("a", "a/sub2", RenameFlags::EXCHANGE), Err(22));
    assert_eq!(rename("a/sub2", "a", RenameFlags::EXCHANGE), Err(22));
    assert_eq!(rename("a", "nothing", RenameFlags::EXCHANGE), Err(2));
    assert_eq!(rename("a", "a", RenameFlags::EXCHANGE), Ok(()));
}

#[test]
fn access_control_lists_follow_modes_and_are_inherited() {
    need_namespaces!();
    let scratch = Scratch::new();
    let (_node, dir) = alone(&scratch);
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let list = |name: &str| tell("getfacl", &["-cpn", &path(name)]).split_whitespace().collect::<Vec<_>>().join(" ");
    fs::create_dir(dir.join("d")).unwrap();
    tell("setfacl", &["-d", "-m", "u:33:rwx", &path("d")]);
    File::create(dir.join("d/f")).unwrap();
    fs::create_dir(dir.join("d/sub")).unwrap();
    assert!(list("d/f").starts_with("user::rw- user:33:rwx #effective:rw- group::r-x"), "{}", list("d/f"));
    assert!(list("d/sub").contains("default:user:33:rwx"), "{}", list("d/sub"));
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("d/f"), 0o664, "the default list stands in the umask's place");
    // A list sets the mode, a mode the list.
    tell("setfacl", &["-m", "u:33:r,m::r", &path("d/f")]);
    assert_eq!(mode("d/f"), 0o644);
    fs::set_permissions(dir.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(list("d/f").contains("mask::---"), "{}", list("d/f"));
    tell("setfacl", &["-b", &path("d/f")]);
    assert_eq!(list("d/f"), "user::rw- group::--- other::---");
    // It decides, for whoever is not root.
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("d/f"), "secret").unwrap();
    let reads = |user: &str| {
        let read = Command::new("setpriv").args(["--reuid", user, "--clear-groups", "cat", &path("d/f")]).output();
        read.unwrap().status.success()
    };
    assert!(!reads("33"));
    tell("setfacl", &["-m", "u:33:r", &path("d/f")]);
    assert!(reads("33") && !reads("34"));
}

#[test]
fn privileges_go_with_a_change_and_attributes_are_kept_apart() {
    need_namespaces!();
    let scratch = Scratch::new();
    let (_node, dir) = alone(&scratch);
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.join("program");
    let path = program.to_string_lossy().into_owned();
    let mode = || fs::metadata(&program).unwrap().mode() & 0o7777;
    let set = |mode| fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
    let as_user = |script: &str| {
        let out = Command::new("setpriv").args(["--reuid", "33", "--clear-groups", "sh", "-c", script]).output();
        assert!(out.unwrap().status.success(), "{script}");
    };
    fs::write(&program, "bytes").unwrap();
    // Root's own writing keeps the bits, another's does not, by whatever way.
    set(0o6777);
    OpenOptions::new().append(true).open(&program).unwrap().write_all(b"more").unwrap();
    assert_eq!(mode(), 0o6777);
    for script in [format!("echo x >> {path}"), format!("echo x > {path}"), format!("truncate -s 1 {path}")] {
        set(0o6777);
        as_user(&script);
        assert_eq!(mode(), 0o777, "{script}");
    }
    set(0o4755);
    std::os::unix::fs::chown(&program, Some(33), None).unwrap();
    assert_eq!(mode(), 0o755);
    // A program's capabilities go when anybody writes.
    tell("setcap", &["cap_net_raw+ep", &path]);
    assert!(tell("getcap", &[&path]).contains("cap_net_raw"));
    OpenOptions::new().append(true).open(&program).unwrap().write_all(b"more").unwrap();
    assert_eq!(tell("getcap", &[&path]), "");
    // Attributes of root are seen by root alone, and a change of one is a change of the inode.
    let before = fs::metadata(&program).unwrap().ctime_nsec();
    tell("setfattr", &["-n", "user.colour", "-v", "blue", &path]);
    tell("setfattr", &["-n", "trusted.secret", "-v", "1", &path]);
    assert_ne!(fs::metadata(&program).unwrap().ctime_nsec(), before);
    assert!(tell("getfattr", &["-m", "-", "--absolute-names", &path]).contains("trusted.secret"));
    let seen = Command::new("setpriv").args(["--reuid", "33", "--clear-groups", "getfattr", "-m", "-", &path]).output();
    let seen = String::from_utf8(seen.unwrap().stdout).unwrap();
    assert!(seen.contains("user.colour") && !seen.contains("trusted"), "{seen}");
}

/// What a reader of a file that is being written sees never shrinks: the bytes that are on their way to the copies count.
#[test]
fn a_file_is_as_long_as_what_was_written_while_it_is_committed() {
    need_namespaces!();
    let scratch = Scratch::new();
    let (_node, dir) = alone(&scratch);
    let path = dir.join("growing");
    let mut file = File::create(&path).unwrap();
    // Another commits it all the time.
    let (other, over) = (file.try_clone().unwrap(), Arc::new(AtomicBool::new(false)));
    let committing = std::thread::spawn({
        let over = over.clone();
        move || {
            while !over.load(Ordering::Relaxed) {
                other.sync_all().unwrap();
            }
        }
    });
    for n in 1..=1500u64 {
        file.write_all(&[n as u8; 5_000]).unwrap();
        let len = fs::metadata(&path).unwrap().len();
        assert_eq!(len, n * 5_000);
    }
    over.store(true, Ordering::Relaxed);
    committing.join().unwrap();
}

/// Maps that are shared show on the other machine after close, private ones nowhere; what goes past the kernel's cache is there at once;
/// and a name may be 255 bytes, whatever they are.
#[test]
fn maps_direct_access_and_any_name_work_between_machines() {
    need_namespaces!();
    let mut cluster = common::Cluster::new(2);
    let dirs = [cluster.mount(0), cluster.mount(1)];
    let script = r#"
import mmap, os, sys
one, two = (d.encode() + b"/" for d in sys.argv[1:])
name = bytes(b for b in range(1, 256) if b != 0x2f) + b"x"
assert len(name) == 255
size = 3 * 65536
with open(one + name, "wb") as f: f.write(b"a" * size)
assert os.listdir(two) == [name]
with open(one + name, "r+b") as f, mmap.mmap(f.fileno(), size) as shared, mmap.mmap(f.fileno(), size, flags=mmap.MAP_PRIVATE) as private:
    assert shared[:4] == b"aaaa"
    shared[100:104] = b"once"; shared[100_000:100_005] = b"twice"; private[7:11] = b"mine"
    shared.flush()
with open(two + name, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
    assert (m[100:104], m[100_000:100_005], m[7:11]) == (b"once", b"twice", b"aaaa"), m[:120]
# The kernel of one has bytes of it, that of the other writes, and the first opens it again.
with open(two + name, "r+b") as f: f.seek(100); f.write(b"anew")
with open(one + name, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
    assert m[100:104] == b"anew"
page = mmap.mmap(-1, 4096); page.write(b"d" * 4096)
with open(one + b"direct", "wb") as f: f.write(b"c" * 8192)
writer, reader = os.open(one + b"direct", os.O_RDWR | os.O_DIRECT), os.open(two + b"direct", os.O_RDONLY | os.O_DIRECT)
os.pwritev(writer, [page], 4096); os.fsync(writer)
got = mmap.mmap(-1, 8192)
assert os.preadv(reader, [got], 0) == 8192 and got[:] == b"c" * 4096 + b"d" * 4096
"#;
    let out = Command::new("python3").args(["-c", script]).args(&dirs).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
