"""What a mechanism did, as plain data: the vocabulary of ledgers, reports and accounting.

An event says everything that the accounting of a mechanism needs and nothing else. Ledgers keep events for years, so:

* a type's name, its fields and their meaning never change; what is new gets a new type;
* an unknown type, a missing, foreign or ill-typed field is an `IntegrityError`, never a guess;
* ``from_json(to_json(event)) == event`` for every event, to the last bit.

====================  ==============================================================================  ======  =====
type                  one application releases                                                        PLD     RDP
====================  ==============================================================================  ======  =====
`PoissonGaussian`     a noisy sum over a batch that takes each record with probability q (DP-SGD)     yes     yes
`Gaussian`            a noisy sum over everything                                                     yes     yes
`FixedSizeGaussian`   a noisy sum over a batch of fixed size, drawn without replacement               no      yes
`CohortGaussian`      a noisy sum over a cohort of sites                                              yes     yes
`Skellam`             an integer sum with the noise shares of several sites                           no      yes
`Laplace`             a noisy sum over everything, Laplace noise                                      yes     yes
`SeveralRecords`      one of the above, for a person who has up to k records                          yes     some
`Repeated`            an event, several times, every result released                                  as the event
`Selected`            an event, a random number of times, only the best result released (tuning)      no      yes
`Composed`            several events, one after the other                                             as the events
`NonPrivate`          something without any bound: ε is infinite                                      yes     yes
====================  ==============================================================================  ======  =====

Noise is stated as a multiplier of the sensitivity under the platform's relation, zero-out: one unit's contribution is
compared with zero in its place (Kairouz et al. 2021, arXiv 2103.00039, Def. 1.1). Each type's ``sensitivity`` says of what.

Edge cases: a noise multiplier that is not finite, or outside `NOISE_RANGE`, a rate outside (0, 1], a count that is negative or
not whole → `SpecError` that names the field and the value; zero steps → no cost; q = 1 → the same as `Gaussian`.
"""

from cloister.privacy.events.base import NOISE_RANGE, Event, Relation
from cloister.privacy.events.compound import Composed, Distribution, Repeated, Selected, SeveralRecords
from cloister.privacy.events.mechanisms import (
    CohortGaussian,
    FixedSizeGaussian,
    Gaussian,
    Laplace,
    NonPrivate,
    PoissonGaussian,
    Skellam,
    joint_noise_multiplier,
)
from cloister.privacy.events.reading import from_json, to_json

__all__ = [
    "NOISE_RANGE",
    "CohortGaussian",
    "Composed",
    "Distribution",
    "Event",
    "FixedSizeGaussian",
    "Gaussian",
    "Laplace",
    "NonPrivate",
    "PoissonGaussian",
    "Relation",
    "Repeated",
    "Selected",
    "SeveralRecords",
    "Skellam",
    "from_json",
    "joint_noise_multiplier",
    "to_json",
]
