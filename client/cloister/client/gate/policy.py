"""``policy.toml``: what a site lets others do with its records. Beside ``site.toml``, and read again whenever it changes.

What no ``[[allow]]`` allows is refused. ``cloister policy init`` writes a careful file to begin with; docs/privacy-officer.md explains each key.

==========================================  =====================================================
case                                        outcome
==========================================  =====================================================
no file                                     ``SpecError`` (policy-file): a site without one does not run
an unknown key, a value that does not fit   ``SpecError`` (policy-file), with the nearest key
``[[allow]]`` of an unknown data set        ``SpecError`` (policy-file): `check_datasets`
==========================================  =====================================================
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, field_validator, model_validator

from cloister.client.gate.hours import read_window
from cloister.client.site_config import SiteConfig
from cloister.core.errors import SpecError
from cloister.core.finding import STATISTICS
from cloister.core.spec.base import Count, Fraction, NonNegative, Positive, Table, Whole
from cloister.core.spec.refusals import nearest, refusals
from cloister.privacy.ledger.budget import Cap, Rate
from cloister.privacy.manifest import Floors

__all__ = [
    "OUTPUTS",
    "POLICY",
    "Allow",
    "DataLimits",
    "Limits",
    "Policy",
    "ReadPolicy",
    "check_datasets",
    "read_policy",
]

#: The file's name in a site's folder.
POLICY = "policy.toml"
_LONGEST = 1 << 20

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Hashes = Annotated[tuple[Hash, ...], Field(strict=False, min_length=1)]
Output = Literal["update", "metrics", "sums of metrics", "control"]
#: What may leave a site, in the words of the policy.
OUTPUTS: dict[str, str] = {
    "update": "the model's update, as `protection` and `units` have it; in a protected sum also the training loss and the weight",
    "metrics": "in clear: measurements on the site's records, the training loss, the numbers of records and steps",
    "sums of metrics": "measurements on the site's records, in a protected sum only",
    "control": "SCAFFOLD's change of the control variate, protected like the update",
}


class Who(Table):
    """``[who]``: whose requests are looked at."""

    users: Literal["*"] | Names = Field(
        description='the users of the consortium by name, or "*" for all of them'
    )
    request_days: Annotated[float, Field(gt=0, le=3650)] = Field(
        default=30.0,
        description="a request that was signed longer ago is refused, also in the middle of its run; what is kept of a run that was not heard of for so long is removed",
    )


class Within(Table):
    """``epsilon_per``: how fast ε may be spent."""

    days: Annotated[float, Field(gt=0, lt=36525)] = Field(description="within any so many days")
    epsilon: NonNegative = Field(description="at most this is charged")


class DataLimits(Table):
    """``[data.NAME]``: what may be spent of one data set, whoever asks; set as the cap of its ledger."""

    epsilon_cap: NonNegative | None = Field(
        default=None, description="the most that everything charged may compose to"
    )
    delta_cap: Fraction | None = Field(
        default=None, description="at this δ; a run that states a larger δ is refused"
    )
    epsilon_per: Within | None = Field(
        default=None, description="and how fast, for example { days = 90, epsilon = 1.0 }"
    )
    min_records: Count = Field(
        default=1, description="fewer training records than this, and nobody trains on them"
    )

    @model_validator(mode="after")
    def _together(self) -> DataLimits:
        if (self.epsilon_cap is None) != (self.delta_cap is None):
            raise ValueError("epsilon_cap and delta_cap go together: give both, or neither")
        if self.epsilon_per is not None and self.epsilon_cap is None:
            raise ValueError("epsilon_per is measured at delta_cap: give epsilon_cap and delta_cap too")
        return self

    @property
    def cap(self) -> Cap | None:
        """The cap as a ledger takes it."""
        if self.epsilon_cap is None or self.delta_cap is None:
            return None
        per = self.epsilon_per
        rate = None if per is None else Rate(epsilon=per.epsilon, days=per.days)
        return Cap(epsilon=self.epsilon_cap, delta=self.delta_cap, rate=rate)


class Allow(Table):
    """``[[allow]]``: one thing that is allowed; a run needs one rule that allows all of it."""

    dataset: str = Field(min_length=1, description="a data set of site.toml: the NAME of its [data.NAME]")
    task: str = Field(min_length=1, description="the task that may be trained on it, as task.use names it")
    code: Literal["any"] | Hash | Hashes = Field(
        description='the task\'s program: what `cloister policy hash TASK` prints, or "any"'
    )
    users: Literal["*"] | Names = Field(default="*", description="for whom this rule is, among [who] users")
    cloister: Names | None = Field(
        default=None,
        description="the versions of Cloister that this was agreed for; any unless given",
    )
    layouts: Hashes | None = Field(
        default=None,
        description="the models that may be trained: what `cloister policy hash TASK --against FILE` prints; any unless given",
    )
    protection: tuple[Literal["plain", "masked", "bfv", "ckks", "threshold-bfv"], ...] = Field(
        default=("masked", "bfv"),
        strict=False,
        min_length=1,
        description="how updates must be protected: one of these",
    )
    units: tuple[
        Literal["none", "record", "record-distributed", "site", "site-local", "site-distributed"], ...
    ] = Field(
        strict=False,
        min_length=1,
        description="whose privacy must be guaranteed: one of these; none: nobody's",
    )
    sites_in_sum: Count = Field(
        default=3,
        description="so many sites are in every sum of a round: cohort.min_sites is at least this; in groups (aggregation.group_size) a sum counts with 3",
    )
    colluders: Whole = Field(
        default=0,
        description="so many of a round's sites may side with the server, and masks and shared noise must still hold",
    )
    epsilon_run: Positive | None = Field(
        default=None,
        description="the most that one whole run may cost, with all rounds that are charged more than once",
    )
    rounds: Count | None = Field(default=None, description="the most rounds of a run")
    repeated_rounds: Whole = Field(
        default=5,
        description="so many rounds of a run may be charged once more, since a server or a site died in the middle; a server that asks more often "
        "is refused",
    )
    outputs: tuple[Output, ...] = Field(
        default=("update",),
        strict=False,
        min_length=1,
        description="what may leave; whoever allows control (training.scaffold) lets the server move the model between local steps, past the look at its "
        "weights (models.parallel_rows)",
    )
    metrics: Literal["*"] | Names = Field(
        default="*",
        description="the measurements that may be among it, by name, for example loss, accuracy, confusion",
    )
    canaries: bool = Field(
        default=False,
        description="whether a run may name this site to plant canaries (audit.canaries): made-up records that are trained on beside its own, and whose coins "
        "leave after the last round",
    )
    approval: Literal["always", "first", "never"] = Field(
        default="always",
        description="each run waits until somebody here approves it; first: only the first of its kind (same user, task, program, "
        "data set, protection, unit, canaries)",
    )

    @property
    def codes(self) -> Names | None:
        """The programs that are allowed; ``None``: any."""
        if self.code == "any":
            return None
        return (self.code,) if isinstance(self.code, str) else self.code


class Models(Table):
    """``[models]``: which models are refused, whoever made them and in whatever round (`cloister.client.gate.weights`)."""

    parallel_rows: Annotated[int, Field(ge=2, le=10**9)] | None = Field(
        default=8,
        description="as many rows of one layer that point the same way copy records into the update; 0 rows are left out",
    )
    norm_ratio: Annotated[float, Field(gt=1, le=1e12)] = Field(
        default=1000.0, description="a row of a layer is at most so many times as long as its middle one"
    )
    widest: Annotated[float, Field(ge=1, le=1e6)] = Field(
        default=16.0,
        description="a layer of more than 1,024 units is at most so many times as wide as its input",
    )


class When(Table):
    """``[when]``: at what hours."""

    hours: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description='for example ["Mon-Fri 18:00-06:00", "Sat-Sun 00:00-24:00"]; always unless given',
    )
    time_zone: str = Field(default="UTC", description="of the hours, for example Europe/Berlin")

    @field_validator("hours", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sound(self) -> When:
        for text in self.hours:
            read_window(text)
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"time_zone = '{self.time_zone}' is no time zone; write for example Europe/Berlin"
            ) from None
        return self


class Limits(Table):
    """``[limits]``: what a run may use of the machine."""

    threads: Count | None = Field(
        default=None, description="threads that compute; as torch chooses unless given"
    )
    memory_mb: Annotated[int, Field(ge=256, le=10**9)] | None = Field(
        default=None,
        description="MiB that the site's process may hold while it works on a message; no limit unless given",
    )
    gpu: bool = Field(default=True, description="whether a GPU may be used")
    runs: Count = Field(default=1, description="how many runs may be under way at once")
    idle_minutes: Annotated[float, Field(gt=0, le=10**6)] = Field(
        default=15.0,
        description="a run that nothing was heard of for so long, or whose last round has come, is no longer under way",
    )


class Policy(Table):
    """The whole file."""

    who: Who
    allow: tuple[Allow, ...] = Field(default=(), strict=False, description="what is allowed")
    data: dict[str, DataLimits] = Field(default={}, description="limits of the data sets")
    models: Models = Models()
    when: When = When()
    limits: Limits = Limits()

    @property
    def floors(self) -> Floors:
        """What the site demands of every secure session, whatever rule it is under."""
        sums = [rule.sites_in_sum for rule in self.allow if set(rule.protection) != {"plain"}]
        return Floors(least=max(min(sums, default=Floors.least), Floors.least))

    def limits_of(self, dataset: str) -> DataLimits:
        """Return the limits of a data set."""
        return self.data.get(dataset, DataLimits())

    def rules_for(self, task: str) -> tuple[Allow, ...]:
        """Return the rules for a task: those of the data set that the first of them names."""
        found = [rule for rule in self.allow if rule.task == task]
        return tuple(rule for rule in found if rule.dataset == found[0].dataset)


@dataclass(frozen=True, kw_only=True)
class ReadPolicy:
    """A policy and which one it is.

    Attributes:
        policy: what it says.
        digest: SHA-256 (hex) of the file.
    """

    policy: Policy
    digest: str


def read_policy(path: Path) -> ReadPolicy:
    """Read a policy.

    Raises:
        SpecError: (policy-file) it cannot be read, or a key of it is wrong.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST + 1)
    except OSError as error:
        raise SpecError(
            f"cannot read the policy '{path}': {error.strerror}",
            remedy="write one: cloister policy init",
            code="policy-file",
        ) from None
    if len(raw) > _LONGEST:
        raise _unfit(path, f"it is longer than {_LONGEST} bytes")
    try:
        tables = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _unfit(path, f"it is not TOML: {error}") from None
    try:
        policy = Policy.model_validate(tables)
    except ValidationError as error:
        lines = "".join(f"\n  {line}" for line in refusals(error, Policy))
        raise _unfit(path, lines) from None
    return ReadPolicy(policy=policy, digest=hashlib.sha256(raw).hexdigest())


def check_datasets(policy: Policy, config: SiteConfig) -> None:
    """Check that the policy speaks of data sets that the site has.

    Raises:
        SpecError: (policy-file) it does not.
    """
    for name in [*(rule.dataset for rule in policy.allow), *policy.data]:
        if name not in config.data:
            raise _unfit(POLICY, f"site.toml has no data set '{name}'{nearest(name, config.data)}")
    for rule in policy.allow:
        if rule.task not in (config.data[rule.dataset].task, STATISTICS):
            raise _unfit(
                POLICY,
                f"the data set '{rule.dataset}' is for the task '{config.data[rule.dataset].task}', not '{rule.task}'",
            )


def _unfit(path: Path | str, why: str) -> SpecError:
    return SpecError(
        f"the policy '{path}' was refused: {why}",
        remedy="change it and try again; until then nothing is allowed",
        code="policy-file",
    )
