"""Settings of VoCo 3D: every place where the published versions differ, and the presets. Does not import torch.

Versions: v0, the CVPR method without a teacher; v1, Luffy03/VoCo; v2, Luffy03/Large-Scale-Medical; nnssl, the port in
MIC-DKFZ/nnssl. The dataclass defaults are the ``default`` preset: v2 with its known defects repaired.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from voco.errors import InputError
from voco.geometry import Augmentation, Geometry


@dataclass(frozen=True)
class VoCoOptions:
    """Embedding, projector, teacher and loss terms of VoCo 3D.

    Raises:
        InputError: an unknown value, or options that contradict each other.
    """

    embedding: Literal["pyramid", "deepest"] = "pyramid"
    """Features of a crop: the pooled maps of every stage side by side (v1, v2, nnssl), or the deepest one (v0)."""
    projector_dim: int = 1024
    """Width of all three projector layers. v2: 1024; v0, v1, nnssl: 2048."""
    projector_norm: Literal["batch", "instance", "none"] = "batch"
    """Norm after the first two projector layers. v0, v1, v2: batch; nnssl: instance (every row by itself)."""
    norm_scope: Literal["global", "local"] = "global"
    """Batch statistics of projector and encoder over all processes (v1, SyncBN) or each process alone (v2)."""
    teacher: Literal["projector", "model", "none"] = "projector"
    """Frozen moving average of the projector (v2), of encoder and projector (v1), or no teacher (v0, nnssl)."""
    teacher_momentum: float = 0.9
    """Share of its old weights that the teacher keeps at an update. v1, v2: 0.9, constant."""
    ema_timing: Literal["after_step", "before_step", "after_teacher"] = "after_step"
    """When the teacher is updated: after the optimiser step; inside forward, before the optimiser has moved (v1, v2);
    or there, but after the teacher's own pass (2D-VoCo V2), so that it lags one step more."""
    intra: Literal["student_teacher", "symmetric", "detached"] = "student_teacher"
    """Logits of a random crop r and a base b: cos(r_s, b_t) (v2); half of that plus half of cos(r_t, b_s) (v1);
    cos(r_s, b_s) with no gradient to b (v0, nnssl)."""
    positive_weight: Literal["overlap", "one"] = "overlap"
    """Weight of a positive pair: its overlap (v1, v2, nnssl) or one (v0)."""
    negative: Literal["log", "square"] = "log"
    """Cost of a logit l at overlap 0: -log(1 - l) (v2) or l squared (v0, v1, nnssl)."""
    inter_weight: float = 1.0
    """Weight of the loss between volumes. v2: 1; v0, v1, nnssl have none: 0."""
    inter_scope: Literal["global", "local"] = "global"
    """Pairs of volumes are formed over all processes, or within each process (v2)."""
    reg_weight: float = 1.0
    """Weight of the base regulariser. 1 in every version."""
    reg_power: Literal[2, 1] = 2
    """Power of the relu'd cosine in the regulariser. v0, v1, v2: 2; nnssl: 1."""
    reg_stop_gradient: Literal["one_side", "none"] = "one_side"
    """Whether the later base crop of a pair gets no gradient (v1, v2) or both do (v0, nnssl)."""
    feature_dropout: Literal["none", "crop", "channel"] = "none"
    """Dropout on the student's features. v2: crop (Dropout1d on a 2D tensor drops whole crops, in evaluation too;
    here in training only); channel is what its figure shows; the others: none."""
    dropout_rate: float = 0.2
    """Probability of dropping; survivors are scaled by 1 / (1 - rate). v2: 0.2."""

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            allowed, value = get_args(kind), getattr(self, name)
            if allowed and value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}; found {value!r}")
        if self.projector_dim < 1:
            raise InputError(f"projector_dim must be positive, found {self.projector_dim}")
        if not 0 <= self.teacher_momentum <= 1:
            raise InputError(f"teacher_momentum must lie between 0 and 1, found {self.teacher_momentum}")
        if not 0 <= self.dropout_rate < 1:
            raise InputError(f"dropout_rate must be at least 0 and less than 1, found {self.dropout_rate}")
        for name in ("inter_weight", "reg_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.teacher == "none" and self.intra != "detached":
            raise InputError(
                f"intra '{self.intra}' compares with a teacher, but teacher is 'none'; "
                "choose intra 'detached', or teacher 'projector' or 'model'"
            )
        if self.teacher == "none" and self.inter_weight > 0:
            raise InputError(
                "the loss between volumes takes its targets from a teacher, but teacher is 'none'; "
                "set inter_weight to 0, or choose teacher 'projector' or 'model'"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "v1": {
        "region": "whole",
        "grid": (4, 4),
        "crop": 96,
        "network_size": 64,
        "flip_prob": 0.2,
        "turn_prob": 0.2,
        "shift_prob": 0.1,
        "projector_dim": 2048,
        "teacher": "model",
        "ema_timing": "before_step",
        "intra": "symmetric",
        "negative": "square",
        "inter_weight": 0.0,
    },
    "v2": {
        "flip_prob": 0.2,
        "turn_prob": 0.2,
        "shift_prob": 0.5,
        "norm_scope": "local",
        "ema_timing": "before_step",
        "inter_scope": "local",
        "feature_dropout": "crop",
    },
}
"""What each preset changes, by flat name: fields of Geometry, Augmentation and VoCoOptions, and ``region``, how a
window is taken from a volume: ``window`` (default: a random place) or ``whole`` (the volume resized to it, v1)."""


@dataclass
class VoCo3DConfig:
    """3D VoCo; see docs/voco3d.md for which option is which published version."""

    name: Literal["voco3d"] = "voco3d"
    """Method."""
    preset: Literal["default", "v1", "v2"] = "default"
    """default: v2 with its defects repaired; v1, v2: as published. Single options still win."""
    region: Literal["window", "whole"] = "window"
    """window: a random local window (v2); whole: the whole volume resized to the window (v1)."""
    geometry: Geometry = field(default_factory=Geometry)
    """Grid and crops."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Augmentation of every crop on its own."""
    options: VoCoOptions = field(default_factory=VoCoOptions)
    """Network heads and losses."""


def resolve(preset: str = "default", **changes: Any) -> VoCo3DConfig:
    """Settings of a preset of VoCo 3D, with ``changes`` by flat name on top.

    Raises:
        InputError: unknown preset or setting.
    """
    return resolve_from(PRESETS, VoCo3DConfig, VoCoOptions, preset, changes)


def resolve_from(
    presets: dict[str, dict[str, Any]], config: type, options: type[VoCoOptions], preset: str, changes: dict[str, Any]
) -> Any:
    """``resolve`` for a method with its own ``presets``, ``options`` class and ``config`` that holds them."""
    if preset not in presets:
        raise InputError(f"unknown preset {preset!r}; known: {', '.join(presets)}")
    values = {"region": "window", **presets[preset], **changes}
    region, parts = values.pop("region"), {}
    for part, kind in (("geometry", Geometry), ("augmentation", Augmentation), ("options", options)):
        parts[part] = kind(**{f.name: values.pop(f.name) for f in fields(kind) if f.name in values})
    if values:
        known = [f.name for kind in (Geometry, Augmentation, options) for f in fields(kind)]
        raise InputError(f"unknown VoCo settings {sorted(values)}; known: {', '.join(['region', *known])}")
    return config(preset=preset, region=region, **parts)


def as_presets(resolved: dict[str, Any]) -> dict[str, dict]:
    """``Options.presets`` from the resolved settings of each preset."""
    return {
        name: {key: value for key, value in asdict(settings).items() if key not in ("name", "preset")}
        for name, settings in resolved.items()
    }


VoCo3DConfig.presets = as_presets({name: resolve(name) for name in PRESETS})
