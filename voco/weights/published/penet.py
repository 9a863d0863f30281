"""PENet of Stanford, Kinetics-600. Links and normalisation as in marshuang80/penet 8de387d."""

from __future__ import annotations

from voco.encoders.penet import SPEC
from voco.weights.sources import WeightSource

SOURCES = (
    WeightSource(
        arch="penet",
        tag="kinetics600",
        file="xnet_kin_90.pth.tar",
        url="https://stanfordmedicine.box.com/s/gfwy1431vkf2heekipmogwd737741lvz",
        input_spec=SPEC,
        licence="none stated for the weights; the code has no licence file",
        citation="Huang et al., PENet: a scalable deep-learning model for automated diagnosis of pulmonary embolism "
        "using volumetric CT imaging, npj Digital Medicine 2020",
        data=("Kinetics-600",),
        download=False,
        note="24 slices of 192 x 192 after a resize to 208; a slice was repeated over three channels and 0.15897 "
        "subtracted, never Kinetics statistics. Keys still say xnet",
    ),
)
