"""Parting patients so that every part has its share of every label, in a way that hardly changes when one joins."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import floor

from voco.rng import derive_seed

UNKNOWN = "nan"
# Successive multiples of it, modulo 1, lie as evenly as any sequence can.
_GOLDEN = 0.6180339887498949

Labels = Mapping[str, tuple[str, ...]]


def rank(patient: str, *key: int | str) -> int:
    """A number for each patient that depends on nothing but the patient and the key; sorting by it is a shuffle."""
    # A patient may be named by a folder, whose name need not be UTF-8.
    return derive_seed("patient", *key, os.fsencode(patient).hex())


def patient_labels(words: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Labels of patients from (patient, stratum) of their scans.

    Args:
        words: a stratum may hold several labels, divided by ``/``; each is one position.

    Returns:
        Per patient one word per position; different words of its scans are joined by ``+``.
    """
    found: dict[str, list[set[str]]] = {}
    for patient, word in words:
        parts = word.split("/")
        sets = found.setdefault(patient, [])
        sets.extend(set() for _ in range(len(parts) - len(sets)))
        for known, part in zip(sets, parts):
            known.add(part)
    return {patient: tuple("+".join(sorted(known)) for known in sets) for patient, sets in found.items()}


def classes(labels: tuple[str, ...]) -> set[tuple[int, str]]:
    """(position, word) of each known label of a patient."""
    return {(i, word) for i, joined in enumerate(labels) for word in joined.split("+") if word not in (UNKNOWN, "")}


def count_classes(patients: Sequence[str], labels: Labels) -> Counter:
    """How many of the patients have each class."""
    return Counter(found for patient in patients for found in classes(labels[patient]))


def part(patients: Sequence[str], labels: Labels, shares: Sequence[float], *key: int | str) -> list[list[str]]:
    """Part patients by shares, each group of equal labels by itself.

    Of n patients with equal labels a part of share s gets floor(n s) or ceil(n s); what rounding took from a part is
    made up for with the next group, and groups follow each other by likeness, the rarest label first. Within a group
    patients stand in the order of ``rank`` and parts take consecutive pieces, so that one who joins moves few others.

    Args:
        patients: whom to part.
        labels: of each.
        shares: of the parts, summing to 1; a part with a share above 0 is not left empty while another has two.
        key: another key, another choice.

    Returns:
        Per part its patients.
    """
    owed = [0.0] * len(shares)
    parts: list[list[str]] = [[] for _ in shares]
    for name, group in _groups(patients, labels, key):
        exact = [len(group) * share for share in shares]
        counts = [floor(value + 1e-9) for value in exact]
        luck = [rank("/".join(name), *key, "rounding", k) for k in range(len(shares))]
        open_parts = [k for k in range(len(shares)) if exact[k] - counts[k] > 1e-9]
        open_parts.sort(key=lambda k: (-round(exact[k] - counts[k] + owed[k], 9), luck[k]))
        for k in open_parts[: len(group) - sum(counts)]:
            counts[k] += 1
        first = 0
        for k, count in enumerate(counts):
            owed[k] += exact[k] - count
            parts[k] += group[first : first + count]
            first += count
    for k, share in enumerate(shares):
        largest = max(parts, key=len)
        if share > 0 and not parts[k] and len(largest) > 1:
            parts[k].append(largest.pop())
    return parts


def nested_order(patients: Sequence[str], labels: Labels, *key: int | str) -> list[str]:
    """An order of which every beginning has about the same shares of labels as the whole."""
    places = []
    for index, (name, group) in enumerate(_groups(patients, labels, key)):
        start = rank("", *key, "start") / 2**63 + index * _GOLDEN
        places += [((j + start % 1.0) / len(group), "/".join(name), j, patient) for j, patient in enumerate(group)]
    return [patient for *_, patient in sorted(places)]


def _groups(patients: Sequence[str], labels: Labels, key) -> list[tuple[tuple[str, ...], list[str]]]:
    """Patients of equal labels in the order of ``rank``; similar groups beside each other, the rarest label first."""
    width = max((len(labels[patient]) for patient in patients), default=0)
    padded = {patient: labels[patient] + ("",) * (width - len(labels[patient])) for patient in patients}
    rarest = []
    for i in range(width):
        count = Counter(words[i] for words in padded.values())
        rarest.append((min(count.values()) if len(count) > 1 else len(padded), i))
    order = [i for _, i in sorted(rarest)]
    groups: dict[tuple[str, ...], list[str]] = {}
    for patient in sorted(padded, key=_ranker(*key)):
        groups.setdefault(tuple(padded[patient][i] for i in order), []).append(patient)
    return sorted(groups.items())


def _ranker(*key: int | str) -> Callable[[str], tuple[int, str]]:
    return lambda patient: (rank(patient, *key), patient)
