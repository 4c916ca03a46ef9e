#!/usr/bin/env bash
# usage: jobs/translate.sh [--pair SRC-TGT SOURCE [TARGET]]... [--minutes N] [--ranks N] [--run DIR] [-P KEY=VALUE]...
#
# From a fresh clone to a trained translator: install what is missing, build, prepare a corpus of sentence pairs,
# train a small StableMoE model with experts in encoder and decoder through both stages, compute BLEU and chrF on
# the test split, translate some sentences, make a report. About ten minutes on two cores; on a slow machine
# training ends early.
#
#   --pair SRC-TGT SOURCE [TARGET]
#                  sentence pairs: line n of TARGET translates line n of SOURCE; without TARGET each line of SOURCE
#                  is a pair with a tab between; files may be .gz; may be repeated, for several languages (default:
#                  de-en, the German and English package descriptions of this Debian machine, by
#                  jobs/parallel_text.sh)
#   --minutes N    time for all of it (default 10); training ends early to keep it, but gets at least 2 minutes
#   --ranks N      MPI ranks (default 2)
#   --run DIR      run directory (default runs/translate; a run that is there is overwritten)
#   -P KEY=VALUE   set a configuration key over configs/translation/quick.yml; may be repeated
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

ranks=2 run=runs/translate minutes=10 keys=() pairs=() directions=()
fail() { echo "translate: $*" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --pair)
      [ $# -ge 3 ] || fail "--pair needs a direction such as de-en, and one or two files; see --help"
      [[ $2 =~ ^[A-Za-z_]+-[A-Za-z_]+$ ]] || fail "--pair needs a direction such as de-en, not '$2'"
      directions+=("$2") pairs+=(--pair "$2")
      shift 2
      for file in "$1" "${2--}"; do # one file, or two
        case "$file" in -*) break ;; esac
        [ -f "$file" ] || fail "file '$file' not found"
        pairs+=("$(realpath "$file")")
        shift
      done
      [[ ${pairs[-1]} == /* ]] || fail "--pair ${directions[-1]} needs a file" ;;
    --ranks | --run | --minutes | -P)
      [ $# -ge 2 ] || fail "$1 needs a value; see --help"
      case "$1" in
        --ranks) ranks=$2 ;;
        --run) run=$2 ;;
        --minutes) minutes=$2 ;;
        -P) keys+=(-P "$2") ;;
      esac
      shift 2 ;;
    -*) fail "unknown option '$1'; see --help" ;;
    *) fail "'$1' belongs to no option: files follow --pair SRC-TGT; see --help" ;;
  esac
done
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--minutes must be a number, got '$minutes'"
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "--ranks must be a number from 1 on, got '$ranks'"
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

say "Preparing the corpus of sentence pairs"
mkdir -p runs
own=1
if [ ${#pairs[@]} = 0 ]; then
  own='' directions=(de-en)
  texts=runs/parallel-text
  if [ -s $texts/de-en.de ] && [ -s $texts/de-en.en ]; then
    echo "$texts/de-en.de and .en exist"
  else
    bash jobs/parallel_text.sh -o $texts de
  fi
  pairs=(--pair de-en "$PWD/$texts/de-en.de" "$PWD/$texts/de-en.en")
fi
files=() bytes=0
for word in "${pairs[@]}"; do
  [ -f "$word" ] || continue
  files+=("$word")
  case "$word" in
    *.gz) n=$(gzip -dc "$word" | wc -c) ;;
    *) n=$(wc -c <"$word") ;;
  esac
  bytes=$((bytes + n))
done
# A small text is enough for few pieces only.
vocabulary=4096
[ "$bytes" -ge 4000000 ] || vocabulary=2048
[ "$bytes" -ge 1000000 ] || vocabulary=1024
[ "$bytes" -ge 200000 ] || vocabulary=512
prepare=(--vocab "$vocabulary" --max-tokens 100 --valid 0.02 --test 0.01 --sample 1)
[ "$bytes" -ge 4000000 ] || prepare=(--vocab "$vocabulary" --max-tokens 100)
# The same files with the same options are the same corpus.
key=$({ echo "${prepare[*]} ${directions[*]}"; stat -L -c '%n %s %Y' "${files[@]}"; } | sha256sum | cut -c 1-12)
corpus=runs/pairs-$key.h5
if [ -f "$corpus" ]; then
  echo "$corpus exists"
else
  $stablemoe prepare "${pairs[@]}" "${prepare[@]}" -o "$corpus"
fi
# The configurations of the single methods read this one; a corpus that somebody put there stays.
[ -e runs/pairs.h5 ] && [ ! -L runs/pairs.h5 ] || ln -sfn "${corpus#runs/}" runs/pairs.h5

say "Training on $ranks ranks; every line is also in $run/log.txt"
# What is left, less a sixth for what follows.
left=$(awk -v t=$SECONDS -v all="$minutes" 'BEGIN { m = all * 5 / 6 - t / 60; printf "%.2f", (m > 2 ? m : 2) }')
status=0
mpirun --quiet -n "$ranks" $stablemoe train configs/translation/quick.yml --overwrite -P data.corpus="$corpus" \
  -P run.directory="$run" -P run.max_minutes="$left" ${keys[@]:+"${keys[@]}"} || status=$?
case $status in
  0) ;;
  75 | 76) say "Stopped before its last update to keep the time; continue with --resume (below)" ;;
  *)
    # mpirun --quiet prints nothing about a rank that was killed, by the kernel for lack of memory for example.
    [ $status -le 128 ] || echo "translate: a rank was ended by signal $((status - 128)) ($(kill -l $((status - 128))))" >&2
    exit $status ;;
esac

say "Translating the test split: BLEU and chrF"
mpirun --quiet -n "$ranks" $stablemoe evaluate "$run" --split test --translations "$run/test.tsv" | tee "$run/test.txt"

say "Sample translations of the test split (all of them: $run/test.tsv)"
# Six, evenly from those of moderate length.
awk -F '\t' 'length($2) >= 20 && length($2) <= 120 { line[n++] = $0 }
  END {
    for (i = 0; i < 6 && i < n; i++) {
      split(line[int(i * n / (n < 6 ? n : 6))], part, FS)
      printf "  %-12s %s\n  %-12s %s\n  %-12s %s\n\n", part[1], part[2], "reference", part[3], "translation", part[4]
    }
  }' "$run/test.tsv" | tee "$run/sample.txt"

say "Drawing figures and the report"
python3 -m analysis "$run"
python3 -m analysis report "$run" -o "$run/report.html" --quiet

say "Done"
awk '/ pairs / { next } NF == 5 || $1 == "mean" { printf "  %-22s BLEU %s, lowercased %s, chrF2 %s\n", $1, $(NF - 2), $(NF - 1), $NF }' \
  "$run/test.txt"
to=${directions[0]##*-}
cat <<EOF
  run directory          $run  (log.txt, metrics.csv, checkpoints/, routing/, used.yml)
  report                 $run/report.html, in a browser  (figures: $run/figures/*.png)
  about translation      doc/translation.md
  next steps             source jobs/environment.sh
                         mpirun -n $ranks $stablemoe translate $run FILE --to $to
                         mpirun -n $ranks $stablemoe train $run/used.yml --resume   # continue, if it ended early
  train longer           jobs/translate.sh --minutes 60 -P train.updates=20000 --run runs/longer${own:+ --pair ...}
EOF
