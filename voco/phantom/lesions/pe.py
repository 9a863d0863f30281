"""Emboli: filling defects in the pulmonary arteries, planned in the patient's frame and painted inside the lumen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.heart import great_vessels
from voco.phantom.anatomy.shapes import Branch, tube_field
from voco.phantom.disease import Lesion, contrast_share, plant, size_share
from voco.phantom.lesions.chest import interlobar_arteries, paint_in, random_direction, tube_box
from voco.short_repr import short_repr

_STEP_MM = 1.5
_LONGEST_MM = 60.0


@short_repr
@dataclass(frozen=True)
class Embolus:
    """One clot in a vessel.

    Attributes:
        site: ``central`` (trunk or a main artery), ``lobar`` or ``segmental``.
        sides: ``left``, ``right`` or both.
        age: ``acute`` (in the middle, or filling the lumen) or ``chronic`` (a crescent on the wall).
        line: (n, 3) the lumen's centre in steps of 1.5 mm.
        radii: (n,) of the lumen, mm.
        length_mm: of the clot at severity 1; its middle is the middle of the line.
        share: radius of the clot over that of the lumen at severity 1.
        toward: unit vector from the lumen's centre to the clot's.
        hu: of the clot.
        wave: phase of the irregular outline.
    """

    site: str
    sides: tuple[str, ...]
    age: str
    line: np.ndarray
    radii: np.ndarray
    length_mm: float
    share: float
    toward: np.ndarray
    hu: float
    wave: float


def plan_emboli(anatomy: Anatomy, trees: dict, rng: np.random.Generator) -> list[Embolus]:
    """Draw the clots of one patient: always some in lobar arteries, mostly a central one, at times one in a segment.

    Args:
        anatomy: the patient.
        trees: from ``lungs.lung_trees``.
        rng: the group's.
    """
    side = str(rng.choice(["both", "right", "left"], p=[0.7, 0.18, 0.12]))
    lobes = {name: path for name, path in _lobar_paths(anatomy, trees).items() if side in ("both", _side(name))}
    age = str(rng.choice(["acute", "chronic", "mixed"], p=[0.84, 0.08, 0.08]))
    found = []
    if rng.random() < 0.75:
        found.append(_central(anatomy, side, rng))
    for name in rng.choice(sorted(lobes), min(len(lobes), int(rng.integers(2, 5))), replace=False):
        found.append(_along(lobes[str(name)], "lobar", str(name), rng, (16, 28), (0.75, 1.05)))
    segments = [(path, lobe) for path, lobe in _segments(trees) if lobe in lobes]
    for number in rng.choice(len(segments), min(len(segments), int(rng.choice(3, p=[0.6, 0.25, 0.15]))), replace=False):
        path, lobe = segments[int(number)]
        found.append(_along(path, "segmental", lobe, rng, (8, 16), (0.8, 1.1)))
    if age != "acute":
        old = range(len(found)) if age == "chronic" else range(0, len(found), 2)
        found = [_aged(e) if k in old else e for k, e in enumerate(found)]
    return found


def plant_emboli(canvas: Canvas, emboli: list[Embolus], severity: float) -> list[Lesion]:
    """Paint clots into the arteries of an ideal image; those outside its range are left out."""
    lesions = []
    for embolus in emboli:
        if (lesion := _plant(canvas, embolus, severity)) is not None:
            lesions.append(lesion)
    return lesions


def exam_labels(lesions: list[Lesion]) -> dict[str, int]:
    """The exam's attributes that follow from the clots that were planted."""
    found = [lesion.details for lesion in lesions]
    ages = {item["age"] for item in found}
    sides = {side for item in found for side in item["sides"]}
    return {
        "leftsided_pe": int("left" in sides),
        "rightsided_pe": int("right" in sides),
        "central_pe": int(any(item["site"] == "central" for item in found)),
        "chronic_pe": int(ages == {"chronic"}),
        "acute_and_chronic_pe": int(ages == {"acute", "chronic"}),
    }


def _plant(canvas: Canvas, embolus: Embolus, severity: float) -> Lesion | None:
    half = 0.5 * embolus.length_mm * size_share(severity)
    count = max(2, min(round(half / _STEP_MM), (len(embolus.line) - 1) // 2))
    middle = len(embolus.line) // 2
    part = slice(max(0, middle - count), middle + count + 1)
    line, radii = embolus.line[part], embolus.radii[part]
    at = np.linspace(-1, 1, len(line))
    share = np.clip(embolus.share * size_share(severity), 0, 1.0) * (1 + 0.1 * np.sin(6 * at + embolus.wave))
    taper = np.sqrt(np.clip(1.06 - at**4, 0, 1))
    lumen = _pieces(embolus.line, embolus.radii)
    clot = np.minimum(share, 1.0) * taper * radii
    if embolus.age == "chronic":
        # A crescent: the lumen without a narrower, shifted one.
        thick = 0.45 * np.clip(embolus.share * size_share(severity), 0, 1.3)[None] * taper
        rest = _pieces(line - embolus.toward * (thick * radii)[:, None], radii * (1 - thick))
        clot = radii * taper
        centre = line
    else:
        rest = None
        centre = line + embolus.toward * (0.9 * (radii - clot))[:, None]
    body = _pieces(centre, clot)
    box = tube_box(canvas, body)
    if box is None:
        return None
    value_share = contrast_share(severity)

    def put() -> None:
        p = canvas.points(box)
        # The clot never leaves the lumen: it takes the shape of the wall that it touches.
        field = np.maximum(tube_field(p, body, 12), tube_field(p, lumen, 12))
        if rest is not None:
            field = np.maximum(field, -tube_field(p, rest, 12))
        paint_in(canvas, box, field, embolus.hu, ("pulmonary_artery",), strength=value_share)

    return plant(
        canvas, box, "filling_defect", put, share=value_share,
        site=embolus.site, sides=list(embolus.sides), age=embolus.age,
        diameter_mm=round(float(2 * clot.max()), 1),
    )  # fmt: skip


def _pieces(line: np.ndarray, radii: np.ndarray) -> list[Branch]:
    return [Branch(line[i], line[i + 1], float(radii[i]), float(radii[i + 1])) for i in range(len(line) - 1)]


def _resampled(branches: list[Branch]) -> tuple[np.ndarray, np.ndarray]:
    """Centre line in even steps, and the radius there."""
    points = np.array([branches[0].start, *(b.end for b in branches)])
    radii = np.array([branches[0].start_radius, *(b.end_radius for b in branches)])
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    where = np.arange(0, min(at[-1], _LONGEST_MM) + 1e-9, _STEP_MM)
    line = np.stack([np.interp(where, at, points[:, k]) for k in range(3)], axis=1)
    return line, np.interp(where, at, radii)


def _along(branches: list[Branch], site: str, lobe: str, rng, length, share) -> Embolus:
    line, radii = _resampled(branches)
    return _embolus(line, radii, site, (_side(lobe),), rng, length, share)


def _side(lobe: str) -> str:
    return "left" if "left" in lobe else "right"


def _embolus(line, radii, site: str, sides: tuple[str, ...], rng, length, share) -> Embolus:
    along = line[-1] - line[0]
    toward = np.cross(along / max(np.linalg.norm(along), 1e-6), random_direction(rng))
    toward /= max(float(np.linalg.norm(toward)), 1e-6)
    return Embolus(
        site, sides, "acute", line, radii, float(rng.uniform(*length)), float(rng.uniform(*share)), toward,
        float(rng.uniform(30, 60)), float(rng.uniform(0, 6)),
    )  # fmt: skip


def _aged(embolus: Embolus) -> Embolus:
    return replace(embolus, age="chronic")


def _central(anatomy: Anatomy, side: str, rng: np.random.Generator) -> Embolus:
    """A clot in the left or the right main artery, or one that rides on the bifurcation where both sides have clots."""
    pieces = great_vessels(anatomy)["pulmonary_artery"]
    left, right = pieces[11:18], pieces[18:]
    if side == "both":
        side = str(rng.choice(["both", "left", "right"], p=[0.3, 0.35, 0.35]))
    if side != "both":
        return _along(left if side == "left" else right, "central", side, rng, (16, 28), (0.5, 0.8))
    back = [Branch(b.end, b.start, b.end_radius, b.start_radius) for b in reversed(right[2:])]
    line, radii = _resampled([*back, *left])
    return _embolus(line, radii, "central", ("left", "right"), rng, (30, 50), (0.4, 0.6))


def _chain(pieces: list[tuple[Branch, int]], first: int, limit_mm: float) -> list[Branch]:
    """From a piece outward, at every branching into the wider child."""
    starts = np.array([branch.start for branch, _ in pieces])
    chain, length = [pieces[first][0]], 0.0
    while length < limit_mm:
        length += float(np.linalg.norm(chain[-1].end - chain[-1].start))
        after = [pieces[k] for k in np.flatnonzero((starts == chain[-1].end).all(axis=1))]
        if not after:
            break
        chain.append(max(after, key=lambda item: item[1])[0])
    return chain


def _by_lobe(trees: dict) -> dict[str, list[tuple[Branch, int]]]:
    lobes: dict[str, list] = {}
    for branch, fed, lobe in trees["artery"]:
        lobes.setdefault(lobe, []).append((branch, fed))
    return lobes


def _lobar_paths(anatomy: Anatomy, trees: dict) -> dict[str, list[Branch]]:
    """Where lobar clots lie: the interlobar artery, where there is one, and the first branches of the tree."""
    stems = interlobar_arteries(anatomy)
    return {name: stems.get(name, []) + _chain(pieces, 0, 26) for name, pieces in _by_lobe(trees).items()}


def _segments(trees: dict) -> list[tuple[list[Branch], str]]:
    """Starts of segmental arteries: an eighth to a third of the lobe hangs on them."""
    found = []
    for name, pieces in _by_lobe(trees).items():
        whole = pieces[0][1]
        starts = [k for k, (b, fed) in enumerate(pieces) if whole / 9 < fed < whole / 3 and b.start_radius > 2.0]
        found += [(_chain(pieces, k, 22), name) for k in starts[::2]]
    return found
