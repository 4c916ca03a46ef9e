#!/bin/sh
# Kill a training run N times, resume it on other numbers of ranks, and compare it with an unbroken one.
#
# usage: test/torture.sh [N] [BUILD]      N kills (default 20), BUILD the build directory (default build)
case "${1:-}" in -h | --help) sed -n '2,/^case/{/^case/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;; esac
here=$(cd "$(dirname "$0")" && pwd)
exec "${STABLEMOE_PYTHON:-/usr/bin/python3}" "$here/torture.py" --kills "${1:-20}" --build "${2:-$here/../build}"
