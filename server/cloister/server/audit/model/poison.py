"""Signs of poisoned records, for a site's own eyes: they need the training records, which never leave it.

====================  ========================================================================================================
function              paper
====================  ========================================================================================================
`strip_entropy`       Gao, Xu, Wang, Chen, Ranasinghe & Nepal (2019), "STRIP": a record with a trigger keeps its class whatever is laid over it
`activation_clusters` Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy & Srivastava (2018), "Detecting backdoor attacks by activation clustering"
`spectral_scores`     Tran, Li & Madry (2018), "Spectral signatures in backdoor attacks"
====================  ========================================================================================================

None proves anything of a single record; together they say which class a site should look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloister.core.evidence import Finding, Verdict
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject

__all__ = [
    "Clusters",
    "activation_clusters",
    "check_poison",
    "last_features",
    "spectral_scores",
    "strip_entropy",
]

#: Fewer records of a class than this are not looked at.
_LEAST = 20
#: A class whose records fall into two clusters this far apart, the smaller no larger than `_MINOR`, stands out.
_APART, _MINOR = 0.35, 0.35
#: Share of a class's records under the STRIP boundary from which a site should look: 1% is expected, and honest records of a class that was
#: planted elsewhere reach 9% on digits. Clusters support it and do not decide: honest classes fall into parts too.
_STEADY = 0.2
_RECORDS = 1500

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Two clusters of one class's records.

    Attributes:
        silhouette: how far apart they lie, from -1 to 1.
        minor: share of the records in the smaller one.
        members: (n,) whether a record lies in the smaller one.
    """

    silhouette: float
    minor: float
    members: npt.NDArray[np.bool_]


def last_features(model: nn.Module, inputs: Tensor, batch: int = 256) -> Numbers:
    """Return what the model's last linear layer reads of each record, (n, d) float64."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    held: list[Tensor] = []
    if not linear:
        with torch.inference_mode():
            return torch.cat([model(part).flatten(1) for part in torch.split(inputs, batch)]).double().numpy()
    hook = linear[-1].register_forward_pre_hook(lambda _, given: held.append(given[0].detach().flatten(1)))
    try:
        with torch.inference_mode():
            for part in torch.split(inputs, batch):
                model(part)
    finally:
        hook.remove()
    return torch.cat(held).double().numpy()


def strip_entropy(
    model: nn.Module, inputs: Tensor, overlays: Tensor, *, generator: np.random.Generator, looks: int = 16
) -> Numbers:
    """Return each record's mean entropy, in nats, over ``looks`` sums with other records, cut to the range of these.

    Args:
        model: in evaluation mode.
        inputs: (n, …) the records.
        overlays: (m, …) clean records that are laid over them.
        generator: draws them.
        looks: blends a record.
    """
    total = np.zeros(len(inputs))
    low, high = overlays.min(), overlays.max()
    with torch.inference_mode():
        for _ in range(looks):
            over = overlays[torch.from_numpy(generator.integers(0, len(overlays), len(inputs)))]
            for rows in torch.split(torch.arange(len(inputs)), 512):
                p = model((inputs[rows] + over[rows]).clamp(low, high)).double().softmax(1)
                total[rows.numpy()] += -(p * p.clamp_min(1e-300).log()).sum(1).numpy()
    return total / looks


def activation_clusters(features: Numbers, *, seed: int) -> Clusters:
    """Return the two clusters of one class's records ((n, d), n at least 4) among its first ten principal components."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]  # scikit-learn ships no types
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]
    from sklearn.metrics import silhouette_score  # type: ignore[import-untyped]

    reduced = PCA(n_components=min(10, *features.shape), random_state=seed).fit_transform(features)
    labels = KMeans(n_clusters=2, n_init=5, random_state=seed).fit_predict(reduced)
    one = labels == 1
    minor = one if one.mean() <= 0.5 else ~one
    apart = float(silhouette_score(reduced, labels)) if 0 < minor.sum() < len(minor) else 0.0
    return Clusters(silhouette=apart, minor=float(minor.mean()), members=minor)


def spectral_scores(features: Numbers) -> Numbers:
    """Return each record's squared share along the first singular direction of one class's centred features ((n, d))."""
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    scores: Numbers = (centred @ directions[0]) ** 2
    return scores


def _section(found: Finding) -> Section:
    section = Section()
    rows = found.figures.get("sites", {})
    section.table(
        ("Site", "Class", "Records", "Apart", "Smaller part", "Steady under blends", "Sign"),
        [
            (
                site,
                one["class"],
                f"{one['records']:,}",
                f"{one['silhouette']:.2f}",
                f"{100 * one['minor']:.0f}%",
                f"{100 * one['steady']:.0f}%",
                one["sign"] or "–",
            )
            for site, classes in list(rows.items())[:50]
            for one in classes
            if one["sign"] or len(rows) <= 4
        ][:80],
        note="Apart: silhouette of two clusters of what the last layer reads. Steady: share of records whose class survives blends with others.",
    )
    return section


@shown_as("Poisoned records", _section)
def check_poison(subject: AuditSubject) -> Finding:
    """Look through each site's training records with the model: STRIP, activation clusters, spectral scores."""
    if subject.task.kind != "classification":
        return Finding(
            name="poison",
            verdict="no power",
            sentence="The signs are of classes, and the task is a regression.",
            power="It could have shown nothing.",
        )
    train = subject.batch("train", 20_000, "poison")
    clean = subject.batch("test", 500, "poison").inputs
    generator = subject.randomness("poison").generator("overlays")
    seed = subject.randomness("poison").torch_seed("clusters") % 2**32
    # Clean records set the boundary: one in a hundred of them lies below it (STRIP's false rejection rate).
    boundary = float(np.quantile(strip_entropy(subject.model, clean, clean, generator=generator), 0.01))
    sites: dict[str, list[dict[str, Any]]] = {}
    for place, name in enumerate(train.sites):
        rows = torch.nonzero(train.site == place).squeeze(1)[:_RECORDS]
        if len(rows):
            subject.tell(f"poison: {name}")
            sites[name] = _of_site(
                subject, train.inputs[rows], train.targets[rows], clean, boundary, generator, seed
            )
    signed = [
        (site, one) for site, classes in sites.items() for one in classes if one["sign"] in {"both", "steady"}
    ]
    looked = sum(len(classes) for classes in sites.values())
    figures = {"sites": sites, "boundary": boundary, "seed": subject.seed, "classes_looked_at": looked}
    verdict: Verdict
    if not looked:
        verdict, sentence = (
            "no power",
            f"No site has {_LEAST} training records of one class at hand to look through.",
        )
    elif signed:
        site, one = signed[0]
        verdict = "warn"
        sentence = (
            f"Among the records of '{site}' with class '{one['class']}', {100 * one['steady']:.0f}% keep their class whatever is laid over them (1% is expected): the site "
            f"should look at them{'' if len(signed) == 1 else f', and at {len(signed) - 1} more such'}."
        )
    else:
        verdict, sentence = (
            "pass",
            f"In {looked} classes at {len(sites)} sites no part of the training records looks planted.",
        )
    return Finding(
        name="poison",
        verdict=verdict,
        sentence=sentence,
        figures=figures,
        power=f"It could have shown a trigger in more than {100 * _STEADY:.0f}% of a class's records at a site with at least {_LEAST} of them, where the model has learned it. "
        "It could not have shown one that the model did not learn, or one that depends on the record.",
    )


def _of_site(  # noqa: PLR0917 - one step of a loop
    subject: AuditSubject,
    inputs: Tensor,
    targets: Tensor,
    clean: Tensor,
    boundary: float,
    generator: np.random.Generator,
    seed: int,
) -> list[dict[str, Any]]:
    entropy = strip_entropy(subject.model, inputs, clean, generator=generator)
    features = last_features(subject.model, inputs)
    found = []
    for number, name in enumerate(subject.task.classes):
        own = (targets == number).numpy()
        if own.sum() < _LEAST:
            continue
        clusters = activation_clusters(features[own], seed=seed)
        scores = spectral_scores(features[own])
        steady = entropy[own] < boundary
        apart = clusters.silhouette > _APART and clusters.minor < _MINOR
        sign = {(True, True): "both", (True, False): "clusters", (False, True): "steady"}.get(
            (apart, bool(steady.mean() > _STEADY)), ""
        )
        found.append(
            {
                "class": str(name),
                "records": int(own.sum()),
                "silhouette": clusters.silhouette,
                "minor": clusters.minor,
                "steady": float(steady.mean()),
                "spectral": float(np.quantile(scores, 0.99) / max(float(np.median(scores)), 1e-12)),
                "sign": sign,
            }
        )
    return found
