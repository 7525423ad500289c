# Sourced by the scripts beside it: builds, makes a scratch directory, and starts nodes that end with the script.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
cargo build --release --quiet -p client --example kv
dir=$(mktemp -d); pids=()
finish() {
  umount -l "$dir/mnt" 2>/dev/null || true
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
# up N: node N, on port $port0 + N, that looks for node 1; its process id in $last.
up() {
  target/release/tombolo --data "$dir/$1" up --name "n$1" --cookie-file "$dir/cookie" --no-multicast \
    --listen "127.0.0.1:$((port0 + $1))" --join "127.0.0.1:$((port0 + 1))" >>"$dir/$1.log" 2>&1 &
  last=$!; pids+=("$last")
}
# A third node in the process of the load; the rest of its arguments follow.
driver=(target/release/examples/kv --data "$dir/driver" --cookie-file "$dir/cookie"
  --join "127.0.0.1:$((port0 + 1))" --join "127.0.0.1:$((port0 + 2))")
