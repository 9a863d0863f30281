"""MViT weights of torchvision, pytorchvideo, SlowFast and MMAction2.

File names, addresses and accuracies are those of torchvision's and pytorchvideo's code, SlowFast's lists of models and
MMAction2's model index; digests are the parts that torchvision and MMAction2 put into file names. SlowFast's own 32x3
file of MViT-B has 24 blocks and is another network; its 16x4 file lies in a Google Drive under a name not told in the
list, and loads into mvit_v1_b as a path.
"""

from __future__ import annotations

from voco.encoders.mvit import SPEC, SPEC_32
from voco.encoders.spec import IMAGENET, kinetics_spec
from voco.weights.sources import WeightSource

_IMAGE_SPEC = kinetics_spec(SPEC.size, SPEC.min_size, **IMAGENET)
_TORCHVISION = {
    "format": "torchvision",
    "licence": "none stated for the weights; code BSD-3-Clause, ported from pytorchvideo and SlowFast (Apache-2.0)",
}
_PYTORCHVIDEO = {"format": "pytorchvideo", "licence": "none stated for the weights; code Apache-2.0"}
_SLOWFAST = {"format": "SlowFast", "licence": "none stated for the weights; code Apache-2.0"}
_MMACTION = {"format": "MMAction2", "licence": "none stated for the weights; code Apache-2.0"}
_V1 = {"citation": "Fan et al., Multiscale Vision Transformers, ICCV 2021"}
_V2 = {
    "citation": "Li et al., MViTv2: Improved Multiscale Vision Transformers for Classification and Detection, CVPR 2022"
}
_KINETICS = {"data": ("Kinetics-400",)}
_CLIP = "16 frames, every 4th; crop 224"


def _source(arch: str, tag: str, url: str, note: str, **more) -> WeightSource:
    return WeightSource(
        **({"input_spec": SPEC} | more), arch=arch, tag=tag, file=url.rpartition("/")[2], url=url, note=note
    )


SOURCES = (
    _source(
        "mvit_v1_b",
        "kinetics400",
        "https://download.pytorch.org/models/mvit_v1_b-dbeb1030.pth",
        f"{_CLIP}; top-1 78.477 %",
        sha256="dbeb1030",
        **(_TORCHVISION | _V1 | _KINETICS),
    ),
    _source(
        "mvit_v1_b",
        "kinetics400_pytorchvideo",
        "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/MVIT_B_16x4.pyth",
        f"{_CLIP}; top-1 78.85 %",
        **(_PYTORCHVIDEO | _V1 | _KINETICS),
    ),
    _source(
        "mvit_v1_b",
        "imagenet1k",
        "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/imagenet/MVIT_B_16_f292487636.pyth",
        "2D network, inflated; its keys and values are pooled half as coarsely, hence kv_stride 4; top-1 83 %",
        input_spec=_IMAGE_SPEC,
        data=("ImageNet-1k",),
        arguments={"kv_stride": 4},
        **(_PYTORCHVIDEO | _V1),
    ),
    _source(
        "mvit_b_32x3",
        "kinetics400",
        "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/MVIT_B_32x3_f294077834.pyth",
        "32 frames, every 3rd; crop 224; top-1 80.30 %",
        input_spec=SPEC_32,
        **(_PYTORCHVIDEO | _V1 | _KINETICS),
    ),
    _source(
        "mvit_v2_s",
        "kinetics400",
        "https://download.pytorch.org/models/mvit_v2_s-ae3be167.pth",
        f"{_CLIP}; top-1 80.757 %",
        sha256="ae3be167",
        **(_TORCHVISION | _V2 | _KINETICS),
    ),
    _source(
        "mvit_v2_s",
        "kinetics400_slowfast",
        "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/mvitv2/pysf_video_models/MViTv2_S_16x4_k400_f302660347.pyth",
        f"{_CLIP}; top-1 81.0 %",
        **(_SLOWFAST | _V2 | _KINETICS),
    ),
    _source(
        "mvit_v2_s",
        "ssv2_slowfast",
        "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/mvitv2/pysf_video_models/MViTv2_S_16x4_ssv2_f308341823.pyth",
        "16 frames over the clip; crop 224; colours in the order blue, green, red; top-1 68.2 %",
        data=("Kinetics-400", "Something-Something v2"),
        **(_SLOWFAST | _V2),
    ),
    _source(
        "mvit_v2_s",
        "kinetics400_mmaction2",
        "https://download.openmmlab.com/mmaction/v1.0/recognition/mvit/"
        "mvit-small-p244_32xb16-16x4x1-200e_kinetics400-rgb/"
        "mvit-small-p244_32xb16-16x4x1-200e_kinetics400-rgb_20230201-23284ff3.pth",
        f"{_CLIP}; top-1 80.6 %",
        sha256="23284ff3",
        **(_MMACTION | _V2 | _KINETICS),
    ),
)
