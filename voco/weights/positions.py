"""Named rules that resize tables of positions. A table that has the wanted size already comes back as it is.

All interpolations measure from the edges of the cells (``align_corners=False``), as the published code does. A ramp
stays a ramp except beyond the outermost cell centres, where it is held.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

LINEAR = "positions linear"
BICUBIC = "positions bicubic"
BIAS_TRILINEAR = "relative bias trilinear"
BIAS_REPEATED = "2D relative bias repeated over depth"
BIAS_BICUBIC_REPEATED = "2D relative bias bicubic, repeated over depth"

# Windows of 3 to 16 tokens have tables of 5 to 31 offsets a side.
_SIDES = range(5, 32, 2)


def resize_linear(table: Tensor, length: int) -> Tensor:
    """A table of positions along one axis for another length.

    Source: ``rel_pos_*`` and ``pos_embed_temporal`` of SlowFast, and torchvision's MViT at run time.

    Args:
        table: (L, C).
        length: entries wanted.

    Returns:
        (length, C).
    """
    if table.shape[0] == length:
        return table
    return F.interpolate(table.t()[None], size=length, mode="linear", align_corners=False)[0].t()


def resize_bicubic(table: Tensor, found: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """A table of positions in a plane for another plane; neither needs to be square.

    Source: ``pos_embed_spatial`` of SlowFast, which knows square planes only.

    Args:
        table: (h * w, C), rows of the plane one after the other.
        found: (h, w) of the table.
        wanted: (h, w) to resize to.

    Returns:
        (product of ``wanted``, C).
    """
    if found == wanted:
        return table
    plane = table.t().reshape(1, -1, *found)
    return F.interpolate(plane, size=wanted, mode="bicubic", align_corners=False).flatten(2)[0].t()


def resize_bias_table(table: Tensor, found: tuple[int, int, int], wanted: tuple[int, int, int]) -> Tensor:
    """A table of relative bias for another 3D attention window. No published code does this; trilinear is our choice.

    Args:
        table: ((2d - 1)(2h - 1)(2w - 1), heads) for the window ``found``.
        found, wanted: windows (d, h, w) in tokens.

    Returns:
        The table for the window ``wanted``.
    """
    if found == wanted:
        return table
    sides = [tuple(2 * n - 1 for n in window) for window in (found, wanted)]
    volume = table.t().reshape(1, -1, *sides[0])
    return F.interpolate(volume, size=sides[1], mode="trilinear", align_corners=False).flatten(2)[0].t()


def bias_table_from_2d(table: Tensor, found: tuple[int, int], wanted: tuple[int, int, int]) -> Tensor:
    """A table of relative bias of a 2D network for a 3D window: bicubic in the plane, the same at every depth offset.

    Source: Liu et al., Video Swin Transformer, CVPR 2022 (``inflate_weights`` of the public code).

    Args:
        table: ((2h - 1)(2w - 1), heads) for the window ``found``.
        found: window (h, w); ``wanted``: window (d, h, w).

    Returns:
        The table for the window ``wanted``.
    """
    depth, *plane = wanted
    sides = [tuple(2 * n - 1 for n in window) for window in (found, plane)]
    return resize_bicubic(table, *sides).repeat(2 * depth - 1, 1)


def window_of_table(rows: int) -> tuple[int, int, int] | None:
    """Attention window (d, h, w) with h = w of a table of relative bias with so many rows; d is 1 for a 2D network.

    Returns:
        None where no window of 3 to 16 tokens a side has such a table, or several have.
    """
    found = [
        (((rows // side**2) + 1) // 2, (side + 1) // 2)
        for side in _SIDES
        if rows % side**2 == 0 and (rows // side**2) % 2 == 1
    ]
    return (found[0][0], found[0][1], found[0][1]) if len(found) == 1 else None
