"""Files of timm's 2D networks: timm's own, torchvision's where timm kept their names, and 2D-VoCo's."""

from __future__ import annotations

from voco.weights.formats import Family, Format

_NET = "net."
# What timm calls classifiers and what it puts between map and classifier. Our own tensors are matched before these.
_HEAD = r"(net\.)?(head|heads|head_dist|heads_dist|aux_head|fc|fc_norm|classifier|classif|last_linear|pre_logits)\b"
# Beside the network in files of 2D-VoCo.
_PROJECTOR = r"(student_|teacher_)?(proj\w*_head|projector)\."


def _named(key: str) -> str:
    return key if key.startswith(_NET) else _NET + key


FAMILY = Family(
    "slices",
    (
        Format(
            "timm",
            rename=_named,
            drop={_HEAD: "classifier", r"(net\.)?(conv_head|in_conv)\.": "head", _PROJECTOR: "projector"},
        ),
    ),
)
