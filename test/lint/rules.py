"""The rules of the source tree, one function each: they take a tree and return what breaks the rule.

Every function takes the root of the source tree and returns lines "file:line: what". Rules that
look at sources see them without comments and texts, so that prose may name what code may not do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "doc"))  # modules.py

SKIPPED = {".git", "runs", "__pycache__", ".cache", "subprojects"}
TEXT = {".c", ".h", ".cc", ".py", ".sh", ".yml", ".md", ".build", ".txt", ".svg", ".sbatch"}


def files(root: Path, *suffixes: str, under: tuple[str, ...] = (".",)) -> list[Path]:
    """Files of the tree with one of the suffixes, sorted; build directories are no part of it."""
    found = []
    for top in under:
        for folder, folders, names in os.walk(root / top):
            folders[:] = sorted(f for f in folders if f not in SKIPPED and not f.startswith("build"))
            found += [Path(folder) / name for name in names if Path(name).suffix in suffixes]
    return sorted(found)


def code_of(path: Path) -> str:
    """C source with comments and texts blanked out, line numbers kept."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), path.read_text("utf-8"), flags=re.S)


def _search(root: Path, pattern: str, allowed: tuple[str, ...], what: str, excuse: str = "") -> list[str]:
    """Matches in src/ and include/ but for files whose path begins with one of `allowed`.

    excuse: a comment on the line that lets a match pass.
    """
    found = []
    for path in files(root, ".c", ".h", ".cc", under=("src", "include")):
        name = path.relative_to(root).as_posix()
        if name.startswith(allowed):
            continue
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(code_of(path).splitlines(), 1):
            match = re.search(pattern, line)
            if match and not (excuse and excuse in lines[number - 1]):
                found.append(f"{name}:{number}: {match.group().strip(' (')} {what}")
    return found


def mpi(root: Path) -> list[str]:
    """MPI is called in src/comm and src/io alone."""
    return _search(root, r"\bMPI_[A-Z][a-z]\w*\s*\(", ("src/comm/", "src/io/"),
                   "is called outside src/comm and src/io")


def hdf5(root: Path) -> list[str]:
    """HDF5 is called in src/io alone; others use its helpers (h5.h)."""
    return _search(root, r"\bH5[A-Z]{1,3}[a-z]\w*\s*\(", ("src/io/",), "is called outside src/io")


def blas(root: Path) -> list[str]:
    """Each library of matrix products is called in one file, which knows about its threads, shapes and versions."""
    return (_search(root, r"\b(cblas_|openblas_|[sd]gemm_)\w*\s*\(", ("src/kernel/gemm.c",),
                    "is called outside src/kernel/gemm.c")
            + _search(root, r"\bdnnl_\w*\s*\(", ("src/kernel/onednn.c",), "is called outside src/kernel/onednn.c"))


def ends(root: Path) -> list[str]:
    """Nothing ends the program but a panic: an exit() leaves the other ranks waiting."""
    # The watchdog's thread may call nothing of MPI while the main one sits in it.
    return _search(root, r"\b(_exit|_Exit|quick_exit|exit|abort|assert)\s*\(",
                   ("src/base/status.c", "src/comm/watchdog.c"),
                   "is called outside src/base/status.c: use SMOE_FAIL, SMOE_PANIC or SMOE_ASSERT")


def stderr(root: Path) -> list[str]:
    """Standard error is written in one file, a whole line at a time."""
    # A signal handler, which can call nothing else, has write().
    return _search(root, r"\b(stderr|perror)\b", ("src/base/log.c",),
                   "is used outside src/base/log.c: use smoe_note, smoe_warn or smoe_log_error")


def memory(root: Path) -> list[str]:
    """Memory comes from the arenas or smoe_alloc."""
    pattern = r"\b(malloc|calloc|realloc|reallocarray|aligned_alloc|posix_memalign|strdup|strndup|free)\s*\("
    return _search(root, pattern, ("src/base/arena.c", "src/config/"),
                   "is called outside src/base/arena.c: use smoe_alloc & co (what the C library gave may be "
                   "freed with the words 'memory of the C library' in a comment)",
                   excuse="memory of the C library")


def json(root: Path) -> list[str]:
    """JSON is punctuated in src/base/json.c alone: no text in a source has a key, or an object's beginning or end.

    A message may show a list as "[1, 2]", or a list of texts in YAML: these are not told from JSON.
    """
    key, brace = r'\\"\s*:|\{\s*\\"', r"\"(?:%s|\\n|[\[\]{},:\s])*[{}](?:%s|\\n|[\[\]{},:\s])*\"|'[{}]'"
    found = []
    for path in files(root, ".c", ".h", ".cc", under=("src", "include")):
        name = path.relative_to(root).as_posix()
        # Completions are functions of shells, which have braces, too.
        if name in ("src/base/json.c", "src/app/completion.c"):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if re.search(key, line) or re.search(r"(printf|puts|putc|putchar) ?\(.*(" + brace + ")", line):
                found.append(f"{name}:{number}: JSON by hand: use json.h")
    return found


# What a module (a folder of src/) may include besides itself: lower modules only. doc/modules.svg draws what it does.
MODULES = {
    "base": set(),
    "config": {"base"},
    "comm": {"base"},
    "kernel": {"base"},
    "params": {"comm", "base"},
    "layer": {"params", "config", "comm", "kernel", "base"},
    "moe": {"layer", "params", "config", "comm", "kernel", "base"},
    "model": {"moe", "layer", "params", "config", "comm", "kernel", "base"},
    "io": {"params", "comm", "base"},
    "data": {"io", "comm", "base"},
    "task": {"model", "data", "layer", "moe", "params", "config", "comm", "kernel", "base"},
    "train": {"task", "model", "data", "io", "moe", "layer", "params", "config", "comm", "kernel", "base"},
    "app": {"train", "task", "model", "data", "io", "moe", "layer", "params", "config", "comm", "kernel", "base"},
}
# Modules of headers without a source file of their name.
MODULE_OF_HEADER = {"real": "base", "kernel": "kernel", "checkpoint": "io", "train": "train",
                    "params": "params", "slot": "base"}


def module_of_header(root: Path, name: str) -> str | None:
    """The module whose source file has the public header's name; None if there is none."""
    if name in MODULE_OF_HEADER:
        return MODULE_OF_HEADER[name]
    for module in MODULES:
        if module != "app" and any((root / "src" / module / (name + end)).exists() for end in (".c", ".cc")):
            return module
    return None


def includes(root: Path) -> Iterator[tuple[Path, int, str | None, bool, str]]:
    """All includes of the project's headers: file, line, the file's module, whether the header is public, its name."""
    for path in files(root, ".c", ".h", ".cc", under=("src", "include")):
        public = path.is_relative_to(root / "include")
        own = module_of_header(root, path.stem) if public else path.parent.name
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+"(?:(stablemoe)/)?([^"]+)\.h"', line)
            if match:
                yield path, number, own, bool(match.group(1)), match.group(2)


def arrows(root: Path) -> list[str]:
    """Includes point downwards: from a module to those that MODULES lists for it."""
    found = []
    for path, number, own, public, header in includes(root):
        name = path.relative_to(root).as_posix()
        if not public:
            if not (path.parent / (header + ".h")).exists():
                found.append(f"{name}:{number}: a private header of another module")
            continue
        other = module_of_header(root, header)
        if own is None or other is None:
            found.append(f"{name}:{number}: module not known: add the header to MODULE_OF_HEADER in rules.py")
        elif other != own and other not in MODULES.get(own, set()):
            found.append(f"{name}:{number}: {own} may not include {header}.h of {other}")
    return found


def circles(root: Path) -> list[str]:
    """No header includes itself by way of others."""
    below: dict[str, set[str]] = {}
    for path, _, _, public, header in includes(root):
        if path.suffix == ".h":
            other = root / "include" / "stablemoe" / f"{header}.h" if public else path.parent / f"{header}.h"
            below.setdefault(path.relative_to(root).as_posix(), set()).add(other.relative_to(root).as_posix())
    found = []
    for header in sorted(below):
        reached, ahead = set(), [header]
        while ahead:
            new = below.get(ahead.pop(), set()) - reached
            reached |= new
            ahead.extend(new)
        if header in reached:
            found.append(f"{header}: in a circle of headers that include one another")
    return found


def drawing(root: Path) -> list[str]:
    """doc/modules.svg is what doc/modules.py makes of the includes."""
    import modules  # which imports this file

    path = root / "doc" / "modules.svg"
    if path.exists() and path.read_text("utf-8") == modules.drawing(root):
        return []
    return ["doc/modules.svg: not the drawing of the includes: run `python3 doc/modules.py > doc/modules.svg`"]


def length(root: Path) -> list[str]:
    """No file beyond 500 lines."""
    found = []
    for path in files(root, ".c", ".h", ".cc", ".py", ".sh", ".build", ".sbatch"):
        n = len(path.read_text("utf-8").splitlines())
        if n > 500:
            found.append(f"{path.relative_to(root).as_posix()}:{n}: longer than 500 lines: it is two things")
    return found


def blanks(root: Path) -> list[str]:
    """No tabs, no blanks at the end of a line, no carriage returns, one newline at the end of a file."""
    found = []
    for path in files(root, *TEXT):
        name, text = path.relative_to(root).as_posix(), path.read_bytes().decode("utf-8")
        for number, line in enumerate(text.split("\n"), 1):
            if "\t" in line or "\r" in line:
                found.append(f"{name}:{number}: a tab or carriage return")
            elif line.endswith(" "):
                found.append(f"{name}:{number}: blanks at the end of the line")
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            found.append(f"{name}: must end with one newline")
    return found


def unfinished(root: Path) -> list[str]:
    """No marks of unfinished work; the words are cut here so that this file may hold them."""
    words = ("TO" "DO", "FIX" "ME", "X" "XX", "HA" "CK", "st" "ub", "place" "holder", "not imple" "mented")
    pattern = re.compile(r"\b(" + "|".join(words) + r")\b", re.IGNORECASE)
    found = []
    for path in files(root, *(TEXT - {".md", ".svg"})):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            match = pattern.search(line)
            if match:
                found.append(f"{path.relative_to(root).as_posix()}:{number}: '{match.group()}'")
    return found


def nan(root: Path) -> list[str]:
    """Tests compare so that NaN fails: !(error <= tolerance), never error > tolerance."""
    pattern = re.compile(r"\bif \(!?\(?(err|error|diff|difference|rel|worst|e) >=? ")
    found = []
    for path in files(root, ".c", ".h", under=("test",)):
        for number, line in enumerate(code_of(path).splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(root).as_posix()}:{number}: lets NaN pass; write !(err <= tol)")
    return found


def docstrings(root: Path) -> list[str]:
    """A public header begins with what it is about, and every function has a docstring.

    Functions that stand together without a blank line share one.
    """
    found = []
    for path in files(root, ".h", under=("include",)):
        name, lines = path.relative_to(root).as_posix(), path.read_text("utf-8").splitlines()
        if not lines or not lines[0].startswith("/**"):
            found.append(f"{name}:1: does not begin with a docstring")
        for number, line in enumerate(lines, 1):
            if not re.match(r"(?:extern )?[a-z_]\w*[\w *]* \*{0,3}smoe_\w+\(", line) or line.startswith("typedef"):
                continue
            above = number - 2
            while above >= 0 and lines[above].strip() and not lines[above].rstrip().endswith("*/"):
                above -= 1
            if above < 0 or not lines[above].rstrip().endswith("*/"):
                found.append(f"{name}:{number}: no docstring above {line.split('(')[0].split()[-1].strip('*')}")
    return found


def shell(root: Path) -> list[str]:
    """Shell scripts parse, and stop at names that are not set; those without #! are read by others."""
    found = []
    for path in [*files(root, ".sh", ".sbatch"), *sorted((root / ".ci").glob("*"))]:
        name = path.relative_to(root).as_posix()
        result = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        if result.returncode:
            found.append(f"{name}: {result.stderr.strip()}")
        text = path.read_text("utf-8")
        if text.startswith("#!") and not re.search(r"^(set -[eE]*u|exec )", text, re.M):
            found.append(f"{name}: no `set -u`")
    return found
