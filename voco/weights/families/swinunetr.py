"""SwinUNETR files: VoCo in all its wrappers, MONAI and NVIDIA, SuPreM, disruptive autoencoders."""

from __future__ import annotations

import re

from voco.weights.formats import Family, Format


def _rename(key: str) -> str:
    """``swin_vit`` of older MONAI, and bare SwinTransformer files."""
    if key.startswith("swin_vit."):
        key = "swinViT." + key.removeprefix("swin_vit.")
    return "swinViT." + key if key.startswith(("patch_embed.", "layers")) else key


def _rename_nvidia(key: str) -> str:
    """The self-supervised scripts' own MLP."""
    return _rename(key).replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def _rename_disruptive(key: str) -> str:
    """Stages lie one list deeper: ``layers1.0.0.blocks`` is ``layers1.0.blocks``."""
    return _rename(re.sub(r"^layers(\d)\.0\.0\.", r"layers\1.0.", key))


_DECODER = {r"decoder\d*\.": "decoder", r"out\.": "segmentation head"}

FAMILY = Family(
    "swinunetr",
    (
        Format(
            "MONAI SwinUNETR",
            marks=(r"^((swinViT|swin_vit)\.)?layers1\.0\.blocks\.0\.",),
            rename=_rename,
            drop={
                **_DECODER,
                # VoCo, v2 and v1
                r"layer\d\.": "projector",
                r"proj_head\.": "projector",
                # SuPreM and the Universal Model
                r"(precls_conv|GAP|controller|text_to_vision|organ_embedding)\b": "segmentation head",
            },
        ),
        Format(
            "NVIDIA self-supervised",
            marks=(r"^((swinViT|swin_vit)\.)?layers1\.0\.blocks\.0\.mlp\.fc1\.",),
            rename=_rename_nvidia,
            drop={
                r"(rotation|contrastive)_(head|pre)\.": "projection head",
                r"conv\.\d*\.?(weight|bias)": "reconstruction head",
            },
        ),
        Format(
            "Disruptive Autoencoders",
            marks=(r"^layers1\.0\.0\.blocks\.0\.",),
            rename=_rename_disruptive,
            drop={**_DECODER, r"mask_token": "mask token", r"norm\.": "final norm, which SwinUNETR does not have"},
        ),
    ),
)
