"""The check ``membership``: how many members an attacker finds at few false alarms, and whether a promise allows so many.

Two things are attacked. **The model**: members are what the run trained on, the others are the sites' test records. **Models like it**: each shadow in turn, by
the others without it and its complement; that is many attacks in place of one, and says what the recipe gives away, whatever the luck of one model.

The verdict is about the share of members that the best attack finds at 1% false alarms, against ``most`` (5% unless told otherwise), and
against what (ε, δ)-differential privacy of records allows (Kairouz, Oh & Viswanath 2015), where the run promises that:

=============  ==================================================================================
verdict        when
=============  ==================================================================================
fail           the interval's lower end is above ``most``, or above what the promise allows
pass           the interval's upper end is at most ``most``
no power       neither, or fewer others a model than one hundred: no false alarm could be allowed
=============  ==================================================================================

Of N others k = ⌊N/100⌋ may pass, and guessing then finds (k + 1)/(N + 1) of the members, somewhat more than 1%: both limits are raised to that.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import UsageError
from cloister.core.evidence import Finding, plain_figures
from cloister.core.files import write_whole
from cloister.privacy.audit.membership import (
    area,
    curve,
    lira_scores,
    loss_scores,
    most_allowed,
    rate_at,
    rmia_scores,
    share_interval,
)
from cloister.privacy.record_plans import distributed_record_plan, record_plan
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject
from cloister.simulation.membership.shadows import (
    Population,
    Shadows,
    confidences,
    population_of,
    train_shadows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SHADOWS", "attack_all", "check_membership"]

#: Shadow models that an attack has, where nothing else is told.
SHADOWS = 24
_MOST = 0.05
_RATES = (0.01, 0.001)
_LIMIT = 6000
_EXPOSED = 20
_SITE_LEAST = 50

Numbers = npt.NDArray[np.float64]
Members = npt.NDArray[np.bool_]


def attack_all(target: Numbers, shadows: Numbers, member: Members) -> dict[str, Numbers]:
    """Return each attack's scores."""
    return {
        "loss": loss_scores(target),
        "lira": lira_scores(target, shadows, member),
        "lira-offline": lira_scores(target, shadows, member, online=False),
        "rmia": rmia_scores(target, shadows, member),
    }


def _section(found: Finding) -> Section:
    from cloister.server.report.canvas import CATEGORIES, INK, MUTED, tidy
    from cloister.server.report.words import percent

    figures, section = found.figures, Section()
    for part, title in (("model", "The model"), ("recipe", "Models like it")):
        if part not in figures:
            continue
        attacks = figures[part]["attacks"]

        def draw(figure: Figure, attacks: Any = attacks) -> None:
            axes = figure.subplots()
            for color, (name, one) in zip(CATEGORIES, attacks.items(), strict=False):
                axes.plot(one["curve"][0], np.maximum(one["curve"][1], 1e-5), color=color, label=name)
            least = min(one["curve"][0][0] for one in attacks.values())
            axes.plot([least, 1], [least, 1], color=MUTED, linewidth=1.0, linestyle="--", label="guessing")
            if figures["promise"]:
                alarms = np.logspace(np.log10(least), 0, 60)
                bound = [
                    most_allowed(a, figures["promise"]["epsilon"], figures["promise"]["delta"])
                    for a in alarms
                ]
                axes.plot(
                    alarms, bound, color=INK, linewidth=1.2, linestyle=":", label="allowed by the promise"
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlim(least, 1)
            axes.set_ylim(least, 1.1)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
            tidy(axes, xlabel="false alarms", ylabel="members found")
            figure.legend(loc="outside upper left", ncols=3)

        section.plot(
            f"membership-{part}", f"{title}: who was trained on", draw, "both axes logarithmic", height=3.6
        )
        section.table(
            ("Attack", "Members found\nat 1% false alarms", "Members found\nat 0.1% false alarms", "AUC"),
            [
                (
                    name,
                    *(
                        f"{percent(one['rates'][rate]['share'])}\n{percent(one['rates'][rate]['low'])} to {percent(one['rates'][rate]['high'])}"
                        for rate in ("0.01", "0.001")
                    ),
                    f"{one['auc']:.3f}",
                )
                for name, one in attacks.items()
            ],
            title=title,
            note=figures[part]["note"],
        )
    section.table(
        ("Site", "Records", "Members found\nat 1% false alarms", "95% interval"),
        [
            (
                name,
                f"{one['members']:,}",
                percent(one["share"]),
                f"{percent(one['low'])} to {percent(one['high'])}",
            )
            for name, one in list(figures.get("sites", {}).items())[:100]
        ],
        title="By site",
        note="Of models like it, by LiRA, at each model's own threshold for all sites together. Which records are the most exposed, only a site's own report says (--site).",
    )
    return section


@shown_as("Membership inference", _section)
def check_membership(subject: AuditSubject) -> Finding:
    """Attack the run's model, and models trained like it."""
    setting = subject.setting
    count = int(setting("membership", "shadows", SHADOWS))
    most = float(setting("membership", "most", _MOST))
    site = setting("membership", "site", None)
    if count < 4 or count % 2:
        raise UsageError(f"{count} shadow models are no pairs", remedy="give an even number, at least 4")
    population = population_of(subject, int(setting("membership", "records", _LIMIT)))
    if site is not None and site not in population.sites:
        raise UsageError(f"there is no site '{site}'", remedy="sites: " + ", ".join(population.sites[:20]))
    # Two more than an attack has: when one is attacked, it and its complement are left out.
    shadows = train_shadows(subject, population, count + 2)
    recipe, exposed, sites = _recipe(population, shadows)
    figures: dict[str, Any] = {
        "shadows": count,
        "way": shadows.way,
        "records": len(population),
        "most": most,
        "promise": _promise(subject),
        "seed": subject.seed,
        "recipe": recipe,
        "sites": sites,
    }
    if subject.tensors is not None:
        figures = {**figures, "model": _model(subject, population, shadows)}
    artefacts: tuple[str, ...] = ()
    if site is not None:
        artefacts = (_own_report(subject, population, exposed, site),)
    return _judged(figures, artefacts)


def _model(subject: AuditSubject, population: Population, shadows: Shadows) -> dict[str, Any]:
    target = confidences(subject.task, subject.model, population.data)
    scores = attack_all(target, shadows.values, shadows.member)
    attacks = {}
    for name, one in scores.items():
        rates = {f"{at:g}": _rate(one, population.trained, at) for at in _RATES}
        alarms, found = curve(one, population.trained)
        attacks[name] = {"rates": rates, "auc": area(one, population.trained), "curve": [alarms, found]}
    return {
        "attacks": attacks,
        "members": int(population.trained.sum()),
        "others": int((~population.trained).sum()),
        "note": "One model; members are what it was trained on, the others are test records. Intervals: Clopper and Pearson, over records. Shadows were trained with "
        "half of all records, the model with its whole training part.",
    }


def _recipe(population: Population, shadows: Shadows) -> tuple[dict[str, Any], Numbers, dict[str, Any]]:
    """Attack each shadow by the others; return the figures, how often each record was found, and each site's."""
    count, records = shadows.values.shape
    shares: dict[str, dict[float, list[float]]] = {}
    areas: dict[str, list[float]] = {}
    curves: dict[str, list[Numbers]] = {}
    found_in = np.zeros(records)
    grid = np.logspace(-math.log10(max(records // 2, 2)), 0, 100)
    for place in range(count):
        kept = [other for other in range(count) if other // 2 != place // 2]
        member = shadows.member[place]
        scores = attack_all(shadows.values[place], shadows.values[kept], shadows.member[kept])
        for name, one in scores.items():
            for at in _RATES:
                shares.setdefault(name, {}).setdefault(at, []).append(rate_at(one, member, at).share)
            areas.setdefault(name, []).append(area(one, member))
            curves.setdefault(name, []).append(np.interp(grid, *curve(one, member)))
        allowed = int(np.floor(_RATES[0] * (~member).sum()))
        threshold = np.sort(scores["lira"][~member])[::-1][allowed]
        found_in += member & (scores["lira"] > threshold)
    attacks = {
        name: {
            "rates": {f"{at:g}": _mean(values) for at, values in by_rate.items()},
            "auc": float(np.mean(areas[name])),
            "curve": [grid, np.mean(curves[name], axis=0)],
        }
        for name, by_rate in shares.items()
    }
    per_record = found_in / (count / 2)
    sites = {}
    for place, name in enumerate(population.sites):
        own = population.site == place
        tries = int(own.sum()) * count // 2
        low, high = share_interval(round(float(found_in[own].sum())), tries)
        sites[name] = {"members": int(own.sum()), "share": float(found_in[own].sum() / tries), "low": low, "high": high, "few": bool(own.sum() < _SITE_LEAST)}  # fmt: skip
    note = (
        f"{count} models, each trained with half of all {records:,} records and attacked by {count - 2} others; the mean over them, with 95% intervals of that mean "
        "(the models share records, which narrows them)."
    )
    return {"attacks": attacks, "models": count, "note": note}, per_record, sites


def _rate(scores: Numbers, member: Members, at: float) -> dict[str, Any]:
    rate = rate_at(scores, member, at)
    return {
        "share": rate.share,
        "low": rate.low,
        "high": rate.high,
        "found": rate.found,
        "alarms": rate.alarms,
    }


def _mean(values: list[float]) -> dict[str, Any]:
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    mean = float(np.mean(values))
    return {"share": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}


def _promise(subject: AuditSubject) -> dict[str, Any] | None:
    """Return ε and δ of records over the whole run, where it promises them against whoever sees the model."""
    spec = subject.spec
    if spec.privacy.unit not in {"record", "record-distributed"}:
        return None
    plan = distributed_record_plan(spec) if spec.privacy.unit == "record-distributed" else record_plan(spec)
    if plan is None:
        return None
    spent = plan.spent(spec.federation.rounds)
    return {"epsilon": spent.epsilon, "delta": plan.delta}


def _judged(figures: dict[str, Any], artefacts: tuple[str, ...]) -> Finding:
    part = figures["recipe"]
    best = max(part["attacks"], key=lambda name: (part["attacks"][name]["rates"]["0.01"]["share"], name))
    rate = part["attacks"][best]["rates"]["0.01"]
    most, promise = figures["most"], figures["promise"]
    others = figures["records"] // 2
    guessing = (others // 100 + 1) / (others + 1)
    allowed = most_allowed(guessing, promise["epsilon"], promise["delta"]) if promise else None
    few = others < 100
    broken = allowed is not None and rate["low"] > allowed and not few
    slack = guessing - 0.01
    words = f"{100 * rate['share']:.1f}% ({100 * rate['low']:.1f} to {100 * rate['high']:.1f}%)"
    said = f"With {figures['shadows']} shadow models an attacker finds {words} of those whose records were trained on while naming 1% of the others (best: {best}; guessing finds {100 * guessing:.1f}%)"
    if broken:
        verdict, more = (
            "fail",
            f"; the promise of ε = {promise['epsilon']:.2g} allows {100 * (allowed or 0):.1f}%.",
        )
    elif rate["low"] > most + slack and not few:
        verdict, more = "fail", f"; at most {100 * most:g}% were to be found."
    elif rate["high"] <= most and not few:
        verdict, more = "pass", f", and no more than {100 * most:g}%."
    else:
        verdict, more = "no power", f"; whether it is more than {100 * most:g}% cannot be told from so few."
    half = (rate["high"] - rate["low"]) / 2
    least = most + slack + half
    own = ""
    if "model" in figures:
        one = figures["model"]["attacks"][best]["rates"]["0.01"]
        own = f" Of the run's own model: {100 * one['share']:.1f}% ({100 * one['low']:.1f} to {100 * one['high']:.1f}%)."
    weak = " The promise is of records; shadows were trained with its noise." if promise else ""
    return Finding(
        name="membership",
        verdict=verdict,  # type: ignore[arg-type]
        sentence=said + more + own,
        figures=plain_figures(figures | {"best": best, "allowed": allowed, "guessing": guessing}),
        power=f"It could have shown a share above {100 * least:.1f}% at 1% false alarms, for attackers who know the recipe and have records of the same kind. "
        f"At 0.1% false alarms it counts {math.floor(figures['records'] / 2 * 0.001)} of the others a model. Stronger attackers may find more: this is a lower bound.{weak}",
        artefacts=artefacts,
    )


def _own_report(subject: AuditSubject, population: Population, exposed: Numbers, site: str) -> str:
    """Write which of a site's records are the most exposed, by their rows and never their values, for the site alone."""
    own = np.flatnonzero(population.site == population.sites.index(site))
    order = own[np.argsort(-exposed[own], kind="stable")][:_EXPOSED]
    name = f"membership-{population.sites.index(site) + 1:03d}.site.json"
    value = {
        "site": site,
        "records": [
            {
                "part": "train" if population.trained[place] else "test",
                "row": int(population.row[place]),
                "found_in": float(exposed[place]),
            }
            for place in order
        ],
        "note": "found_in: the share of models trained with the record in which LiRA finds it at 1% false alarms. For this site's eyes only.",
    }
    subject.folder.mkdir(parents=True, exist_ok=True)
    write_whole(subject.folder / name, json.dumps(value, indent=1) + "\n", mode=0o600)
    return name
