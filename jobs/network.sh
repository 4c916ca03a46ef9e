#!/usr/bin/env bash
# usage: jobs/network.sh [CONFIG] [options]
#
# What the forms of the token exchange are worth on networks of different speed: on the virtual Slurm cluster of
# jobs/cluster.sh (root; links shaped to each bandwidth in turn) it times updates with comm.exchange direct and
# two_level and with comm.overlap 0 and 2, in alternation, checks that all computed the same losses bit for bit, and
# prints a table. The nodes share this machine's cores, so the times tell about the network alone; see
# doc/scaling.md. CONFIG is configs/bench/width256.yml by default. A study that was interrupted goes on.
#
#   --nodes N          virtual nodes (default 4)
#   --per-node N       ranks on each (default 2)
#   --bandwidth LIST   of the links, as tc writes it (default 10gbit,1gbit,200mbit)
#   --exchange LIST    default direct,two_level
#   --overlap LIST     default 0,2
#   --repeat N         runs of each (default 3)
#   --updates N        timed updates of a run (default 3)
#   -P KEY=VALUE       set a configuration key; may be repeated
#   -o DIR             figures of the runs (default runs/network)
set -uo pipefail
export LC_ALL=C # decimal points, whatever the language is

# shellcheck source=jobs/arguments.sh
. "$(dirname "$0")/arguments.sh"
nodes=4 per_node=2 bandwidth=10gbit,1gbit,200mbit exchange=direct,two_level overlap=0,2 repeat=3 updates=3
read_arguments "nodes per-node bandwidth exchange overlap repeat updates" "$@"
bandwidths=$bandwidth exchanges=$exchange overlaps=$overlap # lists, of which the loops below take one after the other
here=$(cd "$(dirname "$0")/.." && pwd)
config=$(realpath "${config:-$here/configs/bench/width256.yml}")
out=$(realpath -m "${out:-$here/runs/network}")
[ -f "$config" ] || die "there is no configuration '$config'"
want_numbers "nodes, ranks, repeats or updates" "$nodes" "$per_node" "$repeat" "$updates"
[ "$(id -u)" = 0 ] || die "virtual nodes with shaped links need root"
cd "$here" || exit 2
stablemoe=$(realpath "${STABLEMOE:-build/stablemoe}")
[ -x "$stablemoe" ] || die "no program '$stablemoe': build it, or set STABLEMOE"
mkdir -p "$out"
# The nodes have a /tmp of their own.
share=()
case $stablemoe in /tmp/*) share+=(--share "$(dirname "$stablemoe")") ;; esac
export PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
# A cluster of its own: the one that may be up is left alone.
export STABLEMOE_CLUSTER="${STABLEMOE_CLUSTER:-network}"

# run FILE KEY=VALUE...: one run on the cluster; the file has its name only when it is whole
run() {
  local file=$1 sets=()
  shift
  for key in "$@"; do sets+=(-P "$key"); done
  jobs/cluster.sh run srun --mpi=pmix -N "$nodes" -n $((nodes * per_node)) --ntasks-per-node="$per_node" \
    "$stablemoe" bench "$config" --json -n "$updates" -w 1 ${keys[@]:+"${keys[@]}"} "${sets[@]}" \
    </dev/null >"$file.part" 2>"$file.log" || { tail -n 5 "$file.log" >&2; rm -f "$file.part"; return 1; }
  mv "$file.part" "$file"
}

failed=0
trap 'jobs/cluster.sh down >/dev/null 2>&1' EXIT
for bandwidth in ${bandwidths//,/ }; do
  open_runs=()
  for ((again = 1; again <= repeat; again++)); do
    for exchange in ${exchanges//,/ }; do
      for overlap in ${overlaps//,/ }; do
        file=$out/$bandwidth-$exchange-$overlap-$again.json
        [ -f "$file" ] || open_runs+=("$file comm.exchange=$exchange comm.overlap=$overlap")
      done
    done
  done
  [ ${#open_runs[@]} -gt 0 ] || continue
  echo "network: links of $bandwidth: ${#open_runs[@]} runs to do"
  jobs/cluster.sh down >/dev/null 2>&1
  jobs/cluster.sh up "$nodes" --bandwidth "$bandwidth" ${share[@]:+"${share[@]}"} || die "the virtual cluster does not start"
  for line in "${open_runs[@]}"; do
    read -r file one two <<<"$line"
    run "$file" "$one" "$two" || { failed=1; echo "network: the run $one $two failed" >&2; }
  done
done
python3 -m analysis.scaling_network "$out" || failed=1
exit $failed
