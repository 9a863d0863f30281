"""How far apart in depth the positions of an encoder's deepest map are, and how that can be made finer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from voco.errors import InputError


def reduced_depth_strides(published: Sequence[int], total: int | None, label: str) -> tuple[int, ...]:
    """Depth strides of a network's layers with a smaller product, the last strided layers losing theirs first.

    CT slices are not video frames: a network that keeps one position of eight in time blurs 40 mm of 5 mm slices.
    Removing the late strides leaves the early layers with the sampling that they were trained at, as timm's
    ``output_stride`` does; kernels and weights are the same ones.

    Args:
        published: depth stride of each layer, in the order in which they act.
        total: product that is wanted; None keeps the published one.
        label: name of the network for error messages.

    Raises:
        InputError: a total that no such removal gives, with those that can be reached.
    """
    strides = list(published)
    reachable = {prod(strides): tuple(strides)}
    for position in reversed(range(len(strides))):
        strides[position] = 1
        reachable[prod(strides)] = tuple(strides)
    if total is None:
        return tuple(published)
    if total not in reachable:
        known = ", ".join(map(str, sorted(reachable)))
        raise InputError(f"{label} can have a depth stride of {known}; found depth_stride={total!r}")
    return reachable[total]
