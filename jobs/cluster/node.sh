#!/usr/bin/env bash
# usage: jobs/cluster/node.sh NAME STATE COMMAND...
#
# Of jobs/cluster.sh: make the namespaces that this process is in the node NAME of the cluster in the directory
# STATE, and run COMMAND there. A node other than the login node has a /tmp and a /dev/shm of its own (the ranks
# of several nodes would meet in a shared one), with the directories of STATE/shares put back where they were.
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

node=$1 state=$2
shift 2
hostname "$node"
mount --bind "$state/hosts" /etc/hosts
[ "$node" != login ] || exec "$@"

mapfile -t shares < <(sort -u "$state/shares" | grep -E '^/(tmp|dev/shm)/' || true)
held=$state/share/$node
for i in "${!shares[@]}"; do
  mkdir -p "$held/$i"
  mount --bind "${shares[i]}" "$held/$i"
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for i in "${!shares[@]}"; do
  mkdir -p "${shares[i]}"
  mount --bind "$held/$i" "${shares[i]}"
done
cd /
"$@" &
daemon=$!
# As the first process of its node it takes in the processes that lost theirs: wait sees to them.
trap 'kill -TERM $daemon 2>/dev/null' TERM
wait "$daemon"
