"""Operations against a count by hand, and memory that is this process's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from voco.encoders import create_encoder
from voco.engine.cost import count_operations, flops_per_sample, peak_memory_bytes


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


CONVOLUTIONS = {
    (dims, transposed): cls
    for dims, pair in enumerate(
        [(nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)], start=1
    )
    for transposed, cls in enumerate(pair)
}


def passes(network, *inputs) -> tuple[int, int]:
    """Operations of the forward pass and of the backward pass, on the meta device."""
    with count_operations() as counter:
        out = network(*inputs)
        forward = counter.get_total_flops()
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize("groups", [1, 4, 12])  # of 12 channels: plain, grouped, depthwise
@pytest.mark.parametrize(("dims", "transposed"), CONVOLUTIONS)
def test_convolutions_are_those_of_the_literal_formula(dims, transposed, groups):
    batch, channels, out_channels, kernel, size = 2, 12, 24, 3, (9, 8, 7)[:dims]
    with torch.device("meta"):
        layer = CONVOLUTIONS[dims, transposed](channels, out_channels, kernel, stride=2, padding=1, groups=groups)
        x = torch.empty(batch, channels, *size)
    voxels = math.prod(size if transposed else [(n + 2 - kernel) // 2 + 1 for n in size])
    by_hand = 2 * batch * voxels * (channels // groups) * out_channels * kernel**dims
    assert passes(layer, x) == (by_hand, by_hand)  # no gradient of the input
    assert passes(layer, x.requires_grad_()) == (by_hand, 2 * by_hand)
    layer.weight.requires_grad_(False)
    assert passes(layer, x) == (by_hand, by_hand)


def test_a_depthwise_layer_by_hand():
    """What it takes, not the formula: every output voxel of a channel is the sum of 27 products."""
    with torch.device("meta"):
        layer = nn.Conv3d(256, 256, 3, padding=1, groups=256, bias=False)
        x = torch.empty(1, 256, 4, 4, 4, requires_grad=True)
    assert passes(layer, x) == (256 * 64 * 27 * 2, 2 * 256 * 64 * 27 * 2)


def test_recurrent_layers_and_attention_are_counted_although_their_cpu_operators_are_fused():
    with torch.device("meta"):
        lstm, gru = nn.LSTM(6, 7, batch_first=True, bidirectional=True), nn.GRU(6, 7, batch_first=True)
        x, q = torch.empty(3, 5, 6, requires_grad=True), torch.empty(2, 3, 10, 8, requires_grad=True)
    steps = 2 * 3 * 5 * 7 * (6 + 7)
    assert passes(lstm, x)[0] == 2 * 4 * steps and passes(gru, x)[0] == 3 * steps
    # the first state is 0 and gets no gradient, so a little less than two forward passes
    assert passes(gru, x)[1] == 2 * 3 * steps - 2 * 3 * 3 * 7 * 7
    product = 2 * 2 * 3 * 10 * 10 * 8
    assert passes(nn.functional.scaled_dot_product_attention, q, q, q) == (2 * product, 4 * product)


class Reader(nn.Module):
    """Attention and an LSTM, as one step of training has them on a CPU."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 7, batch_first=True, bidirectional=True)

    def forward(self, batch):
        x = batch["x"][:, None]
        mixed = nn.functional.scaled_dot_product_attention(x, x, x)[:, 0]
        return {"loss": self.lstm(mixed)[0].square().mean()}


def test_on_the_cpu_too():
    attention = 2 * 2 * 10 * 10 * 8  # of a sample; nothing before it is trained, so forward only
    lstm = 2 * 2 * 10 * 4 * 7 * (8 + 7)  # of which the fused operator always computes both gradients
    assert flops_per_sample(Reader(), {"x": torch.zeros(3, 10, 8)}) == attention + 3 * lstm


def test_resizing_and_norms_are_not_counted():
    with torch.device("meta"):
        x = torch.empty(2, 3, 4, 4, 4, requires_grad=True)
        norm = nn.BatchNorm3d(3)
    assert passes(lambda x: nn.functional.interpolate(norm(x), scale_factor=2.0, mode="trilinear"), x) == (0, 0)


def by_layers(encoder, x) -> int:
    """Twice the multiplications of every convolution and linear layer, from the shapes that pass through them."""
    total = 0

    def count(module, _inputs, output):
        nonlocal total
        total += 2 * module.weight[0].numel() * output.numel()

    hooks = [
        m.register_forward_hook(count) for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear)
    ]
    encoder(x)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize(
    ("name", "size", "attention"),
    [
        ("slices/efficientnet_b0", (2, 64, 64), False),
        ("slices/convnext_tiny", (2, 64, 64), False),
        ("x3d_s", (13, 96, 96), False),
        ("mvit_v2_s", (16, 64, 64), True),
    ],
)
def test_a_backward_pass_is_about_two_forward_passes(name, size, attention):
    with torch.device("meta"):
        encoder, x = create_encoder(name).train(), torch.empty(2, 1, *size)
    forward, backward = passes(encoder, x)
    assert 1.9 <= backward / forward <= 2.2
    layers = by_layers(encoder, x)
    assert forward > 1.02 * layers if attention else forward == layers
