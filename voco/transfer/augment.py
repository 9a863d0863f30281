"""Augmentation of whole windows on the device, in Hounsfield units, with air where nothing is.

Published code turned images after scaling them to [0, 1] and filled the corners with -1000. Here everything happens
before the Hounsfield window, so that air is air in every channel. torch only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from voco.errors import InputError

AIR_HU = -1024.0


@dataclass(frozen=True)
class StudyAugmentation:
    """How a study is changed for training; all its windows alike."""

    flip_prob: float = 0.5
    """Probability of a flip, for each axis that the task allows on its own."""
    turn_prob: float = 0.0
    """Probability of turning by 90, 180 or 270 degrees in the axial plane."""
    rotate: float = 15.0
    """Largest rotation in the axial plane, degrees."""
    zoom: float = 0.1
    """Largest change of scale in the axial plane, as a share."""
    translate: float = 0.05
    """Largest shift in the axial plane, as a share of its width."""
    shift_hu: float = 20.0
    """Largest shift of all values, in HU."""
    contrast: float = 0.1
    """Largest change of contrast around 0 HU, as a share."""
    noise_hu: float = 0.0
    """Largest standard deviation of added noise, in HU."""
    jitter: Literal["all", "plane", "depth", "none"] = "all"
    """Where windows are cut: near their place, and anywhere in the plane with --input.stored (all); only the one or the
    other moves (depth, plane); always the same (none)."""

    def __post_init__(self):
        for name in ("flip_prob", "turn_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--augment.{name} must lie between 0 and 1, found {getattr(self, name)}")
        for name in ("rotate", "zoom", "translate", "shift_hu", "contrast", "noise_hu"):
            if getattr(self, name) < 0:
                raise InputError(f"--augment.{name} must not be negative, found {getattr(self, name)}")
        if self.zoom >= 1:
            raise InputError(f"--augment.zoom is a share below 1, found {self.zoom}")

    def draw(self, generator: torch.Generator, flips: Sequence[int]) -> dict[str, Tensor]:
        """All randomness of one study, on the CPU.

        Args:
            flips: axes (0 D, 1 H, 2 W) that may be flipped.

        Returns:
            ``flips`` (3,) bool, ``turns`` quarter turns, ``plane`` (4,) angle in radians, scale and shifts (H, W) as
            shares of half the width, ``values`` (3,) shift in HU, factor and noise in HU, ``noise_seed``.
        """
        # A fixed number of draws, whatever the settings: changing one leaves the others' draws alone.
        uniform = torch.rand(12, generator=generator)
        turn = int(torch.randint(1, 4, (), generator=generator))
        seed = torch.randint(2**31, (), generator=generator)
        signed = 2 * uniform - 1
        allowed = torch.tensor([axis in flips for axis in range(3)])
        return {
            "flips": (uniform[:3] < self.flip_prob) & allowed,
            "turns": torch.tensor(turn if uniform[3] < self.turn_prob else 0),
            "plane": torch.stack(
                [
                    signed[4] * math.radians(self.rotate),
                    1 + signed[5] * self.zoom,
                    2 * signed[6] * self.translate,
                    2 * signed[7] * self.translate,
                ]
            ),
            "values": torch.stack(
                [signed[8] * self.shift_hu, 1 + signed[9] * self.contrast, uniform[10] * self.noise_hu]
            ),
            "noise_seed": seed,
        }


def augment_windows(
    hu: Tensor, flips: Tensor, turns: Tensor, plane: Tensor, values: Tensor, noise_seed: Tensor | None = None
) -> Tensor:
    """Apply draws to windows.

    Args:
        hu: (M, S, D, H, W) float32 HU; S versions of the same window (the scan, the scan inside its mask).
        flips: (M, 3) bool along D, H, W.
        turns: (M,) quarter turns in the plane, ``torch.rot90`` from H to W; any but 0 and 2 need H = W.
        plane: (M, 4) angle in radians, scale, shifts along H and W in units of half the size.
        values: (M, 3) shift in HU, factor, standard deviation of noise in HU.
        noise_seed: (M,) of the noise; none is added without it.

    Returns:
        Same shape; what comes from outside is air.
    """
    count, versions, depth, height, width = hu.shape
    if height != width and bool((turns % 2 == 1).any()):
        raise InputError(f"windows must be as high as wide to be turned by 90 degrees, found H {height} and W {width}")
    flipped = flips[:, 0].to(hu.device).view(-1, 1, 1, 1, 1)
    if bool(flips[:, 0].any()):
        hu = torch.where(flipped, hu.flip(2), hu)
    grid = F.affine_grid(_plane_matrix(flips, turns, plane, height, width).to(hu), [count, 1, height, width], False)
    # Depth and versions are channels of one plane-wise gather. Air becomes 0, so that the padding is air.
    air = (hu - AIR_HU).reshape(count, versions * depth, height, width)
    moved = F.grid_sample(air, grid.to(air), mode="bilinear", padding_mode="zeros", align_corners=False)
    hu = moved.view_as(hu) + AIR_HU
    shift, factor, noise = (values[:, i].to(hu).view(-1, 1, 1, 1, 1) for i in range(3))
    changed = hu * factor + shift
    if noise_seed is not None and bool((noise > 0).any()):
        changed = changed + noise * torch.stack([_noise(hu[i, :1], int(seed)) for i, seed in enumerate(noise_seed)])
    # Air stays air: a brighter scan does not fill its surroundings or the lungs of a mask.
    return torch.where(hu <= AIR_HU + 0.5, hu, changed.clamp_min(AIR_HU))


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _plane_matrix(flips: Tensor, turns: Tensor, plane: Tensor, height: int, width: int) -> Tensor:
    """(M, 2, 3) output to input coordinates (x = W, y = H) in [-1, 1], with square pixels."""
    plane = plane.float()
    angle = plane[:, 0] + turns * (math.pi / 2)
    cos, sin = torch.cos(angle) / plane[:, 1], torch.sin(angle) / plane[:, 1]
    flip_y, flip_x = (torch.where(flips[:, axis], -1.0, 1.0) for axis in (1, 2))
    ratio = height / width
    rows = [
        torch.stack([cos * flip_x, -sin * ratio * flip_x, plane[:, 3]], 1),
        torch.stack([sin / ratio * flip_y, cos * flip_y, plane[:, 2]], 1),
    ]
    return torch.stack(rows, 1)
