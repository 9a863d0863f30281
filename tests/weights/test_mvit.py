"""MViT files in the names of each project, of other clips, and of the image network."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from voco.encoders import with_windows
from voco.encoders.mvit import SPEC, MViTEncoder
from voco.errors import InputError
from voco.weights.load import load_weights

WINDOWS = [(-1000, 500), (-100, 900), (-175, 250)]
FOREIGN_POSITIONS = {
    "class_token": "cls_token",
    "spatial_pos": "pos_embed_spatial",
    "temporal_pos": "pos_embed_temporal",
    "class_pos": "pos_embed_class",
}
REPEATED = "blocks.0.attn._attention_pool_k.pool.weight"


def build(name, channels=3, **arguments):
    """A quarter of the published width, under its name."""
    spec = with_windows(SPEC, WINDOWS[:channels]) if channels > 1 else SPEC
    encoder = MViTEncoder(spec, 1 if name == "mvit_v1_b" else 2, 16, width=24, **arguments).eval()
    encoder.name = name
    return encoder


@pytest.fixture(scope="module")
def encoders():
    return {name: build(name) for name in ("mvit_v1_b", "mvit_v2_s")}


@pytest.fixture(scope="module")
def weights(encoders):
    generator = torch.Generator().manual_seed(0)
    return {
        name: {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in encoder.state_dict().items()}
        for name, encoder in encoders.items()
    }


def slowfast(state, patch="patch_embed.proj", norm="norm", head="head.projection"):
    """torchvision's names as the SlowFast repository has them; its tables have leading dimensions of one."""
    foreign = {f"{head}.weight": torch.zeros(400, 192)}
    for key, value in state.items():
        if key.startswith("pos_encoding."):
            key, value = FOREIGN_POSITIONS[key.removeprefix("pos_encoding.")], value.reshape(1, -1, 24)
        key = re.sub(r"^conv_proj", patch, re.sub(r"^norm\.", f"{norm}.", key))
        key = (
            key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.").replace("attn.project.0.", "attn.proj.")
        )
        key = re.sub(r"^(blocks\.\d+\.)project\.", r"\1proj.", key)
        key = re.sub(r"pool_([qkv])\.norm_act\.0\.", r"norm_\1.", re.sub(r"(pool_[qkv])\.pool\.", r"\1.", key))
        foreign[key] = value
    return foreign


def pytorchvideo(state):
    """As SlowFast's, with three layers for query, key and value, and names repeated."""
    foreign = {REPEATED: torch.zeros(24, 1, 3, 3, 3)}
    for key, value in slowfast(state, "patch_embed.patch_model", "norm_embed", "head.proj").items():
        if key in FOREIGN_POSITIONS.values():
            foreign[f"cls_positional_encoding.{key}"] = value
        elif ".qkv." in key:
            for letter, rows in zip("qkv", value.chunk(3)):
                foreign[key.replace(".qkv.", f".{letter}.")] = rows
        else:
            foreign[key] = value
    return foreign


def mmaction(state):
    foreign = slowfast(state, "patch_embed.projection", "norm3", "cls_head.fc_cls")
    return {key if key.startswith("cls_head") else f"backbone.{key}": value for key, value in foreign.items()}


FILES = {
    "pytorchvideo": ("mvit_v1_b", lambda s: {"model_state": pytorchvideo(s)}, 2),
    "SlowFast": ("mvit_v1_b", lambda s: {"model_state": slowfast(s), "epoch": 1, "cfg": ""}, 1),
    "SlowFast v2": ("mvit_v2_s", lambda s: {"model_state": slowfast(s), "epoch": 1, "cfg": ""}, 1),
    "MMAction2": ("mvit_v2_s", lambda s: {"state_dict": mmaction(s), "meta": {}}, 1),
}


@pytest.mark.parametrize("kind", FILES)
def test_other_projects_files_load_whole(kind, encoders, weights, tmp_path):
    name, content, dropped = FILES[kind]
    torch.save(content(weights[name]), tmp_path / "file.pyth")
    encoder = encoders[name]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    report = load_weights(encoder, tmp_path / "file.pyth")
    assert report.format == kind.removesuffix(" v2")
    assert (report.coverage, report.adapted, report.missing, report.unexpected) == (1.0, {}, (), ())
    assert len(report.dropped) == dropped
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, weights[name][key]), key


def test_positions_of_longer_clips_and_larger_crops(encoders, weights, tmp_path):
    state, generator = dict(weights["mvit_v1_b"]), torch.Generator().manual_seed(1)
    state["pos_encoding.temporal_pos"] = torch.randn(16, 24, generator=generator)
    state["pos_encoding.spatial_pos"] = torch.randn(64 * 64, 24, generator=generator)
    torch.save({"model_state": pytorchvideo(state)}, tmp_path / "file.pyth")
    report = load_weights(encoders["mvit_v1_b"], tmp_path / "file.pyth")
    assert report.adapted == {
        "pos_encoding.temporal_pos": "positions linear from 16 to 8",
        "pos_encoding.spatial_pos": "positions bicubic from 64x64 to 56x56",
    }
    loaded = encoders["mvit_v1_b"].state_dict()
    # Half as many positions lie between two of the old ones.
    pairs = state["pos_encoding.temporal_pos"].reshape(8, 2, 24).mean(1)
    torch.testing.assert_close(loaded["pos_encoding.temporal_pos"], pairs)
    plane = state["pos_encoding.spatial_pos"].t().reshape(1, 24, 64, 64)
    expected = F.interpolate(plane, size=(56, 56), mode="bicubic").reshape(24, -1).t()
    torch.testing.assert_close(loaded["pos_encoding.spatial_pos"], expected)


def test_relative_positions_of_longer_clips(encoders, weights, tmp_path):
    state = dict(weights["mvit_v2_s"])
    key = "blocks.3.attn.rel_pos_t"
    state[key] = torch.arange(31.0)[:, None].expand(-1, 24).clone()
    torch.save(state, tmp_path / "file.pth")
    report = load_weights(encoders["mvit_v2_s"], tmp_path / "file.pth")
    assert report.adapted == {key: "positions linear from 31 to 15"}
    expected = (torch.arange(15.0) + 0.5) * 31 / 15 - 0.5
    torch.testing.assert_close(encoders["mvit_v2_s"].state_dict()[key][:, 0], expected)


@pytest.fixture(scope="module")
def image_file(weights, tmp_path_factory):
    """The image network's file: a 2D patch embedding, pooling kernels of depth one, one position in time."""
    state = dict(weights["mvit_v1_b"])
    for key, value in state.items():
        if key.endswith(".pool.weight"):
            state[key] = value[:, :, :1]
    state["conv_proj.weight"] = state["conv_proj.weight"][:, :, 0]
    state["pos_encoding.temporal_pos"] = state["pos_encoding.temporal_pos"][:1]
    path = tmp_path_factory.mktemp("mvit") / "MVIT_B_16_f292487636.pyth"
    foreign = pytorchvideo(state)
    foreign[REPEATED] = foreign[REPEATED][:, :, :1]
    torch.save({"model_state": foreign}, path)
    return path, state


def test_the_inflated_image_network_sees_every_slice_as_the_image(image_file):
    """On a volume that is constant in depth, borders included, up to and in the pooling of the first attention.

    The whole network is the image's only where one depth position is left: with several, the patches of an image stand
    several times among the keys and the class token, which looks at them, once.
    """
    path, state = image_file
    encoder = build("mvit_v1_b", kv_stride=4)
    rules = Counter(load_weights(encoder, path).adapted.values())
    assert rules == {"2D kernel as the centre of depth 3": 36, "positions linear from 1 to 8": 1}
    assert encoder.load_report.coverage == 1.0
    image = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    volume = image[:, :, None].expand(-1, -1, 9, -1, -1)
    with torch.inference_mode():
        flat = F.conv2d(image, state["conv_proj.weight"], state["conv_proj.bias"], stride=4, padding=3)
        patches = encoder.conv_proj(volume)
        torch.testing.assert_close(patches, flat[:, :, None].expand(-1, -1, 5, -1, -1), rtol=1e-5, atol=1e-5)

        tokens = encoder.pos_encoding(patches)[:, 1:].unflatten(1, (5, 16 * 12))
        torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))

        kernel = state["blocks.0.attn.pool_k.pool.weight"]
        flat = F.conv2d(flat, kernel[:, :, 0], stride=4, padding=1, groups=24)
        pooled = encoder.blocks[0].attn.pool_k.pool(patches)
        torch.testing.assert_close(pooled, flat[:, :, None].expand_as(pooled), rtol=1e-5, atol=1e-5)


def test_the_inflated_image_network_takes_one_channel(image_file):
    encoder = build("mvit_v1_b", channels=1, kv_stride=4)
    rule = load_weights(encoder, image_file[0]).adapted["conv_proj.weight"]
    assert rule == "2D kernel as the centre of depth 3; sum of 3 input channels"
    kernel = encoder.state_dict()["conv_proj.weight"]
    torch.testing.assert_close(kernel[:, 0, 1], image_file[1]["conv_proj.weight"].sum(1))
    assert not kernel[:, :, ::2].any()


@pytest.mark.parametrize("damage", ["no_keys", "oblong", "wide"])
def test_what_does_not_fit_loads_nothing(damage, encoders, weights, tmp_path):
    state = pytorchvideo(weights["mvit_v1_b"])
    if damage == "no_keys":
        del state["blocks.7.attn.k.weight"]
    elif damage == "oblong":
        key = "cls_positional_encoding.pos_embed_spatial"
        state[key] = state[key][:, :3000]
    else:
        state["blocks.0.attn.pool_k.weight"] = torch.zeros(24, 3, 3, 3, 3)
    torch.save(state, tmp_path / "file.pyth")
    encoder = encoders["mvit_v1_b"]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(InputError, match=r"are needed|missing" if damage == "no_keys" else "another shape"):
        load_weights(encoder, tmp_path / "file.pyth")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
