#!/usr/bin/env bash
# Seconds from the wire's return until five nodes that were cut three to two are one again, bytes received by each meanwhile, and
# how long a writer on either side waited, process start included. Needs root, ip and bc. usage: bench/heal.sh [RECORDS] [DIVERGE]
records=${1:-1000000} diverge=${2:-10000}
port0=0
. "$(dirname "$0")/lib.sh"
tag=heal$$
gone() { for n in 1 2 3 4 5 br; do ip netns del "$tag-$n" 2>/dev/null || true; done; }
trap 'finish; gone' EXIT
ip netns add "$tag-br"
for b in br0 br1; do ip -n "$tag-br" link add $b type bridge mcast_snooping 0; ip -n "$tag-br" link set $b up; done
echo "correct horse battery staple" >"$dir/cookie"; chmod 600 "$dir/cookie"
for n in 1 2 3 4 5; do
  ip netns add "$tag-$n"
  ip -n "$tag-br" link add "v$n" type veth peer name eth0 netns "$tag-$n"
  ip -n "$tag-br" link set "v$n" master br0 up
  ip -n "$tag-$n" addr add "10.76.0.$n/24" dev eth0
  ip -n "$tag-$n" link set eth0 up; ip -n "$tag-$n" link set lo up
  nsenter --net="/run/netns/$tag-$n" target/release/tombolo --data "$dir/$n" up --name "n$n" --cookie-file "$dir/cookie" \
    --no-multicast --join 10.76.0.1:7474 >>"$dir/$n.log" 2>&1 &
  pids+=($!); sleep 1
done
all() { for n in 1 2 3 4 5; do until tombolo "$n" status --json 2>/dev/null | grep -q "\"state\":\"$1\""; do sleep 0.02; done; done; }
rx() { ip -n "$tag-$1" -s link show eth0 | awk '/RX:/ { getline; print $1; exit }'; }
all whole
tombolo 1 bench kv --op get --copies 5 --keys "$records" --value-size 100 --clients 1 --warm 0 --seconds 1 --keep >/dev/null
in_sync 1 5
for n in 4 5; do ip -n "$tag-br" link set "v$n" master br1; done
all partitioned; sleep 8
value=$(head -c 100 /dev/zero | tr '\0' x)
for side in 1 4; do
  seq $((diverge / 2)) | xargs -P 4 -I{} target/release/tombolo --data "$dir/$side" put tombolo-bench "side$side-{}" "$value"
  (while :; do s=$(date +%s%N); tombolo "$side" put tombolo-bench "w$side-$s" "$value"; echo $((($(date +%s%N) - s) / 1000000)); done \
    >"$dir/waits$side" 2>/dev/null) & pids+=($!)
done
sleep 2; for n in 1 2 3 4 5; do before[n]=$(rx "$n"); done; for side in 1 4; do : >"$dir/waits$side"; done
start=$(date +%s.%N)
for n in 4 5; do ip -n "$tag-br" link set "v$n" master br0; done
all whole; for n in 1 2 3 4 5; do in_sync "$n" 5; done; sleep 0.1
echo "one again after $(since "$start") s"
for n in 1 2 3 4 5; do echo "n$n received $(($(rx "$n") - before[n])) bytes"; done
for side in 1 4; do sort -n "$dir/waits$side" | awk -v side="$side" '{ a[NR] = $1 } END { print "a writer at n" side ": " NR " puts, p50 " a[int(NR * .5) + 1] " ms, p99 " a[int(NR * .99) + 1] " ms, at most " a[NR] " ms" }'; done
tombolo 2 heals | tail -1
