"""SwinUNETR weights without v2: NVIDIA's self-supervised and BTCV files, SuPreM.

Links, wrappers, windows and spacings as in the projects' own code and README files: SwinUNETR of
Project-MONAI/research-contributions, MrGiovanni/SuPreM 76e1a64.
"""

from __future__ import annotations

from dataclasses import replace

from voco.encoders.swinunetr import SPEC, SWINVIT_SPEC
from voco.weights.sources import WeightSource

_ROOT = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
_NVIDIA = "none stated for the weights; code Apache-2.0"
_TANG = "Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR 2022"
_BTCV_SPEC = replace(SPEC, spacing_mm=(2.0, 1.5, 1.5), size=(96, 96, 96))
# All of them were trained with MONAI up to 1.4.
_MERGING = {"merging": "repeated"}
_SSL_DATA = ("HNSCC", "LUNA16", "CT-Colonography", "TCIA-Covid19", "LIDC-IDRI")


def _btcv(size: str, name: str, features: int, dice: float, pretrained: bool) -> WeightSource:
    file = f"swin_unetr.{name}_5000ep_f{features}_lr2e-4_pretrained.pt"
    return WeightSource(
        arch=f"swinunetr_v1_{size}",
        tag="btcv",
        file=file,
        url=_ROOT + file,
        input_spec=_BTCV_SPEC,
        licence=_NVIDIA,
        citation=_TANG,
        arguments=_MERGING,
        data=("BTCV", *(_SSL_DATA if pretrained else ())),
        note=f"supervised on 13 abdominal organs, Dice {dice}; started from "
        f"{'the self-supervised file' if pretrained else 'random weights, though its name says pretrained'}",
    )


SOURCES = (
    WeightSource(
        arch="swinvit_b",
        tag="nvidia_ssl",
        file="model_swinvit.pt",
        url=_ROOT + "model_swinvit.pt",
        input_spec=SWINVIT_SPEC,
        licence=_NVIDIA,
        citation=_TANG,
        data=_SSL_DATA,
        arguments=_MERGING,
        format="NVIDIA self-supervised",
        note="5,050 scans, not resampled; holds the transformer only, so it cannot fill a whole SwinUNETR encoder",
    ),
    WeightSource(
        arch="swinvit_b",
        tag="nvidia_dae",
        file="ssl_pretrained_weights.pth",
        url=_ROOT + "ssl_pretrained_weights.pth",
        input_spec=SWINVIT_SPEC,
        licence=_NVIDIA,
        citation="Valanarasu et al., Disruptive Autoencoders, 2023, arXiv 2307.16896",
        data=("unknown",),
        arguments=_MERGING,
        format="Disruptive Autoencoders",
        note="50,000 CT and MR volumes; neither they nor their intensity range are named in the public code, so the "
        "input is that of nvidia_ssl; the transformer only",
    ),
    _btcv("b", "base", 48, 82.25, True),
    _btcv("s", "small", 24, 79.79, False),
    _btcv("t", "tiny", 12, 72.05, False),
    WeightSource(
        arch="swinunetr_v1_b",
        tag="suprem",
        file="supervised_suprem_swinunetr_2100.pth",
        url="https://huggingface.co/MrGiovanni/SuPreM/resolve/main/supervised_suprem_swinunetr_2100.pth",
        input_spec=replace(SPEC, size=(96, 96, 96)),
        licence="CC BY-NC-ND 4.0",
        citation="Li et al., How Well Do Supervised Models Transfer to 3D Image Segmentation?, ICLR 2024",
        data=("AbdomenAtlas-1.1",),
        arguments=_MERGING,
        note="supervised on 25 organs of 2,100 scans; wrapper `net`, keys `module.backbone.`",
    ),
)
