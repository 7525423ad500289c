#!/usr/bin/env bash
# What clients feel while a fourth node joins three and takes its share of so many MiB. On one machine: nodes and clients share its
# processors. Needs bc. usage: bench/share.sh [MIB] [CLIENTS]
mib=${1:-2048}; clients=${2:-16}
port0=17600
. "$(dirname "$0")/lib.sh"
cluster 3
kv() { tombolo 1 bench kv --value-size 16384 --keys "$1" --clients "$clients" --warm 0 --json "${@:2}"; }
line() { echo "$1: $(figure ops_s <"$2") puts/s, p50 $(figure p50_us <"$2") us, p99 $(figure p99_us <"$2") us, p99.9 $(figure p999_us <"$2") us, longest $(figure max_us <"$2") us, failed $(figure failed <"$2") $(grep -o '"reasons":{[^}]*}' "$2")"; }
kv $((mib * 64)) --op get --seconds 1 --name data --keep >"$dir/load"
kv 1000 --op put --seconds 15 >"$dir/before"
line "before" "$dir/before"
moved() { tombolo 4 fragments --json 2>/dev/null; }
kv 1000 --op put --seconds 60 >"$dir/during" & load=$!
sleep 2; start=$(date +%s.%N); up 4
until tombolo 4 status --json 2>/dev/null | grep -q '"ready":true'; do sleep 0.1; done
# Every node holds its share, and nothing is on its way.
until moved | grep -v '"behind":\["' | grep '"moves":\[\]' | grep -q '"name":"n4"[^}]*"copies":[1-9]'; do sleep 0.2; done
echo "balanced after $(since "$start") s"
wait "$load"
line "during" "$dir/during"
kv 1000 --op put --seconds 15 >"$dir/after"
line "after, four nodes" "$dir/after"
tombolo 1 fragments | tail -5
