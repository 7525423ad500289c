# Sourced by the scripts beside it: builds, makes a scratch directory, and starts nodes that end with the script.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
dir=$(mktemp -d); pids=()
finish() {
  umount -l "$dir/mnt" 2>/dev/null || true
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
# tombolo N ...: a command for node N.
tombolo() { target/release/tombolo --data "$dir/$1" "${@:2}"; }
# up N: node N, on port $port0 + N, that looks for node 1; its process id in $last. Returns when it has found the others.
up() {
  target/release/tombolo --data "$dir/$1" up --name "n$1" --cookie-file "$dir/cookie" --no-multicast \
    --listen "127.0.0.1:$((port0 + $1))" --join "127.0.0.1:$((port0 + 1))" >>"$dir/$1.log" 2>&1 &
  last=$!; pids+=("$last")
}
# Nodes 1 to N, all in view of each other.
cluster() {
  for n in $(seq "$1"); do up "$n"; sleep 1; done
  until [ "$(tombolo 1 status --json 2>/dev/null | grep -o '"reachable":true' | wc -l)" = "$1" ]; do sleep 0.05; done
}
# in_sync N COPIES: waits until node N sees so many copies of the measured table in sync.
in_sync() { until tombolo "$1" status --json 2>/dev/null | grep -q "\"name\":\"tombolo-bench\".*\"in_sync\":$2"; do sleep 0.02; done; }
since() { echo "$(date +%s.%N) - $1" | bc; }
# figure NAME: that number of a report of `bench kv --json`. line TITLE FILE: all of one as a line. records: how many node 1 has of table t.
figure() { grep -o "\"$1\":[0-9.]*" | cut -d: -f2; }
line() { echo "$1: $(figure ops_s <"$2") ops/s, p50 $(figure p50_us <"$2") us, p99 $(figure p99_us <"$2") us, p99.9 $(figure p999_us <"$2") us, longest $(figure max_us <"$2") us, failed $(figure failed <"$2")"; }
records() { tombolo 1 table info t --json 2>/dev/null | grep -o '"records":[0-9]*' | cut -d: -f2 | paste -sd+ | bc; }
# Five nodes in network namespaces, whole. `wire br1` cuts nodes 4 and 5 off, `wire br0` joins them again. Needs root and ip.
five() {
  tag=tombolo$$
  trap 'finish; for n in 1 2 3 4 5 br; do ip netns del "$tag-$n" 2>/dev/null || true; done' EXIT
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
  all whole
}
wire() { for n in 4 5; do ip -n "$tag-br" link set "v$n" master "$1"; done; }
# all STATE: waits until every one of the five says so.
all() { for n in 1 2 3 4 5; do until tombolo "$n" status --json 2>/dev/null | grep -q "\"state\":\"$1\""; do sleep 0.02; done; done; }
