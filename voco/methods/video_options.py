"""Settings of the video method: which head reads the encoder, and how a clip is augmented. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from voco.data.clip_frames import ClipSettings
from voco.errors import InputError


@dataclass(frozen=True)
class VideoOptions:
    """Head, loss and augmentation of supervised training on clips.

    Raises:
        InputError: an unknown value.
    """

    head: Literal["linear", "mean", "attention", "lstm", "bilstm", "gru"] = "linear"
    """What turns features into classes: a linear layer on the pooled features of the encoder, or on those that a
    sequence head makes of its features per frame. Whole models (viptt, lrcn) bring their own: linear."""
    dropout: float = 0.0
    """Share of the features that the last layer does not see in training. Kinetics fine-tuning: 0.5."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes. MViT on Kinetics: 0.1; most others: 0."""
    flip_prob: float = 0.0
    """Probability of mirroring a clip left to right. Published Kinetics training: 0.5. Off here, because it turns
    classes such as "moves left" or a sign of one hand into another class without changing the label."""
    jitter: float = 0.1
    """Largest change of a clip's brightness (as a share of the full range) and of its contrast (as a factor); the same
    for all frames. 0 = none."""
    norm_scope: Literal["global", "local"] = "global"
    """Batch statistics over all processes, or of each process alone."""

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            allowed, value = get_args(kind), getattr(self, name)
            if allowed and value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}; found {value!r}")
        for name in ("dropout", "label_smoothing", "jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and less than 1, found {getattr(self, name)}")
        if not 0 <= self.flip_prob <= 1:
            raise InputError(f"flip_prob must lie between 0 and 1, found {self.flip_prob}")


@dataclass
class VideoConfig:
    """Supervised training on labeled clips; see docs/video.md."""

    name: Literal["video"] = "video"
    """Method."""
    clip: ClipSettings = field(default_factory=ClipSettings)
    """Frames and pixels of a sample."""
    options: VideoOptions = field(default_factory=VideoOptions)
    """Head, loss and augmentation."""
