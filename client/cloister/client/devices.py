"""Where a site trains: CPU, CUDA or MPS, and whether mixed precision helps there."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from cloister.core.errors import SpecError
from cloister.core.spec import Training

__all__ = ["autocast", "choose_device"]


def choose_device(training: Training) -> torch.device:
    """Return the device that ``training.device`` names; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        SpecError: the device asked for is not on this machine.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if training.device == "auto":
        return torch.device(next(name for name, present in here.items() if present))
    if not here[training.device]:
        raise SpecError(
            f"training.device = '{training.device}' is not on this machine",
            remedy="use device = 'auto'",
            code="device-missing",
        )
    return torch.device(training.device)


def autocast(training: Training, device: torch.device) -> AbstractContextManager[object]:
    """Return mixed precision (bfloat16) where it was asked for and the device has it, else a context that does nothing."""
    if training.precision == "mixed" and device.type in ("cuda", "mps"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
