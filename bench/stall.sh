#!/usr/bin/env bash
# The longest wait of a writer on three nodes of this machine (ram, 3 copies, 16 clients) while a node that leads a part of the
# table is stopped cleanly, and while one is killed.
port0=17780
. "$(dirname "$0")/lib.sh"
in_sync() { until target/release/tombolo --data "$dir/2" status --json 2>/dev/null | grep -q "\"name\":\"load\".*\"in_sync\":$1"; do sleep 0.02; done; }
for signal in TERM KILL; do
  up 1; one=$last; sleep 1; up 2; two=$last; sleep 1
  "${driver[@]}" --op put --clients 16 --amount 5 >"$dir/said" & load=$!
  in_sync 3; sleep 1; kill -$signal "$one"
  wait "$load"; echo "SIG$signal to a leader: $(cat "$dir/said")"
  kill "$two"; wait "$two" "$one" 2>/dev/null || true; rm -rf "${dir:?}"/[12] "$dir/driver"
done
