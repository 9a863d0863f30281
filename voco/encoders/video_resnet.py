"""torchvision's video ResNets as CT encoders: frames become depth. Parameter names are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import kinetics_spec
from voco.encoders.strides import reduced_depth_strides

if TYPE_CHECKING:
    from voco.encoders.spec import InputSpec

RGB_MEAN, RGB_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
SPEC = kinetics_spec((16, 112, 112), (8, 32, 32), RGB_MEAN, RGB_STD)
CLIP32_SPEC = kinetics_spec((32, 112, 112), (8, 32, 32), RGB_MEAN, RGB_STD)

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
WIDTHS = (64, 64, 128, 256, 512)
DEPTH_STRIDES, PLANE_STRIDES = (1, 1, 2, 2, 2), (2, 1, 2, 2, 2)


class VideoResNetEncoder(Encoder):
    """Stem and four stages of a torchvision video ResNet, without its classifier.

    Any size from ``min_size`` up is taken as it is: odd sizes are rounded up at each stride.

    Args:
        input_spec: channels of the input; the stem is rebuilt with that many.
        net: ``torchvision.models.video.VideoResNet``; its modules are taken over.
        depth_strides: depth stride of each of stem, layer1 .. layer4, at most those of ``net``.
    """

    stem_keys = ("stem.0.weight",)

    def __init__(self, input_spec: InputSpec, net: nn.Module, depth_strides: Sequence[int]):
        depths, planes = accumulate(depth_strides, mul), accumulate(PLANE_STRIDES, mul)
        super().__init__(
            input_spec,
            [
                {"num_chs": width, "reduction": (depth, plane, plane), "module": name}
                for name, width, depth, plane in zip(STAGES, WIDTHS, depths, planes)
            ],
        )
        for name, stride in zip(STAGES, depth_strides):
            stage = getattr(net, name)
            set_depth_stride(stage, stride)
            self.add_module(name, stage)
        self.stem[0] = _with_channels(self.stem[0], input_spec.channels)

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = self._run(self.stem, x)
        maps = [x]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = self._run(block, x)
            maps.append(x)
        return maps


def set_depth_stride(module: nn.Module, stride: int) -> None:
    """Give the convolutions of a stage that stride in depth another stride there; those that do not are left."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv3d) and conv.stride[0] > 1:
            conv.stride = (stride, *conv.stride[1:])


def _with_channels(conv: nn.Conv3d, channels: int) -> nn.Conv3d:
    """The same convolution for another number of input channels, with the initial scale of the original.

    torchvision initialises by fan-out, which does not depend on the input channels, so summing a random RGB stem
    would be sqrt(3) times too strong for training from scratch; weights from files are adapted in ``voco.weights``.
    """
    new = nn.Conv3d(
        channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None
    )
    with torch.no_grad():
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        if new.bias is not None:
            new.bias.zero_()
    return new


def _register(name: str, published_strides: tuple[int, ...], summary: str) -> None:
    @register_encoder(name, family="video_resnet", input_spec=SPEC, summary=f"torchvision {summary}")
    def build(input_spec: InputSpec, depth_stride: int | None = None) -> VideoResNetEncoder:
        from torchvision.models import video

        strides = reduced_depth_strides(published_strides, depth_stride, name)
        return VideoResNetEncoder(input_spec, getattr(video, name)(weights=None), strides)


_register("r3d_18", DEPTH_STRIDES, "R3D-18 (Kinetics-400 weights exist)")
_register("mc3_18", (1,) * 5, "MC3-18: 3D kernels in stem and layer1, then 1x3x3; full depth resolution throughout")
_register("r2plus1d_18", DEPTH_STRIDES, "R(2+1)D-18: in-plane, then depth convolutions (Kinetics-400 weights exist)")


@register_encoder(
    "r2plus1d_34",
    family="r2plus1d_34",
    input_spec=CLIP32_SPEC,
    summary="R(2+1)D-34 of the IG-65M weights (65 million videos; also fine-tuned on Kinetics-400)",
)
def r2plus1d_34(input_spec: InputSpec, depth_stride: int | None = None, bn_momentum: float = 0.1) -> VideoResNetEncoder:
    """torchvision's R(2+1)D with 34 layers, as the Caffe2 networks of VMZ have it.

    Tran et al., A Closer Look at Spatiotemporal Convolutions, CVPR 2018. torchvision has one mid width per block
    (pytorch/vision issue 1265); VMZ gives the second convolution of a strided block the width of its own shape.

    Args:
        input_spec: channels of the input.
        depth_stride: 8 as published, or 4, 2, 1.
        bn_momentum: share of the new batch in BatchNorm's running statistics. Caffe2's 0.9 is the share of the old
            ones, hence 0.1 here; the port moabitcoin/ig65m-pytorch passes 0.9 on as it is.
    """
    from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

    strides = reduced_depth_strides(DEPTH_STRIDES, depth_stride, "r2plus1d_34")
    net = VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [3, 4, 6, 3], R2Plus1dStem)
    for layer, width in ((net.layer2, 128), (net.layer3, 256), (net.layer4, 512)):
        # A 3x3x3 kernel has width * width * 27 weights; the pair with the same number has this mid width.
        conv = Conv2Plus1D(width, width, width * width * 27 // (width * 9 + 3 * width))
        for part in (conv[0], conv[3]):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        layer[0].conv2[0] = conv
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps, module.momentum = 1e-3, bn_momentum
    return VideoResNetEncoder(input_spec, net, strides)
