"""torchvision's ImageNet ResNet-50, a 2D network, for the 3D networks that inflate it."""

from __future__ import annotations

from voco.encoders import video_bottleneck
from voco.encoders.spec import InputSpec, kinetics_spec
from voco.weights.sources import WeightSource

ROOT = "https://download.pytorch.org/models/"


def _source(arch: str, spec: InputSpec, digest: str, tag: str, top1: float) -> WeightSource:
    file = f"resnet50-{digest}.pth"
    return WeightSource(
        arch=arch,
        tag=tag,
        file=file,
        url=ROOT + file,
        input_spec=kinetics_spec(
            spec.size, spec.min_size, rgb_mean=(0.485, 0.456, 0.406), rgb_std=(0.229, 0.224, 0.225)
        ),
        licence="none stated for the weights; code BSD-3-Clause",
        citation="He et al., Deep Residual Learning for Image Recognition, CVPR 2016",
        data=("ImageNet-1k",),
        sha256=digest,
        format="ImageNet ResNet (2D)",
        note=f"2D network, inflated; top-1 {top1} % on images",
    )


SOURCES = tuple(
    _source(arch, spec, digest, tag, top1)
    for arch, spec in (
        ("slow_r50", video_bottleneck.SLOW_SPEC),
        ("c2d_r50", video_bottleneck.C2D_SPEC),
        ("i3d_r50", video_bottleneck.C2D_SPEC),
    )
    for digest, tag, top1 in (("0676ba61", "imagenet", 76.13), ("11ad3fa6", "imagenet_v2", 80.858))
)
