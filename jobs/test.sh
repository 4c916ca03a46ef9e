#!/usr/bin/env bash
# usage: jobs/test.sh [--suite NAME]... [--no-sanitize]
#
# Install what is missing, build, and run the tests: every suite in the release build, and unit, grad, mpi-2 and
# damage once more with the address and undefined-behaviour sanitizers and assertions (of the suite damage a
# share there; fuzz has sanitizers of its own). The last line has the counts, the lines before it what was skipped,
# why, and what to install; the exit status is 0 only if something ran and nothing failed. With CI=true in the
# environment a skip of what jobs/install.sh --test should have brought is a failure.
#
#   --suite NAME    only this suite, in each of the builds that would run it; may be repeated
#   --no-sanitize   only the release build
#
# STABLEMOE_TEST_JOBS is how many tests run at a time (default: two per core and at most 8, since most of a test
# is waiting for launchers; 1 where a failure shall be looked at undisturbed).
set -uo pipefail
export LC_ALL=C # decimal points, whatever the language is

suites=() sanitize=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --suite)
      [ $# -ge 2 ] || { echo "test.sh: --suite needs a name" >&2; exit 2; }
      suites+=("$2")
      shift 2 ;;
    --no-sanitize) sanitize=no; shift ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "test.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done
cd "$(dirname "$0")/.." || exit 1
exec </dev/null

cores=$(getconf _NPROCESSORS_ONLN)
# More than 8 would not be done earlier: the longest test is about as long as all others beside it.
jobs=${STABLEMOE_TEST_JOBS:-$((cores < 4 ? 2 * cores : 8))}
case "$jobs" in
  *[!0-9]* | 0*) echo "test.sh: STABLEMOE_TEST_JOBS is '$jobs': a number from 1 on expected" >&2; exit 2 ;;
esac
passed=0 failed=0 skipped=0 skips=()
say() { printf '\n[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
finish() {
  echo
  local line
  for line in ${skips[@]:+"${skips[@]}"}; do echo "skipped: $line"; done
  if [ "$skipped" -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
  else
    echo "$passed passed, $failed failed"
  fi
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
  exit
}

# build DIRECTORY SETUP-OPTION...: 1 where that fails, with the reason shown
build() {
  local directory=$1 log
  shift
  say "Building $directory"
  log=$(mktemp)
  if [ -f "$directory/build.ninja" ]; then
    meson setup --reconfigure "$directory" "$@" >"$log" 2>&1
  else
    meson setup "$directory" "$@" >"$log" 2>&1
  fi && ninja -C "$directory" >>"$log" 2>&1
  local status=$?
  [ $status = 0 ] || tail -n 60 "$log"
  grep -i 'warning:' "$log" | sort -u | head -n 20
  rm -f "$log"
  return $status
}

# run DIRECTORY SUITE...: add the outcome of its tests to the counts; no SUITE: all
run() {
  local directory=$1 arguments=() suite log why
  shift
  for suite in "$@"; do arguments+=(--suite "$suite"); done
  say "Testing $directory${1:+: $*}"
  log=$directory/meson-logs/testlog.json
  rm -f "$log"
  # Slow is no failure: machines that run tests are often busy.
  meson test -C "$directory" --no-rebuild --print-errorlogs --timeout-multiplier 3 --num-processes "$jobs" \
    ${arguments[@]:+"${arguments[@]}"}
  local status=$? found p f s
  found=$(python3 test/outcome.py "$log") || found="0 1 0"
  read -r p f s <<<"$found"
  while IFS=$'\t' read -r suite why; do
    skips+=("$suite$([ "$directory" = build-test ] || echo " ($directory)"): $why")
  done < <(tail -n +2 <<<"$found")
  # meson itself failed though no test did
  if [ $status != 0 ] && [ "$f" = 0 ]; then f=1; fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# known DIRECTORY: end with a word about suites that this build does not have
known() {
  local names suite
  names=$(meson introspect --tests "$1" | python3 -c '
import json, sys
print(*sorted({name.partition(":")[2] for test in json.load(sys.stdin) for name in test["suite"]}))') || return 0
  for suite in ${suites[@]:+"${suites[@]}"}; do
    case " $names " in
      *" $suite "*) ;;
      *) echo "test.sh: there is no suite '$suite'; the suites are: $names" >&2; failed=$((failed + 1)) ;;
    esac
  done
  [ "$failed" = 0 ] || finish
}

say "Looking for what is needed"
bash jobs/install.sh --test || { failed=1; finish; }
# shellcheck source=jobs/environment.sh
. jobs/environment.sh

if build build-test --buildtype=release -Dtests=true; then
  known build-test
  run build-test ${suites[@]:+"${suites[@]}"}
else
  failed=$((failed + 1))
fi

# The suites of the sanitized build, if they are wanted.
wanted=()
for suite in unit grad mpi-2 damage; do
  case " ${suites[*]:-$suite} " in *" $suite "*) wanted+=("$suite") ;; esac
done
if [ $sanitize = yes ] && [ ${#wanted[@]} -gt 0 ]; then
  # MPI and the BLAS keep what they took until the end: leaks are not looked for.
  export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  if build build-sanitize --buildtype=debugoptimized -Db_ndebug=false -Db_sanitize=address,undefined \
    -Db_lundef=false -Dtests=true; then
    run build-sanitize "${wanted[@]}"
  else
    failed=$((failed + 1))
  fi
fi
finish
