"""Weights of the VoCo authors."""

from __future__ import annotations

from voco.encoders.swinunetr import SPEC
from voco.weights.sources import WeightSource


def _ssl(size: str, md5: str) -> WeightSource:
    file = f"VoCo_{size.upper()}_SSL_head.pt"
    return WeightSource(
        arch=f"swinunetr_{size}",
        tag="voco_ssl",
        file=file,
        url=f"https://huggingface.co/Luffy503/VoCo/resolve/main/{file}",
        md5=md5,
        input_spec=SPEC,
        licence="apache-2.0",
        citation="Wu et al., Large-Scale 3D Medical Image Pre-training With Geometric Context Priors, "
        "TPAMI 2026, doi:10.1109/TPAMI.2025.3639593",
        data=("PreCT-160K",),
    )


SOURCES = (
    _ssl("b", "f80c4da2f81d700bdae3df188f2057eb"),
    _ssl("l", "795095d1d43ef3808ec4c41798310136"),
    _ssl("h", "76f95a474736b60bf5b8aad94643744d"),
)
