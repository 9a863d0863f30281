"""VoCo crops as tensors: overlap labels, cutting and augmentation.

Everything works on a whole batch on the device of its inputs, without a Python loop over crops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from voco.errors import InputError
from voco.geometry import Geometry


def overlap_labels(starts: Tensor, geometry: Geometry) -> Tensor:
    """Share of a crop's volume that it has in common with each base crop.

    Args:
        starts: (..., K, 3) corners (D, H, W) in voxels.
        geometry: grid and size of the crops.

    Returns:
        (..., K, N) float32. Rows sum to 1 for crops inside the grid with no offset along D.
    """
    distance = (starts.unsqueeze(-2) - geometry.base_starts(starts.device)).abs().unbind(-1)
    depth, row, col = ((edge - gap).clamp(min=0) for edge, gap in zip(geometry.size, distance))
    return (depth * row * col).to(torch.float32) / math.prod(geometry.size)


def cut(windows: Tensor, starts: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Cut crops out of every window of a batch.

    Args:
        windows: (B, D, H, W), any dtype.
        starts: (B, K, 3) corners (D, H, W); crops must lie inside the window.
        size: (d, h, w) of a crop.

    Returns:
        (B, K, d, h, w), the dtype of ``windows``.
    """
    if any(edge > whole for edge, whole in zip(size, windows.shape[1:])):
        raise InputError(f"a crop of {tuple(size)} does not fit into a window of {tuple(windows.shape[1:])}")
    # unfold only makes a view (B, places along D, H, W, d, h, w); the one copy is the indexing
    places = windows.unfold(1, size[0], 1).unfold(2, size[1], 1).unfold(3, size[2], 1)
    volume = torch.arange(len(windows), device=windows.device).unsqueeze(1)
    depth, row, col = starts.to(windows.device).unbind(-1)
    return places[volume, depth, row, col]


def augment(
    x: Tensor,
    flips: Tensor,
    turns: Tensor,
    shift: Tensor,
    *,
    axis_order: tuple[int, int, int] = (0, 1, 2),
    flipped: tuple[int, ...] = (),
    std: tuple[float, ...] = (1.0,),
) -> Tensor:
    """Flip, then turn, then shift each crop of a prepared batch; one gather for the whole batch.

    Flips and turns are meant in the canonical frame, whatever order the axes of ``x`` have: a flip reverses canonical
    D, H or W, a turn is ``torch.rot90`` from H to W.

    Args:
        x: (M, C, a, b, c) crops as the network gets them.
        flips: (M, 3) bool for D, H and W.
        turns: (M,) quarter turns; any but 0 and 2 need H = W.
        shift: (M,) in units of the Hounsfield window.
        axis_order: canonical axis behind each spatial axis of ``x`` (``InputSpec.axis_order``).
        flipped: spatial axes of ``x`` that run against the canonical direction.
        std: per channel, as applied after windowing: a shift of the window is ``1 / std`` of it afterwards.

    Returns:
        Same shape and dtype as ``x``.
    """
    device, shape = x.device, x.shape[2:]
    d, h, w = (axis_order.index(axis) for axis in range(3))
    if shape[h] != shape[w]:
        raise InputError(f"crops must be as high as wide to be turned, found H {shape[h]} and W {shape[w]}")
    # Places relative to the middle, doubled to stay integer: a mirrored axis is then only a change of sign.
    middle = []
    for axis, n in enumerate(shape):
        places = 2 * torch.arange(n, device=device) - (n - 1)
        places = -places if axis in flipped else places
        middle.append(places.view([n if i == axis else 1 for i in range(3)]))

    def per_crop(values: Tensor) -> Tensor:
        return values.to(device).view(-1, 1, 1, 1)

    turns = per_crop(turns % 4)
    odd = turns % 2 == 1
    sign = [torch.where(per_crop(flips[:, axis]), -1, 1) for axis in range(3)]
    # where voxel (i, j) of rot90(flip(x), k) comes from: k=1 (j, -i), k=2 (-i, -j), k=3 (-j, i)
    source = {
        d: sign[0] * middle[d],
        h: sign[1] * torch.where(turns >= 2, -1, 1) * torch.where(odd, middle[w], middle[h]),
        w: sign[2] * torch.where((turns == 1) | (turns == 2), -1, 1) * torch.where(odd, middle[h], middle[w]),
    }
    index = []
    for axis, n in enumerate(shape):
        places = -source[axis] if axis in flipped else source[axis]
        index.append(((places + (n - 1)) // 2).unsqueeze(1))
    crop = torch.arange(len(x), device=device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=device).view(1, -1, 1, 1, 1)
    return x[crop, channel, index[0], index[1], index[2]].add_(_offset(x, shift, std))


def shift_intensity(x: Tensor, shift: Tensor, std: tuple[float, ...] = (1.0,)) -> Tensor:
    """The intensity shift of ``augment`` alone: ``x`` (M, C, a, b, c), ``shift`` (M,) in units of the window."""
    return x + _offset(x, shift, std)


def _offset(x: Tensor, shift: Tensor, std: tuple[float, ...]) -> Tensor:
    shift = shift.to(x).view(-1, 1, 1, 1, 1)
    return torch.cat([shift / value for value in std], dim=1)
