"""X3D networks as CT encoders: narrow, depthwise, at full depth resolution."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.bottleneck import Stage, StageSpec, conv3d
from voco.encoders.layers import half_as_float, initialise_convolutions
from voco.encoders.spec import InputSpec, kinetics_spec

WIDTHS = (24, 24, 48, 96, 192)
INNER_WIDTHS = (54, 108, 216, 432)
FEATURES = 2048


class SplitConv(nn.Module):
    """First convolution: in plane, then over depth, one kernel per channel.

    PyTorchVideo's names are swapped, as its weights have them: ``conv_t`` is the one in plane.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv_t = conv3d(channels, width, (1, 3, 3), (1, 2, 2))
        self.conv_xy = conv3d(width, width, (5, 1, 1), groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_xy(self.conv_t(x))


class SplitStem(nn.Module):
    """Split convolution, normalisation, ReLU; there is no max pool."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv = SplitConv(channels, width)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ProjectedPool(nn.Module):
    """What X3D does before its classifier: widen, average, widen again."""

    def __init__(self, width: int, width_inner: int, width_out: int):
        super().__init__()
        self.pre_conv = conv3d(width, width_inner, (1, 1, 1))
        self.pre_norm = nn.BatchNorm3d(width_inner)
        self.post_conv = conv3d(width_inner, width_out, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pre_norm(self.pre_conv(x)), inplace=True)
        return F.relu(self.post_conv(x.mean((2, 3, 4), keepdim=True))).flatten(1)


class Head(nn.Module):
    """Holds the pool under the name that the published weights give it; the classifier beside it is left out."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class X3DEncoder(Encoder):
    """Stem, four stages and the pool of an X3D network, without its classifier.

    ``pool`` gives the 2048 features that the published classifier sees: the deepest map is widened to 432 channels,
    averaged, and widened again. ``forward_features``, the pyramid and ``sequence`` show the map itself (192 channels).

    Args:
        input_spec: channels of the input, windows and sizes.
        blocks: number of blocks of each stage.
        shortcut_norm: normalise the projected shortcut of the very first block. SlowFast and MMAction2 do; PyTorchVideo
            does not, because the width stays the same there.
    """

    stem_keys = ("blocks.0.conv.conv_t.weight",)
    pooling = "head"

    def __init__(self, input_spec: InputSpec, blocks: tuple[int, ...], shortcut_norm: bool):
        plane, width = 2, WIDTHS[0]
        modules: list[nn.Module] = [SplitStem(input_spec.channels, width)]
        info = [{"num_chs": width, "reduction": (1, plane, plane), "module": "blocks.0"}]
        for index, (count, inner, width_out) in enumerate(zip(blocks, INNER_WIDTHS, WIDTHS[1:]), start=1):
            spec = StageSpec(count, inner, width_out, (1,) * count, middle="excited")
            modules.append(Stage(width, spec, shortcut_norm))
            width, plane = width_out, 2 * plane
            info.append({"num_chs": width, "reduction": (1, plane, plane), "module": f"blocks.{index}"})
        super().__init__(input_spec, info)
        self.blocks = nn.ModuleList([*modules, Head(ProjectedPool(width, INNER_WIDTHS[-1], FEATURES))])
        initialise_convolutions(self)

    @property
    def num_features(self) -> int:
        return FEATURES

    def pool(self, x: Tensor) -> Tensor:
        """Features that the published classifier sees: (B, 2048), at least float32."""
        self._check_input(x)
        return half_as_float(self._run(self.blocks[-1], self._deepest(x)))

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for module in self.blocks[:-1]:
            for block in module.res_blocks if isinstance(module, Stage) else (module,):
                x = self._run(block, x)
            maps.append(x)
        return maps


S = (3, 5, 11, 7)
L = (5, 10, 25, 15)
SPEC = kinetics_spec(size=(16, 224, 224), min_size=(4, 32, 32))


@register_encoder(
    "x3d_xs", family="x3d", input_spec=replace(SPEC, size=(4, 160, 160)), summary="X3D-XS: x3d_m for 4 x 160 x 160"
)
@register_encoder(
    "x3d_s", family="x3d", input_spec=replace(SPEC, size=(13, 160, 160)), summary="X3D-S: x3d_m for 13 x 160 x 160"
)
@register_encoder("x3d_m", family="x3d", input_spec=SPEC, summary="X3D-M: 3.8 M parameters, depthwise, all slices kept")
def x3d_m(input_spec: InputSpec, shortcut_norm: bool = False) -> X3DEncoder:
    return X3DEncoder(input_spec, S, shortcut_norm)


@register_encoder(
    "x3d_l", family="x3d", input_spec=replace(SPEC, size=(16, 312, 312)), summary="X3D-L: deeper, for 16 x 312 x 312"
)
def x3d_l(input_spec: InputSpec, shortcut_norm: bool = False) -> X3DEncoder:
    return X3DEncoder(input_spec, L, shortcut_norm)
