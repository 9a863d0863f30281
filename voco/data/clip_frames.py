"""Which frames of a clip are taken and which part of them: arithmetic without torch and without video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import numpy as np

from voco.data.video import FrameIndex
from voco.errors import InputError


@dataclass(frozen=True)
class ClipSettings:
    """What a sample is cut to.

    Raises:
        InputError: a value that cannot be used.
    """

    frames: int = 16
    """Frames of a sample (T)."""
    size: tuple[int, int] = (112, 112)
    """Height and width of a sample in pixels."""
    rule: Literal["uniform", "stride", "first"] = "uniform"
    """uniform: spread evenly over the clip, or over `span_s` of it. stride: every `stride`-th frame of a video with
    `fps` frames per second, whatever rate the file has. first: the first frames one by one (ViPTT-Net)."""
    span_s: float = 0.0
    """uniform: seconds that the frames cover, at a random place in training and in the middle otherwise; 0 = all."""
    stride: int = 2
    """stride: frames of the nominal rate from one taken frame to the next."""
    fps: float = 30.0
    """stride: nominal rate, frames per second."""
    scale: tuple[float, float] = (256 / 224, 256 / 224)
    """Before cropping, clips are resized until they cover `size` times this factor, drawn between the two values in
    training and their mean otherwise. Published: 256 for 224 pixels; SlowFast and MViT draw from 256/224 to 320/224."""

    def __post_init__(self):
        allowed = get_args(get_type_hints(type(self))["rule"])
        if self.rule not in allowed:
            raise InputError(f"the rule of a clip must be one of {', '.join(allowed)}; found {self.rule!r}")
        if self.frames < 1 or len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"clips of {self.frames} frames of {self.size} pixels; expected positive numbers")
        if self.stride < 1 or not self.fps > 0 or self.span_s < 0:
            raise InputError(f"stride {self.stride}, fps {self.fps} and span_s {self.span_s} must be positive")
        if len(self.scale) != 2 or not 1 <= self.scale[0] <= self.scale[1]:
            raise InputError(f"scale is a range from at least 1, found {self.scale}: crops lie inside the picture")


def clip_range(index: FrameIndex, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """First frame of a part of a file and the one after its last.

    Args:
        start_s, end_s: seconds from the file's first frame; None = to that end. At least one frame is taken, the
            nearest, where the file is shorter than its list says.
    """
    times = index.times_s
    first = 0 if start_s is None else int(np.searchsorted(times, start_s - 1e-6))
    stop = len(times) if end_s is None else int(np.searchsorted(times, end_s - 1e-6))
    first = min(first, len(times) - 1)
    return first, max(stop, first + 1)


def choose_frames(index: FrameIndex, first: int, stop: int, settings: ClipSettings, start: float) -> np.ndarray:
    """Numbers of the frames of one sample, by the times at which frames are shown.

    Where a clip is too short, its last frame is repeated.

    Args:
        index: of the file.
        first, stop: the clip is ``first … stop - 1``.
        settings: rule and its numbers.
        start: in [0, 1], where between its earliest and its latest place the sample begins; 0.5 = the middle.

    Returns:
        (T,) ascending.
    """
    count = settings.frames
    if settings.rule == "first":
        return np.minimum(first + np.arange(count), stop - 1)
    begin, end = index.times_s[first], index.times_s[stop - 1]
    if settings.rule == "stride":
        length = (count - 1) * settings.stride / settings.fps
    else:
        length = min(settings.span_s or np.inf, end - begin)
    begin = begin + start * max(0.0, end - begin - length)
    times = begin + np.linspace(0, 1, count) * length if count > 1 else np.array([begin + start * length])
    return index.nearest(times).clip(first, stop - 1)


def resized(shown: tuple[int, int], settings: ClipSettings, share: float) -> tuple[int, int]:
    """(H, W) to which a clip is resized before it is cropped; proportions are kept.

    Args:
        shown: (H, W) of the file, after rotation.
        share: in [0, 1], place in the range of factors; 0.5 = their mean.
    """
    factor = settings.scale[0] + share * (settings.scale[1] - settings.scale[0])
    zoom = factor * max(want / have for want, have in zip(settings.size, shown))
    return tuple(max(want, round(have * zoom)) for want, have in zip(settings.size, shown))


def crop_start(size: tuple[int, int], settings: ClipSettings, shares: tuple[float, float]) -> tuple[int, int]:
    """First row and column of the crop.

    Args:
        size: (H, W) of the resized clip.
        shares: in [0, 1) for height and width; 0.5 = the centre.
    """
    rooms = [have - want for have, want in zip(size, settings.size)]
    return tuple(min(int(share * (room + 1)), room) for share, room in zip(shares, rooms))
