"""PENet files: ``model_state``, ``module.``; the Kinetics files still carry the network's first name, xnet."""

from __future__ import annotations

from voco.weights.formats import Family, Format


def _rename(key: str) -> str:
    return key.replace(".xnet_blocks.", ".penet_blocks.")


FAMILY = Family(
    "penet",
    (
        Format(
            "PENet",
            marks=(r"^encoders\.0\.(xnet|penet)_blocks\.0\.se_block\.excite\.0\.weight",),
            rename=_rename,
            drop={r"classifier\.": "classifier"},
        ),
    ),
)
