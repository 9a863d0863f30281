"""Frames of a video as an encoder's input: time becomes depth, gray becomes the Hounsfield window. torch only."""

from __future__ import annotations

import torch
from torch import Tensor

from voco.errors import InputError

# luma of ITU-R BT.601, which cameras and the usual conversions to gray use
LUMA = (0.299, 0.587, 0.114)


def clip_colour(encoder) -> str:
    """``"gray"`` for an encoder with one input channel, ``"rgb"`` for three: what its clips should be decoded to.

    Raises:
        InputError: another number of channels.
    """
    channels = encoder.input_spec.channels
    if channels not in (1, 3):
        raise InputError(
            f"video has one channel (gray) or three (colours); encoder {encoder.name or type(encoder).__name__} takes "
            f"{channels}: choose one or three Hounsfield windows"
        )
    return "gray" if channels == 1 else "rgb"


def check_clip_size(encoder, size: tuple[int, int, int]) -> None:
    """Refuse clips that are too small for the encoder.

    Args:
        encoder: a ``voco.encoders.base.Encoder``.
        size: (T, H, W) of the clips: frames, height, width.

    Raises:
        InputError: smaller than ``input_spec.min_size``.
    """
    smallest = encoder.input_spec.min_size
    if any(n < low for n, low in zip(size, smallest)):
        raise InputError(
            f"clips of {size[0]} frames of {size[1]}x{size[2]} pixels (height x width) are too small for encoder "
            f"{encoder.name or type(encoder).__name__}, which takes at least {smallest[0]} frames of "
            f"{smallest[1]}x{smallest[2]}: use more or larger frames, or another encoder"
        )


def frames_to_input(
    encoder, frames: Tensor, *, brightness: Tensor | None = None, contrast: Tensor | None = None
) -> Tensor:
    """Video frames to the network's input, as ``encoder.prepare`` does for a scan.

    A gray level g in [0, 1] enters as ``low + g * (high - low)`` Hounsfield units of the encoder's window; with three
    windows, each colour enters through its own. Means, deviations, axis order and padding are then the encoder's, so
    that weights move between video and CT without any change of input.

    Args:
        encoder: a ``voco.encoders.base.Encoder`` with one input channel (colours are turned to luma) or three (gray is
            repeated).
        frames: (B, T, H, W, 3) or (B, T, H, W, 1) uint8; time, rows from the top, columns from the left.
        brightness: (B,) added to all values, in units of the full range; the result is clipped to it.
        contrast: (B,) factor on the distance of all values from the middle of the range.

    Returns:
        What ``encoder.prepare`` returns: (B, channels, three spatial axes in the network's order).

    Raises:
        InputError: frames of another kind, a clip that is too small, or an encoder with neither one nor three channels.
    """
    if frames.ndim != 5 or frames.shape[-1] not in (1, 3) or frames.dtype != torch.uint8:
        raise InputError(
            f"clips must be uint8 of shape (B, T, H, W, 3) or (B, T, H, W, 1), found {frames.dtype} of shape "
            f"{tuple(frames.shape)}"
        )
    gray = clip_colour(encoder) == "gray"
    check_clip_size(encoder, tuple(frames.shape[1:4]))
    values = [frames[..., i].unsqueeze(1).float() / 255 for i in range(frames.shape[-1])]
    if gray and len(values) == 3:
        values = [sum(weight * value for weight, value in zip(LUMA, values))]
    values = [_change(value, brightness, contrast) for value in values]
    windows = encoder.input_spec.windows
    if gray:
        return encoder.prepare(_in_window(values[0], windows[0]))
    if len(values) == 1:
        values = values * 3
    # prepare makes every channel of every colour; the one of its own window is kept
    return torch.cat(
        [encoder.prepare(_in_window(v, w))[:, i : i + 1] for i, (v, w) in enumerate(zip(values, windows))], 1
    )


def _in_window(value: Tensor, window: tuple[float, float]) -> Tensor:
    low, high = window
    return low + value * (high - low)


def _change(value: Tensor, brightness: Tensor | None, contrast: Tensor | None) -> Tensor:
    if brightness is None and contrast is None:
        return value
    if contrast is not None:
        value = 0.5 + (value - 0.5) * contrast.to(value).view(-1, 1, 1, 1, 1)
    if brightness is not None:
        value = value + brightness.to(value).view(-1, 1, 1, 1, 1)
    return value.clamp(0, 1)
