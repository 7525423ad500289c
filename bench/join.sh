#!/usr/bin/env bash
# Seconds until a fourth node has an in-sync copy of 200,000 records of 1 KiB (ram) while a client keeps writing, and until a
# killed node is back in sync. usage: bench/join.sh [RECORDS]
port0=17760
. "$(dirname "$0")/lib.sh"
cluster 3
# Reads are measured of keys that are put first, and the table stays.
tombolo 3 bench kv --op get --storage ram --copies 4 --keys "${1:-200000}" --clients 1 --warm 0 --seconds 1 --keep >/dev/null
(while tombolo 3 put tombolo-bench again x 2>/dev/null; do :; done) & pids+=($!)
start=$(date +%s.%N); up 4; fourth=$last; in_sync 1 4
echo "fourth node in sync after $(since "$start") s"
kill -9 "$fourth"; in_sync 1 3
start=$(date +%s.%N); up 4; in_sync 1 4
echo "killed node back in sync after $(since "$start") s"
