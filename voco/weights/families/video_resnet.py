"""Video ResNet files: torchvision's own, and those of IG-65M, which use its names for a network of their own."""

from __future__ import annotations

from voco.weights.formats import Family, Format

_DROP = {r"fc\.": "classifier"}

FAMILIES = (
    Family(
        "video_resnet",
        (Format("torchvision", marks=(r"^stem\.0\.weight$", r"^layer4\.1\.conv2\.1\.weight$"), drop=_DROP),),
    ),
    Family(
        "r2plus1d_34",
        (Format("IG-65M", marks=(r"^stem\.3\.weight$", r"^layer3\.5\.conv2\.0\.3\.weight$"), drop=_DROP),),
    ),
)
