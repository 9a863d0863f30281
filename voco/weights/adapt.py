"""Rules that make a published tensor fit another input, each exact in the case that defines it."""

from __future__ import annotations

import torch
from torch import Tensor

from voco.errors import InputError

INFLATIONS = ("repeat", "centre")


def adapt_input_channels(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """A convolution kernel, 2D or 3D, for another number of input channels.

    To one channel the kernels are summed: exact for a gray volume that would have been repeated (a mean would shrink
    the activations, and normalisation statistics would no longer fit). To k windows that sum is repeated and divided
    by k: exact when all windows show the same. A kernel that has the right number already is not touched.

    Args:
        weight: (out, in, kD, kH, kW) or (out, in, kH, kW).
        channels: input channels wanted.

    Returns:
        The kernel with ``channels`` in place of ``in``, and the name of the rule.
    """
    found = weight.shape[1]
    if found == channels:
        return weight, "unchanged"
    total = weight.sum(1, keepdim=True) if found > 1 else weight
    rule = f"sum of {found} input channels" if found > 1 else ""
    if channels == 1:
        return total, rule
    rule = f"{rule}, then " if rule else ""
    kernel = total.expand(-1, channels, *total.shape[2:]) / channels
    return kernel, f"{rule}repeated over {channels} windows / {channels}"


def inflate(weight: Tensor, depth: int, how: str = "repeat") -> tuple[Tensor, str]:
    """A 2D convolution kernel as a 3D one.

    Both rules give the 2D network's activations on a volume that is constant in depth, away from depth padding:
    ``repeat`` spreads the kernel over depth and divides by it (I3D, SlowFast), ``centre`` puts it in the middle and
    zeros elsewhere, which treats every slice alone and is exact on any volume.

    Args:
        weight: (out, in, kH, kW).
        depth: kD wanted.
        how: ``repeat`` or ``centre``; the latter needs an odd depth.

    Returns:
        The kernel (out, in, depth, kH, kW) and the name of the rule.

    Raises:
        InputError: an unknown rule, or ``centre`` for an even depth.
    """
    if how not in INFLATIONS:
        raise InputError(f"inflate must be one of {', '.join(INFLATIONS)}; found {how!r}")
    if depth == 1:
        return weight.unsqueeze(2), "2D kernel, depth 1"
    if how == "repeat":
        return weight.unsqueeze(2).expand(
            -1, -1, depth, -1, -1
        ) / depth, f"2D kernel repeated over depth {depth} / {depth}"
    if depth % 2 == 0:
        raise InputError(f"a 2D kernel has no centre among {depth} slices; use inflate='repeat'")
    kernel = weight.new_zeros(*weight.shape[:2], depth, *weight.shape[2:])
    kernel[:, :, depth // 2] = weight
    return kernel, f"2D kernel as the centre of depth {depth}"


def without_leading_ones(value: Tensor, shape: torch.Size) -> Tensor | None:
    """The tensor with dimensions of size 1 taken off its front where that gives ``shape``, else None."""
    extra = value.ndim - len(shape)
    if extra > 0 and value.shape[:extra] == (1,) * extra and value.shape[extra:] == shape:
        return value.reshape(shape)
    return None
