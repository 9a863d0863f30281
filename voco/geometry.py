"""Where VoCo crops lie and how they are augmented: settings that draw, without the tensor work of ``voco.crops``.

torch is imported inside the methods and not named in annotations: these dataclasses are settings, and the settings
parser resolves the annotations of a whole module, which would load torch to print help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from voco.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """Where crops lie inside the window that is read from a volume; sizes in voxels of the prepared volume.

    The defaults are the published v2 geometry (3x3 crops of 64^3 in a slab of 64 x 192 x 192, D H W).

    Raises:
        InputError: sizes that do not fit together.
    """

    grid: tuple[int, int] = (3, 3)
    """Base crops along (H, W); base k = row * columns + column. v2: 3x3; v0, v1, nnssl and the figures: 4x4."""
    crop: int = 64
    """Edge of every crop along H and W (and D unless crop_depth is set). v2, nnssl: 64; v0, v1: 96."""
    crop_depth: int | None = None
    """Edge of every crop along D; unset = crop, as in every published version."""
    random_crops: int = 2
    """Random crops per volume. v1, v2: 2; nnssl and, by a comment there, v0: 4."""
    random_axes: Literal["inplane", "all"] = "inplane"
    """inplane: offsets along H and W, upper bound exclusive (v0, v1, v2); all: along D too, inclusive (nnssl)."""
    window_depth: int | None = None
    """Depth of the window that is read; unset = depth of a crop. Base crops lie in its middle."""
    network_size: int | None = None
    """Crops are resized (trilinear) to this edge before the network; unset = as cut. v0, v1: 64 (cut at 96)."""

    def __post_init__(self):
        rows, cols = self.grid
        if rows < 1 or cols < 1 or rows * cols < 2:
            raise InputError(f"grid needs at least two base crops, e.g. (3, 3); found {self.grid}")
        for name in ("crop", "crop_depth", "random_crops", "window_depth", "network_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be a positive number, found {value}")
        if self.random_axes not in ("inplane", "all"):
            raise InputError(f"random_axes must be 'inplane' or 'all', found {self.random_axes!r}")
        if self.window[0] < self.size[0]:
            raise InputError(f"window_depth {self.window_depth} is less than the depth of a crop, {self.size[0]}")

    @property
    def size(self) -> tuple[int, int, int]:
        """(D, H, W) of a crop as it is cut."""
        return (self.crop_depth or self.crop, self.crop, self.crop)

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of a crop as the network gets it; the depth keeps its ratio to the edge."""
        edge = self.network_size or self.crop
        return (max(1, round(self.size[0] * edge / self.crop)), edge, edge)

    @property
    def window(self) -> tuple[int, int, int]:
        """(D, H, W) of the window that is read from a volume."""
        rows, cols = self.grid
        return (self.window_depth or self.size[0], rows * self.crop, cols * self.crop)

    @property
    def bases(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def start_ranges(self) -> tuple[range, range, range]:
        """Starts that a random crop can have along D, H and W, each equally likely.

        The authors draw centres with ``randint(low, high)``, whose upper bound is exclusive, so the last place of the
        grid is never drawn; nnssl includes it.
        """
        free = [whole - edge for whole, edge in zip(self.window, self.size)]
        if self.random_axes == "all":
            return tuple(range(n + 1) for n in free)
        middle = free[0] // 2
        return (range(middle, middle + 1), range(max(free[1], 1)), range(max(free[2], 1)))

    def base_starts(self, device=None):
        """(N, 3) int64 corner (D, H, W) of every base crop inside the window."""
        import torch

        rows, cols = (torch.arange(n, device=device) * self.crop for n in self.grid)
        depth = torch.full((self.bases,), (self.window[0] - self.size[0]) // 2, device=device)
        return torch.stack([depth, rows.repeat_interleave(self.grid[1]), cols.repeat(self.grid[0])], dim=1)

    def draw_starts(self, generator):
        """(K, 3) int64 random corners (D, H, W) inside the window, on the CPU."""
        import torch

        axes = [
            torch.randint(places.start, places.stop, (self.random_crops,), generator=generator)
            for places in self.start_ranges
        ]
        return torch.stack(axes, dim=1)


@dataclass(frozen=True)
class Augmentation:
    """How every crop, base and random, is changed on its own.

    The defaults shift every crop's intensity, so that brightness does not tell the place, and leave its geometry alone:
    with the published flips and turns small encoders learned next to nothing in the same time (docs/voco3d_study.md).
    """

    flip_prob: float = 0.0
    """Probability of a flip, for each of the three axes on its own. v1, v2: 0.2."""
    turn_prob: float = 0.0
    """Probability of turning by 90, 180 or 270 degrees in the axial plane. v1, v2: 0.2."""
    shift_prob: float = 1.0
    """Probability of an intensity shift. v2: 0.5; v1: 0.1."""
    shift_range: float = 0.1
    """Largest shift in either direction, in units of the Hounsfield window. v1, v2: 0.1."""

    def __post_init__(self):
        for name in ("flip_prob", "turn_prob", "shift_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, found {getattr(self, name)}")
        if self.shift_range < 0:
            raise InputError(f"shift_range must not be negative, found {self.shift_range}")

    def draw(self, count: int, generator) -> dict:
        """Draws for ``count`` crops, on the CPU: ``flips`` (count, 3) bool, ``turns`` (count,) quarter turns 0 to 3,
        ``shift`` (count,) float32 in units of the Hounsfield window."""
        import torch

        # a fixed number of draws, whatever the settings: changing one probability leaves the others' draws alone
        uniform = torch.rand(count, 6, generator=generator)
        turns = torch.randint(1, 4, (count,), generator=generator)
        shift = (2 * uniform[:, 5] - 1) * self.shift_range
        return {
            "flips": uniform[:, :3] < self.flip_prob,
            "turns": torch.where(uniform[:, 3] < self.turn_prob, turns, 0),
            "shift": torch.where(uniform[:, 4] < self.shift_prob, shift, 0.0),
        }
