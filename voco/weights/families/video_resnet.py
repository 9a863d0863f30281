"""Video ResNet files: torchvision's own, and the IG-65M ones, which use its names."""

from __future__ import annotations

from voco.weights.formats import Family, Format

_DROP = {r"fc\.": "classifier"}

FAMILY = Family(
    "video_resnet",
    (
        # 34 layers are nobody else's; torchvision's mark would fit them too.
        Format("IG-65M", marks=(r"^stem\.3\.weight$", r"^layer3\.5\.conv2\.0\.3\.weight$"), drop=_DROP),
        Format("torchvision", marks=(r"^stem\.0\.weight$", r"^layer4\.1\.conv2\.1\.weight$"), drop=_DROP),
    ),
)
