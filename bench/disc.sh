#!/usr/bin/env bash
# Puts that are on disc at all three nodes of this machine before they are acknowledged (1 KiB), beside Redis with appendfsync
# always: one server, one copy. usage: bench/disc.sh [SECONDS]
port0=17790
. "$(dirname "$0")/lib.sh"
cluster 3
for clients in 1 64; do tombolo 3 bench kv --durability sync --clients $clients --warm 5 --seconds "${1:-5}" --json; done
mkdir "$dir/redis"
redis-server --bind 127.0.0.1 --port 17799 --dir "$dir/redis" --save '' --appendonly yes --appendfsync always >/dev/null & pids+=($!)
sleep 1
for clients in 1 64; do
  redis-benchmark -h 127.0.0.1 -p 17799 -t set -n $((clients * 1000)) -c $clients -d 1024 -r 100000 --csv | tail -1
done
