"""Suite lint: `lint.py RULE ROOT [BUILD]`. Exit status 0 clean, 1 offences (listed), 77 cannot be checked here.

Rules that need nothing but the tree are in rules.py; those that need tools or a build are here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import rules

SKIP = 77
# Versions disagree on details, so one of them is the rule: Debian 12's.
CLANG_FORMAT = "14"


class Skip(Exception):
    """The rule cannot be checked on this machine."""


def clang_format(root: Path, build: Path) -> list[str]:
    """Every C and C++ file is as clang-format leaves it."""
    tool = shutil.which(f"clang-format-{CLANG_FORMAT}") or shutil.which("clang-format")
    if not tool:
        raise Skip("clang-format is not installed; jobs/install.sh --test brings it")
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    if not re.search(rf"version {CLANG_FORMAT}\.", version):
        raise Skip(f"formatting is that of clang-format {CLANG_FORMAT}; here is {version.strip()}")
    found = []
    for path in rules.files(root, ".c", ".h", ".cc"):
        result = subprocess.run([tool, "--dry-run", "-Werror", path], capture_output=True, text=True, check=False)
        if result.returncode:
            line = re.search(r":(\d+):\d+:", result.stderr)
            found.append(f"{path.relative_to(root).as_posix()}:{line.group(1) if line else 1}: "
                         "not formatted: run clang-format -i on it")
    return found


def _compile_command(build: Path) -> tuple[list[str], Path]:
    """Compiler and flags of a file that uses all there is, without input and output."""
    for entry in json.loads((build / "compile_commands.json").read_text("utf-8")):
        if entry["file"].endswith("src/io/h5.c"):
            words = shlex.split(entry["command"])
            kept = [w for i, w in enumerate(words)
                    if w not in ("-c", "-o", "-MD", "-MQ", "-MF") and words[i - 1] not in ("-o", "-MQ", "-MF")
                    and w != entry["file"]]
            return kept, Path(entry["directory"])
    raise Skip("src/io/h5.c is not in compile_commands.json of the build")


def headers(root: Path, build: Path) -> list[str]:
    """Every header compiles alone, in both precisions."""
    command, directory = _compile_command(build)
    found = []
    for path in rules.files(root, ".h", under=("include", "src")):
        for precision in ([], ["-DSMOE_DOUBLE"]):
            text = f'#include "{path}"\n#include "{path}"\nint main(void) {{ return 0; }}\n'
            result = subprocess.run([*command, "-Wno-unused-function", "-Werror", *precision, "-fsyntax-only",
                                     "-x", "c", "-"], input=text, cwd=directory, capture_output=True, text=True,
                                    check=False)
            if result.returncode:
                found.append(f"{path.relative_to(root).as_posix()}: {result.stderr.strip()}")
                break
    return found


def examples(root: Path, build: Path) -> list[str]:
    """What doc/adding-a-method.md shows, put together, is a file that compiles."""
    command, directory = _compile_command(build)
    page = root / "doc" / "adding-a-method.md"
    blocks = re.findall(r"^```c\n((?:static|const) .*?)^```", page.read_text("utf-8"), re.S | re.M)
    blocks.sort(key=lambda block: block.startswith("const"))  # the table names the functions
    text = "\n".join([f'#include "{root.resolve()}/include/stablemoe/router.h"', *blocks])
    result = subprocess.run([*command, "-Werror", "-fsyntax-only", "-x", "c", "-"], input=text, cwd=directory,
                            capture_output=True, text=True, check=False)
    if len(blocks) < 2:
        return [f"{page.name}: shows no method"]
    return [f"{page.name}: {result.stderr.strip()}"] if result.returncode else []


def symbols(root: Path, build: Path) -> list[str]:
    """Every external symbol of the libraries begins with smoe_."""
    found, n = [], 0
    for archive in sorted((build / "src").glob("libstablemoe*.a")):
        result = subprocess.run(["nm", "-g", "--defined-only", archive], capture_output=True, text=True, check=True)
        for line in result.stdout.splitlines():
            words = line.split()
            # Weak ones are templates of the C++ library; sanitizers add their own with two underscores.
            if len(words) != 3 or words[1] in "VWvwu" or words[2].startswith("__"):
                continue
            n += 1
            if not words[2].startswith("smoe_"):
                found.append(f"{archive.name}: {words[2]} does not begin with smoe_: make it static or rename it")
    return found if n else ["no symbols found: is the library built?"]


TREE_RULES = (rules.mpi, rules.hdf5, rules.blas, rules.ends, rules.stderr, rules.memory, rules.arrows, rules.circles,
              rules.length, rules.blanks, rules.unfinished, rules.nan, rules.json, rules.docstrings, rules.shell,
              rules.drawing)
BUILD_RULES = (clang_format, headers, examples, symbols)


def main(arguments: list[str]) -> int:
    """Check one rule."""
    tree = {rule.__name__: rule for rule in TREE_RULES}
    build = {rule.__name__: rule for rule in BUILD_RULES}
    if not 2 <= len(arguments) <= 3 or arguments[0] not in {**tree, **build}:
        print(f"usage: lint.py RULE ROOT [BUILD]; rules: {', '.join([*tree, *build])}", file=sys.stderr)
        return 2
    rule, root = arguments[0], Path(arguments[1])
    try:
        found = tree[rule](root) if rule in tree else build[rule](root, Path(arguments[-1]))
    except Skip as reason:
        print(f"skipped: {reason}")
        return SKIP
    print("\n".join(found) if found else f"{rule}: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
