"""Hounsfield units by tissue and contrast phase. Sources and ranges: docs/phantoms.md."""

from __future__ import annotations

import numpy as np

PHASES = ("none", "pulmonary", "arterial", "portal")

_PLAIN: dict[str, tuple[float, float]] = {
    # mean and spread between patients
    "air": (-1000, 0),
    "airway": (-985, 5),
    "bowel_gas": (-960, 15),
    "lung": (-860, 22),
    "fat": (-104, 5),
    "skin": (35, 8),
    "muscle": (56, 5),
    "airway_wall": (20, 15),
    "oesophagus": (38, 5),
    "disc": (82, 10),
    "cord": (28, 5),
    "cartilage": (105, 15),
    "cortical": (850, 90),
    "marrow": (190, 45),
    "gallbladder": (10, 5),
    "fluid": (14, 6),
    "stool": (5, 20),
    "gland": (38, 8),
}
_BY_PHASE: dict[str, tuple[float, float, float, float]] = {
    # means per phase in the order of PHASES
    "systemic_vein": (42, 380, 210, 140),
    "right_heart": (42, 330, 190, 145),
    "pulmonary_artery": (42, 340, 210, 145),
    "pulmonary_vein": (42, 270, 260, 145),
    "left_heart": (42, 210, 310, 145),
    "aorta": (42, 180, 330, 150),
    "inferior_vein": (42, 60, 75, 140),
    "azygos": (42, 55, 80, 130),
    "myocardium": (44, 80, 105, 100),
    "liver": (58, 60, 70, 110),
    "liver_vessels": (40, 48, 95, 165),
    "spleen": (48, 65, 110, 122),
    "kidney": (32, 70, 165, 185),
    "kidney_medulla": (30, 36, 60, 160),
    "pancreas": (40, 55, 95, 88),
    "adrenal": (20, 30, 55, 65),
    "stomach_wall": (38, 45, 75, 85),
    "bowel_wall": (35, 42, 70, 85),
    "node": (38, 42, 60, 80),
    "thyroid": (110, 130, 170, 160),
}
_BLOOD = ("systemic_vein", "right_heart", "pulmonary_artery", "pulmonary_vein", "left_heart", "aorta")


def draw_tissue(rng: np.random.Generator, phase: str) -> dict[str, float]:
    """HU of every tissue for one patient.

    Args:
        rng: the patient's anatomy stream.
        phase: one of ``PHASES``.
    """
    column = PHASES.index(phase)
    hu = {name: mean + spread * float(np.clip(rng.standard_normal(), -2, 2)) for name, (mean, spread) in _PLAIN.items()}
    timing = rng.uniform(0.85, 1.15)  # one factor for all blood: dose per weight and timing move it together
    for name, means in _BY_PHASE.items():
        value = means[column] * (1 + 0.05 * float(np.clip(rng.standard_normal(), -2, 2)))
        hu[name] = value * timing if name in _BLOOD and phase != "none" else value
    if phase == "none":  # without contrast all blood is the same blood
        blood = rng.uniform(36, 48)
        hu.update(dict.fromkeys([*_BLOOD, "inferior_vein", "azygos", "liver_vessels"], blood))
    return hu
