"""What every table of the federation file is made of.

Every number has bounds: within them it survives float32, a timer and a C integer; beyond them it is a slip of the hand that
would end a run deep inside torch.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Count", "Fraction", "NonNegative", "Positive", "Rate", "Spread", "Table", "Whole"]

Positive = Annotated[float, Field(ge=1e-12, le=1e12, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
#: A learning rate.
Rate = Annotated[float, Field(ge=1e-12, le=1e6, allow_inf_nan=False)]
#: A concentration of a Dirichlet distribution.
Spread = Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
#: A number of rounds that may be none.
Whole = Annotated[int, Field(ge=0, le=10**9)]


class Table(BaseModel):
    """Base of every table: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
