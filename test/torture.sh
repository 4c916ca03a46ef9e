#!/bin/sh
# Kill a training run N times, resume it on other numbers of ranks, and compare it with an unbroken one.
#
# usage: test/torture.sh [N] [BUILD] [--pairs] [-P KEY=VALUE]...
#   N kills (default 20), BUILD the build directory (default build); --pairs: a translation model
case "${1:-}" in -h | --help) sed -n '2,/^case/{/^case/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;; esac
here=$(cd "$(dirname "$0")" && pwd)
kills=20 build=$here/../build
case "${1:-}" in [0-9]*) kills=$1; shift ;; esac
case "${1:-}" in '' | -*) ;; *) build=$1; shift ;; esac
exec "${STABLEMOE_PYTHON:-/usr/bin/python3}" "$here/torture.py" --kills "$kills" --build "$build" "$@"
