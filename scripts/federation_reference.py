"""Write ``docs/federation-file.md`` from the tables in `cloister.core.spec.tables`.

::

    python scripts/federation_reference.py            # write it
    python scripts/federation_reference.py --check    # exit 1 if it is not current
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tomli_w
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cloister.core.spec.refusals import expected
from cloister.core.spec.tables import FederationSpec

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "federation-file.md"

HEAD = """\
<!-- Written by scripts/federation_reference.py from the tables in core/cloister/core/spec/tables.py: change it there. -->

# The federation file

One TOML file says what a federation does. Its names are a contract: a key may be added; one that stands keeps its name and
meaning. Most keys have a default, so a file can be short:

```toml
[federation]
name = "heart"
rounds = 30

[task]
use = "heart"
```

- `cloister check FILE` prints the whole file with every default filled in and where each value came from.
- `--set key=value` lays a value over the file's, with a dotted key: `--set training.optimizer.lr=0.1`. The value is read as TOML, or as text
  where it is not TOML. The last one wins.
- An unknown key is refused, with the nearest known one. So is a value of the wrong type (`30.0` or `"30"` is no whole number), a number
  that is not finite, and a date.
- Relative paths are taken from the file's own folder.
- The digest that `cloister check` prints is a hash over the whole file with its defaults: two files with one digest mean the same federation.
"""

_BOUNDS = {
    Ge: ("at least {}", "ge"),
    Gt: ("more than {}", "gt"),
    Le: ("at most {}", "le"),
    Lt: ("less than {}", "lt"),
}
#: What tables say of keys that they do not name.
_OTHER = {
    "TaskTable": "| any other | the task's own | | the task checks it: see [tasks](tasks.md) and `cloister tasks` |",
    "Require": "| a check's name | `pass`, `warn`, `not-failed` or `any` | `not-failed` | pass: it must pass; warn: pass or warn; not-failed: \"no "
    'power" will do too; any: it may fail, and the certificate says that this was accepted |',
}


def main() -> int:
    """Write the document, or with ``--check`` compare it; return the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/federation-file.md")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is not current"
    )
    text = reference()
    if not parser.parse_args().check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DOCUMENT.name} is not current: run python scripts/federation_reference.py", file=sys.stderr)
    return 1


def reference() -> str:
    """Return the whole document."""
    return "\n".join([HEAD, *_tables(FederationSpec, "")])


def _tables(model: type[BaseModel], path: str) -> Iterator[str]:
    """Yield a section for each table below ``model``, outermost first."""
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        for table in _models(field.annotation):
            required = {inner for inner, info in table.model_fields.items() if info.is_required()}
            if path and set(table.model_fields) == required and len(required) == 1:
                continue  # { poisson = 0.1 }: said in the key's own row
            yield f"{'##' if not path else '###'} `[{key}]`\n"
            yield _sentence(table) + "\n"
            yield "| key | value | default | meaning |\n|---|---|---|---|"
            yield from _rows(table)
            if table.model_config.get("extra") == "allow":
                yield _OTHER[table.__name__]
            yield ""
            yield from _tables(table, key)


def _rows(table: type[BaseModel]) -> Iterator[str]:
    for name, field in table.model_fields.items():
        yield f"| `{name}` | {_value(field)} | {_default(field)} | {(field.description or '').replace('|', '&#124;')} |"


def _value(field: FieldInfo) -> str:
    words = expected(field.annotation)
    tables = [
        table
        for table in _models(field.annotation)
        if not any(info.is_required() for info in table.model_fields.values())
    ]
    if tables:
        return "a table: see below"
    bounds = [
        template.format(_number(getattr(note, attribute)))
        for note in _notes(field)
        for kind, (template, attribute) in _BOUNDS.items()
        if isinstance(note, kind)
    ]
    return ", ".join([words.replace("'", "`"), *bounds]).replace("|", "&#124;")


def _number(bound: float) -> str:
    power = bound.bit_length() - 1 if isinstance(bound, int) else 0
    return f"2^{power}" if power >= 32 and bound == 1 << power else f"{bound:g}"


def _notes(field: FieldInfo) -> list[Any]:
    """Return the bounds on a value, whether it may be left out or not; those of a choice of types are left to its description."""
    members = [
        member for member in get_args(field.annotation) or [field.annotation] if member is not type(None)
    ]
    inner = members[0] if len(members) == 1 else None
    more = get_args(inner)[1:] if get_origin(inner) is Annotated else ()
    found: list[Any] = []
    for note in (*field.metadata, *more):
        found += note.metadata if isinstance(note, FieldInfo) else [note]
    return found


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "must be given"
    if default is None or isinstance(default, BaseModel):
        return ""
    plain = list(default) if isinstance(default, tuple) else default
    return (
        f"`{tomli_w.dumps({'v': plain}, indent=0).removeprefix('v = ').strip()}`".replace("\n", "")
        .replace(",]", "]")
        .replace(",", ", ")
    )


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for argument in get_args(annotation) for table in _models(argument)]


def _sentence(table: type[BaseModel]) -> str:
    """Return a table's docstring without its own name at the front."""
    text = (table.__doc__ or "").split("\n\n", 1)[0].replace("``", "`")
    _, separator, rest = text.partition(": ")
    sentence = rest if separator else text
    return sentence[:1].upper() + sentence[1:]


if __name__ == "__main__":
    sys.exit(main())
