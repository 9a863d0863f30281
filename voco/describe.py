"""What ``voco inspect`` prints. Nothing here shows who a patient is: no names, numbers or UIDs."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from voco.describe_weights import describe_encoder, describe_weights, table
from voco.errors import InputError
from voco.weights import SUFFIXES as WEIGHTS_SUFFIXES


def describe(path: Path) -> Iterator[str]:
    """Lines about a scan, a folder of scans, a prepared scan, a cache, an encoder or a run.

    Raises:
        InputError: nothing is there, or it is none of these.
    """
    from voco.data.cache import SUFFIX
    from voco.data.read import is_volume_file

    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_dir():
        if (path / "run.json").is_file():
            return _run(path)
        if (path / "config.json").is_file() or (path / "encoder" / "config.json").is_file():
            return describe_encoder(path)
        if any(path.glob(f"*{SUFFIX}")):
            return _cache(path)
        return _folder(path)
    if path.name.endswith(SUFFIX):
        return _prepared(path)
    if path.suffix in (".csv", ".tsv", ".json") and path.name != "config.json":
        return _cohort(path)
    if is_volume_file(path):
        return _scan(path)
    if path.suffix in WEIGHTS_SUFFIXES or path.name == "config.json":
        return describe_weights(path)
    return _scan(path)


def _mm(spacing) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing) + " mm (D H W)"


def _size(shape) -> str:
    return " x ".join(str(n) for n in shape) + " (D H W: toward head, back, left)"


def _hu(array) -> dict[str, str]:
    import numpy as np

    low, one, half, most, high = np.percentile(array[::2, ::2, ::2], [0, 1, 50, 99, 100])
    return {
        "HU": f"{low:.0f} to {high:.0f}; 1 % {one:.0f}, median {half:.0f}, 99 % {most:.0f}",
        "air": f"{np.mean(array[::2, ::2, ::2] < -500):.0%} of the voxels are below -500 HU",
    }


def _scan(path: Path) -> Iterator[str]:
    from voco.data.read import read_volume

    volume = read_volume(path)
    slices = volume.slices or ()
    kept = sum(info.kept for info in slices)
    rows = {
        "kind": "DICOM series" if volume.source.series else "scan",
        "voxels": _size(volume.array.shape),
        "spacing": _mm(volume.spacing_mm),
        "extent": _mm(n * mm for n, mm in zip(volume.array.shape, volume.spacing_mm)),
        **_hu(volume.array),
        "slices": f"{len(slices)}, {kept} kept" if slices else "",
    }
    yield from table(rows)
    for note in volume.notes:
        yield f"note: {note}"


def _prepared(path: Path) -> Iterator[str]:
    import numpy as np

    from voco.data.cache import PreparedVolume, read_footer

    volume = PreparedVolume.open(path)
    volume.verify()
    footer = read_footer(path) or {}
    meta, size = volume.meta, path.stat().st_size
    settings = meta.get("settings", {})
    source = meta.get("source", {})
    yield from table(
        {
            "kind": "prepared scan (all checksums right)",
            "voxels": _size(volume.shape),
            "spacing": _mm(volume.spacing_mm),
            "bytes": f"{size} ({size / np.prod(volume.shape):.2f} per voxel)",
            **_hu(volume.read((0, 0, 0), volume.shape)),
            "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
            "was": f"{_size(source['shape'])} at {_mm(source['spacing_mm'])}" if source else "",
            "slices": len(meta["slices"]) if meta.get("slices") else "",
            "made by": f"voco {meta.get('version', '?')}",
        }
    )
    for note in footer.get("facts", {}).get("notes", ()):
        yield f"note: {note}"


def _cache(path: Path) -> Iterator[str]:
    import numpy as np

    from voco.data.cache import SUFFIX, read_footer

    found = [read_footer(item) for item in path.glob(f"*{SUFFIX}")]
    good = [footer for footer in found if footer is not None]
    voxels = sum(int(np.prod(footer["shape"])) for footer in good)
    total = sum(footer["bytes"] for footer in good)
    spacings = Counter(_mm(footer["spacing_mm"]) for footer in good).most_common(3)
    yield from table(
        {
            "kind": "cache of prepared scans",
            "scans": len(good),
            "damaged": len(found) - len(good) or "",
            "bytes": f"{total / 1e9:.3f} GB ({total / max(1, voxels):.2f} per voxel)",
            "spacing": "; ".join(f"{count} at {name}" for name, count in spacings),
        }
    )


def _folder(path: Path) -> Iterator[str]:
    from voco.data.manifest import build_manifest

    manifest = build_manifest(path)
    if len(manifest.cases) == 1 and not manifest.rejected and len(manifest.series) == 1:
        yield from _scan(path)
        return
    yield from _listing(manifest)


def _cohort(path: Path) -> Iterator[str]:
    from voco.data.manifest import build_manifest

    yield from _listing(build_manifest(path))


def _listing(manifest) -> Iterator[str]:
    kinds = Counter("DICOM" if c.files else _format(c.path) for c in manifest.cases)
    yield from table(
        {
            "kind": "cohort",
            "scans": len(manifest.cases),
            "patients": len({case.patient for case in manifest.cases}),
            "formats": ", ".join(f"{count} {name}" for name, count in kinds.most_common()),
            "rejected": len(manifest.rejected) or "",
        }
    )
    for note in manifest.notes:
        yield f"note: {note}"
    for item in manifest.rejected[:10]:
        yield f"rejected: {item.path}: {item.reason}"
    if len(manifest.rejected) > 10:
        yield f"and {len(manifest.rejected) - 10} more; voco prepare writes them all to rejected.csv"
    if manifest.series:
        yield ""
        yield f"{'series':<12} {'plane':<10} {'slices':>6}  {'spacing mm':<24} {'kernel':<10} decision: reason"
    for row in manifest.series[:50]:
        yield (
            f"{row['kind']:<12} {row['orientation']:<10} {row['slices']:>6}  {row['spacing_mm']:<24} "
            f"{row['kernel']:<10} {row['decision']}: {row['reason']}"
        )
    if len(manifest.series) > 50:
        yield f"and {len(manifest.series) - 50} more; voco prepare writes them all to series.csv"


def _format(name: str) -> str:
    from voco.data.read import VOLUME_SUFFIXES

    return next((suffix[1:] for suffix in reversed(VOLUME_SUFFIXES) if name.lower().endswith(suffix)), "other")


_RUN_METRICS = (
    "step",
    "loss",
    "heldout/intra",
    "heldout/encoder_position_accuracy_balanced",
    "heldout/encoder_disjoint_accuracy_balanced",
    "heldout/mean_cosine",
    "heldout/top1",
    "heldout/top1_balanced",
    "heldout/features_top1_balanced",
)


def _run(path: Path) -> Iterator[str]:
    try:
        record = json.loads((path / "run.json").read_text())
    except ValueError as error:
        raise InputError(f"{path / 'run.json'} is no valid JSON: {error}") from None
    skip = ("sessions", "load_report")
    rows = {key: _short(value) for key, value in record.items() if key not in skip}
    metrics = path / "metrics.jsonl"
    if metrics.is_file() and (lines := metrics.read_text().splitlines()):
        rows["last row"] = _short({k: v for k, v in json.loads(lines[-1]).items() if k in _RUN_METRICS})
    saved = sorted(item.name for item in (path / "checkpoints").glob("step-*"))
    rows["checkpoints"] = f"{len(saved)}, newest {saved[-1]}" if saved else "none"
    yield from table({"kind": "run", **rows})
    if (path / "encoder" / "config.json").is_file():
        yield ""
        yield from describe_encoder(path / "encoder")
        return
    for report in ("health.json", "video.json"):  # of a run under way; the encoder of a finished one carries it
        with contextlib.suppress(OSError, ValueError, KeyError):
            verdict = json.loads((path / report).read_text())["verdict"]
            yield from ("", "did it learn?", *(f"  {line}" for line in verdict))


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items() if not isinstance(item, (dict, list)))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
