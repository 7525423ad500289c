#!/usr/bin/env bash
# The longest wait of a writer on three nodes of this machine (ram, 3 copies, 16 clients) while a node that leads a part of the
# table is stopped cleanly, and while one is killed.
port0=17780
. "$(dirname "$0")/lib.sh"
for signal in TERM KILL; do
  pids=(); cluster 3; one=${pids[0]}
  tombolo 3 bench kv --storage ram --clients 16 --warm 0 --seconds 5 --json >"$dir/said" & load=$!
  in_sync 2 3; sleep 1; kill -$signal "$one"
  wait "$load"; echo "SIG$signal to a leader: $(cat "$dir/said")"
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
  rm -rf "${dir:?}"/[123]
done
