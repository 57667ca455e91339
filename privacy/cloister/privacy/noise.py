"""Gaussian noise from a cipher in counter mode.

Noise hides a record only as long as nobody can predict it, so it comes from AES-128 in counter mode (``randomgen.AESCounter``) under
a key of its own: 128 bits of the operating system in deployment, a hash of seed and purpose in simulation.
`GaussianSource.reproducible` says which, and a run's report states it: a reproducible run protects nobody.

Formal guarantee: `GaussianSource.perturb` adds independent N(0, std²) to every number of its argument, in real arithmetic and for
a random key. What floating point takes away from that, and what is done about it:

- Mironov (2012), "On significance of the least significant bits for differential privacy": noise drawn as a floating-point number
  leaves gaps in the values that a sum can take, and a gap may tell two inputs apart. Noise is drawn and added in float64;
  the caller rounds the noisy sum once to float32, so each number that leaves stands for about 2²⁹ neighbouring float64
  values, gaps and all. This removes the known attacks; it is not a proof of (ε, δ) for the rounded mechanism.
- The tails of NumPy's ziggurat end where its 53-bit uniforms end, past 13 standard deviations. The missing mass, below 1e-37 a
  number, is not in δ.
- Time: a ziggurat sometimes draws again, and a step takes longer with a larger batch (Jin et al. 2022, "Are we there yet?
  Timing and floating-point attacks on differential privacy systems"). Who can time a site's steps is not covered.
- The sum that noise is added to is a float32 sum: a record may change how the others' terms are rounded, by about 1e-7 of the sum.

==================  ==================================================
std                 `GaussianSource.perturb`
==================  ==================================================
0                   refused: no noise, no privacy
below 0, inf, NaN   refused
empty tensor        an empty tensor, no draw
inf, NaN in total   stays inf or NaN: the caller keeps them out
==================  ==================================================
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from randomgen import AESCounter  # type: ignore[import-untyped]  # stubs without a py.typed marker
from torch import Tensor

from cloister.core.errors import SpecError
from cloister.core.randomness import Key, Randomness

__all__ = ["GaussianSource", "cipher_generator", "gaussian_source"]

#: Streams of one source; the noise depends on it, so it never changes.
_LANES = 4

#: Numbers from which on a second thread saves more than it costs.
_WORTH_THREADS = 2**16


def cipher_generator(randomness: Randomness, purpose: str, *key: Key) -> np.random.Generator:
    """Return a generator whose stream is AES-128 in counter mode.

    Two keys that differ give independent streams; the same key gives the same stream in simulation, and another one every
    time in deployment.

    Args:
        randomness: where the 128 bits of the cipher's key come from.
        purpose: what is drawn, such as ``"noise"``.
        key: for whom and when, such as a round and a site.
    """
    return np.random.Generator(AESCounter(key=randomness.bits(purpose, *key)))


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianSource:
    """Streams of normal numbers that are used up as they are read.

    Attributes:
        lanes: what draws: each gives its own stretch of the numbers, so that lanes may draw at once.
        reproducible: whether somebody who knows the run's seed can draw the same noise.
    """

    lanes: tuple[np.random.Generator, ...]
    reproducible: bool

    def perturb(self, total: Tensor, *, std: float) -> Tensor:
        """Return ``total`` + N(0, std²·I).

        The draws go to ``total``'s elements in their logical order, whatever its memory format.

        Args:
            total: any shape, float32 or float64.
            std: σ·C, the standard deviation of the noise, in the units of ``total``.

        Returns:
            The noisy total in the same shape: float64, so on the CPU (an accelerator may have none).

        Raises:
            SpecError: ``std`` is not a positive number.
        """
        if not (math.isfinite(std) and std > 0):
            raise SpecError(
                f"noise of standard deviation {std} protects nothing",
                remedy="give a positive noise multiplier and clipping bound",
                code="privacy-noise",
            )
        noisy = np.empty(total.numel())
        self._add_noise(noisy, total.detach().cpu().reshape(-1).numpy(), std)
        return torch.from_numpy(noisy).view(total.shape)

    def _add_noise(self, noisy: npt.NDArray[np.float64], total: npt.NDArray[Any], std: float) -> None:
        """Write ``total`` + N(0, std²·I) into ``noisy``: the same for any number of threads (``torch.get_num_threads()``)."""
        stretches = list(
            zip(*(np.array_split(whole, len(self.lanes)) for whole in (noisy, total)), strict=True)
        )
        threads = min(torch.get_num_threads(), len(self.lanes)) if len(noisy) >= _WORTH_THREADS else 1

        def draw(turn: int) -> None:
            for lane, (out, of) in zip(self.lanes[turn::threads], stretches[turn::threads], strict=True):
                lane.standard_normal(out=out)  # while it lies in the cache the rest costs little
                np.multiply(out, std, out=out)
                np.add(out, of, out=out)

        if threads == 1:
            draw(0)
            return
        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(draw, turn) for turn in range(1, threads)]
            draw(0)
        for other in others:
            other.result()


def gaussian_source(randomness: Randomness, purpose: str, *key: Key) -> GaussianSource:
    """Return the noise for ``key``: see `cipher_generator`.

    One source serves all releases of its key, which is used once: two releases with the same noise show their difference bare.

    Args:
        randomness: `SystemRandomness` in deployment, `SeededRandomness` in simulation.
        purpose: what is protected, such as ``"dp-sgd"``.
        key: for whom and when, such as a round and a site.
    """
    lanes = tuple(cipher_generator(randomness, f"{purpose}/{lane}", *key) for lane in range(_LANES))
    return GaussianSource(lanes=lanes, reproducible=randomness.reproducible)
