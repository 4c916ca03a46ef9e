#!/usr/bin/env bash
# usage: jobs/from-a-model.sh CORPUS [--run DIR] [--seeds "1 2 3"] [--updates N] [--ranks N] [--config FILE] [-P KEY=VALUE]...
#
# Two studies of what begins with a trained dense model (doc/from-a-model.md), on a corpus that is there:
#
#   upcycling  a dense model is trained for N updates, then, for N more on data in another order: the dense model itself,
#              experts made of it (moe.from: ffn), and the same experts from scratch, at equal updates
#   skipping   gates on the attention of the dense model are tuned for a twentieth of its updates, for several targets;
#              beside them attention that skips at random, as much, and the attention of whole layers left out
#
# Writes DIR/results.tsv, a line for each model and seed, and prints means and standard deviations over the seeds. A run
# that is there and done is not made again.
#
#   --run DIR      directory for the runs (default runs/from-a-model)
#   --seeds LIST   seeds (default "1 2 3")
#   --updates N    updates of the dense model (default 1000)
#   --ranks N      MPI ranks (default 2)
#   --config FILE  configuration with experts (default configs/upcycle.yml)
#   -P KEY=VALUE   set a configuration key of all runs; may be repeated
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

corpus='' run=runs/from-a-model seeds='1 2 3' updates=1000 ranks=2 config='' keys=()
fail() { echo "from-a-model: $*" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --run | --seeds | --updates | --ranks | --config | -P)
      [ $# -ge 2 ] || fail "$1 needs a value; see --help"
      case "$1" in
        --run) run=$2 ;;
        --seeds) seeds=$2 ;;
        --updates) updates=$2 ;;
        --ranks) ranks=$2 ;;
        --config) config=$2 ;;
        -P) keys+=(-P "$2") ;;
      esac
      shift 2 ;;
    -*) fail "unknown option '$1'; see --help" ;;
    *) [ -z "$corpus" ] || fail "one CORPUS; see --help"
      corpus=$1
      shift ;;
  esac
done
[ -f "$corpus" ] || fail "the corpus '$corpus' was not found; stablemoe prepare makes one"
[[ $updates =~ ^[1-9][0-9]*$ ]] || fail "--updates must be a number from 1 on, got '$updates'"
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "--ranks must be a number from 1 on, got '$ranks'"
for seed in $seeds; do [[ $seed =~ ^[0-9]+$ ]] || fail "--seeds must be numbers, got '$seed'"; done
corpus=$(realpath "$corpus")
[ -z "$config" ] || config=$(realpath "$config")
mkdir -p "$run"
run=$(realpath "$run")
cd "$(dirname "$0")/.."
: "${config:=configs/upcycle.yml}"
program=${STABLEMOE:-build/stablemoe}
[ -x "$program" ] || fail "'$program' was not found: build it (jobs/install.sh, meson setup build, ninja -C build)"
# shellcheck source=jobs/environment.sh
source jobs/environment.sh
exec </dev/null

# train NAME SEED [KEY=VALUE]...: a run, unless it is done.
train() {
  local directory=$run/$1 seed=$2 more=() key
  shift 2
  for key in "$@"; do more+=(-P "$key"); done
  [ ! -f "$directory/done" ] || return 0
  echo "training $directory"
  mpirun -n "$ranks" "$program" train "$config" -P "data.corpus=$corpus" -P "run.directory=$directory" -P "run.seed=$seed" \
    -P "train.updates=$updates" -P train.checkpoint_every=0 -P train.evaluate_every=0 "${keys[@]}" "${more[@]}" --overwrite \
    >"$directory.log" 2>&1 || fail "the run '$directory' failed; see $directory.log"
  touch "$directory/done"
}

# column NAME COLUMN: the last value of a column of metrics.csv.
column() {
  awk -F, -v name="$2" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) c = i } END { print $c }' "$run/$1/metrics.csv"
}

# skipped NAME: the share of the gated sublayers' rows that skipped in validation.
skipped() {
  sed -n 's/^share of rows that ran behind the gates: \([0-9.]*\).*/\1/p' "$run/$1.log" | tail -n 1 | awk '{ print 1 - $1 }'
}

record() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$run/results.tsv"; }

printf 'study\tmodel\tseed\tskipped\tvalid_loss\n' >"$run/results.tsv"
dense=(moe.layers=0 moe.from=none)
tune=$((updates / 20 > 0 ? updates / 20 : 1))
for seed in $seeds; do
  other=$((seed + 1000)) # another order of the data
  train "dense-$seed" "$seed" "${dense[@]}"
  record upcycling dense "$seed" - "$(column "dense-$seed" valid_loss)"
  train "dense-on-$seed" "$other" "${dense[@]}" "train.initial=$run/dense-$seed"
  train "upcycled-$seed" "$other" "train.initial=$run/dense-$seed"
  train "scratch-$seed" "$other" moe.from=none
  for model in dense-on upcycled scratch; do
    record upcycling "$model" "$seed" - "$(column "$model-$seed" valid_loss)"
  done
  skip=("${dense[@]}" "train.initial=$run/dense-$seed" model.skip.what=attention schedule.warmup=0)
  still=(train.updates=1 optimizer.lr=0)
  for target in 0.9 0.75 0.5; do
    name=gates-$target-$seed
    train "$name" "$other" "${skip[@]}" "train.only=*/gate" "train.updates=$tune" "model.skip.target=$target" \
      model.skip.weight=1 optimizer.lr=0.01
    share=$(skipped "$name")
    record skipping "gates, target $target" "$seed" "$share" "$(column "$name" valid_loss)"
    train "random-$target-$seed" "$other" "${skip[@]}" "${still[@]}" model.skip.choice=random "model.skip.share=$share"
    record skipping "at random, as gates of target $target" "$seed" "$(skipped "random-$target-$seed")" \
      "$(column "random-$target-$seed" valid_loss)"
  done
  for layers in 1 2; do
    train "fixed-$layers-$seed" "$other" "${skip[@]}" "${still[@]}" model.skip.choice=always "model.skip.layers=$layers"
    record skipping "all of $layers layers" "$seed" "$layers layers" "$(column "fixed-$layers-$seed" valid_loss)"
  done
done

awk -F '\t' 'NR > 1 { k = $1 "\t" $2; if (!(k in n)) order[++m] = k; n[k]++; s[k] += $5; q[k] += $5 * $5; h[k] += $4 }
  END { printf "study\tmodel\tseeds\tskipped\tvalidation loss\tstandard deviation\n"
        for (i = 1; i <= m; i++) { k = order[i]; mean = s[k] / n[k]; v = n[k] > 1 ? (q[k] - n[k] * mean * mean) / (n[k] - 1) : 0
          printf "%s\t%d\t%.3f\t%.4f\t%.4f\n", k, n[k], h[k] / n[k], mean, v > 0 ? sqrt(v) : 0 } }' "$run/results.tsv"
