"""What each party can learn in a federation, said plainly: a pure function of the federation file.

Three parties are told apart: the server that runs the rounds, another site of the same federation, and an outsider who
gets the released model and its report. The sentences state what a party *can* learn if it is curious, not what it is meant to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import least_in_sum

__all__ = ["Exposure", "exposure"]


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What each party can learn, one sentence an entry.

    Attributes:
        server: who coordinates the rounds.
        site: any other site of the federation.
        outsider: who holds the released model and the run's report.
    """

    server: tuple[str, ...]
    site: tuple[str, ...]
    outsider: tuple[str, ...]

    def as_dict(self) -> dict[str, list[str]]:
        """Return it as ``--json`` prints it."""
        return {"server": list(self.server), "site": list(self.site), "outsider": list(self.outsider)}


def exposure(spec: FederationSpec) -> Exposure:
    """Say what the server, another site and an outsider can learn under ``spec``."""
    return Exposure(server=_server(spec), site=_site(spec), outsider=_outsider(spec))


def _server(spec: FederationSpec) -> tuple[str, ...]:
    said = [*(_seen_in_clear(spec) if spec.aggregation.protection == "plain" else _seen_as_sums(spec))]
    if spec.evaluation.central:
        said.append(
            "The central test records, which the server holds in order to measure (in a simulation, the sites' pooled ones)."
        )
    if spec.audit.canaries is not None:
        said.append(
            f"After the last round, which of {spec.audit.canaries} made-up records '{spec.audit.canary_site}' trained on beside its own (canaries, by which the "
            "promise is audited): of real records they tell nothing."
        )
    said.append("Which sites answered, and how long each took.")
    return tuple(said)


def _seen_in_clear(spec: FederationSpec) -> Iterator[str]:
    training = spec.training
    if spec.privacy.unit != "none":
        yield _seen_privately(spec)
        if spec.privacy.adaptive_clip is not None:
            yield "Of each site, whether the norm of its update was within the round's clip."
        yield _WITHHELD
    else:
        yield (
            "Each site's update in clear, in every round that the site takes part in, with the site's name; "
            "records can be reconstructed from an update (gradient inversion)."
        )
        if training.local_steps == 1:
            yield "With local_steps = 1 an update is one batch's gradient, the easiest case for reconstruction."
        if training.scaffold:
            yield "Each site's change of its SCAFFOLD control variate in clear: a mean of that site's gradients."
        yield "Each site's number of training records, its mean training loss and its number of steps, every round."
    if spec.evaluation.sites:
        yield "Each site's metrics on its own test records: for a classification also their counts by true and predicted class."


def _seen_as_sums(spec: FederationSpec) -> Iterator[str]:
    least, privacy = least_in_sum(spec), spec.privacy
    if spec.aggregation.group_size is None:
        yield f"Of updates, their sum over at least {least} sites a round, and no single one{_SUMMED[privacy.unit]}"
    else:
        yield (
            f"Of updates, the mean of each fixed group of at least {spec.aggregation.group_size} sites, over at least {least} of them a round, with the names of "
            f"the group, and no single one{_SUMMED[privacy.unit]}"
        )
        yield (
            "Groups are drawn from the run's name, which a user signs, and each site computes its own: the server cannot choose who is summed with whom, and "
            "no two sums that are opened overlap. With c of a group's sites on the server's side the group's mean shows that of the others."
        )
    yield _OPENED[spec.aggregation.protection]
    if privacy.unit == "none":
        yield (
            "Sums of different rounds can be subtracted: where a site is in one and not in the next, the difference tells of that site, the more the less the "
            "model moved in between. Only differential privacy bounds that."
        )
    if privacy.adaptive_clip is not None:
        yield "How many updates were within the round's clip, not whose."
    if privacy.unit != "none":
        yield _WITHHELD
    else:
        weights = (
            ", the sum of their weights (from two rounds that differ in a site, that site's)"
            if spec.aggregation.weighting != "uniform"
            else ""
        )
        whose = "the sites'" if spec.aggregation.group_size is None else "each group's"
        yield f"The sum of {whose} training losses{weights}, and how many updates were cut to aggregation.reach."
    if spec.evaluation.sites:
        yield (
            "The sums of the metrics, and of the counts by true and predicted class, of the sites that have test records (from two rounds that differ "
            "in a site, about that site's)."
        )


#: What differential privacy adds to a sum.
_SUMMED = {
    "none": ". No noise covers the sum: it tells what the sites have in common, and over many rounds more.",
    "record": "; each site's own noise is in it as well, and ε bounds what even a single update would reveal of a record.",
    "site": ", clipped, and without noise: the server adds it afterwards, so ε does not hold against the server.",
    "site-local": "; each site's own noise is in it as well, and ε bounds what even a single update would reveal of its site.",
    "site-distributed": ", under the noise shares of all who are in it: ε holds against the server, too.",
    "record-distributed": ", under the noise shares of all who are in it: ε holds for each record against the server, too.",
}
#: On what it rests that a sum shows nothing else.
_OPENED = {
    "masked": (
        "That holds within a round, whatever the server does or sends, unless about a third of the round's sites side with it ('cloister check' says how "
        "many are borne): then it can have two sums opened and subtract them. With c sites on its side a sum shows at least the others' sum."
    ),
    "bfv": (
        "That holds whatever the server and sites on its side do. The key authority is sent every ciphertext, so that it need not believe the server's "
        "sum, and could read each update: it is trusted not to, and to keep its keys from the server."
    ),
    "ckks": (
        "That holds whatever the server and sites on its side do. The key authority could read each update, and is trusted not to. CKKS is approximate: what "
        "the authority opens is rounded before it leaves, without which the secret key could be computed from it (Li & Micciancio 2021); bfv is "
        "exact and has no such trap."
    ),
    "threshold-bfv": (
        "That holds whatever the server and sites on its side do, short of all: each site holds a share of the key, and a sum is opened by all of them "
        "together, each after it counted the sum again and checked that every ciphertext is well formed. One site that is lost before the end costs the "
        "round its sum."
    ),
}
_WITHHELD = (
    "Nothing else of the records: no number of them, no loss and no metric leaves a site. Where it keeps a ledger: how far that is, "
    "what it has spent and its cap."
)


def _seen_privately(spec: FederationSpec) -> str:
    """Say what the server sees of one site's update under differential privacy, without secure aggregation."""
    seen = "Each site's update in clear, with the site's name"
    honest = least_in_sum(spec) - (spec.privacy.colluders or 0)
    return {
        "record": f"{seen}; each step in it carries noise, so what it reveals of any one record is bounded by ε. What many of a "
        "site's records have in common is not hidden.",
        "site": f"{seen}, clipped and without noise, which the server adds to the sum: the guarantee holds against all others and not "
        "against the server. Records can be reconstructed from an update (gradient inversion).",
        "site-local": f"{seen}, under noise of the site's own: what it reveals of all the site's data together is bounded by ε.",
        "site-distributed": f"{seen}, as integers under one share of the noise (1/{honest} of its variance). ε bounds what "
        "the sum reveals; without secure aggregation a single update is not protected from the server.",
        "record-distributed": f"{seen}: a sum of its records' clipped gradients, as integers under one share of the noise (1/{honest} of its variance). "
        "ε bounds what the sum over the sites reveals; without secure aggregation a single update is not protected from the server.",
    }[spec.privacy.unit]


#: Whose noise is in the model that another site receives.
_COVER = {
    "none": "; no noise covers anybody's share.",
    "record": "; each of them carries its own noise.",
    "site": ", under the noise that the server added.",
    "site-local": "; each of them carries its own noise.",
    "site-distributed": ", under the noise shares of all who answered.",
    "record-distributed": ", under the noise shares of all who answered.",
}


def _site(spec: FederationSpec) -> tuple[str, ...]:
    said = [
        "The model of every round it is asked in, and so the mean of the other sites' updates"
        + _COVER[spec.privacy.unit]
    ]
    if spec.privacy.shares_noise and not spec.privacy.colluders:
        said.append(
            "With its own share of the noise, which it knows, taken away: privacy.colluders = 0 counts on every share; 1 makes it good."
        )
    if spec.cohort.min_sites <= 2:
        said.append(
            f"cohort.min_sites = {spec.cohort.min_sites} lets a round be aggregated over "
            + (
                "one site: that site's own model then goes to all."
                if spec.cohort.min_sites == 1
                else "two sites: each can subtract its own update."
            )
        )
    said.append(_membership(spec, "the models it receives"))
    return tuple(said)


def _outsider(spec: FederationSpec) -> tuple[str, ...]:
    said = [_membership(spec, "the released model")]
    report = "From the report, if it is published: the sites' names, who took part in which round, the federation file"
    if spec.evaluation.sites and spec.aggregation.protection == "plain":
        report += ", each site's metrics"
    if spec.aggregation.group_size is not None:
        report += ", size and direction of each group's mean"
    elif spec.aggregation.protection == "plain" and spec.privacy.unit in ("none", "record"):
        report += ", size and direction of each site's updates"
    said.append(report + ".")
    said.append("Nothing of a site's updates from a simulation, which sends nothing over a network.")
    return tuple(said)


def _membership(spec: FederationSpec, source: str) -> str:
    whether = f"Whether a given record was trained on (membership inference on {source})"
    if spec.privacy.unit != "none":
        return f"{whether}: ε bounds how much better than a guess anybody can tell."
    return f"{whether}: probably; no differential privacy bounds it."
