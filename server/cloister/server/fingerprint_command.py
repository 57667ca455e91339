"""``cloister fingerprint embed|trace``: mark each recipient's copy of a model, and say whose copy one that turned up is."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import StorageError, UsageError
from cloister.core.outcome import JsonOption, outcome, visible

__all__ = ["register"]

_KEY_BYTES = 32
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A .safetensors file, or a run's folder.", show_default=False)
]
Key = Annotated[
    Path,
    typer.Option(
        "--key",
        metavar="FILE",
        help="The secret key of the marks; embed makes it where it is not there.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group ``fingerprint`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True, help="Mark each recipient's copy of a model, and trace one that turned up."
    )
    group.command("embed")(embed_command)
    group.command("trace")(trace_command)
    app.add_typer(group, name="fingerprint")


def embed_command(
    model: Model,
    recipient: Annotated[
        str, typer.Option("--recipient", metavar="NAME", help="Who gets the copy.", show_default=False)
    ],
    key: Key,
    to: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The copy: .safetensors.", show_default=False)
    ],
    json_output: JsonOption = False,
) -> None:
    """Write the copy of one recipient: the same model with a mark in its weights that only the key's holder can read."""
    with outcome(json_output) as out:
        from safetensors.torch import save

        from cloister.core.files import write_whole
        from cloister.server.audit.model.marking import embed
        from cloister.server.robustness.subject import read_model_file

        file = _file(model)
        tensors, digest = read_model_file(file)
        if to.exists():
            raise UsageError(f"'{to}' is there already", remedy="give another --out, or remove it")
        marked = embed(tensors, key=_key(key, make=True), recipient=recipient)
        write_whole(to, save(marked, metadata=_metadata(file)))
        out.result = {"copy": str(to), "recipient": recipient, "of": digest}
        out.say(
            visible(f"{to}: the copy of '{recipient}'. Keep {key} secret, and {file} to trace copies with.")
        )


def trace_command(
    copy: Annotated[
        Path, typer.Argument(metavar="COPY", help="The .safetensors file that turned up.", show_default=False)
    ],
    original: Annotated[
        Path,
        typer.Option(
            "--original",
            metavar="MODEL",
            help="The model without a mark, or its run's folder.",
            show_default=False,
        ),
    ],
    recipient: Annotated[
        list[str],
        typer.Option(
            "--recipient", metavar="NAME", help="Who had a copy. Repeatable: name all.", show_default=False
        ),
    ],
    key: Key,
    json_output: JsonOption = False,
) -> None:
    """Say whose copy a model is, with a bound on the chance that a recipient without a part in it scores as much."""
    with outcome(json_output) as out:
        from cloister.server.audit.model.marking import trace
        from cloister.server.robustness.subject import read_model_file

        held, first = read_model_file(copy)[0], read_model_file(_file(original))[0]
        scores = trace(held, first, key=_key(key, make=False), recipients=list(dict.fromkeys(recipient)))
        out.result = {"scores": [{"recipient": one.recipient, "z": one.z, "p": one.p} for one in scores]}
        table = Table(box=None, pad_edge=False)
        for column in ("recipient", "score", "chance of a false accusation"):
            table.add_column(column)
        for one in scores:
            table.add_row(visible(one.recipient), f"{one.z:.1f}", f"{one.p:.2g}")
        out.say(table)


def _file(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def _key(path: Path, *, make: bool) -> bytes:
    """Return the key, of 32 bytes; a new one in a file that only its owner may read where there is none and ``make`` says so."""
    from cloister.core.files import write_whole

    if make and not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError.of(path, error) from None
        made = secrets.token_bytes(_KEY_BYTES)
        write_whole(path, made, mode=0o600)
        return made
    try:
        if os.stat(path).st_mode & 0o077:  # noqa: PTH116 - a link is followed, as reading does
            raise UsageError(f"others may read the key '{path}'", remedy=f"chmod 600 {path}")
        key = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the key '{path}': {error.strerror}",
            remedy="name the key that the copies were marked with",
        ) from None
    if len(key) != _KEY_BYTES:
        raise UsageError(f"'{path}' is no key of {_KEY_BYTES} bytes", remedy="name the key's file")
    return key


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        found: dict[str, Any] = opened.metadata() or {}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value) for name, value in found.items()
    }
