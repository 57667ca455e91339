"""``cloister check FILE``: what a federation file means, what it costs and who learns what, before anything runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from cloister.core.errors import SpecError
from cloister.core.outcome import FileArgument, JsonOption, Outcome, SetOption, outcome, visible

if TYPE_CHECKING:
    from cloister.core.spec import FederationSpec, Loaded

__all__ = ["check", "predicted_protection", "predicted_traffic", "register"]

_STYLES = {"file": "", "--set": "bold cyan", "default": "dim"}
_NUMBER_BYTES = 4


def register(app: typer.Typer) -> None:
    """Add ``check`` to ``app``."""

    @app.command("check")
    def check_command(
        file: FileArgument, overrides: SetOption = None, json_output: JsonOption = False
    ) -> None:
        """Check a federation file and show what it means.

        Prints the effective file with the origin of each value, the model, the bytes of a round, what the server, another
        site and an outsider can learn, and warnings. Refuses an unsound file (exit 3) and unusable data (exit 4).
        """
        with outcome(json_output) as out:
            from cloister.core.spec import load_federation

            loaded = load_federation(file, overrides or [])
            out.result = check(loaded)
            _show(file, loaded, out)


def check(loaded: Loaded) -> dict[str, Any]:
    """Check a federation with its task and records; return what ``--json`` prints.

    Raises:
        SpecError: the federation is unsound, or its task is refused.
        DataError: the task's records are refused.
    """
    from cloister.core.checking import check_federation, check_records, expected_cohort, population
    from cloister.core.exposure import exposure
    from cloister.core.preflight import try_task
    from cloister.core.resolve import build_model, described, load_task, notes_of, owners
    from cloister.core.update import Layout

    task = load_task(loaded.spec.task, loaded.base)
    splits = owners(task)
    loaded = loaded if loaded.spec.cohort.sites else loaded.settled(len(splits))
    spec = loaded.spec
    warnings = check_federation(loaded, task)
    model = build_model(task, spec.federation.seed)
    layout = Layout.of(model)
    warnings += check_records(loaded, splits)
    try_task(task, model, next(iter(splits.values())).train)
    described(task)
    warnings += notes_of(task)
    sites = population(spec, splits)
    cohort = expected_cohort(spec, sites)
    return {
        "name": spec.federation.name,
        "digest": loaded.digest(),
        "effective": loaded.effective(),
        "origins": {key: str(origin) for key, origin in loaded.origins.items()},
        "task": {"use": spec.task.use, "kind": task.kind, "classes": list(task.classes)},
        "model": {"parameters": layout.size, "layout": layout.digest},
        "sites": sites,
        "cohort": cohort,
        "traffic": predicted_traffic(spec, layout.size, cohort),
        "privacy": predicted_privacy(spec, layout.size),
        "protection": predicted_protection(spec, layout.size, classes=len(task.classes), cohort=cohort),
        "exposure": exposure(spec).as_dict(),
        "warnings": warnings,
    }


def predicted_privacy(spec: FederationSpec, parameters: int) -> dict[str, Any]:
    """Return what the whole run will cost a site that takes part in every round: ``unit``, ``epsilon``, and what they rest on.

    The accounting lives in the privacy part, which core does not import: it is found by the entry point ``privacy`` of the group
    ``cloister.predictions``.

    Args:
        spec: the federation.
        parameters: length of the model's vector, which a guarantee over integers depends on.

    Raises:
        SpecError: the promise cannot be kept, or the privacy part is not installed.
    """
    if spec.privacy.unit == "none":
        return {"unit": "none", "epsilon": None}
    return _predicted("privacy")(spec, parameters)


def predicted_protection(
    spec: FederationSpec, parameters: int, *, classes: int, cohort: float
) -> dict[str, Any]:
    """Return what a round's protection means: ``protection``, and whose sums are opened, found by the entry point ``protection``.

    Args:
        spec: the federation.
        parameters: length of the model's vector.
        classes: of the task; 0 for a regression.
        cohort: how many sites take part (a mean, where they are drawn).

    Raises:
        SpecError: the protection cannot be given, or the privacy part is not installed.
    """
    if spec.aggregation.protection == "plain" and spec.aggregation.group_size is None:
        return {"protection": "plain"}
    return _predicted("protection")(spec, parameters, classes=classes, cohort=round(cohort))


def _predicted(name: str) -> Callable[..., dict[str, Any]]:
    """Return what predicts ``name``: core does not import the part that knows."""
    for point in entry_points(group="cloister.predictions", name=name):
        found: Callable[..., dict[str, Any]] = point.load()
        return found
    raise SpecError(
        "the privacy part of cloister is not installed",
        remedy="install the whole of cloister",
        code="part-missing",
    )


def _protection(found: Mapping[str, Any]) -> str:
    name = found["protection"]
    groups = _groups(found["groups"]) if "groups" in found else ""
    if name == "plain":
        return f"plain: the server sees each update{groups}"
    shares = ""
    if name == "masked":
        shares = (
            f", {found['threshold']} of {found['degree'] + 1} shares take a mask off, and up to {found['colluders']} of a "
            f"{'group' if groups else 'round'}'s sites may side with the server"
        )
    sent = f", {_bytes(found['up'])} of ciphertexts up" if "up" in found else ""
    sent += f" and {_bytes(found['down'])} down" if found.get("down") else ""
    return (
        f"{name}: a sum is opened from {found['least']} sites on{shares}; {found['numbers']:,} integers a site{sent}, "
        f"each number rounded by less than {found['unit']:.2g}{groups}"
    )


def _groups(found: Mapping[str, Any]) -> str:
    """Say how many liars groups bear, and what noise each group's mean carries."""
    sites = f"{found['smallest']}" + (
        f" to {found['largest']}" if found["largest"] != found["smallest"] else ""
    )
    noise = (
        "" if found["noise"] is None else f"; noise of {found['noise']:.3g} in every number of a group's mean"
    )
    return (
        f"\n{'':<8} {found['number']} fixed groups of {sites}; f = {found['byzantine']} liars spoil up to {found['byzantine']} of them, and the rule "
        f"bears {found['tolerated']}; it needs {found['needed']} groups in a round, so {found['spare']} may be missing{noise}"
    )


def _epsilon(privacy: Mapping[str, Any]) -> str:
    if privacy["epsilon"] is None:
        return f"none: privacy.unit = '{privacy['unit']}'"
    unit = privacy["unit"]
    whom = "record" if unit == "record" else f"{unit.partition('-')[0]} ({unit})"
    return (
        f"{privacy['epsilon']:.3g} for each {whom}, δ = {privacy['delta']:g}, σ = {privacy['noise_multiplier']:.3g}; "
        "for a site that takes part in every round"
    )


def predicted_traffic(spec: FederationSpec, parameters: int, cohort: float) -> dict[str, int]:
    """Return the bytes of arrays in one round over the whole cohort (float32; messages' headers are left out).

    Args:
        spec: the federation.
        parameters: length of the model's vector.
        cohort: how many sites take part (a mean, where they are drawn).

    Returns:
        ``down`` and ``up`` for training, both doubled by SCAFFOLD's control variates; ``evaluation_down`` for sending the new
        model out in a round that the sites measure.
    """
    vector = round(_NUMBER_BYTES * parameters * cohort)
    training = vector * (2 if spec.training.scaffold else 1)
    up = training
    if spec.privacy.unit == "site-distributed":  # integers, padded to a power of two
        up = round(_NUMBER_BYTES * (1 << (parameters - 1).bit_length()) * cohort)
    return {"down": training, "up": up, "evaluation_down": vector if spec.evaluation.sites else 0}


def _show(file: Path, loaded: Loaded, out: Outcome) -> None:
    found = out.result
    out.say(_coloured(loaded.settled(found["sites"]).annotated_toml()))
    task, model, traffic = found["task"], found["model"], found["traffic"]
    classes = f", {len(task['classes'])} classes" if task["classes"] else ""
    evaluation = (
        f"; {_bytes(traffic['evaluation_down'])} more down where sites measure"
        if traffic["evaluation_down"]
        else ""
    )
    facts = {
        "digest": found["digest"],
        "task": f"{task['use']}: {task['kind']}{classes}",
        "model": f"{model['parameters']:,} parameters, layout {model['layout'][:16]}",
        "sites": f"{found['sites']:,}, of which {found['cohort']:,g} a round",
        "traffic": f"{_bytes(traffic['down'])} down and {_bytes(traffic['up'])} up a round{evaluation}",
        "ε": _epsilon(found["privacy"]),
        "updates": _protection(found["protection"]),
    }
    out.say("\n".join(f"{name:<8} {fact}" for name, fact in facts.items()))
    who = {
        "server": "What the server can learn",
        "site": "What another site can learn",
        "outsider": "What an outsider can learn",
    }
    for party, title in who.items():
        out.say(_list(title, found["exposure"][party], style="bold"))
    if found["warnings"]:
        out.say(_list("Warnings", found["warnings"], style="bold yellow"))
    out.say(f"\nnext: cloister simulate {shlex.quote(str(file))}")


def _coloured(toml: str) -> Text:
    text = Text()
    for line in visible(toml).rstrip("\n").split("\n"):
        setting, separator, origin = line.rpartition("  # ")
        text.append(setting + separator, _STYLES.get(origin, "")) if separator else text.append(line, "bold")
        text.append(f"{origin}\n" if separator else "\n", "dim")
    return text


def _list(title: str, sentences: list[str], *, style: str) -> Text:
    return Text.assemble("\n", (title, style), *(f"\n  - {sentence}" for sentence in sentences))


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"
