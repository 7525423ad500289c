#!/usr/bin/env bash
# Files on three nodes of this machine, 3 copies, durability interval, beside bindfs (the pure cost of FUSE) where it is installed; they take turns.
# Usage: bench/fs.sh [ROUNDS, default 3]. Prints the median of each case, and the ratio.
port0=17770
. "$(dirname "$0")/lib.sh"
cluster 3
mkdir "$dir/mnt" "$dir/plain" "$dir/bind"
tombolo 1 mount shared "$dir/mnt" --background >/dev/null
trap 'umount -l "$dir/bind" 2>/dev/null || true; finish' EXIT
peer=
if command -v bindfs >/dev/null; then bindfs "$dir/plain" "$dir/bind"; peer="$dir/bind"; fi
python3 - "${1:-3}" "$dir/mnt" $peer <<'P'
import os, shutil, sqlite3, statistics, subprocess, sys, time
rounds, mounts, found = int(sys.argv[1]), sys.argv[2:], {}

def creates(d, n, procs):
    os.mkdir(d)
    pids = []
    start = time.monotonic()
    for p in range(procs):
        pid = os.fork()
        if not pid:
            for i in range(n // procs): os.close(os.open(f"{d}/{p}-{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            os._exit(0)
        pids.append(pid)
    for pid in pids: os.waitpid(pid, 0)
    return n / (time.monotonic() - start)

def rate(n, act):
    start = time.monotonic(); act(); return n / (time.monotonic() - start)

def written(d, n, sync):
    def act():
        for i in range(n):
            f = os.open(f"{d}/w{i}{sync}", os.O_CREAT | os.O_WRONLY, 0o644); os.write(f, b"x" * 4096)
            if sync: os.fsync(f)
            os.close(f)
    return rate(n, act)

def sequential(path, mib):
    block = os.urandom(1 << 20)
    def act():
        f = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
        for _ in range(mib): os.write(f, block)
        os.fsync(f); os.close(f)
    return rate(mib, act)

def read(path, mib):
    def act():
        f = os.open(path, os.O_RDONLY)
        while os.read(f, 1 << 20): pass
        os.close(f)
    return rate(mib, act)

def sqlite(path, n):
    db = sqlite3.connect(path, isolation_level=None); db.execute("create table t(i integer primary key, v text)")
    try: return rate(n, lambda: [db.execute("insert into t(v) values('x')") for _ in range(n)])
    finally: db.close()

def once(top):
    d = top + "/d"; out = {}
    shutil.rmtree(d, ignore_errors=True); os.mkdir(d)
    out["creates, 1 process, per s"] = creates(d + "/1", 2000, 1)
    out["creates, 4 processes, per s"] = creates(d + "/4", 4000, 4)
    names = [f"{d}/4/{n}" for n in os.listdir(d + "/4")]
    out["stat the first time, per s"] = rate(len(names), lambda: [os.lstat(n) for n in names])
    out["stat again, per s"] = rate(len(names), lambda: [os.lstat(n) for n in names])
    out["names listed, per s"] = rate(5 * len(names), lambda: [os.listdir(d + "/4") for _ in range(5)])
    out["4 KiB files, per s"] = written(d + "/1", 1000, 0)
    out["4 KiB files with fsync, per s"] = written(d + "/1", 300, 1)
    out["unlinks, per s"] = rate(len(names), lambda: [os.unlink(n) for n in names])
    out["256 MiB written with fsync, MiB/s"] = sequential(d + "/big", 256)
    subprocess.run(["sysctl", "-qw", "vm.drop_caches=3"])
    out["256 MiB read, caches dropped, MiB/s"] = read(d + "/big", 256)
    out["256 MiB read again, MiB/s"] = read(d + "/big", 256)
    out["SQLite transactions, per s"] = sqlite(d + "/db", 200)
    shutil.rmtree(d)
    return out

for _ in range(rounds):
    for m in mounts:
        for case, figure in once(m).items(): found.setdefault(case, {}).setdefault(m, []).append(figure)
for case, by in found.items():
    medians = [statistics.median(by[m]) for m in mounts]
    beside = f"; bindfs {medians[1]:,.0f}: {medians[0] / medians[1]:.2f}" if len(medians) > 1 else ""
    print(f"{case}: {medians[0]:,.0f}{beside}")
P
