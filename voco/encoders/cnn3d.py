"""A plain residual 3D CNN of about half a million parameters: for CPUs, small crops, demos and tests."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.layers import initialise_convolutions
from voco.encoders.spec import InputSpec

SPEC = InputSpec(
    windows=((-1000.0, 500.0),),
    spacing_mm=(3.0, 3.0, 3.0),
    size=(32, 32, 32),
    min_size=(16, 16, 16),
    size_multiple=(16, 16, 16),
)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with BatchNorm and a shortcut.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class CNN3D(Encoder):
    """Stem of stride 2, then one residual block per stage; strides 2, 4, 8, 16 with the default widths.

    Args:
        input_spec: channels of the input.
        widths: channels of the stages.
    """

    stem_keys = ("stem.0.weight",)

    def __init__(self, input_spec: InputSpec, widths: tuple[int, ...] = (12, 24, 48, 96)):
        super().__init__(
            input_spec,
            [
                {"num_chs": width, "reduction": (2 ** (i + 1),) * 3, "module": f"stages.{i}"}
                for i, width in enumerate(widths)
            ],
        )
        self.stem = nn.Sequential(
            nn.Conv3d(input_spec.channels, widths[0], 3, 2, 1, bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
        )
        inputs = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            ResidualBlock(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(inputs, widths))
        )
        initialise_convolutions(self)

    def _maps(self, x: Tensor) -> list[Tensor]:
        # Not channels last, although a third faster here: torch's BatchNorm on a CPU then sums naively, which put 2 %
        # of error into the gradient of a batch of 88 crops (1e-4 this way).
        x = self._run(self.stem, x)
        maps = []
        for stage in self.stages:
            x = self._run(stage, x)
            maps.append(x)
        return maps


@register_encoder(
    "cnn3d_s", family="cnn3d", input_spec=SPEC, summary="plain residual 3D CNN, 12 to 96 channels, for CPUs"
)
def cnn3d_s(input_spec: InputSpec) -> CNN3D:
    return CNN3D(input_spec)
