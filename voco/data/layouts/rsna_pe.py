"""RSNA STR Pulmonary Embolism 2020 as published: ``train.csv``, ``train/<study>/<series>/<image>.dcm``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from voco.data.layouts.labeled import LabeledCase, LabeledManifest, finish
from voco.data.manifest import Case, Rejection
from voco.errors import InputError

IDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
IMAGE = "pe_present_on_image"
# In the order of the published table.
EXAM = (
    *("negative_exam_for_pe", "qa_motion", "qa_contrast", "flow_artifact", "rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1"),
    *("leftsided_pe", "chronic_pe", "true_filling_defect_not_pe", "rightsided_pe", "acute_and_chronic_pe"),
    *("central_pe", "indeterminate"),
)
# What only an exam with an embolus can have.
FINDINGS = (
    *("rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1", "leftsided_pe", "rightsided_pe", "central_pe"),
    *("chronic_pe", "acute_and_chronic_pe"),
)
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = 3


class ImageLabels(Mapping):
    """Labels of the images of a series, 13 bytes an image instead of the 200 of a dictionary: there are 1.8 million.

    Args:
        uids: (n,) SOPInstanceUIDs as bytes.
        values: (n,) labels.
    """

    def __init__(self, uids: np.ndarray, values: np.ndarray):
        order = np.argsort(uids)
        self._uids, self._values = uids[order], values[order].astype(np.uint8)

    def __len__(self) -> int:
        return len(self._uids)

    def __iter__(self) -> Iterator[str]:
        return (uid.decode() for uid in self._uids)

    def __getitem__(self, uid: str) -> float:
        key = uid.encode()
        place = int(np.searchsorted(self._uids, key))
        if place == len(self._uids) or self._uids[place] != key:
            raise KeyError(uid)
        return float(self._values[place])

    @property
    def positive(self) -> int:
        """Number of positive images."""
        return int(self._values.sum())


def read_rsna_pe(root: str | Path, part: str = "train") -> LabeledManifest:
    """Exams of the data set; no image is opened.

    Args:
        root: folder with ``train.csv`` and ``train`` (or ``test.csv`` and ``test``).
        part: ``train``, or ``test``, whose table has no labels.

    Returns:
        A case per labeled series. ``labels`` are the exam columns as 0 or 1, ``slices`` those of the images; both are
        empty for ``test``. ``unit`` and ``patient`` are the study: the set does not say which studies are of one
        patient. ``Case.files`` stays empty where a folder holds exactly the images of the table.

    Raises:
        InputError: no such folder or table, missing columns, an image twice, or a label that is neither 0 nor 1.
    """
    root = Path(root)
    if part not in ("train", "test"):
        raise InputError(f"part {part!r} of RSNA PE: choose train or test")
    if not (root / part).is_dir() and (root / f"{part}.csv").is_file():
        raise InputError(
            f"{root} has {part}.csv but no folder {part}; expected {part}/<study>/<series>/<image>.dcm beside it"
        )
    table = _Table(root / f"{part}.csv", labeled=part == "train")
    manifest = LabeledManifest(root, patient_level=False)
    studies = list(table.studies())
    # Listing is waiting for the file system, so threads help also on one core.
    with ThreadPoolExecutor(16) as pool:
        folders = pool.map(lambda study: _list_study(root / part / study[0]), studies)
        for study, found in zip(studies, folders):
            _add(manifest, table, part, study, found)
    known = {name for name, _ in studies}
    for name in sorted(_folders(root / part) - known):
        manifest.rejected.append(Rejection(f"{part}/{name}", f"{part}.csv has no row of this study"))
    images = sum(len(case.slices or ()) for case in manifest.cases)
    if part == "train":
        positive = sum(case.slices.positive for case in manifest.cases)
        manifest.notes.append(
            f"{len(manifest.cases)} exams with {images:,} labeled images, {positive:,} of them positive"
        )
    manifest.notes.append("no patient identity is published: splits keep studies together, not patients")
    place = dict(zip(table.study_names, table.place.tolist()))
    manifest.cases.sort(key=lambda case: place[case.unit])
    return finish(manifest)


class _Table:
    """The published CSV in arrays: 1.8 million rows in seconds and about 60 MB."""

    def __init__(self, path: Path, labeled: bool):
        from pyarrow import compute

        self.path = path
        columns = (*IDS, IMAGE, *EXAM) if labeled else IDS
        data = _read_csv(path, columns)
        for name in IDS:
            empty = compute.sum(compute.equal(compute.utf8_length(data[name]), 0)).as_py()
            if empty or data[name].null_count:
                raise InputError(f"{path}: {empty or data[name].null_count} rows have no {name}")
        self.study_names, study = _codes(data["StudyInstanceUID"])
        # where each study stands first: published splits go by this order
        self.place = np.unique(study, return_index=True)[1]
        self.series_names, series = _codes(data["SeriesInstanceUID"])
        images = _bytes(data["SOPInstanceUID"], path)
        self._refuse_repeats(images)
        order = np.lexsort((series, study))
        self.images, self.study, self.series = images[order], study[order], series[order]
        self.image_labels = self.exam = None
        if labeled:
            self.image_labels = self._binary(data, IMAGE)[order]
            self.exam = np.stack([self._binary(data, name)[order] for name in EXAM], 1)

    def _refuse_repeats(self, images: np.ndarray) -> None:
        ranked = np.sort(images)
        repeated = np.unique(ranked[1:][ranked[1:] == ranked[:-1]])
        if len(repeated):
            shown = ", ".join(uid.decode() for uid in repeated[:_SHOWN])
            raise InputError(
                f"{self.path}: {len(repeated)} SOPInstanceUIDs have more than one row ({shown}); each image has one: "
                "remove the others"
            )

    def _binary(self, data, name: str) -> np.ndarray:
        values = data[name].to_numpy()
        wrong = ~((values == 0) | (values == 1))
        if wrong.any():
            rows = ", ".join(f"line {i + 2}: {values[i]:g}" for i in np.flatnonzero(wrong)[:_SHOWN])
            raise InputError(f"{self.path}: {int(wrong.sum())} values of {name} are not 0 or 1 ({rows})")
        return values.astype(np.uint8)

    def studies(self) -> Iterator[tuple[str, dict[str, slice]]]:
        """Each study with the rows of its series."""
        starts = np.flatnonzero(np.diff(self.study, prepend=-1) | np.diff(self.series, prepend=-1))
        stops = [*starts[1:], len(self.study)]
        name, found = None, {}
        for start, stop in zip(starts, stops):
            study = self.study_names[self.study[start]]
            if study != name and name is not None:
                yield name, found
                found = {}
            name = study
            found[self.series_names[self.series[start]]] = slice(int(start), int(stop))
        if name is not None:
            yield name, found


def _read_csv(path: Path, columns: Sequence[str]):
    import pyarrow as pa
    from pyarrow import csv

    if not path.is_file():
        raise InputError(
            f"{path} does not exist; expected the folder of RSNA STR Pulmonary Embolism 2020 as downloaded, with "
            "train.csv and train/<study>/<series>/<image>.dcm"
        )
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip().strip('"') for name in file.readline().rstrip("\r\n").split(",")]
    if missing := [name for name in columns if name not in header]:
        raise InputError(
            f"{path} lacks the columns {', '.join(missing)}; found {', '.join(header)}. Give the file as it was "
            "published"
        )
    types = {name: pa.string() if name in IDS else pa.float32() for name in columns}
    try:
        data = csv.read_csv(
            path,
            # The names are given, so that a mark or blanks in the first line do not matter.
            read_options=csv.ReadOptions(column_names=header, skip_rows=1),
            convert_options=csv.ConvertOptions(include_columns=list(columns), column_types=types),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable table of ids and 0/1 labels: {error}") from None
    if not data.num_rows:
        raise InputError(f"{path} holds no row")
    return data


def _bytes(column, path: Path) -> np.ndarray:
    """(n,) fixed-width bytes of a column of plain letters."""
    array = column.combine_chunks()
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    width = np.diff(offsets)
    if (width == width[0]).all():
        # As published, all of 12: straight from the buffer, without two million strings in between.
        values = np.frombuffer(array.buffers()[2], f"S{width[0]}", len(array), int(offsets[0])).copy()
    else:
        values = np.array([text.encode() for text in array.to_pylist()])
    if (values.view(np.uint8) > 127).any():
        raise InputError(f"{path}: a SOPInstanceUID holds other than plain letters")
    return values


def _codes(column) -> tuple[list[str], np.ndarray]:
    """Distinct names, sorted, and the number of the name in each row."""
    encoded = column.combine_chunks().dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist())
    order = np.argsort(names)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return names[order].tolist(), rank[encoded.indices.to_numpy()]


def _folders(path: Path) -> set[str]:
    with os.scandir(path) as entries:
        return {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()}


def _list_study(path: Path) -> dict[str, set[str]] | str:
    """File names without ``.dcm`` of each series folder, or why the study cannot be listed."""
    try:
        found = {}
        for name in sorted(_folders(path)):
            with os.scandir(path / name) as entries:
                files = {entry.name for entry in entries}
            found[name] = {file for file in files if file.lower().endswith(".dcm") and not file.startswith(".")}
        return found
    except FileNotFoundError:
        return "no such folder: the study is not there, or was not unpacked"
    except OSError as error:
        return f"this folder cannot be searched: {error.strerror}"


def _add(manifest: LabeledManifest, table: _Table, part: str, study, found: dict[str, set[str]] | str) -> None:
    """One study: a case per series, or the reason why not."""
    name, series = study
    path = f"{part}/{name}"
    if isinstance(found, str):
        manifest.rejected.append(Rejection(path, found))
        return
    rows = slice(min(s.start for s in series.values()), max(s.stop for s in series.values()))
    labels = {}
    if table.exam is not None:
        labels, why = _exam_labels(table.exam[rows], table.image_labels[rows])
        if why:
            manifest.rejected.append(Rejection(path, why))
            return
    for other in sorted(set(found) - set(series)):
        manifest.rejected.append(Rejection(f"{path}/{other}", f"{part}.csv has no row of this series"))
    for uid, part_rows in series.items():
        case = name if len(series) == 1 else f"{name}-{uid}"
        if not _SAFE.fullmatch(case):
            manifest.rejected.append(Rejection(path, f"{case!r} is no id: letters, digits, '.', '_' and '-' only"))
            continue
        files, problem = _match(f"{path}/{uid}", found.get(uid), table.images[part_rows], part, manifest)
        if problem:
            manifest.rejected.append(Rejection(f"{path}/{uid}", problem))
            continue
        slices = None
        if table.image_labels is not None:
            slices = ImageLabels(table.images[part_rows], table.image_labels[part_rows])
        manifest.cases.append(
            LabeledCase(Case(case, f"{path}/{uid}", name, files=files), labels, unit=name, slices=slices)
        )


def _match(
    path: str, there: set[str] | None, listed: np.ndarray, part: str, manifest: LabeledManifest
) -> tuple[tuple[str, ...], str]:
    """Files to read, () for all of the folder; and what is wrong with the series, if anything."""
    if there is None:
        return (), "no such folder: the series is not there, or was not unpacked"
    wanted = {uid.decode() for uid in listed}
    names = {os.path.splitext(file)[0]: file for file in sorted(there)}
    if missing := sorted(wanted - set(names)):
        return (), (
            f"{len(missing)} of its {len(wanted)} images in {part}.csv have no file (first: {missing[0]}.dcm): the "
            "finding may lie in what is missing, copy the study again"
        )
    extra = sorted(set(names) - wanted)
    if not extra:
        return (), ""
    manifest.rejected.append(
        Rejection(
            f"{path}/{names[extra[0]]}",
            f"{part}.csv has no row of this image"
            + (f" and {len(extra) - 1} others of its series" if len(extra) > 1 else "")
            + "; the rest of the series is used",
        )
    )
    return tuple(f"{path}/{names[uid]}" for uid in sorted(wanted)), ""


def _exam_labels(exam: np.ndarray, images: np.ndarray) -> tuple[dict[str, float], str]:
    """Labels of one exam from its rows, and in what way they contradict each other, if they do."""
    low, high = exam.min(0), exam.max(0)
    if varying := [name for name, a, b in zip(EXAM, low, high) if a != b]:
        return {}, f"{', '.join(varying)} differ between images of the exam; they are labels of the whole exam"
    labels = dict(zip(EXAM, high.astype(float).tolist()))
    negative, indeterminate = labels["negative_exam_for_pe"], labels["indeterminate"]
    positive = int(images.sum())
    if positive and (negative or indeterminate):
        flag = "negative_exam_for_pe" if negative else "indeterminate"
        return {}, f"{positive} images show an embolus, but {flag} is 1"
    if not positive and negative + indeterminate != 1:
        both = "both are" if negative else "neither is"
        return {}, f"no image shows an embolus, so negative_exam_for_pe or indeterminate must be 1; {both}"
    if not positive and (claimed := [name for name in FINDINGS if labels[name]]):
        return {}, f"no image shows an embolus, but {', '.join(claimed)} is 1"
    return labels, ""
