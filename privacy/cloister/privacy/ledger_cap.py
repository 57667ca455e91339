"""``cloister ledger cap``: a site sets the most that may be spent of a data set's privacy, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

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

        if (rate_epsilon is None) != (rate_days is None):
            raise UsageError("--rate-epsilon and --rate-days go together", remedy="give both, or neither")
        _check_unit(unit)
        rate = (
            None if rate_epsilon is None or rate_days is None else Rate(epsilon=rate_epsilon, days=rate_days)
        )
        cap = Cap(epsilon=epsilon, delta=delta, rate=rate, unit=unit)
        key_file = _key_file(path, key)
        begun = _begun(path, site=site, dataset=dataset)
        owner, lineage = begun or (str(site), str(dataset))
        with Ledger.open(
            path,
            site=owner,
            dataset=lineage,
            key=load_key(key_file) if begun else load_or_create_key(key_file),
            account=account,
        ) as ledger:
            entry = ledger.set_cap(cap.epsilon, cap.delta, rate=cap.rate, unit=cap.unit)
            out.result = {
                "path": str(path),
                "site": owner,
                "dataset": lineage,
                "entry": entry.seq,
                "cap": cap.as_event(),
            }
        out.say(
            visible(
                f"entry {entry.seq}: '{owner}' allows epsilon = {epsilon:g} at delta = {delta:g} of '{lineage}'"
                + (f", for unit '{unit}'" if unit else "")
            )
        )


def _check_unit(unit: str | None) -> None:
    from cloister.privacy.statement import Unit

    if unit is not None and unit not in get_args(Unit):
        raise UsageError(
            f"--unit {unit}: there is no such unit", remedy=f"give one of {', '.join(get_args(Unit))}"
        )


def _key_file(path: Path, key: Path | None) -> Path:
    if not path.name:
        raise UsageError(f"'{path}' is no file's name", remedy="name the ledger's file")
    found = path.with_suffix(".pem") if key is None else key
    if found == path:
        raise UsageError(
            f"'{path}' cannot be both the ledger and its key", remedy="name the key's file with --key"
        )
    return found


def _begun(path: Path, *, site: str | None, dataset: str | None) -> tuple[str, str] | None:
    """Return whose ledger it is and of what; ``None`` where it is to be begun, for the site and data set that were given."""
    from cloister.privacy.ledger.heads import anchor_path
    from cloister.privacy.ledger.inspection import inspect

    try:
        exists = path.exists() or anchor_path(path).exists()
        if not exists and site is not None and dataset is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"'{path}' cannot be used: {error.strerror}", remedy="name a file in a folder of your own"
        ) from None
    if not exists:
        if site is None or dataset is None:
            raise UsageError(
                f"there is no ledger '{path}'",
                remedy="name the ledger's file, or begin one with --site NAME --dataset NAME",
            )
        return None
    found = inspect(path)
    found.require()
    if found.empty:
        raise UsageError(f"'{path}' is an empty file, and no ledger", remedy="remove it, or name another")
    first = found.chain.entries[0]
    for option, given, its in (("--site", site, first.site), ("--dataset", dataset, first.dataset)):
        if given is not None and given != its:
            raise UsageError(f"{option} {given}: the ledger is that of '{its}'", remedy=f"leave {option} out")
    return first.site, first.dataset
