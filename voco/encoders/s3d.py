"""S3D, the separable 3D Inception network, from torchvision: in-plane, then depth convolutions. Its parameter names."""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from torch import Tensor, nn

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import kinetics_spec
from voco.encoders.strides import reduced_depth_strides
from voco.encoders.video_resnet import RGB_MEAN, RGB_STD, set_depth_stride

if TYPE_CHECKING:
    from voco.encoders.spec import InputSpec

# 64 in plane: at 32 the deepest map of a small crop has one position, and BatchNorm little to normalise by.
# Multiples: the last pooling (2x2x2, no padding) drops an odd last slice, row and column, unlike all other strides.
# Rounding up instead would change the features of published weights; with air around the volume nothing is dropped.
SPEC = kinetics_spec((64, 224, 224), (8, 64, 64), RGB_MEAN, RGB_STD, size_multiple=(8, 32, 32))

# Modules of ``features`` whose output is a map (each the last before the next stride), and its width.
ENDS = {0: 64, 3: 192, 6: 480, 12: 832, 15: 1024}
STEM, POOL, LAST_POOL = 0, 7, 13


class S3DEncoder(Encoder):
    """S3D without its classifier (Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018).

    Args:
        input_spec: channels of the input; the stem is rebuilt with that many.
        net: ``torchvision.models.video.S3D``; its modules are taken over.
        depth_stride: 8 as published, or 4, 2, 1.
    """

    stem_keys = ("features.0.0.0.weight",)

    def __init__(self, input_spec: InputSpec, net: nn.Module, depth_stride: int | None = None):
        stem, pool, last = reduced_depth_strides((2, 2, 2), depth_stride, "s3d")
        depths = accumulate((stem, 1, 1, pool, last), mul)
        planes = accumulate((2, 2, 2, 2, 2), mul)
        super().__init__(
            input_spec,
            [
                {"num_chs": width, "reduction": (depth, plane, plane), "module": f"features.{index}"}
                for (index, width), depth, plane in zip(ENDS.items(), depths, planes)
            ],
        )
        self.features = net.features
        set_depth_stride(self.features[STEM], stem)
        self.features[POOL].stride = (pool, 2, 2)
        # A window of two slices at every slice would have no centre: without its stride it pools in plane only.
        self.features[LAST_POOL] = nn.MaxPool3d((last, 2, 2), (last, 2, 2))
        rgb = self.features[STEM][0][0]
        self.features[STEM][0][0] = nn.Conv3d(
            input_spec.channels, rgb.out_channels, rgb.kernel_size, rgb.stride, rgb.padding, bias=False
        )

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, module in enumerate(self.features):
            x = self._run(module, x)
            if index in ENDS:
                maps.append(x)
        return maps


@register_encoder(
    "s3d", family="s3d", input_spec=SPEC, summary="torchvision S3D, 7.9 M parameters (Kinetics-400 weights exist)"
)
def s3d(input_spec: InputSpec, depth_stride: int | None = None) -> S3DEncoder:
    from torchvision.models import video

    return S3DEncoder(input_spec, video.s3d(weights=None), depth_stride)
