from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.read.flops import forward_flops, training_flops
from voco.encoders import create_encoder

SPEC = {"windows": [[-200.0, 400.0]]}
NETWORK = {"arch": "cnn3d_s", "arguments": {}, "input_spec": SPEC}
FACTS = {
    "mode": "full",
    "view": "each study stretched to 16 x 32 x 32 voxels",
    "training": {"0": {"last_step": 100, "cost": {"samples_seen": 800}}},
}
RESIZE = {"view": "resize"}


def by_hand(size) -> int:
    """Twice the multiplications of every convolution and linear layer, from the shapes that pass through them."""
    encoder, total = create_encoder("cnn3d_s").eval(), 0

    def count(module, _inputs, output):
        nonlocal total
        kernel = module.weight[0].numel()  # input channels x kernel, or input features
        total += 2 * kernel * output.numel()

    for module in encoder.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        encoder(torch.zeros(1, 1, *size))
    return total


def test_forward_operations_are_those_of_the_layers():
    assert forward_flops("cnn3d_s", "{}", ((-200.0, 400.0),), (16, 32, 32)) == by_hand((16, 32, 32))


def test_networks_over_slices_can_be_counted():
    one, two = (forward_flops("slices/test_resnet", "{}", (), (depth, 64, 64)) for depth in (4, 8))
    assert two == 2 * one > 0


def test_training_is_three_forward_passes_of_every_window_seen():
    forward = forward_flops("cnn3d_s", "{}", ((-200.0, 400.0),), (16, 32, 32))
    assert training_flops(FACTS, RESIZE, NETWORK) == 3 * forward * 800
    half = training_flops(FACTS, RESIZE | {"train.freeze_steps": 50}, NETWORK)
    assert half == pytest.approx(2 * forward * 800)
    tiles = FACTS | {"view": "tiles of 16 x 32 x 32 voxels at 3 x 2 x 2 mm", "exposure": {"windows": 12.5}}
    assert training_flops(tiles, {"view": "tiles"}, NETWORK) == pytest.approx(12.5 * 3 * forward * 800)
    assert training_flops(tiles, {"view": "tiles", "input.windows": 4}, NETWORK) == pytest.approx(12 * forward * 800)
    learned = tiles | {"learn": "window"}
    assert training_flops(learned, {"view": "slice_windows"}, NETWORK) == pytest.approx(3 * forward * 800)


@pytest.mark.parametrize(
    ("facts", "settings", "network"),
    [
        (FACTS | {"mode": "linear"}, RESIZE, NETWORK),
        (FACTS | {"view": ""}, RESIZE, NETWORK),
        (FACTS | {"training": {"0": {"last_step": 100}}}, RESIZE, NETWORK),
        (FACTS | {"training": {}}, RESIZE, NETWORK),
        (FACTS, {"view": "tiles"}, NETWORK),
        (FACTS, RESIZE, {}),
        (FACTS, RESIZE, NETWORK | {"arch": "gone"}),
        (FACTS, RESIZE, NETWORK | {"arguments": {"no_such": 1}}),
    ],
)
def test_what_a_run_does_not_tell_stays_unknown(facts, settings, network):
    assert training_flops(facts, settings, network) is None
