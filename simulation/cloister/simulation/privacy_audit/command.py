"""``cloister audit privacy FILE``: does the federation keep the ε that it promises? An audited run of it, with canaries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import AuditFailed, UsageError
from cloister.core.outcome import FileArgument, JsonOption, Outcome, SetOption, outcome, settle, visible
from cloister.simulation.options import LedgersOption, NoLedgersOption, WorkersOption

if TYPE_CHECKING:
    from cloister.simulation.privacy_audit.auditing import Found
    from cloister.simulation.privacy_audit.planning import Design, Sees, Space

__all__ = ["PAGE", "privacy_command", "register"]

PAGE, FIGURES = "audit-privacy.html", "audit-privacy.json"
_SPACES: dict[str, Space] = {"gradient": "gradient", "input": "input"}
_SEES: dict[str, Sees] = {"update": "update", "model": "model"}


def register(app: typer.Typer) -> None:
    """Add ``privacy`` to ``app``."""
    app.command("privacy")(privacy_command)


def privacy_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    file: FileArgument,
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
        from cloister.simulation.privacy_audit.planning import designed

        if ledgers is not None and no_ledgers:
            raise UsageError("give --ledgers DIR or --no-ledgers, not both", remedy="leave one of them out")
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
        if kept is None and not no_ledgers and not design.sites_are_canaries and keeps_ledgers(loaded.spec):
            kept = out / "ledgers"
        failed = _audit(
            result, design, site=site, confidence=confidence, out=out, workers=workers, ledgers=kept
        )
    if failed is not None:
        raise typer.Exit(failed.exit_code if json_output else settle(failed, json_output=False))


def _audit(
    result: Outcome,
    design: Design,
    *,
    site: str | None,
    confidence: float,
    out: Path,
    workers: int | None,
    ledgers: Path | None,
) -> AuditFailed | None:
    from cloister.server.progress import Progress
    from cloister.simulation.engines import make_engine
    from cloister.simulation.privacy_audit.auditing import Audit

    progress = Progress(console=result.progress)
    try:
        made = Audit(design=design, confidence=confidence, site=site).run(
            out=out, engine=make_engine("local", workers), sinks=(progress,), ledgers=ledgers
        )
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


def figures(made: Found, *, ledgers: bool) -> dict[str, Any]:
    """Return what ``audit-privacy.json`` holds."""
    spec, claim = made.design.loaded.spec, made.judgement.claim
    return {
        "check": "privacy",
        "run": made.run.run.name,
        **made.judgement.as_dict(),
        "seal": made.seal,
        "set_up": {
            "federation": spec.federation.name,
            "unit": spec.privacy.unit,
            "seed": spec.federation.seed,
            "noise_multiplier": claim.noise_multiplier,
            "sampling_rate": claim.sampling_rate,
            "steps": claim.steps,
            "dilution": claim.dilution,
            "space": made.design.space,
            "sees": made.design.sees,
            "site": made.site,
            "plain": made.design.plain,
            "ledgers": ledgers,
        },
        "scores": made.scores.values.tolist(),
        "coins": made.scores.included.astype(int).tolist(),
    }


def write(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write page and figures into ``folder``, and the verdict into its events; return the paths."""
    from cloister.core.files import write_whole
    from cloister.server.events import EventBus, EventLog
    from cloister.simulation.privacy_audit.page import render_page

    bus = EventBus(EventLog(folder / "events.jsonl"))
    bus.emit(
        "audit",
        0,
        check=found["check"],
        verdict=found["verdict"],
        reason=found["reason"],
        evidence={
            "lower_bound": found["lower_bound"],
            "confidence": found["confidence"],
            "claim": found["claim"],
        },
        power={one["name"]: one["refutable"] for one in found["estimators"]},
    )
    bus.close()
    page, data = folder / PAGE, folder / FIGURES
    write_whole(page, render_page(found), mode=0o600)
    write_whole(data, json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n", mode=0o600)
    return {"page": str(page), "figures": str(data)}


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
