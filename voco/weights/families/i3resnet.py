"""Inflated image ResNets: Merlin, Astra, other I3ResNets after hassony2, and the 2D files that they are made of."""

from __future__ import annotations

from voco.weights.formats import Family, Format

_MARKS = (r"^conv1\.weight$", r"^bn1\.running_var$", r"^layer4\.2\.conv3\.weight$")

FAMILY = Family(
    "i3resnet",
    (
        Format(
            "I3ResNet",
            marks=_MARKS,
            drop={r"(fc|classifier)\.": "classifier", r"contrastive_head\.": "projection head"},
        ),
        Format("ImageNet ResNet (2D)", marks=_MARKS, drop={r"fc\.": "classifier"}, inflate=True),
    ),
)
