"""What one training sample is cut from: a window of a prepared volume, as int16 Hounsfield units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from voco.errors import InputError
from voco.short_repr import short_repr

REGIONS = ("window", "whole")


class ReadableVolume(Protocol):
    """What a window can be read from, e.g. ``voco.data.cache.PreparedVolume``."""

    shape: tuple[int, int, int]

    def read(self, start, size) -> np.ndarray: ...


@short_repr
@dataclass(frozen=True)
class Window:
    """A piece of a volume.

    Attributes:
        hu: (D, H, W) int16 Hounsfield units, canonical axes.
        start: index of its first voxel in the volume; negative where the volume is smaller than the window.
        padded_share: share of voxels that lie outside the volume and were filled with air.
    """

    hu: np.ndarray
    start: tuple[int, int, int]
    padded_share: float


def window_start(shape, size, generator: torch.Generator) -> tuple[int, int, int]:
    """A uniform place for a window; an axis that is too short is centred, so that padding is even on both sides."""
    start = []
    for length, wanted in zip(shape, size):
        slack = length - wanted
        # one draw per axis whatever the shape, so that the draws after it do not depend on the scan
        draw = torch.rand((), generator=generator, dtype=torch.float64).item()
        start.append(min(int(draw * (slack + 1)), slack) if slack > 0 else -((-slack) // 2))
    return tuple(start)


def padded_share(shape, size) -> float:
    """Share of a window of ``size`` voxels outside a volume of ``shape``; windows never leave an axis that is long
    enough, so it does not depend on the place."""
    return 1.0 - math.prod(map(min, shape, size)) / math.prod(size)


def read_window(
    volume: ReadableVolume,
    size,
    generator: torch.Generator,
    region: str = "window",
    clip: tuple[float, float] | None = None,
) -> Window:
    """Read a random window of ``size`` voxels, or the whole volume resized to it.

    Args:
        volume: shape (D, H, W) and partial reads that fill air outside.
        size: (D, H, W) voxels wanted.
        generator: where the window lies.
        region: ``window`` (VoCo v2: a local window at the prepared spacing) or ``whole`` (VoCo v1: the whole volume,
            trilinear with aligned corners).
        clip: Hounsfield window to which a whole volume is cut before it is resized, as every published code does: a
            voxel between bone and air is else the mean of both, and no value of the window. A local window is not
            resized, and stays as it is.

    Raises:
        InputError: unknown region.
    """
    if region == "window":
        start = window_start(volume.shape, size, generator)
        return Window(volume.read(start, size), start, padded_share(volume.shape, size))
    if region == "whole":
        hu = torch.from_numpy(np.ascontiguousarray(volume.read((0, 0, 0), volume.shape))).float()[None, None]
        hu = hu if clip is None else hu.clamp(*clip)
        resized = torch.nn.functional.interpolate(hu, size=tuple(size), mode="trilinear", align_corners=True)
        return Window(resized[0, 0].round().to(torch.int16).numpy(), (0, 0, 0), 0.0)
    raise InputError(f"unknown region {region!r}; choose one of {', '.join(REGIONS)}")
