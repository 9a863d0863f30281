"""Video Swin files of every project, and 2D Swin files that are inflated as Video Swin was itself."""

from __future__ import annotations

import re

from torch import Tensor

from voco.weights import positions
from voco.weights.formats import Family, Format

# The authors' and timm's names; where the merging stands tells them apart.
_LAYERS = (r"^patch_embed\.proj\.weight$", r"^layers\.3\.blocks\.0\.attn\.relative_position_bias_table$")
_DROP = {
    r".*relative_position_index$": "index table",
    r".*attn_mask$": "attention mask",
    r"(head|cls_head)\.": "classifier",
}


def _swin(key: str) -> str:
    """The authors' names: stages are ``layers.i``, each with its merging at the end; MMAction2 numbers the norms."""
    if found := re.match(r"layers\.(\d+)\.blocks\.(.*)", key):
        key = f"features.{2 * int(found[1])}.{found[2]}"
    elif found := re.match(r"layers\.(\d+)\.downsample\.(.*)", key):
        key = f"features.{2 * int(found[1]) + 1}.{found[2]}"
    key = re.sub(r"^norm3\.", "norm.", key)
    return key.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")


def _timm(key: str) -> str:
    """timm puts the merging at the start of the stage after it."""
    found = re.match(r"layers\.(\d+)\.downsample\.(.*)", key)
    return f"features.{2 * int(found[1]) - 1}.{found[2]}" if found else _swin(key)


def _torchvision_2d(key: str) -> str:
    """torchvision's image network counts its patch embedding as the first stage."""
    if found := re.match(r"features\.0\.(0|2)\.(weight|bias)$", key):
        return f"patch_embed.{'proj' if found[1] == '0' else 'norm'}.{found[2]}"
    if found := re.match(r"features\.([1-9]\d*)\.(.*)", key):
        return f"features.{int(found[1]) - 1}.{found[2]}"
    return key


def _adapt(key: str, value: Tensor, wanted: Tensor) -> tuple[Tensor, str] | None:
    """Tables of relative bias: 2D ones by the rule of Video Swin, 3D ones of another window by ours."""
    if not key.endswith("relative_position_bias_table") or value.ndim != 2 or value.shape[1:] != wanted.shape[1:]:
        return None
    found, window = positions.window_of_table(value.shape[0]), positions.window_of_table(wanted.shape[0])
    if found is None or window is None or window[0] == 1:
        return None
    if found[0] > 1:
        return positions.resize_bias_table(value, found, window), positions.BIAS_TRILINEAR
    rule = positions.BIAS_REPEATED if found[1:] == window[1:] else positions.BIAS_BICUBIC_REPEATED
    return positions.bias_table_from_2d(value, found[1:], window), rule


FAMILY = Family(
    "swin3d",
    (
        Format(
            "torchvision",
            marks=(r"^patch_embed\.proj\.weight$", r"^features\.6\.0\.attn\.relative_position_bias_table$"),
            drop=_DROP,
        ),
        Format(
            "Video Swin / MMAction2",
            marks=(*_LAYERS, r"^layers\.0\.downsample\.reduction\.weight$"),
            rename=_swin,
            drop=_DROP,
        ),
        Format(
            "Swin (2D)",
            marks=(*_LAYERS, r"^layers\.0\.downsample\.reduction\.weight$"),
            rename=_swin,
            drop=_DROP,
            inflate=True,
        ),
        Format(
            "timm Swin (2D)",
            marks=(*_LAYERS, r"^layers\.3\.downsample\.reduction\.weight$"),
            rename=_timm,
            drop=_DROP,
            inflate=True,
        ),
        Format(
            "torchvision Swin (2D)",
            marks=(r"^features\.0\.0\.weight$", r"^features\.7\.0\.attn\.relative_position_bias_table$"),
            rename=_torchvision_2d,
            drop=_DROP,
            inflate=True,
        ),
    ),
    adapt=_adapt,
)
