"""Write the effective file for a reader: one key a line, with where its value came from.

Keys of a table in a table are written dotted (``optimizer.lr = 0.05``), so that each value has a line and an origin of its
own. The text is a federation file itself: reading it gives the same federation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w

__all__ = ["annotated_toml"]


def annotated_toml(effective: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str]) -> str:
    """Return ``effective`` as TOML with a comment on each line.

    Args:
        effective: tables by name; what they hold is plain data without ``None``.
        origins: what to say of each dotted key.
    """
    blocks = []
    for name, table in effective.items():
        lines = [
            (f"{written} = {_value(value)}", origins.get(f"{name}.{dotted}", ""))
            for dotted, written, value in _leaves(table)
        ]
        width = max((len(line) for line, _ in lines if "\n" not in line), default=0)
        blocks.append(
            "\n".join([f"[{_key(name)}]", *(f"{line:<{width}}  # {origin}" for line, origin in lines)])
        )
    return "\n\n".join(blocks) + "\n"


def _leaves(table: Mapping[str, Any], dotted: str = "", written: str = "") -> Iterator[tuple[str, str, Any]]:
    for key, value in table.items():
        plain = f"{dotted}.{key}" if dotted else key
        path = f"{written}.{_key(key)}" if written else _key(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, plain, path)
        else:
            yield plain, path, value


def _key(key: str) -> str:
    return tomli_w.dumps({key: 0}).rpartition(" = ")[0]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")
