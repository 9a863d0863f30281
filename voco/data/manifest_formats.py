"""Lists of scans that others have written: CSV, JSON of Decathlon, MONAI and nnU-Net, nnssl ``pretrain_data.json``."""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from voco.data.cells import name_or_none, say_look_alikes
from voco.data.text_tables import read_rows, read_text
from voco.data.walk import stem
from voco.errors import InputError

CSV_COLUMNS = ("path", "patient", "series", "case", "split")
TRAIN, HELDOUT, TEST = "train", "heldout", "test"
_SPLITS = {
    **dict.fromkeys(("train", "training", "tr"), TRAIN),
    **dict.fromkeys(("heldout", "held-out", "held_out", "val", "valid", "validation", "dev"), HELDOUT),
    **dict.fromkeys(("test", "testing", "ts"), TEST),
}
# nnssl collections mix modalities; these are CT, and so is one that is not named.
_CT_NAMES = {"", "ct", "cta", "ctpa", "cect", "nect", "ncct", "ldct", "cbct", "computed tomography", "unknown", "none"}
_CT_WORD = re.compile(r"(^|[^a-z])ct([^a-z]|$)|computed.tomography", re.IGNORECASE)
_OTHER_WORD = re.compile(
    r"(^|[^a-z])(mri?|mra|t1\w*|t2\w*|flair|adc|dwi|pd|pet|us|spect|oct)([^a-z]|$)|magnetic|ultraso|x-?ray|micros",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Row:
    """One scan of a list: where it is, and what the list says about it.

    Attributes:
        name: the path as written, for messages.
        path: the same, absolute.
        patient, series, case, split: None where the list does not say; split is train, heldout or test.
    """

    name: str
    path: Path
    patient: str | None = None
    series: str | None = None
    case: str | None = None
    split: str | None = None


@dataclass
class Listing:
    """Rows of a list, entries that name no usable path as (entry, reason), and sentences for the user."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_list(path: Path) -> Listing:
    """Read a list of scans by its suffix: ``.csv``/``.tsv``, or one of the two kinds of JSON.

    Raises:
        InputError: another kind of file, or one that does not have the fields of its kind.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_csv(path)
    if path.suffix.lower() != ".json":
        raise InputError(
            f"{path} is not a data root: give a folder, a CSV with a path column, a Decathlon dataset.json or an nnssl "
            "pretrain_data.json"
        )
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no valid JSON: {error}") from None
    if isinstance(data, dict) and ("datasets" in data or "subjects" in data):
        return read_nnssl(path, data)
    if isinstance(data, dict) and any(isinstance(data.get(key), list) for key in _SPLITS):
        return read_decathlon(path, data)
    if isinstance(data, dict) and "channel_names" in data:
        return read_nnunet(path, data)
    found = ", ".join(map(str, list(data)[:8])) if isinstance(data, dict) else type(data).__name__
    raise InputError(
        f"{path} holds {found}; expected a Decathlon list (training, validation, test), an nnU-Net "
        "dataset.json (channel_names) or an nnssl collection (datasets)"
    )


def read_csv(path: Path) -> Listing:
    """Read columns path, patient, series, case, split; paths are relative to the folder of the file.

    Raises:
        InputError: no path column, a misspelt column, or an unknown split.
    """
    listing = Listing()
    table = read_rows(path)
    _check_columns(path, table.columns, listing)
    for number, line in table.rows:
        values = {key: name_or_none(line.get(key)) for key in ("patient", "series", "case", "split")}
        name = line["path"]
        if not name:
            listing.rejected.append((f"line {number}", f"line {number} of {path.name} has no path"))
            continue
        split = _split(values["split"], f"{path}, line {number}")
        where = beside(path, name)
        listing.rows.append(Row(name, where, values["patient"], values["series"], values["case"], split))
    listing.notes += say_windows(row.name for row in listing.rows)
    listing.notes += say_look_alikes(row.patient for row in listing.rows if row.patient)
    return listing


def _check_columns(path: Path, names: list[str], listing: Listing) -> None:
    extra = [name for name in names if name and name not in CSV_COLUMNS]
    for name in extra:
        plain = re.sub(r"[^a-z]", "", name.lower()).removesuffix("id").removesuffix("uid")
        close = difflib.get_close_matches(plain, CSV_COLUMNS, n=1, cutoff=0.8)
        if close and close[0] not in names:
            raise InputError(f"{path}: column {name!r} looks like {close[0]!r}; rename it so that it is used")
    if "path" not in names:
        raise InputError(
            f"{path} has no path column, only {', '.join(names) or 'an empty first line'}; the first line must name "
            f"the columns: {', '.join(CSV_COLUMNS)} (all but path may be missing)"
        )
    if extra:
        listing.notes.append(f"columns of {path.name} that are not used here: {', '.join(extra)}")


def _split(value: str | None, where: str) -> str | None:
    if value is None:
        return None
    if value.lower() not in _SPLITS:
        raise InputError(f"{where}: split {value!r} is not one of train, heldout (or validation), test")
    return _SPLITS[value.lower()]


def beside(list_file: Path, name: str) -> Path:
    """A path of a list: absolute, below the home of a user (``~``), or relative to the folder of the list.

    Backslashes part folders, as on Windows. A path that begins with a drive or a server is not to be found here: it is
    the longest end of it that lies beside the list. Letters with accents are one sign or two, as the disk has them.
    """
    try:
        given = Path(name).expanduser()
    except RuntimeError:  # ~nobody: no such user
        given = Path(name)
    place = list_file.parent / given
    if place.exists():
        return place
    parts = PureWindowsPath(name).parts
    if is_windows_absolute(name):
        places = [list_file.parent.joinpath(*parts[i:]) for i in range(1, len(parts))]
    else:
        places = [list_file.parent.joinpath(*parts) if "\\" in name else place]
    spelt = (Path(unicodedata.normalize(form, str(p))) for p in places for form in ("NFC", "NFD"))
    return next((p for p in (*places, *spelt) if p.exists()), place if is_windows_absolute(name) else places[0])


def is_windows_absolute(name: str) -> bool:
    """Whether a path begins with a drive or a server of Windows."""
    return bool(re.match(r"[A-Za-z]:[\\/]", name)) or ("\\" in name and bool(PureWindowsPath(name).drive))


def say_windows(names: Iterable[str]) -> list[str]:
    """A sentence for the user where a list has paths of Windows drives."""
    found = [name for name in names if is_windows_absolute(name)]
    if not found:
        return []
    return [f"{len(found)} paths are of Windows drives (first: {found[0]}); their ends are looked for beside the list"]


def read_decathlon(path: Path, data: dict) -> Listing:
    """Read ``training``, ``validation``, ``test``: lists of ``{"image": file}`` or file names, relative to the JSON.

    nnU-Net v1 lists files without the number of the channel that they carry: ``c.nii.gz`` is ``c_0000.nii.gz``.

    Raises:
        InputError: a list of images of another modality.
    """
    listing = Listing()
    channel = _ct_channel(path, data.get("modality"), listing)
    for key, split in _SPLITS.items():
        items = data.get(key)
        if not isinstance(items, list):
            continue
        for number, item in enumerate(items):
            image = item.get("image") if isinstance(item, dict) else item
            if isinstance(image, list) and len(image) == 1:
                image = image[0]
            if not isinstance(image, str) or not image:
                what = f"{len(image)} images" if isinstance(image, list) else "no image"
                listing.rejected.append((f"{key}[{number}]", f"entry {number} of {key!r} names {what}; expected one"))
                continue
            given = item if isinstance(item, dict) else {}
            patient = next(
                (found for k in ("patient", "patient_id", "subject") if (found := name_or_none(given.get(k)))), None
            )
            where = beside(path, image)
            numbered = _numbered(where, channel)
            where = numbered if not where.exists() and numbered.exists() else where
            listing.rows.append(Row(image, where, patient, split=split))
    return listing


def read_nnunet(path: Path, data: dict) -> Listing:
    """Read the ``dataset.json`` of nnU-Net v2, which names channels and a file ending: files lie in ``imagesTr`` and
    ``imagesTs``, or are listed in ``dataset``.

    Raises:
        InputError: a data set of another modality.
    """
    listing = Listing()
    channel = _ct_channel(path, data["channel_names"], listing)
    listed = data.get("dataset")
    if isinstance(listed, dict):
        for name, item in listed.items():
            images = item.get("images") if isinstance(item, dict) else None
            if not isinstance(images, list) or len(images) <= channel:
                listing.rejected.append((str(name), f"no image of channel {channel} is listed"))
                continue
            listing.rows.append(Row(str(images[channel]), beside(path, str(images[channel])), split=TRAIN))
        return listing
    ending = str(data.get("file_ending") or ".nii.gz")
    for folder, split in (("imagesTr", TRAIN), ("imagesTs", TEST)):
        for file in sorted((path.parent / folder).glob(f"*_{channel:04d}{ending}")):
            listing.rows.append(Row(f"{folder}/{file.name}", file, split=split))
    return listing


def _ct_channel(path: Path, names: object, listing: Listing) -> int:
    """Number of the channel that is CT; 0 where the list names none.

    Raises:
        InputError: all channels are of other modalities.
    """
    if not isinstance(names, dict) or not names:
        return 0
    found = {int(k): str(v).strip() for k, v in names.items() if str(k).isdecimal()}
    channel = next((k for k, name in sorted(found.items()) if name.lower() in _CT_NAMES or _CT_WORD.search(name)), None)
    if channel is None:
        if found and all(_OTHER_WORD.search(name) for name in found.values()):
            raise InputError(f"{path} lists {', '.join(found.values())}; expected CT")
        return 0
    if len(found) > 1:
        listing.notes.append(f"{path.name} has the channels {', '.join(found.values())}; {found[channel]} is read")
    return channel


def _numbered(where: Path, channel: int) -> Path:
    name = stem(where.name)
    return where.with_name(f"{name}_{channel:04d}{where.name[len(name) :]}")


def read_nnssl(path: Path, data: dict) -> Listing:
    """Read an nnssl collection: datasets, subjects, sessions, images; a subject of a dataset is a patient.

    A path may begin with ``$NAME``: the environment variable of that name or, where it is not set, the folder above
    the JSON under which the rest of the path exists (nnssl keeps the JSON inside the folder that the variable names).
    """
    listing = Listing()
    other: Counter[str] = Counter()
    try:
        for patient, image in _nnssl_images(data):
            name = image.get("image_path") or image.get("path")
            modality = str(image.get("modality") or "").strip()
            if modality.lower() not in _CT_NAMES:
                other[modality] += 1
            elif not name:
                listing.rejected.append((str(image.get("name")), "the image has no image_path"))
            else:
                where, problem = _resolve(str(name), path.parent)
                if problem:
                    listing.rejected.append((str(name), problem))
                else:
                    listing.rows.append(Row(str(name), where, patient))
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} does not have the form of an nnssl collection (datasets, subjects, sessions, images): "
            f"{type(error).__name__} {error}"
        ) from None
    if other:
        named = ", ".join(f"{count} {name}" for name, count in other.most_common())
        listing.notes.append(f"images that are not CT were left out: {named}")
    return listing


def _nnssl_images(data: dict) -> Iterator[tuple[str, dict]]:
    datasets = data.get("datasets", {"": data})
    for key, dataset in datasets.items():
        index = str(dataset.get("dataset_index", key))
        for subject_id, subject in dataset["subjects"].items():
            for session in subject["sessions"].values():
                for image in session["images"]:
                    yield f"{index}/{subject_id}", image


def _resolve(name: str, folder: Path) -> tuple[Path, str | None]:
    if not name.startswith("$"):
        return beside(folder / "list", name), None
    variable, _, rest = name[1:].partition("/")
    if variable in os.environ:
        return Path(os.environ[variable]) / rest, None
    for above in (folder, *folder.absolute().parents):
        if (above / rest).exists():
            return above / rest, None
    return folder, f"{name} needs the environment variable {variable}, which is not set"
