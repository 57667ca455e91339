"""The federation file of an audit: the audited file, less what has nothing to do with the mechanism.

Kept is everything that ε depends on: unit, noise, clip, rates, steps, rounds, sites, protection, and the task with its records. Changed is:

- **the optimisers and the schedule**, to plain SGD at the file's rate, unless ``keep_optimizer``: what they make of noisy steps is post-processing and costs nothing, but
  blurs what the adversary sees. With the file's own, a refutation is one all the same, and silence says nothing.
- **the cohort**: every site takes part in every round, as ε is claimed for one that does; where sites are the unit, the canaries are the sites.
- **protection**: where the claim holds against who reads a site's messages (``record``, ``site-local``), they come in clear; and so do those of a thousand canary
  sites, whose sums are what is looked at. Whether masks hide single messages is for the transcript's audit to show.
- what is measured, tracked, attacked and written down beside: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloister.core.errors import SpecError, UsageError
from cloister.core.resolve import load_task, owners
from cloister.core.spec import FederationSpec, Loaded, parse_federation
from cloister.privacy.audit.canaries import LENGTH
from cloister.privacy.audit.in_run import Sees, Space

__all__ = ["Design", "Sees", "Space", "designed"]

_NAME = 64


@dataclass(frozen=True, kw_only=True)
class Design:
    """What an audit runs.

    Attributes:
        loaded: its federation file.
        audited: the name of the federation that is audited.
        space: of the canaries.
        sees: what the adversary sees: single updates, or the rounds' models.
        canaries: how many.
        sites_are_canaries: whether sites are the unit.
        plain: whether steps are added up as they are (plain SGD everywhere): then scores are linear in the noise.
    """

    loaded: Loaded
    audited: str
    space: Space
    sees: Sees
    canaries: int
    sites_are_canaries: bool
    plain: bool

    @property
    def norm(self) -> float:
        """The length of a canary's gradient: `LENGTH` clips; where sites are the unit, of its local change."""
        privacy, training = self.loaded.spec.privacy, self.loaded.spec.training
        clip = LENGTH * (privacy.clip or 1.0)
        return clip / training.optimizer.lr if self.sites_are_canaries else clip


def designed(
    loaded: Loaded,
    *,
    canaries: int,
    space: Space = "gradient",
    sees: Sees | None = None,
    keep_optimizer: bool = False,
) -> Design:
    """Return what an audit of ``loaded`` runs.

    Raises:
        SpecError: the file promises no differential privacy, or an audited file cannot keep its promise.
        UsageError: canaries in input space where sites are the unit.
    """
    spec = loaded.spec
    unit = spec.privacy.unit
    if unit == "none":
        raise SpecError(
            "privacy.unit = 'none': there is no claim to audit",
            remedy="give the file a [privacy] table; what a model without one tells is for a membership inference to show",
            code="audit-claim",
        )
    sites = not spec.privacy.hides_records
    if sites and space == "input":
        raise UsageError(
            "canaries in input space are records, and the unit is a whole site", remedy="use --space gradient"
        )
    seen: Sees = sees or ("update" if unit in ("record", "site-local") and space == "gradient" else "model")
    if seen == "update" and (unit not in ("record", "site-local") or space == "input"):
        raise UsageError(
            f"privacy.unit = '{unit}' promises nothing to a site whose single updates are seen, or canaries in input space are judged by the model",
            remedy="use --sees model",
        )
    task = load_task(spec.task, loaded.base)
    found = owners(task)
    tables = loaded.settled(spec.cohort.sites or len(found)).effective()
    _lighten(tables)
    if seen == "update" or sites:
        tables["aggregation"]["protection"] = "plain"
        tables["aggregation"].pop("group_size", None)
    tables["audit"] |= {"transcript": "off"}
    for key in ("canaries", "canary_site"):
        tables["audit"].pop(key, None)
    tables["cohort"]["per_round"] = "all"
    if sites:
        tables["cohort"] |= {"sites": canaries, "partition": {"by": "site"}, "min_sites": canaries}
        tables["training"].pop("gradient_clip", None)
    weights = tables["training"].get("class_weights")
    if weights is not None and space == "gradient":
        tables["training"]["class_weights"] = [*weights, *[1.0] * (canaries + 1)]
    if not keep_optimizer:
        _simplify(tables, spec)
    made = parse_federation(tables, base=loaded.base)
    return Design(
        loaded=made,
        audited=spec.federation.name,
        space=space,
        sees=seen,
        canaries=canaries,
        sites_are_canaries=sites,
        plain=not keep_optimizer,
    )


def _lighten(tables: dict[str, Any]) -> None:
    federation = tables["federation"]
    federation["name"] = f"{federation['name'][: _NAME - 6]}-audit"
    tables["evaluation"] = {"every": 0, "central": False, "sites": False}
    tables.pop("attack", None)
    tables.pop("tracking", None)


def _simplify(tables: dict[str, Any], spec: FederationSpec) -> None:
    tables["training"]["optimizer"] = {"name": "sgd", "lr": spec.training.optimizer.lr}
    for key in ("schedule", "proximal_mu", "l1", "l2", "early_stop"):
        tables["training"].pop(key, None)
    tables["aggregation"].pop("optimizer", None)
    tables["aggregation"].pop("average_rounds", None)
