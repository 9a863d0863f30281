"""torchvision's video ResNets as CT encoders: frames become depth. Parameter names are torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import InputSpec

# Kinetics statistics of torchvision's video weights, averaged over R, G, B: padding stays "mean" at the borders only
# if all channels share one mean and std, and then the RGB stem summed to one channel is exact.
KINETICS_MEAN = sum((0.43216, 0.394666, 0.37645)) / 3
KINETICS_STD = sum((0.22803, 0.22145, 0.216989)) / 3

SPEC = InputSpec(
    axes="SPL",
    windows=((-100.0, 900.0),),  # centre 400, width 1000, the published choice for pulmonary embolism transfer
    mean=(KINETICS_MEAN,),
    std=(KINETICS_STD,),
    size=(16, 112, 112),
    min_size=(8, 32, 32),
)


class VideoResNetEncoder(Encoder):
    """Stem and four stages of a torchvision video ResNet, without its classifier.

    Any size from ``min_size`` up is taken as it is: odd sizes are rounded up at each stride.

    Args:
        input_spec: channels of the input; the stem is rebuilt with that many.
        builder: name of the function in ``torchvision.models.video``.
        strides: (depth, in plane) stride of each of stem, layer1 .. layer4, counted from the input.
    """

    family = "video_resnet"
    stem_keys = ("stem.0.weight",)

    def __init__(self, input_spec: InputSpec, builder: str, strides: tuple[tuple[int, int], ...]):
        from torchvision.models import video

        net = getattr(video, builder)(weights=None)
        names = ("stem", "layer1", "layer2", "layer3", "layer4")
        widths = (64, 64, 128, 256, 512)
        super().__init__(
            input_spec,
            [
                {"num_chs": width, "reduction": (depth, plane, plane), "module": name}
                for name, width, (depth, plane) in zip(names, widths, strides)
            ],
        )
        for name in names:
            self.add_module(name, getattr(net, name))
        self.stem[0] = _with_channels(self.stem[0], input_spec.channels)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for module in (self.stem, self.layer1, self.layer2, self.layer3, self.layer4):
            x = self._run(module, x)
            maps.append(x)
        return maps


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


@register_encoder("r3d_18", input_spec=SPEC, summary="torchvision R3D-18 (Kinetics-400 weights exist)")
def r3d_18(input_spec: InputSpec) -> VideoResNetEncoder:
    return VideoResNetEncoder(input_spec, "r3d_18", ((1, 2), (1, 2), (2, 4), (4, 8), (8, 16)))
