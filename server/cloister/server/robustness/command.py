"""``cloister audit robustness RUN_OR_MODEL``: how a model stands an adversary, as figures, a page and JSON."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from cloister.core.errors import AuditFailed, StorageError, UsageError
from cloister.core.outcome import JsonOption, Outcome, outcome, visible

if TYPE_CHECKING:
    from cloister.server.robustness.evaluation import Settings

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add ``robustness`` to the group of audits."""
    group.command("robustness")(robustness_command)


def robustness_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="A run folder, or a .safetensors file.", show_default=False
        ),
    ],
    epsilon: Annotated[
        float,
        typer.Option(
            "--epsilon",
            help="The largest norm of a perturbation, in the units of the model's input.",
            show_default=False,
        ),
    ],
    task: Annotated[
        Path | None,
        typer.Option(
            "--task",
            metavar="FILE",
            help="The federation file that a model outside of a run was made under.",
            show_default=False,
        ),
    ] = None,
    norm: Annotated[
        Literal["linf", "l2"], typer.Option("--norm", help="How a perturbation is measured.")
    ] = "linf",
    records: Annotated[
        int, typer.Option("--records", "--images", min=1, help="Test records that are drawn.")
    ] = 1000,
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attacks",
            metavar="NAMES",
            help="Comma-separated; without it all that fit the task.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="NAMES",
            help="Numeric columns that an adversary can change, comma-separated.",
            show_default=False,
        ),
    ] = None,
    transfer_from: Annotated[
        Path | None,
        typer.Option(
            "--transfer-from",
            metavar="RUN_OR_MODEL",
            help="Another model of the task, to make examples on.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of PGD.")] = 40,
    restarts: Annotated[int, typer.Option("--restarts", min=1, help="Restarts of PGD.")] = 3,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Looks of the black-box attacks.")] = 5000,
    severity: Annotated[
        int, typer.Option("--severity", min=0, max=5, help="Of the common corruptions; 0: none.")
    ] = 3,
    sweep: Annotated[bool, typer.Option("--sweep/--no-sweep", help="Measure at other epsilons too.")] = True,
    sigma: Annotated[
        float,
        typer.Option("--sigma", min=0, help="Noise of the randomised smoothing; 0: nothing is certified."),
    ] = 0.0,
    certified: Annotated[int, typer.Option("--certified", min=1, help="Records that are certified.")] = 100,
    least: Annotated[
        float | None,
        typer.Option(
            "--least",
            min=0,
            max=1,
            help="Exit 8 below this robust accuracy, or where an alarm is raised.",
            show_default=False,
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Write robustness.json and robustness.html there.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Attack a model and report what it withstands: clean and robust accuracy, sweep, corruptions, calibration, alarms, worst site."""
    with outcome(json_output) as out:
        from cloister.server.robustness.evaluation import Settings, evaluate
        from cloister.server.robustness.subject import open_subject

        settings = Settings(
            norm=norm,
            epsilon=epsilon,
            records=records,
            attacks=_names(attacks),
            features=_names(features),
            seed=seed,
            steps=steps,
            restarts=restarts,
            queries=queries,
            severity=severity,
            sweep=sweep,
            sigma=sigma,
            certified=certified,
        )
        _check_attacks(settings)
        subject = open_subject(path, task)
        source = None if transfer_from is None else open_subject(transfer_from, task)
        found = evaluate(
            subject,
            settings,
            source=source,
            tell=lambda text: out.progress.print(text, highlight=False, markup=False),
        )
        if out_folder is not None:
            found["out"] = _write(out_folder, found)
        out.result = found
        _show(out, found)
        if out_folder is not None:
            out.say(f"\nnext: open {shlex.quote(found['out']['html'])} in a browser")
        if least is not None:
            _require(found, least)


def _check_attacks(settings: Settings) -> None:
    """Refuse an unknown attack before anything is computed."""
    from cloister.core.spec.refusals import nearest
    from cloister.server.robustness.suite import ATTACKS

    for name in settings.attacks or ():
        if name not in ATTACKS:
            raise UsageError(
                f"there is no attack '{name}'{nearest(name, ATTACKS)}",
                remedy="attacks: " + ", ".join(ATTACKS),
            )


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _write(folder: Path, found: dict[str, Any]) -> dict[str, str]:
    from cloister.core.files import write_whole
    from cloister.server.robustness.page import render_page

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError.of(folder, error) from None
    paths = folder / "robustness.json", folder / "robustness.html"
    write_whole(paths[0], json.dumps(found, allow_nan=False, indent=1) + "\n")
    write_whole(paths[1], render_page(found))
    return {"json": str(paths[0]), "html": str(paths[1])}


def _show(out: Outcome, found: dict[str, Any]) -> None:
    out.say(
        visible(
            f"{found['federation']}: {found['records']} records, {found['norm']} epsilon = {found['epsilon']:g}, seed {found['seed']}"
        )
    )
    table = Table("attack", "accuracy", "95% interval", "seconds", box=None, pad_edge=False)
    rows: dict[str, Any] = {"none (clean)": found["accuracy"], **found["attacks"]}
    if found["transfer"] is not None:
        rows["transfer"] = found["transfer"]
    rows["all together"] = found["robust_accuracy"]
    for name, one in rows.items():
        low, high = one["interval"]
        seconds = f"{one['seconds']:.0f}" if "seconds" in one else ""
        table.add_row(name, f"{one['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", seconds)
    out.say("", table, "")
    worst = found["sites"][found["worst_site"]]
    out.say(
        visible(
            f"worst of {len(found['sites'])} sites: {found['worst_site']}, {worst['robust']:.4f} of {worst['records']} records"
        )
    )
    if found["corruptions"] is not None:
        corrupted = found["corruptions"]
        out.say(
            f"corruptions of severity {corrupted['severity']}: {corrupted['mean']:.4f} in the mean, worst {corrupted['worst']} "
            f"{corrupted['accuracy'][corrupted['worst']]:.4f}"
        )
    if found["calibration"]["ece"] is not None:
        out.say(f"expected calibration error (15 bins): {found['calibration']['ece']:.4f}")
    if found["smoothing"] is not None:
        out.say(
            f"smoothing with sigma = {found['smoothing']['sigma']:g}: mean certified l2 radius {found['smoothing']['mean_radius']:.4f}"
        )
    for alarm in found["alarms"]:
        if alarm["raised"]:
            out.say(
                f"ALARM {alarm['name']}: {alarm['says']} ({alarm['evidence']:.3f} > {alarm['threshold']:g})"
            )
    if not any(alarm["raised"] for alarm in found["alarms"]):
        out.say("no alarm of gradient masking")
    for reason in found["unreliable"]:
        out.say(f"unreliable: {reason}")


def _require(found: dict[str, Any], least: float) -> None:
    raised = [alarm["name"] for alarm in found["alarms"] if alarm["raised"]]
    accuracy = found["robust_accuracy"]["accuracy"]
    if raised or accuracy < least:
        why = (
            f"alarms: {', '.join(raised)}" if raised else f"robust accuracy {accuracy:.4f} is below {least:g}"
        )
        raise AuditFailed(
            f"the model does not pass: {why}", remedy="train it against an adversary: [training.adversarial]"
        )
