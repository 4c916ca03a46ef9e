#!/usr/bin/env bash
# usage: jobs/images.sh EXPERIMENT... [--images FILE --labels FILE] [--seeds 1,2,3] [--out DIR] [--table-only]
#
# Experiments of doc/results.md on images; finished runs are kept, and a second call goes on with the rest.
#
#   grids      pMoE's experiment A: 4 x 4 grids of digits, CNN, separate and joint pMoE, 100 to 1,000 training images
#   patterns   pMoE's synthetic data: success over samples and l
#   digits     a Transformer on the digits themselves with and without experts, over training images
#
# grids and digits need images of digits as MNIST has them (28 x 28, IDX files, also .gz): --images and --labels, or
# STABLEMOE_DIGITS=DIRECTORY with files *images-idx3-ubyte* and *labels-idx1-ubyte*.
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is
cd "$(dirname "$0")/.."
python=${STABLEMOE_PYTHON:-/usr/bin/python3}
[ -x "$python" ] || python=python3
for argument; do
  case "$argument" in
    -h | --help) exec "$python" -m analysis.images --help ;; # which needs no program, and builds none
  esac
done
# shellcheck source=jobs/environment.sh
. jobs/environment.sh
if [ ! -x build/stablemoe ]; then
  bash jobs/install.sh
  [ -f build/build.ninja ] || meson setup build
  ninja -C build stablemoe
fi
exec "$python" -m analysis.images "$@"
