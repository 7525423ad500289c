#!/usr/bin/env bash
# What clients feel while a table of so many MiB comes to keep its records in another way: from RAM to disc, to the disc alone, and back.
# Three nodes on one machine: nodes and clients share its processors. Needs bc. usage: bench/storage.sh [MIB] [CLIENTS]
mib=${1:-512}; clients=${2:-16}
port0=17700
. "$(dirname "$0")/lib.sh"
cluster 3
keys=$((mib * 256))
kv() { tombolo 1 bench kv --name "$1" --op mixed --value-size 4096 --keys $keys --clients "$clients" --warm 0 --seconds "$2" --storage "$3" --keep --json; }
changing() { tombolo 1 fragments --json | grep -q '"changing":[1-9]'; }
for storage in ram disc disc_only; do
  kv "plain-$storage" 10 "$storage" >"$dir/plain"
  line "kept as $storage" "$dir/plain"
  tombolo 1 table drop "plain-$storage"
done
kv t 60 ram >"$dir/all" 2>"$dir/err" &
all=$!
until [ "$(records)" = $keys ]; do sleep 0.5; done
for to in disc disc_only disc ram; do
  sleep 2; start=$(date +%s.%N)
  tombolo 3 table alter t --storage "$to" >/dev/null
  sleep 1.2
  while changing; do sleep 0.1; done
  echo "to $to: $(since "$start") s"
done
wait "$all"
line "all the while" "$dir/all"
