"""Video Swin weights of torchvision, the authors and MMAction2, and 2D Swin weights of ImageNet for inflation.

File names, addresses and accuracies are those of torchvision's code, the README of Video-Swin-Transformer
and the model index of MMAction2; digests are the parts that torchvision and MMAction2 put into file names.
"""

from __future__ import annotations

from voco.encoders.swin3d import SPEC
from voco.weights.sources import WeightSource

TORCHVISION = "https://download.pytorch.org/models/"
AUTHORS = "https://github.com/SwinTransformer/storage/releases/download/v1.0.4/"
MMACTION = "https://download.openmmlab.com/mmaction/v1.0/recognition/swin/"
VIDEO_SWIN = "Liu et al., Video Swin Transformer, CVPR 2022"
SWIN = "Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021"
CLIP = "32 frames, every 2nd; crop 224"
IMAGENETS = {"1k": "ImageNet-1k", "22k": "ImageNet-22k"}


def _torchvision(size: str, file: str, top1: float, images: str = "1k") -> WeightSource:
    return WeightSource(
        arch=f"swin3d_{size}",
        tag="kinetics400" if images == "1k" else f"kinetics400_in{images}",
        file=file,
        url=TORCHVISION + file,
        input_spec=SPEC,
        licence="none stated for the weights; code BSD-3-Clause, ported from Video Swin (Apache-2.0)",
        citation=VIDEO_SWIN,
        data=(IMAGENETS[images], "Kinetics-400"),
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        format="torchvision",
        note=f"{CLIP}; top-1 {top1} %",
    )


def _authors(
    size: str, name: str, data: str, top1: float, images: str, classes: tuple[str, ...], **more
) -> WeightSource:
    file = f"swin_{name}.pth"
    return WeightSource(
        arch=f"swin3d_{size}",
        tag=f"{data}_video_swin",
        file=file,
        url=AUTHORS + file,
        input_spec=SPEC,
        licence="none stated for the weights; code Apache-2.0",
        citation=VIDEO_SWIN,
        data=(IMAGENETS[images], *classes),
        format="Video Swin / MMAction2",
        note=f"{CLIP}; top-1 {top1} %",
        **more,
    )


def _mmaction(size: str, name: str, date: str, digest: str, top1: float, data: str = "400") -> WeightSource:
    file = f"{name}_{date}-{digest}.pth"
    return WeightSource(
        arch=f"swin3d_{size}",
        tag=f"kinetics{data}_mmaction2",
        file=file,
        url=f"{MMACTION}{name}/{file}",
        input_spec=SPEC,
        licence="none stated for the weights; code Apache-2.0",
        citation=VIDEO_SWIN,
        data=("ImageNet-1k", f"Kinetics-{data}"),
        sha256=digest,
        format="Video Swin / MMAction2",
        note=f"{CLIP}; top-1 {top1} %",
    )


def _images(size: str, digest: str) -> WeightSource:
    file = f"swin_{size}-{digest}.pth"
    return WeightSource(
        arch=f"swin3d_{size}",
        tag="imagenet1k",
        file=file,
        url=TORCHVISION + file,
        input_spec=SPEC,
        licence="none stated for the weights; code BSD-3-Clause",
        citation=SWIN,
        data=("ImageNet-1k",),
        sha256=digest,
        format="torchvision Swin (2D)",
        note="2D network, inflated: what Video Swin itself was started from",
    )


SOURCES = (
    _torchvision("t", "swin3d_t-7615ae03.pth", 77.715),
    _torchvision("s", "swin3d_s-da41c237.pth", 79.521),
    _torchvision("b", "swin3d_b_1k-24f7c7c6.pth", 79.427),
    _torchvision("b", "swin3d_b_22k-7c6ae6fa.pth", 81.643, "22k"),
    _authors("t", "tiny_patch244_window877_kinetics400_1k", "kinetics400", 78.8, "1k", ("Kinetics-400",)),
    _authors("s", "small_patch244_window877_kinetics400_1k", "kinetics400", 80.6, "1k", ("Kinetics-400",)),
    _authors("b", "base_patch244_window877_kinetics400_1k", "kinetics400", 80.6, "1k", ("Kinetics-400",)),
    _authors("b", "base_patch244_window877_kinetics400_22k", "kinetics400_in22k", 82.7, "22k", ("Kinetics-400",)),
    _authors("b", "base_patch244_window877_kinetics600_22k", "kinetics600_in22k", 84.0, "22k", ("Kinetics-600",)),
    _authors(
        "b",
        "base_patch244_window1677_sthv2",
        "ssv2",
        69.6,
        "22k",
        ("Kinetics-400", "Something-Something v2"),
        arguments={"attention_window": (16, 7, 7)},
    ),
    _mmaction("t", "swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb", "20220930", "241016b2", 78.90),
    _mmaction("s", "swin-small-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb", "20220930", "e91ab986", 80.54),
    _mmaction("b", "swin-base-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb", "20220930", "182ec6cc", 80.57),
    _mmaction(
        "s", "swin-small-p244-w877_in1k-pre_32xb4-amp-32x2x1-30e_kinetics710-rgb", "20230612", "8e082ff1", 76.90, "710"
    ),
    _images("t", "704ceda3"),
    _images("s", "5e29d889"),
    _images("b", "68c6b09e"),
)
