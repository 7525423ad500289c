#!/usr/bin/env bash
# What clients feel while a table of so many MiB is cut into more fragments, and these are joined again. Three nodes on one machine:
# nodes and clients share its processors. Needs bc. usage: bench/recut.sh [MIB] [CLIENTS] [STORAGE]
mib=${1:-256}; clients=${2:-16}; storage=${3:-disc}
port0=17720
. "$(dirname "$0")/lib.sh"
cluster 3
keys=$((mib * 1024))
kv() { tombolo 1 bench kv --name "$1" --op mixed --value-size 1024 --keys $keys --clients "$clients" --warm 0 --seconds "$2" --storage "$storage" --fragments "$3" --keep --json; }
changing() { tombolo 1 table info t --json | grep -q '"changing":\['; }
kv plain 10 8 >"$dir/plain"
line "8 fragments left as they are" "$dir/plain"
tombolo 1 table drop plain
kv t 60 8 >"$dir/all" 2>"$dir/err" &
all=$!
until [ "$(records)" = $keys ]; do sleep 0.5; done
for to in 16 64 8; do
  sleep 2; start=$(date +%s.%N)
  tombolo 3 table alter t --fragments "$to" >/dev/null
  sleep 0.5
  while changing; do sleep 0.1; done
  echo "to $to fragments: $(since "$start") s"
done
wait "$all"
line "all the while" "$dir/all"
