"""S3D files: torchvision's own and those of kylemin/S3D, the same network under other names."""

from __future__ import annotations

import re

from voco.weights.formats import Family, Format

# A separable convolution is two (convolution, normalisation) pairs in a row, a plain one is one such pair.
_PLACES = {"conv_s": "0.0", "bn_s": "0.1", "conv_t": "1.0", "bn_t": "1.1", "conv": "0", "bn": "1"}


def _from_kylemin(key: str) -> str:
    module, _, rest = key.partition(".")
    if module != "base":
        return key
    rest = re.sub(r"\b(conv_s|bn_s|conv_t|bn_t|conv|bn)\b", lambda m: _PLACES[m[0]], rest)
    # The first branch is one convolution, which kylemin wraps in a list of one.
    return "features." + rest.replace(".branch0.0.", ".branch0.")


FAMILY = Family(
    "s3d",
    (
        Format(
            "torchvision",
            marks=(r"^features\.0\.0\.0\.weight$", r"^features\.15\.branch0\.0\.weight$"),
            drop={r"classifier\.": "classifier"},
        ),
        Format(
            "kylemin S3D",
            marks=(r"^base\.0\.conv_s\.weight$", r"^base\.15\.branch0\.0\.conv\.weight$"),
            rename=_from_kylemin,
            drop={r"fc\.0\.": "classifier"},
        ),
    ),
)
