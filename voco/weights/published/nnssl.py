"""ResEnc-L weights of the OpenMind benchmark, trained with nnssl. Licence and data as on their model cards."""

from __future__ import annotations

from voco.encoders.nnunet import RESENC_SPEC
from voco.weights.sources import WeightSource

_METHODS = ("MAE", "VF", "SimCLR")


def _openmind(method: str) -> WeightSource:
    return WeightSource(
        arch="nnunet_resenc_l",
        tag=f"openmind_{method.lower()}",
        # Each is a checkpoint_final.pth in a repository of its own; under this name it can be told from others.
        file=f"ResEncL-OpenMind-{method}.pth",
        url=f"https://huggingface.co/AnonRes/ResEncL-OpenMind-{method}",
        input_spec=RESENC_SPEC,
        licence="CC BY 4.0",
        citation="Wald et al., An OpenMind for 3D medical vision self-supervised learning, ICCV 2025, arXiv 2412.17041",
        data=("OpenMind",),
        download=False,
        note="published as checkpoint_final.pth; brain MR, 1 mm, z-score of each image; the adaptation plan in the "
        "file says what the network is. Its authors recommend fine-tuning, not frozen features",
    )


SOURCES = tuple(_openmind(method) for method in _METHODS)
