"""Heads on top of encoder features. torch only."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from voco.errors import InputError
from voco.losses import full_precision


class BatchStatistics(nn.Module):
    """BatchNorm over rows without affine or running statistics, in training and evaluation alike."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(full_precision(x), None, None, training=True)


class RowStatistics(nn.Module):
    """Normalises each row by itself: what InstanceNorm1d amounts to on an (R, P) tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(full_precision(x), x.shape[-1:])


NORMS = {"batch": BatchStatistics, "instance": RowStatistics, "none": nn.Identity}


class Projector(nn.Module):
    """The VoCo projector: three linear layers, a norm and a ReLU after the first two.

    Base and random crops must go through it in one batch: with ``batch``, normalising them apart removes the very
    differences that the loss compares. Parameter names are those of the authors' in-house checkpoints.

    Args:
        in_features: width of the encoder features.
        dim: width of every layer. v1, nnssl: 2048; v2: 1024.
        norm: ``batch`` (v0, v1, v2), ``instance`` (nnssl) or ``none``.
    """

    def __init__(self, in_features: int, dim: int = 1024, norm: Literal["batch", "instance", "none"] = "batch"):
        super().__init__()
        if norm not in NORMS:
            raise InputError(f"projector norm must be one of {', '.join(NORMS)}, found {norm!r}")
        self.layer1 = nn.Sequential(nn.Linear(in_features, dim), NORMS[norm](), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(dim, dim), NORMS[norm](), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Linear(dim, dim))
        self.out_features = dim

    def forward(self, x: Tensor) -> Tensor:
        """(R, in_features) -> (R, dim)."""
        return self.layer3(self.layer2(self.layer1(x)))
