"""SlowFast networks as CT encoders: a wide pathway on every fourth slice, a narrow one on all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.bottleneck import Stage, StageSpec, Stem, conv3d, with_depth_stride
from voco.encoders.layers import initialise_convolutions
from voco.encoders.spec import InputSpec, kinetics_spec
from voco.encoders.strides import reduced_depth_strides
from voco.encoders.video_bottleneck import R50, R101, resnet_stages
from voco.errors import InputError

WIDTHS = (64, 8)
PACKINGS = ("linspace", "regular")


@dataclass(frozen=True)
class FusionSpec:
    """How the fast pathway's map joins the slow one's, which differs between projects and between their files.

    Attributes:
        alpha: slices of the fast pathway for one of the slow pathway.
        kernel: depth size of the convolutions from fast to slow.
        norm: whether normalisation and ReLU follow; MMAction2 has neither.
        packing: which slices the slow pathway takes. ``linspace``: spread from the first to the last one, as
            PyTorchVideo and SlowFast; ``regular``: 0, alpha, 2 alpha and so on, as MMAction2.
    """

    alpha: int = 4
    kernel: int = 7
    norm: bool = True
    packing: str = "linspace"

    def __post_init__(self):
        if self.packing not in PACKINGS:
            raise InputError(f"packing of a SlowFast network is one of {', '.join(PACKINGS)}; found {self.packing!r}")
        if self.alpha < 1 or self.kernel < 1 or not self.kernel % 2:
            raise InputError(
                f"a SlowFast network needs alpha >= 1 and an odd fusion_kernel; found {self.alpha} and {self.kernel}"
            )


class FastToSlow(nn.Module):
    """The fast pathway's map, brought to the slow pathway's depth by a strided convolution."""

    def __init__(self, width: int, kernel: int, stride: int):
        super().__init__()
        self.conv_fast_to_slow = conv3d(width, 2 * width, (kernel, 1, 1), (stride, 1, 1))
        self.norm = nn.BatchNorm3d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv_fast_to_slow(x)), inplace=True)


class PlainFastToSlow(nn.Module):
    """The convolution alone; its name differs so that files with and without normalisation do not mix."""

    def __init__(self, width: int, kernel: int, stride: int):
        super().__init__()
        self.conv = conv3d(width, 2 * width, (kernel, 1, 1), (stride, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pathways(nn.Module):
    """The same step of both pathways, slow first, and what the slow one gets from the fast one afterwards."""

    def __init__(self, slow: nn.Module, fast: nn.Module, fusion: nn.Module | None):
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = fusion


class SlowFastEncoder(Encoder):
    """Both pathways of a SlowFast network, without its head.

    One volume comes in; the slow pathway takes ceil(T / alpha) of its T slices, as the published code does for T that
    are multiples of alpha (it fails for others). A map is the slow pathway's and beside it the fast one's, averaged
    over each alpha slices; ``pool`` is thus the mean of the slow pathway (2048), then that of the fast one (256), as
    published.

    Args:
        input_spec: channels of the input, windows and sizes.
        stages: the four stages, slow pathway and fast pathway.
        fusion: how the fast pathway joins the slow one.
        depth_stride: alpha as published, or 1: the slow pathway then sees every slice.
        label: name for error messages.
    """

    stem_keys = ("blocks.0.multipathway_blocks.0.conv.weight", "blocks.0.multipathway_blocks.1.conv.weight")

    def __init__(
        self,
        input_spec: InputSpec,
        stages: tuple[tuple[StageSpec, ...], tuple[StageSpec, ...]],
        fusion: FusionSpec,
        depth_stride: int | None,
        label: str,
    ):
        (alpha,) = reduced_depth_strides((fusion.alpha,), depth_stride, label)
        join = partial(FastToSlow if fusion.norm else PlainFastToSlow, kernel=fusion.kernel, stride=alpha)
        slow, fast = WIDTHS
        plane = 4
        stems = Stem(input_spec.channels, slow, 1), Stem(input_spec.channels, fast, 5)
        modules = [Pathways(*stems, join(fast))]
        info = [{"num_chs": slow + fast, "reduction": (alpha, plane, plane), "module": "blocks.0"}]
        for index, (slow_spec, fast_spec) in enumerate(zip(*stages), start=1):
            pathways = Stage(slow + 2 * fast, slow_spec), Stage(fast, fast_spec)
            slow, fast, plane = slow_spec.width_out, fast_spec.width_out, plane * slow_spec.stride
            last = index == len(stages[0])
            modules.append(Pathways(*pathways, None if last else join(fast)))
            info.append({"num_chs": slow + fast, "reduction": (alpha, plane, plane), "module": f"blocks.{index}"})
        super().__init__(with_depth_stride(input_spec, alpha), info)
        self.alpha, self.packing = alpha, fusion.packing
        self.blocks = nn.ModuleList(modules)
        initialise_convolutions(self)

    def _maps(self, x: Tensor) -> list[Tensor]:
        return [torch.cat([slow, self._averaged(fast)], 1) for slow, fast in self._pathways(x)]

    def _deepest(self, x: Tensor) -> Tensor:
        slow, fast = self._pathways(x)[-1]
        return torch.cat([slow, self._averaged(fast)], 1)

    def _pathways(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        slow, fast, pairs = self._slow_slices(x), x, []
        for step in self.blocks:
            for_slow, for_fast = step.multipathway_blocks
            slow, fast = self._through(for_slow, slow), self._through(for_fast, fast)
            pairs.append((slow, fast))
            if step.multipathway_fusion is not None:
                slow = torch.cat([slow, self._run(step.multipathway_fusion, fast)], 1)
        return pairs

    def _through(self, module: nn.Module, x: Tensor) -> Tensor:
        for block in module.res_blocks if isinstance(module, Stage) else (module,):
            x = self._run(block, x)
        return x

    def _slow_slices(self, x: Tensor) -> Tensor:
        if self.alpha == 1:
            return x
        if self.packing == "regular":
            return x[:, :, :: self.alpha]
        depth = x.shape[2]
        index = torch.linspace(0, depth - 1, -(-depth // self.alpha), device=x.device).long()
        return x.index_select(2, index)

    def _averaged(self, fast: Tensor) -> Tensor:
        if self.alpha == 1:
            return fast
        return F.avg_pool3d(fast, (self.alpha, 1, 1), ceil_mode=True)


def _stages(
    blocks: tuple[int, ...], third_stage: tuple[int, ...] = (3,)
) -> tuple[tuple[StageSpec, ...], tuple[StageSpec, ...]]:
    slow, fast = WIDTHS
    return (
        resnet_stages(blocks, ((1,), (1,), third_stage, (3,)), width=slow),
        resnet_stages(blocks, ((3,), (3,), third_stage, (3,)), width=fast),
    )


# Two slices are left to the slow pathway.
SPEC = kinetics_spec(size=(32, 224, 224), min_size=(8, 32, 32))


@register_encoder(
    "slowfast_r50", family="slowfast", input_spec=SPEC, summary="SlowFast R50 8x8: every fourth slice wide, all narrow"
)
def slowfast_r50(
    input_spec: InputSpec,
    depth_stride: int | None = None,
    alpha: int = 4,
    fusion_kernel: int = 7,
    fusion_norm: bool = True,
    packing: str = "linspace",
) -> SlowFastEncoder:
    fusion = FusionSpec(alpha, fusion_kernel, fusion_norm, packing)
    return SlowFastEncoder(input_spec, _stages(R50), fusion, depth_stride, "slowfast_r50")


@register_encoder("slowfast_r101", family="slowfast", input_spec=SPEC, summary="SlowFast R101 8x8")
def slowfast_r101(
    input_spec: InputSpec,
    depth_stride: int | None = None,
    alpha: int = 4,
    fusion_kernel: int = 5,
    fusion_norm: bool = True,
    packing: str = "linspace",
) -> SlowFastEncoder:
    fusion = FusionSpec(alpha, fusion_kernel, fusion_norm, packing)
    return SlowFastEncoder(input_spec, _stages(R101), fusion, depth_stride, "slowfast_r101")


@register_encoder(
    "slowfast_16x8_r101_50_50",
    family="slowfast",
    input_spec=replace(SPEC, size=(64, 224, 224)),
    summary="SlowFast R101 16x8 with as many depth kernels as an R50",
)
def slowfast_16x8_r101_50_50(input_spec: InputSpec, depth_stride: int | None = None) -> SlowFastEncoder:
    stages = _stages(R101, third_stage=(3,) * 6 + (1,) * 17)
    return SlowFastEncoder(input_spec, stages, FusionSpec(kernel=5), depth_stride, "slowfast_16x8_r101_50_50")
