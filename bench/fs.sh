#!/usr/bin/env bash
# Files on three nodes of this machine, 3 copies, durability interval, beside other filesystems, which take turns with it (peers.sh).
# Usage: bench/fs.sh [ROUNDS, default 3] [bindfs] [gluster] [moosefs]; without names beside bindfs, the pure cost of FUSE, if that is installed.
# Prints the median of each case, and the ratio to each of the others; then the most memory that each of our nodes took. ONLY=PATTERN: some of the cases.
port0=17770
. "$(dirname "$0")/lib.sh"
. bench/peers.sh
rounds=${1:-3}; shift || true
if [ $# = 0 ] && command -v bindfs >/dev/null; then set -- bindfs; fi
cluster 3
mkdir "$dir/mnt"
tombolo 1 mount shared "$dir/mnt" --background >/dev/null
peers "$@"
others=(); for p in "$@"; do others+=("$p=$dir/$p/mnt"); done
python3 - "$rounds" "$dir" "tombolo=$dir/mnt" "${others[@]}" <<'P'
import os, random, re, shutil, sqlite3, statistics, subprocess, sys, time
rounds, scratch, mounts, found = int(sys.argv[1]), sys.argv[2], [m.split("=") for m in sys.argv[3:]], {}

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

def tree():
    # 2,000 files of up to 16 KiB in 200 directories: as a tar, and as a repository.
    draw, top = random.Random(1), scratch + "/tree"
    for n in range(2000):
        d = f"{top}/{n % 10}/{n % 200}"; os.makedirs(d, exist_ok=True)
        with open(f"{d}/{n}", "wb") as f: f.write(draw.randbytes(int(16384 * draw.random() ** 3)))
    git = ["git", "-C", top, "-c", "user.name=b", "-c", "user.email=b@localhost", "-c", "gc.auto=0"]
    for c in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "b"]): subprocess.run(git + c, check=True)
    subprocess.run(["tar", "cf", top + ".tar", "--exclude=.git", "-C", top, "."], check=True)

def seconds(*command):
    start = time.monotonic(); subprocess.run(command, check=True, stdout=subprocess.DEVNULL); return time.monotonic() - start

def anywhere(path, mib, n):
    sequential(path, mib)
    draw, f = random.Random(2), os.open(path, os.O_WRONLY)
    def act():
        for _ in range(n): os.pwrite(f, b"y" * 4096, draw.randrange(mib << 8) << 12); os.fsync(f)
    try: return rate(n, act)
    finally: os.close(f)

def once(top):
    d = top + "/d"; out = {}
    def case(name, act):
        if re.search(os.environ.get("ONLY", ""), name): out[name] = act()
    shutil.rmtree(d, ignore_errors=True); os.mkdir(d)
    case("creates, 1 process, per s", lambda: creates(d + "/1", 2000, 1))
    case("creates, 4 processes, per s", lambda: creates(d + "/4", 4000, 4))
    names = [f"{d}/4/{n}" for n in os.listdir(d + "/4")] if os.path.exists(d + "/4") else []
    case("stat the first time, per s", lambda: rate(len(names), lambda: [os.lstat(n) for n in names]))
    case("stat again, per s", lambda: rate(len(names), lambda: [os.lstat(n) for n in names]))
    case("names listed, per s", lambda: rate(5 * len(names), lambda: [os.listdir(d + "/4") for _ in range(5)]))
    case("4 KiB files, per s", lambda: written(d + "/1", 1000, 0))
    case("4 KiB files with fsync, per s", lambda: written(d + "/1", 300, 1))
    case("unlinks, per s", lambda: rate(len(names), lambda: [os.unlink(n) for n in names]))
    case("256 MiB written with fsync, MiB/s", lambda: sequential(d + "/big", 256))
    subprocess.run(["sysctl", "-qw", "vm.drop_caches=3"])
    case("256 MiB read, caches dropped, MiB/s", lambda: read(d + "/big", 256))
    case("256 MiB read again, MiB/s", lambda: read(d + "/big", 256))
    case("4 KiB written anywhere in 64 MiB, each with fsync, per s", lambda: anywhere(d + "/any", 64, 300))
    case("SQLite transactions, per s", lambda: sqlite(d + "/db", 200))
    os.mkdir(d + "/x")
    case("files unpacked, per s", lambda: 2000 / seconds("tar", "xf", scratch + "/tree.tar", "-C", d + "/x"))
    case("files cloned, per s", lambda: 2000 / seconds("git", "clone", "-q", "--no-local", scratch + "/tree", d + "/g"))
    case("files in a git status, per s", lambda: 2000 / seconds("git", "-C", d + "/g", "status", "--short"))
    shutil.rmtree(d)
    return out

tree()
for round in range(rounds):
    for name, path in mounts[round % len(mounts):] + mounts[:round % len(mounts)]:
        for case, figure in once(path).items(): found.setdefault(case, {}).setdefault(name, []).append(figure)
for case, by in found.items():
    ours, *others = [(name, statistics.median(by[name])) for name, _ in mounts]
    beside = "".join(f"; {name} {figure:,.0f}: {ours[1] / figure:.2f}" for name, figure in others)
    print(f"{case}: {ours[1]:,.0f}{beside}")
P
for n in 1 2 3; do echo "node $n: $(awk '/VmHWM/ {print int($2 / 1024)}' "/proc/${pids[n - 1]}/status") MiB at most"; done
