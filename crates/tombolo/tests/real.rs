//! What people do with files: repositories, databases, builds, copies of trees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Cluster;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two nodes, and the mount of the first.
fn mounted() -> (Cluster, PathBuf) {
    let mut cluster = Cluster::new(2);
    let dir = cluster.mount(0);
    (cluster, dir)
}

/// Runs a script there; whatever fails ends it.
fn sh(dir: &Path, script: &str) -> String {
    let out = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    let (said, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script}\n{said}{error}");
    said.into_owned()
}

fn sound(cluster: &Cluster) {
    let said = cluster.nodes[1].tell(&["fsck", "shared"]);
    assert!(said.contains("All is as it should be."), "{said}");
}

/// Is that program there? CI must have it.
fn has(program: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    assert!(there || std::env::var_os("CI").is_none(), "CI must have {program}");
    if !there {
        println!("SKIPPED: no {program}");
    }
    there
}

#[test]
fn a_repository_is_made_cloned_packed_and_checked() {
    need_namespaces!();
    let (cluster, dir) = mounted();
    if !has("git") {
        return;
    }
    sh(
        &dir,
        "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@localhost GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@localhost
        git init -q one; cd one
        for n in $(seq 40); do mkdir -p d$n; for m in 1 2 3 4; do seq $n $((n * 50 * m)) >d$n/$m; done; done
        git add -A; git commit -qm first; git mv d1 moved; git commit -qm second; git gc -q; git fsck --strict --no-progress
        cd ..; git clone -q --no-local one two; cd two; git fsck --strict --no-progress
        test -z \"$(git status --short)\"; test $(git log --oneline | wc -l) = 2
        echo more >>moved/1; test \"$(git status --short)\" = ' M moved/1'; git commit -qam third; git push -q origin HEAD:other
        git checkout -q HEAD~1; git checkout -q -; rm -rf ../one",
    );
    sound(&cluster);
}

#[test]
fn a_database_in_a_file_keeps_what_it_commits() {
    need_namespaces!();
    let (cluster, dir) = mounted();
    for mode in ["delete", "truncate", "persist", "wal"] {
        let said = sh(
            &dir,
            &format!(
                "python3 - <<'P'
import sqlite3
db = sqlite3.connect('{mode}.db', isolation_level=None)
assert db.execute('pragma journal_mode={mode}').fetchone()[0] == '{mode}'
db.execute('create table t(i integer primary key, v text)')
for n in range(60): db.execute('insert into t(v) values(?)', ('x' * n * 50,))
db.execute('begin'); db.execute('delete from t'); db.execute('rollback')
other = sqlite3.connect('{mode}.db', isolation_level=None)
assert other.execute('select count(*), sum(length(v)) from t').fetchone() == (60, 88500)
db.execute('vacuum')
print(other.execute('pragma integrity_check').fetchone()[0])
P"
            ),
        );
        assert_eq!(said, "ok\n", "{mode}");
    }
    sound(&cluster);
}

#[test]
fn trees_are_copied_with_all_that_belongs_to_them() {
    need_namespaces!();
    let (cluster, dir) = mounted();
    sh(
        &dir,
        "mkdir -p a/deep/er; echo one >a/deep/file; ln a/deep/file a/hard; ln -s deep/file a/soft; mkfifo a/pipe
        printf 'x%.0s' $(seq 5000) >a/deep/er/large; chown 12:34 a/hard; chmod 4711 a/deep/er/large; touch -d '2001-02-03 04:05:06.789' a/deep
        truncate -s 100M a/holes; printf end >>a/holes; setfacl -m u:12:rw a/hard; setfattr -n user.kind -v test a/deep/file
        tar --xattrs --acls -cf a.tar a; mkdir b; tar --xattrs --acls -xpf a.tar -C b
        list() { (cd $1; find . -printf '%p %y %m %U %G %n %s %T@ %l\\n' | grep -v '^. d' | sort; getfacl -Rn . ; getfattr -Rd . ; sha1sum deep/file deep/er/large holes); }
        list a >one; list b/a >two; diff one two
        test $(stat -c %b b/a/deep/er/large) -gt 0",
    );
    if has("rsync") {
        sh(
            &dir,
            "rsync -aHAXS a/ c/; (cd a; find . -printf '%p %y %m %U %G %n %s %T@\\n' | sort) >one; (cd c; find . -printf '%p %y %m %U %G %n %s %T@\\n' | sort) >two
            diff one two; test -z \"$(rsync -aHAXSi a/ c/)\"; echo more >>a/deep/file; rsync -aHAXS --delete a/ c/; diff -r --no-dereference a/deep c/deep",
        );
    }
    sound(&cluster);
}

#[test]
fn a_crate_is_built_and_its_tests_run() {
    need_namespaces!();
    let (cluster, dir) = mounted();
    sh(
        &dir,
        "export CARGO_NET_OFFLINE=true; unset CARGO_TARGET_DIR
        cargo new -q --lib --vcs none one; cd one
        for n in $(seq 20); do echo \"pub mod m$n; \" >>src/lib.rs; echo \"pub fn f() -> u32 { $n } #[test] fn t() { assert_eq!(f(), $n); }\" >src/m$n.rs; done
        cargo test -q 2>&1 | grep '21 passed'; echo '// changed' >>src/m1.rs; cargo test -q 2>&1 | grep '21 passed'; cargo clean -q",
    );
    sound(&cluster);
}

#[test]
fn a_database_server_is_set_up_and_used() {
    need_namespaces!();
    let bin = sh(Path::new("/"), "ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1 || true");
    let bin = bin.trim();
    if bin.is_empty() {
        return println!("SKIPPED: no PostgreSQL");
    }
    let (cluster, dir) = mounted();
    let port = 20_000 + std::process::id() % 20_000;
    // It does not run as root.
    sh(
        &dir,
        &format!(
            "mkdir pg socket; chown 65534:65534 pg socket; chmod 700 pg
            as() {{ setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/tmp PATH={bin}:$PATH \"$@\"; }}
            as initdb -A trust -U pg -D pg >/dev/null
            as pg_ctl -w -s -D pg -o \"-p {port} -k $PWD/socket -c listen_addresses=\" -l pg/log start
            trap 'as pg_ctl -s -D pg stop -m immediate || true' EXIT
            as pgbench -h $PWD/socket -p {port} -U pg -i -q postgres 2>&1
            as pgbench -h $PWD/socket -p {port} -U pg -c 2 -t 50 postgres 2>&1 | grep 'failed transactions: 0'
            as psql -h $PWD/socket -p {port} -U pg -Atc 'select count(*) from pgbench_history' postgres | grep '^100$'
            trap - EXIT; as pg_ctl -w -s -D pg stop -m fast"
        ),
    );
    sound(&cluster);
}
