#!/usr/bin/env bash
# usage: jobs/from-a-model.sh CORPUS [--run DIR] [--seeds "1 2 3"] [--updates N] [--ranks N] [--config FILE] [-P KEY=VALUE]...
#
# Two studies of what begins with a trained dense model (doc/from-a-model.md), on a corpus that is there:
#
#   upcycling  a dense model is trained for N updates, then, for N more on data in another order: the dense model itself,
#              experts made of it (moe.from: ffn), and the same experts from scratch, at equal updates
#   skipping   gates on the attention of all blocks but the last of the dense model are tuned for a twentieth of its
#              updates, for several shares of all attention that is to be skipped; compared with attention that skips at
#              random, as much, and with the attention of the deepest layers but the last left out
#
# Writes DIR/results.tsv, a line for each model and seed, and DIR/speed.tsv: evaluation and generation of the first seed's
# models with skipping, and the same with nothing skipped, by the processor's clock. Prints both, the losses as means and
# standard deviations over the seeds, with the differences to the dense model seed by seed. A run that is there and done
# is not made again.
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

# Runs that were made otherwise are not to be mixed with these.
made="$corpus $(cksum <"$config") $updates $ranks ${keys[*]}"
[ ! -f "$run/made" ] || [ "$(cat "$run/made")" = "$made" ] ||
  fail "the runs in '$run' were made with another corpus, configuration or options: give another --run, or remove it"
echo "$made" >"$run/made"

# arguments NAME SEED [KEY=VALUE]...: keys of a run, into the array `arguments`.
arguments() {
  arguments=("$config" -P "data.corpus=$corpus" -P "run.directory=$run/$1" -P "run.seed=$2" -P "train.updates=$updates"
    -P train.checkpoint_every=0 -P train.evaluate_every=0 "${keys[@]}")
  local key
  for key in "${@:3}"; do arguments+=(-P "$key"); done
}

# train NAME SEED [KEY=VALUE]...: a run, unless it is done.
train() {
  [ ! -f "$run/$1/done" ] || return 0
  echo "training $run/$1"
  arguments "$@"
  mpirun -n "$ranks" "$program" train "${arguments[@]}" --overwrite >"$run/$1.log" 2>&1 ||
    fail "the run '$run/$1' failed; see $run/$1.log"
  touch "$run/$1/done"
}

# column NAME COLUMN: the last value of a column of metrics.csv.
column() {
  awk -F, -v name="$2" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) c = i } END { print $c }' "$run/$1/metrics.csv"
}

# skipped NAME: the share of the gated layers' rows that skipped in validation.
skipped() {
  sed -n 's/^share of rows that ran behind the gates: \([0-9.]*\).*/\1/p' "$run/$1.log" | tail -n 1 | awk '{ print 1 - $1 }'
}

# of_all NAME GATED: that, as a share of the attention of all blocks.
of_all() { awk -v s="$(skipped "$1")" -v gated="$2" -v blocks="$blocks" 'BEGIN { printf "%.4f", s * gated / blocks }'; }

record() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$run/results.tsv"; }

# rate NAME [OPTION]...: tokens of generation per second of the processor's clock.
rate() {
  local TIMEFORMAT=%U used
  used=$({ time "$program" generate "$run/$1" --corpus "$corpus" -n 100 -s 32 -p The "${@:2}" >"$run/$1.text" 2>&1; } 2>&1)
  sed -n 's/^\([0-9]*\) tokens in .*/\1/p' "$run/$1.text" | awk -v s="$used" '{ print $1 / s }'
}

# number FILE NAME: a number of a JSON object.
number() { grep -o "\"$2\": *[0-9.e+-]*" "$1" | sed 's/.*: *//'; }

# speed NAME SHARE SEED [KEY=VALUE]...: a line of speed.tsv.
speed() {
  local name=$1 share=$2 made=$run/$1/bench.json rates
  shift
  arguments "$name" "${@:2}" "train.initial=$run/$name"
  [ -f "$run/$name/rate" ] || {
    mpirun -n "$ranks" "$program" bench "${arguments[@]}" -n 7 -w 1 --json >"$made" 2>"$run/$name.bench.log" ||
      fail "bench failed; see $run/$name.bench.log"
    echo "$(rate "$name") $(rate "$name" --no-skip)" >"$run/$name/rate"
  }
  read -r -a rates <"$run/$name/rate"
  awk -v name="$name" -v share="$share" -v s="$(number "$made" evaluation_processor_seconds)" \
    -v a="$(number "$made" evaluation_processor_seconds_without_skipping)" -v r="${rates[0]}" -v n="${rates[1]}" 'BEGIN {
    printf "%s\t%s\t%.2f\t%.2f\t%.3f\t%.1f\t%.1f\t%.3f\n", name, share, 1000 * s, 1000 * a, a / s, r, n, r / n }' >>"$run/speed.tsv"
}

printf 'study\tmodel\tseed\tskipped\tvalid_loss\n' >"$run/results.tsv"
printf 'model\tskipped\tevaluation_ms\twithout_skipping_ms\tspeedup\tgenerated_per_s\twithout_skipping_per_s\tspeedup\n' \
  >"$run/speed.tsv"
dense=(moe.layers=0 moe.from=none)
tune=$((updates / 20 > 0 ? updates / 20 : 1))
first=''
for seed in $seeds; do
  : "${first:=$seed}"
  other=$((seed + 1000)) # another order of the data
  train "dense-$seed" "$seed" "${dense[@]}"
  blocks=$(sed -n '/^model:/,/^[a-z]/s/^  blocks: //p' "$run/dense-$seed/used.yml")
  [ "$blocks" -ge 3 ] || fail "model.blocks must be 3 or more: gates are on all blocks but the last"
  record upcycling dense "$seed" 0 "$(column "dense-$seed" valid_loss)"
  train "dense-on-$seed" "$other" "${dense[@]}" "train.initial=$run/dense-$seed"
  train "upcycled-$seed" "$other" "train.initial=$run/dense-$seed"
  train "scratch-$seed" "$other" moe.from=none
  for model in dense-on upcycled scratch; do
    record upcycling "$model" "$seed" 0 "$(column "$model-$seed" valid_loss)"
  done
  record skipping dense "$seed" 0 "$(column "dense-$seed" valid_loss)"
  skip=("${dense[@]}" model.skip.what=attention schedule.warmup=0)
  still=("train.initial=$run/dense-$seed" train.updates=1 optimizer.lr=0)
  gated=$((blocks - 1))
  # As many layers as make up to half of the attention.
  for ((layers = 1; 2 * layers <= blocks; layers++)); do
    # A weight of 0.3 lets the task hold open what matters, but does not bring about that half of the attention skips.
    weight=0.3
    [ $((2 * layers)) -lt "$blocks" ] || weight=1
    target=$(awk -v n="$layers" -v gated="$gated" 'BEGIN { printf "%.4f", 1 - n / gated }')
    for unit in sequence token; do
      name=$unit-$layers-$seed
      gate=("model.skip.layers=$gated" "model.skip.unit=$unit" "model.skip.target=$target" "model.skip.weight=$weight" "train.only=*/gate"
        "train.updates=$tune" optimizer.lr=0.01)
      train "$name" "$other" "${skip[@]}" "${gate[@]}" "train.initial=$run/dense-$seed"
      record skipping "gates ($unit), $layers of $blocks layers' worth" "$seed" "$(of_all "$name" "$gated")" "$(column "$name" valid_loss)"
      train "random-$name" "$other" "${skip[@]}" "${still[@]}" "model.skip.layers=$gated" model.skip.choice=random \
        "model.skip.share=$(skipped "$name")"
      record skipping "at random, as much as gates ($unit), $layers of $blocks" "$seed" "$(of_all "random-$name" "$gated")" "$(column "random-$name" valid_loss)"
      [ "$seed" != "$first" ] || speed "$name" "$(of_all "$name" "$gated")" "$other" "${skip[@]}" "${gate[@]}"
    done
    name=fixed-$layers-$seed
    train "$name" "$other" "${skip[@]}" "${still[@]}" model.skip.choice=always "model.skip.layers=$layers"
    record skipping "$layers of $blocks layers left out" "$seed" "$(of_all "$name" "$layers")" "$(column "$name" valid_loss)"
    [ "$seed" != "$first" ] || speed "$name" "$(of_all "$name" "$layers")" "$other" "${skip[@]}" model.skip.choice=always \
      "model.skip.layers=$layers" train.updates=1
  done
done

# Means and standard deviations over the seeds, and those of the difference, seed by seed, to the dense model: in the study
# of upcycling to the one that was trained on.
awk -F '\t' '
  function spread(sum, squares, n) { v = n > 1 ? (squares - sum * sum / n) / (n - 1) : 0; return v > 0 ? sqrt(v) : 0 }
  NR > 1 { loss[$1, $2, $3] = $5; skipped[$1, $2, $3] = $4; seed[$3]
           if (!(($1, $2) in seen)) { order[++m] = $1 "\t" $2; seen[$1, $2] } }
  END { printf "study\tmodel\tseeds\tskipped\tvalidation loss\tstandard deviation\tdifference\tstandard deviation\n"
        for (i = 1; i <= m; i++) {
          split(order[i], k, "\t"); base = k[1] == "upcycling" ? "dense-on" : "dense"
          n = h = s = q = d = e = 0
          for (j in seed) if ((k[1], k[2], j) in loss) {
            x = loss[k[1], k[2], j]; y = x - loss[k[1], base, j]
            n++; h += skipped[k[1], k[2], j]; s += x; q += x * x; d += y; e += y * y }
          printf "%s\t%d\t%.3f\t%.4f\t%.4f\t%+.4f\t%.4f\n", order[i], n, h / n, s / n, spread(s, q, n), d / n, spread(d, e, n) } }' \
  "$run/results.tsv"
echo
cat "$run/speed.tsv"
