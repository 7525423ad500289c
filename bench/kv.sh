#!/usr/bin/env bash
# Acknowledged puts, put-if-absent, and reads inside a node, on three nodes of this machine: ram, 3 copies, 1 KiB. One line of JSON per case.
# usage: bench/kv.sh [SECONDS]
port0=17750
. "$(dirname "$0")/lib.sh"
up 1; sleep 1; up 2; sleep 1
for op in put put-if-absent; do for clients in 1 64; do
  "${driver[@]}" --op $op --clients $clients --warm 5 --amount "${1:-5}"
done; done
"${driver[@]}" --op get --clients 1 --warm 1 --amount "${1:-5}"
