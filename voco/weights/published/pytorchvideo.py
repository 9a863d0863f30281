"""Weights of PyTorchVideo's bottleneck networks and X3D, trained on Kinetics-400.

Accuracies and sizes are those of the project's model zoo; it publishes no digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from voco.encoders import slowfast, video_bottleneck, x3d
from voco.encoders.spec import InputSpec
from voco.weights.sources import WeightSource

ROOT = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"

FEICHTENHOFER = "Feichtenhofer et al., SlowFast Networks for Video Recognition, ICCV 2019"
FEICHTENHOFER_X3D = "Feichtenhofer, X3D: Expanding Architectures for Efficient Video Recognition, CVPR 2020"
WANG = "Wang et al., Non-local Neural Networks, CVPR 2018"
CARREIRA = "Carreira and Zisserman, Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset, CVPR 2017"
_TRAN = "Tran et al., A Closer Look at Spatiotemporal Convolutions for Action Recognition, CVPR 2018"
_TRAN_CSN = "Tran et al., Video Classification with Channel-Separated Convolutional Networks, ICCV 2019"

# Four slow slices of 32, two of which are left in the smallest crop.
SLOWFAST_4X16 = {"alpha": 8, "fusion_kernel": 5}
SLOWFAST_4X16_SPEC = replace(slowfast.SPEC, min_size=(16, 32, 32))


def x3d_spec(name: str) -> InputSpec:
    """What one of the X3D networks was fed: they differ in little else."""
    frames, crop = {"xs": (4, 160), "s": (13, 160), "m": (16, 224), "l": (16, 312)}[name]
    return replace(x3d.SPEC, size=(frames, crop, crop))


def _source(
    arch: str,
    file: str,
    spec: InputSpec,
    citation: str,
    note: str,
    tag: str = "kinetics400",
    arguments: Mapping = {},
) -> WeightSource:
    return WeightSource(
        arch=arch,
        tag=tag,
        file=file,
        url=ROOT + file,
        input_spec=spec,
        licence="none stated for the weights; code Apache-2.0",
        citation=citation,
        data=("Kinetics-400",),
        arguments=arguments,
        format="pytorchvideo",
        note=note,
    )


_SLOW_SPEC, _C2D_SPEC = video_bottleneck.SLOW_SPEC, video_bottleneck.C2D_SPEC

SOURCES = (
    _source("slow_r50", "SLOW_8x8_R50.pyth", _SLOW_SPEC, FEICHTENHOFER, "8 frames, every 8th; top-1 74.58 %"),
    _source(
        "slow_r50",
        "SLOW_4x16_R50.pyth",
        replace(_SLOW_SPEC, size=(4, 224, 224)),
        FEICHTENHOFER,
        "4 frames, every 16th; top-1 72.40 %",
        tag="kinetics400_4x16",
    ),
    _source("c2d_r50", "C2D_8x8_R50.pyth", _C2D_SPEC, WANG, "8 frames, every 8th; top-1 71.46 %"),
    _source("i3d_r50", "I3D_8x8_R50.pyth", _C2D_SPEC, CARREIRA, "8 frames, every 8th; top-1 73.27 %"),
    _source(
        "r2plus1d_r50",
        "R2PLUS1D_16x4_R50.pyth",
        video_bottleneck.R2PLUS1D_SPEC,
        _TRAN,
        "16 frames, every 4th; top-1 76.01 %; its blocks convolve over time first",
    ),
    _source(
        "csn_r101", "CSN_32x2_R101.pyth", video_bottleneck.CSN_SPEC, _TRAN_CSN, "32 frames, every 2nd; top-1 77.00 %"
    ),
    _source(
        "slowfast_r50",
        "SLOWFAST_8x8_R50.pyth",
        slowfast.SPEC,
        FEICHTENHOFER,
        "32 frames, every 2nd, of which the slow pathway sees 8; top-1 76.94 %",
    ),
    _source(
        "slowfast_r50",
        "SLOWFAST_4x16_R50.pyth",
        SLOWFAST_4X16_SPEC,
        FEICHTENHOFER,
        "32 frames, every 2nd, of which the slow pathway sees 4; top-1 75.34 %",
        tag="kinetics400_4x16",
        arguments=SLOWFAST_4X16,
    ),
    _source(
        "slowfast_r101",
        "SLOWFAST_8x8_R101.pyth",
        slowfast.SPEC,
        FEICHTENHOFER,
        "32 frames, every 2nd, of which the slow pathway sees 8; top-1 77.90 %",
    ),
    _source(
        "slowfast_16x8_r101_50_50",
        "SLOWFAST_16x8_R101_50_50.pyth",
        replace(slowfast.SPEC, size=(64, 224, 224)),
        FEICHTENHOFER,
        "64 frames, every 2nd, of which the slow pathway sees 16; top-1 78.70 %",
    ),
    _source("x3d_xs", "X3D_XS.pyth", x3d_spec("xs"), FEICHTENHOFER_X3D, "4 frames, every 12th; top-1 69.12 %"),
    _source("x3d_s", "X3D_S.pyth", x3d_spec("s"), FEICHTENHOFER_X3D, "13 frames, every 6th; top-1 73.33 %"),
    _source("x3d_m", "X3D_M.pyth", x3d_spec("m"), FEICHTENHOFER_X3D, "16 frames, every 5th; top-1 75.94 %"),
    _source("x3d_l", "X3D_L.pyth", x3d_spec("l"), FEICHTENHOFER_X3D, "16 frames, every 5th; top-1 77.44 %"),
)
