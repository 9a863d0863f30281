"""Optimizer and learning rate: a schedule that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


def make_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    amsgrad: bool,
    kind: str = "adamw",
    momentum: float = 0.9,
    dampening: float = 0.0,
    decay: str = "matrices",
    groups: Sequence[dict] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters.

    Args:
        betas, amsgrad: of Adam and AdamW.
        kind: ``adamw``, ``adam`` (decay added to the gradient, as older recipes have it) or ``sgd``.
        momentum, dampening: of SGD.
        decay: ``matrices`` spares vectors (biases, norms); ``all`` does not, as torch does it by itself.
        groups: parameter groups with ``weight_decay`` and ``lr_scale`` of their own, instead of the usual two.

    Raises:
        ValueError: nothing to train.
    """
    if groups is None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": weight_decay if decay == "all" else 0.0},
        ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise ValueError("the model has no trainable parameter")
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, dampening=dampening)
    cls = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[kind]
    return cls(groups, lr=lr, betas=tuple(betas), amsgrad=amsgrad)


def learning_rate(step: int, *, steps: int, lr: float, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to ``floor * lr`` at the end.

    A function of the step needs no state: nothing to save, and nothing that is stepped once per process (a scheduler
    prepared by accelerate is stepped ``num_processes`` times).

    Args:
        step: 0-based step about to be taken.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
