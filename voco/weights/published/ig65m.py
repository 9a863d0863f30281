"""R(2+1)D-34 of 65 million Instagram videos: VMZ's Caffe2 weights in the port moabitcoin/ig65m-pytorch.

File names, which end with the first digits of their sha256, and clips are those of the port's README.
"""

from __future__ import annotations

from dataclasses import replace

from voco.encoders.video_resnet import CLIP32_SPEC
from voco.weights.sources import WeightSource

ROOT = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0/"


def _r2plus1d_34(frames: int, digest: str, kinetics: bool) -> WeightSource:
    training = "ft_kinetics_from_ig65m" if kinetics else "ig65m_from_scratch"
    file = f"r2plus1d_34_clip{frames}_{training}-{digest}.pth"
    return WeightSource(
        arch="r2plus1d_34",
        tag=f"{'ig65m_kinetics400' if kinetics else 'ig65m'}_clip{frames}",
        file=file,
        url=ROOT + file,
        input_spec=replace(CLIP32_SPEC, size=(frames, 112, 112)),
        licence="none stated for the weights; code of the unofficial port MIT",
        citation="Ghadiyaram et al., Large-scale weakly-supervised pre-training for video action recognition, "
        "CVPR 2019",
        data=("IG-65M", "Kinetics-400") if kinetics else ("IG-65M",),
        sha256=digest,
        format="IG-65M",
        note=f"{frames} frames, crop 112; weakly supervised by hashtags" + (", then Kinetics-400" if kinetics else ""),
    )


SOURCES = (
    _r2plus1d_34(32, "449a7af9", kinetics=False),
    _r2plus1d_34(32, "ade133f1", kinetics=True),
    _r2plus1d_34(8, "9bae36ae", kinetics=False),
    _r2plus1d_34(8, "0aa0550b", kinetics=True),
)
