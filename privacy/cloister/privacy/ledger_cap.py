"""``cloister ledger cap``: a site sets the most that may be spent of a data set's privacy, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, outcome, visible

__all__ = ["cap_command"]


def cap_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The ledger's file.", show_default=False)],
    epsilon: Annotated[
        float,
        typer.Option(
            "--epsilon", help="The most that everything charged may compose to.", show_default=False
        ),
    ],
    delta: Annotated[float, typer.Option("--delta", help="At this delta.", show_default=False)],
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The ledger's key. Default: PATH with .pem.", show_default=False
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option("--unit", help="For this unit only, for example record.", show_default=False),
    ] = None,
    rate_epsilon: Annotated[
        float | None,
        typer.Option("--rate-epsilon", help="The most within --rate-days days.", show_default=False),
    ] = None,
    rate_days: Annotated[
        float | None, typer.Option("--rate-days", help="See --rate-epsilon.", show_default=False)
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Begin a ledger of this site.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Begin a ledger of this data set.", show_default=False)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Set the most that may be spent (a signed line). With --site and --dataset a ledger that is not there yet is begun."""
    with outcome(json_output) as out:
        from cloister.privacy.accounting import account
        from cloister.privacy.ledger import Cap, Ledger, Rate, load_key, load_or_create_key
        from cloister.privacy.ledger.heads import anchor_path
        from cloister.privacy.ledger.inspection import inspect

        if (rate_epsilon is None) != (rate_days is None):
            raise UsageError("--rate-epsilon and --rate-days go together", remedy="give both, or neither")
        key_file = path.with_suffix(".pem") if key is None else key
        exists = path.exists() or anchor_path(path).exists()
        if not exists and (site is None or dataset is None):
            raise UsageError(
                f"there is no ledger '{path}'",
                remedy="name the ledger's file, or begin one with --site NAME --dataset NAME",
            )
        if exists:
            found = inspect(path)
            found.require()
            first = found.chain.entries[0]
            for option, given, its in (("--site", site, first.site), ("--dataset", dataset, first.dataset)):
                if given is not None and given != its:
                    raise UsageError(
                        f"{option} {given}: the ledger is that of '{its}'", remedy=f"leave {option} out"
                    )
            site, dataset = first.site, first.dataset
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        with Ledger.open(
            path,
            site=str(site),
            dataset=str(dataset),
            key=load_key(key_file) if exists else load_or_create_key(key_file),
            account=account,
        ) as ledger:
            rate = (
                None
                if rate_epsilon is None or rate_days is None
                else Rate(epsilon=rate_epsilon, days=rate_days)
            )
            cap = Cap(epsilon=epsilon, delta=delta, rate=rate, unit=unit)
            entry = ledger.set_cap(cap.epsilon, cap.delta, rate=cap.rate, unit=cap.unit)
            out.result = {
                "path": str(path),
                "site": site,
                "dataset": dataset,
                "entry": entry.seq,
                "cap": cap.as_event(),
            }
        out.say(
            visible(
                f"entry {entry.seq}: '{site}' allows epsilon = {epsilon:g} at delta = {delta:g} of '{dataset}'"
                + (f", for unit '{unit}'" if unit else "")
            )
        )
