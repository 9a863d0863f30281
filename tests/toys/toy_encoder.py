"""A network in one file."""

from __future__ import annotations

from torch import nn

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import InputSpec

SPEC = InputSpec(windows=((-1000.0, 500.0),), spacing_mm=(6.0, 6.0, 6.0), size=(32, 32, 32), min_size=(8, 8, 8))


class Toy(Encoder):
    """Two strided convolutions."""

    def __init__(self, input_spec, width):
        widths = (width, 2 * width)
        info = [{"num_chs": n, "reduction": (4 ** (i + 1),) * 3, "module": f"layers.{i}"} for i, n in enumerate(widths)]
        super().__init__(input_spec, info)
        inputs = (input_spec.channels, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 5, 4, 2), nn.InstanceNorm3d(b, affine=True), nn.GELU())
            for a, b in zip(inputs, widths)
        )

    def _maps(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


@register_encoder("toy_net", family="toy", input_spec=SPEC, summary="two strided convolutions")
def toy_net(input_spec, width: int = 8):
    return Toy(input_spec, width)
