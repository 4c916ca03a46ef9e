#!/usr/bin/env bash
# usage: jobs/quickstart.sh [--ranks N] [--run DIR] [-P KEY=VALUE]... [TEXT...]
#
# From a fresh clone to a trained model with figures: install what is missing, build, prepare a corpus,
# train a small StableMoE model through both stages, evaluate it on the test split, let it write, draw the
# figures. Some minutes on two cores; on a slow machine training ends early, so that all is done in about ten.
#
#   TEXT...        text files and directories to learn from, UTF-8 (default: the source code of this machine's
#                  Python standard library)
#   --ranks N      MPI ranks (default 2)
#   --run DIR      run directory (default runs/quickstart; a run that is there is overwritten)
#   -P KEY=VALUE   set a configuration key over configs/quickstart.yml; may be repeated
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

ranks=2 run=runs/quickstart keys=() texts=() own=
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --ranks | --run | -P)
      [ $# -ge 2 ] || { echo "quickstart: $1 needs a value; see --help" >&2; exit 2; }
      case "$1" in
        --ranks) ranks=$2 ;;
        --run) run=$2 ;;
        -P) keys+=(-P "$2") ;;
      esac
      shift 2 ;;
    -*) echo "quickstart: unknown option '$1'; see --help" >&2; exit 2 ;;
    *)
      [ -e "$1" ] || { echo "quickstart: there is no '$1'" >&2; exit 2; }
      texts+=("$(realpath "$1")") own=" TEXT..."
      shift ;;
  esac
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || { echo "quickstart: --ranks must be a number from 1 on, got '$ranks'" >&2; exit 2; }
cd "$(dirname "$0")/.."

say() { printf '\n[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
exec </dev/null

say "Checking requirements"
bash jobs/install.sh
# shellcheck source=jobs/environment.sh
. jobs/environment.sh

say "Building"
if [ ! -f build/build.ninja ]; then
  log=$(mktemp)
  meson setup build >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
  rm -f "$log"
fi
ninja -C build stablemoe
stablemoe=build/stablemoe

say "Preparing the corpus"
prepare=() sample=()
if [ ${#texts[@]} = 0 ]; then
  # The system's interpreter where there is one: others' libraries hold large test suites.
  python=/usr/bin/python3
  [ -x $python ] || python=python3
  texts=("$($python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')")
  prepare=(--ext .py)
  sample=(--prompt 'def read(self')
  echo "from the source code of Python's standard library, ${texts[0]}"
fi
bytes=$(find -L "${texts[@]}" -type f ${prepare[@]:+-name '*.py'} -printf '%s\n' | awk '{n += $1} END {printf "%d", n}')
# Little text has no use for many pieces.
vocabulary=4096
[ "$bytes" -ge 4000000 ] || vocabulary=2048
[ "$bytes" -ge 1000000 ] || vocabulary=1024
[ "$bytes" -ge 200000 ] || vocabulary=512
# The same files with the same options are the same corpus.
key=$({ echo "$vocabulary ${prepare[*]:-}"; find -L "${texts[@]}" -type f -printf '%p %s %T@\n' | LC_ALL=C sort; } |
  sha256sum | cut -c 1-12)
corpus=runs/corpus-$key.h5
mkdir -p runs
if [ -f "$corpus" ]; then
  echo "$corpus already exists"
else
  $stablemoe prepare "${texts[@]}" ${prepare[@]:+"${prepare[@]}"} --vocab "$vocabulary" -o "$corpus"
fi
# Where the configurations of the single methods look for one; a corpus that somebody put there stays.
[ -e runs/corpus.h5 ] && [ ! -L runs/corpus.h5 ] || ln -sfn "${corpus#runs/}" runs/corpus.h5

say "Training on $ranks ranks; every line is also in $run/log.txt"
# What ten minutes leave, less one for what follows; for a first build on a slow machine at least four.
minutes=$(awk -v t=$SECONDS 'BEGIN { m = 9 - t / 60; printf "%.2f", (m > 4 ? m : 4) }')
# The faster precision of this CPU, by a rule and not by timing: the same machine learns the same again.
precision=fp32
if $stablemoe --version | grep -q '^  bf16 .*: faster than fp32 here'; then precision=bf16; fi
echo "operands of products in $precision"
status=0
mpirun --quiet -n "$ranks" $stablemoe train configs/quickstart.yml --overwrite -P data.corpus="$corpus" \
  -P run.directory="$run" -P run.max_minutes="$minutes" \
  -P train.precision="$precision" ${keys[@]:+"${keys[@]}"} || status=$?
case $status in
  0) ;;
  75 | 76) say "Stopped before its last update: more time trains further; --resume continues (below)" ;;
  *)
    # mpirun --quiet says nothing of a rank that was killed, for want of memory for one.
    [ $status -le 128 ] || echo "quickstart: a rank was ended by signal $((status - 128)) ($(kill -l $((status - 128))))" >&2
    exit $status ;;
esac

say "Evaluating on held-out text"
number() { sed -n "s/.*\"$1\": \([-+0-9.e]*\).*/\1/p"; } # of the JSON on standard input
evaluate() { mpirun -n "$ranks" $stablemoe evaluate "$run" --split "$1" --json | tee "$run/$1.json"; }
valid=$(evaluate valid | number perplexity)
result=$(evaluate test)
test=$(number perplexity <<<"$result") bits=$(number bits_per_byte <<<"$result")
bigram=$($stablemoe info "$corpus" | sed -n 's/.*bigram \([0-9.]*\) nats.*/\1/p' | awk '{printf "%.1f", exp($1)}')

say "A sample${sample[1]:+, after '${sample[1]}'}"
$stablemoe generate "$run" ${sample[@]:+"${sample[@]}"} --temperature 0.6 | tee "$run/sample.txt"

say "Drawing figures and the report"
python3 -m analysis "$run"
python3 -m analysis report "$run" -o "$run/report.html" --quiet

say "Done"
awk -v valid="$valid" -v test="$test" -v bits="$bits" -v bigram="$bigram" 'BEGIN {
  printf "  perplexity per token   validation %.1f, test %.1f (%.2f bits per byte)\n", valid, test, bits
  printf "  bigram baseline        validation %.1f\n", bigram
}'
cat <<END
  run directory          $run  (log.txt, metrics.csv, checkpoints/, routing/, used.yml)
  report                 $run/report.html in a browser  (or $run/figures/*.png)
  read about them        doc/analysis.md
  next steps             source jobs/environment.sh
                         mpirun -n $ranks $stablemoe generate $run --prompt 'Your words'
                         mpirun -n $ranks $stablemoe train $run/used.yml --resume   # after an interruption
  train longer           jobs/quickstart.sh -P train.updates=5000 -P run.max_minutes=0 --run runs/longer$own
END
