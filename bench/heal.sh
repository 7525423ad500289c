#!/usr/bin/env bash
# Seconds from the wire's return until five nodes that were cut three to two are one again, bytes received by each meanwhile, and
# how long a writer on either side waited, process start included. Needs root, ip and bc. usage: bench/heal.sh [RECORDS] [DIVERGE]
records=${1:-1000000} diverge=${2:-10000}
port0=0
. "$(dirname "$0")/lib.sh"
five
rx() { ip -n "$tag-$1" -s link show eth0 | awk '/RX:/ { getline; print $1; exit }'; }
tombolo 1 bench kv --op get --copies 5 --keys "$records" --value-size 100 --clients 1 --warm 0 --seconds 1 --keep >/dev/null
in_sync 1 5
wire br1
all partitioned; sleep 8
value=$(head -c 100 /dev/zero | tr '\0' x)
for side in 1 4; do
  seq $((diverge / 2)) | xargs -P 4 -I{} target/release/tombolo --data "$dir/$side" put tombolo-bench "side$side-{}" "$value"
  (while :; do s=$(date +%s%N); tombolo "$side" put tombolo-bench "w$side-$s" "$value"; echo $((($(date +%s%N) - s) / 1000000)); done \
    >"$dir/waits$side" 2>/dev/null) & pids+=($!)
done
sleep 2; for n in 1 2 3 4 5; do before[n]=$(rx "$n"); done; for side in 1 4; do : >"$dir/waits$side"; done
start=$(date +%s.%N)
wire br0
all whole; for n in 1 2 3 4 5; do in_sync "$n" 5; done; sleep 0.1
echo "one again after $(since "$start") s"
for n in 1 2 3 4 5; do echo "n$n received $(($(rx "$n") - before[n])) bytes"; done
for side in 1 4; do sort -n "$dir/waits$side" | awk -v side="$side" '{ a[NR] = $1 } END { print "a writer at n" side ": " NR " puts, p50 " a[int(NR * .5) + 1] " ms, p99 " a[int(NR * .99) + 1] " ms, at most " a[NR] " ms" }'; done
tombolo 2 heals | tail -1
