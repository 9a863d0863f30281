"""Files of timm's 2D networks: of timm, torchvision where names agree, 2D-VoCo and EfficientNet-PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from voco.weights.formats import Family, Format

_NET = "net."
# What timm calls classifiers and what it puts between map and classifier. Our own tensors are matched before these.
_HEAD = r"(net\.)?(head|heads|head_dist|heads_dist|aux_head|fc|fc_norm|classifier|classif|last_linear|pre_logits)\b"
# Beside the network in files of 2D-VoCo.
_PROJECTOR = r"(student_|teacher_)?(proj\w*_head|projector)\."


def _named(key: str) -> str:
    return key if key.startswith(_NET) else _NET + key


# EfficientNet-PyTorch numbers all blocks in one row; ours are numbered within their stages. Blocks without an expansion
# (those of the first stage) have two convolutions, all others three.
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_EXCITATION = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
# Number of blocks, with squeeze and excitation or without -> timm's networks, which pad as TensorFlow does.
_LITE = {16: (0,), 21: (1, 2), 24: (3,), 30: (4,)}
_SIZES = {16: ("b0",), 23: ("b1", "b2"), 26: ("b3",), 32: ("b4",), 39: ("b5",), 45: ("b6",), 55: ("b7",), 61: ("b8",)}
_SIZES |= {88: ("l2",)}


def _efficientnet_names(wanted: Iterable[str]) -> Callable[[str], str]:
    """Names of EfficientNet-PyTorch for an encoder with such tensors."""
    wanted = set(wanted)
    found = (re.match(r"net\.blocks\.(\d+)\.(\d+)\.", name) for name in wanted)
    places = sorted({(int(match[1]), int(match[2])) for match in found if match})

    def rename(key: str) -> str:
        if match := re.fullmatch(r"_blocks\.(\d{1,4})\.(_\w+)\.(\w+)", key):
            number, module, what = int(match[1]), match[2], match[3]
            if number < len(places):
                block = "net.blocks.{}.{}".format(*places[number])
                names = (_EXPANDED if f"{block}.conv_pwl.weight" in wanted else _PLAIN) | _EXCITATION
                return f"{block}.{names[module]}.{what}" if module in names else key
        module, _, what = key.partition(".")
        return f"net.{_OUTSIDE[module]}.{what}" if module in _OUTSIDE else key

    return rename


def _efficientnets(names: str) -> list[str]:
    """Encoders whose number of blocks a file has."""
    blocks = 1 + max((int(number) for number in re.findall(r"_blocks\.(\d{1,4})\._", names)), default=-1)
    kinds = _SIZES.get(blocks, ()) if "._se_reduce." in names else [f"lite{n}" for n in _LITE.get(blocks, ())]
    return [f"slices/tf_efficientnet_{kind}" for kind in kinds]


FAMILY = Family(
    "slices",
    (
        Format(
            "timm",
            rename=_named,
            drop={_HEAD: "classifier", r"(net\.)?(conv_head|in_conv)\.": "head", _PROJECTOR: "projector"},
        ),
        Format(
            "EfficientNet-PyTorch",
            marks=(r"^_conv_stem\.weight$", r"^_blocks\.0\._depthwise_conv\.weight$"),
            rename_for=_efficientnet_names,
            drop={r"_fc\.": "classifier"},
            encoders=_efficientnets,
        ),
    ),
)
