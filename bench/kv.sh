#!/usr/bin/env bash
# Acknowledged puts and put-if-absent on three nodes of this machine: ram, 3 copies, 1 KiB. One line of JSON per case.
# usage: bench/kv.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
cargo build --release --quiet -p client --example kv
dir=$(mktemp -d); pids=()
finish() { for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$dir"; }
trap finish EXIT
for n in 1 2; do
  target/release/tombolo --data "$dir/$n" up --name "n$n" --cookie-file "$dir/cookie" --no-multicast \
    --listen 127.0.0.1:1775$n --join 127.0.0.1:17751 >"$dir/$n.log" 2>&1 & pids+=($!)
  sleep 1
done
for op in put put-if-absent; do for clients in 1 64; do
  target/release/examples/kv --data "$dir/driver" --cookie-file "$dir/cookie" --join 127.0.0.1:17751 --join 127.0.0.1:17752 \
    --op $op --clients $clients --amount "${1:-5}"
done; done
