"""Names of other code bases to the names of our modules: one small function per family.

A converter takes one key (prefixes such as ``module.`` already stripped) and returns the name that our module would
have; a key that it does not know is returned as it is.
"""

from __future__ import annotations

from collections.abc import Callable


def swinunetr(key: str) -> str:
    """SwinUNETR files: ``swin_vit`` of older MONAI, bare SwinTransformer files, ``fc1``/``fc2`` of the SSL scripts."""
    if key.startswith("swin_vit."):
        key = "swinViT." + key.removeprefix("swin_vit.")
    if key.startswith(("patch_embed.", "layers")):
        key = "swinViT." + key
    return key.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def unchanged(key: str) -> str:
    return key


CONVERTERS: dict[str, Callable[[str], str]] = {"swinunetr": swinunetr}


def converter(family: str) -> Callable[[str], str]:
    """The key conversion of an encoder family; families without one use their own names."""
    return CONVERTERS.get(family, unchanged)
