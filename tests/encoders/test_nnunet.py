"""nnU-Net encoders against their formulas written out, and against the sizes of the public networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from voco.encoders.nnunet import PLAIN_SPEC, RESENC_SPEC, PlainConvEncoder, ResidualConvEncoder
from voco.errors import InputError

SMALL = {"features_per_stage": (4, 6, 6), "strides": (1, (1, 2, 2), 2), "kernel_sizes": ((1, 3, 3), 3, 3)}
STEPS = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
PADS = [(0, 1, 1), (1, 1, 1), (1, 1, 1)]


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return randomised(PlainConvEncoder(PLAIN_SPEC, **SMALL, n_conv_per_stage=(2, 1, 2)))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return randomised(ResidualConvEncoder(RESENC_SPEC, **SMALL, n_blocks_per_stage=(1, 2, 1)))


def randomised(encoder):
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.double().eval()


def conv_norm(p, name, x, step=1, pad=0):
    m = F.conv3d(x, p[f"{name}.conv.weight"], p.get(f"{name}.conv.bias"), stride=step, padding=pad)
    mean, var = m.mean((2, 3, 4), keepdim=True), m.var((2, 3, 4), correction=0, keepdim=True)
    scale, shift = p[f"{name}.norm.weight"].view(-1, 1, 1, 1), p[f"{name}.norm.bias"].view(-1, 1, 1, 1)
    return (m - mean) / (var + 1e-5).sqrt() * scale + shift


def leaky(m):
    return torch.where(m > 0, m, 0.01 * m)


def test_plain_encoder_is_its_formula(plain):
    x = torch.randn(2, 1, 8, 16, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p, m, expected = plain.state_dict(), x, []
    for s, count in enumerate((2, 1, 2)):
        for i in range(count):
            m = leaky(conv_norm(p, f"stages.{s}.0.convs.{i}", m, 1 if i else STEPS[s], PADS[s]))
        expected.append(m)
    for found, wanted in zip(plain._maps(x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_residual_encoder_is_its_formula(residual):
    """Shortcuts: average pool where there is a stride, then 1x1x1 where the width changes."""
    x = torch.randn(2, 1, 8, 16, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p, expected = residual.state_dict(), []
    m = leaky(conv_norm(p, "stem.convs.0", x, pad=PADS[0]))
    for s, count in enumerate((1, 2, 1)):
        for i in range(count):
            name, step = f"stages.{s}.blocks.{i}", (1, 1, 1) if i else STEPS[s]
            branch = leaky(conv_norm(p, f"{name}.conv1", m, step, PADS[s]))
            shortcut = F.avg_pool3d(m, step)
            if (s, i) == (1, 0):  # the only change of width, behind the pool
                shortcut = conv_norm(p, f"{name}.skip.1", shortcut)
            m = leaky(conv_norm(p, f"{name}.conv2", branch, pad=PADS[s]) + shortcut)
        expected.append(m)
    for found, wanted in zip(residual._maps(x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_sizes_of_the_public_networks():
    """PlainConvUNet with 21 classes has 31,210,889 parameters (125 MB), ResEnc-L's encoder 90.3 M."""
    with torch.device("meta"):
        plain, residual = PlainConvEncoder(PLAIN_SPEC), ResidualConvEncoder(RESENC_SPEC)
    assert sum(p.numel() for p in plain.parameters()) == 14_025_120
    assert sum(p.numel() for p in residual.parameters()) == 90_296_576
    assert len(plain.state_dict()) == 48
    assert len(residual.state_dict()) == 224
    for encoder in (plain, residual):
        assert [info["num_chs"] for info in encoder.feature_info] == [32, 64, 128, 256, 320, 320]
        assert [info["reduction"] for info in encoder.feature_info] == [(n,) * 3 for n in (1, 2, 4, 8, 16, 32)]
    shapes = {k: tuple(v.shape) for k, v in residual.state_dict().items()}
    assert shapes["stem.convs.0.conv.weight"] == (32, 1, 3, 3, 3)
    assert shapes["stages.1.blocks.0.skip.1.conv.weight"] == (64, 32, 1, 1, 1)
    assert "stages.1.blocks.0.skip.1.conv.bias" not in shapes
    assert "stages.5.blocks.0.skip.1.conv.weight" not in shapes  # 320 to 320: pooled only
    assert {k: tuple(v.shape) for k, v in plain.state_dict().items()}["stages.4.0.convs.1.conv.bias"] == (320,)


@pytest.mark.parametrize("which", ["plain", "residual"])
def test_odd_sizes_are_rounded_up(which, request):
    encoder = request.getfixturevalue(which)
    maps = encoder._maps(torch.randn(1, 1, 7, 13, 11, dtype=torch.float64))
    assert [tuple(m.shape[2:]) for m in maps] == [(7, 13, 11), (7, 7, 6), (4, 4, 3)]
    one_slice = encoder._maps(torch.randn(1, 1, 1, 16, 16, dtype=torch.float64))
    assert [tuple(m.shape[2:]) for m in one_slice] == [(1, 16, 16), (1, 8, 8), (1, 4, 4)]


@pytest.mark.parametrize("which", ["plain", "residual"])
def test_offset_and_factor_of_the_input_do_not_matter(which, request):
    """Which is why the unknown mean and standard deviation of a data set may be unknown: exact away from the border."""
    encoder = request.getfixturevalue(which)
    stem = encoder.stem if which == "residual" else encoder.stages[0][0].convs[0]
    # Values that fade out to zero: there padding continues the image, whatever the factor.
    x = torch.zeros(1, 1, 8, 20, 20, dtype=torch.float64)
    x[..., 2:-2, 4:-4, 4:-4] = torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(stem(500 * x), stem(x), rtol=1e-3, atol=1e-3)
    inside = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    conv = (stem.convs[0] if which == "residual" else stem).conv
    shift = (conv(x + 3) - conv(x))[inside]
    torch.testing.assert_close(shift, shift[..., :1, :1, :1].expand_as(shift))


def test_strides_follow_the_axes_of_the_network():
    """A plan that puts the slices last: its third stride is the one along depth."""
    spec = replace(PLAIN_SPEC, axes="PLS")
    encoder = PlainConvEncoder(spec, (4, 4), (1, (4, 4, 2)), (3, 3), 1)
    assert encoder.feature_info[-1]["reduction"] == (2, 4, 4)
    hu = torch.randint(-1000, 1000, (1, 1, 10, 64, 72), generator=torch.Generator().manual_seed(0))
    assert encoder.forward_features(encoder.prepare(hu)).shape == (1, 4, 5, 16, 18)
    finer = PlainConvEncoder(spec, (4, 4), (1, (4, 4, 2)), (3, 3), 1, depth_stride=1)
    assert finer.forward_features(finer.prepare(hu)).shape == (1, 4, 10, 16, 18)


def test_depth_stride_and_smallest_size():
    spec = replace(PLAIN_SPEC, min_size=(1, 1, 1))
    with torch.device("meta"):
        assert PlainConvEncoder(spec).input_spec.min_size == (8, 64, 64)
        finer = PlainConvEncoder(spec, depth_stride=4)
        assert finer.input_spec.min_size == (1, 64, 64)
        assert [info["reduction"][0] for info in finer.feature_info] == [1, 2, 4, 4, 4, 4]
        with pytest.raises(InputError, match="1, 2, 4, 8, 16, 32"):
            PlainConvEncoder(spec, depth_stride=5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"strides": (1, 2)}, "per stage"),
        ({"kernel_sizes": (3, 3, 3, 3, 3, 2)}, "odd"),
        ({"strides": (1, 2, 2, 2, 2, (2, 2))}, r"three per stage; found \(2, 2\)"),
        ({"n_conv_per_stage": (2, 2)}, "each of 6 stages"),
        ({"n_conv_per_stage": 0}, "positive"),
    ],
)
def test_wrong_plans_are_refused(arguments, match):
    with pytest.raises(InputError, match=match), torch.device("meta"):
        PlainConvEncoder(PLAIN_SPEC, **arguments)
