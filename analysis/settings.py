"""Read configurations: used.yml of a run, and the files in configs/."""

from __future__ import annotations

import functools
import re
from typing import Any

Scalar = bool | int | float | str

KINDS = {"bool": (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
         "int": (re.compile("[-+]?[0-9]+"), int),
         "float": (re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"), float)}
"""Unquoted values that are not texts, as the program reads them: YAML 1.1, which PyYAML follows, takes 6e-4 for a text
and `on` for a truth value."""


def parse_scalar(text: str) -> Scalar:
    """An unquoted value."""
    text = text.strip()
    return next((make(text) for pattern, make in KINDS.values() if pattern.fullmatch(text)), text)


@functools.cache
def _loader() -> Any:
    import yaml  # not before it is needed: `--help` works with any interpreter

    class Loader(yaml.SafeLoader):
        """PyYAML's, with the values above instead of those of YAML 1.1."""

    Loader.yaml_implicit_resolvers = {}
    for kind, (pattern, make) in KINDS.items():
        tag = f"tag:yaml.org,2002:{kind}"
        Loader.add_implicit_resolver(tag, re.compile(f"(?:{pattern.pattern})$"), None)
        Loader.add_constructor(tag, lambda loader, node, make=make: make(loader.construct_scalar(node)))
    return Loader


def parse_settings(text: str) -> dict[str, Scalar]:
    """Values of nested sections by dotted key ("train.updates"); sections without keys are left out.

    Raises ValueError where it is not YAML.
    """
    import yaml

    try:
        read = yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    settings: dict[str, Scalar] = {}

    def add(section: dict[str, Any], before: str) -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                add(value, f"{before}{key}.")
            elif value is not None and value != "":
                settings[f"{before}{key}"] = value

    if isinstance(read, dict):
        add(read, "")
    return settings
