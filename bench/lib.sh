# Sourced by the scripts beside it: builds, makes a scratch directory, and starts nodes that end with the script.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
dir=$(mktemp -d); pids=()
finish() {
  umount -l "$dir/mnt" 2>/dev/null || true
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
# tombolo N ...: a command for node N.
tombolo() { target/release/tombolo --data "$dir/$1" "${@:2}"; }
# up N: node N, on port $port0 + N, that looks for node 1; its process id in $last. Returns when it has found the others.
up() {
  target/release/tombolo --data "$dir/$1" up --name "n$1" --cookie-file "$dir/cookie" --no-multicast \
    --listen "127.0.0.1:$((port0 + $1))" --join "127.0.0.1:$((port0 + 1))" >>"$dir/$1.log" 2>&1 &
  last=$!; pids+=("$last")
}
# Nodes 1 to N, all in view of each other.
cluster() {
  for n in $(seq "$1"); do up "$n"; sleep 1; done
  until [ "$(tombolo 1 status --json 2>/dev/null | grep -o '"reachable":true' | wc -l)" = "$1" ]; do sleep 0.05; done
}
# in_sync N COPIES: waits until node N sees so many copies of the measured table in sync.
in_sync() { until tombolo "$1" status --json 2>/dev/null | grep -q "\"name\":\"tombolo-bench\".*\"in_sync\":$2"; do sleep 0.02; done; }
since() { echo "$(date +%s.%N) - $1" | bc; }
