#!/usr/bin/env python3
"""Put errors into a copy of the sources, one at a time, and see which test fails.

mutants.txt lists them. Each is applied to a copy of the tree in a build directory of its own; the tests that the
list names for it run first, then, if they pass, the suites in the order of SUITES. A mutant that no test sees lives.

Exit status: 0 if all were seen, 1 if one lives, 2 if one cannot be applied or does not compile.
"""

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

# The quick ones first. Not here: what needs a browser or a cluster, looks at Python alone, or takes very long.
SUITES = ["unit", "grad", "parity", "mpi-1", "mpi-2", "mpi-3", "mpi-4", "e2e", "damage", "fault", "resume"]

TOKEN = re.compile(r"\s+|\"(?:\\.|[^\"\\])*\"|\w+|[^\w\s]")


class Mutant:
    """One error: pairs of old and new text, where to look for them, and the tests that should see it."""

    def __init__(self, name, tests):
        self.name, self.tests, self.about, self.edits, self.where = name, tests, "", [], "src/**/*.c"

    def pattern(self, old):
        """Old text as a pattern that does not mind where lines break."""
        return re.compile(r"\s*".join(re.escape(t) for t in TOKEN.findall(old) if not t.isspace()))

    def changes(self, tree):
        """{path: (text before, text after)}; raises ValueError where an edit has no one place."""
        texts = {}
        for where, old, new in self.edits:
            pattern, places = self.pattern(old), []
            for path in sorted(glob.glob(os.path.join(tree, where), recursive=True)):
                if path not in texts:
                    with open(path) as file:
                        text = file.read()
                    texts[path] = (text, text)
                places += [(path, match) for match in pattern.finditer(texts[path][1])]
            if len(places) != 1:
                raise ValueError(f"{len(places)} places in {where} have: {old}")
            path, match = places[0]
            before, text = texts[path]
            texts[path] = (before, text[:match.start()] + new + text[match.end():])
        return {path: pair for path, pair in texts.items() if pair[0] != pair[1]}


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def read_list(path):
    """Mutants of a list: `* name: tests`, words about it, `@ files` for what follows, `- old`, `+ new`."""
    mutants, old = [], None
    with open(path) as file:
        for number, line in enumerate(file, 1):
            mark, rest = line[:1], line[1:].strip()
            if mark in ("#", "\n", ""):
                continue
            if mark == "*":
                name, _, tests = rest.partition(":")
                mutants.append(Mutant(name, tests.split()))
            elif mark == "@":
                mutants[-1].where = rest
            elif mark == "-":
                old = rest
            elif mark == "+":
                mutants[-1].edits.append((mutants[-1].where, old, rest))
            elif mark == " ":
                mutants[-1].about = rest
            else:
                raise SystemExit(f"{path}:{number}: a line begins with one of * @ - + # or a blank")
    names = [m.name for m in mutants]
    assert len(set(names)) == len(names), "a name is there twice"
    return mutants


class Tree:
    """A copy of the sources and its build."""

    def __init__(self, directory):
        self.source, self.build = os.path.join(directory, "source"), os.path.join(directory, "build")
        shutil.rmtree(self.source, ignore_errors=True)
        names = subprocess.run(["git", "-C", ROOT, "ls-files"], check=True, text=True,
                               stdout=subprocess.PIPE).stdout.splitlines()
        for name in filter(lambda n: os.path.exists(os.path.join(ROOT, n)), names):
            target = os.path.join(self.source, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(os.path.join(ROOT, name), target, follow_symlinks=False)
        self.log = os.path.join(directory, "log.txt")
        if not os.path.exists(os.path.join(self.build, "build.ninja")):
            self.run(["meson", "setup", self.build, self.source, "-Dtests=true"], check=True)

    def run(self, command, check=False):
        with open(self.log, "w") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                  cwd=self.source)
        if check and done.returncode:
            with open(self.log) as log:
                raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-3000:]}")
        return done.returncode

    def failed(self, what):
        """The first test of meson's arguments that fails, None if all pass; ValueError where it does not build."""
        results = os.path.join(self.build, "meson-logs", "testlog.json")
        if os.path.exists(results):
            os.remove(results)
        code = self.run(["meson", "test", "-C", self.build, "--maxfail", "1", *what])
        found = []
        if os.path.exists(results):
            with open(results) as file:
                found = [json.loads(line) for line in file]
        bad = [r["name"] for r in found if r["result"] not in ("OK", "SKIP", "INTERRUPT", "EXPECTEDFAIL")]
        if code and not bad:
            with open(self.log) as log:
                raise ValueError(f"it does not build:\n{log.read()[-2000:]}")
        if not any(r["result"] == "OK" for r in found) and not bad:
            raise ValueError(f"no test ran of {what}")
        return bad[0] if bad else None


def try_mutant(tree, mutant, first_only):
    """Name of the test that saw it, or None."""
    if mutant.tests:
        seen = tree.failed(mutant.tests)
        if seen:
            return seen
    for suite in [] if first_only else SUITES:
        seen = tree.failed(["--suite", suite])
        if seen:
            return seen
    return None


def report(results):
    by_test = {}
    for name, seen in results.items():
        by_test.setdefault(seen, []).append(name)
    print(f"\n{len(results)} errors, {sum(seen is not None for seen in results.values())} seen")
    for test, names in sorted(by_test.items(), key=lambda item: (item[0] is None, -len(item[1]))):
        print(f"  {test or 'NOT SEEN'}: {', '.join(names)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="those whose names match a regular expression")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--check", action="store_true", help="only whether each can be applied")
    parser.add_argument("--first", action="store_true", help="only the tests that the list names, no whole suites")
    parser.add_argument("--trust", action="store_true", help="do not first run these tests without any error")
    parser.add_argument("--build", default=os.path.join(ROOT, "build-mutants"), metavar="DIRECTORY")
    options = parser.parse_args()
    mutants = [m for m in read_list(os.path.join(HERE, "mutants.txt")) if re.search(options.only, m.name)]
    if options.list:
        print("\n".join(f"{m.name}: {m.about}" for m in mutants))
        return 0
    if options.check:
        wrong = 0
        for mutant in mutants:
            try:
                mutant.changes(ROOT)
            except ValueError as error:
                wrong += 1
                print(f"{mutant.name}: {error}")
        print(f"{len(mutants)} errors, {wrong} of them cannot be applied")
        return 2 if wrong else 0

    tree, results, broken = Tree(os.path.abspath(options.build)), {}, []
    if not options.trust:
        failed = tree.failed(sorted({test for mutant in mutants for test in mutant.tests}))
        if failed:
            raise SystemExit(f"{failed} fails without any error put in; see {tree.log}")
    for mutant in mutants:
        changes, begin = {}, time.monotonic()
        try:
            changes = mutant.changes(tree.source)
            for path, (_, after) in changes.items():
                write(path, after)
            results[mutant.name] = try_mutant(tree, mutant, options.first)
            word = results[mutant.name] or "LIVES"
        except ValueError as error:
            broken.append(mutant.name)
            word = f"CANNOT BE TRIED: {error}"
        finally:
            for path, (before, _) in changes.items():
                write(path, before)
        print(f"{mutant.name}: {word} ({time.monotonic() - begin:.0f} s)", flush=True)
    report(results)
    if broken:
        print(f"cannot be tried: {', '.join(broken)}")
    return 2 if broken else int(None in results.values())


if __name__ == "__main__":
    sys.exit(main())
