"""The two encoders of nnU-Net: plain convolutions, and the residual one of its ResEnc presets.

Tensor names are those of the public package dynamic-network-architectures, so that nnU-Net and nnssl files fit by name;
build arguments carry the names of an nnU-Net plan. Sources: Isensee et al., nnU-Net, Nature Methods 2021; Isensee et
al., nnU-Net Revisited, MICCAI 2024 (arXiv 2404.09556).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import InputSpec
from voco.encoders.strides import reduced_depth_strides
from voco.errors import InputError

WIDTHS = (32, 64, 128, 256, 320, 320)
STRIDES = (1, 2, 2, 2, 2, 2)
KERNELS = (3, 3, 3, 3, 3, 3)

# nnU-Net subtracts a mean and divides by a standard deviation, of the data set for CT and of each image otherwise.
# Both networks normalise every channel right after their first convolution, which takes any offset and factor of the
# input away again, except within a voxel of the zero-padded border: only where the window clips matters. The numbers
# below are those of values spread evenly over the window. Orientation is that of the files in nnU-Net, which mirrors
# all three axes in training; slices come first.
PLAIN_SPEC = InputSpec(
    windows=((-175.0, 250.0),),
    mean=(0.5,),
    std=(0.2887,),
    size=(96, 96, 96),
    min_size=(8, 64, 64),
)
# Per-image normalisation without clipping: the whole range of a scanner.
WHOLE_RANGE = (-1024.0, 3071.0)
RESENC_SPEC = InputSpec(
    spacing_mm=(1.0, 1.0, 1.0),
    windows=(WHOLE_RANGE,),
    mean=(0.14,),  # about -450 and 500 HU, a chest with some air around it
    std=(0.122,),
    size=(160, 160, 160),
    min_size=(8, 64, 64),
)


class NNUNetEncoder(Encoder):
    """Stages of one nnU-Net encoder; ``pyramid`` gives what a decoder gets as skips, full resolution first.

    Any size from ``min_size`` up is taken as it is. nnU-Net itself takes multiples of its strides only; there the
    numbers are the same, elsewhere sizes are rounded up at each stride.

    Args:
        input_spec: channels and axes of the input.
        features_per_stage: widths.
        strides: per stage, one number or one per axis in the network's own axis order.
        kernel_sizes: per stage, likewise; odd.
        depth_stride: total stride along depth; smaller ones than the plan's drop the late strides.
    """

    def __init__(
        self,
        input_spec: InputSpec,
        features_per_stage: Sequence[int],
        strides: Sequence,
        kernel_sizes: Sequence,
        depth_stride: int | None,
    ):
        if not len(features_per_stage) == len(strides) == len(kernel_sizes) > 0:
            raise InputError(
                f"an nnU-Net encoder takes one width, stride and kernel per stage; found {len(features_per_stage)}, "
                f"{len(strides)} and {len(kernel_sizes)}"
            )
        kernels = [_triple(kernel, "kernel_sizes") for kernel in kernel_sizes]
        if any(k % 2 == 0 for kernel in kernels for k in kernel):
            raise InputError(f"kernel_sizes of an nnU-Net encoder are odd; found {list(map(list, kernels))}")
        order, _ = input_spec.axis_order
        depth = order.index(0)
        steps = [list(_triple(stride, "strides")) for stride in strides]
        reduced = reduced_depth_strides([step[depth] for step in steps], depth_stride, "an nnU-Net encoder")
        for step, new in zip(steps, reduced):
            step[depth] = new
        info, total = [], [1, 1, 1]
        for i, (width, step) in enumerate(zip(features_per_stage, steps)):
            total = [t * step[order.index(axis)] for axis, t in enumerate(total)]
            info.append({"num_chs": int(width), "reduction": tuple(total), "module": f"stages.{i}"})
        # Instance normalisation is undefined on one voxel and says nothing on two: the deepest map keeps four.
        smallest = (-(-total[0] // 4), 2 * total[1], 2 * total[2])
        smallest = tuple(max(pair) for pair in zip(smallest, input_spec.min_size))
        super().__init__(replace(input_spec, min_size=smallest), info)
        self._steps = [tuple(step) for step in steps]
        self._kernels = kernels


class PlainConvEncoder(NNUNetEncoder):
    """Stacked convolutions; the first of a stage carries its stride. See ``NNUNetEncoder`` for the arguments.

    Args:
        n_conv_per_stage: convolutions per stage.
        conv_bias: whether convolutions have a bias.
        norm_eps: of the instance normalisation.
    """

    stem_keys = ("stages.0.0.convs.0.conv.weight",)

    def __init__(
        self,
        input_spec: InputSpec,
        features_per_stage: Sequence[int] = WIDTHS,
        strides: Sequence = STRIDES,
        kernel_sizes: Sequence = KERNELS,
        n_conv_per_stage: int | Sequence[int] = 2,
        conv_bias: bool = True,
        norm_eps: float = 1e-5,
        depth_stride: int | None = None,
    ):
        super().__init__(input_spec, features_per_stage, strides, kernel_sizes, depth_stride)
        counts = per_stage(n_conv_per_stage, len(features_per_stage), "n_conv_per_stage")
        channels, stages = input_spec.channels, []
        for width, step, kernel, count in zip(features_per_stage, self._steps, self._kernels, counts):
            stages.append(nn.Sequential(Stack(channels, width, kernel, step, count, conv_bias, norm_eps)))
            channels = width
        self.stages = nn.Sequential(*stages)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = self._run(stage, x)
            maps.append(x)
        return maps


class ResidualConvEncoder(NNUNetEncoder):
    """Stem and residual blocks (ResNet-D shortcuts). See ``NNUNetEncoder`` for the arguments.

    Args:
        n_blocks_per_stage: residual blocks per stage.
        conv_bias: whether convolutions have a bias; the shortcuts' never have.
        norm_eps: of the instance normalisation.
    """

    stem_keys = ("stem.convs.0.conv.weight",)

    def __init__(
        self,
        input_spec: InputSpec,
        features_per_stage: Sequence[int] = WIDTHS,
        strides: Sequence = STRIDES,
        kernel_sizes: Sequence = KERNELS,
        n_blocks_per_stage: int | Sequence[int] = (1, 3, 4, 6, 6, 6),
        conv_bias: bool = True,
        norm_eps: float = 1e-5,
        depth_stride: int | None = None,
    ):
        super().__init__(input_spec, features_per_stage, strides, kernel_sizes, depth_stride)
        counts = per_stage(n_blocks_per_stage, len(features_per_stage), "n_blocks_per_stage")
        channels = features_per_stage[0]
        self.stem = Stack(input_spec.channels, channels, self._kernels[0], (1, 1, 1), 1, conv_bias, norm_eps)
        stages = []
        for width, step, kernel, count in zip(features_per_stage, self._steps, self._kernels, counts):
            stages.append(_ResidualStage(channels, width, kernel, step, count, conv_bias, norm_eps))
            channels = width
        self.stages = nn.Sequential(*stages)

    def _maps(self, x: Tensor) -> list[Tensor]:
        x, maps = self._run(self.stem, x), []
        for stage in self.stages:
            x = self._run(stage, x)
            maps.append(x)
        return maps


class _Conv(nn.Module):
    """Convolution, instance normalisation and, unless it ends a residual branch, the leaky rectifier."""

    def __init__(self, channels: int, width: int, kernel, step, bias: bool, eps: float, active: bool = True):
        super().__init__()
        self.conv = nn.Conv3d(channels, width, kernel, step, padding=[k // 2 for k in kernel], bias=bias)
        self.norm = nn.InstanceNorm3d(width, eps=eps, affine=True)
        self.act = nn.LeakyReLU(inplace=True) if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Stack(nn.Module):
    """Convolutions one after the other; the first of them carries stride and change of width."""

    def __init__(self, channels: int, width: int, kernel, step, count: int, bias: bool, eps: float):
        super().__init__()
        self.convs = nn.Sequential(
            *[_Conv(width if i else channels, width, kernel, (1, 1, 1) if i else step, bias, eps) for i in range(count)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class _ResidualStage(nn.Module):
    def __init__(self, channels: int, width: int, kernel, step, count: int, bias: bool, eps: float):
        super().__init__()
        self.blocks = nn.Sequential(
            *[
                _Block(width if i else channels, width, kernel, (1, 1, 1) if i else step, bias, eps)
                for i in range(count)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, kernel, step, bias: bool, eps: float):
        super().__init__()
        self.conv1 = _Conv(channels, width, kernel, step, bias, eps)
        self.conv2 = _Conv(width, width, kernel, (1, 1, 1), bias, eps, active=False)
        shortcut = []
        if max(step) > 1:
            shortcut.append(_Pool(step))
        if channels != width:
            shortcut.append(_Conv(channels, width, (1, 1, 1), (1, 1, 1), False, eps, active=False))
        self.skip = nn.Sequential(*shortcut)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.conv1(x)) + self.skip(x))


class _Pool(nn.Module):
    """Average pooling that rounds up, like the strided convolution beside it: the last window averages what it has."""

    def __init__(self, step: tuple[int, int, int]):
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        window = [min(pair) for pair in zip(self.step, x.shape[2:])]
        return F.avg_pool3d(x, window, self.step, ceil_mode=True)


def _triple(value, name: str) -> tuple[int, int, int]:
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or not all(isinstance(v, int) and v > 0 for v in values):
        raise InputError(f"{name} of an nnU-Net encoder are positive, one number or three per stage; found {value!r}")
    return values


def per_stage(value: int | Sequence[int], stages: int, name: str) -> tuple[int, ...]:
    """A number for every stage, from one for all or one for each."""
    values = (value,) * stages if isinstance(value, int) else tuple(value)
    if len(values) != stages or not all(isinstance(v, int) and v > 0 for v in values):
        raise InputError(f"{name} takes one positive number, or one for each of {stages} stages; found {value!r}")
    return values


@register_encoder(
    "nnunet_plain", family="nnunet", input_spec=PLAIN_SPEC, summary="nnU-Net's plain encoder (VoComni_nnunet weights)"
)
def nnunet_plain(
    input_spec: InputSpec,
    features_per_stage: Sequence[int] = WIDTHS,
    strides: Sequence = STRIDES,
    kernel_sizes: Sequence = KERNELS,
    n_conv_per_stage: int | Sequence[int] = 2,
    conv_bias: bool = True,
    norm_eps: float = 1e-5,
    depth_stride: int | None = None,
    decoder: bool = False,
    n_conv_per_stage_decoder: int | Sequence[int] = 2,
) -> PlainConvEncoder:
    stages = (features_per_stage, strides, kernel_sizes, n_conv_per_stage)
    layers = {"conv_bias": conv_bias, "norm_eps": norm_eps, "depth_stride": depth_stride}
    if not decoder:
        return PlainConvEncoder(input_spec, *stages, **layers)
    from voco.encoders.decoders import PlainConvUNet

    return PlainConvUNet(input_spec, *stages, **layers, n_conv_per_stage_decoder=n_conv_per_stage_decoder)


@register_encoder(
    "nnunet_resenc_l", family="nnunet", input_spec=RESENC_SPEC, summary="nnU-Net's ResEnc-L encoder (nnssl weights)"
)
def nnunet_resenc_l(
    input_spec: InputSpec,
    features_per_stage: Sequence[int] = WIDTHS,
    strides: Sequence = STRIDES,
    kernel_sizes: Sequence = KERNELS,
    n_blocks_per_stage: int | Sequence[int] = (1, 3, 4, 6, 6, 6),
    conv_bias: bool = True,
    norm_eps: float = 1e-5,
    depth_stride: int | None = None,
    decoder: bool = False,
    n_conv_per_stage_decoder: int | Sequence[int] = 1,
) -> ResidualConvEncoder:
    stages = (features_per_stage, strides, kernel_sizes, n_blocks_per_stage)
    layers = {"conv_bias": conv_bias, "norm_eps": norm_eps, "depth_stride": depth_stride}
    if not decoder:
        return ResidualConvEncoder(input_spec, *stages, **layers)
    from voco.encoders.decoders import ResidualEncoderUNet

    return ResidualEncoderUNet(input_spec, *stages, **layers, n_conv_per_stage_decoder=n_conv_per_stage_decoder)
