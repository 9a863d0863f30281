"""Weights of the SlowFast repository's bottleneck networks (Caffe2 pickles) and X3D, trained on Kinetics-400.

Files and accuracies are those of its MODEL_ZOO.md, clips those of its configurations; it publishes no digests. Left
out: I3D with non-local blocks, and fine-tuned networks for other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from voco.encoders import slowfast, video_bottleneck
from voco.encoders.spec import InputSpec
from voco.weights.published.pytorchvideo import (
    CARREIRA,
    FEICHTENHOFER,
    FEICHTENHOFER_X3D,
    SLOWFAST_4X16,
    SLOWFAST_4X16_SPEC,
    WANG,
    x3d_spec,
)
from voco.weights.sources import WeightSource

ROOT = "https://dl.fbaipublicfiles.com/pyslowfast/"


def _source(
    arch: str,
    path: str,
    spec: InputSpec,
    citation: str,
    note: str,
    tag: str = "kinetics400_slowfast",
    arguments: Mapping = {},
) -> WeightSource:
    file = path.rpartition("/")[2]
    return WeightSource(
        arch=arch,
        tag=tag,
        file=file,
        url=ROOT + path,
        input_spec=spec,
        licence="none stated for the weights; code Apache-2.0",
        citation=citation,
        data=("Kinetics-400",),
        arguments=arguments,
        format="SlowFast caffe2" if file.endswith(".pkl") else "SlowFast",
        note=note,
    )


def _x3d(size: str, note: str) -> WeightSource:
    return _source(
        f"x3d_{size}",
        f"x3d_models/x3d_{size}.pyth",
        x3d_spec(size),
        FEICHTENHOFER_X3D,
        f"{note}; one more shortcut is normalised than in PyTorchVideo's",
        arguments={"shortcut_norm": True},
    )


_ZOO = "model_zoo/kinetics400/"
_SLOW_SPEC, _C2D_SPEC = video_bottleneck.SLOW_SPEC, video_bottleneck.C2D_SPEC

SOURCES = (
    _source("slow_r50", _ZOO + "SLOWONLY_8x8_R50.pkl", _SLOW_SPEC, FEICHTENHOFER, "8 frames, every 8th; top-1 74.8 %"),
    _source(
        "slow_r50",
        _ZOO + "SLOWONLY_4x16_R50.pkl",
        replace(_SLOW_SPEC, size=(4, 224, 224)),
        FEICHTENHOFER,
        "4 frames, every 16th; top-1 72.7 %",
        tag="kinetics400_4x16_slowfast",
    ),
    _source(
        "c2d_r50",
        _ZOO + "C2D_NOPOOL_8x8_R50.pkl",
        _C2D_SPEC,
        WANG,
        "8 frames, every 8th; top-1 67.2 %; slices are nowhere pooled, which cannot be seen in the file",
        tag="kinetics400_nopool_slowfast",
        arguments={"depth_pool": False},
    ),
    _source("i3d_r50", _ZOO + "I3D_8x8_R50.pkl", _C2D_SPEC, CARREIRA, "8 frames, every 8th; top-1 73.5 %"),
    _source(
        "slowfast_r50",
        _ZOO + "SLOWFAST_8x8_R50.pkl",
        slowfast.SPEC,
        FEICHTENHOFER,
        "32 frames, every 2nd, of which the slow pathway sees 8; top-1 77.0 %",
    ),
    _source(
        "slowfast_r50",
        _ZOO + "SLOWFAST_4x16_R50.pkl",
        SLOWFAST_4X16_SPEC,
        FEICHTENHOFER,
        "32 frames, every 2nd, of which the slow pathway sees 4; top-1 75.6 %",
        tag="kinetics400_4x16_slowfast",
        arguments=SLOWFAST_4X16,
    ),
    _x3d("xs", "4 frames, every 12th; top-1 69.5 % over 30 views"),
    _x3d("s", "13 frames, every 6th; top-1 73.5 % over 30 views"),
    _x3d("m", "16 frames, every 5th; top-1 76.2 % over 30 views"),
    _x3d("l", "16 frames, every 5th; top-1 77.5 % over 30 views"),
)
