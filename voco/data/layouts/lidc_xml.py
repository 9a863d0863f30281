"""Annotation files of LIDC-IDRI: which reader drew which nodule on which image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from voco.errors import InputError

# All 1,318 published files together have 169 MB.
_MAX_BYTES = 200_000_000
# Positions of one image are written with up to six decimals, in the file and in the header.
_SAME_MM = 0.015


@dataclass(frozen=True)
class Reading:
    """One annotation file of a CT series.

    Attributes:
        series: SeriesInstanceUID.
        readers: reading sessions.
        nodules: an entry per nodule of at least 3 mm and reader: SOPInstanceUID to z in mm of every image with a
            contour, also one that cuts a hole.
    """

    series: str
    readers: int
    nodules: tuple[Mapping[str, float], ...]


class NoduleSlices(Mapping):
    """Label of images from contours: 1 where at least ``agreement`` annotations hold the image in their z range.

    The range of an annotation runs from its lowest to its highest contour, and images between count even where the
    reader drew nothing, as the slice range of pylidc's ``bbox_matrix`` does. Annotations are counted, not readers: two
    nodules of one reader on one image count twice, as in the published rule. As a mapping it holds the images with a
    contour; ``at`` labels all images of a series.

    Args:
        nodules: of a ``Reading``.
        agreement: annotations that make an image positive.
    """

    def __init__(self, nodules: Sequence[Mapping[str, float]], agreement: int):
        self.nodules, self.agreement = tuple(nodules), agreement
        z = {uid: mm for nodule in self.nodules for uid, mm in nodule.items()}
        ranges = [(min(nodule.values()), max(nodule.values())) for nodule in self.nodules]
        self._labels = dict(zip(z, self._count(np.array(list(z.values())), ranges)))

    def __len__(self) -> int:
        return len(self._labels)

    def __bool__(self) -> bool:
        # A scan without any nodule is labeled too: everywhere negative.
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __getitem__(self, uid: str) -> float:
        return self._labels[uid]

    @property
    def positive(self) -> bool:
        """Whether any image is positive: the most ranges overlap where one begins, and there lies a contour."""
        return any(self._labels.values())

    def at(self, sop_uids: Sequence[str], z_mm: np.ndarray) -> np.ndarray:
        """(S,) label of each image of a series; NaN where contours are there and none of them is on these images.

        Args:
            sop_uids: S SOPInstanceUIDs.
            z_mm: (S,) where they lie. Ranges are found by UID, so another origin of z does not matter.
        """
        z_mm = np.asarray(z_mm, np.float64)
        place = dict(zip(sop_uids, z_mm))
        moved = [place[uid] - mm for nodule in self.nodules for uid, mm in nodule.items() if uid in place]
        if self.nodules and not moved:
            return np.full(len(sop_uids), np.nan)
        # In two published files readers name different UIDs for one position: those that are not there go by z.
        shift = float(np.median(moved)) if moved else 0.0
        ranges = []
        for nodule in self.nodules:
            found = [place.get(uid, mm + shift) for uid, mm in nodule.items()]
            ranges.append((min(found), max(found)))
        return np.array(self._count(z_mm, ranges))

    def _count(self, z: np.ndarray, ranges: Sequence[tuple[float, float]]) -> list[float]:
        count = np.zeros(len(z), int)
        for low, high in ranges:
            count += (z >= low - _SAME_MM) & (z <= high + _SAME_MM)
        return (count >= self.agreement).astype(float).tolist()


class _NoTypes(ElementTree.TreeBuilder):
    """Refuses a document type: only there can entities be defined, which may grow without end or read other files."""

    def doctype(self, *_):
        raise InputError("it defines a document type, which no file of LIDC-IDRI does; it is not read")


def read_reading(path: str | Path) -> Reading | None:
    """Read one annotation file.

    A nodule counts as 3 mm or larger if its reader rated it (``characteristics`` with values from 1) and outlined it:
    smaller ones are marked by a point and rated by nobody. Single points among outlines are left out, as in pylidc.

    Returns:
        The reading; None for a file of another kind, such as the radiographs' ``IdriReadMessage``.

    Raises:
        InputError: no XML, a document type in it, or a reading that lacks what is needed. The message does not name the
            file.
    """
    path = Path(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path.stat().st_size} bytes are too many for an annotation file")
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoTypes())).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"not readable as XML: {error}") from None
    if _name(root) != "LidcReadMessage":
        return None
    series = _text(_child(root, "ResponseHeader"), "SeriesInstanceUid")
    sessions = [item for item in root if _name(item) == "readingSession"]
    if not series or not sessions:
        raise InputError("no SeriesInstanceUid in its ResponseHeader" if not series else "no readingSession in it")
    nodules = [_contours(item) for session in sessions for item in session if _is_nodule(item)]
    return Reading(series, len(sessions), tuple(nodule for nodule in nodules if nodule))


def _is_nodule(item: ElementTree.Element) -> bool:
    if _name(item) != "unblindedReadNodule":
        return False
    ratings = _child(item, "characteristics")
    # One reader rated two points with nothing but 0.
    return ratings is not None and any((rating.text or "").strip() in tuple("123456") for rating in ratings)


def _contours(nodule: ElementTree.Element) -> dict[str, float]:
    found = {}
    for roi in nodule:
        if _name(roi) != "roi" or sum(_name(point) == "edgeMap" for point in roi) < 2:
            continue
        uid, z = _text(roi, "imageSOP_UID"), _text(roi, "imageZposition")
        try:
            found[uid] = float(z)
        except ValueError:
            found[uid] = math.nan
        if not uid or not math.isfinite(found[uid]):
            raise InputError(f"a contour with imageSOP_UID {uid!r} and imageZposition {z!r}: its image is not known")
    return found


def _name(item: ElementTree.Element) -> str:
    """Tag without its namespace, which differs between releases."""
    return item.tag.rpartition("}")[2]


def _child(item: ElementTree.Element | None, name: str) -> ElementTree.Element | None:
    return next((child for child in item if _name(child) == name), None) if item is not None else None


def _text(item: ElementTree.Element | None, name: str) -> str:
    child = _child(item, name)
    return (child.text or "").strip() if child is not None else ""
