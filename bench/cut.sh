#!/usr/bin/env bash
# How long writers wait when five nodes are cut three to two: where the fragment's leader is on their side, where only other copies
# are, and where there is no copy at all. A write every 50 ms each, the start of its process included. Needs root, ip and bc.
# usage: bench/cut.sh [CUTS]
cuts=${1:-3}
port0=0
. "$(dirname "$0")/lib.sh"
five
# leader TABLE: the number of the node that leads its one fragment.
leader() { tombolo 1 table info "$1" --json | grep -o '"leader":"n[1-5]"' | tr -dc 1-5; }
# Whose leader the table has is chance: one for each side that counts.
i=0
while [ -z "${led:-}" ] || [ -z "${single:-}" ]; do
  i=$((i + 1)); tombolo 1 table create "t$i" --copies 5 --fragments 1; tombolo 1 table create "s$i" --copies 1 --fragments 1
  sleep 2
  [ "$(leader "t$i")" -le 3 ] && led=t$i; [ "$(leader "s$i")" -le 3 ] && single=s$i
done
sleep 5
writer() {
  while :; do
    s=$(date +%s%N); tombolo "$2" put "$3" "k$2" "$s" >/dev/null 2>&1 && echo "$(date +%s%N)"; sleep 0.05
  done >"$dir/$1"
}
writer here 1 "$led" & pids+=($!)
writer elsewhere 4 "$led" & pids+=($!)
writer nocopy 4 "$single" & pids+=($!)
sleep 3
for c in $(seq "$cuts"); do
  cut=$(date +%s%N); wire br1; sleep 12
  for w in here elsewhere nocopy; do
    awk -v cut="$cut" -v w="$w" -v c="$c" '$1 > cut - 1e9 { if (p && $1 > cut && $1 - p > most) most = $1 - p; p = $1 }
      END { printf "cut %d, %s: longest wait %.2f s\n", c, w, most / 1e9 }' "$dir/$w"
  done
  wire br0; all whole; sleep 20
done
