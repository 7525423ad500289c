#!/bin/bash
# A table in RAM that is written far beyond its bound: how much memory the node takes, and what a write costs beside one into a table
# without a bound. bench/evict.sh [NODES] [MIB] [POLICY] [SECONDS] [ROUNDS]
port0=7880
source "$(dirname "$0")/lib.sh"
nodes=${1:-1} mib=${2:-256} policy=${3:-s3-fifo} seconds=${4:-60} rounds=${5:-5}
cluster "$nodes"
# Of the node that has most.
resident() { for p in "${pids[@]}"; do awk '/VmRSS/ { print $2 }' "/proc/$p/status"; done | sort -n | tail -1; }
load() { tombolo 1 bench kv --op put --clients 64 --value-size 1024 --storage ram --json "$@"; }
sleep 3; idle=$(resident)
bounded() { load --keys 4000000 --max-bytes "$1MiB" --evict "$policy" "${@:2}"; }
bounded "$mib" --warm 0 --seconds "$seconds" --keep >"$dir/full.json" &
writer=$!; most=0
while kill -0 "$writer" 2>/dev/null; do now=$(resident); ((now > most)) && most=$now; sleep 0.2; done
wait "$writer"
line "into $mib MiB, $policy, for $seconds s" "$dir/full.json"
tombolo 1 table info tombolo-bench | sed -n '/at most/,/since/p'
tombolo 1 table drop tombolo-bench
echo "resident: idle $((idle / 1024)) MiB, at most $((most / 1024)) MiB: $(echo "scale=3; ($most - $idle) / 1024 / $mib" | bc) times the bound beyond idle"
# One after the other, each into a table of its own, so that both meet the same machine.
for round in $(seq "$rounds"); do
  load --keys 4000000 --warm 3 --seconds 4 >"$dir/free.json"
  bounded 32 --warm 3 --seconds 4 >"$dir/full.json"
  echo "round $round: $(figure ops_s <"$dir/free.json") ops/s without a bound, $(figure ops_s <"$dir/full.json") into a full table"
done | tee "$dir/rounds"
awk '{ print $3 / $8 }' "$dir/rounds" | sort -n | awk '{ all[NR] = $1 } END { print "a write into a full table costs " all[int((NR + 1) / 2)] " times one without a bound (median)" }'
