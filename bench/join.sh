#!/usr/bin/env bash
# Seconds until a fourth node has an in-sync copy of 200,000 records of 1 KiB (ram), and until a killed node is back in sync.
# usage: bench/join.sh [RECORDS]
port0=17760
. "$(dirname "$0")/lib.sh"
in_sync() { until target/release/tombolo --data "$dir/1" status --json 2>/dev/null | grep -q "\"name\":\"load\".*\"in_sync\":$1"; do sleep 0.02; done; }
up 1; sleep 1; up 2; sleep 1
"${driver[@]}" --op fill --copies 4 --clients 64 --amount "${1:-200000}" >"$dir/fill" & pids+=($!)
until [ -s "$dir/fill" ]; do sleep 0.1; done
start=$(date +%s.%N); up 3; fourth=$last; in_sync 4
echo "fourth node in sync after $(echo "$(date +%s.%N) - $start" | bc) s"
kill -9 "$fourth"; in_sync 3
start=$(date +%s.%N); up 3; in_sync 4
echo "killed node back in sync after $(echo "$(date +%s.%N) - $start" | bc) s"
