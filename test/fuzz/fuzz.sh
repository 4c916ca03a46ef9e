#!/bin/sh
# Fuzz everything that reads untrusted bytes.
#
#   fuzz.sh DIRECTORY SECONDS [HARNESS ...]
#
# SECONDS are shared by the harnesses, one after the other. DIRECTORY keeps what was built, what
# the search has learnt (corpus/) and what it has found (crashes/). Exit status: 0 nothing found,
# 1 something found, 77 there is no clang with libFuzzer here (CLANG names one).
set -eu

[ $# -ge 2 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 2; }
directory=$1
seconds=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
all="config text metrics images seal tokenizer_model tokenizer_text shards tensors pairs checkpoint corpus routing_log"
harnesses=${*:-$all}
mkdir -p "$directory/objects"
directory=$(cd "$directory" && pwd)
export TMPDIR="$directory/tmp"
rm -rf "$TMPDIR"
mkdir -p "$TMPDIR" "$directory/crashes"
trap 'rm -rf "$TMPDIR"' EXIT

clang=
for candidate in ${CLANG:-} clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14; do
  printf 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return (int)(n > 9 && d[0]); }\n' >"$TMPDIR/try.c"
  if "$candidate" -fsanitize=fuzzer,address,undefined "$TMPDIR/try.c" -o "$TMPDIR/try" 2>/dev/null; then
    clang=$candidate
    break
  fi
done
if [ -z "$clang" ]; then
  echo "fuzz: skipped: no clang with libFuzzer (clang and libclang-rt-14-dev); jobs/install.sh --test brings it"
  exit 77
fi

for hdf5 in hdf5-openmpi hdf5-mpi hdf5; do
  pkg-config --exists $hdf5 && break
done
libraries=$(pkg-config --libs $hdf5 yaml-0.1 libarchive jansson libpng libxxhash sentencepiece zlib ompi-c 2>/dev/null ||
  pkg-config --libs $hdf5 yaml-0.1 libarchive jansson libpng libxxhash sentencepiece zlib mpi)
hdf5_hl=$(pkg-config --libs $hdf5 | tr ' ' '\n' | sed -n 's/^-L\(.*hdf5.*\)/-L\1/p') # it has no file of its own
system=$(pkg-config --cflags $hdf5 yaml-0.1 libarchive jansson libpng libxxhash sentencepiece zlib ompi-c 2>/dev/null ||
  pkg-config --cflags $hdf5 yaml-0.1 libarchive jansson libpng libxxhash sentencepiece zlib mpi)
flags="-O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=undefined -D_GNU_SOURCE -DSMOE_VERSION=\\\"fuzz\\\"
  -I$source/include -I$source/src -I$source/test $system"
library=-fsanitize=fuzzer-no-link,address,undefined

# What is older than its source or than any header is compiled again.
headers=$(find "$source/include" "$source/src" "$source/test" -name '*.h' -newer "$directory/objects/stamp" 2>/dev/null |
  head -1 || true)
[ -e "$directory/objects/stamp" ] && [ -z "$headers" ] || rm -f "$directory"/objects/*.o
touch "$directory/objects/stamp"

# One line for each object that is missing; then two compilers at a time.
want() { # object, compiler, file
  [ "$directory/objects/$1" -nt "$3" ] && return
  case $3 in
  *.cc) standard='-std=c++17 -fno-sanitize=vptr,function' ;; # they want the runtime of C++
  *) standard=-std=c11 ;;
  esac
  printf '%s %s %s %s -c %s -o %s\n' "$2" "$(echo $flags)" "$library" "$standard" "$3" "$directory/objects/$1"
}
{
  for file in "$source"/src/base/*.c "$source"/src/config/*.c "$source"/src/comm/*.c "$source"/src/data/*.c \
    "$source"/src/io/*.c "$source"/src/params/*.c "$source"/src/train/metrics*.c; do
    folder=$(basename "$(dirname "$file")")
    want "lib_${folder}_$(basename "$file" .c).o" "$clang" "$file"
  done
  want lib_tokenizer.o "$clang" "$source/src/data/tokenizer.cc"
  for name in fuzz files; do want "test_$name.o" "$clang" "$here/$name.c"; done
  want test_structure.o "$clang" "$source/test/damage/structure.c"
  for name in $harnesses; do want "harness_$name.o" "$clang" "$here/$name.c"; done
} >"$TMPDIR/compile"
xargs -r -P 2 -d '\n' -n 1 sh -c <"$TMPDIR/compile"

# Memory of libraries at their end is theirs; ours is watched where no HDF5 and MPI are in the way.
export ASAN_OPTIONS="allocator_may_return_null=1:detect_leaks=0:abort_on_error=0"
export UBSAN_OPTIONS="print_stacktrace=1"
export OMP_NUM_THREADS=1
count=$(echo $harnesses | wc -w)
each=$((seconds / count))
[ "$each" -ge 1 ] || each=1
found=0
for name in $harnesses; do
  objects="$directory/objects/test_fuzz.o $directory/objects/harness_$name.o"
  case $name in
  checkpoint | corpus | routing_log) objects="$objects $directory/objects/test_files.o $directory/objects/test_structure.o" ;;
  esac
  "$clang" -fsanitize=fuzzer,address,undefined $objects "$directory"/objects/lib_*.o $hdf5_hl $libraries -lhdf5_hl -lm \
    -lstdc++ -o "$directory/fuzz_$name"
  corpus="$directory/corpus/$name"
  mkdir -p "$corpus"
  STABLEMOE_FUZZ_SEEDS="$corpus" "$directory/fuzz_$name" >/dev/null 2>"$TMPDIR/seeds" ||
    { cat "$TMPDIR/seeds"; exit 1; }
  case $name in
  config | text | metrics | images | tensors | pairs) leaks=detect_leaks=1 ;;
  *) leaks=detect_leaks=0 ;;
  esac
  if ASAN_OPTIONS="$ASAN_OPTIONS:$leaks" "$directory/fuzz_$name" -max_total_time="$each" -timeout=20 \
    -rss_limit_mb=3000 -malloc_limit_mb=2000 -max_len=8192 -close_fd_mask=1 -print_final_stats=1 \
    -artifact_prefix="$directory/crashes/$name-" "$corpus" >"$directory/$name.log" 2>&1; then
    verdict=clean
  else
    verdict="FOUND SOMETHING, see $directory/$name.log"
    found=1
  fi
  printf '%-16s %12s inputs  %8s kept  %s\n' "$name" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$directory/$name.log" | tail -1)" \
    "$(find "$corpus" -type f | wc -l)" "$verdict"
done
exit $found
