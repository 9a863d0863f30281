"""Slice encoders: the same numbers as timm's own networks, whatever the chunks, with memory of a chunk."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

import voco
from voco.encoders import create_encoder, list_encoders
from voco.encoders.base import ENCODERS
from voco.encoders.timm_nets import look_at
from voco.errors import InputError

timm = pytest.importorskip("timm")
from timm.layers import DropPath  # noqa: E402


def hu_volume(*size, seed=0):
    return torch.randint(-1100, 1200, size, generator=torch.Generator().manual_seed(seed), dtype=torch.int16)


def pair(model, **arguments):
    """Our encoder and timm's own network with the same weights, the head still there, in float64."""
    torch.manual_seed(0)
    net = timm.create_model(model, in_chans=1, num_classes=7, **arguments)
    for parameter in net.parameters():  # BatchNorm at 0 and 1 would hide what is left out
        parameter.data += 0.05 * torch.randn_like(parameter)
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer += torch.rand_like(buffer)
    encoder = create_encoder(f"slices/{model}")
    lost = encoder.net.load_state_dict(net.state_dict(), strict=False)
    assert not lost.missing_keys
    return encoder.double().eval(), net.double().eval()


def slices_of(x):
    return x.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(
    ("model", "last"),
    [("resnet10t", "NCHW"), ("efficientnet_b0", "NCHW"), ("mambaout_femto", "NHWC")],
)
def test_maps_and_vectors_are_those_of_timm(model, last):
    encoder, net = pair(model)
    x = encoder.prepare(hu_volume(2, 1, 2, 64, 64))
    with torch.inference_mode():
        expected = net.forward_features(slices_of(x))
        if last == "NHWC":
            expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(
            encoder.forward_features(x).transpose(1, 2).flatten(0, 1), expected, rtol=1e-10, atol=1e-10
        )
        vectors = expected.mean((2, 3)).unflatten(0, (2, 2))
        torch.testing.assert_close(encoder.sequence(x), vectors, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(encoder.pool(x), vectors.mean(1), rtol=1e-10, atol=1e-10)
        if last == "NCHW":
            features = timm.create_model(model, in_chans=1, features_only=True).double().eval()
            features.load_state_dict(net.state_dict(), strict=False)
            for ours, theirs in list(zip(encoder.pyramid(x), features(slices_of(x))))[:-1]:
                torch.testing.assert_close(ours.transpose(1, 2).flatten(0, 1), theirs, rtol=1e-10, atol=1e-10)


def test_tokens_become_the_map_of_their_patches():
    encoder, net = pair("vit_tiny_patch16_224", dynamic_img_size=True)
    x = encoder.prepare(hu_volume(1, 1, 2, 48, 64))
    with torch.inference_mode():
        tokens = net.forward_features(slices_of(x))
        ours = encoder.forward_features(x)
    assert ours.shape == (1, 192, 2, 3, 4)
    for row in range(3):
        for column in range(4):  # one class token, then the patches row by row
            torch.testing.assert_close(ours[0, :, :, row, column].T, tokens[:, 1 + 4 * row + column])


def test_each_slice_is_seen_alone():
    encoder = create_encoder("slices/efficientnet_b0").eval()
    hu = hu_volume(1, 1, 5, 32, 32)
    changed = hu.clone()
    changed[:, :, 3] = 100
    with torch.inference_mode():
        before, after = encoder.sequence(encoder.prepare(hu)), encoder.sequence(encoder.prepare(changed))
    moved = (before - after).abs().amax(2)[0] > 0
    assert moved.tolist() == [False, False, False, True, False]


def forward_backward(encoder, hu):
    encoder = copy.deepcopy(encoder).train()
    x = encoder.prepare(hu)
    out = torch.cat([encoder.pooled_pyramid(x), encoder.sequence(x).flatten(1)], 1)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach(), {k: p.grad for k, p in encoder.named_parameters()}, dict(encoder.named_buffers())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_chunks_change_nothing_in_training(checkpointed):
    """Frozen statistics, over chunks that do and do not divide the number of slices, against all slices at once."""
    whole, _ = pair("resnet10t")
    hu = hu_volume(2, 1, 5, 32, 32)
    one, gradients, statistics = forward_backward(create_like(whole, chunk=10), hu)
    for chunk in (3, 4):
        encoder = create_like(whole, chunk=chunk)
        encoder.set_grad_checkpointing(checkpointed)
        again, again_gradients, again_statistics = forward_backward(encoder, hu)
        torch.testing.assert_close(again, one, rtol=1e-10, atol=1e-12)
        for key, gradient in gradients.items():
            assert gradient is not None
            torch.testing.assert_close(again_gradients[key], gradient, rtol=1e-8, atol=1e-10, msg=key)
        for key, value in whole.named_buffers():
            assert torch.equal(again_statistics[key], value)
            assert torch.equal(statistics[key], value)


def create_like(encoder, **arguments):
    other = create_encoder(encoder.name, **arguments).double()
    other.load_state_dict(encoder.state_dict())
    return other


def test_batch_statistics_are_those_of_all_slices():
    encoder, net = pair("resnet10t")
    x = encoder.prepare(hu_volume(2, 1, 3, 32, 32))
    encoder.train()
    net.train()
    with torch.no_grad():
        vectors = encoder.sequence(x)
        expected = net.forward_features(slices_of(x)).mean((2, 3))
    torch.testing.assert_close(vectors.flatten(0, 1), expected, rtol=1e-10, atol=1e-10)
    theirs = dict(net.named_buffers())
    for key, value in encoder.net.named_buffers():
        torch.testing.assert_close(value, theirs[key])


def test_batch_statistics_refuse_chunks_in_training_only():
    encoder = create_encoder("slices/resnet10t", norm="batch", chunk=2).eval()
    x = encoder.prepare(hu_volume(1, 1, 3, 32, 32))
    with torch.inference_mode():
        assert encoder.sequence(x).shape == (1, 3, 512)
    with pytest.raises(InputError, match=r"all 3 slices .* chunks of 2 .*norm='frozen'"):
        encoder.train().sequence(x)


def test_chunk_is_the_number_of_slices_that_run_at_a_time():
    seen = []
    encoder = create_encoder("slices/resnet10t", chunk=4)
    encoder.net.conv1.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    x = encoder.prepare(hu_volume(2, 1, 5, 32, 32))
    with torch.no_grad():
        encoder.sequence(x)
        assert seen == [4, 4, 2]
        seen.clear()
        encoder.chunk = None  # as many as have the pixels of 16 planes of 256 x 256
        encoder.sequence(torch.zeros(1, 1, 600, 32, 64))
    assert seen == [512, 88]


def test_nothing_is_random():
    """timm gives NesT stochastic depth unless told otherwise."""

    def rates(net):
        return {m.drop_prob for m in net.modules() if isinstance(m, DropPath)}

    with torch.device("meta"):
        assert max(rates(timm.create_model("nest_tiny"))) == 0.5
        assert rates(create_encoder("slices/nest_tiny")) == {0}


@pytest.mark.parametrize(
    ("model", "width"), [("efficientnet_b0", 5120), ("efficientnetv2_rw_t", 4096), ("efficientnetv2_rw_s", 7168)]
)
def test_flattened_widths_of_2d_voco(model, width):
    with torch.device("meta"):
        encoder = create_encoder(f"slices/{model}", pool="flatten")
        x = torch.zeros(2, 1, 3, 64, 64)
        assert encoder.sequence(x).shape == (2, 3, width)
        assert encoder.pool(x).shape == (2, width)
    assert encoder.num_features == width


@pytest.mark.parametrize(
    ("model", "parameters"),
    # Whole networks with 1000 classes and 3 colours, from the papers and torchvision, less classifier and colours.
    [
        ("resnet18", 11_689_512 - 513_000 - 2 * 64 * 49),
        ("vgg16", 14_714_688 - 2 * 64 * 9),
        ("resnext101_32x8d", 88_791_336 - 2_049_000 - 2 * 64 * 49),
        ("efficientnet_b0", 5_288_548 - 1_281_000 - 2 * 32 * 9),
    ],
)
def test_parameters_without_the_head(model, parameters):
    with torch.device("meta"):
        encoder = create_encoder(f"slices/{model}")
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_flattening_is_the_map_and_needs_its_plane():
    encoder = create_encoder("slices/resnet10t", pool="flatten", plane=[64, 96]).eval()
    x = encoder.prepare(hu_volume(1, 1, 2, 64, 96))
    with torch.inference_mode():
        expected = encoder.forward_features(x).transpose(1, 2).flatten(2)
        assert torch.equal(encoder.sequence(x), expected)
        torch.testing.assert_close(encoder.pool(x), expected.mean(1))
    assert encoder.num_features == encoder.pool(x).shape[1] == 512 * 2 * 3
    with pytest.raises(InputError, match=r"64x96 \(flattened maps .* 128x96"):
        encoder.pool(encoder.prepare(hu_volume(1, 1, 2, 128, 96)))
    with pytest.raises(InputError, match=r"30x64 cannot be flattened"):
        create_encoder("slices/resnet10t", pool="flatten", plane=(30, 64))


def test_networks_of_one_size_say_so():
    encoder = create_encoder("slices/visformer_tiny", plane=(96, 96))
    assert encoder.input_spec.min_size == (1, 96, 96)
    assert encoder.sequence(encoder.prepare(hu_volume(1, 1, 2, 96, 96))).shape == (1, 2, encoder.num_features)
    with pytest.raises(InputError, match=r"96x96 \(the network takes one size\), found 96x128"):
        encoder.pool(torch.zeros(1, 1, 2, 96, 128))


def test_input_follows_timms_record():
    spec = create_encoder("slices/resnet10t").input_spec
    assert (spec.windows, spec.size, spec.channels) == (((-175.0, 250.0),), (32, 176, 176), 1)
    three = create_encoder("slices/resnet10t", window=[(-1350, 150), (-100, 900), (-160, 240)])
    assert three.input_spec.mean == (0.485, 0.456, 0.406)
    assert three.input_spec.std == (0.229, 0.224, 0.225)
    assert three.net.conv1[0].weight.shape[1] == 3


def test_names_are_timms():
    assert "slices/resnet18" in ENCODERS
    assert "slices/resnet18" not in list_encoders()
    assert {"slices/resnet18", "slices/resnet18d"} <= set(list_encoders("slices/resnet18*"))
    assert len(list_encoders("slices/*")) == len(timm.list_models())
    with pytest.raises(InputError, match=r"no model 'resnett18'; did you mean .*slices/resnet18"):
        create_encoder("slices/resnett18")
    with pytest.raises(InputError, match="slices/NAME"):
        create_encoder("nothing_of_the_kind")
    with pytest.raises(InputError, match=r"takes no argument \['depth'\]"):
        create_encoder("slices/resnet10t", depth=3)
    for wrong in ({"pool": "max"}, {"norm": "group"}, {"chunk": 0}, {"plane": 64}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            create_encoder("slices/resnet10t", **wrong)


def test_networks_without_maps_are_refused():
    with pytest.raises(InputError, match=r"crossvit_9_240 gives no map"):
        create_encoder("slices/crossvit_9_240")
    with pytest.raises(InputError, match=r"stem of timm's tresnet_m .*rearranges pixels"):
        create_encoder("slices/tresnet_m")


def test_a_look_does_not_move_the_random_numbers():
    """The first encoder of a kind is looked at, the second is not; a seed gives both the same weights."""
    look_at.cache_clear()
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(create_encoder("slices/resnet10t").state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_exported_folders_are_the_same_encoder(tmp_path):
    from voco.weights.export import save_encoder

    encoder = create_encoder("slices/resnet10t", pool="flatten", plane=(32, 64), chunk=3, window=(-1000, 400)).eval()
    save_encoder(encoder, tmp_path, {"method": "voco2d"})
    again = voco.load_encoder(tmp_path)
    hu = hu_volume(1, 1, 4, 32, 64)
    with torch.inference_mode():
        assert torch.equal(again(hu), encoder(hu))
    assert (again.name, again.chunk, again.norm) == ("slices/resnet10t", 3, "frozen")
    assert again.input_spec == encoder.input_spec
    assert again.provenance == [{"method": "voco2d"}]


MEMORY = """
import sys, torch
from voco.encoders import create_encoder
from voco.engine.cost import peak_memory_bytes
torch.set_num_threads(1)
encoder = create_encoder("slices/mobilenetv3_small_050", chunk=8).train()
head = torch.nn.Linear(encoder.num_features, 3)
peak = lambda: peak_memory_bytes(torch.device("cpu")) / 2**30
before = peak()
encoder.set_grad_checkpointing(sys.argv[1] == "checkpointed")
encoder.requires_grad_(sys.argv[1] == "checkpointed")
hu = torch.zeros(1, 1, 96, 256, 256, dtype=torch.int16)
head(encoder.sequence(encoder.prepare(hu))).sum().backward()
assert head.weight.grad is not None
print(before, peak())
"""


@pytest.mark.parametrize("how", ["frozen", pytest.param("checkpointed", marks=pytest.mark.slow)])
def test_memory_is_that_of_a_chunk(how):
    """96 slices of 256 x 256, forward and backward; 1.45 GB are added if all activations of this small network stay."""
    result = subprocess.run([sys.executable, "-c", MEMORY, how], capture_output=True, text=True, check=True)
    before, peak = (float(gigabytes) for gigabytes in result.stdout.split())
    assert peak < 2
    assert peak - before < 0.4
