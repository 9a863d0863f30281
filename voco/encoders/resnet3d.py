"""The 3D ResNets and R(2+1)D networks of kenshohara/3D-ResNets-PyTorch as CT encoders, with its parameter names.

Hara et al., Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?, CVPR 2018; Kataoka et al.,
arXiv:2004.04968. Beside torchvision's video ResNets they have a 7x7x7 stem and a max pooling, hence twice the strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from torch import Tensor, nn

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.layers import initialise_convolutions
from voco.encoders.spec import InputSpec, kinetics_spec
from voco.encoders.strides import reduced_depth_strides

RGB_MEAN, RGB_STD = (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)
# 64 in plane: at 32 the deepest map of a small crop has one position, and BatchNorm little to normalise by.
SPEC = kinetics_spec((16, 112, 112), (4, 64, 64), RGB_MEAN, RGB_STD)

DEPTH_STRIDES = (1, 2, 1, 2, 2, 2)  # of conv1, maxpool, layer1 .. layer4
STEM_KERNEL = 7
WIDTHS = (64, 128, 256, 512)
# The stem's mid width follows from colour input whatever the number of channels, as in the public code.
STEM_MID_CHANNELS = 110


class Block(nn.Module):
    """A residual block of two 3x3x3 convolutions, or of 1x1x1, 3x3x3, 1x1x1 (the bottleneck).

    Convolutions are ``conv1`` .. and normalisations ``bn1`` ..; in R(2+1)D each 3x3x3 one is a pair: ``conv2_s`` in
    plane with ``bn2_s``, then ``conv2_t`` in depth with ``bn2_t``. The stride is that of the first 3x3x3 convolution.

    Args:
        width_in: channels of the input.
        width: channels of the 3x3x3 convolutions.
        stride: (depth, plane, plane).
        bottleneck: 1x1x1 convolutions around a single 3x3x3 one, and four times the channels in the output.
        separable: R(2+1)D.
    """

    def __init__(self, width_in: int, width: int, stride: tuple[int, int, int], bottleneck: bool, separable: bool):
        super().__init__()
        width_out = 4 * width if bottleneck else width
        self.steps: list[tuple[str, str]] = []
        if bottleneck:
            self._add("1", nn.Conv3d(width_in, width, 1, bias=False))
            self._add_3x3x3("2", width, width, stride, separable)
            self._add("3", nn.Conv3d(width, width_out, 1, bias=False))
        else:
            self._add_3x3x3("1", width_in, width, stride, separable)
            self._add_3x3x3("2", width, width, (1, 1, 1), separable)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if width_in != width_out or max(stride) > 1:
            self.downsample = nn.Sequential(
                nn.Conv3d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm3d(width_out)
            )

    def _add(self, suffix: str, conv: nn.Conv3d) -> None:
        conv_name, norm_name = f"conv{suffix}", f"bn{suffix}"
        self.add_module(conv_name, conv)
        self.add_module(norm_name, nn.BatchNorm3d(conv.out_channels))
        self.steps.append((conv_name, norm_name))

    def _add_3x3x3(self, number: str, width_in: int, width: int, stride: tuple[int, int, int], separable: bool) -> None:
        if not separable:
            self._add(number, nn.Conv3d(width_in, width, 3, stride, 1, bias=False))
            return
        # As many weights in the pair as in the 3x3x3 kernel (Tran et al. 2018, section 3.5).
        mid = width_in * width * 27 // (width_in * 9 + width * 3)
        depth, *plane = stride
        self._add(f"{number}_s", nn.Conv3d(width_in, mid, (1, 3, 3), (1, *plane), (0, 1, 1), bias=False))
        self._add(f"{number}_t", nn.Conv3d(mid, width, (3, 1, 1), (depth, 1, 1), (1, 0, 0), bias=False))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for conv, norm in self.steps:
            x = getattr(self, norm)(getattr(self, conv)(x))
            if (conv, norm) != self.steps[-1]:
                x = self.relu(x)
        return self.relu(x + shortcut)


class ResNet3dEncoder(Encoder):
    """Stem and four stages, without the classifier. Any size from ``min_size`` up: odd sizes are rounded up at strides.

    Args:
        input_spec: channels of the input.
        blocks: number of blocks of layer1 .. layer4.
        bottleneck: the block of 50 layers and more.
        separable: R(2+1)D instead of 3x3x3 convolutions.
        depth_strides: of conv1, maxpool, layer1 .. layer4.
        stem_kernel: depth size of the first convolution.
    """

    def __init__(
        self,
        input_spec: InputSpec,
        blocks: Sequence[int],
        bottleneck: bool,
        separable: bool,
        depth_strides: Sequence[int] = DEPTH_STRIDES,
        stem_kernel: int = STEM_KERNEL,
    ):
        expansion = 4 if bottleneck else 1
        depths = list(accumulate(depth_strides, mul))
        names = ("relu", "layer1", "layer2", "layer3", "layer4")
        widths = (64, *(expansion * width for width in WIDTHS))
        super().__init__(
            input_spec,
            [
                {"num_chs": width, "reduction": (depth, plane, plane), "module": name}
                for name, width, depth, plane in zip(names, widths, (depths[0], *depths[2:]), (2, 4, 8, 16, 32))
            ],
        )
        stem_stride, pool_stride, *layer_strides = depth_strides
        self._build_stem(input_spec.channels, separable, stem_stride, stem_kernel)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, (pool_stride, 2, 2), 1)
        width_in = 64
        for name, width, count, stride in zip(names[1:], WIDTHS, blocks, layer_strides):
            plane = 1 if name == "layer1" else 2
            layer = []
            for position in range(count):
                strides = (1, 1, 1) if position else (stride, plane, plane)
                layer.append(Block(width_in, width, strides, bottleneck, separable))
                width_in = expansion * width
            self.add_module(name, nn.Sequential(*layer))
        initialise_convolutions(self)

    def _build_stem(self, channels: int, separable: bool, stride: int, kernel: int) -> None:
        if not separable:
            self.conv1 = nn.Conv3d(channels, 64, (kernel, 7, 7), (stride, 2, 2), (kernel // 2, 3, 3), bias=False)
            self.bn1 = nn.BatchNorm3d(64)
            self.stem_keys = ("conv1.weight",)
            return
        mid = STEM_MID_CHANNELS
        self.conv1_s = nn.Conv3d(channels, mid, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1_s = nn.BatchNorm3d(mid)
        self.conv1_t = nn.Conv3d(mid, 64, (kernel, 1, 1), (stride, 1, 1), (kernel // 2, 0, 0), bias=False)
        self.bn1_t = nn.BatchNorm3d(64)
        self.stem_keys = ("conv1_s.weight",)

    def _stem(self) -> tuple[nn.Module, ...]:
        if "conv1" in self._modules:
            return self.conv1, self.bn1, self.relu
        return self.conv1_s, self.bn1_s, self.relu, self.conv1_t, self.bn1_t, self.relu

    def _maps(self, x: Tensor) -> list[Tensor]:
        # The names in the files are flat; the sequence is made here, so that checkpointing covers the stem as one.
        x = self._run(nn.Sequential(*self._stem()), x)
        maps = [x]
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = self._run(block, x)
            maps.append(x)
        return maps


def _register(name: str, blocks: tuple[int, ...], bottleneck: bool, separable: bool, summary: str) -> None:
    @register_encoder(name, family="resnet3d", input_spec=SPEC, summary=summary)
    def build(input_spec: InputSpec, depth_stride: int | None = None) -> ResNet3dEncoder:
        strides = reduced_depth_strides(DEPTH_STRIDES, depth_stride, name)
        return ResNet3dEncoder(input_spec, blocks, bottleneck, separable, strides)


_KENSHOHARA = "of kenshohara/3D-ResNets-PyTorch"
_register("resnet3d_18", (2, 2, 2, 2), False, False, f"3D ResNet-18 {_KENSHOHARA}; also inflated ImageNet weights")
_register("resnet3d_34", (3, 4, 6, 3), False, False, f"3D ResNet-34 {_KENSHOHARA}; also inflated ImageNet weights")
_register("resnet3d_50", (3, 4, 6, 3), True, False, f"3D ResNet-50 {_KENSHOHARA}; also inflated ImageNet weights")
_register("resnet3d_101", (3, 4, 23, 3), True, False, f"3D ResNet-101 {_KENSHOHARA}; also inflated ImageNet weights")
_register("resnet2p1d_18", (2, 2, 2, 2), False, True, f"R(2+1)D-18 {_KENSHOHARA} (Kinetics-700)")
_register("resnet2p1d_50", (3, 4, 6, 3), True, True, f"R(2+1)D-50 {_KENSHOHARA} (Kinetics-700)")
