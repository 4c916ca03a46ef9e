#!/bin/sh
# Put errors into a copy of the sources, one at a time, and see which test fails. Before a release, not in CI.
#
# usage: test/mutants.sh [--only PATTERN] [--list] [--check] [--first] [--trust] [--build DIRECTORY]
case "${1:-}" in -h | --help) sed -n '2,/^case/{/^case/d;s/^# \{0,1\}//p}' "$0" ;; esac
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../jobs/environment.sh"
exec "${STABLEMOE_PYTHON:-/usr/bin/python3}" "$here/mutants.py" "$@"
