#!/usr/bin/env bash
# Acknowledged puts, put-if-absent, and reads inside a node, on three nodes of this machine: ram, 3 copies, 1 KiB. One line of
# JSON per case. usage: bench/kv.sh [SECONDS]
port0=17750
. "$(dirname "$0")/lib.sh"
cluster 3
kv() { tombolo 3 bench kv --storage ram --seconds "$seconds" --json "$@"; }
seconds="${1:-5}"
for op in put put-if-absent; do for clients in 1 64; do kv --op $op --clients $clients --warm 5; done; done
kv --op get --clients 1 --warm 1
kv --op get --clients 1 --warm 1 --unordered
