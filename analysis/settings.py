"""Read configurations: used.yml of a run, and the files in configs/. Needs nothing but Python."""

from __future__ import annotations

import re

Scalar = bool | int | float | str

SETTING = re.compile(r"""([ ]*)([A-Za-z_]\w*):
                         (?:[ ]+("(?:[^"\\]|\\.)*" | '(?:[^']|'')*' | [^#\s][^#]*?))?
                         [ ]*(?:[ ][#].*)?$""", re.VERBOSE)
"""A line "key: value  # comment": indentation, key and value, which a section's heading does not have."""


def parse_scalar(text: str) -> Scalar:
    """A value as YAML writes it."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def parse_settings(text: str) -> dict[str, Scalar]:
    """Mappings of scalars, one below the other or in one line in braces, by dotted key ("train.updates").

    Not a YAML reader: lists and text over several lines do not occur in configurations, and such
    lines are passed over.
    """
    settings: dict[str, Scalar] = {}
    sections: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = SETTING.match(line)
        if not match:
            continue
        indent, key, value = len(match.group(1)), match.group(2), match.group(3)
        while sections and sections[-1][0] >= indent:
            sections.pop()
        name = ".".join([section for _, section in sections] + [key])
        if value is None:
            sections.append((indent, key))
        elif value.startswith("{"):
            for part in value.strip("{} ").split(","):
                inner, _, inner_value = part.partition(":")
                settings[f"{name}.{inner.strip()}"] = parse_scalar(inner_value)
        else:
            settings[name] = parse_scalar(value)
    return settings
