"""What a model is built for: the shape of one record's input, and how many numbers come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from cloister.core.errors import TaskError

__all__ = ["Records", "refuse"]


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records that a model reads and the scores that it gives.

    Attributes:
        shape: of one record's input: (features,), (channels, height, width), (length,) of tokens, or (length,
            features).
        outputs: scores a record: the number of classes, or 1 for regression.
        vocabulary: how many different tokens there are; ``None`` where the input is numbers.
    """

    shape: tuple[int, ...]
    outputs: int
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise TaskError(
                f"a model cannot be built for inputs of shape {self.shape}",
                remedy="give one record's shape, every side at least 1",
                code="model-shape",
            )
        if self.outputs < 1:
            raise TaskError(
                f"a model with {self.outputs} outputs gives no answer",
                remedy="name the task's classes, or 1 for regression",
                code="model-shape",
            )
        if self.vocabulary is not None and self.vocabulary < 1:
            raise TaskError(
                f"a vocabulary of {self.vocabulary} tokens holds nothing",
                remedy="give the number of different tokens",
                code="model-shape",
            )

    def numbers(self, model: str) -> int:
        """Return how many numbers one record has.

        Raises:
            TaskError: the records are tokens, which ``model`` does not read.
        """
        if self.vocabulary is not None:
            refuse(model, self, "it reads numbers, not tokens", "use gru, lstm or transformer")
        count = 1
        for side in self.shape:
            count *= side
        return count

    def image(self, model: str) -> tuple[int, int, int]:
        """Return (channels, height, width).

        Raises:
            TaskError: the records are not images.
        """
        if self.vocabulary is not None or len(self.shape) != 3:
            refuse(
                model,
                self,
                "it reads images of shape (channels, height, width)",
                "use logistic or mlp for other shapes",
            )
        channels, height, width = self.shape
        return channels, height, width

    def sequence(self, model: str) -> tuple[int, int | None]:
        """Return (length, features of a step); ``None`` features where a step is a token.

        Raises:
            TaskError: the records are not sequences.
        """
        if self.vocabulary is not None and len(self.shape) == 1:
            return self.shape[0], None
        if self.vocabulary is None and len(self.shape) == 2:
            return self.shape[0], self.shape[1]
        return refuse(
            model,
            self,
            "it reads sequences: (length,) tokens with a vocabulary, or (length, features) numbers",
            "use logistic or mlp for other shapes",
        )


def refuse(model: str, records: Records, why: str, remedy: str) -> NoReturn:
    """Refuse a model for these records, with the reason.

    Raises:
        TaskError: always.
    """
    kind = "numbers" if records.vocabulary is None else "tokens"
    raise TaskError(
        f"model '{model}' cannot take {kind} of shape {records.shape}: {why}",
        remedy=remedy,
        code="model-shape",
    )
