"""Weights of MMAction2's SlowOnly, SlowFast and X3D.

Files and accuracies are those of the project's metafiles, clips, means and stds those of its configurations; a file's
name ends with the first eight digits of its sha256 (two SlowOnly files end with the same ones, df42dc84: for them no
digest is taken as known). Left out are networks that differ from ours: C2D and I3D (other strides), SlowOnly with
non-local blocks, SlowOnly R101, SlowFast with pathways of different depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from voco.encoders import slowfast, video_bottleneck
from voco.encoders.spec import IMAGENET, InputSpec, kinetics_spec
from voco.weights.published.pytorchvideo import FEICHTENHOFER, FEICHTENHOFER_X3D, x3d_spec
from voco.weights.sources import WeightSource

ROOT = "https://download.openmmlab.com/mmaction/v1.0/recognition/"


def _source(
    arch: str,
    tag: str,
    folder: str,
    file: str,
    spec: InputSpec,
    note: str,
    data: tuple[str, ...] = ("Kinetics-400",),
    citation: str = FEICHTENHOFER,
    arguments: Mapping = {},
) -> WeightSource:
    return WeightSource(
        arch=arch,
        tag=f"{tag}_mmaction2",
        file=file,
        url=f"{ROOT}{folder}/{file}",
        input_spec=spec,
        licence="none stated for the weights; code Apache-2.0",
        citation=citation,
        data=data,
        sha256="" if "df42dc84" in file else file.removesuffix(".pth").rpartition("-")[2],
        arguments=arguments,
        format="MMAction2",
        note=note,
    )


def _imagenet_statistics(spec: InputSpec) -> InputSpec:
    return kinetics_spec(spec.size, spec.min_size, **IMAGENET)


def _slowonly(
    tag: str, config: str, date: str, frames: int, note: str, data: tuple[str, ...], file: str = ""
) -> WeightSource:
    spec = _imagenet_statistics(replace(video_bottleneck.SLOW_SPEC, size=(frames, 224, 224)))
    return _source("slow_r50", tag, f"slowonly/{config}", f"{file or config}_{date}.pth", spec, note, data)


def _slowfast(arch: str, tag: str, config: str, date: str, alpha: int, kernel: int, note: str) -> WeightSource:
    spec = _imagenet_statistics(replace(slowfast.SPEC, min_size=(2 * alpha, 32, 32)))
    arguments = {"alpha": alpha, "fusion_kernel": kernel, "fusion_norm": False, "packing": "regular"}
    file = f"{config}_{date}.pth"
    return _source(arch, tag, f"slowfast/{config}", file, spec, note, arguments=arguments)


_K400, _K700 = ("Kinetics-400",), ("Kinetics-700",)
_IN = ("ImageNet-1k",)

SOURCES = (
    _slowonly(
        "kinetics400",
        "slowonly_r50_8xb16-8x8x1-256e_kinetics400-rgb",
        "20220901-2132fc87",
        8,
        "8 frames, every 8th; top-1 74.82 %",
        _K400,
    ),
    _slowonly(
        "kinetics400_4x16",
        "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
        "20220901-f6a40d08",
        4,
        "4 frames, every 16th; top-1 72.68 %",
        _K400,
        file="slowonly_r50_4x16x1_256e_8xb16_kinetics400-rgb",
    ),
    _slowonly(
        "kinetics400_in1k",
        "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb",
        "20220901-df42dc84",
        8,
        "8 frames, every 8th; top-1 75.96 %",
        _IN + _K400,
    ),
    _slowonly(
        "kinetics400_in1k_4x16",
        "slowonly_imagenet-pretrained-r50_8xb16-4x16x1-steplr-150e_kinetics400-rgb",
        "20220901-e7b65fad",
        4,
        "4 frames, every 16th; top-1 74.83 %",
        _IN + _K400,
    ),
    _slowonly(
        "kinetics700_in1k",
        "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics700-rgb",
        "20220901-4098e1eb",
        8,
        "8 frames, every 8th; top-1 66.93 %",
        _IN + _K700,
        file="slowonly_imagenet-pretrained-r50_16xb16-8x8x1-steplr-150e_kinetics700-rgb",
    ),
    _slowfast(
        "slowfast_r50",
        "kinetics400",
        "slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb",
        "20220818-1cb6dfc8",
        4,
        7,
        "32 frames, every 2nd, of which the slow pathway sees 8; top-1 76.80 %",
    ),
    _slowfast(
        "slowfast_r50",
        "kinetics400_4x16",
        "slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb",
        "20220901-701b0f6f",
        8,
        5,
        "32 frames, every 2nd, of which the slow pathway sees 4; top-1 75.55 %",
    ),
    _slowfast(
        "slowfast_r101",
        "kinetics400",
        "slowfast_r101_8xb8-8x8x1-256e_kinetics400-rgb",
        "20220901-9c0e09bd",
        4,
        7,
        "32 frames, every 2nd, of which the slow pathway sees 8; top-1 78.65 %",
    ),
    *(
        _source(
            f"x3d_{size}",
            "kinetics400",
            "x3d/facebook",
            file,
            x3d_spec(size),
            f"SlowFast's weights; {note}; one more shortcut is normalised than in PyTorchVideo's",
            citation=FEICHTENHOFER_X3D,
            arguments={"shortcut_norm": True},
        )
        for size, file, note in (
            ("s", "x3d_s_13x6x1_facebook-kinetics400-rgb_20201027-623825a0.pth", "13 frames, every 6th; top-1 73.3 %"),
            ("m", "x3d_m_16x5x1_facebook-kinetics400-rgb_20201027-3f42382a.pth", "16 frames, every 5th; top-1 76.4 %"),
        )
    ),
)
