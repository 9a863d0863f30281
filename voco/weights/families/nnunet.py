"""nnU-Net and nnssl files (``network_weights``): every layer is listed twice, and the decoder repeats the encoder."""

from __future__ import annotations

import re

from voco.weights.formats import Family, Format

# A block holds its convolution and norm under their names and again in one sequence.
_TWICE = {"all_modules.0.": "conv.", "all_modules.1.": "norm."}
_MARK = r"^(stages\.0\.0\.convs\.0|stem\.convs\.0)\."
_DROP = {
    r"decoder\.encoder\.": "repeated name",
    r"(decoder\.)?seg_layers\.": "segmentation head",
    r"decoder\.": "decoder",
}


def _from_sequence(key: str) -> str:
    """Both names of a tensor mean the same, and some files keep only the one in the sequence."""
    return re.sub(r"all_modules\.[01]\.", lambda match: _TWICE[match.group()], key)


FAMILY = Family(
    "nnunet",
    (Format("nnU-Net", marks=(_MARK + r"(conv|all_modules\.0)\.weight",), rename=_from_sequence, drop=_DROP),),
)
