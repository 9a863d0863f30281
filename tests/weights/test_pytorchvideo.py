"""Names of other projects for the bottleneck networks and X3D, and what they are worth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.contents import find_tensors
from voco.weights.examine import examine, misfit
from voco.weights.families import find_family
from voco.weights.load import load_weights
from voco.weights.sources import all_sources

NAMES = ("slow_r50", "c2d_r50", "i3d_r50", "r2plus1d_r50", "csn_r101", "slowfast_r50", "slowfast_r101")
CAFFE2 = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def shapes(name, **arguments):
    with torch.device("meta"):
        state = create_encoder(name, **arguments).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def renamed(family, project, keys):
    (found,) = [fmt for fmt in find_family(family).formats if fmt.name == project]
    return [found.rename(key) for key in keys]


def caffe2_keys(blocks, fast=False):
    """All blobs of a Caffe2 file, written down as its project's converter describes them."""
    paths = ("", "t_") if fast else ("",)
    units = [f"{path}{unit}" for path in paths for unit in ("conv1_w", *(f"res_conv1_bn_{s}" for s in CAFFE2.values()))]
    for stage, count in enumerate(blocks, start=2):
        for block in range(count):
            for branch in ("branch1",) * (block == 0) + ("branch2a", "branch2b", "branch2c"):
                for path in paths:
                    stem = f"{path}res{stage}_{block}_{branch}"
                    units += [f"{stem}_w", *(f"{stem}_bn_{s}" for s in CAFFE2.values())]
    if fast:
        for place in ("t_pool1", *(f"t_res{s}_{n - 1}_branch2c_bn" for s, n in zip((2, 3, 4), blocks))):
            units += [f"{place}_subsample_w", *(f"{place}_subsample_bn_{s}" for s in CAFFE2.values())]
    return units


@pytest.mark.parametrize(
    ("name", "family", "blocks"),
    [
        ("slow_r50", "slow", (3, 4, 6, 3)),
        ("c2d_r50", "c2d_i3d", (3, 4, 6, 3)),
        ("slowfast_r50", "slowfast", (3, 4, 6, 3)),
        ("slowfast_r101", "slowfast", (3, 4, 23, 3)),
    ],
)
def test_caffe2_blobs_name_every_tensor_once(name, family, blocks):
    keys = caffe2_keys(blocks, fast=family == "slowfast")
    assert sorted(renamed(family, "SlowFast caffe2", keys)) == sorted(shapes(name))


def test_caffe2_blobs_by_hand():
    names = {
        "conv1_w": "blocks.0.multipathway_blocks.0.conv.weight",
        "t_res_conv1_bn_riv": "blocks.0.multipathway_blocks.1.norm.running_var",
        "t_pool1_subsample_w": "blocks.0.multipathway_fusion.conv_fast_to_slow.weight",
        "t_res4_5_branch2c_bn_subsample_bn_s": "blocks.3.multipathway_fusion.norm.weight",
        "res4_5_branch2c_bn_b": "blocks.3.multipathway_blocks.0.res_blocks.5.branch2.norm_c.bias",
        "t_res2_0_branch1_w": "blocks.1.multipathway_blocks.1.res_blocks.0.branch1_conv.weight",
        "nonlocal_conv3_1_theta_w": "nonlocal_conv3_1_theta_w",
        "res_conv1_bn_subsample_w": "res_conv1_bn_subsample_w",
        "lr": "lr",
    }
    assert renamed("slowfast", "SlowFast caffe2", names) == list(names.values())
    # A network with one pathway has no place for the other one's.
    assert renamed("slow", "SlowFast caffe2", ["t_conv1_w"]) == ["t_conv1_w"]
    assert renamed("c2d_i3d", "SlowFast caffe2", ["res2_0_branch1_w", "res3_0_branch1_w"]) == [
        "blocks.1.res_blocks.0.branch1_conv.weight",
        "blocks.3.res_blocks.0.branch1_conv.weight",
    ]


def residual_keys(prefix, blocks, parts):
    return [f"{prefix}layer{i}.{j}.{p}" for i, n in enumerate(blocks, 1) for j in range(n) for p in parts(i, j)]


def mmaction_keys(prefix="", blocks=(3, 4, 6, 3)):
    norm = ("weight", "bias", "running_mean", "running_var")

    def unit(place):
        return [f"{place}.conv.weight", *(f"{place}.bn.{what}" for what in norm)]

    def parts(_, block):
        return [key for place in ("conv1", "conv2", "conv3", *["downsample"] * (block == 0)) for key in unit(place)]

    return [f"{prefix}{key}" for key in unit("conv1")] + residual_keys(prefix, blocks, parts)


def test_mmaction2_names_every_tensor_once():
    assert sorted(renamed("slow", "MMAction2", mmaction_keys())) == sorted(shapes("slow_r50"))
    keys = mmaction_keys("slow_path.") + mmaction_keys("fast_path.")
    keys += [f"slow_path.{place}_lateral.conv.weight" for place in ("conv1", "layer1", "layer2", "layer3")]
    assert sorted(renamed("slowfast", "MMAction2", keys)) == sorted(shapes("slowfast_r50", fusion_norm=False))


def test_imagenet_names_every_tensor_once():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        state = torchvision.models.resnet50().state_dict()
    keys = [key for key in state if not key.startswith("fc.") and not key.endswith("num_batches_tracked")]
    for name, family in (("slow_r50", "slow"), ("i3d_r50", "c2d_i3d")):
        ours = renamed(family, "ImageNet ResNet (2D)", keys)
        wanted = shapes(name, window=[(0, 1)] * 3)
        assert sorted(ours) == sorted(wanted)
        for key, target in zip(keys, ours):
            shape = wanted[target]
            assert tuple(state[key].shape) == (shape if len(shape) == 1 else (*shape[:2], *shape[3:]))
    # timm's ResNet-50 has the names and shapes of torchvision's.
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        assert {k: v.shape for k, v in timm.create_model("resnet50").state_dict().items()} == {
            k: v.shape for k, v in state.items()
        }


@pytest.fixture(scope="module")
def x3d():
    """A network that normalises its first shortcut by nothing, and the same network without that normalisation."""
    torch.manual_seed(0)
    encoder = create_encoder("x3d_m", window=[(-100, 900)] * 3, shortcut_norm=True).eval()
    state = encoder.state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.ndim == 1 and value.is_floating_point():
            value.normal_(1 if key.endswith("weight") else 0, 0.1)
    place = "blocks.1.res_blocks.0.branch1_normed."
    with torch.no_grad():
        state[place + "1.running_var"].fill_(1 - 1e-5)  # and epsilon make 1
        state[place + "1.weight"].fill_(1)
        state[place + "1.running_mean"].fill_(0)
        state[place + "1.bias"].fill_(0)
    plain = {key: value for key, value in state.items() if not key.startswith(place)}
    plain["blocks.1.res_blocks.0.branch1_conv.weight"] = state[place + "0.weight"]
    return state, plain


def other_names(state, project):
    """Our names of an X3D written as another project's, by plain replacement."""
    names = {}
    for key in state:
        name = re.sub(r"branch1_normed\.0\.", "branch1_conv.", key)
        name = re.sub(r"branch1_normed\.1\.", "branch1_norm.", name)
        name = name.replace("norm_b.0.", "norm_b.").replace("norm_b.1.block.0.", "fc1.")
        name = name.replace("norm_b.1.block.2.", "fc2.")
        if project == "SlowFast":
            name = re.sub(r"blocks\.(\d)\.res_blocks\.", lambda m: f"s{int(m[1]) + 1}.pathway0_res", name)
            name = re.sub(r"branch2\.(conv|norm)_([abc])\.", lambda m: f"branch2.{m[2]}{_bn(m[1])}.", name)
            name = re.sub(r"branch1_(conv|norm)\.", lambda m: f"branch1{_bn(m[1])}.", name)
            name = re.sub(r"branch2\.fc", "branch2.se.fc", name)
            name = name.replace("blocks.0.conv.conv_t.", "s1.pathway0_stem.conv_xy.")
            name = name.replace("blocks.0.conv.conv_xy.", "s1.pathway0_stem.conv.")
            name = name.replace("blocks.0.norm.", "s1.pathway0_stem.bn.")
            for ours, theirs in (("pre_conv", "conv_5"), ("pre_norm", "conv_5_bn"), ("post_conv", "lin_5")):
                name = name.replace(f"blocks.5.pool.{ours}.", f"head.{theirs}.")
        else:
            name = re.sub(r"blocks\.(\d)\.res_blocks\.", r"backbone.layer\1.", name)
            name = re.sub(
                r"branch2\.(conv|norm)_([abc])\.",
                lambda m: f"conv{' abc'.index(m[2])}.{_bn(m[1])[1:] or 'conv'}.",
                name,
            )
            name = re.sub(r"branch1_(conv|norm)\.", lambda m: f"downsample.{_bn(m[1])[1:] or 'conv'}.", name)
            name = re.sub(r"branch2\.fc", "se_module.fc", name)
            name = name.replace("blocks.0.conv.conv_t.", "backbone.conv1_s.conv.")
            name = name.replace("blocks.0.conv.conv_xy.", "backbone.conv1_t.conv.")
            name = name.replace("blocks.0.norm.", "backbone.conv1_t.bn.")
            for ours, theirs in (
                ("pre_conv", "backbone.conv5.conv"),
                ("pre_norm", "backbone.conv5.bn"),
                ("post_conv", "cls_head.fc1"),
            ):
                name = name.replace(f"blocks.5.pool.{ours}.", f"{theirs}.")
        names[name] = state[key]
    if project == "MMAction2":  # a linear layer there
        names["cls_head.fc1.weight"] = names["cls_head.fc1.weight"].flatten(1)
    return names


def _bn(kind):
    return "_bn" if kind == "norm" else ""


WRAPPERS = {
    "SlowFast": lambda s: {
        "model_state": {**s, "head.projection.weight": torch.zeros(400, 2048)},
        "epoch": 300,
        "optimizer_state": {},
        "cfg": "",
    },
    "MMAction2": lambda s: {"state_dict": {**s, "cls_head.fc2.weight": torch.zeros(400, 2048)}, "meta": {}},
}


@pytest.mark.parametrize("project", WRAPPERS)
def test_x3d_of_three_projects_agree(project, x3d, tmp_path):
    """With a normalisation that does nothing, the file of the other project gives PyTorchVideo's features."""
    state, plain = x3d
    torch.save({"model_state": plain}, tmp_path / "X3D_M.pyth")
    torch.save(WRAPPERS[project](other_names(state, project)), tmp_path / "other.pth")
    ours = create_encoder("x3d_m", checkpoint=tmp_path / "X3D_M.pyth").eval()
    other = create_encoder("x3d_m", shortcut_norm=True)
    report = load_weights(other, tmp_path / "other.pth")
    assert report.format == project
    assert report.coverage == 1
    assert not report.unexpected
    assert set(report.dropped.values()) == {"classifier"}
    x = torch.randn(1, 1, 5, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(other.eval().pool(x), ours.pool(x), rtol=1e-4, atol=1e-5)


def test_the_normalised_shortcut_is_neither_left_out_nor_made_up(x3d, tmp_path):
    state, plain = x3d
    torch.save(WRAPPERS["SlowFast"](other_names(state, "SlowFast")), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"99\.9% of the parameters, 100% are needed(.|\n)*shortcut_norm=True"):
        create_encoder("x3d_m", checkpoint=tmp_path / "other.pth", shortcut_norm=False)
    assert create_encoder("x3d_m", checkpoint=tmp_path / "other.pth").arguments == {"shortcut_norm": True}
    with torch.device("meta"):
        normed = create_encoder("x3d_m", shortcut_norm=True)
    found = examine(normed, find_tensors(plain, Path("plain.pyth")))
    assert misfit(normed, found) == "it fills 99.9% of the parameters, 100% are needed"
    assert found.report.unexpected == ("blocks.1.res_blocks.0.branch1_conv.weight",)


def test_records_build_and_say_what_they_are():
    names = (*NAMES, "slowfast_16x8_r101_50_50", "x3d_xs", "x3d_s", "x3d_m", "x3d_l")
    records = [source for source in all_sources().values() if source.arch in names]
    assert {source.arch for source in records if source.tag == "kinetics400"} == set(names)
    built = set()
    for source in records:
        formats = {fmt.name for fmt in find_family(_family(source.arch)).formats}
        assert source.format in formats
        assert source.url.endswith(f"/{source.file}")
        assert re.fullmatch(r"|[0-9a-f]{8}", source.sha256)
        arguments = tuple(sorted(source.arguments.items()))
        if (source.arch, arguments) not in built and arguments:
            with torch.device("meta"):
                encoder = create_encoder(source.arch, **source.arguments)
            assert encoder.input_spec.min_size == source.input_spec.min_size
            built.add((source.arch, arguments))


def _family(arch):
    from voco.encoders.base import ENCODERS

    return ENCODERS[arch].family
