# Sourced by fs.sh: other filesystems, each with three copies of everything on this machine, mounted on $dir/NAME/mnt until the script ends.
# Needs root. The two that are clusters are in network namespaces of their own, with nothing but a loopback: GlusterFS wants no loopback address for
# a brick. What is mounted there is mounted here, too, since only the network is another one.
spaces=()
# space NAME ADDRESS
space() { ip netns add "$1"; spaces+=("$1"); ip -n "$1" addr add "$2/32" dev lo; ip -n "$1" link set lo up; }
# within SECONDS COMMAND...: until it succeeds.
within() { local end=$((SECONDS + $1)); until "${@:2}" >/dev/null 2>&1; do ((SECONDS < end)) || { echo "not within $1 s: ${*:2}" >&2; return 1; }; sleep 0.2; done; }
# background LOG COMMAND...
background() { "${@:2}" </dev/null >>"$1" 2>&1 & pids+=($!); }
part() {
  for p in bindfs gluster moosefs; do umount -l "$dir/$p/mnt" 2>/dev/null || true; done
  # Bricks are no children of this script; whoever is in its namespaces came from it.
  for n in "${spaces[@]}"; do ip netns pids "$n" 2>/dev/null | xargs -r kill 2>/dev/null || true; done
  sleep 1
  for n in "${spaces[@]}"; do ip netns pids "$n" 2>/dev/null | xargs -r kill -9 2>/dev/null || true; ip netns del "$n" || true; done
  finish
}
# The pure cost of FUSE: a directory of the same disc, one copy.
peer_bindfs() { mkdir -p "$dir"/bindfs/{mnt,plain}; background "$dir/bindfs/log" bindfs -f "$dir/bindfs/plain" "$dir/bindfs/mnt"; }
# Replica 3, its defaults. Debian: glusterfs-server, glusterfs-client.
peer_gluster() {
  local d=$dir/gluster n=tombolo-g$$ a=10.79.0.1
  mkdir -p "$d"/{mnt,lib,run,log,b1,b2,b3}; space "$n" "$a"
  sed -e "s|working-directory .*|working-directory $d/lib\n    option run-directory $d/run\n    option logging-directory $d/log\n    option glusterd-sockfile $d/run/sock|" \
    /etc/glusterfs/glusterd.vol >"$d/glusterd.vol"
  background "$d/log/out" nsenter --net="/run/netns/$n" glusterd -N -f "$d/glusterd.vol" -l "$d/log/glusterd.log" -p "$d/run/glusterd.pid"
  g() { nsenter --net="/run/netns/tombolo-g$$" gluster --mode=script --log-file="$dir/gluster/log/cli.log" --glusterd-sock="$dir/gluster/run/sock" "$@"; }
  within 30 g pool list
  g volume create peers replica 3 "$a:$d/b1" "$a:$d/b2" "$a:$d/b3" force >/dev/null
  g volume start peers >/dev/null
  background "$d/log/out" nsenter --net="/run/netns/$n" glusterfs --no-daemon --process-name fuse --volfile-server="$a" --volfile-id=/peers -l "$d/log/mnt.log" "$d/mnt"
}
# Goal 3, each chunk on disc before a file is closed. Debian: moosefs-master, moosefs-chunkserver, moosefs-client.
peer_moosefs() {
  local d=$dir/moosefs n=tombolo-m$$ a=10.79.1.1 common i
  mkdir -p "$d"/{mnt,master}; space "$n" "$a"
  cp /var/lib/mfs/metadata.mfs.empty "$d/master/metadata.mfs"; echo '* / rw,alldirs,maproot=0' >"$d/exports"; : >"$d/topology"; : >"$d/mount.cfg"
  common="WORKING_USER = root\nWORKING_GROUP = root\nDISABLE_OOM_KILLER = 0\n"
  printf "${common}DATA_PATH = $d/master\nEXPORTS_FILENAME = $d/exports\nTOPOLOGY_FILENAME = $d/topology\n" >"$d/master.cfg"
  background "$d/log" nsenter --net="/run/netns/$n" mfsmaster -f -c "$d/master.cfg" start
  sleep 2
  for i in 1 2 3; do
    mkdir "$d/c$i" "$d/hdd$i"; echo "$d/hdd$i" >"$d/hdd$i.cfg"
    printf "${common}DATA_PATH = $d/c$i\nHDD_CONF_FILENAME = $d/hdd$i.cfg\nMASTER_HOST = $a\nCSSERV_LISTEN_PORT = $((19520 + i))\nHDD_FSYNC_BEFORE_CLOSE = 1\n" >"$d/c$i.cfg"
    background "$d/log" nsenter --net="/run/netns/$n" mfschunkserver -f -c "$d/c$i.cfg" start
  done
  sleep 2
  background "$d/log" nsenter --net="/run/netns/$n" mfsmount -f -H "$a" -o "mfscfgfile=$d/mount.cfg,mfsallowoomkiller" "$d/mnt"
  within 30 mountpoint -q "$d/mnt"
  nsenter --net="/run/netns/$n" mfssetgoal 3 "$d/mnt" >/dev/null
}
# peers NAME...: mounts them; they take files when this returns.
peers() {
  trap part EXIT
  local p; for p in "$@"; do "peer_$p"; within 60 mountpoint -q "$dir/$p/mnt"; within 60 touch "$dir/$p/mnt/ready"; done
}
