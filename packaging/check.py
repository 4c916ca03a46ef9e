#!/usr/bin/env python3
"""Check the package recipes against the tree, as far as that goes without Spack, EasyBuild and Apptainer.

    python3 packaging/check.py [ROOT]

Exit status: 0 where nothing is wrong; 1 with a line for everything that is.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

LIBRARIES = {"mpi": ("mpi", None), "hdf5": ("hdf5", "HDF5"), "openblas": ("openblas", None), "libarchive": ("libarchive", "libarchive"),
             "jansson": ("jansson", "Jansson"), "yaml-0.1": ("libyaml", "libyaml"), "libxxhash": ("xxhash", "xxHash"),
             "zlib": ("zlib-api", "zlib"), "libpng": ("libpng", "libpng"), "sentencepiece": ("sentencepiece", "SentencePiece"), "openmp": (None, None),
             "threads": (None, None)}
"""dependency() of meson.build -> its package in Spack and in EasyBuild; None: the compiler or the toolchain brings it."""


def _literals(tree: ast.Module) -> dict[str, object]:
    """Values of the assignments of an easyconfig."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                found[node.targets[0].id] = None
    return found


def _options(text: str) -> set[str]:
    """Names in -Dname=."""
    return set(re.findall(r"-D([a-z_0-9]+)=", text))


def check(root: Path) -> list[str]:
    """What is wrong, a line each."""
    wrong = []
    build = (root / "meson.build").read_text(encoding="utf-8")
    version = re.search(r"version: '([^']+)'", build).group(1)
    options = set(re.findall(r"option\('([a-z_0-9]+)'", (root / "meson_options.txt").read_text(encoding="utf-8")))
    asked = {re.findall(r"'([^']+)'", call)[-1] if "mpi-c" in call or "hdf5" in call else re.search(r"'([^']+)'", call).group(1)
             for call in re.findall(r"^\w+ = dependency\(([^\n]*)\)", build, re.M)}
    asked = {"hdf5" if name == "system" else name for name in asked if name != "c"}
    for name in sorted(asked - set(LIBRARIES)):
        wrong.append(f"meson.build asks for '{name}', which {Path(__file__).name} and perhaps the recipes do not know")

    spack = (root / "packaging/spack/packages/stablemoe/package.py").read_text(encoding="utf-8")
    ast.parse(spack)
    ast.parse((root / "packaging/spack/packages/sentencepiece/package.py").read_text(encoding="utf-8"))
    needed = {re.split(r"[@ +~]", name)[0] for name in re.findall(r'depends_on\(\s*"([^"]+)"', spack)}
    easy = _literals(ast.parse((root / f"packaging/easybuild/StableMoE-{version}-foss-2023a.eb").read_text(encoding="utf-8"))) \
        if (root / f"packaging/easybuild/StableMoE-{version}-foss-2023a.eb").is_file() else {}
    if easy.get("version") != version:
        wrong.append(f"no easyconfig of version {version}")
    brought = {entry[0] for key in ("dependencies", "builddependencies") for entry in easy.get(key) or ()}
    for name in sorted(asked & set(LIBRARIES)):
        in_spack, in_easybuild = LIBRARIES[name]
        if in_spack and in_spack not in needed:
            wrong.append(f"the Spack recipe does not depend on {in_spack}")
        if in_easybuild and in_easybuild not in brought:
            wrong.append(f"the easyconfig does not depend on {in_easybuild}")
    for name in ("random123",):
        if name not in needed or name.capitalize() not in brought:
            wrong.append(f"{name} is not in both recipes")

    definition = (root / "packaging/apptainer/stablemoe.def").read_text(encoding="utf-8")
    sections = re.findall(r"^%(\w+)", definition, re.M)
    for section in ("files", "post", "environment", "runscript", "test"):
        if sections.count(section) != 1:
            wrong.append(f"the Apptainer definition has {sections.count(section)} sections %{section}")
    for name, text in (("Spack recipe", spack), ("easyconfig", str(easy.get("configopts"))), ("Apptainer definition", definition)):
        for option in sorted(_options(text) - options):
            wrong.append(f"the {name} sets the option '{option}', which meson_options.txt has not")
    for path in re.findall(r"(?:bash |share/stablemoe/)((?:jobs|configs)/[\w./-]+)", definition):
        if not (root / path).is_file():
            wrong.append(f"the Apptainer definition names {path}, which is not there")
    workflow = root / ".github/workflows/ci.yml"
    if ".ci/run" not in workflow.read_text(encoding="utf-8"):
        wrong.append("the workflow does not run .ci/run")
    return wrong


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]))
    for line in found:
        print(line, file=sys.stderr)
    sys.exit(1 if found else 0)
