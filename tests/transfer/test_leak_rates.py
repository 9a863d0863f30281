"""How often the leak guard finds each kind of copy, and how often it raises an alarm about other people: docs/leaks.md.

VOCO_TEST_CT=FOLDER pytest -m slow -s tests/transfer/test_leak_rates.py
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.data.copies import cut, stored
from voco.data.alignment import agree, detail_of
from voco.data.alike import CANDIDATE_SCORE, LANDMARK_SCORE
from voco.data.duplicates import proves
from voco.data.fingerprint import Fingerprints, signature, tissue_hash, voxel_hash
from voco.data.landmarks import compare, find_landmarks
from voco.transfer.leaks import LeakGuard

COPIED = ("seen", "near-duplicate")


class Chain:
    def __init__(self, prints: Fingerprints):
        self.provenance = [{"method": "voco3d", "fingerprints": "a.npz"}]
        self.fingerprints = {"a.npz": prints.to_bytes()}


def prints_of(volumes) -> Fingerprints:
    """Fingerprints of (array, spacing) pairs, as preparing takes them."""
    found, marks = [], []
    for array, spacing in volumes:
        array = np.ascontiguousarray(array)
        tissue = bytes.fromhex(tissue_hash(array)) or bytes(16)
        found.append((bytes.fromhex(voxel_hash(array)), signature(array, spacing).tobytes(), tissue))
        marks.append(find_landmarks(array, spacing).packed())
    voxels, signatures, tissues = (np.array([list(row[k]) for row in found], np.uint8) for k in range(3))
    places, looks = (np.stack([pair[k] for pair in marks]) for k in range(2))
    count = len(found)
    return Fingerprints(
        voxels, signatures, np.zeros((count, 8), np.uint8), np.ones(count, bool), frozenset(), tissues, places, looks
    )


def rates(volumes: Mapping[str, tuple], copied=None) -> dict[str, tuple[int, int, int]]:
    """Per kind of copy: found, found under another scan's name, tried; ``others``: alarms about each without itself.

    Args:
        volumes: name to (array, spacing), all of different people.
        copied: names of those that copies are made of; all by default.
    """
    known, table = prints_of(volumes.values()), {}
    names, guard = list(volumes), LeakGuard(Chain(known))
    for number, name in enumerate(names):
        if copied is not None and name not in copied:
            continue
        made = list(chain(stored(*volumes[name]), cut(*volumes[name], seed=number)))
        verdicts = guard.verdicts(prints_of([(a, mm) for _, a, mm in made]), ["mine"])
        for (kind, _, _), verdict, evidence in zip(made, verdicts["verdict"], verdicts["evidence"]):
            found = verdict in COPIED
            wrong = found and f"scan {number} of {len(names)}" not in evidence
            table.setdefault(kind, []).append((found, wrong))
    alarms = []
    for number in range(len(names)):
        rest = np.arange(len(names)) != number
        others = Fingerprints(*(getattr(known, key)[rest] for key in ("voxels", "signatures", "patients", "trained")),
                              frozenset(), known.tissue[rest], known.places[rest], known.looks[rest])  # fmt: skip
        one = Fingerprints(*(getattr(known, key)[~rest] for key in ("voxels", "signatures", "patients", "trained")),
                           frozenset(), known.tissue[~rest], known.places[~rest], known.looks[~rest])  # fmt: skip
        verdict = LeakGuard(Chain(others)).verdicts(one, ["mine"])["verdict"][0]
        alarms.append((verdict in COPIED, False))
    table["others"] = alarms
    return {kind: (sum(f for f, _ in rows), sum(w for _, w in rows), len(rows)) for kind, rows in table.items()}


def show(title: str, table) -> None:
    print(f"\n{title}")
    for kind, (found, wrong, tried) in table.items():
        print(f"  {kind:36} {found:3d} of {tried:3d}" + (f", {wrong} under another name" if wrong else ""))


def check(table) -> None:
    for kind, (found, wrong, tried) in table.items():
        assert wrong == 0, kind
        assert found == 0 if kind == "others" else found >= 0.85 * tried, (kind, found, tried)


@pytest.mark.slow
def test_copies_of_synthetic_patients_are_found():
    from voco.phantom.anatomy.patient import make_patient

    made = [make_patient(11, number, spacing_mm=(5.0, 4.0, 4.0)) for number in range(12)]
    table = rates({patient.name: (patient.hu.astype(np.int16), patient.spacing_mm) for patient in made})
    show("12 synthetic patients", table)
    check(table)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif("VOCO_TEST_CT" not in os.environ, reason="VOCO_TEST_CT names no folder of scans")
def test_copies_of_real_scans_are_found():
    from voco import read_volume

    scans = [read_volume(path) for path in sorted(Path(os.environ["VOCO_TEST_CT"]).iterdir())]
    table = rates({str(number): (scan.array, scan.spacing_mm) for number, scan in enumerate(scans)})
    show(f"{len(scans)} real scans", table)
    check(table)


@pytest.mark.slow
def test_of_thirty_thousand_pairs_of_distinct_patients_none_is_merged():
    from voco.phantom.anatomy.patient import make_patient

    made = [make_patient(11, number, spacing_mm=(6.0, 6.0, 6.0)) for number in range(250)]
    volumes = [(patient.hu.astype(np.int16), patient.spacing_mm) for patient in made]
    marks = [find_landmarks(*volume) for volume in volumes]
    fits = {(i, j): compare(marks[i], marks[j]) for i in range(250) for j in range(i)}
    scores = np.array([fit.score for fit in fits.values()])
    candidates = [key for key, fit in fits.items() if fit.score >= CANDIDATE_SCORE]
    agreement = [
        agree(detail_of(*volumes[i]), detail_of(*volumes[j]), fits[i, j].turn, fits[i, j].shift).correlation
        for i, j in candidates
    ]
    alarms = int((scores >= LANDMARK_SCORE).sum())
    tail = scores[scores > 0.25] - 0.25
    print(f"\n{len(scores)} pairs: largest scores {np.sort(scores)[-5:].round(2)}, {alarms} false alarms of the guard")
    print(f"above 0.25: {len(tail) / len(scores):.4f}, scale {tail.mean():.3f}")
    print(f"{len(candidates)} candidates, whose aligned detail agrees by up to {max(agreement):.2f}")
    assert not [key for key, found in zip(candidates, agreement) if proves(fits[key].score, found)]
    assert alarms <= 3 and len(scores) == 31_125
    # what expected_false_merges takes from this measurement
    assert len(tail) / len(scores) < 0.016 and tail.mean() < 0.35
