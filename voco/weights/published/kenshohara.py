"""Weights of kenshohara/3D-ResNets-PyTorch of 2020: Kinetics-700, Moments in Time, STAIR Actions and their unions.

All lie in one Google Drive folder, without published digests. The project's README lists the 3D ResNets; names of the
R(2+1)D files are from the code of projects that use them.
"""

from __future__ import annotations

from voco.encoders.resnet3d import SPEC
from voco.weights.sources import WeightSource

FOLDER = "https://drive.google.com/open?id=1xbYbZ7rpyjftI_KCk6YuL-XrfQDz7Yd4"
_SETS = {
    "K": ("kinetics700", "Kinetics-700"),
    "M": ("moments", "Moments in Time"),
    "S": ("stair", "STAIR Actions"),
}
_CLASSES = {"K": 700, "KM": 1039, "KMS": 1139, "KS": 800, "M": 339, "MS": 439, "S": 100}


def _source(file_arch: str, arch: str, sets: str) -> WeightSource:
    return WeightSource(
        arch=arch,
        tag="_".join(_SETS[letter][0] for letter in sets),
        file=f"{file_arch}_{sets}_200ep.pth",
        url=FOLDER,
        input_spec=SPEC,
        licence="none stated for the weights; code MIT",
        citation="Kataoka et al., Would Mega-scale Datasets Further Enhance Spatiotemporal 3D CNNs?, arXiv:2004.04968",
        data=tuple(_SETS[letter][1] for letter in sets),
        download=False,
        format="kenshohara 3D-ResNets",
        note=f"16 consecutive frames, crop 112; {_CLASSES[sets]} classes",
    )


_FILES = {
    "r3d18": ("resnet3d_18", ("K", "KM")),
    "r3d34": ("resnet3d_34", ("K", "KM")),
    "r3d50": ("resnet3d_50", ("K", "KM", "KMS", "KS", "M", "MS", "S")),
    "r3d101": ("resnet3d_101", ("K", "KM")),
    "r2p1d18": ("resnet2p1d_18", ("K",)),
    "r2p1d50": ("resnet2p1d_50", ("K", "KM")),
}

SOURCES = tuple(_source(file_arch, arch, sets) for file_arch, (arch, several) in _FILES.items() for sets in several)
