"""Features of many scans with one command: ``voco embed ENCODER IN OUT``; each is what ``voco.embed`` gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from voco.data.cache import SUFFIX, PreparedVolume, read_footer
from voco.data.doubts import doubt_notes
from voco.data.manifest import Case, Rejection, build_manifest, write_rejected
from voco.data.prepare import PreparedEntry, PrepareSettings, made_with, prepare
from voco.data.progress import Progress
from voco.errors import InputError, ScanError
from voco.files import whole
from voco.short_repr import short_repr

FORMATS = (".csv", ".npz", ".parquet")


@short_repr
@dataclass(frozen=True)
class Embedded:
    """Features of scans.

    Attributes:
        cases: ids.
        patients: of the scans; that of a DICOM header is a digest.
        paths: of the scans.
        features: (n, F) float32.
        rejected: scans that could not be used, and why.
    """

    cases: list[str]
    patients: list[str]
    paths: list[str]
    features: np.ndarray
    rejected: list[Rejection]


def check_output(out: str | Path) -> Path:
    """The table's path, whose ending says its format.

    Raises:
        InputError: another ending, or a folder.
    """
    path = Path(out)
    if path.suffix not in FORMATS or path.is_dir():
        raise InputError(f"OUT is a file that ends in {', '.join(FORMATS)}; found {out}")
    return path


def encoder_of(name: str, weights: str | None = None):
    """The encoder that a command line means, in evaluation mode.

    Args:
        name: folder of an encoder or a run, a weights file, a Hugging Face id; or ``arch.tag``, or ``arch`` with
            ``weights``.
        weights: as ``--encoder.weights`` of the stages.

    Raises:
        InputError: nothing of the kind, or an architecture without weights.
    """
    from voco.encoders import ENCODERS, create_encoder, load_encoder

    known = name.partition(".")[0] in ENCODERS and not Path(name).exists()
    if not known and weights is None:
        return load_encoder(name)
    if not known:
        raise InputError(f"with --weights, ENCODER is the name of an architecture (see voco encoders), not {name}")
    if weights is None and "." not in name:
        raise InputError(
            f"{name} is an architecture without weights, its features would be random: name published weights as "
            f"{name}.TAG (see voco encoders {name}), or give --weights"
        )
    return create_encoder(name, checkpoint=weights)


def embed_entries(encoder, entries: Sequence[PreparedEntry], *, progress: bool = True, **how) -> Embedded:
    """Features of prepared scans; one that cannot be read is rejected, and the others go on.

    Args:
        encoder: see ``voco.embed``.
        entries: prepared for the view.
        progress: show a bar.
        how: ``view``, ``chunk`` and ``dtype`` of ``voco.embed``.

    Raises:
        InputError: no scan could be used.
    """
    from voco.transfer.features import embed

    rows, rejected = [], []
    bar = Progress("embed", len(entries), progress)
    try:
        for entry in entries:
            try:
                vector = embed(encoder, entry, **how)
                rows.append((entry.case, vector))
            except ScanError as error:
                rejected.append(Rejection(entry.case.path, str(error)))
            bar.step()
    finally:
        bar.close()
    if not rows:
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in rejected[:3])
        raise InputError(f"no scan could be used {reasons}".rstrip())
    cases, vectors = zip(*rows)
    ids, patients, paths = zip(*((case.id, case.patient, case.path) for case in cases))
    return Embedded(list(ids), list(patients), list(paths), np.stack(vectors), rejected)


def scans_of(
    source: str | Path, cache: str | Path, settings: PrepareSettings, *, workers: int = 1, progress: bool = True
) -> tuple[list[PreparedEntry], list[Rejection], list[str]]:
    """Prepared scans of a folder, a list, or a cache of ``voco prepare``, which is taken as it is prepared.

    Returns:
        Entries, rejected scans, and sentences for the user.

    Raises:
        InputError: nothing usable, or a cache that was prepared otherwise than ``settings``.
    """
    source = Path(source)
    if source.is_dir() and any(source.glob(f"*{SUFFIX}")):
        return _of_cache(source, settings)
    manifest = build_manifest(source, progress=progress, workers=workers)
    result = prepare(manifest.cases, manifest.root, cache, settings, workers=workers, progress=progress)
    notes = [*manifest.notes, *doubt_notes(result.entries)]
    return result.entries, [*manifest.rejected, *result.rejected], notes


def _of_cache(folder: Path, settings: PrepareSettings) -> tuple[list[PreparedEntry], list[Rejection], list[str]]:
    entries, rejected, others = [], [], 0
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            volume = PreparedVolume.open(path)
            meta = volume.meta
        except ScanError as error:
            rejected.append(Rejection(path.name, str(error)))
            continue
        if not made_with(meta, settings):
            others += 1
            continue
        case = Case(meta["case"]["id"], meta["case"]["path"], meta["case"]["patient"], meta["case"]["series"])
        doubts = tuple((read_footer(path) or {}).get("facts", {}).get("notes", ()))
        entries.append(PreparedEntry(case, path, volume.shape, volume.spacing_mm, notes=doubts))
    if not entries:
        raise InputError(
            f"{folder} holds {others} scans prepared with other settings than this encoder and view need "
            f"({settings}) and {len(rejected)} damaged ones: give the folder of the scans instead"
        )
    notes = [f"{others} scans of {folder} are prepared with other settings and left out"] if others else []
    notes += doubt_notes(entries)
    return sorted(entries, key=lambda entry: entry.case.id), rejected, notes


def write_table(found: Embedded, out: str | Path) -> list[Path]:
    """Write features and ``rejected.csv`` beside them; each file appears whole.

    CSV and Parquet have the columns case, patient, path, and f0000, f0001, …; ``.npz`` has the arrays case, patient,
    path and features.

    Returns:
        What was written.
    """
    out = check_output(out)
    names = {"case": found.cases, "patient": found.patients, "path": found.paths}
    with whole(out) as place:
        if out.suffix == ".npz":
            arrays = {name: np.array(values) for name, values in names.items()}
            with open(place, "wb") as file:
                np.savez_compressed(file, **arrays, features=found.features)
        else:
            import pandas as pd

            columns = {f"f{i:04d}": found.features[:, i] for i in range(found.features.shape[1])}
            table = pd.DataFrame(names | columns)
            table.to_csv(place, index=False) if out.suffix == ".csv" else table.to_parquet(place, index=False)
    rejected = out.parent / "rejected.csv"
    write_rejected(rejected, found.rejected)
    return [out, rejected]


def run(args) -> Iterator[str]:
    """``voco embed``: lines for the console as the work goes on."""
    import time

    import torch

    from voco.transfer.features import default_kind
    from voco.transfer.views import make_view

    out = check_output(args.out)
    if args.workers < 1 or args.chunk < 1:
        raise InputError(f"--workers and --chunk must be at least 1, found {args.workers} and {args.chunk}")
    if not Path(args.source).exists():
        raise InputError(f"{args.source} does not exist; expected a folder with scans, a CSV or JSON, or a cache")
    device = _device(args.device)
    encoder = encoder_of(args.encoder, args.weights).to(device)
    view = make_view(args.view or default_kind(encoder), encoder.input_spec, crop_body=not args.keep_air)
    yield f"{encoder.name}: {encoder.num_features} features, {view.text}, on {device}"
    cache = Path(args.cache) if args.cache else out.parent / "cache"
    entries, rejected, notes = scans_of(
        args.source, cache, replace(view.prepare_settings(), offset=args.offset), workers=args.workers
    )
    yield from (f"note: {note}" for note in notes)
    start = time.monotonic()
    dtype = torch.bfloat16 if args.bf16 else None
    found = embed_entries(encoder, entries, view=view, dtype=dtype, chunk=args.chunk)
    found.rejected[:0] = rejected
    seconds = (time.monotonic() - start) / len(found.cases)
    yield f"embedded {len(found.cases)} scans, rejected {len(found.rejected)}, {seconds:.2f} s per scan"
    yield from map(str, write_table(found, out))


def _device(name: str):
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device is auto, cpu, cuda or cuda:1 …; found {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that torch can use; leave it out for the CPU")
    return device
