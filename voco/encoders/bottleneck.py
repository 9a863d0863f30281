"""Bottleneck blocks of PyTorchVideo and SlowFast networks. Parameter names are PyTorchVideo's.

The published code starts the last normalisation of each block at zero; here it starts at one, so that every parameter
takes part from the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from voco.encoders.spec import InputSpec


@dataclass(frozen=True)
class StageSpec:
    """One stage of residual bottleneck blocks.

    Attributes:
        blocks: how many.
        width: channels inside a block.
        width_out: channels that it gives.
        depth_kernels: depth size of each block's first convolution.
        stride: in-plane stride of the first block.
        depth_stride: its depth stride.
        middle: the second convolution: ``plane`` (1x3x3), ``depthwise`` (3x3x3, one kernel per channel),
            ``depth_first`` (3x1x1, then 1x3x3) or ``excited`` (depthwise, every other block with squeeze and
            excitation, then swish).
    """

    blocks: int
    width: int
    width_out: int
    depth_kernels: tuple[int, ...]
    stride: int = 2
    depth_stride: int = 1
    middle: str = "plane"


def conv3d(
    width_in: int, width: int, kernel: Sequence[int], stride: Sequence[int] = (1, 1, 1), groups: int = 1
) -> nn.Conv3d:
    """A convolution without bias that keeps the size, or rounds it up at a stride."""
    padding = tuple(k // 2 for k in kernel)
    return nn.Conv3d(width_in, width, tuple(kernel), tuple(stride), padding, groups=groups, bias=False)


class DepthFirstConv(nn.Module):
    """The middle of an R(2+1)D bottleneck: over depth first, then in plane.

    The paper has it the other way round; the released PyTorchVideo weights act in this order.
    """

    def __init__(self, width: int, depth_stride: int, stride: int):
        super().__init__()
        self.conv_t = conv3d(width, width, (3, 1, 1), (depth_stride, 1, 1))
        self.norm = nn.BatchNorm3d(width)
        self.conv_xy = conv3d(width, width, (1, 3, 3), (1, stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_xy(F.relu(self.norm(self.conv_t(x)), inplace=True))


class SqueezeExcitation(nn.Module):
    """Channels weighted by what their averages say. The squeezed width is a sixteenth, rounded to a multiple of 8."""

    def __init__(self, width: int):
        super().__init__()
        sixteenth = width / 16
        squeezed = max(8, int(sixteenth + 4) // 8 * 8)
        if squeezed < 0.9 * sixteenth:
            squeezed += 8
        self.block = nn.Sequential(
            nn.Conv3d(width, squeezed, 1), nn.ReLU(inplace=True), nn.Conv3d(squeezed, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x.mean((2, 3, 4), keepdim=True))


class Branch(nn.Module):
    """Narrow, convolve, widen: the residual branch of a block."""

    def __init__(self, width_in: int, stage: StageSpec, index: int):
        super().__init__()
        width = stage.width
        stride, depth_stride = (stage.stride, stage.depth_stride) if index == 0 else (1, 1)
        self.conv_a = conv3d(width_in, width, (stage.depth_kernels[index], 1, 1))
        self.norm_a = nn.BatchNorm3d(width)
        strides = (depth_stride, stride, stride)
        if stage.middle == "depth_first":
            self.conv_b = DepthFirstConv(width, depth_stride, stride)
        elif stage.middle == "plane":
            self.conv_b = conv3d(width, width, (1, 3, 3), strides)
        else:
            self.conv_b = conv3d(width, width, (3, 3, 3), strides, groups=width)
        self.norm_b: nn.Module = nn.BatchNorm3d(width)
        self.swish = stage.middle == "excited"
        if self.swish:
            self.norm_b = nn.Sequential(self.norm_b, nn.Identity() if index % 2 else SqueezeExcitation(width))
        self.conv_c = conv3d(width, stage.width_out, (1, 1, 1))
        self.norm_c = nn.BatchNorm3d(stage.width_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)), inplace=True)
        x = self.norm_b(self.conv_b(x))
        x = F.silu(x) if self.swish else F.relu(x, inplace=True)
        return self.norm_c(self.conv_c(x))


class Block(nn.Module):
    """A residual bottleneck block; the shortcut is projected where width or size change.

    PyTorchVideo normalises it only where the width changes.

    Args:
        width_in: channels that come in.
        stage: of which it is a block.
        index: which one.
        shortcut_norm: normalise a shortcut that keeps its width, too. It is then named ``branch1_normed``: files with
            and without this normalisation must not pass for each other.
    """

    def __init__(self, width_in: int, stage: StageSpec, index: int, shortcut_norm: bool = False):
        super().__init__()
        width = stage.width_out
        stride = (stage.depth_stride, stage.stride, stage.stride) if index == 0 else (1, 1, 1)
        self.branch1_conv = self.branch1_norm = self.branch1_normed = None
        if width_in != width:
            self.branch1_conv = conv3d(width_in, width, (1, 1, 1), stride)
            self.branch1_norm = nn.BatchNorm3d(width)
        elif max(stride) > 1 and not shortcut_norm:
            self.branch1_conv = conv3d(width, width, (1, 1, 1), stride)
        elif max(stride) > 1:
            self.branch1_normed = nn.Sequential(conv3d(width, width, (1, 1, 1), stride), nn.BatchNorm3d(width))
        self.branch2 = Branch(width_in, stage, index)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for part in (self.branch1_conv, self.branch1_norm, self.branch1_normed):
            shortcut = shortcut if part is None else part(shortcut)
        return F.relu(shortcut + self.branch2(x))


class Stage(nn.Module):
    """Blocks one after another, in ``res_blocks``.

    Args:
        width_in: channels that come in.
        spec: what the blocks are.
        shortcut_norm: normalise every projected shortcut, also where the width stays the same.
    """

    def __init__(self, width_in: int, spec: StageSpec, shortcut_norm: bool = False):
        super().__init__()
        self.res_blocks = nn.ModuleList(
            Block(spec.width_out if index else width_in, spec, index, shortcut_norm) for index in range(spec.blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


class Stem(nn.Module):
    """First convolution, stride 2 in plane, and a max pool of stride 2 in plane where the network has one."""

    def __init__(self, channels: int, width: int, depth_kernel: int, pool: bool = True):
        super().__init__()
        self.conv = conv3d(channels, width, (depth_kernel, 7, 7), (1, 2, 2))
        self.norm = nn.BatchNorm3d(width)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.norm(self.conv(x)), inplace=True))


class DepthMaxPool(nn.Module):
    """Maximum of two neighbouring slices, or nothing (``size`` 1).

    With stride it takes an even number of slices: published code drops an odd last one. Without, each slice is compared
    with the next, so that every other position is what the strided pool gives.
    """

    def __init__(self, size: int, stride: int):
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.size == 1:
            return x
        if self.stride == 2:
            return F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
        return F.max_pool3d(x, (2, 1, 1), 1, (1, 0, 0))[:, :, 1:]


def with_depth_stride(input_spec: InputSpec, depth_stride: int | None) -> InputSpec:
    """A network that keeps more positions along depth takes shallower crops: two positions are left at the end."""
    if depth_stride is None:
        return input_spec
    return replace(input_spec, min_size=(max(4, 2 * depth_stride), *input_spec.min_size[1:]))
