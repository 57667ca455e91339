"""The federation file: its tables (`tables`), and how it is read, checked and written (`reading`)."""

from cloister.core.spec.reading import Loaded, Origin, load_federation, parse_federation
from cloister.core.spec.tables import (
    AdaptiveClip,
    Aggregation,
    Cohort,
    EarlyStop,
    Evaluation,
    Federation,
    FederationSpec,
    Optimizer,
    Partition,
    PoissonCohort,
    Privacy,
    RecordsCap,
    Schedule,
    ServerOptimizer,
    Tracking,
    Training,
)

__all__ = [
    "AdaptiveClip",
    "Aggregation",
    "Cohort",
    "EarlyStop",
    "Evaluation",
    "Federation",
    "FederationSpec",
    "Loaded",
    "Optimizer",
    "Origin",
    "Partition",
    "PoissonCohort",
    "Privacy",
    "RecordsCap",
    "Schedule",
    "ServerOptimizer",
    "Tracking",
    "Training",
    "load_federation",
    "parse_federation",
]
