"""Options that the commands which run federations share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EngineOption", "LedgersOption", "NoLedgersOption", "WorkersOption"]

EngineOption = Annotated[
    str, typer.Option("--engine", help="local (this machine's cores) or ray (Flower's own engine).")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Processes that train at a time; 0: none beside this one. Default: one a core.",
        show_default=False,
    ),
]
LedgersOption = Annotated[
    Path | None,
    typer.Option(
        "--ledgers",
        metavar="DIR",
        help="Where the sites of private runs keep their ledgers. Default: OUT/ledgers when the sites own "
        "their data (partition by site); virtual sites keep none.",
        show_default=False,
    ),
]
NoLedgersOption = Annotated[
    bool, typer.Option("--no-ledgers", help="Keep none: what is spent is added to no account.")
]
