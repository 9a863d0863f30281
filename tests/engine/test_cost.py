"""Operations against a count by hand, and memory that is this process's own."""

from __future__ import annotations

import torch
from torch import nn

from voco.engine.cost import flops_per_sample, peak_memory_bytes


class Toy(nn.Module):
    """One convolution and one linear layer, the first without a gradient to its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, batch):
        maps = self.norm(self.conv(batch["x"]))
        return {"loss": self.head(maps.mean((2, 3, 4))).square().mean()}


def test_operations_are_those_counted_by_hand():
    method, batch = Toy(), {"x": torch.zeros(3, 2, 4, 5, 6)}
    before = {key: value.clone() for key, value in method.state_dict().items()}
    conv = 2 * (4 * 5 * 6) * 4 * 2 * 27  # forward; backward has the kernel's gradient only
    linear = 2 * 4 * 5
    assert flops_per_sample(method, batch) == 2 * conv + 3 * linear
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_networks_that_need_values_have_no_count():
    class Reads(Toy):
        def forward(self, batch):
            return {"loss": super().forward(batch)["loss"] * float(batch["x"].sum())}

    assert flops_per_sample(Reads(), {"x": torch.zeros(1, 2, 4, 4, 4)}) is None


def test_peak_memory_rises_with_what_is_held():
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(400_000_000, dtype=torch.uint8)
    assert peak_memory_bytes(torch.device("cpu")) >= before
    assert peak_memory_bytes(torch.device("cpu")) > held.numel()
