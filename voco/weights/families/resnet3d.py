"""3D ResNet files: kenshohara/3D-ResNets-PyTorch, and 2D ImageNet ResNets, whose names are the same."""

from __future__ import annotations

from voco.weights.formats import Family, Format

_DROP = {r"fc\.": "classifier"}

FAMILY = Family(
    "resnet3d",
    (
        Format(
            "kenshohara 3D-ResNets", marks=(r"^conv1(_s)?\.weight$", r"^layer4\.1\.conv2(_s)?\.weight$"), drop=_DROP
        ),
        Format(
            "ImageNet ResNet (2D)",
            marks=(r"^conv1\.weight$", r"^layer4\.1\.conv2\.weight$"),
            drop=_DROP,
            inflate=True,
        ),
    ),
)
