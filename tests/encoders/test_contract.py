"""What every registered encoder promises. Names up to 100 M parameters run for real, larger ones on the meta device."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pickle
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from voco.encoders import InputSpec, create_encoder, list_encoders
from voco.encoders.base import ENCODERS, Encoder
from voco.errors import InputError

# More parameters than this only run on the meta device, unless the slow tests are asked for.
MOST_PARAMETERS = 100e6


def hu_volume(size, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1100, 1200, (batch, 1, *size), generator=generator, dtype=torch.int16)


@functools.cache
def on_meta(name):
    with torch.device("meta"):
        return create_encoder(name)


# Of the many under a prefix: BatchNorm and a wide last layer, sizes in multiples, tokens.
UNDER_PREFIXES = ["slices/efficientnet_b0", "slices/vgg11", "slices/vit_tiny_patch16_224"]
SIZES = {name: sum(p.numel() for p in on_meta(name).parameters()) for name in [*list_encoders(), *UNDER_PREFIXES]}
WIDE = sorted(name for name in SIZES if SIZES[name] > MOST_PARAMETERS)
NARROW = [name for name in SIZES if name not in WIDE]
# swinunetr_t runs everything with the same code in a fraction of the time; swinvit_b does so without v2; resnet3d_18 is
# of the class of the inflated ResNets.
SLOW_TWINS = sorted(n for n in NARROW if n.startswith(("swinunetr", "i3resnet")) and n != "swinunetr_t")
WHOLE = [name for name in NARROW if name not in SLOW_TWINS]
SMALLEST_OF_FAMILY = {
    min((name for name in WHOLE if ENCODERS[name].family == family), key=SIZES.get)
    for family in {ENCODERS[name].family for name in WHOLE}
}


@pytest.fixture(scope="module", params=WHOLE)
def encoder(request):
    """Each encoder in turn; pytest runs all tests of one before it builds the next."""
    torch.manual_seed(0)
    return create_encoder(request.param)


@pytest.fixture(scope="module")
def trained_pass(encoder):
    """One training-mode forward and backward at the smallest size, without checkpointing; kept for comparison."""
    return forward_backward(encoder)


def forward_backward(encoder):
    # Two volumes where BatchNorm would otherwise see a single value per channel.
    batch = 2 if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in encoder.modules()) else 1
    encoder = copy.deepcopy(encoder).train()
    torch.manual_seed(1)  # dropout and stochastic depth
    x = encoder.prepare(hu_volume(encoder.input_spec.min_size, batch))
    pooled = encoder.pooled_pyramid(x)
    if has_pool_of_its_own(encoder):
        pooled = torch.cat([pooled, encoder.pool(x)], 1)
    weights = torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape)
    (pooled * weights).sum().backward()
    statistics = {k: v.clone() for k, v in encoder.named_buffers()}
    return pooled.detach(), {k: p.grad for k, p in encoder.named_parameters()}, statistics


def has_pool_of_its_own(encoder):
    """Where it has not, its features are averages of the maps, as another test compares."""
    return encoder.pooling not in ("pyramid", "deepest")


@contextmanager
def evaluating(encoder):
    try:
        yield encoder.eval()
    finally:
        encoder.train()


def skip_twins(encoder):
    if encoder.name not in SMALLEST_OF_FAMILY:
        pytest.skip("a smaller sister of its family is tried, which shares its code")


def test_every_parameter_gets_a_gradient_at_the_smallest_size(encoder, trained_pass):
    pooled, gradients, _ = trained_pass
    assert pooled.shape[1] == encoder.pyramid_features + has_pool_of_its_own(encoder) * encoder.num_features
    without = [key for key, g in gradients.items() if g is None or not torch.isfinite(g).all() or not g.abs().max() > 0]
    assert not without


@pytest.mark.parametrize("name", WIDE)
def test_wide_encoders_on_the_meta_device(name):
    with torch.device("meta"):
        encoder = create_encoder(name)
        pooled = encoder(torch.zeros(1, 1, *encoder.input_spec.min_size, dtype=torch.int16))
        pooled.sum().backward()
    assert pooled.shape == (1, encoder.num_features)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in encoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_wide_encoders_at_full_size(name):
    pooled, gradients, _ = forward_backward(create_encoder(name))
    assert torch.isfinite(pooled).all()
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if SIZES[n] > 4e7 else n for n in SLOW_TWINS])
def test_slow_twins_run_forward_and_backward(name):
    encoder = create_encoder(name)
    pooled = encoder(hu_volume(encoder.input_spec.min_size))
    pooled.sum().backward()
    assert pooled.shape == (1, encoder.num_features)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_checkpointing_changes_nothing(encoder, trained_pass):
    skip_twins(encoder)
    pooled, gradients, statistics = trained_pass
    twin = copy.deepcopy(encoder)
    twin.set_grad_checkpointing(True)
    again, again_gradients, again_statistics = forward_backward(twin)
    torch.testing.assert_close(again, pooled)
    for key, gradient in gradients.items():
        torch.testing.assert_close(again_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)
    for key, value in statistics.items():  # BatchNorm must have counted the batch once, not twice
        torch.testing.assert_close(again_statistics[key], value, msg=key)
    twin.set_grad_checkpointing(False)
    assert not twin.grad_checkpointing
    assert not any(getattr(m, "use_checkpoint", False) for m in twin.modules())


def test_maps_are_canonical_and_volumes_independent(encoder):
    """A dense blob at the foot, at the back, on the right (low D, high H, low W) changes that corner of each map."""
    with evaluating(encoder), torch.inference_mode():
        check_maps(encoder)


def check_maps(encoder):
    d, h, w = encoder.input_spec.min_size
    deep = 8 * encoder.feature_info[0]["reduction"][0]
    size = (max(d, deep), h, w + max(16, encoder.input_spec.size_multiple[2]))
    hu = hu_volume(size, batch=2, seed=1)
    hu[1] = hu[0]
    hu[1, :, : size[0] // 4, -(h // 4) :, : size[2] // 6] = 1500
    x = encoder.prepare(hu)
    maps, pooled, sequence = encoder.pyramid(x), encoder.pool(x[1:]), encoder.sequence(x[1:])
    assert len(maps) == len(encoder.feature_info)
    padded = tuple(-(-n // multiple) * multiple for n, multiple in zip(size, encoder.input_spec.size_multiple))
    for number, (m, info) in enumerate(zip(maps, encoder.feature_info)):
        expected = tuple(-(-n // stride) for n, stride in zip(padded, info["reduction"]))
        assert m.shape == (2, info["num_chs"], *expected)
        encoder.get_submodule(info["module"])
        if number == 0 or min(m.shape[2:]) >= 8:  # in smaller maps every position sees the whole volume
            change = (m[1] - m[0]).abs().sum(0)
            place = [int(i) for i in torch.unravel_index(change.argmax(), change.shape)]
            low = [position < length / 2 for position, length in zip(place, change.shape)]
            assert low == [True, False, True], (info["module"], place, tuple(change.shape))

    # One volume alone gives what it gave in the batch, and pooled, unpooled and sequence agree.
    averages = [m[1:].mean((2, 3, 4)) for m in maps]
    assert pooled.shape == (1, encoder.num_features)
    if not has_pool_of_its_own(encoder):
        expected = torch.cat(averages, 1) if encoder.pooling == "pyramid" else averages[-1]
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4 * max(1, float(expected.abs().max())))
    assert sequence.shape == (1, maps[-1].shape[2], encoder.feature_info[-1]["num_chs"])
    expected = maps[-1][1:].mean((3, 4)).transpose(1, 2)
    torch.testing.assert_close(sequence, expected, rtol=1e-4, atol=1e-4 * max(1, float(expected.abs().max())))


def test_autocast_is_finite(encoder):
    skip_twins(encoder)
    # CPUs emulate float16: one crop of windowed attention takes 15 s.
    for dtype in (torch.bfloat16, *([torch.float16] if encoder.name == "cnn3d_s" else [])):
        with evaluating(encoder), torch.inference_mode(), torch.autocast("cpu", dtype):
            features = encoder(hu_volume(encoder.input_spec.min_size))
        assert torch.isfinite(features).all()
        assert features.dtype == torch.float32


def test_int16_and_float_are_prepared_alike(encoder):
    hu = hu_volume(encoder.input_spec.min_size)
    x = encoder.prepare(hu)
    assert x.dtype == torch.float32
    assert x.shape[1] == encoder.input_spec.channels
    assert torch.equal(x, encoder.prepare(hu.float()))
    assert torch.equal(x, encoder.prepare(hu.double()))


def test_copies_and_pickles(encoder):
    skip_twins(encoder)
    again = pickle.loads(pickle.dumps(encoder))
    assert again.name == encoder.name
    assert again.input_spec == encoder.input_spec
    copied = again.state_dict()
    for key, value in encoder.state_dict().items():
        assert torch.equal(copied[key], value)


def test_wrong_sizes_are_refused_in_words(encoder):
    d, h, w = encoder.input_spec.min_size
    with pytest.raises(InputError, match=rf"at least {d}x{h}x{w} .*found {d}x{h - 1}x{w}"):
        encoder.prepare(hu_volume((d, h - 1, w)))
    with pytest.raises(InputError, match=r"\(B, 1, D, H, W\)"):
        encoder.prepare(torch.zeros(d, h, w))
    with pytest.raises(InputError, match="prepare"):
        encoder.pool(torch.zeros(1, encoder.input_spec.channels + 1, d, h, w))
    if max(encoder.input_spec.size_multiple) > 1:
        with pytest.raises(InputError, match="multiples"):
            encoder.forward_features(torch.zeros(1, encoder.input_spec.channels, d + 1, h + 1, w + 1))


@pytest.mark.parametrize("name", SIZES)
def test_stem_keys_have_the_input_channels(name):
    windows = [(-1000, 500), (-175, 250), (-100, 900)]
    with torch.device("meta"):
        encoder = create_encoder(name, window=windows)
    assert encoder.input_spec.channels == len(encoder.input_spec.mean) == 3
    assert encoder.stem_keys
    assert {encoder.state_dict()[key].shape[1] for key in encoder.stem_keys} == {3}
    assert encoder.family


DEPTH_STRIDED = [name for name in SIZES if "depth_stride" in inspect.signature(ENCODERS[name].build).parameters]


@pytest.mark.parametrize("name", DEPTH_STRIDED)
def test_depth_stride_can_be_one(name):
    """Same tensors, every slice kept, and published weights would still fit."""
    published = on_meta(name)
    with torch.device("meta"):
        dense = create_encoder(name, depth_stride=1)
        size = dense.input_spec.min_size
        size = (max(size[0], published.input_spec.min_size[0]), *size[1:])
        deepest = dense.forward_features(dense.prepare(torch.zeros(1, 1, *size, dtype=torch.int16)))
    assert dense.feature_info[-1]["reduction"][0] == 1
    assert deepest.shape[2] == size[0]
    shapes = {key: value.shape for key, value in published.state_dict().items()}
    assert {key: value.shape for key, value in dense.state_dict().items()} == shapes
    with pytest.raises(InputError, match="depth stride"), torch.device("meta"):
        create_encoder(name, depth_stride=7)


def test_networks_with_depth_strides_can_lose_them():
    strided = {n for n in SIZES if ENCODERS[n].input_spec.axes == "SPL" and reduction(n) > 1}
    assert strided - set(DEPTH_STRIDED) <= {"cnn3d_s", "nnunet_plain", "nnunet_resenc_l"}


def reduction(name):
    return on_meta(name).feature_info[-1]["reduction"][0]


def test_the_page_on_encoders_lists_every_one_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| `\w+`.*\| [\d.]+ M \|", line)]
    expected = []
    for name in list_encoders():
        also = "".join(f" (`{alias}`)" for alias in ENCODERS.aliases(name))
        depth, plane, _ = on_meta(name).feature_info[-1]["reduction"]
        spec = ENCODERS[name].input_spec
        size, smallest = (" x ".join(map(str, values)) for values in (spec.size, spec.min_size))
        numbers = f"{SIZES[name] / 1e6:.2f} M | {on_meta(name).num_features} | {depth}, {plane}"
        expected.append(f"| `{name}`{also} | {numbers} | {size} | {smallest} |")
    assert rows == expected


def test_prepare_by_hand():
    """Windows, mean and std, symmetric air, axis order and flips, against numbers worked out on paper."""
    spec = InputSpec(
        axes="RAS",
        windows=((0.0, 100.0), (-2000.0, 0.0)),
        mean=(0.5, 0.0),
        std=(0.25, 1.0),
        min_size=(1, 1, 1),
        size_multiple=(2, 4, 1),
    )
    encoder = create_encoder("cnn3d_s", input_spec=spec)
    hu = torch.tensor([50, -500, 75], dtype=torch.int16).reshape(1, 1, 1, 1, 3)  # D=1, H=1, W=3 toward the left
    x = encoder.prepare(hu)
    assert x.shape == (1, 2, 3, 4, 2)  # R, A, S
    # Of 1 posterior row, pads are 1 before and 2 after; toward anterior the row is then third of four.
    row = x[0, :, :, 2, 0]
    torch.testing.assert_close(row[0], torch.tensor([1.0, -2.0, 0.0]))  # right to ... reversed: 75, -500, 50
    torch.testing.assert_close(row[1], torch.tensor([1.0, 0.75, 1.0]))
    air = x[0, 1].clone()
    air[:, 2, 0] = 488 / 1000
    torch.testing.assert_close(air, torch.full_like(air, (2000 - 1024) / 2000))


class Unchanged(Encoder):
    """Its only map is its input, so that only the axis trip is left."""

    def __init__(self, axes):
        spec = InputSpec(axes=axes, windows=((0.0, 1.0),), size_multiple=(1, 2, 3))
        super().__init__(spec, [{"num_chs": 1, "reduction": (1, 1, 1), "module": ""}])
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def _maps(self, x):
        return [x]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((0, 1), repeat=3)))
def test_axis_trip_for_all_48_orientations(order, signs):
    encoder = Unchanged("".join(("SI", "PA", "LR")[axis][signs[axis]] for axis in order))
    hu = torch.rand(2, 1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    x = encoder.prepare(hu)
    expected = hu.numpy().transpose(0, 1, *(2 + axis for axis in order))
    for position, axis in enumerate(order):
        if signs[axis]:
            expected = np.flip(expected, 2 + position)
    assert np.array_equal(x.numpy(), expected)
    assert torch.equal(encoder.pyramid(x)[0], hu)
    assert torch.equal(encoder.forward_features(x), hu)


def test_double_precision_encoders_take_hu():
    encoder = create_encoder("cnn3d_s").double().eval()
    assert encoder(hu_volume((16, 16, 16))).dtype == torch.float64


def test_replaced_geometry_is_kept():
    encoder = create_encoder("cnn3d_s")
    encoder.input_spec = replace(encoder.input_spec, spacing_mm=(2.0, 2.0, 2.0))
    assert copy.deepcopy(encoder).input_spec.spacing_mm == (2.0, 2.0, 2.0)


def test_names_tags_and_arguments(monkeypatch):
    assert create_encoder("swin_t").name == "swinunetr_t"
    assert list_encoders("swinunetr_?") == ["swinunetr_b", "swinunetr_h", "swinunetr_l", "swinunetr_t"]
    with pytest.raises(InputError, match=r"did you mean"):
        create_encoder("swin_bb")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"VoCo_B_SSL_head.pt.*f80c4da2f81d700bdae3df188f2057eb"):
        create_encoder("swin_b.voco_ssl")
    with pytest.raises(InputError, match=r"known for swinunetr_l: voco_ssl"):
        create_encoder("swin_l.voco")
    with pytest.raises(InputError, match=r"none is known for cnn3d_s"):
        create_encoder("cnn3d_s.kinetics400")
    with pytest.raises(InputError, match=r"drop_path_rate"):
        create_encoder("swin_t", depth=3)
    with pytest.raises(InputError, match="window"):
        create_encoder("cnn3d_s", window=(1, 2, 3))


def test_import_builds_nothing():
    """Only building an encoder may cost the import of what it is built from."""
    code = (
        "import sys, voco.encoders, voco.weights.load, voco.weights.sources\n"
        "print([m for m in ('monai', 'torchvision', 'timm', 'huggingface_hub') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_batch_statistics_are_exact_over_many_voxels():
    encoder = create_encoder("cnn3d_s").train()
    x = torch.rand(44, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.5
    with torch.no_grad():
        single, double = encoder.pyramid(x), copy.deepcopy(encoder).double().pyramid(x.double())
    for a, b in zip(single, double):
        assert (a - b).norm() / b.norm() < 5e-6
