#!/usr/bin/env bash
# usage: jobs/reproduce.sh TABLE... [--size small|base|large] [--seeds 1,2,3] [--out DIR] [--corpus FILE]
#                          [--ranks N] [--parallel N] [--rates] [--known FILE] [--dry-run]
#                          [--table-only]
#
# Run tables of the StableMoE paper and write them beside the paper's figures, or compare the methods of all
# papers (tables relatives, gates, depth); --help lists the tables. Table translation needs a corpus of pairs. Without
# --corpus the source code of this machine's Python standard library is prepared, with a vocabulary of 2,048.
# Size small takes a night for all tables on two cores, about two hours for the main one; base and large are the
# paper's, for a cluster (inside a batch job, --launcher 'srun --mpi=pmix -n 32' takes the place of mpirun).
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is
cd "$(dirname "$0")/.."

# The system's interpreter where there is one: Debian's packages belong to it.
python=${STABLEMOE_PYTHON:-/usr/bin/python3}
[ -x "$python" ] || python=python3
corpus=yes
for argument; do
  case "$argument" in
    -h | --help) exec "$python" -m analysis.reproduce --help ;; # which needs no program, and builds none
    --corpus | --corpus=*) corpus= ;;
  esac
done
# shellcheck source=jobs/environment.sh
. jobs/environment.sh
if [ ! -x build/stablemoe ]; then
  bash jobs/install.sh
  [ -f build/build.ninja ] || meson setup build
  ninja -C build stablemoe
fi
if [ -n "$corpus" ]; then
  corpus=runs/reproduce/python.h5
  mkdir -p runs/reproduce
  [ -f $corpus ] || build/stablemoe prepare \
    "$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" --ext .py --vocab 2048 -o $corpus
  set -- "$@" --corpus $corpus
fi
exec "$python" -m analysis.reproduce "$@"
