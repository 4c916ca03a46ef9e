"""Look at StableMoE runs: numbers and figures from metrics, routing logs and corpora.

This file uses the standard library alone, so that `python3 -m analysis --help`
and the message about missing packages work with any interpreter.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

MODULES = ("numpy", "h5py", "matplotlib", "yaml")
DEBIAN_PACKAGES = "python3-numpy python3-h5py python3-matplotlib python3-yaml"
SYSTEM_PYTHON = "/usr/bin/python3"


def missing_modules(modules: tuple[str, ...] = MODULES) -> list[str]:
    """Modules this package needs and the present interpreter cannot import."""
    missing = []
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def _imports_all(python: str, modules: tuple[str, ...]) -> bool:
    try:
        return subprocess.run([python, "-c", "import " + ", ".join(modules)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


def ensure_modules(command: list[str], modules: tuple[str, ...] = MODULES) -> str | None:
    """Make sure that the needed modules can be imported, with another interpreter if need be.

    The first python3 on the PATH is often not the one that has the system's
    packages. So the command goes over to STABLEMOE_PYTHON where that is set, else to
    the system's python3, if that one can import everything.

    command: arguments after the interpreter, e.g. ["-m", "analysis", "runs/tiny"].
    modules: those that the command needs.
    Returns None where all is there, else the message to print. Does not return
    where another interpreter takes over.
    """
    missing = missing_modules(modules)
    if not missing:
        return None
    override = os.environ.get("STABLEMOE_PYTHON", "")
    other = override or SYSTEM_PYTHON
    if _imports_all(other, modules):
        root = str(Path(__file__).resolve().parent.parent)
        path = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = root + (os.pathsep + path if path else "")
        sys.stdout.flush()
        os.execv(other, [other, *command])
    tried = f"STABLEMOE_PYTHON={override}" if override else SYSTEM_PYTHON
    return (f"analysis: {sys.executable} cannot import {', '.join(missing)}, and {tried} does not have "
            f"all of {', '.join(modules)} either: install the Debian packages "
            f"{' '.join('python3-' + name for name in modules)}, or set "
            "STABLEMOE_PYTHON to an interpreter that has them")
