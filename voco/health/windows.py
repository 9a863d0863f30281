"""Which places of the held-out scans an evaluation looks at, and what it asks there: a function of seed and scan."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from voco.crops import overlap_labels
from voco.data.windows import ReadableVolume, read_window
from voco.errors import InputError
from voco.geometry import Geometry
from voco.rng import generator
from voco.short_repr import short_repr

DISJOINT_DEPTH = 1.5
# above this share of voxels outside the scan, place can be read from the padding
PADDED_SHARE = 0.2
# keeps the windows of a large cohort in memory: 40 scans x 2 windows of the published size are about 1.2 GB
MAX_SCANS = 40


@short_repr
@dataclass(frozen=True)
class EvalWindow:
    """A window of a held-out scan.

    Attributes:
        scan: index of the scan.
        patient: index of the patient, over whom everything that is said about a score is resampled.
        key: what its random draws depend on, (scan name or index, number of the window within the scan).
        hu: (D, H, W) int16.
        slabs: (2d, H, W) int16, the slab for the bases in the first half and its neighbour along z for the queries in
            the second; None where the scan is too shallow.
        side: ``above`` or ``below``: where in the body the query slab lies; None without slabs.
        padded_share: share of voxels of ``hu`` outside the scan.
        no_slabs: why ``slabs`` is None.
    """

    scan: int
    patient: int
    key: tuple[str | int, int]
    hu: np.ndarray
    slabs: np.ndarray | None
    side: str | None
    padded_share: float
    no_slabs: str | None = None


def build_eval_windows(
    volumes: Sequence[ReadableVolume | Callable[[], ReadableVolume] | str | os.PathLike],
    geometry: Geometry,
    *,
    per_scan: int = 2,
    seed: int,
    region: str = "window",
    clip: tuple[float, float] | None = None,
    names: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    max_scans: int | None = MAX_SCANS,
) -> list[EvalWindow]:
    """Read the windows that every evaluation of a run looks at.

    Args:
        volumes: held-out scans: prepared volumes, paths of them, or functions that open one.
        geometry: of the method.
        per_scan: windows per scan.
        seed: places depend on (seed, scan, window) alone.
        region: as the method's: ``window`` or ``whole``; ``whole`` has no neighbouring slab, hence no disjoint score.
        clip: see ``voco.data.windows.read_window``.
        names: one per scan; with names, places do not depend on the order of the list.
        patients: one per scan; None takes every scan for a patient.
        max_scans: at most so many scans, drawn by the seed; None is all of them.

    Returns:
        Windows in the order first window of every scan, second window of every scan, ..., so that neighbours in the
        list come from different scans.

    Raises:
        InputError: no held-out scan.
    """
    if not volumes:
        raise InputError("no held-out scan to evaluate on; raise the held-out share, or give more scans")
    chosen = range(len(volumes))
    if max_scans is not None and len(volumes) > max_scans:
        order = torch.randperm(len(volumes), generator=generator(seed, "eval", "scans"))
        chosen = sorted(order[:max_scans].tolist())
    of_scan = np.arange(len(volumes)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    windows = []
    for scan in chosen:
        volume = _open(volumes[scan])
        key, who = scan if names is None else names[scan], (scan, int(of_scan[scan]))
        windows.append([_read(volume, geometry, who, (key, number), seed, region, clip) for number in range(per_scan)])
    return [row[number] for number in range(per_scan) for row in windows]


def _open(volume) -> ReadableVolume:
    if isinstance(volume, str | os.PathLike):
        from voco.data.cache import PreparedVolume

        return PreparedVolume.open(volume)
    return volume() if callable(volume) else volume


def _read(volume, geometry: Geometry, who: tuple[int, int], key: tuple, seed: int, region: str, clip) -> EvalWindow:
    scan, patient = who
    window = read_window(volume, geometry.window, generator(seed, "eval", *key), region, clip)
    depth = geometry.size[0]
    slabs = side = reason = None
    if region != "window":
        reason = f"a {region} volume fills the window, there is no neighbouring slab"
    elif volume.shape[0] < DISJOINT_DEPTH * depth:
        reason = f"fewer than {DISJOINT_DEPTH} crop depths ({DISJOINT_DEPTH * depth:g} voxels) of scan"
    else:
        pair = read_window(volume, (2 * depth, *geometry.window[1:]), generator(seed, "eval", "slabs", *key)).hu
        side = "above" if (scan + key[1]) % 2 == 0 else "below"
        slabs = pair if side == "above" else np.concatenate([pair[depth:], pair[:depth]])
    return EvalWindow(scan, patient, key, window.hu, slabs, side, window.padded_share, reason)


@short_repr
@dataclass(frozen=True)
class Queries:
    """What is asked of W windows: places, right answers and intensity shifts, on the CPU."""

    starts: torch.Tensor  # (W, Q, 3)
    labels: np.ndarray  # (W, Q, N)
    shift: torch.Tensor  # (W, N + Q), bases first


def draw_queries(windows, geometry: Geometry, queries: int, seed: int, shift_range: float, *, slabs: bool) -> Queries:
    many = replace(geometry, random_crops=queries)
    stream = "slab queries" if slabs else "queries"
    starts, shifts = [], []
    for window in windows:
        draws = generator(seed, "eval", stream, *window.key)
        starts.append(many.draw_starts(draws))
        shifts.append((torch.rand(geometry.bases + queries, generator=draws) * 2 - 1) * shift_range)
    starts = torch.stack(starts)
    if slabs:
        # in the plane the query lies over the grid as usual; along z it fills the second slab
        starts[..., 0] = geometry.base_starts()[0, 0]
        labels = overlap_labels(starts, geometry)
        starts[..., 0] = geometry.size[0]
    else:
        labels = overlap_labels(starts, geometry)
    return Queries(starts, labels.double().numpy(), torch.stack(shifts))


def slab_bases(geometry: Geometry) -> torch.Tensor:
    bases = geometry.base_starts().clone()
    bases[:, 0] = 0
    return bases


def scenes(windows: Sequence[EvalWindow], geometry: Geometry, *, slabs: bool):
    """What is looked at for one score: the windows that have it, their voxels, and the corners of the base crops.

    Args:
        slabs: two neighbouring slabs, for the disjoint score; else the windows themselves.

    Returns:
        (windows, int16 arrays, (N, 3) corners).
    """
    if not slabs:
        return list(windows), [w.hu for w in windows], geometry.base_starts()
    deep = [w for w in windows if w.slabs is not None]
    return deep, [w.slabs for w in deep], slab_bases(geometry)
