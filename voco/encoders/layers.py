"""Small pieces that several families share: initial weights, stochastic depth, pooled features in full precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def initialise_convolutions(module: nn.Module) -> None:
    """Normal weights by fan-out for every 3D convolution (He et al. 2015), zero biases, as torchvision's ResNets."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d) and not part.weight.is_meta:  # where drawing nothing takes longest of all
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def initialise_linears(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02 for every linear layer, zero biases, as vision transformers have them.

    torchvision cuts this normal distribution at 2, which is 100 standard deviations.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear) and not part.weight.is_meta:
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def drop_path(branch: Tensor, rate: float) -> Tensor:
    """A residual branch (B, ...), left out for a random share of the volumes and scaled to keep its mean."""
    if rate == 0.0:
        return branch
    keep = torch.rand(branch.shape[0], device=branch.device) >= rate
    return branch * (keep / (1 - rate)).to(branch.dtype).reshape(-1, *[1] * (branch.ndim - 1))


def half_as_float(features: Tensor) -> Tensor:
    """Float32 for features that autocast made in half precision."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
