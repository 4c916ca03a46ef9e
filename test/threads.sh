#!/usr/bin/env bash
# Look for data races between the threads of a rank with ThreadSanitizer. Before a release, not in CI.
#
# usage: test/threads.sh [--build DIRECTORY]      DIRECTORY is where it builds (default build-threads)
#
# Trains small models on 2 ranks with the watchdog, the lock's thread and each form of the token exchange, one OpenMP
# thread per rank (libgomp is not instrumented, so its barriers would be reported). Then it makes one variable of the
# watchdog non-atomic in a copy of the sources, which has to be reported. Exit status 0: no race in the sources, and
# the planted one was found.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;; esac
[ "${1:-}" != --build ] || { build=${2:?threads.sh: --build needs a directory}; shift 2; }
[ $# = 0 ] || { echo "threads.sh: unknown argument '$1'; see --help" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
build=$(realpath -m "${build:-$root/build-threads}")
. "$root/jobs/environment.sh"
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Libraries that are not compiled with it report their own synchronisation as races.
export TSAN_OPTIONS="exitcode=0 ignore_noninstrumented_modules=1 log_path=$work/race"

compile() { # SOURCES DIRECTORY
  echo "threads: building $2"
  [ -f "$2/build.ninja" ] ||
    meson setup "$2" "$1" --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false -Dtests=false >/dev/null
  ninja -C "$2" src/app/stablemoe >"$work/log" 2>&1 || { tail -n 40 "$work/log"; exit 1; }
}

races() { # PROGRAM: how many reports training it gives
  local program=$1 corpus=$work/corpus.h5 keys
  rm -rf "$work"/race.* "$work"/run
  [ -f "$corpus" ] || "$program" prepare "$root/doc" --vocab 512 -o "$corpus" >/dev/null 2>&1
  for keys in "comm.exchange=direct" "comm.exchange=direct comm.overlap=2" \
    "comm.exchange=two_level comm.node_ranks=1" "comm.exchange=direct comm.alltoallv=pairwise"; do
    # shellcheck disable=SC2046
    mpirun -n 2 "$program" train "$root/configs/tiny/stable.yml" --overwrite -P "run.directory=$work/run" \
      -P "data.corpus=$corpus" -P comm.watchdog_s=0.4 $(printf -- '-P %s ' $keys) >"$work/log" 2>&1 ||
      { tail -n 20 "$work/log" >&2; echo "threads: training with $keys failed" >&2; exit 1; }
  done
  cat "$work"/race.* 2>/dev/null | grep -c '^WARNING: ThreadSanitizer' || true
}

compile "$root" "$build"
found=$(races "$build/src/app/stablemoe")
[ "$found" = 0 ] || cat "$work"/race.* >&2
echo "threads: $found reports of races"

mkdir "$work/sources"
tar -C "$root" -c meson.build meson_options.txt src include analysis configs doc README.md LICENSE CHANGELOG.md |
  tar -C "$work/sources" -x
watchdog=$work/sources/src/comm/watchdog.c
sed -i 's/  _Atomic double since;/  double since;/
  s/atomic_store_explicit(&now.since, smoe_seconds(), memory_order_relaxed)/now.since = smoe_seconds()/
  s/= atomic_load(&now.since), waited/= now.since, waited/' "$watchdog"
[ "$(diff "$root/src/comm/watchdog.c" "$watchdog" | grep -c '^>')" = 3 ] ||
  { echo "threads: the race can no longer be planted in src/comm/watchdog.c: change it in test/threads.sh" >&2; exit 1; }
compile "$work/sources" "$work/build"
planted=$(races "$work/build/src/app/stablemoe")
echo "threads: $planted reports with one race planted"

[ "$found" = 0 ] && [ "$planted" -gt 0 ]
