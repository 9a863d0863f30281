"""The projector against a literal NumPy version, and its place of norms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from voco.errors import InputError
from voco.heads import Projector
from voco.rng import generator


def literal(x, state, norm):
    def normalise(a):
        axis = {"batch": 0, "instance": 1}.get(norm)
        if axis is None:
            return a
        return (a - a.mean(axis, keepdims=True)) / np.sqrt(a.var(axis, keepdims=True) + 1e-5)

    for layer in ("layer1", "layer2"):
        x = np.maximum(normalise(x @ state[f"{layer}.0.weight"].T + state[f"{layer}.0.bias"]), 0)
    return x @ state["layer3.0.weight"].T + state["layer3.0.bias"]


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_projector_equals_a_literal_version(norm, training):
    torch.manual_seed(0)
    projector = Projector(12, 8, norm).double().train(training)
    x = torch.randn(22, 12, generator=generator(1), dtype=torch.float64) * 3 + 1
    state = {name: value.numpy() for name, value in projector.state_dict().items()}
    assert sorted(state) == [f"layer{i}.0.{kind}" for i in (1, 2, 3) for kind in ("bias", "weight")]
    np.testing.assert_allclose(projector(x).detach(), literal(x.numpy(), state, norm), atol=1e-10)


def test_batch_norm_has_neither_parameters_nor_running_statistics():
    torch.manual_seed(0)
    projector, x = Projector(6, 5), torch.randn(9, 6, generator=generator(2))
    published = nn.Sequential(
        projector.layer1[0], nn.BatchNorm1d(5, affine=False, track_running_stats=False), nn.ReLU(),
        projector.layer2[0], nn.BatchNorm1d(5, affine=False, track_running_stats=False), nn.ReLU(),
        projector.layer3[0],
    )  # fmt: skip
    torch.testing.assert_close(projector(x), published(x))
    assert sum(p.numel() for p in projector.parameters()) == 6 * 5 + 5 + 2 * (25 + 5) and not list(projector.buffers())


def test_instance_norm_is_what_torch_makes_of_rows():
    torch.manual_seed(0)
    x = torch.randn(4, 32, generator=generator(3))
    torch.testing.assert_close(Projector(6, 32, "instance").layer1[1](x), nn.functional.instance_norm(x[None])[0])


def test_norms_stay_in_single_precision_under_autocast():
    torch.manual_seed(0)
    for norm in ("batch", "instance"):
        projector = Projector(6, 5, norm)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert projector.layer1[1](torch.randn(9, 5).bfloat16()).dtype == torch.float32


def test_unknown_norm_is_refused():
    with pytest.raises(InputError, match="batch, instance, none"):
        Projector(4, 4, "layer")
