"""Volume files of a folder that are no CT scans: masks, label maps, PET, MR; known by their voxels and their names.

What decides, in this order:

1. A name that says segmentation: nothing else is looked at.
2. Few whole numbers from 0 to 255, at least two of them: a mask. No scan in Hounsfield units has them.
3. Few values of any kind, or a map from 0 to 1, on the grid (size and voxel size) of the scan that it belongs to by
   its name: a mask. Without such a scan it is taken as a scan (a phantom, a narrow window) that the reader judges.
4. One value alone, or many in a narrow range, on the grid of its scan: an empty mask, or a map that was computed of it
   (network outputs, distances, a scan with its values normalised).
5. Many values, none of them far below zero: PET or MR where the name says so, where it lies on the grid of its scan,
   or where the distribution has no two peaks as far apart as air and tissue. Anything else is left to the reader: a CT
   with an offset is a scan that needs mending, and has to be heard of.
6. No single volume (2-D, 4-D, vectors, colours) beside a scan: one-hot masks, displacement fields, pictures.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voco.data.peek import SURELY_HU, NoVolume, Peek, peek
from voco.data.volume import MIN_RANGE_HU
from voco.data.walk import looks_like_labels, stem

MASK, MAP, OTHER, COPY, NAMED, ODD = "masks", "maps", "no CT", "copies", "named", "no volumes"
_KINDS = {
    NAMED: "named like segmentations",
    MASK: "masks by their values",
    MAP: "maps on the grid of a scan, in a range too narrow for one",
    ODD: "no single volumes (2-D, 4-D, vectors or colours), beside a scan",
    OTHER: "no CT (PET, MR or another modality) by their values",
    COPY: "a CT on the grid of a PET, beside the CT itself",
}
FEW = 32
# Of each kind of name in each folder so many files are looked at whole, then this many voxels of each.
_LEADERS, _GLANCE = 3, 1 << 20
_MODALITIES = {"pet", "pt", "suv", "suvbw", "mr", "mri", "flair", "adc", "dwi", "cine"}
_MR_WEIGHTS = {"t1", "t2", "t1w", "t2w", "t1c", "t1ce", "t1gd", "dce", "dual", "inphase", "outphase"}
# Air and soft tissue are about 1000 HU apart, whatever is added to them.
_AIR_TO_TISSUE = (900, 1150)


@dataclass(frozen=True)
class Aside:
    """A file that is no scan: its path relative to the root, what it is, and what was seen of it."""

    path: str
    kind: str
    seen: str = ""


def find_asides(root: Path, names: Sequence[str], by_name: bool = True) -> list[Aside]:
    """Find the volume files that are no CT scans.

    Args:
        root: folder.
        names: volume files, relative to it.
        by_name: whether a name that says segmentation is enough.

    Returns:
        One entry for each of them, in the order of the names.
    """
    named = {name for name in names if by_name and looks_like_labels(name)}
    looks = _look_at(root, [name for name in names if name not in named])
    scans = _Scans(looks)
    found = {name: Aside(name, NAMED) if name in named else _judge(name, looks[name], scans) for name in names}
    with_masks = {_pattern(name.rpartition("/")[0]) for name, aside in found.items() if aside and aside.kind == MASK}
    for name, look in looks.items():
        # One value alone may be an empty mask or a scan that got lost: its company tells.
        if found[name] is None and _is_empty(look) and _pattern(name.rpartition("/")[0]) in with_masks:
            found[name] = Aside(name, MASK, f"nothing but {look.low:.4g}")
    return [aside for aside in found.values() if aside is not None]


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _is_empty(look: Peek | NoVolume | None) -> bool:
    return isinstance(look, Peek) and look.values is not None and len(look.values) == 1


def notes_of(asides: Sequence[Aside]) -> list[str]:
    """Say how many files of which folders were set aside, and why: a sentence for each kind."""
    notes = []
    for kind, what in _KINDS.items():
        own = [aside for aside in asides if aside.kind == kind]
        if not own:
            continue
        folders = Counter(aside.path.rpartition("/")[0] or "." for aside in own)
        where = f"in {len(folders)} folders"
        if len(folders) <= 5:
            where = ", ".join(f"{count} in {folder}/" for folder, count in folders.items())
        seen = f", {own[0].seen}" if own[0].seen else ""
        notes.append(
            f"set aside, not counted as scans: {len(own)} files {what} ({where}; first: {own[0].path}{seen}); list them"
            " in a CSV if they are scans"
        )
    return notes


class _Scans:
    """Which scans there are, to find the one that a file belongs to."""

    def __init__(self, looks: dict[str, Peek | NoVolume | None]):
        self.names = {name for name, look in looks.items() if _is_scan(look)}
        self.files = {stem(name.rpartition("/")[2]).lower() for name in self.names}
        self.places: dict[tuple, list[str]] = defaultdict(list)
        for name in self.names:
            for place in _places(name):
                self.places[looks[name].grid, place].append(name)
                self.places[None, place].append(name)

    def near(self, name: str) -> str | None:
        """A scan of any grid in the same folder, of the same name, or with the same numbers in its name."""
        return min((s for place in _places(name) for s in self.places[None, place]), default=None)

    def of(self, name: str, grid: tuple) -> str | None:
        """A scan of the same grid and the same name, or the same numbers in its name."""
        return min((s for place in _places(name)[1:] for s in self.places[grid, place]), default=None)

    def alone_beside(self, name: str, grid: tuple) -> str | None:
        """The scan of the same grid in the same folder, where there is just one."""
        here = self.places[grid, _places(name)[0]]
        return here[0] if len(here) == 1 else None


def _places(name: str) -> list[tuple]:
    folder, _, file = name.rpartition("/")
    numbers = tuple(re.findall(r"\d+", stem(file)))
    return [("folder", folder), ("file", stem(file).lower()), *([("numbers", numbers)] if numbers else [])]


def _look_at(root: Path, names: list[str]) -> dict[str, Peek | NoVolume | None]:
    """Look at every file; where the first of a kind of name are masks, the others get a glance."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_pattern(name)].append(name)
    leaders = [name for group in groups.values() for name in group[:_LEADERS]]
    with ThreadPoolExecutor(8) as pool:
        looks = dict(zip(leaders, pool.map(lambda name: peek(root / name), leaders)))
        rest = [
            (name, _GLANCE if all(_is_mask(looks[n]) for n in group[:_LEADERS]) else None)
            for group in groups.values()
            for name in group[_LEADERS:]
        ]
        looks |= dict(zip((name for name, _ in rest), pool.map(lambda item: peek(root / item[0], item[1]), rest)))
    return looks


def _is_scan(look: Peek | NoVolume | None) -> bool:
    return isinstance(look, Peek) and look.low <= SURELY_HU and (look.values is None or len(look.values) > FEW)


def _is_mask(look: Peek | NoVolume | None) -> bool:
    """Whole numbers from 0 to 255: few of them, or as many as lie in flat pieces."""
    if not isinstance(look, Peek) or look.values is None or not look.whole or look.low < 0 or look.high > 255:
        return False
    # One value alone says nothing; part of a file may well show no more than the background.
    return (len(look.values) > 1 or not look.complete) and (len(look.values) <= FEW or look.smooth > 0.8)


def _judge(name: str, look: Peek | NoVolume | None, scans: _Scans) -> Aside | None:
    if look is None:
        return None
    if isinstance(look, NoVolume):
        return Aside(name, ODD, f"{look.seen}, beside {scan}") if (scan := scans.near(name)) else None
    if _is_scan(look):
        file = stem(name.rpartition("/")[2]).lower()
        original = re.sub("ct_?res$", "ct", file)
        return Aside(name, COPY) if original != file and original in scans.files else None
    seen = f"{'whole numbers' if look.whole else 'values'} from {look.low:.4g} to {look.high:.4g}"
    if _is_mask(look):
        return Aside(name, MASK, seen)
    few = look.values is not None and 1 < len(look.values) <= FEW
    scan, only = scans.of(name, look.grid), scans.alone_beside(name, look.grid)
    if few and (scan or (only and len(look.values) == 2)):
        return Aside(name, MASK, f"{len(look.values)} {seen}, on the grid of {scan or only}")
    if _is_empty(look):
        # A constant is no scan; where none belongs to it, one may have got lost.
        return (
            Aside(name, MASK, f"nothing but {look.low:.4g}, on the grid of {scan}") if scan and look.low >= 0 else None
        )
    if not few and (scan or only) and look.high - look.low < MIN_RANGE_HU:
        return Aside(name, MAP, f"{seen}, on the grid of {scan or only}")
    if few or look.low < -0.1 * look.high:
        return None
    # Of two scans in a folder one may have lost its offset.
    if scan or (only and look.low >= 0 and not has_air_and_tissue(look.sample)):
        return Aside(name, OTHER, f"{seen}, on the grid of {scan or only}")
    words = set(re.findall(r"[a-z]+\d*[a-z]*", "/".join(name.lower().split("/")[-2:])))
    if words & _MODALITIES or (look.low >= 0 and words & _MR_WEIGHTS):
        return Aside(name, OTHER, f"{seen}, and the name says so")
    if look.low >= 0 and (look.high > 255 or not look.whole) and not has_air_and_tissue(look.sample):
        return Aside(name, OTHER, seen)
    return None


def has_air_and_tissue(values: np.ndarray) -> bool:
    """Whether values have two peaks as far apart as air and soft tissue, the upper one narrow: CT with any offset.

    Args:
        values: voxels of a volume, any shape.
    """
    bins = np.arange(values.min(), values.max() + 41, 20)
    if len(bins) > 1 << 14:
        return False
    count = np.convolve(np.histogram(values, bins)[0], np.ones(8), "same") / values.size
    low, high = (step // 20 for step in _AIR_TO_TISSUE)
    for air in np.flatnonzero(count > 0.05):
        upper = count[air + low : air + high + 1]
        if len(upper) and upper.max() > 0.05 and upper.max() > 0.25 * (1 - count[air]):
            return True
    return False
