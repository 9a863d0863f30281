"""Settings of 2D-VoCo and its presets. Does not import torch.

V1 and V2 are the two variants of tkz05/2D-VoCo-CT-Classifier (arXiv 2601.14593). The dataclass defaults are the
``default`` preset: the published method with its known defects repaired.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from voco.errors import InputError
from voco.geometry import Augmentation, Geometry
from voco.methods.options import VoCoOptions, as_presets, resolve_from


@dataclass(frozen=True)
class VoCo2DOptions(VoCoOptions):
    """Options of VoCo 3D, with 2D-VoCo's own values, and those that only 2D-VoCo has.

    Raises:
        InputError: an unknown value, or options that contradict each other.
    """

    embedding: Literal["deepest", "pyramid"] = "deepest"
    """Features of a crop: mean over its slices of the encoder's slice vectors (V1, V2; the encoder's argument ``pool``
    flattens them as published or averages each map), or the pooled maps of every stage side by side."""
    projector_dim: int = 2048
    """Width of all three projector layers. V1, V2: 2048."""
    teacher: Literal["model", "projector", "none"] = "model"
    """Moving average of encoder and projector (V1, V2: of the encoder), of the projector alone, or no teacher."""
    negative: Literal["square", "log"] = "square"
    """Cost of a logit l at overlap 0: l squared (V1, V2) or -log(1 - l)."""
    slices: int = 32
    """Slices taken from every crop, evenly from its first to its last. V1, V2: 32."""
    teacher_projector: Literal["ema", "trained"] = "ema"
    """The teacher's projector: frozen moving average of the student's, or (V1, V2) one with random weights of its own,
    which the intra loss trains: nothing then holds the target of the student still."""
    ema_buffers: bool = True
    """Whether the teacher takes over running statistics of norms too. V1, V2: no, its own forward passes make them."""

    def __post_init__(self):
        super().__post_init__()
        if self.slices < 1:
            raise InputError(f"slices must be positive, found {self.slices}")
        if self.teacher_projector == "trained" and self.teacher != "model":
            raise InputError(
                f"teacher_projector 'trained' belongs to teacher 'model', but teacher is {self.teacher!r}; "
                "choose teacher 'model', or teacher_projector 'ema'"
            )
        if self.teacher_projector == "trained" and self.intra == "detached":
            raise InputError(
                "intra 'detached' never uses the teacher's projector, so nothing would train it; choose intra "
                "'student_teacher' or 'symmetric', or teacher_projector 'ema'"
            )


_PUBLISHED: dict[str, Any] = {
    "region": "whole",
    "flip_prob": 0.0,
    "turn_prob": 0.0,
    "shift_prob": 0.0,
    "norm_scope": "local",
    "inter_scope": "local",
    "teacher_projector": "trained",
    "ema_buffers": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "published_v1": {
        **_PUBLISHED,
        "grid": (4, 4),
        "crop": 96,
        "network_size": 64,
        "ema_timing": "before_step",
        "intra": "symmetric",
        "inter_weight": 0.0,
    },
    "published_v2": {**_PUBLISHED, "ema_timing": "after_teacher", "feature_dropout": "channel"},
}
"""What each preset changes, by flat name, as in ``voco.methods.options``. Both published variants resize the whole
volume (V1 to 96 x 384 x 384, V2 to 64 x 192 x 192, D H W). V2's element-wise dropout of features is ``channel``."""


@dataclass
class VoCo2DConfig:
    """2D-VoCo; see docs/voco2d.md for which option is which published version."""

    name: Literal["voco2d"] = "voco2d"
    """Method."""
    preset: Literal["default", "published_v1", "published_v2"] = "default"
    """default: the published method with its defects repaired; published_v1, published_v2: as published."""
    region: Literal["window", "whole"] = "window"
    """window: a random local window; whole: the whole volume resized to the window (published)."""
    geometry: Geometry = field(default_factory=Geometry)
    """Grid and crops."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Augmentation of every crop on its own."""
    options: VoCo2DOptions = field(default_factory=VoCo2DOptions)
    """Slices, network heads and losses."""


def resolve(preset: str = "default", **changes: Any) -> VoCo2DConfig:
    """Settings of a preset of 2D-VoCo, with ``changes`` by flat name on top.

    Raises:
        InputError: unknown preset or setting.
    """
    return resolve_from(PRESETS, VoCo2DConfig, VoCo2DOptions, preset, changes)


VoCo2DConfig.presets = as_presets({name: resolve(name) for name in PRESETS})
