"""``cloister audit privacy FILE``: does the federation keep the ε that it promises? An audited run of it, with canaries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import AuditFailed, UsageError
from cloister.core.outcome import JsonOption, Outcome, SetOption, outcome, settle, visible
from cloister.simulation.options import LedgersOption, NoLedgersOption, WorkersOption

if TYPE_CHECKING:
    from cloister.simulation.privacy_audit.auditing import Audit, Found
    from cloister.simulation.privacy_audit.planning import Sees, Space

__all__ = ["privacy_command", "register"]

_SPACES: dict[str, Space] = {"gradient": "gradient", "input": "input"}
_SEES: dict[str, Sees] = {"update": "update", "model": "model"}


def register(app: typer.Typer) -> None:
    """Add ``privacy`` to ``app``."""
    app.command("privacy")(privacy_command)


def privacy_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The federation file (TOML).", show_default=False),
    ] = None,
    canaries: Annotated[
        int, typer.Option("--canaries", min=1, help="How many canaries, half of which are planted.")
    ] = 1000,
    space: Annotated[
        str,
        typer.Option(
            "--space",
            help="gradient: the worst records there are, in a layer of their own; input: records under a wrong label.",
        ),
    ] = "gradient",
    sees: Annotated[
        str | None,
        typer.Option(
            "--sees",
            help="What the adversary sees: update (every update of the site) or model (every round's model). Default: the most that the "
            "promise admits.",
            show_default=False,
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            metavar="NAME",
            help="The site that holds canary records. Default: the first.",
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of each bound.")] = 0.95,
    keep_optimizer: Annotated[
        bool,
        typer.Option(
            "--keep-optimizer", help="Keep the file's optimisers and schedule; the audit then has no power."
        ),
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Where the run folder is made.")] = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with the folder of an interrupted audit, with the options that it began with.",
            show_default=False,
        ),
    ] = None,
    settings: SetOption = None,
    workers: WorkersOption = 0,
    ledgers: LedgersOption = None,
    no_ledgers: NoLedgersOption = False,
    json_output: JsonOption = False,
) -> None:
    """Plant canaries, train, and show what an attacker learns against what is promised. Exit 8 if the promise is refuted.

    An audit is a run of its own: it spends what the file promises, and ledgers are charged for it.
    """
    failed: AuditFailed | None = None
    with outcome(json_output) as result:
        from cloister.core.spec import load_federation
        from cloister.simulation.ledgers import keeps_ledgers
        from cloister.simulation.privacy_audit.auditing import Audit
        from cloister.simulation.privacy_audit.planning import designed

        if ledgers is not None and no_ledgers:
            raise UsageError("give --ledgers DIR or --no-ledgers, not both", remedy="leave one of them out")
        if (file is None) == (resume is None):
            raise UsageError(
                "give a federation file, or --resume RUN",
                remedy="cloister audit privacy examples/heart/private.toml",
            )
        if resume is not None:
            if settings or ledgers is not None or no_ledgers:
                raise UsageError(
                    "--set, --ledgers and --no-ledgers do not go with --resume: an audit goes on with what it began with",
                    remedy="leave them out",
                )
            audit = Audit.of_run(resume)
            kept = resume if _charged(resume) else None
            failed = _audit(result, audit, resume=resume, out=out, workers=workers, ledgers=kept)
        elif file is not None:
            loaded = load_federation(file, settings or [])
            _check("--space", space, _SPACES)
            if sees is not None:
                _check("--sees", sees, _SEES)
            design = designed(
                loaded,
                canaries=canaries,
                space=_SPACES[space],
                sees=None if sees is None else _SEES[sees],
                keep_optimizer=keep_optimizer,
            )
            kept = ledgers
            if (
                kept is None
                and not no_ledgers
                and not design.sites_are_canaries
                and keeps_ledgers(loaded.spec)
            ):
                kept = out / "ledgers"
            audit = Audit(design=design, confidence=confidence, site=site)
            failed = _audit(result, audit, resume=None, out=out, workers=workers, ledgers=kept)
    if failed is not None:
        raise typer.Exit(failed.exit_code if json_output else settle(failed, json_output=False))


def _audit(
    result: Outcome,
    audit: Audit,
    *,
    resume: Path | None,
    out: Path,
    workers: int | None,
    ledgers: Path | None,
) -> AuditFailed | None:
    from cloister.server.progress import Progress
    from cloister.simulation.engines import make_engine

    progress = Progress(console=result.progress)
    engine = make_engine("local", workers)

    def started(run: Path) -> None:
        result.on_interrupt = f"go on with: cloister audit privacy --resume {run}"

    try:
        if resume is not None:
            started(resume)
            made = audit.resume(resume, engine=engine, sinks=(progress,))
        else:
            made = audit.run(out=out, engine=engine, sinks=(progress,), on_start=started, ledgers=ledgers)
    finally:
        progress.close()
    found = figures(made, ledgers=ledgers is not None)
    paths = write(found, made.run.run)
    result.result = {name: value for name, value in found.items() if name not in ("scores", "coins")} | paths
    result.say(*_told(found), "", f"page  {paths['page']}", f"run   {made.run.run}")
    if found["verdict"] != "refuted":
        return None
    failed = AuditFailed(
        f"the promise is refuted: {found['reason']}",
        remedy="do not release the model; find the fault, or repeat the audit with another --set federation.seed=… if you suspect chance",
        code="privacy-refuted",
    )
    result.result |= {"error": failed.as_dict()}
    return failed


def _charged(run: Path) -> bool:
    path = run / "ledgers.txt"
    return path.is_file() and path.stat().st_size > 0


def figures(made: Found, *, ledgers: bool) -> dict[str, Any]:
    """Return what ``audit-privacy.json`` holds."""
    from cloister.server.audit.canaries.writing import figures_of

    spec = made.design.loaded.spec
    return figures_of(
        made.run.run.name,
        spec,
        made.case,
        made.judgement,
        made.scores,
        seal=made.seal,
        federation=made.design.audited,
        site=made.site,
        ledgers=ledgers,
        in_run=False,
        rounds_seen=spec.federation.rounds,
    )


def write(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write page and figures into ``folder``, and the verdict into its events; return the paths."""
    from cloister.server.audit.canaries.writing import verdict_event, write_page
    from cloister.server.events import EventBus, EventLog

    bus = EventBus(EventLog(folder / "events.jsonl"))
    bus.emit("audit", 0, **verdict_event(found))
    bus.close()
    return write_page(found, folder)


def _told(found: Mapping[str, Any]) -> list[Any]:
    table = Table(
        "", "estimator", "epsilon at least", "reach", "refutes from", "power", box=None, pad_edge=False
    )
    for one in found["estimators"]:
        table.add_row(
            "→" if one["decides"] else "",
            one["name"],
            "assumes too much here" if one["bound"] is None else f"{one['bound']:.2f}",
            f"{one['reach']:.2f}",
            "–" if one["refutable"] is None else f"{one['refutable']:.2f}",
            "yes" if one["power"] else "no",
        )
    claim = found["claim"]
    return [
        f"claim: epsilon at most {claim['epsilon']:.4g} at delta = {claim['delta']:g}; {found['canaries']} canaries, {found['included']} of them in",
        "",
        table,
        "",
        "→ decides, as settled before training; reach: the median bound if the claim holds; refutes from: the smallest true epsilon",
        "  that would be refuted in 9 of 10 audits",
        visible(f"\nverdict: {found['verdict']}: {found['reason']}"),
    ]


def _check(option: str, given: str, known: Mapping[str, str]) -> None:
    if given not in known:
        raise UsageError(
            f"{option} {given} is none of {', '.join(known)}", remedy=f"give one of {', '.join(known)}"
        )
