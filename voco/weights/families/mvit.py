"""MViT files of torchvision, pytorchvideo, SlowFast and MMAction2; the image network of pytorchvideo is inflated."""

from __future__ import annotations

import re
from math import isqrt

from torch import Tensor

from voco.weights import positions
from voco.weights.adapt import adapt_input_channels, inflate
from voco.weights.formats import Family, Format, Part

_IN_BLOCKS = (
    (re.compile(r"^(blocks\.\d+\.attn\.)proj\."), r"\1project.0."),
    (re.compile(r"^(blocks\.\d+\.attn\.pool_[qkv])\.weight$"), r"\1.pool.weight"),
    (re.compile(r"^(blocks\.\d+\.attn\.)norm_([qkv])\."), r"\1pool_\2.norm_act.0."),
    (re.compile(r"^(blocks\.\d+\.)proj\."), r"\1project."),
    (re.compile(r"^(blocks\.\d+\.mlp\.)fc1\."), r"\g<1>0."),
    (re.compile(r"^(blocks\.\d+\.mlp\.)fc2\."), r"\g<1>3."),
)
_POSITIONS = {
    "cls_token": "pos_encoding.class_token",
    "pos_embed_spatial": "pos_encoding.spatial_pos",
    "pos_embed_temporal": "pos_encoding.temporal_pos",
    "pos_embed_class": "pos_encoding.class_pos",
}
_MAX_COLOURS = 64


def _block(key: str) -> str:
    """Names within a block that pytorchvideo, SlowFast and MMAction2 share."""
    for pattern, ours in _IN_BLOCKS:
        key = pattern.sub(ours, key)
    return key


def _pytorchvideo(key: str) -> str | Part:
    """Query, key and value are three layers here and one in the others."""
    if found := re.match(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)$", key):
        return Part(f"{found[1]}qkv.{found[3]}", "qkv".index(found[2]), 3)
    key = re.sub(r"^patch_embed\.patch_model\.", "conv_proj.", re.sub(r"^norm_embed\.", "norm.", key))
    return _POSITIONS.get(key.removeprefix("cls_positional_encoding."), _block(key))


def _slowfast(key: str) -> str:
    return _POSITIONS.get(key, _block(re.sub(r"^patch_embed\.proj\.", "conv_proj.", key)))


def _mmaction(key: str) -> str:
    """MMAction2 numbers the norms of the stages, and has no absolute positions in MViTv2."""
    key = re.sub(r"^patch_embed\.projection\.", "conv_proj.", re.sub(r"^norm3\.", "norm.", key))
    return _POSITIONS.get(key, _block(key))


def _adapt(key: str, value: Tensor, wanted: Tensor) -> tuple[Tensor, str] | None:
    """Kernels of the image network, tables of positions of other clips and crops."""
    if wanted.ndim == 5:
        return _inflated(value, wanted)
    table = value[0] if value.ndim == 3 and value.shape[0] == 1 else value
    if table.ndim != 2 or wanted.ndim != 2 or table.shape[1] != wanted.shape[1]:
        return None
    found, length = table.shape[0], wanted.shape[0]
    if key.endswith("spatial_pos"):
        sides = isqrt(found), isqrt(length)
        if found == 0 or sides[0] ** 2 != found or sides[1] ** 2 != length:
            return None
        table = positions.resize_bicubic(table, (sides[0],) * 2, (sides[1],) * 2)
        return table, f"{positions.BICUBIC} from {sides[0]}x{sides[0]} to {sides[1]}x{sides[1]}"
    if found and key.endswith(("temporal_pos", "rel_pos_h", "rel_pos_w", "rel_pos_t")):
        return positions.resize_linear(table, length), f"{positions.LINEAR} from {found} to {length}"
    return None


def _inflated(value: Tensor, wanted: Tensor) -> tuple[Tensor, str] | None:
    """The centre slice: exact at the borders too, where a repeated kernel would meet the padding in depth.

    SlowFast repeats these kernels without division.
    """
    if value.ndim == 5 and value.shape[2] == 1:
        value = value[:, :, 0]
    if value.ndim != 4 or value.shape[0] != wanted.shape[0] or value.shape[2:] != wanted.shape[3:]:
        return None
    if value.shape[1] != wanted.shape[1] and not (wanted.shape[0] > wanted.shape[1] and value.shape[1] <= _MAX_COLOURS):
        return None
    value, rule = inflate(value, wanted.shape[2], "centre")
    if value.shape[1] == wanted.shape[1]:
        return value, rule
    value, channels = adapt_input_channels(value, wanted.shape[1])
    return value, f"{rule}; {channels}"


FAMILY = Family(
    "mvit",
    (
        Format(
            "torchvision",
            marks=(r"^conv_proj\.weight$", r"^pos_encoding\.class_token$", r"^blocks\.0\.attn\.qkv\.weight$"),
            drop={r"head\.": "classifier"},
        ),
        Format(
            "pytorchvideo",
            marks=(r"^patch_embed\.patch_model\.weight$", r"^cls_positional_encoding\.cls_token$"),
            rename=_pytorchvideo,
            drop={r"head\.": "classifier", r"blocks\.\d+\.attn\._attention_pool_[qkv]\.": "repeated name"},
        ),
        Format(
            "SlowFast",
            marks=(r"^patch_embed\.proj\.weight$", r"^cls_token$", r"^blocks\.0\.attn\.pool_k\.weight$"),
            rename=_slowfast,
            drop={r"head\.": "classifier"},
        ),
        Format(
            "MMAction2",
            marks=(r"^patch_embed\.projection\.weight$", r"^cls_token$", r"^blocks\.0\.attn\.pool_k\.weight$"),
            rename=_mmaction,
            drop={r"cls_head\.": "classifier"},
        ),
    ),
    adapt=_adapt,
)
