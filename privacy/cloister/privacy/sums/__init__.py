"""What a secure sum holds: everything that leaves a site in a round, as one vector of integers that only ever shows as a sum.

`parts` are the kinds of things that can be summed, `SumCode` packs them into one vector and reads their sum back, `contents` says which
parts a federation's rounds and measurements have. Server and site derive the same code from the federation file and the manifest; neither
takes the other's word for it.
"""

from cloister.privacy.sums.code import SumCode
from cloister.privacy.sums.contents import (
    CUT,
    LOSS,
    WEIGHT,
    evaluation_parts,
    sum_code,
    summed_metrics,
    training_parts,
)
from cloister.privacy.sums.parts import Exact, Part, Reals, Residues

__all__ = [
    "CUT",
    "LOSS",
    "WEIGHT",
    "Exact",
    "Part",
    "Reals",
    "Residues",
    "SumCode",
    "evaluation_parts",
    "sum_code",
    "summed_metrics",
    "training_parts",
]
