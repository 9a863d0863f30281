"""PyTorchVideo's bottleneck networks with one pathway: Slow, C2D, I3D, R(2+1)D and CSN, as CT encoders."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.bottleneck import DepthMaxPool, Stage, StageSpec, Stem, with_depth_stride
from voco.encoders.layers import initialise_convolutions
from voco.encoders.spec import InputSpec, kinetics_spec
from voco.encoders.strides import reduced_depth_strides

R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)


@dataclass(frozen=True)
class NetworkSpec:
    """What one network is made of.

    Attributes:
        stem_kernel: depth size of the first convolution.
        stages: the four stages.
        stem_pool: whether a max pool follows the first convolution.
        depth_pool: how many slices are pooled into one after the first stage: 2, or 1 where a published network leaves
            the place for it empty; None without such a place, which shifts the names of the stages.
    """

    stem_kernel: int
    stages: tuple[StageSpec, ...]
    stem_pool: bool = True
    depth_pool: int | None = None


def resnet_stages(
    blocks: tuple[int, ...],
    depth_kernels: tuple[tuple[int, ...], ...],
    middle: str = "plane",
    strides: tuple[int, ...] = (1, 2, 2, 2),
    depth_strides: tuple[int, ...] = (1, 1, 1, 1),
    width: int = 64,
) -> tuple[StageSpec, ...]:
    """Four stages of a ResNet; depth kernels are repeated along the blocks of a stage."""
    return tuple(
        StageSpec(
            blocks=count,
            width=width * 2**i,
            width_out=4 * width * 2**i,
            depth_kernels=tuple(depth_kernels[i][j % len(depth_kernels[i])] for j in range(count)),
            stride=strides[i],
            depth_stride=depth_strides[i],
            middle=middle,
        )
        for i, count in enumerate(blocks)
    )


class BottleneckEncoder(Encoder):
    """Stem and four stages of a PyTorchVideo network, without its head.

    The published head averages windows of the size of the training clip; here ``pool`` averages the whole map, which
    is the same at that size. Any size from ``min_size`` up is taken as it is, rounded up at each stride; but the pool
    of C2D and I3D takes pairs of slices, so that ``prepare`` makes their number even.

    Args:
        input_spec: channels of the input, windows and sizes.
        network: what it is made of.
        depth_stride: total depth stride of the deepest map; None as published, smaller ones take away the last
            strides first.
        label: name for error messages.
    """

    stem_keys = ("blocks.0.conv.weight",)

    def __init__(self, input_spec: InputSpec, network: NetworkSpec, depth_stride: int | None, label: str):
        first, *others = network.stages
        published = (first.depth_stride, network.depth_pool or 1, *(s.depth_stride for s in others))
        strides = reduced_depth_strides(published, depth_stride, label)
        stages = [replace(s, depth_stride=n) for s, n in zip(network.stages, (strides[0], *strides[2:]))]

        modules: list[nn.Module] = [Stem(input_spec.channels, 64, network.stem_kernel, network.stem_pool)]
        plane, depth, width = 4 if network.stem_pool else 2, 1, 64
        info = [{"num_chs": width, "reduction": (depth, plane, plane), "module": "blocks.0"}]
        for index, stage in enumerate(stages):
            if index == 1 and network.depth_pool:
                depth *= strides[1]
                modules.append(DepthMaxPool(network.depth_pool, strides[1]))
            plane, depth = plane * stage.stride, depth * stage.depth_stride
            info.append(
                {"num_chs": stage.width_out, "reduction": (depth, plane, plane), "module": f"blocks.{len(modules)}"}
            )
            modules.append(Stage(width, stage))
            width = stage.width_out

        spec = with_depth_stride(input_spec, depth_stride)
        if network.depth_pool == 2 and strides[1] == 2:
            # The pool drops an odd last slice. Rounding up would change the features of published weights.
            spec = replace(spec, size_multiple=(2, *spec.size_multiple[1:]))
        super().__init__(spec, info)
        self.blocks = nn.ModuleList(modules)
        initialise_convolutions(self)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for module in self.blocks:
            if isinstance(module, Stage):
                for block in module.res_blocks:
                    x = self._run(block, x)
            else:
                x = self._run(module, x)
            if isinstance(module, DepthMaxPool):
                continue
            maps.append(x)
        return maps


SLOW = NetworkSpec(1, resnet_stages(R50, ((1,), (1,), (3,), (3,))))
C2D = NetworkSpec(1, resnet_stages(R50, ((1,), (1,), (1,), (1,))), depth_pool=2)
I3D = NetworkSpec(5, resnet_stages(R50, ((3,), (3, 1), (3, 1), (1, 3))), depth_pool=2)
R2PLUS1D = NetworkSpec(
    1,
    resnet_stages(R50, ((1,),) * 4, middle="depth_first", strides=(2, 2, 2, 2), depth_strides=(1, 1, 2, 2)),
    stem_pool=False,
)
CSN = NetworkSpec(3, resnet_stages(R101, ((1,),) * 4, middle="depthwise", depth_strides=(1, 2, 2, 2)))

# The smallest crops leave two positions in the deepest map, so that normalisation has something to compare even in a
# batch of one.
SLOW_SPEC = kinetics_spec(size=(8, 224, 224), min_size=(4, 32, 32))
C2D_SPEC = kinetics_spec(size=(8, 224, 224), min_size=(4, 32, 32))
R2PLUS1D_SPEC = kinetics_spec(size=(16, 224, 224), min_size=(8, 32, 32))
CSN_SPEC = kinetics_spec(size=(32, 224, 224), min_size=(16, 32, 32))


@register_encoder(
    "slow_r50", family="slow", input_spec=SLOW_SPEC, summary="Slow pathway R50: depth convolved in late stages only"
)
def slow_r50(input_spec: InputSpec) -> BottleneckEncoder:
    return BottleneckEncoder(input_spec, SLOW, None, "slow_r50")


@register_encoder(
    "c2d_r50", family="c2d_i3d", input_spec=C2D_SPEC, summary="C2D R50: slices convolved alone, pooled in pairs once"
)
def c2d_r50(input_spec: InputSpec, depth_stride: int | None = None, depth_pool: bool = True) -> BottleneckEncoder:
    """``depth_pool=False`` is the network of SlowFast's C2D_NOPOOL file, whose tensors look the same."""
    return BottleneckEncoder(input_spec, replace(C2D, depth_pool=2 if depth_pool else 1), depth_stride, "c2d_r50")


@register_encoder("i3d_r50", family="c2d_i3d", input_spec=C2D_SPEC, summary="I3D R50: depth convolved in most blocks")
def i3d_r50(input_spec: InputSpec, depth_stride: int | None = None) -> BottleneckEncoder:
    return BottleneckEncoder(input_spec, I3D, depth_stride, "i3d_r50")


@register_encoder(
    "r2plus1d_r50", family="r2plus1d_r50", input_spec=R2PLUS1D_SPEC, summary="R(2+1)D R50: depth and plane in turn"
)
def r2plus1d_r50(input_spec: InputSpec, depth_stride: int | None = None) -> BottleneckEncoder:
    return BottleneckEncoder(input_spec, R2PLUS1D, depth_stride, "r2plus1d_r50")


@register_encoder(
    "csn_r101", family="csn", input_spec=CSN_SPEC, summary="Channel-separated R101: depthwise 3x3x3 kernels"
)
def csn_r101(input_spec: InputSpec, depth_stride: int | None = None) -> BottleneckEncoder:
    return BottleneckEncoder(input_spec, CSN, depth_stride, "csn_r101")
