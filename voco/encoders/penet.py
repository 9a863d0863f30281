"""PENet, the 3D network of Stanford's pulmonary embolism study, as an encoder; parameter names are the public code's.

Written from the architecture's facts: a ResNeXt-50 in three dimensions with group normalisation over 16 channels,
leaky rectifiers and squeeze-and-excitation. Source: Huang et al., PENet, npj Digital Medicine 2020 (public code:
marshuang80/penet).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import PE_WINDOW, InputSpec
from voco.encoders.strides import reduced_depth_strides

# The public code subtracts the mean of its windowed CT and does not divide by the standard deviation beside it
# (0.19974). Kinetics statistics are never used.
SPEC = InputSpec(
    windows=(PE_WINDOW,),
    mean=(0.15897,),
    std=(1.0,),
    size=(24, 192, 192),
    min_size=(8, 32, 32),
)

_BLOCKS = (3, 4, 6, 3)
_CARDINALITY = 32
_CHANNELS_PER_GROUP = 16
_SQUEEZE = 16
# Of max_pool and the four stages; the stem keeps every slice.
_DEPTH_STRIDES = (2, 1, 2, 2, 2)


class PENetEncoder(Encoder):
    """Stem, max-pool and four stages of PENet-50, without the classifier: 2048 features.

    The published network was fed one slice three times over, so its colour stem summed to one channel is exact.

    Args:
        input_spec: channels of the input.
        depth_stride: total depth stride of the deepest map, 16 as published; smaller ones drop the late strides.
        drop_path_rate: chance that the last residual block is left out in training, growing linearly over the blocks.
            The public code trains with 0.5 and leaves a block out for the whole batch.
    """

    stem_keys = ("in_conv.0.weight",)

    def __init__(self, input_spec: InputSpec, depth_stride: int | None = None, drop_path_rate: float = 0.0):
        strides = reduced_depth_strides(_DEPTH_STRIDES, depth_stride, "penet")
        widths = [256 * 2**i for i in range(4)]
        info = [{"num_chs": 64, "reduction": (1, 2, 2), "module": "in_conv"}]
        depth = strides[0]
        for i, width in enumerate(widths):
            depth *= strides[1 + i]
            plane = 4 * 2**i
            info.append({"num_chs": width, "reduction": (depth, plane, plane), "module": f"encoders.{i}"})
        super().__init__(input_spec, info)

        self.in_conv = nn.Sequential(
            nn.Conv3d(input_spec.channels, 64, 7, stride=(1, 2, 2), padding=3, bias=False),
            _norm(64),
            nn.LeakyReLU(inplace=True),
        )
        self.max_pool = nn.MaxPool3d(3, stride=(strides[0], 2, 2), padding=1)
        total, channels, stages = sum(_BLOCKS), 64, []
        for i, (count, width) in enumerate(zip(_BLOCKS, widths)):
            first = sum(_BLOCKS[:i])
            rates = [drop_path_rate * (first + j) / total for j in range(count)]
            plane = 1 if i == 0 else 2
            stages.append(_Stage(channels, width, rates, (strides[1 + i], plane, plane)))
            channels = width
        self.encoders = nn.ModuleList(stages)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = [self._run(self.in_conv, x)]
        x = self.max_pool(maps[0])
        for stage in self.encoders:
            x = self._run(stage, x)
            maps.append(x)
        return maps


class _Stage(nn.Module):
    def __init__(self, in_channels: int, width: int, rates: list[float], stride: tuple[int, int, int]):
        super().__init__()
        self.penet_blocks = nn.Sequential(
            *[
                _Bottleneck(width if j else in_channels, width, (1, 1, 1) if j else stride, rate)
                for j, rate in enumerate(rates)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.penet_blocks(x)


class _Bottleneck(nn.Module):
    """1x1x1, grouped 3x3x3, 1x1x1, a gate over the channels, then the sum with the shortcut."""

    def __init__(self, in_channels: int, width: int, stride: tuple[int, int, int], drop_rate: float):
        super().__init__()
        middle = width // 2
        self.drop_rate = drop_rate
        self.conv1 = nn.Conv3d(in_channels, middle, 1, bias=False)
        self.norm1 = _norm(middle)
        self.conv2 = nn.Conv3d(middle, middle, 3, stride=stride, padding=1, groups=_CARDINALITY, bias=False)
        self.norm2 = _norm(middle)
        self.conv3 = nn.Conv3d(middle, width, 1, bias=False)
        self.norm3 = _norm(width)
        self.act = nn.LeakyReLU(inplace=True)
        self.se_block = _Gate(width)
        self.down_sample = None
        if in_channels != width or max(stride) > 1:
            self.down_sample = nn.Sequential(
                nn.Conv3d(in_channels, width, 1, stride=stride, bias=False),
                _norm(width),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.down_sample is None else self.down_sample(x)
        # As published: the whole batch skips the block, without the final rectifier, and nothing is rescaled.
        if self.training and self.drop_rate > 0 and torch.rand(()).item() < self.drop_rate:
            return shortcut
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        return self.act(self.se_block(self.norm3(self.conv3(x))) + shortcut)


class _Gate(nn.Module):
    """Squeeze-and-excitation: one factor per channel, from the mean over the volume."""

    def __init__(self, channels: int):
        super().__init__()
        self.excite = nn.Sequential(
            nn.Linear(channels, channels // _SQUEEZE),
            nn.LeakyReLU(inplace=True),
            nn.Linear(channels // _SQUEEZE, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(x.mean((2, 3, 4)))[:, :, None, None, None]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _CHANNELS_PER_GROUP, channels)


@register_encoder("penet", family="penet", input_spec=SPEC, summary="PENet-50 (Kinetics-600 weights exist)")
def penet(input_spec: InputSpec, depth_stride: int | None = None, drop_path_rate: float = 0.0) -> PENetEncoder:
    return PENetEncoder(input_spec, depth_stride, drop_path_rate)
