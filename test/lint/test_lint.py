"""The lint rules see what they are for: each is shown a clean tree, then one with a single offence.

`test_lint.py BUILD`: the build tells how headers are compiled.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lint
import rules  # adds doc/ to the path

import modules

CLEAN = {
    "src/base/status.c": "void smoe_end(int code) {\n  exit(code);\n}\n",
    "src/base/arena.c": "void smoe_free(void *memory) {\n  free(memory);\n}\n",
    "src/comm/group.c": '#include "stablemoe/status.h"\n\nvoid smoe_sum(void) {\n  MPI_Barrier(comm);\n}\n',
    "src/io/h5.c": "void smoe_close(void) {\n  H5Fclose(file);\n}\n",
    "src/kernel/gemm.c": "void smoe_gemm(void) {\n  cblas_sgemm(0);\n}\n",
    "src/kernel/onednn.c": "void smoe_onednn(void) {\n  dnnl_sgemm(0);\n}\n",
    "src/data/walk.c": "void smoe_walk(void) {\n  free(entry); /* memory of the C library */\n}\n",
    "src/base/json.c": "void smoe_json_end(void) {\n  fputc('}', out);\n}\n",
    "src/app/list.c": 'void smoe_list(void) {\n  printf("[%d, %d]\\n", 1, 2);\n}\n',
    "src/moe/expert.c": "/* free(this) and exit(1) in prose are fine */\n",
    "include/stablemoe/status.h": "/** Errors. */\n\n/** End. Local. */\nvoid smoe_end(int code);\n",
    "test/test_x.c": "int main(void) {\n  if (!(err <= tol)) return 1;\n}\n",
    "jobs/run.sh": "#!/bin/sh\nset -u\necho 'fine'\n",
    "jobs/environment.sh": "export FINE=1\n",
    "doc/x.md": "Text.\n",
}

# Rule, file, text that offends.
OFFENCES = (
    ("mpi", "src/moe/expert.c", "void smoe_x(void) {\n  MPI_Barrier(comm);\n}\n"),
    ("mpi", "include/stablemoe/status.h", "/** X. */\nstatic inline void x(void) { MPI_Barrier(c); }\n"),
    ("hdf5", "src/data/walk.c", "void smoe_x(void) {\n  H5Dwrite (set);\n}\n"),
    ("blas", "src/kernel/norm.c", "void smoe_x(void) {\n  cblas_sgemm(0);\n}\n"),
    ("blas", "src/app/main.c", "int main(void) {\n  openblas_set_num_threads(1);\n}\n"),
    ("blas", "src/kernel/gemm.c", "void smoe_x(void) {\n  dnnl_sgemm(0);\n}\n"),
    ("blas", "src/kernel/onednn.c", "void smoe_x(void) {\n  cblas_sgemm(0);\n}\n"),
    ("ends", "src/moe/expert.c", "void smoe_x(void) {\n  exit(1);\n}\n"),
    ("ends", "src/moe/expert.c", "void smoe_x(void) {\n  assert(x == 1);\n}\n"),
    ("stderr", "src/moe/expert.c", 'void smoe_x(void) {\n  fprintf(stderr, "x\\n");\n}\n'),
    ("memory", "src/moe/expert.c", "void smoe_x(void) {\n  x = malloc(3);\n}\n"),
    ("memory", "src/train/metrics.c", "void smoe_x(void) {\n  free(line);\n}\n"),
    ("arrows", "src/base/arena.c", '#include "stablemoe/group.h"\n'),
    ("arrows", "include/stablemoe/status.h", '/** Errors. */\n#include "stablemoe/group.h"\n'),
    ("arrows", "src/moe/expert.c", '#include "stablemoe/unheard_of.h"\n'),
    ("arrows", "src/moe/expert.c", '#include "private_of_another.h"\n'),
    ("circles", "include/stablemoe/real.h", '#include "stablemoe/real.h"\n'),
    ("length", "src/moe/expert.c", "int x;\n" * 501),
    ("blanks", "doc/x.md", "Text. \n"),
    ("blanks", "src/moe/expert.c", "\tint x;\n"),
    ("blanks", "doc/x.md", "Text without an end"),
    ("unfinished", "src/moe/expert.c", "/* TO" "DO: think */\n"),
    ("unfinished", "jobs/run.sh", "set -u # FIX" "ME\n"),
    ("nan", "test/test_x.c", "int main(void) {\n  if (err > tol) return 1;\n}\n"),
    ("json", "src/app/main.c", 'void smoe_x(void) {\n  printf("%s\\"loss\\": %g", comma, x);\n}\n'),
    ("json", "src/app/main.c", 'void smoe_x(void) {\n  printf("{\\"first\\"");\n}\n'),
    ("json", "src/app/main.c", 'void smoe_x(void) {\n  fputs("]}", out);\n}\n'),
    ("json", "src/app/main.c", "void smoe_x(void) {\n  fputc('{', out);\n}\n"),
    ("docstrings", "include/stablemoe/status.h", "/** Errors. */\n\nvoid smoe_end(int code);\n"),
    ("docstrings", "include/stablemoe/status.h", "#define X\n"),
    ("drawing", "doc/modules.svg", "<svg></svg>\n"),
    ("shell", "jobs/run.sh", "set -u\nif true; then\n"),
    ("shell", "jobs/run.sh", "#!/bin/sh\necho \"$not_set\"\n"),
)


def with_drawing() -> dict[str, str]:
    """The clean tree with the drawing of its includes."""
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder), CLEAN)
        return {**CLEAN, "doc/modules.svg": modules.drawing(Path(folder))}


def plant(root: Path, tree: dict[str, str]) -> None:
    """Write a tree of files."""
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")


def check_tree_rules() -> list[str]:
    """Each rule is silent on the clean tree and speaks of the one offending file."""
    wrong = []
    clean = with_drawing()
    for rule in lint.TREE_RULES:
        with tempfile.TemporaryDirectory() as folder:
            plant(Path(folder), clean)
            found = rule(Path(folder))
            if found:
                wrong.append(f"{rule.__name__} complains about a clean tree: {found}")
        if rule.__name__ not in {name for name, _, _ in OFFENCES}:
            wrong.append(f"{rule.__name__} is never shown an offence")
    for name, file, text in OFFENCES:
        with tempfile.TemporaryDirectory() as folder:
            plant(Path(folder), {**clean, file: text})
            found = getattr(rules, name)(Path(folder))
            if len(found) != 1 or not found[0].startswith(file):
                wrong.append(f"{name} was shown {text!r} in {file} and said {found}")
    return wrong


def check_headers(build: Path) -> list[str]:
    """A header that needs another one first does not pass."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plant(root, {"include/stablemoe/good.h": "/** Good. */\n#ifndef G\n#define G\n#include <stddef.h>\n"
                                                 "size_t smoe_n(void);\n#endif\n"})
        wrong = [f"headers complains about a sound one: {found}" for found in lint.headers(root, build)]
        plant(root, {"include/stablemoe/bad.h": "/** Bad. */\n#ifndef B\n#define B\nuint64_t smoe_n(void);\n#endif\n"})
        if len(lint.headers(root, build)) != 1:
            wrong.append("headers does not see a missing include")
    return wrong


def check_format(build: Path) -> list[str]:
    """A file that clang-format would change does not pass (where there is a clang-format)."""
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder), {"src/good.c": "int x;\n", "src/bad.c": "int   x ;\n"})
        try:
            found = lint.clang_format(Path(folder), build)
        except lint.Skip:
            return []
        return [] if len(found) == 1 and found[0].startswith("src/bad.c") else [f"clang_format said {found}"]


def check_examples(build: Path) -> list[str]:
    """A table without its function does not pass, and neither does a page without a method."""
    function, table = "static int one(void) {\n  return 1;\n}\n", "const smoe_ops smoe_router_x = {.one = one};\n"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plant(root, {"include/stablemoe/router.h": "typedef struct smoe_ops { int (*one)(void); } smoe_ops;\n"})
        wrong = []
        for blocks, expected in (((table, function), 0), ((table, function.replace("one", "two")), 1), ((), 1)):
            plant(root, {"doc/adding-a-method.md": "\n".join(f"```c\n{block}```" for block in blocks)})
            found = lint.examples(root, build)
            if len(found) != expected:
                wrong.append(f"examples said {found} of {blocks}")
    return wrong


def check_symbols() -> list[str]:
    """A symbol of another name does not pass, and neither does an empty library."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder)
        if not lint.symbols(build, build):
            wrong.append("symbols is content with no library at all")
        plant(build, {"src/x.c": "int helper_of_ours;\nint smoe_fine;\nstatic int hidden;\nint *p_ = &hidden;\n"})
        for command in (["cc", "-c", "x.c"], ["ar", "rc", "libstablemoe.a", "x.o"]):
            lint.subprocess.run(command, cwd=build / "src", check=True)
        found = lint.symbols(build, build)
        if [line.split()[1] for line in found] != ["helper_of_ours", "p_"]:
            wrong.append(f"symbols said {found}")
    return wrong


def main() -> int:
    """Run all; exit status 1 where a rule did not do what it is for."""
    build = Path(sys.argv[1])
    wrong = check_tree_rules() + check_headers(build) + check_examples(build) + check_format(build) + check_symbols()
    print("\n".join(wrong) if wrong else f"{len(OFFENCES)} offences seen, nothing sound complained about")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
