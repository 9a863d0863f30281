"""Image ResNets inflated as in hassony2/inflated_convnets_pytorch, of which Merlin and Astra made CT encoders.

The network of Carreira and Zisserman's rule (CVPR 2017) applied to torchvision's bottleneck ResNets: every 3x3 kernel
gets a depth of 3, the 7x7 stem too, strides act in depth as in the plane, except that of the stem. Beside kenshohara's
3D ResNets only the stem differs, which is 7 deep there.

Blankemeier et al., Merlin: a computed tomography vision-language foundation model and dataset, Nature 2026.
"""

from __future__ import annotations

from voco.encoders.base import register_encoder
from voco.encoders.resnet3d import DEPTH_STRIDES, ResNet3dEncoder
from voco.encoders.spec import InputSpec
from voco.encoders.strides import reduced_depth_strides

STEM_KERNEL = 3
# As Merlin: slices first, then right and front; 1.5 x 1.5 x 3 mm, padded or cut to 224 x 224 x 160. The three colours
# of the stem saw the same window, so that one channel with the summed stem is the same network.
SPEC = InputSpec(
    axes="SRA",
    spacing_mm=(3.0, 1.5, 1.5),
    windows=((-1000.0, 1000.0),),
    size=(160, 224, 224),
    min_size=(4, 64, 64),
)


def _register(name: str, blocks: tuple[int, ...], layers: int) -> None:
    @register_encoder(
        name, family="i3resnet", input_spec=SPEC, summary=f"ResNet-{layers} inflated as Merlin's and Astra's CT encoder"
    )
    def build(input_spec: InputSpec, depth_stride: int | None = None) -> ResNet3dEncoder:
        strides = reduced_depth_strides(DEPTH_STRIDES, depth_stride, name)
        return ResNet3dEncoder(input_spec, blocks, True, False, strides, STEM_KERNEL)


_register("i3resnet50", (3, 4, 6, 3), 50)
_register("i3resnet101", (3, 4, 23, 3), 101)
_register("i3resnet152", (3, 8, 36, 3), 152)
