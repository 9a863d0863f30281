"""Files of Slow, C2D, I3D, R(2+1)D, CSN and SlowFast networks: PyTorchVideo's names are ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from voco.weights.formats import Family, Format

CLASSIFIER = "classifier"
STATISTICS = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
LETTERS = {"1": "a", "2": "b", "3": "c"}


@dataclass(frozen=True)
class Layout:
    """Where the stages of a network are among its ``blocks``.

    Attributes:
        pooled: a pool without parameters takes the place after the first stage (C2D, I3D).
        pathways: each block holds two pathways (SlowFast).
    """

    pooled: bool = False
    pathways: bool = False

    def block(self, stage: int, pathway: int = 0) -> str | None:
        """Name of stage 1 .. 4, or of the stem (0); None for a pathway that the network has not got."""
        index = stage + 1 if self.pooled and stage > 1 else stage
        if self.pathways:
            return f"blocks.{index}.multipathway_blocks.{pathway}"
        return f"blocks.{index}" if pathway == 0 else None

    def residual(self, stage: int, block: int, part: str, pathway: int = 0) -> str | None:
        """Name of a module in a residual block; ``part`` is branch1_conv, branch2.conv_a and so on."""
        place = self.block(stage, pathway)
        return place and f"{place}.res_blocks.{block}.{part}"


def slowfast_name(key: str, layout: Layout) -> str:
    """Names of the SlowFast repository: ``s3.pathway0_res1.branch2.a_bn.weight``."""
    name = None
    if found := re.fullmatch(r"s1\.pathway(\d)_stem\.(conv|bn)\.(\w+)", key):
        pathway, kind, what = found.groups()
        place = layout.block(0, int(pathway))
        name = place and f"{place}.{'conv' if kind == 'conv' else 'norm'}.{what}"
    elif found := re.fullmatch(r"s([2-5])\.pathway(\d)_res(\d+)\.branch(1|2\.[abc])(_bn)?\.(\w+)", key):
        stage, pathway, block, branch, norm, what = found.groups()
        kind = "norm" if norm else "conv"
        part = f"branch1_{kind}" if branch == "1" else f"branch2.{kind}_{branch[-1]}"
        place = layout.residual(int(stage) - 1, int(block), part, int(pathway))
        name = place and f"{place}.{what}"
    elif layout.pathways and (found := re.fullmatch(r"s([1-4])_fuse\.(conv_f2s|bn)\.(\w+)", key)):
        stage, kind, what = found.groups()
        part = "norm" if kind == "bn" else "conv_fast_to_slow"
        name = f"blocks.{int(stage) - 1}.multipathway_fusion.{part}.{what}"
    return name or key


def caffe2_name(key: str, layout: Layout) -> str:
    """Blobs of the same project's Caffe2 files: ``res3_1_branch2a_bn_s``; the fast pathway's begin with ``t_``."""
    path, fast, rest = ("pathway1", True, key[2:]) if key.startswith("t_") else ("pathway0", False, key)
    stem = re.fullmatch(r"(?:conv1_(w)|res_conv1_bn_(s|b|rm|riv))", rest)
    residual = re.fullmatch(r"res([2-5])_(\d+)_branch(?:1|2([abc]))_(?:(w)|bn_(s|b|rm|riv))", rest)
    fusion = re.fullmatch(r"(?:pool1|res([2-4])_\d+_branch2c_bn)_subsample_(?:(w)|bn_(s|b|rm|riv))", rest)
    if stem:
        weight, norm = stem.groups()
        name = f"s1.{path}_stem." + ("conv.weight" if weight else f"bn.{STATISTICS[norm]}")
    elif residual:
        stage, block, letter, weight, norm = residual.groups()
        name = f"s{stage}.{path}_res{block}." + (f"branch2.{letter}" if letter else "branch1")
        name += ".weight" if weight else f"_bn.{STATISTICS[norm]}"
    elif fusion and fast:
        stage, weight, norm = fusion.groups()
        name = f"s{stage or 1}_fuse." + ("conv_f2s.weight" if weight else f"bn.{STATISTICS[norm]}")
    else:
        return key
    ours = slowfast_name(name, layout)
    return key if ours == name else ours


def imagenet_name(key: str, layout: Layout) -> str:
    """Names of torchvision's and timm's 2D ResNets: ``layer2.1.bn3.weight``."""
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        kind, what = found.groups()
        return f"{layout.block(0)}.{'conv' if kind == 'conv' else 'norm'}.{what}"
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))\.(\w+)", key):
        stage, block, kind, number, down, what = found.groups()
        kind = "conv" if kind == "conv" or down == "0" else "norm"
        part = f"branch1_{kind}" if down else f"branch2.{kind}_{LETTERS[number]}"
        return f"{layout.residual(int(stage), int(block), part)}.{what}"
    return key


def mmaction_name(key: str, layout: Layout) -> str:
    """Names of MMAction2's SlowOnly and SlowFast (under ``slow_path``, ``fast_path``): ``layer2.1.conv3.bn.weight``."""
    pathway, rest = 0, key
    if layout.pathways:
        path, _, rest = key.partition(".")
        if path not in ("slow_path", "fast_path"):
            return key
        pathway = int(path == "fast_path")
        if path == "slow_path" and (found := re.fullmatch(r"(?:conv1|layer([1-3]))_lateral\.conv\.weight", rest)):
            return f"blocks.{found[1] or 0}.multipathway_fusion.conv.weight"
    if found := re.fullmatch(r"conv1\.(conv|bn)\.(\w+)", rest):
        kind, what = found.groups()
        return f"{layout.block(0, pathway)}.{'conv' if kind == 'conv' else 'norm'}.{what}"
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.(?:conv([123])|downsample)\.(conv|bn)\.(\w+)", rest):
        stage, block, number, kind, what = found.groups()
        kind = "conv" if kind == "conv" else "norm"
        part = f"branch2.{kind}_{LETTERS[number]}" if number else f"branch1_{kind}"
        return f"{layout.residual(int(stage), int(block), part, pathway)}.{what}"
    return key


def _pytorchvideo(head: int, *marks: str) -> Format:
    return Format("pytorchvideo", marks=marks, drop={rf"blocks\.{head}\.proj\.": CLASSIFIER})


def _slowfast(rename: Callable[[str], str], *marks: str) -> Format:
    return Format(
        "SlowFast",
        marks=(r"^s1\.pathway0_stem\.conv\.weight$", r"^s5\.pathway0_res2\.branch2\.c\.weight$", *marks),
        rename=rename,
        drop={r"head\.projection\.": CLASSIFIER},
    )


def _caffe2(rename: Callable[[str], str], *marks: str) -> Format:
    return Format(
        "SlowFast caffe2",
        marks=(r"^conv1_w$", r"^res5_2_branch2c_w$", *marks),
        rename=rename,
        drop={
            r"pred_[wb]$": CLASSIFIER,
            r".*_momentum$": "state of the optimiser",
            r"(lr|model_iter)$": "state of the training",
        },
    )


def _imagenet(rename: Callable[[str], str]) -> Format:
    return Format(
        "ImageNet ResNet (2D)",
        marks=(r"^conv1\.weight$", r"^bn1\.running_var$", r"^layer4\.2\.conv3\.weight$"),
        rename=rename,
        drop={r"fc\.": CLASSIFIER},
        inflate=True,
    )


def _mmaction(rename: Callable[[str], str], *marks: str) -> Format:
    return Format("MMAction2", marks=marks, rename=rename, drop={r"cls_head\.": CLASSIFIER})


_PLAIN, _POOLED, _TWO = Layout(), Layout(pooled=True), Layout(pathways=True)

FAMILIES = (
    Family(
        "slow",
        (
            _pytorchvideo(5, r"^blocks\.4\.res_blocks\.2\.branch2\.conv_b\.weight$"),
            _slowfast(partial(slowfast_name, layout=_PLAIN)),
            _caffe2(partial(caffe2_name, layout=_PLAIN)),
            _mmaction(
                partial(mmaction_name, layout=_PLAIN), r"^conv1\.conv\.weight$", r"^layer4\.2\.conv3\.conv\.weight$"
            ),
            _imagenet(partial(imagenet_name, layout=_PLAIN)),
        ),
    ),
    Family(
        # MMAction2's I3D and C2D have the same names and shapes as Slow, but other strides: they are not ours.
        "c2d_i3d",
        (
            _pytorchvideo(6, r"^blocks\.5\.res_blocks\.2\.branch2\.conv_b\.weight$"),
            _slowfast(partial(slowfast_name, layout=_POOLED)),
            _caffe2(partial(caffe2_name, layout=_POOLED)),
            _imagenet(partial(imagenet_name, layout=_POOLED)),
        ),
    ),
    Family("r2plus1d_r50", (_pytorchvideo(5, r"^blocks\.4\.res_blocks\.2\.branch2\.conv_b\.conv_xy\.weight$"),)),
    Family("csn", (_pytorchvideo(5, r"^blocks\.3\.res_blocks\.22\.branch2\.conv_b\.weight$"),)),
    Family(
        "slowfast",
        (
            _pytorchvideo(6, r"^blocks\.3\.multipathway_fusion\.conv_fast_to_slow\.weight$"),
            _slowfast(partial(slowfast_name, layout=_TWO), r"^s4_fuse\.conv_f2s\.weight$"),
            _caffe2(partial(caffe2_name, layout=_TWO), r"^t_pool1_subsample_w$"),
            _mmaction(partial(mmaction_name, layout=_TWO), r"^fast_path\.layer4\.2\.conv3\.conv\.weight$"),
        ),
    ),
)
