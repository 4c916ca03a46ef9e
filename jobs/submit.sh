#!/usr/bin/env bash
# usage: jobs/submit.sh CONFIG --ranks N [-P KEY=VALUE]... [options] [-- SBATCH-OPTION...]
#
# Ask Slurm for what a run needs, and submit jobs/train.sbatch: memory per rank is that of
# `stablemoe train --dry-run`, and time is its work over the speed of the ranks.
#
#   --ranks N            MPI ranks
#   --threads N          threads of each (default 1)
#   --ranks-per-node N   default: as many as the smallest node of the default partition has CPUs for
#   --gflops RATE        GFLOP/s of one thread in training (default 15; `stablemoe bench` measures it)
#   --max-time MINUTES   longest time to ask for (default 1440); a longer run comes back after it by itself
#   --print              only show the sbatch command
#   SBATCH-OPTION        goes to sbatch as it is, and over what is computed: --partition, --account, --nodes=2-4
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

fail() { echo "submit.sh: $*" >&2; exit 2; }
config='' ranks='' threads=1 per_node='' gflops=15 most=1440 show=no keys=() further=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --print) show=yes; shift ;;
    --) shift; further=("$@"); break ;;
    --ranks | --threads | --ranks-per-node | --gflops | --max-time | -P)
      [ $# -ge 2 ] || fail "$1 needs a value; see --help"
      if [ "$1" != -P ]; then
        [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ && $2 =~ [1-9] ]] || fail "$1 must be a number above 0, got '$2'"
        [[ $1 = --gflops || $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1 must be an integer up to 999999, got '$2'"
      fi
      case "$1" in
        --ranks) ranks=$2 ;;
        --threads) threads=$2 ;;
        --ranks-per-node) per_node=$2 ;;
        --gflops) gflops=$2 ;;
        --max-time) most=$2 ;;
        -P) keys+=(-P "$2") ;;
      esac
      shift 2 ;;
    -*) fail "unknown option '$1'; see --help" ;;
    *) [ -z "$config" ] || fail "one CONFIG, not '$config' and '$1'"; config=$1; shift ;;
  esac
done
[ -n "$config" ] && [ -n "$ranks" ] || fail "CONFIG and --ranks are needed; see --help"
home=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=/dev/null
[ ! -f "$home/jobs/site.sh" ] || . "$home/jobs/site.sh"
# shellcheck source=jobs/environment.sh
. "$home/jobs/environment.sh"
stablemoe=${STABLEMOE:-$home/build/stablemoe}
[ -x "$stablemoe" ] || stablemoe=$(type -P stablemoe) ||
  fail "'$home/build/stablemoe' is not there: meson setup build && ninja -C build, or set STABLEMOE"
type -P sbatch >/dev/null || [ $show = yes ] || fail "there is no sbatch here: --print shows what it would be asked"

# A plan takes no memory. With more ranks each needs less, so that a few stand for many.
tried=$((ranks < 16 ? ranks : 16)) code=0
plan=$(env -u SLURM_JOB_ID mpirun --quiet --oversubscribe --bind-to none -n "$tried" "$stablemoe" train "$config" ${keys[@]+"${keys[@]}"} \
  --dry-run 2>&1 </dev/null) || code=$?
case "$code $plan" in
  0\ * | 5\ *) ;; # 5: this machine has too little memory, which is not where it will run
  *"data.corpus is not set"*) fail "data.corpus is not set: -P data.corpus=FILE" ;;
  *" ranks for train.lanes = "*)
    lanes=$(sed -n 's/.* ranks for train.lanes = \([0-9]*\).*/\1/p' <<<"$plan" | head -n 1) ;;
  *) echo "$plan" >&2; exit "$code" ;;
esac
lanes=${lanes:-$(sed -n 's/^work: .* tokens in \([0-9]*\) lanes.*/\1/p' <<<"$plan")}
[ "$ranks" -le "${lanes:-$ranks}" ] || fail "$ranks ranks for train.lanes = $lanes of '$config': every rank needs a lane. Fewer ranks, or" \
  "-P train.lanes=$ranks (for a new run: lanes order its sums; train.batch_sequences is a multiple of them)"
mib=$(sed -n 's/.*memory per rank[^:]*: \([0-9.]*\) MiB.*/\1/p' <<<"$plan" | head -n 1)
work=$(sed -n 's/^work: \([0-9]*\) updates of .* lanes, \([-+.e0-9]*\) GFLOP each.*/\1 \2/p' <<<"$plan")
[ -n "$mib" ] && [ -n "$work" ] || { echo "$plan" >&2; fail "the dry run does not say what the run needs"; }

if [ -z "$per_node" ]; then
  cpus=$({ sinfo -h -o '%P %c' 2>/dev/null || true; } | awk '$1 ~ /\*$/ {n = $2 + 0; if (!m || n < m) m = n} END {print m + 0}')
  per_node=$((cpus / threads > 0 ? cpus / threads : 1))
  [ "$cpus" != 0 ] || per_node=$ranks
fi
nodes=$(((ranks + per_node - 1) / per_node))
per_node=$(((ranks + nodes - 1) / nodes))
[ $((nodes * per_node)) = "$ranks" ] ||
  fail "$ranks ranks cannot be shared out evenly over $nodes nodes: choose --ranks-per-node"
# A quarter and 256 MiB more: the libraries, MPI's buffers, what uneven routing takes.
memory=$(awk -v m="$mib" -v t="$threads" 'BEGIN {printf "%d", (m * 1.25 + 256) / t + 1}')
# Twice the time of the work, and five minutes: reading, evaluating, saving, waiting for each other.
minutes=$(awk -v w="$work" -v r="$ranks" -v t="$threads" -v g="$gflops" -v most="$most" 'BEGIN {
  split(w, n, " "); m = 2 * n[1] * n[2] / (r * t * g) / 60 + 5; printf "%d", (m > most ? most : m + 1) }')

# As long before its end as saving may take.
warn=$((minutes * 6 < 60 ? 60 : minutes * 6 > 300 ? 300 : minutes * 6))

set -- --nodes="$nodes" --ntasks-per-node="$per_node" --cpus-per-task="$threads" --mem-per-cpu="${memory}M" \
  --time="$minutes" --signal="B:USR1@$warn" ${further[@]+"${further[@]}"} "$home/jobs/train.sbatch" "$config" ${keys[@]+"${keys[@]}"}
echo "sbatch $*"
[ $show = yes ] || exec sbatch "$@"
