"""How a whole study reaches an encoder that takes crops: stretched as one, in tiles, or as windows of slices.

A view says how studies are prepared (``prepare_settings``) and which boxes of a prepared volume the encoder is shown
(``windows``). Everything else, training or prediction, is the same for all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

import numpy as np

from voco.data.prepare import PrepareSettings
from voco.encoders.spec import InputSpec
from voco.errors import InputError

Kind = Literal["resize", "tiles", "slice_windows"]
_AIR_HU = -1024
_BODY_HU = -900
_MUCH_OUTSIDE = 0.2  # of the voxels of windows; as in pretraining
# Where neither the encoder nor the user names a spacing, tiles are cut at this one.
_DEFAULT_SPACING = (1.5, 1.5, 1.5)


@dataclass(frozen=True)
class View:
    """Windows of a study.

    Attributes:
        kind: ``resize``: the whole study stretched to ``size``, one window. ``tiles``: boxes of ``size`` at
            ``spacing_mm`` that cover it. ``slice_windows``: ``size[0]`` consecutive slices at the scan's own z spacing,
            stretched to ``size[1:]`` in the plane.
        size: (D, H, W) voxels of a window.
        spacing_mm: (D, H, W) mm of tiles, None for the scan's own.
        stride: step between windows along D, H, W; the last window always ends with the study.
        stored: (H, W) that ``slice_windows`` and ``resize`` are prepared at; larger than ``size[1:]``, training cuts at
            random places and everything else in the middle.
        crop_body: cut away air and table first.
        mask: ``crop`` or ``fill`` with the mask of each case, or "".
    """

    kind: Kind
    size: tuple[int, int, int]
    spacing_mm: tuple[float | None, float | None, float | None] | None = None
    stride: tuple[int, int, int] | None = None
    stored: tuple[int, int] | None = None
    crop_body: bool = True
    mask: str = ""

    def __post_init__(self):
        for name in ("size", "stride", "stored"):
            value = getattr(self, name)
            if value is not None and (len(value) != (2 if name == "stored" else 3) or min(value) < 1):
                raise InputError(f"--input.{name} takes positive numbers (D H W; stored: H W), found {value}")
        if self.stored is not None and (self.kind == "tiles" or any(n < k for n, k in zip(self.stored, self.size[1:]))):
            raise InputError(
                f"--input.stored {self.stored} must be at least the window's H and W {self.size[1:]}; tiles have none"
            )

    def prepare_settings(self) -> PrepareSettings:
        """How scans are prepared for this view."""
        plane = self.stored or self.size[1:]
        if self.kind == "tiles":
            return PrepareSettings(self.spacing_mm or _DEFAULT_SPACING, self.crop_body, mask=self.mask)
        depth = self.size[0] if self.kind == "resize" else None
        return PrepareSettings(None, self.crop_body, size=(depth, *plane), mask=self.mask)

    def windows(self, shape: Sequence[int]) -> np.ndarray:
        """(N, 3) int64 first voxels of the windows of a prepared (D, H, W) volume, in order along D, then H, then W.

        A volume that is smaller than a window is put in the middle of it along H and W, and along D except for
        ``slice_windows``, which start with the first slice; readers fill with air.
        """
        starts = [self._starts(axis, n) for axis, n in enumerate(shape)]
        return np.array(list(product(*starts)), np.int64)

    def _starts(self, axis: int, n: int) -> list[int]:
        size = self.size[axis]
        if self.kind != "tiles" and axis > 0:
            return [(n - size) // 2]
        if n <= size:
            return [0 if self.kind == "slice_windows" else -((size - n) // 2)]
        step = self.stride[axis] if self.stride else size
        starts = list(range(0, n - size + 1, step))
        return starts if starts[-1] == n - size else [*starts, n - size]

    def jitter(
        self, start: np.ndarray, shape: Sequence[int], draw: np.ndarray, axes: Sequence[int] = (0, 1, 2)
    ) -> np.ndarray:
        """A window's first voxel moved for training, from three uniform numbers in [0, 1).

        Tiles move by up to half a tile and windows of slices by up to half their stride along D, inside the volume; the
        place in the stored plane is free.

        Args:
            axes: along which it moves.
        """
        moved = np.array(start)
        for axis in axes:
            free = shape[axis] - self.size[axis]
            if free <= 0:
                continue
            if self.kind != "tiles" and axis > 0:
                moved[axis] = int(draw[axis] * (free + 1))
            elif self.kind != "resize":
                reach = (self.stride[axis] if self.stride else self.size[axis]) // 2
                low, high = max(0, start[axis] - reach), min(free, start[axis] + reach)
                moved[axis] = low + int(draw[axis] * (high - low + 1))
        return moved

    @property
    def text(self) -> str:
        """One line for people."""
        size = " x ".join(map(str, self.size))
        spacing = self.spacing_mm or _DEFAULT_SPACING
        mm = " x ".join("native" if v is None else f"{v:g}" for v in spacing)
        return {
            "resize": f"each study stretched to {size} voxels",
            "tiles": f"tiles of {size} voxels at {mm} mm",
            "slice_windows": f"windows of {size} voxels, slices at their own spacing",
        }[self.kind]


def make_view(
    kind: Kind,
    spec: InputSpec,
    *,
    size: Sequence[int] = (),
    spacing: Sequence[float | None] = (),
    stride: Sequence[int] = (),
    stored: Sequence[int] = (),
    crop_body: bool = True,
    mask: str = "",
) -> View:
    """A view from settings; what is left empty is the encoder's own ("as pretrained").

    Args:
        kind: of the view.
        spec: of the encoder: size, spacing, smallest size.
        size: (D, H, W), or one number for all three.
        spacing: (D, H, W) mm, or one number.
        stride: (D, H, W), or one number, which is the stride along D for windows of slices.
        stored: (H, W).

    Raises:
        InputError: sizes that the encoder cannot take, or a setting that this kind of view has no use for.
    """
    size = tuple(size) * (3 if len(size) == 1 else 1) or spec.size
    if len(size) != 3:
        raise InputError(f"--input.size takes one number or D H W, found {list(size)}")
    if any(n < low for n, low in zip(size, spec.min_size)):
        raise InputError(
            f"--input.size {' '.join(map(str, size))} is smaller than this encoder takes: at least "
            f"{' '.join(map(str, spec.min_size))} (D H W)"
        )
    if kind != "tiles" and any(value is not None for value in spacing):
        raise InputError(f"--input.spacing is that of --view tiles; --view {kind} stretches the plane to --input.size")
    if kind == "resize" and stride:
        raise InputError("--input.stride: --view resize shows a study as one window; use tiles or slice_windows")
    mm = tuple(spacing) * (3 if len(spacing) == 1 else 1) or spec.spacing_mm
    if len(stride) == 1:
        stride = (stride[0], size[1], size[2]) if kind == "slice_windows" else tuple(stride) * 3
    return View(
        kind,
        tuple(int(n) for n in size),
        tuple(mm) if mm else None,
        tuple(int(n) for n in stride) or None,
        tuple(int(n) for n in stored) or None,
        crop_body,
        mask,
    )


@dataclass(frozen=True)
class Exposure:
    """What of the studies reaches the encoder.

    Attributes:
        windows: per study, mean.
        voxels: per study, mean.
        clipped: share of the voxels above -900 HU (body) that the Hounsfield windows of the encoder all clip.
        studies: looked at.
        size: voxels of a window (D, H, W).
        padded: what the encoder makes of it, in multiples that it needs; the rest is air and costs as much.
        outside: share of the voxels of windows that lie outside the studies, and are air.
    """

    windows: float
    voxels: float
    clipped: float
    studies: int
    size: tuple[int, int, int]
    padded: tuple[int, int, int]
    outside: float = 0.0

    @property
    def text(self) -> str:
        return (
            f"{self.windows:.3g} windows and {self.voxels:,.0f} voxels per study; the Hounsfield window clips "
            f"{self.clipped:.1%} of the body's voxels ({self.studies} studies looked at){self._padding}{self._outside}"
        )

    @property
    def _padding(self) -> str:
        air = 1 - prod(self.size) / prod(self.padded)
        found, whole = (" x ".join(map(str, size)) for size in (self.size, self.padded))
        return (
            f"; the encoder pads {found} to {whole}, so that {air:.0%} of what it computes is air" if air > 0.1 else ""
        )

    @property
    def _outside(self) -> str:
        if self.outside <= _MUCH_OUTSIDE:
            return ""
        return (
            f"; {self.outside:.0%} of the voxels in windows lie outside the scans and are air: the scans are smaller "
            "than the windows, so take a smaller --input.size, a finer --input.spacing, or --view resize"
        )


def measure_exposure(view: View, spec: InputSpec, volumes: Sequence) -> Exposure:
    """Count what a view shows of prepared volumes, and what the encoder's windows clip of it.

    Args:
        volumes: prepared volumes, a few of the cohort.
    """
    windows = voxels = body = clipped = inside_scan = 0
    for volume in volumes:
        starts = view.windows(volume.shape)
        windows, voxels = windows + len(starts), voxels + len(starts) * int(np.prod(view.size))
        inside_scan += len(starts) * prod(map(min, volume.shape, view.size))
        for start in starts[:: max(1, len(starts) // 4)]:
            hu = volume.read(start, view.size)
            hu = hu[hu > _BODY_HU]
            inside = np.zeros(hu.shape, bool)
            for low, high in spec.windows:
                inside |= (hu >= low) & (hu <= high)
            body, clipped = body + hu.size, clipped + int((~inside).sum())
    count = max(1, len(volumes))
    padded = tuple(-(-n // m) * m for n, m in zip(view.size, spec.size_multiple))
    return Exposure(
        windows / count, voxels / count, clipped / max(1, body), len(volumes), tuple(map(int, view.size)), padded,
        1 - inside_scan / max(1, voxels),
    )  # fmt: skip


def read_window(volume, start: Sequence[int], view: View) -> np.ndarray:
    """One window of a prepared volume, int16 (D, H, W), air outside the study."""
    return volume.read([int(s) for s in start], view.size)
