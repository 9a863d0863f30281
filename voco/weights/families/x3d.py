"""X3D files: PyTorchVideo's names are ours; SlowFast's and MMAction2's networks normalise one more shortcut."""

from __future__ import annotations

import re

from torch import Tensor

from voco.weights.formats import Family, Format

_STEM = {"conv_xy.weight": "conv.conv_t.weight", "conv.weight": "conv.conv_xy.weight"}
_HEAD = {"conv_5": "pre_conv", "conv_5_bn": "pre_norm", "lin_5": "post_conv"}
_LETTERS = {"1": "a", "2": "b", "3": "c"}


def _residual(stage: int, block: int, letter: str, kind: str, what: str) -> str:
    """A module of a residual block; ``letter`` is empty for the shortcut."""
    place = f"blocks.{stage}.res_blocks.{block}."
    if not letter:
        if stage == 1:  # the shortcut that PyTorchVideo does not normalise
            return f"{place}branch1_normed.{'0' if kind == 'conv' else '1'}.{what}"
        return f"{place}branch1_{kind}.{what}"
    if letter == "b" and kind == "norm":
        return f"{place}branch2.norm_b.0.{what}"
    return f"{place}branch2.{kind}_{letter}.{what}"


def _excitation(stage: int, block: int, number: str, what: str) -> str:
    return f"blocks.{stage}.res_blocks.{block}.branch2.norm_b.1.block.{'0' if number == '1' else '2'}.{what}"


def slowfast_name(key: str) -> str:
    """Names of the SlowFast repository; its stem names say what the convolutions do, PyTorchVideo's are swapped."""
    if found := re.fullmatch(r"s1\.pathway0_stem\.(?:(conv(?:_xy)?\.weight)|bn\.(\w+))", key):
        conv, norm = found.groups()
        return f"blocks.0.{_STEM[conv] if conv else f'norm.{norm}'}"
    if found := re.fullmatch(r"s([2-5])\.pathway0_res(\d+)\.branch(?:1|2\.([abc]))(_bn)?\.(\w+)", key):
        stage, block, letter, norm, what = found.groups()
        return _residual(int(stage) - 1, int(block), letter or "", "norm" if norm else "conv", what)
    if found := re.fullmatch(r"s([2-5])\.pathway0_res(\d+)\.branch2\.se\.fc([12])\.(\w+)", key):
        stage, block, number, what = found.groups()
        return _excitation(int(stage) - 1, int(block), number, what)
    if found := re.fullmatch(r"head\.(conv_5|conv_5_bn|lin_5)\.(\w+)", key):
        return f"blocks.5.pool.{_HEAD[found[1]]}.{found[2]}"
    return key


def mmaction_name(key: str) -> str:
    """Names of MMAction2, where part of the pool is in the classification head (``cls_head.fc1``)."""
    if key == "conv1_s.conv.weight":
        return "blocks.0.conv.conv_t.weight"
    if key == "cls_head.fc1.weight":
        return "blocks.5.pool.post_conv.weight"
    if found := re.fullmatch(r"conv1_t\.(?:(conv)|bn)\.(\w+)", key):
        return f"blocks.0.{'conv.conv_xy' if found[1] else 'norm'}.{found[2]}"
    if found := re.fullmatch(r"conv5\.(?:(conv)|bn)\.(\w+)", key):
        return f"blocks.5.pool.{'pre_conv' if found[1] else 'pre_norm'}.{found[2]}"
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.(?:conv([123])|downsample)\.(conv|bn)\.(\w+)", key):
        stage, block, number, kind, what = found.groups()
        letter = _LETTERS[number] if number else ""
        return _residual(int(stage), int(block), letter, "norm" if kind == "bn" else "conv", what)
    if found := re.fullmatch(r"layer([1-4])\.(\d+)\.se_module\.fc([12])\.(\w+)", key):
        stage, block, number, what = found.groups()
        return _excitation(int(stage), int(block), number, what)
    return key


def linear_as_convolution(key: str, value: Tensor, wanted: Tensor) -> tuple[Tensor, str] | None:
    """A linear layer is a convolution with a kernel of one voxel."""
    if key != "blocks.5.pool.post_conv.weight" or (*value.shape, 1, 1, 1) != tuple(wanted.shape):
        return None
    return value.reshape(wanted.shape), "linear layer as 1x1x1 convolution"


FAMILY = Family(
    "x3d",
    (
        Format(
            "pytorchvideo",
            marks=(r"^blocks\.0\.conv\.conv_xy\.weight$", r"^blocks\.5\.pool\.post_conv\.weight$"),
            drop={r"blocks\.5\.proj\.": "classifier"},
        ),
        Format(
            "SlowFast",
            marks=(r"^s1\.pathway0_stem\.conv_xy\.weight$", r"^head\.lin_5\.weight$"),
            rename=slowfast_name,
            drop={r"head\.projection\.": "classifier"},
        ),
        Format(
            "MMAction2",
            marks=(r"^conv1_s\.conv\.weight$", r"^cls_head\.fc1\.weight$"),
            rename=mmaction_name,
            drop={r"cls_head\.fc2\.": "classifier"},
            beside=r"cls_head\.fc1\.",
        ),
    ),
    linear_as_convolution,
)
