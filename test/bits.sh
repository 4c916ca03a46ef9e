#!/bin/sh
# Train many small configurations with two builds of the program and compare all that they write, bit for bit.
#
# usage: test/bits.sh [--only PATTERN] [--keep DIRECTORY] OLD NEW [RANKS...]
#   OLD, NEW         paths of two `stablemoe` programs: before and after a change that must change no result
#   RANKS            numbers of ranks to train on (default: 1 2 4)
#   --only PATTERN   only the configurations whose names match this regular expression
#   --keep DIRECTORY make the runs there and leave them
#
# Compared are /param and /adam of every checkpoint, metrics.csv without its times, the routing log, and what
# `generate` prints. NEW also resumes runs that OLD began. Exit status 1 where anything differs.
case "${1:-}" in -h | --help | '') sed -n '2,/^case/{/^case/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;; esac
here=$(cd "$(dirname "$0")" && pwd)
exec "${STABLEMOE_PYTHON:-/usr/bin/python3}" "$here/bits.py" "$@"
