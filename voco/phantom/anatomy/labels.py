"""The parts of a phantom: one label per part, and the groups that a lesion or a test asks for."""

from __future__ import annotations

_NAMES = (
    "outside",  # room air, table and everything else that is not the patient
    "table",
    "skin",
    "subcutaneous_fat",
    "muscle",
    "mediastinal_fat",
    "visceral_fat",
    "diaphragm",
    "lobe_right_upper",
    "lobe_right_middle",
    "lobe_right_lower",
    "lobe_left_upper",
    "lobe_left_lower",
    "airway_lumen",
    "airway_wall",
    "pulmonary_artery",
    "pulmonary_vein",
    "myocardium",
    "left_ventricle",
    "right_ventricle",
    "left_atrium",
    "right_atrium",
    "aorta",
    "arch_branches",
    "superior_vena_cava",
    "inferior_vena_cava",
    "azygos_vein",
    "oesophagus",
    "lymph_node",
    "vertebra",
    "disc",
    "spinal_canal",
    "rib_right",
    "rib_left",
    "costal_cartilage",
    "sternum",
    "clavicle",
    "scapula",
    "humerus",
    "liver",
    "liver_vessels",
    "gallbladder",
    "spleen",
    "kidney_right",
    "kidney_left",
    "kidney_medulla",
    "pancreas",
    "adrenal",
    "stomach_wall",
    "stomach_content",
    "bowel_wall",
    "bowel_content",
    "breast_gland",
    "thyroid",
)

LABELS: dict[str, int] = {name: number for number, name in enumerate(_NAMES)}
"""Part name to the value that stands for it in ``Patient.labels``."""

_RIGHT_LUNG = ("lobe_right_upper", "lobe_right_middle", "lobe_right_lower")
_LEFT_LUNG = ("lobe_left_upper", "lobe_left_lower")
_CHAMBERS = ("left_ventricle", "right_ventricle", "left_atrium", "right_atrium")

GROUPS: dict[str, tuple[str, ...]] = {
    "body": tuple(name for name in _NAMES if name not in ("outside", "table")),
    "lung_right": _RIGHT_LUNG,
    "lung_left": _LEFT_LUNG,
    "lungs": _RIGHT_LUNG + _LEFT_LUNG,
    "airways": ("airway_lumen", "airway_wall"),
    "heart": ("myocardium", *_CHAMBERS),
    "heart_chambers": _CHAMBERS,
    "ribs": ("rib_right", "rib_left"),
    "spine": ("vertebra", "disc"),
    "bones": ("vertebra", "rib_right", "rib_left", "sternum", "clavicle", "scapula", "humerus"),
    "kidneys": ("kidney_right", "kidney_left", "kidney_medulla"),
    "stomach": ("stomach_wall", "stomach_content"),
    "bowel": ("bowel_wall", "bowel_content"),
}
"""Names that stand for several parts; ``Patient.mask`` takes them as well."""
