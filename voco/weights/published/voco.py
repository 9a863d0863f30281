"""Weights of the VoCo authors: self-supervised (CVPR 2024, TPAMI 2026) and supervised on VoComni's pseudo-labels."""

from __future__ import annotations

from dataclasses import replace

from voco.encoders import nnunet
from voco.encoders.swinunetr import SPEC, SWINVIT_SPEC
from voco.weights.sources import WeightSource

_ROOT = "https://huggingface.co/Luffy503/VoCo/resolve/main/"
_TPAMI = (
    "Wu et al., Large-Scale 3D Medical Image Pre-training With Geometric Context Priors, TPAMI 2026, "
    "doi:10.1109/TPAMI.2025.3639593"
)
_CVPR = (
    "Wu et al., VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis, "
    "CVPR 2024, arXiv 2402.17300"
)
# The collection and its members: whoever evaluates on one of these is told.
_PRECT = (
    "PreCT-160K",
    *("BTCV", "TCIA-Covid19", "LUNA16", "FLARE23", "HNSCC", "STOIC", "LIDC-IDRI", "TotalSegmentator", "WORD", "AMOS22"),
    *("DeepLesion", "PANORAMA", "AbdomenAtlas-1.0", "OPC-Radiomics", "HeadNeckCT", "QIN-HeadNeck", "TCGA-HNSC"),
    *("CT-Colonography", "MELA", "StonyBrookChestCT", "CT-RATE", "NLST"),
)
_TEN_K = ("BTCV", "TCIA-Covid19", "LUNA16", "STOIC", "TotalSegmentator", "FLARE23", "HNSCC")
# Chest scans were 1.25 x 1.25 x 5 mm, in a lung window; one file has seen both this and the abdomen's.
_CHEST = replace(SPEC, windows=((-1000.0, 500.0),), spacing_mm=(5.0, 1.25, 1.25))
# Both repositories pin MONAI 1.3.0, whose merging layers took two voxels of eight twice.
_MERGING = {"merging": "repeated"}
_WHOLE_VOLUME = replace(SPEC, spacing_mm=None)


def _ssl(size: str, md5: str) -> list[WeightSource]:
    file = f"VoCo_{size.upper()}_SSL_head.pt"
    abdomen = WeightSource(
        arch=f"swinunetr_{size}",
        tag="voco_ssl",
        file=file,
        url=_ROOT + file,
        md5=md5,
        input_spec=SPEC,
        licence="apache-2.0",
        citation=_TPAMI,
        data=_PRECT,
        arguments=_MERGING,
        note="VoCo v2; input as for the abdomen and head-and-neck scans, 16 of 17 drawn; voco_ssl_chest is the other",
    )
    chest = replace(
        abdomen, tag="voco_ssl_chest", input_spec=_CHEST, note="the file of voco_ssl, fed like its chest scans, 1 of 17"
    )
    return [abdomen, chest]


def _omni(size: str) -> WeightSource:
    file = f"VoComni_{size.upper()}.pt"
    return WeightSource(
        arch=f"swinunetr_{size}",
        tag="vocomni",
        file=file,
        url=_ROOT + file,
        input_spec=replace(SPEC, size=(96, 96, 96)),
        licence="apache-2.0",
        citation=_TPAMI,
        data=("VoComni", *_PRECT),
        arguments=_MERGING,
        note="whole SwinUNETR, 21 classes of pseudo-labels; its decoder is read with decoder=True",
    )


_NNUNET = WeightSource(
    arch="nnunet_plain",
    tag="vocomni",
    file="VoComni_nnunet.pt",
    url=_ROOT + "VoComni_nnunet.pt",
    input_spec=nnunet.PLAIN_SPEC,
    licence="apache-2.0",
    citation=_TPAMI,
    data=("VoComni", *_PRECT),
    note="nnU-Net's CT normalisation; percentiles, mean and std of its data set are not published. Window of the "
    "authors' other abdominal networks; mean and std matter at borders only (see voco/encoders/nnunet.py)",
)
_TEN = WeightSource(
    arch="swinunetr_b",
    tag="voco_10k",
    file="VoCo_10k.pt",
    url="https://github.com/Luffy03/VoCo",
    input_spec=_WHOLE_VOLUME,
    licence="none stated for the weights; code Apache-2.0",
    citation=_CVPR,
    data=_TEN_K,
    arguments=_MERGING,
    download=False,
    note="VoCo v1, its EMA; whole volumes were resized to 384 x 384 x 96 whatever their spacing",
)
_ORIGINAL = WeightSource(
    arch="swinvit_b",
    tag="voco_cvpr",
    file="VoCo_cvpr.pt",
    url="https://github.com/Luffy03/VoCo/issues/29",
    input_spec=replace(SWINVIT_SPEC, windows=SPEC.windows, size=SPEC.size),
    licence="none stated for the weights; code Apache-2.0",
    citation=_CVPR,
    data=("BTCV", "TCIA-Covid19", "LUNA16"),
    arguments=_MERGING,
    download=False,
    note="weights of the CVPR paper, without v2; the tensors in the file are not documented",
)

SOURCES = (
    *_ssl("b", "f80c4da2f81d700bdae3df188f2057eb"),
    *_ssl("l", "795095d1d43ef3808ec4c41798310136"),
    *_ssl("h", "76f95a474736b60bf5b8aad94643744d"),
    _omni("b"),
    _omni("l"),
    _omni("h"),
    _NNUNET,
    _TEN,
    _ORIGINAL,
)
