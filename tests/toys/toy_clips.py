"""A method on clips in one file: are frames in their order, or backwards?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from voco.data.clip_frames import ClipSettings
from voco.methods import register_method
from voco.methods.base import ClipMethod
from voco.video_input import frames_to_input


@dataclass
class OrderOptions:
    """Order of frames."""

    name: Literal["toy_order"] = "toy_order"
    """Method."""
    clip: ClipSettings = field(default_factory=ClipSettings)
    """Frames and pixels of a sample."""


def coin(generator):
    """Where a clip begins and is cut, as ``ClipDataset`` asks, and whether it runs backwards."""
    unit = torch.rand(4, generator=generator)
    return {"start": unit[0], "crop": unit[1:3], "backwards": unit[3] < 0.5}


@register_method("toy_order")
class Order(ClipMethod):
    """Encoder and two logits."""

    Options = OrderOptions

    def __init__(self, encoder, settings):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.num_features, 2)

    @property
    def sampler(self):
        return coin

    def forward(self, batch):
        turned = batch["backwards"]
        frames = torch.where(turned.view(-1, 1, 1, 1, 1), batch["frames"].flip(1), batch["frames"])
        logits = self.head(self.encoder.pool(frames_to_input(self.encoder, frames)))
        return {"loss": F.cross_entropy(logits.float(), turned.long())}
