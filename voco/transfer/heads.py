"""Heads on frozen features: a linear layer on standardised features, and nearest neighbours. torch only.

Both are modules with the interface of a trained head, so that a probe is saved, loaded and applied to new scans like
any other model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TINY = 1e-12


class Standardise(nn.Module):
    """Features minus their mean over the training set, divided by their standard deviation there.

    Args:
        width: of the features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(M, F) to (M, F)."""
        return (x - self.mean) / self.std


class NeighbourHead(nn.Module):
    """Logits whose probabilities are the weighted votes of the k nearest training vectors by cosine.

    Weights are exp(cosine / temperature), as in the weighted k-NN of Wu et al. (CVPR 2018, section 3.4). With
    regression outputs the prediction is the weighted mean.

    Args:
        outputs: of the task (``voco.tasks.base.Output``).
        count, width: training vectors and their width.
        neighbours: k; at most ``count``.
        temperature: of the weights.
    """

    def __init__(self, outputs: Sequence, count: int, width: int, neighbours: int, temperature: float):
        super().__init__()
        self.outputs = tuple(outputs)
        self.neighbours, self.temperature = min(neighbours, count), temperature
        self.register_buffer("bank", torch.zeros(count, width))
        self.register_buffer("targets", torch.full((count, len(self.outputs)), float("nan")))

    @classmethod
    def fit(cls, outputs, features: Tensor, targets: Mapping[str, Tensor], neighbours: int, temperature: float):
        """From training vectors (n, F) and targets (n,) per output, NaN where not known."""
        head = cls(outputs, len(features), features.shape[1], neighbours, temperature)
        head.bank.copy_(F.normalize(features.float(), dim=1))
        head.targets.copy_(torch.stack([targets[output.name].float() for output in head.outputs], 1))
        return head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(M, F) to name: (M, width) logarithms of probabilities (binary: log-odds), or values."""
        cosine = F.normalize(x.float(), dim=1) @ self.bank.T
        found = {}
        for i, output in enumerate(self.outputs):
            known = ~torch.isnan(self.targets[:, i])
            near, index = cosine[:, known].topk(min(self.neighbours, int(known.sum())), dim=1)
            weight = torch.softmax(near.double() / self.temperature, 1)
            labels = self.targets[known, i][index].double()
            if output.kind == "multiclass":
                votes = torch.stack([(weight * (labels == c)).sum(1) for c in range(output.width)], 1)
                found[output.name] = (votes + _TINY).log()
            else:
                mean = (weight * labels).sum(1, keepdim=True)
                found[output.name] = torch.logit(mean, eps=_TINY) if output.kind == "binary" else mean
        return found
