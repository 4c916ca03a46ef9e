#!/usr/bin/env bash
# usage: jobs/scaling.sh CONFIG [options]
#
# A scaling study: time updates of a configuration (`stablemoe bench`) on several numbers of ranks, check that all
# computed the same losses bit for bit, print a table and draw the figures. Under Slurm every run is a job of its
# own (sbatch); inside a job and without Slurm the runs follow one another here. A study that was interrupted goes
# on when the same command is given again: runs that are done are not repeated.
#
#   --ranks LIST     numbers of ranks (default 1,2,4,8)
#   --mode MODE      strong: the configuration's batch on all (default); weak: train.batch_sequences and train.lanes
#                    are those of one rank, and grow with the ranks
#   --repeat N       runs per number of ranks (default 3)
#   --updates N      timed updates of a run and stage (default 5)
#   --vocab N        vocabulary of random tokens, where data.corpus is not set (default 8192)
#   --cores N        cores of a node, where the program cannot see that (nodes that share theirs: 0.5)
#   --per-node N     ranks per node, under Slurm (default: as Slurm places them)
#   -P KEY=VALUE     set a configuration key; may be repeated
#   -o STUDY         directory of the study (default runs/scaling/<name of CONFIG>-<mode>)
#
# Options of sbatch (partition, account, time) are taken from its own variables: SBATCH_PARTITION, SBATCH_ACCOUNT ...
# STABLEMOE names the program (default build/stablemoe), STABLEMOE_LAUNCHER what starts ranks (default
# `srun --mpi=pmix` in a job where Slurm has PMIx, else mpirun).
# Exit status: 0; 1 where a run failed or losses differ; 2 where what was asked for cannot be.
set -uo pipefail
export LC_ALL=C # decimal points, whatever the language is

# shellcheck source=jobs/arguments.sh
. "$(dirname "$0")/arguments.sh"
mode=strong ranks=1,2,4,8 repeat=3 updates=5 vocab=8192 cores='' per_node='' sets=()
point='' # what the jobs of a study call: one run, "RANKS REPEAT KEY=VALUE ..."
read_arguments "ranks mode repeat updates vocab cores per-node point" "$@"
[ -n "$config" ] || die "no CONFIG; see --help"
[ -f "$config" ] || die "there is no configuration '$config'"
case $mode in strong | weak) ;; *) die "--mode is strong or weak, not '$mode'" ;; esac
want_numbers "repeats, updates or pieces" "$repeat" "$updates" "$vocab"
config=$(realpath "$config")
[ -z "$out" ] || out=$(realpath -m "$out")
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here" || exit 2
config=${config#"$here"/}
study=${out:-$here/runs/scaling/$(basename "$config" .yml)-$mode}
stablemoe=${STABLEMOE:-build/stablemoe}
[ -x "$stablemoe" ] || die "no program '$stablemoe': build it (meson setup build && ninja -C build), or set STABLEMOE"
stablemoe=$(realpath "$stablemoe")
# shellcheck source=jobs/environment.sh
. jobs/environment.sh
export PYTHONDONTWRITEBYTECODE=1
studies() { python3 -m analysis.scaling_plan "$@"; }

# launch RANKS PROGRAM...: in a job of Slurm by srun where it knows PMIx, else by mpirun
launch() {
  local n=$1 launcher=${STABLEMOE_LAUNCHER:-} pmix
  shift
  if [ -z "$launcher" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    pmix=$(srun --mpi=list 2>&1 | tr -s ' \t,' '\n' | grep -x -m 1 -E 'pmix(_v[0-9]+)?')
    [ -z "$pmix" ] || launcher="srun --mpi=$pmix"
  fi
  launcher=${launcher:-mpirun --quiet}
  case $launcher in
    # Slurm 22.05 and later do not hand the job's --cpus-per-task on to srun.
    srun*) $launcher --export=ALL -n "$n" -c "${SLURM_CPUS_PER_TASK:-1}" ${per_node:+--ntasks-per-node="$per_node"} "$@" ;;
    *) $launcher -n "$n" "$@" ;;
  esac
}

# file_of "RANKS REPEAT ...": where the figures of a run belong
file_of() {
  local count again
  read -r count again _ <<<"$1"
  printf '%s/points/ranks-%04d-repeat-%d.json' "$study" "$count" "$again"
}

# run_point "RANKS REPEAT KEY=VALUE ...": one run; its figures have their name only when they are whole
run_point() {
  local count again keys_of_point file status=0
  read -r count again keys_of_point <<<"$1"
  file=$(file_of "$1")
  sets=()
  for key in $keys_of_point; do sets+=(-P "$key"); done
  launch "$count" "$stablemoe" bench "$config" --json -n "$updates" -w 1 --vocab "$vocab" \
    ${keys[@]:+"${keys[@]}"} ${sets[@]:+"${sets[@]}"} </dev/null >"$file.part" || status=$?
  if [ $status != 0 ]; then
    rm -f "$file.part"
    echo "scaling: the run on $count ranks (repeat $again) failed with exit status $status" >&2
    return 1
  fi
  mv "$file.part" "$file"
}

if [ -n "$point" ]; then
  run_point "$point"
  exit
fi
# shellcheck disable=SC2086
open_runs=$(studies plan "$study" "$config" --mode "$mode" --ranks "$ranks" --repeat "$repeat" \
  --bench "-n $updates -w 1 --vocab $vocab" ${cores:+--cores $cores} ${keys[@]:+"${keys[@]}"}) || exit 2
points=()
[ -z "$open_runs" ] || mapfile -t points <<<"$open_runs"
echo "scaling: ${#points[@]} runs to do in $study"

failed=0
# Commands of Slurm may be there without a cluster behind them.
if [ ${#points[@]} -gt 0 ] && [ -z "${SLURM_JOB_ID:-}" ] && command -v sbatch >/dev/null 2>&1 && sinfo >/dev/null 2>&1; then
  # One job at a time (singleton): runs beside each other would disturb each other's times.
  name=scaling-$(echo "$study" | sha256sum | cut -c 1-8)
  jobs=()
  for line in "${points[@]}"; do
    call=(jobs/scaling.sh "$config" -o "$study" --updates "$updates" --vocab "$vocab" ${per_node:+--per-node "$per_node"}
      ${keys[@]:+"${keys[@]}"} --point "$line")
    count=${line%% *} log=$(file_of "$line")
    log=${log%.json}.log
    job=$(STABLEMOE=$stablemoe sbatch --parsable --job-name="$name" --dependency=singleton --ntasks="$count" \
      ${per_node:+--ntasks-per-node="$per_node"} --chdir="$here" --output="$log" --export=ALL \
      --wrap="$(printf '%q ' "${call[@]}")") || die "sbatch does not take the run on $count ranks"
    jobs+=("${job%%;*}")
  done
  echo "scaling: jobs ${jobs[*]}; to stop them: scancel --name=$name"
  trap 'scancel "${jobs[@]}" 2>/dev/null; exit 130' INT TERM
  while [ -n "$(squeue --noheader --format=%i --jobs="$(IFS=,; echo "${jobs[*]}")" 2>/dev/null)" ]; do sleep 2; done
  for line in "${points[@]}"; do
    file=$(file_of "$line")
    [ -f "$file" ] && continue
    failed=1
    echo "scaling: the job of run $line has no result; its log:" >&2
    tail -n 20 "${file%.json}.log" >&2
  done
else
  for line in ${points[@]:+"${points[@]}"}; do
    echo "scaling: run $line"
    run_point "$line" || failed=1
  done
fi
studies collect "$study" || failed=1
exit $failed
