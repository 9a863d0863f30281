"""Which slices of a DICOM series make one volume, where the series holds more than one.

Header values propose how to part the slices; whether their planes coincide and what the pixels say decides. No single
value is trusted: an acquisition number may count rotations, a folder may be a disc's, times may differ slice by slice.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from voco.data.dicom_scan import SPLIT_KEYS, SliceHeader
from voco.data.dicom_stack import SAME_PLANE_MM, planes, residual
from voco.data.volume import MIN_SLICES
from voco.errors import ScanError

# A slice between two others that are at most this many usual steps apart fills no hole: it is of another volume.
NO_HOLE = 1.5
# Two blocks that follow each other may share this many planes.
MAX_SHARED_PLANES = 2
# Blocks this many steps apart are two volumes.
FAR = 4.1
# Blocks that follow each other are held against each other where there are few; a table that moves makes many.
MAX_BLOCKS = 4
# Residual of a slice against its two neighbours, where these are of another group, over the same inside a group.
# Every second slice (half the distance): 0.40 to 0.55 in real scans, above 0.85 where another phase or patient is mixed
# in. Where two blocks meet (the same distance): at most 1.6 in real scans, 3.6 where the patient moved by 5 mm between
# them or contrast came in, 17 and more where another patient goes on.
MIXED, BROKEN = 0.8, 5.0
_TRIPLES = 6
_REMEMBERED = 256
_TIME_GAP_SECONDS = 2.0

Look = Callable[[SliceHeader], np.ndarray]


@dataclass
class Part:
    """Slices that belong together.

    Attributes:
        headers: the slices.
        dropped: images of the same place that give way to another one in their plane.
        notes: sentences about how the part came to be.
        aside: why this is no volume, None where it may be one.
    """

    headers: list[SliceHeader]
    dropped: list[SliceHeader] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    aside: str | None = None


def part_volumes(headers: Sequence[SliceHeader], look: Look) -> list[Part]:
    """Part the slices of one series and grid into volumes, and into images that make none.

    Args:
        headers: slices with orientation and position.
        look: gives the pixels of a slice, coarsely; called where header values propose to part the slices.

    Returns:
        Volumes in order of what tells them apart, then what was set aside. One part where nothing has to be parted.
    """
    look = functools.lru_cache(_REMEMBERED)(look)
    headers, notes = _own_uids(list(headers), look)
    place = _Places(headers, look)
    if not place.repeats and not any(len(set(labels)) > 1 for _, labels in _labels(headers)):
        return [Part(headers, notes=notes)]
    proposals: list[tuple[str, list[Part]]] = []
    for name, labels in _labels(headers):
        parts = place.propose(name, labels)
        if parts is None:
            continue
        if name == "PatientID" or not place.repeats:
            proposals = [(name, parts)]
            break
        if all(_members(parts) != _members(known) for _, known in proposals):
            proposals.append((name, parts))
    if not proposals:
        return [Part(headers, notes=notes)]
    name, parts = proposals[0] if len(proposals) == 1 else place.smoothest(proposals)
    told = f"told apart by {name} from other images of the series"
    out = []
    for part in parts:
        # Pieces of one volume that were joined stay together; what one value parts, another may part again.
        inner = [part] if part.aside or len(parts) == 1 else part_volumes(part.headers, look)
        for volume in inner:
            if volume is not part:
                volume.dropped, volume.notes = [*part.dropped, *volume.dropped], (*part.notes, *volume.notes)
            volume.notes = (*notes, *([told] if len(parts) > 1 else []), *volume.notes)
        out += inner
    return sorted(out, key=lambda part: part.aside is not None)


def _members(parts: list[Part]) -> set[frozenset]:
    return {frozenset(map(id, part.headers)) for part in parts}


def _own_uids(headers: list[SliceHeader], look: Look) -> tuple[list[SliceHeader], tuple[str, ...]]:
    """Take away SOPInstanceUIDs that several images carry: they say nothing about which image is which."""
    by_uid: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        by_uid[header.sop_uid].append(header)
    shared, twins = set(), []
    for uid, same in by_uid.items():
        if uid and len(same) > 1:
            if max(np.ptp([h.position for h in same], axis=0)) > SAME_PLANE_MM:
                shared.add(uid)
            else:
                twins.append(same)
    for same in twins[:: max(1, len(twins) // 3)]:
        try:
            if not np.array_equal(look(same[0]), look(same[1])):
                shared |= {h.sop_uid for pair in twins for h in pair}
        except ScanError:
            break
    if not shared:
        return headers, ()
    count = sum(h.sop_uid in shared for h in headers)
    note = f"{count} images share {len(shared)} SOPInstanceUID{'s' if len(shared) > 1 else ''}, so these are not used"
    return [h._replace(sop_uid="") if h.sop_uid in shared else h for h in headers], (note,)


def _labels(headers: list[SliceHeader]) -> Iterator[tuple[str, list]]:
    """Names of what may tell slices apart, the most telling first, with the value of each slice."""
    yield "PatientID", [h.patient or "" for h in headers]
    for index, name in enumerate(SPLIT_KEYS):
        yield name, [h.keys[index] for h in headers]
    yield "several header values", [h.keys for h in headers]
    for index, name in enumerate(("AcquisitionTime", "ContentTime")):
        yield name, _spells([h.times[index] for h in headers])
    yield "folder", [os.path.dirname(h.file) for h in headers]
    yield "InstanceNumber", _again(headers) if _repeat(headers) else _runs(headers)


def _spells(times: list[float | None]) -> list[int]:
    """Number the spells of time that long pauses part; -1 where a time is missing."""
    known = np.unique([t for t in times if t is not None])
    if len(known) < 2:
        return [-1 if t is None else 0 for t in times]
    gaps = np.diff(known)
    # Phases with one time each have pauses only.
    usual = np.median(gaps) if len(known) > len(times) / 4 else 0.0
    starts = known[1:][gaps > max(_TIME_GAP_SECONDS, 10 * usual) if usual else gaps > 0]
    return [-1 if t is None else int(np.searchsorted(starts, t, side="right")) for t in times]


def _repeat(headers: list[SliceHeader]) -> bool:
    """Whether images are counted anew: most instance numbers come as often as the others, and more than once."""
    count = Counter(h.number for h in headers if h.number is not None)
    often = max(count.values(), default=1)
    return often > 1 and sum(n for n in count.values() if n == often) > 0.8 * len(headers)


def _again(headers: list[SliceHeader]) -> list[int]:
    """Which of the images of its instance number a slice is, from the lowest to the highest.

    0 for all where that tells nothing: two of one number in one plane, or numbers that do not follow the planes.
    """
    z, seen, labels = _along(headers), Counter(), [0] * len(headers)
    for index in np.argsort(z, kind="stable"):
        labels[index] = seen[headers[index].number]
        seen[headers[index].number] += 1
    for label in set(labels):
        own = [i for i, other in enumerate(labels) if other == label]
        steps = np.diff(z[sorted(own, key=lambda i: headers[i].number or 0)])
        if not ((steps > SAME_PLANE_MM).all() or (steps < -SAME_PLANE_MM).all()):
            return [0] * len(headers)
    places = {(h.number, round(place / SAME_PLANE_MM / 10)) for h, place in zip(headers, z)}
    return labels if len(places) == len(headers) else [0] * len(headers)


def _runs(headers: list[SliceHeader]) -> list[int]:
    """Number the runs along the normal when slices are taken by InstanceNumber; 0 for all where these repeat."""
    if len({h.number for h in headers} - {None}) < len(headers):
        return [0] * len(headers)
    numbers = [h.number for h in headers]
    z = _along(headers)
    runs, run, way = [0] * len(headers), 0, 0.0
    order = np.argsort(numbers)
    for before, index in itertools.pairwise(order):
        step = np.sign(z[index] - z[before])
        if step * way < 0 or step == 0:
            run, way = run + 1, 0.0
        else:
            way = step
        runs[index] = run
    return runs


def _along(headers: Sequence[SliceHeader]) -> np.ndarray:
    return np.array([h.position for h in headers], dtype=np.float64) @ planes(headers)[2]


class _Places:
    """The slices of a series at their places along the normal."""

    def __init__(self, headers: list[SliceHeader], look: Look):
        self.headers, self.look = headers, look
        self.z = _along(headers)
        self.repeats = self._differ(range(len(headers)))

    def _doubles(self, group: Sequence[int]) -> list[tuple[int, int]]:
        """Neighbours along the normal that share a plane."""
        order = sorted(group, key=lambda i: self.z[i])
        return [(i, j) for i, j in itertools.pairwise(order) if self.z[j] - self.z[i] <= SAME_PLANE_MM]

    def _differ(self, group: Sequence[int]) -> bool:
        """Whether a plane holds different images: looked at in a few planes, where UIDs do not say it already."""
        uid = [h.sop_uid for h in self.headers]
        pairs = [(i, j) for i, j in self._doubles(group) if not uid[i] or uid[i] != uid[j]]
        try:
            return any(not np.array_equal(self._image(i), self._image(j)) for i, j in _spread(pairs, 3))
        except ScanError:
            return True

    def _image(self, index: int) -> np.ndarray:
        return self.look(self.headers[index])

    def _planes(self, group: Sequence[int]) -> np.ndarray:
        z = np.sort(self.z[list(group)])
        return z[np.diff(z, prepend=-np.inf) > SAME_PLANE_MM]

    def propose(self, name: str, labels: list) -> list[Part] | None:
        """Part the slices by their labels; None where the labels do not tell volumes apart."""
        patients = name == "PatientID"
        groups: dict[object, list[int]] = defaultdict(list)
        for index, label in enumerate(labels):
            groups[label].append(index)
        if len(groups) < 2:
            return None
        ordered = [groups[label] for label in sorted(groups, key=_natural)]
        big = [g for g in ordered if len(self._planes(g)) >= MIN_SLICES]
        small = [i for g in ordered if len(self._planes(g)) < MIN_SLICES for i in g]
        if not big or (not patients and any(self._differ(g) for g in big)):
            return None
        # Where most images have a patient of their own, somebody drew the numbers by chance.
        if patients and len(small) > len(labels) / 2:
            return None
        named = [i for i in small if patients and labels[i]]
        stray = named or [i for i in small if any(self._clashes([i], g)[0] and not self._copied(i, g) for g in big)]
        stray += [i for i in self._watching(groups, small) if i not in stray and not named]
        volumes = self._joined(big, patients or self._counted_anew(name, big))
        for index in set(small) - set(stray):
            nearest = min(volumes, key=lambda g: np.abs(self.z[g] - self.z[index]).min())
            nearest.append(index)
        parts = [self._whole(g) for g in volumes]
        if len(parts) == 1 and not stray and not parts[0].dropped:
            return None
        if stray:
            parts.append(Part([self.headers[i] for i in stray], aside=self._why_aside(stray, patients)))
        return parts

    def _watching(self, groups: dict[object, list[int]], small: list[int]) -> list[int]:
        """Images of one place that was looked at again and again, wherever it lies."""
        few = [g for g in groups.values() if set(g) <= set(small) and len(g) > 2 * len(self._planes(g))]
        return sorted(i for group in few if self._differ(group) for i in group)

    def _why_aside(self, stray: list[int], patients: bool) -> str:
        if patients:
            return f"{len(stray)} images with the PatientID of others, too few for a volume"
        count = len(self._planes(stray))
        where = f"{count} plane{'s' if count > 1 else ''}"
        return f"{len(stray)} images in {where} beside a volume of the series: monitoring (bolus tracking), no volume"

    def _clashes(self, indices: Sequence[int], group: Sequence[int]) -> np.ndarray:
        """Which slices lie in a plane of the group, or between two of them where no slice is missing."""
        z, own = self._planes(group), self.z[list(indices)]
        above = np.searchsorted(z, own)
        low, high = z[np.maximum(above - 1, 0)], z[np.minimum(above, len(z) - 1)]
        same = np.minimum(np.abs(own - low), np.abs(high - own)) <= SAME_PLANE_MM
        return same | ((low < own) & (own < high) & (high - low <= NO_HOLE * np.median(np.diff(z))))

    def _copied(self, index: int, group: Sequence[int]) -> bool:
        """Whether the group holds the same image in the same plane."""
        here = [i for i in group if abs(self.z[i] - self.z[index]) <= SAME_PLANE_MM]
        try:
            return any(np.array_equal(self._image(i), self._image(index)) for i in here)
        except ScanError:
            return False

    def _counted_anew(self, name: str, groups: list[list[int]]) -> bool:
        """Whether InstanceNumber starts again in every folder, or for no reason that the header gives."""
        if name != "folder" and (name != "InstanceNumber" or len({h.keys for h in self.headers}) > 1):
            return False
        numbers = [{self.headers[i].number for i in group} for group in groups]
        return all(len(a & b) > 0.9 * min(len(a), len(b)) for a, b in itertools.combinations(numbers, 2)) and all(
            len(own) == len(group) for own, group in zip(numbers, groups)
        )

    def _joined(self, groups: list[list[int]], foreign: bool) -> list[list[int]]:
        """Join the groups that are pieces of one volume; foreign ones are not where they only lie side by side."""
        volumes: list[list[int]] = []
        few = len(groups) <= MAX_BLOCKS
        for group in groups:
            for volume in volumes:
                if self._one_volume(volume, group, few, foreign):
                    volume += group
                    break
            else:
                volumes.append(list(group))
        return volumes

    def _one_volume(self, left: list[int], right: list[int], few: bool, foreign: bool) -> bool:
        if min(self._clashes(a, b).sum() for a, b in ((left, right), (right, left))) > MAX_SHARED_PLANES:
            if self._doubles([*left, *right]):
                return not self._differ([*left, *right])
            ratio = self._break(left, right)
            return ratio is not None and ratio < MIXED
        if foreign or not few:
            return not foreign
        low, high = sorted((left, right), key=lambda g: self.z[g].mean())
        gap = self.z[high].min() - self.z[low].max()
        if gap > NO_HOLE * np.median(np.diff(self._planes([*left, *right]))):
            return gap <= FAR * np.median(np.diff(self._planes([*left, *right])))
        ratio = self._break(left, right)
        return ratio is None or ratio < BROKEN

    def _break(self, left: list[int], right: list[int]) -> float | None:
        """How badly slices of one group are foretold by neighbours of the other, over the same inside the groups."""
        first, own = set(left), []
        mixed = [t for t in self._triples([*left, *right]) if len({i in first for i in t}) == 2]
        for group in (left, right) if mixed else ():
            triples = self._triples(group)
            if len(mixed) <= _TRIPLES:  # two blocks that meet: held against what is near
                middle = np.mean([self.z[t[1]] for t in mixed])
                triples = sorted(triples, key=lambda t: abs(self.z[t[1]] - middle))[: _TRIPLES // 2]
            own += _spread(triples, _TRIPLES // 2)
        try:
            both, alone = (self._residuals(t) for t in (_spread(mixed, _TRIPLES), own))
        except ScanError:
            return None
        return float(np.mean(both) / max(np.mean(alone), 1e-6)) if both and alone else None

    def _triples(self, group: list[int]) -> list[tuple[int, int, int]]:
        order = sorted(group, key=lambda i: self.z[i])
        distinct = [i for k, i in enumerate(order) if k == 0 or self.z[i] - self.z[order[k - 1]] > SAME_PLANE_MM]
        return list(zip(distinct, distinct[1:], distinct[2:]))

    def _residuals(self, triples: list[tuple[int, int, int]]) -> list[float]:
        return [residual(self.z[list(t)], [self._image(i) for i in t]) for t in triples]

    def _whole(self, group: list[int]) -> Part:
        """One image for each plane: where two pieces meet, the one that fits its neighbours better."""
        kept, dropped = [], []
        unique = list({self.headers[i].sop_uid or i: i for i in group}.values())
        copies = sorted(set(group) - set(unique))
        for plane in self._planes(unique):
            here = [i for i in unique if 0 <= self.z[i] - plane <= SAME_PLANE_MM]
            best = here[0] if len(here) == 1 else min(here, key=lambda i: self._misfit(i, unique))
            kept.append(best)
            again = [i for i in here if i != best and self._copied(i, [best])]
            copies += again
            dropped += [i for i in here if i != best and i not in again]
        notes = ()
        if dropped:
            names = ", ".join(os.path.basename(self.headers[i].file) for i in dropped[:3])
            notes = (f"{len(dropped)} of two images in one plane left aside ({names})",)
        return Part([self.headers[i] for i in (*kept, *copies)], [self.headers[i] for i in dropped], notes)

    def _misfit(self, index: int, group: list[int]) -> float:
        others = [i for i in group if abs(self.z[i] - self.z[index]) > SAME_PLANE_MM]
        below = [i for i in others if self.z[i] < self.z[index]]
        above = [i for i in others if self.z[i] > self.z[index]]
        if not below or not above:
            return 0.0
        triple = (max(below, key=lambda i: self.z[i]), index, min(above, key=lambda i: self.z[i]))
        try:
            return self._residuals([triple])[0]
        except ScanError:
            return 0.0

    def smoothest(self, proposals: list[tuple[str, list[Part]]]) -> tuple[str, list[Part]]:
        """Choose the proposal whose volumes are smoothest along the normal; the first among equals."""
        index = {id(h): i for i, h in enumerate(self.headers)}
        rough = []
        for _, parts in proposals:
            volumes = [[index[id(h)] for h in part.headers] for part in parts if not part.aside]
            try:
                found = [r for v in _spread(volumes, 4) for r in self._residuals(_spread(self._triples(v), _TRIPLES))]
            except ScanError:
                return proposals[0]
            rough.append(float(np.mean(found)) if found else np.inf)
        return next(p for p, r in zip(proposals, rough) if r <= 1.1 * min(rough))


def _spread(items: list, count: int) -> list:
    """At most so many of the items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def _natural(key: object) -> tuple:
    try:
        return (0, float(key), "")
    except (TypeError, ValueError):
        return (1, 0.0, str(key))
