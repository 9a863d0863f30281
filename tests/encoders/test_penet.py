"""PENet: the public code's names, shapes and sizes, and one block against its formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from voco.encoders.penet import SPEC, PENetEncoder
from voco.errors import InputError


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return PENetEncoder(SPEC).eval()


def test_tensors_of_the_published_network(encoder):
    """The public class has 225 tensors and 29,626,056 parameters, classifier (600 x 2048) and colour stem included."""
    state = encoder.state_dict()
    assert len(state) == 225 - 2
    parameters = sum(p.numel() for p in encoder.parameters())
    assert parameters == 29_626_056 - 600 * 2048 - 600 - 2 * 64 * 7**3
    shapes = {
        "in_conv.0.weight": (64, 1, 7, 7, 7),
        "in_conv.1.weight": (64,),
        "encoders.0.penet_blocks.0.conv1.weight": (128, 64, 1, 1, 1),
        "encoders.0.penet_blocks.0.conv2.weight": (128, 4, 3, 3, 3),
        "encoders.0.penet_blocks.0.down_sample.0.weight": (256, 64, 1, 1, 1),
        "encoders.1.penet_blocks.3.norm2.bias": (256,),
        "encoders.2.penet_blocks.5.conv3.weight": (1024, 512, 1, 1, 1),
        "encoders.3.penet_blocks.2.se_block.excite.0.weight": (128, 2048),
        "encoders.3.penet_blocks.2.se_block.excite.2.bias": (2048,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert encoder.num_features == 2048


def test_block_is_its_formula(encoder):
    """Second stage, first block: groups of 16 channels, 32 convolution groups, slope 0.01, gate, shortcut."""
    block = encoder.encoders[1].penet_blocks[0]
    p = {k: v.double() for k, v in block.state_dict().items()}
    x = torch.randn(2, 256, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def norm(m, name):
        groups = m.reshape(2, m.shape[1] // 16, -1)
        scaled = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        return scaled.reshape(m.shape) * p[f"{name}.weight"].view(-1, 1, 1, 1) + p[f"{name}.bias"].view(-1, 1, 1, 1)

    def leaky(m):
        return torch.where(m > 0, m, 0.01 * m)

    m = leaky(norm(F.conv3d(x, p["conv1.weight"]), "norm1"))
    m = leaky(norm(F.conv3d(m, p["conv2.weight"], stride=2, padding=1, groups=32), "norm2"))
    m = norm(F.conv3d(m, p["conv3.weight"]), "norm3")
    hidden = leaky(m.mean((2, 3, 4)) @ p["se_block.excite.0.weight"].T + p["se_block.excite.0.bias"])
    gate = torch.sigmoid(hidden @ p["se_block.excite.2.weight"].T + p["se_block.excite.2.bias"])
    shortcut = norm(F.conv3d(x, p["down_sample.0.weight"], stride=2), "down_sample.1")
    expected = leaky(m * gate[:, :, None, None, None] + shortcut)
    found = block(x.float())
    assert found.shape == (2, 512, 2, 3, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_odd_sizes_are_rounded_up_at_each_stride(encoder):
    with torch.inference_mode():
        maps = encoder.pyramid(torch.randn(1, 1, 13, 37, 45))
    assert [m.shape[1] for m in maps] == [64, 256, 512, 1024, 2048]
    assert [tuple(m.shape[2:]) for m in maps] == [(13, 19, 23), (7, 10, 12), (4, 5, 6), (2, 3, 3), (1, 2, 2)]


@pytest.mark.parametrize(("total", "depths"), [(None, [1, 2, 4, 8, 16]), (4, [1, 2, 4, 4, 4]), (1, [1, 1, 1, 1, 1])])
def test_depth_stride_keeps_the_weights(total, depths, encoder):
    finer = PENetEncoder(SPEC, depth_stride=total).eval()
    finer.load_state_dict(encoder.state_dict())
    assert [info["reduction"][0] for info in finer.feature_info] == depths
    with torch.inference_mode():
        maps = finer.pyramid(torch.randn(1, 1, 16, 32, 32))
    assert [m.shape[2] for m in maps] == [16 // depth for depth in depths]


def test_depth_strides_that_no_removal_gives_are_refused():
    with pytest.raises(InputError, match="1, 2, 4, 8, 16"):
        PENetEncoder(SPEC, depth_stride=3)


def test_summed_stem_is_the_slice_three_times(encoder):
    """The published input is one slice repeated over three channels; mean 0.15897 is subtracted, nothing divided."""
    colour = PENetEncoder(replace(SPEC, windows=SPEC.windows * 3, mean=SPEC.mean * 3, std=SPEC.std * 3)).eval()
    state = colour.state_dict()
    gray = PENetEncoder(SPEC).eval()
    gray.load_state_dict(state | {"in_conv.0.weight": state["in_conv.0.weight"].sum(1, keepdim=True)})
    hu = torch.randint(-1000, 1000, (1, 1, 8, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    windowed = (hu.float().clamp(-100, 900) + 100) / 1000 - 0.15897
    with torch.inference_mode():
        torch.testing.assert_close(gray.prepare(hu), windowed, rtol=0, atol=1e-6)
        torch.testing.assert_close(gray(hu), colour.pool(windowed.repeat(1, 3, 1, 1, 1)), rtol=1e-4, atol=1e-5)


def test_dropped_blocks_leave_the_shortcut():
    encoder = PENetEncoder(SPEC, drop_path_rate=0.5)
    rates = [block.drop_rate for stage in encoder.encoders for block in stage.penet_blocks]
    assert rates == pytest.approx([0.5 * i / 16 for i in range(16)])
    block = encoder.encoders[3].penet_blocks[2]
    block.drop_rate = 1.0
    x = torch.randn(1, 2048, 1, 2, 2)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)
