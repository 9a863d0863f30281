"""Video Swin files in the names of each project, and 2D Swin files that are inflated."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from voco.encoders import create_encoder, swin3d, with_windows
from voco.errors import InputError
from voco.weights.load import load_weights
from voco.weights.recognise import recognise
from voco.weights.sources import find_source

WINDOWS = [(-1000, 500), (-100, 900), (-175, 250)]
BLOCKS, HEADS = (2, 2, 2, 2), (1, 2, 4, 8)
TABLE = "features.4.1.attn.relative_position_bias_table"


def random_like(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}


def build(**arguments):
    """swin3d_t at a quarter of its width, with two blocks in each stage, under its name."""
    encoder = swin3d.Swin3DEncoder(with_windows(swin3d.SPEC, WINDOWS), 24, BLOCKS, HEADS, **arguments).eval()
    encoder.name = "swin3d_t"
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return build()


@pytest.fixture(scope="module")
def weights(encoder):
    return random_like({key: value.shape for key, value in encoder.state_dict().items()})


def authors_name(key):
    """torchvision's names as the authors' code has them."""
    if found := re.match(r"features\.([0246])\.(.*)", key):
        key = f"layers.{int(found[1]) // 2}.blocks.{found[2]}"
    elif found := re.match(r"features\.([135])\.(.*)", key):
        key = f"layers.{int(found[1]) // 2}.downsample.{found[2]}"
    return key.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")


def video_swin(state):
    state = {f"backbone.{authors_name(key)}": value for key, value in state.items()}
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(392, 392, dtype=torch.long)
    return {"state_dict": state | {"cls_head.fc_cls.weight": torch.zeros(400, 192)}, "meta": {}}


def mmaction(state):
    content = video_swin(state)
    content["state_dict"] = {
        key.replace("backbone.norm.", "backbone.norm3."): v for key, v in content["state_dict"].items()
    }
    return content


def zeroed(encoder):
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    return encoder


@pytest.mark.parametrize("project", [video_swin, mmaction])
def test_other_projects_files_load_whole(project, encoder, weights, tmp_path):
    torch.save(project(weights), tmp_path / "file.pth")
    report = load_weights(zeroed(encoder), tmp_path / "file.pth")
    assert report.format == "Video Swin / MMAction2"
    assert (report.coverage, report.adapted, report.missing, report.unexpected) == (1.0, {}, (), ())
    assert Counter(report.dropped.values()) == {"classifier": 1, "index table": 1}
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_files_are_recognised(tmp_path):
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in create_encoder("swin3d_t", window=WINDOWS).state_dict().items()}
    file = video_swin({key: torch.rand(shape) for key, shape in shapes.items()})
    torch.save(file, tmp_path / "file.pth")
    assert recognise(tmp_path / "file.pth")[0].arch == "swin3d_t"


def images_net(kind):
    """A 2D network and the names that its file has; timm moves the merging, Microsoft's own code has it where we do."""
    torch.manual_seed(3)
    if kind == "torchvision":
        net = pytest.importorskip("torchvision.models.swin_transformer")
        net = net.SwinTransformer([4, 4], 24, list(BLOCKS), list(HEADS), [7, 7])
        head = "head"
    else:
        net = pytest.importorskip("timm").models.SwinTransformer(embed_dim=24, depths=BLOCKS, num_heads=HEADS)
        head = "head.fc"
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias_table"):
                parameter.normal_()
    state = net.state_dict()
    net.set_submodule(head, torch.nn.Identity())
    if kind == "microsoft":
        state = {
            re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
            for key, value in state.items()
        }
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
        state = {"model": state}
    return net.eval(), state


FORMATS = {"torchvision": "torchvision Swin (2D)", "timm": "timm Swin (2D)", "microsoft": "Swin (2D)"}


@pytest.mark.parametrize("kind", FORMATS)
def test_inflated_net_on_a_constant_depth_volume_equals_the_2d_net(kind, encoder, tmp_path):
    """Every key stands as many times as there are depths, with the same bias, so attention is that of one image."""
    net, state = images_net(kind)
    torch.save(state, tmp_path / "swin.pth")
    report = load_weights(zeroed(encoder), tmp_path / "swin.pth")
    assert report.format == FORMATS[kind]
    assert (report.coverage, report.missing, report.unexpected) == (1.0, (), ())
    rules = Counter(report.adapted.values())
    assert rules == {"2D relative bias repeated over depth": 8, "2D kernel repeated over depth 2 / 2": 1}
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = encoder.pool(image[:, :, None].expand(-1, -1, 4, -1, -1))
        torch.testing.assert_close(ours, net(image), rtol=1e-5, atol=1e-5)


def test_2d_tables_of_larger_windows_are_resized(encoder, weights, tmp_path):
    state = {authors_name(key): value for key, value in weights.items()}
    state |= {key: value[: 23 * 23] for key, value in state.items() if key.endswith("bias_table")}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
    torch.save({"model": state}, tmp_path / "swin_window12_384.pth")
    report = load_weights(zeroed(encoder), tmp_path / "swin_window12_384.pth")
    assert report.adapted[TABLE] == "2D relative bias bicubic, repeated over depth"
    table = encoder.state_dict()[TABLE].reshape(15, 13, 13, 4)
    assert torch.equal(table[0], table[14])
    plane = weights[TABLE][:529].t().reshape(1, 4, 23, 23)
    expected = torch.nn.functional.interpolate(plane, size=(13, 13), mode="bicubic")[0].permute(1, 2, 0)
    torch.testing.assert_close(table[7], expected)


def test_tables_of_another_3d_window(encoder, weights, tmp_path):
    """SSv2 weights attend over 16 tokens of depth: taken as they are by an encoder that does too, else resized."""
    large = {
        key: torch.randn(31 * 169, value.shape[1], generator=torch.Generator().manual_seed(1))
        if key.endswith("bias_table")
        else value
        for key, value in weights.items()
    }
    torch.save(video_swin(large), tmp_path / "window1677.pth")
    report = load_weights(zeroed(encoder), tmp_path / "window1677.pth")
    assert Counter(report.adapted.values()) == {"relative bias trilinear": 8}
    volume = large[TABLE].t().reshape(1, 4, 31, 13, 13)
    expected = torch.nn.functional.interpolate(volume, size=(15, 13, 13), mode="trilinear").reshape(4, -1).t()
    torch.testing.assert_close(encoder.state_dict()[TABLE], expected)

    arguments = dict(find_source("swin3d_b", "ssv2_video_swin").arguments)
    same = build(**arguments)
    assert load_weights(same, tmp_path / "window1677.pth").adapted == {}
    assert torch.equal(same.state_dict()[TABLE], large[TABLE])


@pytest.mark.parametrize("damage", ["heads", "rows", "stage"])
def test_what_does_not_fit_loads_nothing(damage, encoder, weights, tmp_path):
    state = dict(weights)
    if damage == "heads":
        state[TABLE] = state[TABLE][:, :2]
    elif damage == "rows":
        state[TABLE] = state[TABLE][:2500]
    else:
        state = {key: value for key, value in state.items() if not key.startswith("features.4.1.norm2.")}
    torch.save(state, tmp_path / "file.pth")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(InputError, match=r"another shape" if damage != "stage" else r"are needed|missing"):
        load_weights(encoder, tmp_path / "file.pth")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
