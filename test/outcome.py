#!/usr/bin/env python3
"""Counts of a test log of meson, and what was skipped, with the reason.

    outcome.py BUILD/meson-logs/testlog.json

The first line has the numbers of passed, failed and skipped tests; a skipped case of a test that passed counts as
skipped, too. Then a line for each skip: test, tab, reason. Reasons that name jobs/install.sh say what it brings: if CI
is `true` these are failures, because it ran.
"""

import json
import os
import re
import sys

RESULTS = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}
INSTALLED = "jobs/install.sh"


def reasons(test):
    """What a test says about skips: a line `skipped: reason` of a whole one, unittest's `skipped 'reason'` of a case."""
    output = test.get("stdout", "") + "\n" + test.get("stderr", "")
    if test["result"] == "SKIP":
        found = re.search(r"skipped: (.*)", output)
        return [found[1] if found else "no reason given"]
    cases = re.findall(r"^(?:(\w+) \(.*\)|.*) ?\.\.\. skipped (['\"])(.*)\2$", output, re.M)
    return [f"{case}: {reason}" if case else reason for case, _, reason in cases]


def outcome(log, strict):
    """Counts by kind, and (test, reason) of every skip. Without a log nothing ran, which is a failure."""
    counts, skips = {"passed": 0, "failed": 0, "skipped": 0}, []
    try:
        with open(log, encoding="utf-8") as file:
            tests = [json.loads(line) for line in file]
    except OSError:
        return {**counts, "failed": 1}, skips
    for test in tests:
        kind = RESULTS.get(test["result"], "failed")
        here = reasons(test) if kind != "failed" else []
        missing = [reason for reason in here if strict and INSTALLED in reason]
        counts["failed" if missing else kind] += 1
        if kind == "passed" and not missing:
            counts["skipped"] += len(here)
        name = test["name"].partition(":")[2] or test["name"]
        skips += [(name, f"a failure, since CI=true: {reason}" if reason in missing else reason) for reason in here]
    return counts, skips


def main():
    counts, skips = outcome(sys.argv[1], os.environ.get("CI") == "true")
    print(*counts.values())
    for name, reason in skips:
        print(f"{name}\t{reason}")


if __name__ == "__main__":
    main()
