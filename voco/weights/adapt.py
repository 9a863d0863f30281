"""Rules that make a published tensor fit another input, each exact in the case that defines it."""

from __future__ import annotations

from torch import Tensor


def adapt_input_channels(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """A 3D convolution kernel for another number of input channels.

    To one channel the kernels are summed: exact for a gray volume that would have been repeated (a mean would shrink
    the activations, and normalisation statistics would no longer fit). To k windows that sum is repeated and divided
    by k: exact when all windows show the same. A kernel that has the right number already is not touched.

    Args:
        weight: (out, in, kD, kH, kW).
        channels: input channels wanted.

    Returns:
        The kernel (out, channels, kD, kH, kW) and the name of the rule.
    """
    found = weight.shape[1]
    if found == channels:
        return weight, "unchanged"
    total = weight.sum(1, keepdim=True) if found > 1 else weight
    rule = f"sum of {found} input channels" if found > 1 else ""
    if channels == 1:
        return total, rule
    rule = f"{rule}, then " if rule else ""
    return total.expand(-1, channels, -1, -1, -1) / channels, f"{rule}repeated over {channels} windows / {channels}"
