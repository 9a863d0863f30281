"""SwinUNETR files: VoCo in all its wrappers, older MONAI names, bare SwinTransformer files."""

from __future__ import annotations

from voco.weights.formats import Family, Format


def _rename(key: str) -> str:
    if key.startswith("swin_vit."):
        key = "swinViT." + key.removeprefix("swin_vit.")
    if key.startswith(("patch_embed.", "layers")):
        key = "swinViT." + key
    return key.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


FAMILY = Family(
    "swinunetr",
    (
        Format(
            "VoCo / MONAI SwinUNETR",
            marks=(r"^(swinViT\.|swin_vit\.|)layers1\.0\.blocks\.0\.",),
            rename=_rename,
            drop={r"decoder\d\.": "decoder", r"out\.": "decoder", r"layer\d\.": "projector", "proj_head": "projector"},
        ),
    ),
)
