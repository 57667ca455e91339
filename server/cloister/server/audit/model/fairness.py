"""Is the model as good for everybody: across sites, and across the groups that the task declares (through fairlearn's ``MetricFrame``).

A gap is only called one where it is beyond chance: a test of all groups being alike (chi-square), at a level that is divided among the attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cloister.core.errors import UsageError
from cloister.core.evidence import Finding, Verdict
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject, Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_fairness", "groups_of"]

_LEVEL = 0.05
_GAP = 0.10
_FEW = 20
_RECORDS = 20_000


def groups_of(names: Sequence[str], inputs: Tensor, wanted: str) -> list[str]:
    """Return the group of each record by one column.

    A column of two values gives two groups, one of numbers the halves of its public range, one of categories its values.

    Args:
        names: of the inputs, as `AuditSubject.input_names` has them.
        inputs: (n, d).
        wanted: the column.

    Raises:
        UsageError: there is no such column.
    """
    if wanted in names:
        values = inputs[:, list(names).index(wanted)]
        if bool(((values == 0) | (values == 1) | (values == 0.5)).all()):
            words = {0.0: "no", 1.0: "yes", 0.5: "unknown"}
            return [words[float(value)] for value in values]
        middle = 0.0 if bool((values < 0).any()) else 0.5  # a column is scaled to (0, 1) or (-1, 1)
        return [
            "lower half of the range" if value < middle else "upper half of the range" for value in values
        ]
    places = {
        name.removeprefix(f"{wanted}="): place
        for place, name in enumerate(names)
        if name.startswith(f"{wanted}=")
    }
    if not places:
        columns = dict.fromkeys(name.split("=")[0] for name in names)
        raise UsageError(
            f"there is no column '{wanted}' to group records by", remedy="columns: " + ", ".join(columns)
        )
    held = inputs[:, list(places.values())]
    labels = list(places)
    return [labels[int(row.argmax())] if bool(row.any()) else "unknown" for row in held]


def _section(found: Finding) -> Section:
    from cloister.server.report.canvas import ACCENT, tidy
    from cloister.server.report.words import percent

    section = Section()
    for attribute, one in found.figures.get("attributes", {}).items():
        rows = sorted(one["groups"].items(), key=lambda item: item[1]["accuracy"])
        section.table(
            (attribute.capitalize(), "Records", "Accuracy", "95% interval", "Named positive", "Found"),
            [
                (
                    name,
                    f"{group['records']:,}",
                    percent(group["accuracy"]),
                    f"{percent(group['interval'][0])} to {percent(group['interval'][1])}",
                    percent(group.get("selection_rate")),
                    percent(group.get("recall")),
                )
                for name, group in rows[:60]
            ],
            note=f"Difference {percent(one['difference'])}; the chance of one as large if all were alike is {one['p']:.2g}."
            + (" Groups of few records are not compared." if one["few"] else ""),
        )

        def draw(figure: Figure, rows: Any = rows) -> None:
            axes = figure.subplots()
            shown = rows[:20]
            values = [group["accuracy"] for _, group in shown]
            errors = np.array(
                [
                    [v - g["interval"][0], g["interval"][1] - v]
                    for v, (_, g) in zip(values, shown, strict=True)
                ]
            )
            axes.barh(range(len(shown)), values, color=ACCENT, xerr=np.maximum(errors.T, 0), ecolor="#5a6b75")
            axes.set_yticks(range(len(shown)), [name[:24] for name, _ in shown])
            axes.set_xlim(0, 1)
            tidy(axes, xlabel="accuracy")

        section.plot(f"fairness-{attribute}", f"Accuracy by {attribute}", draw, "with 95% intervals")
    return section


@shown_as("Fairness", _section)
def check_fairness(subject: AuditSubject) -> Finding:
    """Compare accuracy, selection rate and recall across sites and declared groups on test records."""
    if subject.task.kind != "classification":
        return Finding(
            name="fairness",
            verdict="no power",
            sentence="Groups are compared for classifications, and the task is a regression.",
            power="It could have shown nothing.",
        )
    batch = subject.batch("test", _RECORDS, "fairness")
    attributes: dict[str, list[str]] = {}
    if len(batch.sites) > 1:
        attributes["site"] = [batch.sites[place] for place in batch.site.tolist()]
    wanted = subject.setting("fairness", "groups", subject.task.groups)
    names = subject.input_names
    if names is not None:
        attributes |= {name: groups_of(names, batch.inputs, name) for name in wanted}
    elif wanted:
        raise UsageError(
            "groups are columns, and the task's inputs have no names", remedy="leave --group out"
        )
    if not attributes:
        return Finding(
            name="fairness",
            verdict="no power",
            sentence="There is one site and no declared group: nothing to compare.",
            figures={"attributes": {}},
            power="Declare groups by the columns of the task (--group).",
        )
    with torch.inference_mode():
        predicted = torch.cat([subject.model(part).argmax(1) for part in torch.split(batch.inputs, 250)])
    found = {
        name: _compared(batch, predicted, groups, subject.classes) for name, groups in attributes.items()
    }
    return _judged(found, len(batch))


def _judged(found: Mapping[str, Any], records: int) -> Finding:
    level = _LEVEL / len(found)
    unfair = [name for name, one in found.items() if one["p"] < level and one["difference"] > _GAP]
    seen = {name: one["detectable"] for name, one in found.items()}
    blind = [name for name, least in seen.items() if least > 2 * _GAP]
    worst = max(found, key=lambda name: (found[name]["difference"], name))
    one = found[worst]
    told = f"'{one['worst']}' ({100 * one['lowest']:.1f}%) and '{one['best']}' ({100 * one['highest']:.1f}%)"
    verdict: Verdict
    if unfair:
        verdict, sentence = "warn", f"Accuracy differs by {worst} beyond chance: {told}."
    elif len(blind) == len(found):
        verdict, sentence = (
            "no power",
            f"The largest difference is by {worst}, {told}; the groups are too small to tell it from chance.",
        )
    else:
        verdict, sentence = (
            "pass",
            f"No difference above {100 * _GAP:.0f} points beyond chance; the largest is by {worst}, {told}.",
        )
    return Finding(
        name="fairness",
        verdict=verdict,
        sentence=sentence,
        figures={"attributes": dict(found), "records": records, "level": level, "gap": _GAP},
        power="It could have shown differences of accuracy above "
        + ", ".join(f"{100 * least:.0f} points by {name}" for name, least in seen.items())
        + ". Groups that the task does not declare were not looked at.",
    )


def _compared(batch: Batch, predicted: Tensor, groups: Sequence[str], classes: int) -> dict[str, Any]:
    from fairlearn.metrics import MetricFrame, count, selection_rate  # type: ignore[import-untyped]
    from scipy import stats
    from sklearn.metrics import accuracy_score, recall_score  # type: ignore[import-untyped]

    metrics: dict[str, Any] = {"records": count, "accuracy": accuracy_score}
    if classes == 2:
        metrics["selection_rate"] = selection_rate
        metrics["recall"] = _recall(recall_score)
    frame = MetricFrame(
        metrics=metrics,
        y_true=batch.targets.numpy(),
        y_pred=predicted.numpy(),
        sensitive_features=np.array(groups, dtype=object),
    )
    table: dict[str, dict[str, Any]] = {}
    for name, row in frame.by_group.iterrows():
        records, hits = int(row["records"]), round(float(row["accuracy"]) * int(row["records"]))
        low = float(stats.beta.ppf(0.025, hits, records - hits + 1)) if hits else 0.0
        high = float(stats.beta.ppf(0.975, hits + 1, records - hits)) if hits < records else 1.0
        table[str(name)] = {
            "records": records,
            "accuracy": float(row["accuracy"]),
            "interval": [low, high],
        } | {key: float(row[key]) for key in ("selection_rate", "recall") if key in row}
    kept = {name: one for name, one in table.items() if one["records"] >= _FEW}
    few = sorted(table.keys() - kept.keys())
    counted = np.array(
        [[round(o["accuracy"] * o["records"]), o["records"]] for o in kept.values()], dtype=float
    )
    if len(kept) < 2:
        return {"groups": table, "difference": 0.0, "p": 1.0, "few": few, "detectable": 1.0, "worst": "", "best": "", "lowest": 0.0, "highest": 0.0}  # fmt: skip
    counts = np.stack([counted[:, 0], counted[:, 1] - counted[:, 0]])
    p = float(stats.chi2_contingency(counts, correction=False).pvalue) if (counts.sum(1) > 0).all() else 1.0
    worst, best = (pick(kept, key=lambda name: (kept[name]["accuracy"], name)) for pick in (min, max))
    share = float(counted[:, 0].sum() / counted[:, 1].sum())
    share = min(max(share, 1 / (counted[:, 1].sum() + 2)), 1 - 1 / (counted[:, 1].sum() + 2))
    smallest = np.sort(counted[:, 1])[:2]
    # What a test of level 5% sees with a chance of 80% between the two smallest groups (z = 1.96 + 0.84).
    detectable = min(1.0, 2.8 * float(np.sqrt(share * (1 - share) * (1 / smallest).sum())))
    return {
        "groups": table,
        "difference": kept[best]["accuracy"] - kept[worst]["accuracy"],
        "p": p,
        "few": few,
        "detectable": detectable,
        "worst": worst,
        "best": best,
        "lowest": kept[worst]["accuracy"],
        "highest": kept[best]["accuracy"],
    }


def _recall(score: Any) -> Any:
    def recall(truth: Any, predicted: Any) -> float:
        return float(score(truth, predicted, zero_division=0))

    return recall
