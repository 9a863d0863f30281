"""Weights of torchvision: video ResNets and S3D of Kinetics-400, and 2D ResNets of ImageNet for inflation.

File names (each ends with the first digits of its sha256), clips, statistics and accuracies are those of its code.
"""

from __future__ import annotations

from voco.encoders import resnet3d, s3d, video_bottleneck, video_resnet
from voco.encoders.spec import IMAGENET, InputSpec, kinetics_spec
from voco.weights.sources import WeightSource

ROOT = "https://download.pytorch.org/models/"
LICENCE = "none stated for the weights; code BSD-3-Clause"

_TRAN = "Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018"
_XIE = "Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018"
_HE = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016"

# Slices are the images of these networks; the size says what crop they saw, the depth is as in Kinetics files.
_RESNET3D_SPEC = kinetics_spec((16, 224, 224), resnet3d.SPEC.min_size, **IMAGENET)
_SLOW_SPEC = kinetics_spec(video_bottleneck.SLOW_SPEC.size, video_bottleneck.SLOW_SPEC.min_size, **IMAGENET)
_C2D_SPEC = kinetics_spec(video_bottleneck.C2D_SPEC.size, video_bottleneck.C2D_SPEC.min_size, **IMAGENET)


def _kinetics(arch: str, digest: str, spec: InputSpec, citation: str, note: str) -> WeightSource:
    file = f"{arch}-{digest}.pth"
    return WeightSource(
        arch=arch,
        tag="kinetics400",
        file=file,
        url=ROOT + file,
        input_spec=spec,
        licence=LICENCE,
        citation=citation,
        data=("Kinetics-400",),
        sha256=digest,
        format="torchvision",
        note=note,
    )


def _imagenet(arch: str, spec: InputSpec, depth: int, digest: str, top1: float, version: int = 1) -> WeightSource:
    file = f"resnet{depth}-{digest}.pth"
    return WeightSource(
        arch=arch,
        tag="imagenet1k" if version == 1 else f"imagenet1k_v{version}",
        file=file,
        url=ROOT + file,
        input_spec=spec,
        licence=LICENCE,
        citation=_HE,
        data=("ImageNet-1k",),
        sha256=digest,
        format="ImageNet ResNet (2D)",
        note=f"2D network, inflated; top-1 {top1} % on images",
    )


_CLIP16 = "16 frames at 15 fps, resize 128 x 171, crop 112; "

SOURCES = (
    _kinetics("r3d_18", "b3b3357e", video_resnet.SPEC, _TRAN, _CLIP16 + "top-1 63.2 %"),
    _kinetics("mc3_18", "a90a0ba3", video_resnet.SPEC, _TRAN, _CLIP16 + "top-1 63.96 %"),
    _kinetics("r2plus1d_18", "91a641e6", video_resnet.SPEC, _TRAN, _CLIP16 + "top-1 67.463 %"),
    _kinetics(
        "s3d",
        "d76dad2f",
        s3d.SPEC,
        _XIE,
        "trained on 64 frames at 15 fps, evaluated on 128, resize 256, crop 224; top-1 68.368 %",
    ),
    _imagenet("resnet3d_18", _RESNET3D_SPEC, 18, "f37072fd", 69.758),
    _imagenet("resnet3d_34", _RESNET3D_SPEC, 34, "b627a593", 73.314),
    *(
        _imagenet(arch, spec, 50, *published)
        for arch, spec in (
            ("resnet3d_50", _RESNET3D_SPEC),
            ("slow_r50", _SLOW_SPEC),
            ("c2d_r50", _C2D_SPEC),
            ("i3d_r50", _C2D_SPEC),
        )
        for published in (("0676ba61", 76.13), ("11ad3fa6", 80.858, 2))
    ),
    _imagenet("resnet3d_101", _RESNET3D_SPEC, 101, "63fe2227", 77.374),
    _imagenet("resnet3d_101", _RESNET3D_SPEC, 101, "cd907fc2", 81.886, version=2),
)
