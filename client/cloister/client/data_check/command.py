"""``cloister site data FOLDER``: look at a site's records before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cloister.client.data_check.finding import SEVERITIES, Finding
from cloister.core.errors import DataError
from cloister.core.outcome import JsonOption, Outcome, outcome, settle, visible

__all__ = ["register"]

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "dim"}


def register(app: typer.Typer) -> None:
    """Add ``data`` to ``cloister site``."""

    @app.command("data")
    def data(
        folder: Annotated[
            Path, typer.Argument(metavar="[FOLDER]", help="The site's folder, with its site.toml.")
        ] = Path(),
        dataset: Annotated[
            str | None, typer.Option("--dataset", help="Look at this data set alone.", show_default=False)
        ] = None,
        federation: Annotated[
            Path | None,
            typer.Option(
                "--federation",
                metavar="FILE",
                help="The federation file that the records are for: schema, target and classes are then checked, too.",
                show_default=False,
            ),
        ] = None,
        json_output: JsonOption = False,
    ) -> None:
        """Look at a site's records: identifiers, schema, rare values, repeated records. Nothing leaves this machine."""
        with outcome(json_output) as out:
            failed = _data(out, folder, dataset, federation)
        if failed is not None:
            raise typer.Exit(failed.exit_code if json_output else settle(failed, json_output=False))


def _data(out: Outcome, folder: Path, dataset: str | None, federation: Path | None) -> DataError | None:
    from cloister.client.data_check.checking import check_dataset
    from cloister.client.site_config import load_site
    from cloister.core.spec import load_federation
    from cloister.core.spec.refusals import nearest

    config = load_site(folder)
    task = None if federation is None else load_federation(federation).spec.task
    if dataset is not None and dataset not in config.data:
        raise DataError(
            f"site.toml has no data set '{dataset}'{nearest(dataset, config.data)}", remedy="check --dataset"
        )
    found: dict[str, list[Finding]] = {}
    for name, table in config.data.items():
        if dataset in (None, name):
            with out.progress.status(f"reading '{name}'"):
                found[name] = check_dataset(name, table, task, folder)
    for name, findings in found.items():
        _show(out, name, findings)
    out.result = {"data": {name: [one.as_dict() for one in findings] for name, findings in found.items()}}
    wrong = sum(one.severity == "error" for findings in found.values() for one in findings)
    if not wrong:
        return None
    failed = DataError(
        f"{wrong} finding{'s' * (wrong > 1)} of this check {'keep' if wrong > 1 else 'keeps'} records from being trained on",
        remedy="mend what is marked as an error; docs/site-data.md explains each finding",
        code="data-findings",
    )
    out.result = {**out.result, "error": failed.as_dict()}
    return failed


def _show(out: Outcome, name: str, findings: list[Finding]) -> None:
    counts = {severity: sum(one.severity == severity for one in findings) for severity in SEVERITIES}
    told = ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items() if count)
    out.say(Text.assemble((f"\n{name}", "bold"), f": {told or 'nothing to say'}"))
    if not findings:
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        table.add_row(
            Text(one.severity, _STYLES[one.severity]),
            one.code,
            Text.assemble(visible(one.what), "\n", (f"→ {visible(one.remedy)}", "cyan")),
        )
    out.say(table)
