"""A pretraining method in one file: reconstruct the masked part of a crop from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from voco.methods import register_method
from voco.methods.base import ScanMethod, ScanSample


@dataclass
class MaskedOptions:
    """Reconstruction of masked voxels."""

    name: Literal["toy_masked"] = "toy_masked"
    """Method."""
    preset: Literal["default", "half"] = "default"
    """half: hide half of the blocks."""
    crop: int = 32
    """Edge of a crop in voxels."""
    block: int = 8
    """Edge of a hidden block in voxels."""
    share: float = 0.25
    """Share of the blocks that are hidden."""

    presets: ClassVar = {"default": {}, "half": {"share": 0.5}}


@dataclass(frozen=True)
class BlockDraws:
    """Which blocks of a crop are hidden."""

    blocks: int
    share: float

    def __call__(self, generator):
        return {"hidden": torch.rand((self.blocks,) * 3, generator=generator) < self.share}


@register_method("toy_masked")
class Masked(ScanMethod):
    """Encoder, and one layer from its deepest map back to voxels."""

    Options = MaskedOptions
    citation = "nobody yet"

    def __init__(self, encoder, settings):
        super().__init__()
        self.settings, self.encoder = settings, encoder
        self.head = nn.Conv3d(encoder.feature_info[-1]["num_chs"], encoder.input_spec.channels, 1)

    @classmethod
    def sample(cls, settings, spec):
        return ScanSample((settings.crop,) * 3)

    @property
    def sampler(self):
        return BlockDraws(self.settings.crop // self.settings.block, self.settings.share)

    def forward(self, batch):
        x = self.encoder.prepare(batch["hu"].unsqueeze(1))
        hidden = F.interpolate(batch["hidden"].unsqueeze(1).float(), x.shape[2:])
        guess = F.interpolate(self.head(self.encoder.forward_features(x * (1 - hidden))), x.shape[2:], mode="trilinear")
        loss = (hidden * (guess - x) ** 2).sum() / hidden.sum().clamp(min=1)
        return {"loss": loss, "hidden": hidden.mean()}
