"""Fifteen common corruptions of images, seeded, in five severities.

The kinds are those of Hendrycks and Dietterich (2019), "Benchmarking neural network robustness to common corruptions and perturbations".

Written for images of any size, so sizes of filters go with the side of the image, and constants are not those of ImageNet-C: figures
compare models evaluated by Cloister, and no others. A corruption is a function of the images, the severity and the seed alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cloister.core.errors import SpecError
from cloister.core.randomness import SeededRandomness

__all__ = ["CORRUPTIONS", "corrupt"]

#: Images (n, channels, height, width) from 0 to 1, a severity from 0.2 to 1, a generator; values outside 0 to 1 are cut off later.
_Corruption = Callable[[Tensor, float, torch.Generator], Tensor]


def corrupt(name: str, images: Tensor, *, severity: int, seed: int) -> Tensor:
    """Return ``images`` (n, channels, height, width), values from 0 to 1, under one corruption; values stay from 0 to 1.

    Args:
        name: one of `CORRUPTIONS`.
        images: at least 4 pixels a side.
        severity: from 1 to 5.
        seed: the same seed gives the same images.

    Raises:
        SpecError: there is no such corruption or severity, or these are no images.
    """
    if name not in CORRUPTIONS or not 1 <= severity <= 5:
        raise SpecError(
            f"there is no corruption '{name}' of severity {severity}",
            remedy="severities go from 1 to 5; corruptions: " + ", ".join(CORRUPTIONS),
            code="corruption-unknown",
        )
    if images.dim() != 4 or min(images.shape[2:]) < 4:
        raise SpecError(
            f"inputs of shape {tuple(images.shape[1:])} are no images of at least 4 pixels a side",
            remedy="leave the corruptions out",
            code="corruption-unknown",
        )
    generator = torch.Generator().manual_seed(SeededRandomness(seed).torch_seed("corruption", name, severity))
    found = CORRUPTIONS[name](images, severity / 5, generator)
    return found.clamp(0, 1)


def _gaussian_noise(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    return x + 0.5 * s * torch.randn(x.shape, generator=g)


def _shot_noise(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    photons: float = 60 * 0.08**s  # the mean count of a white pixel: from 36 down to 5
    return torch.poisson(x.clamp(0, 1) * photons, generator=g) / photons


def _impulse_noise(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    hit = torch.rand(x.shape, generator=g) < 0.35 * s
    return torch.where(hit, torch.randint(0, 2, x.shape, generator=g).to(x.dtype), x)


def _defocus_blur(x: Tensor, s: float, _: torch.Generator) -> Tensor:
    radius = s * _side(x) / 8
    reach = max(1, math.ceil(radius))
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disk = (at[:, None] ** 2 + at[None, :] ** 2 <= max(radius, 0.8) ** 2).float()
    # An edge that falls off, so that a radius between whole numbers counts.
    disk = disk + 0.25 * s * functional.max_pool2d(disk[None, None], 3, 1, 1)[0, 0]
    return _filter(x, disk / disk.sum())


def _glass_blur(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    reach = 0.15 * s * _side(x)
    rows, columns = _grid(x)
    found = x
    for _ in range(2):
        shift = (2 * torch.rand((2, len(x), *x.shape[2:]), generator=g) - 1) * reach
        found = _sample(found, rows + shift[0], columns + shift[1])
    return _gaussian_blur(found, 0.02 * s * _side(x))


def _motion_blur(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    length, found = s * _side(x) / 3, torch.zeros_like(x)
    angle = 2 * math.pi * torch.rand((len(x), 1, 1), generator=g)
    rows, columns = _grid(x)
    taps = torch.linspace(-0.5, 0.5, 9)
    for tap in taps.tolist():
        found += _sample(x, rows + tap * length * angle.sin(), columns + tap * length * angle.cos()) / len(
            taps
        )
    return found


def _zoom_blur(x: Tensor, s: float, _: torch.Generator) -> Tensor:
    zooms = torch.linspace(1, 1 + 0.5 * s, 7).tolist()
    return torch.stack([_zoomed(x, zoom) for zoom in zooms]).mean(0)


def _snow(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    flakes = torch.rand((len(x), 1, *x.shape[2:]), generator=g)
    flakes = (flakes > 1 - 0.2 * s).to(x.dtype) * (0.6 + 0.4 * s)
    down = torch.zeros(3, 3)
    down[:, 1] = 1 / 1.5
    return torch.maximum(x * (1 - 0.25 * s) + 0.1 * s, _filter(flakes, down))


def _frost(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    crystals = _plasma(x, g, roughness=0.75)
    ice = ((crystals - 0.5).abs() < 0.10 + 0.12 * s).to(x.dtype) * (0.5 + 0.5 * crystals)
    return (1 - 0.3 * s) * x + 0.75 * s * ice


def _fog(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    thick = 1.2 * s
    return (x + thick * _plasma(x, g, roughness=0.5)) / (1 + 0.6 * thick)


def _brightness(x: Tensor, s: float, _: torch.Generator) -> Tensor:
    return x + 0.6 * s


def _contrast(x: Tensor, s: float, _: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * (1 - 0.9 * s) + mean


def _elastic_transform(x: Tensor, s: float, g: torch.Generator) -> Tensor:
    field = 2 * torch.rand((len(x), 2, *x.shape[2:]), generator=g) - 1
    field = _gaussian_blur(field, 0.1 * _side(x))
    field = field / field.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-6) * 0.18 * s * _side(x)
    rows, columns = _grid(x)
    return _sample(x, rows + field[:, 0], columns + field[:, 1])


def _pixelate(x: Tensor, s: float, _: torch.Generator) -> Tensor:
    height, width = (max(2, round(side * (1 - 0.75 * s))) for side in x.shape[2:])
    small = functional.interpolate(x, (height, width), mode="area")
    return functional.interpolate(small, tuple(x.shape[2:]), mode="nearest")


def _jpeg_compression(x: Tensor, s: float, _: torch.Generator) -> Tensor:
    from PIL import Image

    quality = max(1, round(30 * (1 - s) + 4))
    images = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    found = np.empty_like(images)
    for row, image in enumerate(images):
        for part in range(1) if image.shape[2] == 3 else range(image.shape[2]):
            picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, part])
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            read = np.asarray(Image.open(buffer))
            if image.shape[2] == 3:
                found[row] = read
            else:
                found[row, :, :, part] = read
    return torch.from_numpy(found).permute(0, 3, 1, 2).to(x.dtype) / 255


#: The fifteen, in the paper's order.
CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}


def _side(x: Tensor) -> int:
    return min(x.shape[2:])


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the column of every pixel, each (1, height, width)."""
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float32) for side in x.shape[2:]), indexing="ij"
    )
    return rows[None], columns[None]


def _sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels of ``x`` at these places (n, height, width), between pixels by weight, beyond the edge the edge's."""
    height, width = x.shape[2:]
    places = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
    return functional.grid_sample(
        x, places.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=True
    )


def _zoomed(x: Tensor, zoom: float) -> Tensor:
    rows, columns = _grid(x)
    middle = [(side - 1) / 2 for side in x.shape[2:]]
    return _sample(x, (rows - middle[0]) / zoom + middle[0], (columns - middle[1]) / zoom + middle[1])


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    reach = kernel.shape[0] // 2
    channels = x.shape[1]
    padded = functional.pad(x, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(padded, kernel.expand(channels, 1, *kernel.shape).contiguous(), groups=channels)


def _gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(2 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-(at**2) / (2 * max(sigma, 0.2) ** 2))
    line = line / line.sum()
    return _filter(x, line[:, None] * line[None, :])


def _plasma(x: Tensor, g: torch.Generator, *, roughness: float) -> Tensor:
    """Return (n, 1, height, width) cloudy noise from 0 to 1: octaves of random grids, each ``roughness`` times as high."""
    total, weight, cells = torch.zeros((len(x), 1, *x.shape[2:])), 1.0, 2
    resize = partial(functional.interpolate, size=tuple(x.shape[2:]), mode="bilinear", align_corners=True)
    while cells <= _side(x):
        total += weight * resize(torch.rand((len(x), 1, cells, cells), generator=g))
        weight, cells = weight * roughness, 2 * cells
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-6)
