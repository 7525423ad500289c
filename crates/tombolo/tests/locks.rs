//! Locks of ranges of files across machines: databases that several of them write, and holders that go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Cluster, wait};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A process that locks what it is told, and says how that went.
struct Locker {
    child: Child,
    tell: ChildStdin,
    hear: BufReader<ChildStdout>,
}

const LOCKER: &str = "
import errno, fcntl, os, signal, struct, sys
file = os.open(sys.argv[1], os.O_RDWR)
def rang(*_): raise InterruptedError
signal.signal(signal.SIGALRM, rang)
for line in sys.stdin:
    what, start, length = line.split()
    try:
        if what == 'ask':
            sent = struct.pack('hhqqi', fcntl.F_WRLCK, 0, int(start), int(length), 0)
            kind, _, at, size, pid = struct.unpack('hhqqi', fcntl.fcntl(file, fcntl.F_GETLK, sent)[:28])
            print({fcntl.F_UNLCK: 'free', fcntl.F_RDLCK: 'read', fcntl.F_WRLCK: 'written'}[kind], at, size, flush=True)
            continue
        if what == 'wait-a-second': signal.alarm(1)
        how = {'read': fcntl.LOCK_SH | fcntl.LOCK_NB, 'write': fcntl.LOCK_EX | fcntl.LOCK_NB, 'wait': fcntl.LOCK_EX,
               'wait-a-second': fcntl.LOCK_EX, 'free': fcntl.LOCK_UN}[what]
        fcntl.lockf(file, how, int(length), int(start))
        print('yes', flush=True)
    except InterruptedError: print('interrupted', flush=True)
    except OSError as e: print(errno.errorcode[e.errno], flush=True)
";

impl Locker {
    fn new(file: &Path) -> Locker {
        let mut command = Command::new("python3");
        command.args(["-c", LOCKER]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (tell, hear) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Locker { child, tell, hear }
    }

    fn begin(&mut self, what: &str) {
        writeln!(self.tell, "{what}").unwrap();
    }

    fn end(&mut self) -> String {
        let mut line = String::new();
        self.hear.read_line(&mut line).unwrap();
        line.trim().to_string()
    }

    fn says(&mut self, what: &str) -> String {
        self.begin(what);
        self.end()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two machines, and a file as both see it.
fn shared() -> (Cluster, [PathBuf; 2]) {
    let mut cluster = Cluster::new(3);
    let dirs = [cluster.mount(0), cluster.mount(1)];
    std::fs::write(dirs[0].join("file"), "0123456789").unwrap();
    (cluster, dirs.map(|dir| dir.join("file")))
}

#[test]
fn a_lock_holds_on_all_machines_until_its_owner_lets_go() {
    need_namespaces!();
    let (_cluster, files) = shared();
    let (mut one, mut two) = (Locker::new(&files[0]), Locker::new(&files[1]));
    assert_eq!(one.says("write 0 5"), "yes");
    assert_eq!(two.says("write 4 1"), "EAGAIN");
    assert_eq!(two.says("read 0 0"), "EAGAIN");
    assert_eq!(two.says("ask 3 3"), "written 0 5");
    assert_eq!(two.says("write 5 5"), "yes");
    assert_eq!(one.says("ask 0 0"), "written 5 5");
    assert_eq!(one.says("ask 0 5"), "free 0 5");
    // To read is for all, and an owner may change its mind.
    assert_eq!(one.says("read 0 5"), "yes");
    assert_eq!(two.says("read 0 5"), "yes");
    assert_eq!(one.says("write 0 5"), "EAGAIN");
    assert_eq!(two.says("free 0 5"), "yes");
    assert_eq!(one.says("write 0 5"), "yes");
    // Who waits gets it, or is interrupted.
    assert_eq!(two.says("wait-a-second 0 1"), "interrupted");
    two.begin("wait 0 1");
    assert_eq!(one.says("free 0 0"), "yes");
    assert_eq!(two.end(), "yes");
    // With its process a lock goes, too.
    assert_eq!(one.says("write 0 1"), "EAGAIN");
    one.begin("wait 0 1");
    two.child.kill().unwrap();
    assert_eq!(one.end(), "yes");
}

#[test]
fn a_machine_that_is_gone_holds_nothing() {
    need_namespaces!();
    let (mut cluster, files) = shared();
    let (mut one, mut two) = (Locker::new(&files[0]), Locker::new(&files[1]));
    assert_eq!(two.says("write 0 5"), "yes");
    assert_eq!(one.says("write 0 1"), "EAGAIN");
    cluster.nodes[1].kill();
    wait("the lock of a machine that is gone to be free", 60, || one.says("write 0 1") == "yes");
}

/// Two machines count in one database, each by itself and at the same time: nothing is counted twice, and nothing is lost.
#[test]
fn two_machines_write_one_database() {
    need_namespaces!();
    let (cluster, files) = shared();
    let dbs = files.map(|file| file.with_file_name("count.db"));
    let script = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=100)
for _ in range(60):
    db.execute('begin immediate')
    db.execute('update t set n = n + 1')
    db.execute('insert into log values(?)', (sys.argv[2] * 100,))
    db.execute('commit')
";
    let made = Command::new("python3")
        .args(["-c", "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript('create table t(n); insert into t values(0); create table log(v)')"])
        .arg(&dbs[0])
        .status();
    assert!(made.unwrap().success());
    let run = |(who, db): (&str, &PathBuf)| {
        Command::new("python3").args(["-c", script]).arg(db).arg(who).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both: Vec<Child> = ["a", "b"].into_iter().zip(&dbs).map(run).collect();
    for child in both {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    for db in &dbs {
        let look = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); print(*(db.execute(q).fetchone()[0] for q in ('select n from t', 'select count(*) from log', 'pragma integrity_check')))";
        let out = Command::new("python3").args(["-c", look]).arg(db).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).trim().to_string();
        assert_eq!(said, "120 120 ok", "{}", String::from_utf8_lossy(&out.stderr));
    }
    let said = cluster.nodes[2].tell(&["fsck", "shared"]);
    assert!(said.contains("All is as it should be."), "{said}");
}
