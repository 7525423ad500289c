#!/usr/bin/env bash
# Files on three nodes of this machine, 3 copies, durability interval: creates from 1 and 4 processes, 256 MiB written and read.
port0=17770
. "$(dirname "$0")/lib.sh"
cluster 3
mkdir "$dir/mnt"
tombolo 1 mount shared "$dir/mnt" --background >/dev/null
create() { python3 - "$1" "$2" "$3" <<'P'
import os, sys
for i in range(int(sys.argv[3])): os.close(os.open(f"{sys.argv[1]}/{sys.argv[2]}-{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
P
}
for procs in 1 4; do
  mkdir "$dir/mnt/d$procs"; each=$((10000 / procs)); start=$(date +%s.%N); jobs_=()
  for p in $(seq $procs); do create "$dir/mnt/d$procs" "$p" $each & jobs_+=($!); done
  wait "${jobs_[@]}"
  echo "creates from $procs processes: $(echo "10000 / ($(date +%s.%N) - $start)" | bc) per s"
done
start=$(date +%s.%N); dd if=/dev/zero of="$dir/mnt/big" bs=1M count=256 conv=fsync status=none
echo "write of 256 MiB with fsync: $(echo "256 / ($(date +%s.%N) - $start)" | bc) MiB/s"
echo 3 >/proc/sys/vm/drop_caches; start=$(date +%s.%N); dd if="$dir/mnt/big" of=/dev/null bs=1M status=none
echo "read of 256 MiB: $(echo "256 / ($(date +%s.%N) - $start)" | bc) MiB/s"
