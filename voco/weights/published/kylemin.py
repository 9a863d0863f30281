"""S3D of kylemin/S3D: the same network as torchvision's with better Kinetics-400 weights, fed values from -1 to 1.

Address and accuracy are those of the project's README; the file's name is the one that its sample code opens.
"""

from __future__ import annotations

from dataclasses import replace

from voco.encoders.s3d import SPEC
from voco.weights.sources import WeightSource

SOURCES = (
    WeightSource(
        arch="s3d",
        tag="kinetics400_kylemin",
        file="S3D_kinetics400.pt",
        url="https://drive.google.com/file/d/1IysdsJI7UuWazoxFyYvrbO97Lz_EP5H-/view?usp=sharing",
        input_spec=replace(SPEC, mean=(0.5,), std=(0.5,), rgb_mean=None, rgb_std=None),
        licence="none stated for the weights; code MIT",
        citation="Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018; weights: Min and Corso, "
        "TASED-Net, ICCV 2019",
        data=("Kinetics-400",),
        download=False,
        format="kylemin S3D",
        note="crop 224, colours scaled to [-1, 1]; number of frames not stated; top-1 72.08 %",
    ),
)
