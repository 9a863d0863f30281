"""Probe while pretraining: what frozen features know of labels that some scans have, every so many steps.

The labels train nothing but the probe itself. Only training and validation patients are looked at, never a test one,
and no random number of the run is touched: every other row of ``metrics.jsonl`` is the same with and without a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from voco.data.cells import known_labels, name_or_none, number, say_look_alikes
from voco.data.layouts.labeled import read_table, refuse_repeats
from voco.data.prepare import PreparedEntry
from voco.data.privacy import hash_patient_id
from voco.errors import InputError
from voco.rng import derive_seed
from voco.short_repr import short_repr

_KEYS = ("case", "path", "patient")
_NOT_LABELS = (*_KEYS, "split", "series", "site", "fold")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "heldout"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHOWN = 5
_MOST_CLASSES = 10
_SHARE = 0.3  # of the patients of each class for validation, where held-out patients do not do
_NEIGHBOURS = 20


@short_repr
@dataclass(frozen=True)
class LabeledScans:
    """Scans of the run that have a label.

    Attributes:
        entries: prepared scans.
        labels: (n,) class numbers or values.
        validation: (n,) bool; the others train the probe.
        kind: binary, multiclass or regression.
        classes: names in the order of their numbers; empty for regression.
        notes: sentences for the user.
    """

    entries: list[PreparedEntry]
    labels: np.ndarray
    validation: np.ndarray
    kind: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def match_labels(
    path: str, column: str | None, train, heldout, *, seed: int, most: int, unknown: Sequence[str] | None = None
) -> LabeledScans:
    """The scans of a run that a CSV has labels for, parted into those that train the probe and those that judge it.

    The CSV has a column ``case``, ``path`` (relative to the data root) or ``patient``, and the label's column; a column
    ``split`` (train, validation, test) is obeyed, and patients with a test row are left out. Without it the held-out
    patients of the run judge, or, where they lack a class, three of ten patients of each class.

    Args:
        path: of the CSV.
        column: of the label; None where the CSV has only one that it can be.
        train, heldout: prepared scans of the run, grouped by patient.
        seed: of the run.
        most: scans that are used at most.
        unknown: words for an unknown label, see ``voco.data.cells.known_labels``.

    Raises:
        InputError: a CSV that cannot be used, names that match no scan, or too few labels.
    """
    entries = [entry for patient in (*train, *heldout) for entry in patient]
    held = {entry.case.id for patient in heldout for entry in patient}
    table, key, column = _read(path, column)
    table[column], note = known_labels(column, table[column], option="--probe.unknown", unknown=unknown)
    said = [f"probe: {text}" for text in (note, *(say_look_alikes(table[key]) if key == "patient" else ())) if text]
    splits = _splits(table, path)
    by_name = _names(entries, key)
    chosen: dict[str, tuple[PreparedEntry, str, str]] = {}
    missed, tested = [], set()
    for name, label, split in zip(table[key], table[column], splits):
        found = by_name.get(_plain(name, key), [])
        if split == "test":
            tested |= {entry.case.patient for entry in found}
        elif label == "":
            continue
        elif not found:
            missed.append(name)
        chosen |= {entry.case.id: (entry, label, split) for entry in found if label != ""}
    chosen = {k: v for k, v in chosen.items() if v[0].case.patient not in tested}
    if not chosen:
        raise InputError(
            f"--probe.labels {path}: no row has a label for a scan of this run. Its column {key} has "
            f"{_listed(table[key])}; the run has {_listed(sorted(by_name))}"
        )
    notes = said + ([f"probe: {len(tested)} patients with test rows are left out"] if tested else [])
    if missed:
        notes.append(f"probe: no scan that this run uses for {len(missed)} of the rows ({_listed(missed)})")
    rows = sorted(chosen.values(), key=lambda row: derive_seed(seed, "probe", row[0].case.patient, row[0].case.id))
    rows = sorted(rows[:most], key=lambda row: row[0].case.id)
    labels, kind, classes = _parse([label for _, label, _ in rows], column)
    validation, note = _part(rows, labels, kind, held, seed)
    _check_parts(labels, validation, kind, path, column)
    what = f"probe: {int((~validation).sum())} scans train it, {int(validation.sum())} judge it ({note})"
    what += f"; {column} = {', '.join(classes)}" if classes else f"; {column} is a number"
    return LabeledScans([row[0] for row in rows], labels, validation, kind, classes, (what, *notes))


def _read(path: str, column: str | None):
    table = read_table(path, [column] if column else [], what="--probe.labels")
    key = next((name for name in _KEYS if name in table.columns), None)
    if key is None:
        raise InputError(
            f"--probe.labels {path} needs a column case, path or patient; found {', '.join(table.columns)}"
        )
    if column is None:
        left = [name for name in table.columns if name not in _NOT_LABELS]
        if len(left) != 1:
            raise InputError(
                f"--probe.label: say which column of {path} is the label; found {', '.join(left) or 'none'}"
            )
        column = left[0]
    table = table[[name_or_none(cell) is not None for cell in table[key]]].reset_index(drop=True)
    refuse_repeats(table, [key], f"--probe.labels {path}")
    return table, key, column


def _splits(table, path: str) -> list[str]:
    if "split" not in table.columns:
        return [""] * len(table)
    values = [(name_or_none(text) or "").lower() for text in table["split"]]
    if strange := sorted({text for text in values if text and text not in _SPLITS}):
        raise InputError(f"--probe.labels {path}: the column split has {strange}; it takes train, validation and test")
    return [_SPLITS.get(text, "") for text in values]


def _names(entries: Sequence[PreparedEntry], key: str) -> dict[str, list[PreparedEntry]]:
    names: dict[str, list[PreparedEntry]] = {}
    for entry in entries:
        names.setdefault(_plain(getattr(entry.case, {"case": "id"}.get(key, key)), key), []).append(entry)
    if key == "patient":  # a DICOM header's PatientID is kept hashed; the table may have it as it is
        return _Hashed(names)
    return names


class _Hashed(dict):
    def get(self, name, default=None):
        return super().get(name) or super().get(hash_patient_id(name)) or default


def _plain(name: str, key: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/"))) if key == "path" else name


def _parse(texts: Sequence[str], column: str) -> tuple[np.ndarray, str, tuple[str, ...]]:
    numbers = [number(text) for text in texts]
    values = None if None in numbers else np.array(numbers)
    if values is not None and len(set(values)) > _MOST_CLASSES:
        return values, "regression", ()
    keys = list(texts) if values is None else list(values)
    order = sorted(set(keys))
    classes = tuple(f"{item:g}" if values is not None else item for item in order)
    if len(order) < 2:
        raise InputError(
            f"--probe.label {column} has the one value {classes[0]!r} for all {len(keys)} labeled scans of this run; "
            "an empty cell is an unknown label: where it means absent, write 0"
        )
    return np.array([order.index(item) for item in keys], float), "binary" if len(order) == 2 else "multiclass", classes


def _part(rows, labels: np.ndarray, kind: str, held: set[str], seed: int) -> tuple[np.ndarray, str]:
    if any(split for _, _, split in rows):
        return np.array([split == "validation" for _, _, split in rows]), "as its column split says"
    validation = np.array([entry.case.id in held for entry, _, _ in rows])
    if _enough(labels, validation, kind):
        return validation, "the held-out patients"
    groups: dict[object, list[str]] = {}
    for (entry, _, _), label in zip(rows, labels):
        patient = entry.case.patient
        if not any(patient in found for found in groups.values()):
            groups.setdefault(None if kind == "regression" else label, []).append(patient)
    judges = set()
    for label, patients in groups.items():
        ranked = sorted(patients, key=lambda name: derive_seed(seed, "probe split", str(label), name))
        judges |= set(ranked[: max(1, round(_SHARE * len(ranked)))])
    return np.array([entry.case.patient in judges for entry, _, _ in rows]), "three of ten patients of each class"


def _enough(labels: np.ndarray, validation: np.ndarray, kind: str) -> bool:
    parts = (labels[validation], labels[~validation])
    return all(len(part) > 2 if kind == "regression" else set(labels) == set(part) for part in parts)


def _check_parts(labels, validation, kind, path, column) -> None:
    if not _enough(labels, validation, kind):
        raise InputError(
            f"--probe.labels {path}: {column} is known for {int((~validation).sum())} scans that would train the probe "
            f"and {int(validation.sum())} that would judge it, and both need every class (numbers: three scans); label "
            "more scans, or leave the rare class out"
        )


def _listed(names: Sequence[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names)})" if len(names) > _SHOWN else "")


class Probe:
    """Scores of nearest neighbours and of a linear model on the features of the encoder as it is now.

    Args:
        scans: from ``match_labels``.
        geometry, region: of the method: scans are shown as crops of the size that it trains on.
        windows: crops of a scan, evenly spread over it; their vectors are averaged.
    """

    def __init__(self, scans: LabeledScans, geometry, region: str, windows: int):
        from voco.tasks.base import Output
        from voco.transfer.views import View

        self.scans, self.geometry, self.region, self.windows = scans, geometry, region, windows
        self.output = Output("probe", scans.kind, scans.classes if scans.kind == "multiclass" else ())
        self.view = View("tiles", geometry.size)

    @property
    def metric(self) -> str:
        return "r2" if self.scans.kind == "regression" else "auroc"

    def report(self, method, dtype=None) -> dict[str, float]:
        """Flat metrics ``probe/knn_…`` and ``probe/linear_…`` of ``method.encoder`` as it is now."""
        from voco.transfer.probes import knn_scores, linear_probe

        x = self.features(method, dtype)
        y, judge = self.scans.labels, self.scans.validation
        patients = np.array([entry.case.patient for entry in self.scans.entries])
        counts = [len(y)] if self.scans.kind == "regression" else np.unique(y[~judge], return_counts=True)[1]
        # with more neighbours than scans of a class, that class could hardly ever win the vote
        near = knn_scores(
            self.output, x[~judge], y[~judge], x[judge], neighbours=min(_NEIGHBOURS, *(int(n) for n in counts))
        )
        line = linear_probe(self.output, x[~judge], y[~judge], groups=patients[~judge]).logits(x[judge])
        return {
            f"probe/{name}_{self.metric}": self._value(logits, y[judge])
            for name, logits in (("knn", near), ("linear", line))
        }

    def features(self, method, dtype=None) -> np.ndarray:
        """(n, F) float32, one vector per scan: as ``voco.embed`` where crops are tiles as the encoder takes them."""
        from voco.transfer.features import pool_vectors, spread, window_vectors

        def read(hu):
            return method.encoder(method.crops(hu[:, 0], hu.new_zeros(len(hu), 1, 3).long()))

        rows = []
        for entry in self.scans.entries:
            volume, starts = self._places(entry, method.encoder.input_spec.windows)
            starts = spread(starts, self.windows)
            vectors = window_vectors(method, read, [volume], starts, self.geometry.size, dtype=dtype)
            rows.append(pool_vectors(vectors.cpu().numpy()))
        return np.stack(rows)

    def _places(self, entry: PreparedEntry, windows) -> tuple[Any, np.ndarray]:
        """A scan as the method is shown it, and the (W, 3) corners of crops that cover it."""
        from voco.data.cache import PreparedArray, PreparedVolume
        from voco.data.windows import read_window
        from voco.health.evaluate import outer_window

        volume = PreparedVolume.open(entry.path)
        if self.region == "whole":
            hu = read_window(volume, self.geometry.window, None, "whole", outer_window(windows)).hu
            return PreparedArray(hu, volume.spacing_mm, {}), self.geometry.base_starts().numpy()
        return volume, self.view.windows(volume.shape)

    def _value(self, logits: np.ndarray, labels: np.ndarray) -> float:
        from sklearn.metrics import r2_score, roc_auc_score

        if self.scans.kind == "regression":
            return float(r2_score(labels, logits[:, 0]))
        if self.scans.kind == "binary":
            return float(roc_auc_score(labels, logits[:, 0]))
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        return float(roc_auc_score(labels, scores, multi_class="ovr", average="macro"))


def start_probe(settings, cohort, *, geometry, region: str, seed: int, say: Callable[[str], None]) -> Probe | None:
    """The probe that the settings ask for; None without labels.

    Raises:
        InputError: labels that cannot be used.
    """
    if not settings.labels:
        return None
    if not Path(settings.labels).is_file():
        raise InputError(f"--probe.labels {settings.labels} does not exist; expected a CSV with labels of scans")
    scans = match_labels(
        settings.labels, settings.label, cohort.train, cohort.heldout, seed=seed, most=settings.scans,
        unknown=settings.unknown,
    )  # fmt: skip
    for note in scans.notes:
        say(note)
    return Probe(scans, geometry, region, settings.windows)
