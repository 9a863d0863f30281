"""Write whole cohorts of synthetic patients to disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from voco.data.synthetic import PHANTOM_LIST
from voco.errors import InputError
from voco.phantom.anatomy.patient import Patient, make_patient
from voco.phantom.disease import LAYOUTS as DISEASE_LAYOUTS
from voco.phantom.disease import layout as load_layout
from voco.phantom.disease import write_group
from voco.phantom.layouts.writers import write_dicom, write_nifti
from voco.phantom.video import write_clip, write_clip_list

FORMATS = ("mixed", "nifti", "dicom")
SITES = ("site_a", "site_b", "site_c")
MOST_SEVERE = 4.0


def write_cohort(
    out: str | Path,
    *,
    layout: str = "folder",
    cases: int,
    seed: int = 0,
    format: str = "mixed",
    size: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    severity: float = 1.0,
    workers: int = 2,
    progress: bool = True,
) -> list[Path]:
    """Write synthetic patients in one of the layouts; the same arguments give the same bytes.

    Args:
        out: folder to fill; made if missing.
        layout: ``"folder"``, a small hospital export (docs/phantoms.md); ``"video"``, labeled clips (docs/video.md);
            format, size and spacing mean nothing for them; or patients with disease in the layout and format of a
            public data set: ``"rsna_pe"``, ``"lidc"``, ``"imageclef_tb"``, ``"rsna_trauma"``.
        cases: patients, or clips. Patient i is the same in a cohort of 5 and in one of 500.
        seed: cohort.
        format: ``"nifti"``, ``"dicom"``, or ``"mixed"``: each patient draws one.
        size: voxels (D, H, W) instead of the drawn ones.
        spacing_mm: voxel size (D, H, W) instead of the drawn one, e.g. ``(3, 3, 3)`` for a small, quick cohort.
        severity: size and contrast of planted findings: 0 nothing (labels stay), 1 moderate, 2 gross.
        workers: processes.
        progress: draw a progress bar.

    Returns:
        One path per scan: a NIfTI file or the folder of a DICOM series. One per clip.

    Raises:
        InputError: unknown layout or format, fewer than one case, a severity, size or spacing that cannot be used.
    """
    if layout not in (*_LAYOUTS, *DISEASE_LAYOUTS):
        raise InputError(f"unknown phantom layout {layout!r}; known: {', '.join((*_LAYOUTS, *DISEASE_LAYOUTS))}")
    if format not in FORMATS:
        raise InputError(f"unknown phantom format {format!r}; known: {', '.join(FORMATS)}")
    if cases < 1:
        raise InputError(f"cases is {cases}: expected at least 1")
    if not 0 <= severity <= MOST_SEVERE:
        raise InputError(f"severity is {severity}: expected 0 (nothing planted) to {MOST_SEVERE:g}; 1 is moderate")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if layout in DISEASE_LAYOUTS:
        module = load_layout(layout)
        groups = range(-(-cases // module.GROUP))
        jobs = [(layout, out, seed, group, cases, float(severity), size, spacing_mm) for group in groups]
        done = _run(write_group, jobs, workers)
        unit = "anatomy"
    else:
        jobs = [(out, seed, index, format, size, spacing_mm) for index in range(cases)]
        done = ([result] for result in _run(_LAYOUTS[layout], jobs, workers))
        unit = "clip" if layout == "video" else "patient"
    if progress:
        from tqdm import tqdm

        done = tqdm(done, total=len(jobs), unit=unit, desc="phantoms")
    results = [result for group in done for result in group]
    rows = [row for _, row in results]
    if layout == "video":
        write_clip_list(out, rows)
    elif layout in DISEASE_LAYOUTS:
        module.write_tables(out, rows)
        rows = [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]
    (out / PHANTOM_LIST).write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    return [path for paths, _ in results for path in paths]


def _run(write: Callable, jobs: list[tuple], workers: int) -> Iterator:
    if workers <= 1 or len(jobs) == 1:
        yield from map(write, jobs)
        return
    import multiprocessing

    # Spawned processes start clean: no thread pool of the parent can be inherited half-way through its work.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, jobs)


def _write_folder(job: tuple) -> tuple[list[Path], dict]:
    """One patient of the ``folder`` layout: nested by site, either format, a few studies with more than one series."""
    from voco.rng import derive_seed

    out, seed, index, format, size, spacing_mm = job
    rng = np.random.default_rng(derive_seed(seed, "phantom files", index))
    site = SITES[int(rng.integers(len(SITES)))]
    as_dicom = rng.random() < 0.5 if format == "mixed" else format == "dicom"
    patient = make_patient(seed, index, size=size, spacing_mm=spacing_mm)
    row = {**patient.parameters, "spacing_mm": patient.spacing_mm, "size": patient.scan.shape}
    if not as_dicom:
        path = out / site / f"{patient.name}.nii.gz"
        if rng.random() < 0.5:
            path = out / site / patient.name / "ct_chest.nii.gz"
        write_nifti(
            path,
            patient.scan,
            patient.spacing_mm,
            patient.origin_mm,
            patient.scanner.orientation,
            patient.scanner.data_type,
        )
        return [path], {**row, "paths": [path.relative_to(out).as_posix()]}
    extra = rng.random() < 0.25 or (index % 8 == 1)
    paths = _dicom_study(out / "export" / site / patient.name, patient, seed, index, extra)
    return paths, {**row, "paths": [path.relative_to(out).as_posix() for path in paths]}


def _dicom_study(folder: Path, patient: Patient, seed: int, index: int, extra: bool) -> list[Path]:
    """A study as a scanner exports it; with ``extra``, a scout and a thick reconstruction beside the thin one."""
    common = {"patient": patient.name, "key": ("phantom", seed, index), "sex": patient.anatomy.sex}
    sharp = patient.scanner.kernel == "sharp"
    kernel = "B70f" if sharp else "B31f"
    thin = folder / "ST1" / "SE2"
    write_dicom(
        thin, patient.scan, patient.spacing_mm, patient.origin_mm, series="thin", number=2, kernel=kernel,
        description=f"CHEST {patient.spacing_mm[0]:.1f} {kernel}", padding=patient.scanner.padding, **common,
    )  # fmt: skip
    if not extra:
        return [thin]
    step = 2 if patient.spacing_mm[0] >= 2 else 4
    count = len(patient.scan) // step
    # Averaging the stored slices keeps padding: it is the same in every slice.
    thick = patient.scan[: count * step].reshape(count, step, *patient.scan.shape[1:]).mean(axis=1)
    dz, dy, dx = patient.spacing_mm
    x, y, z = patient.origin_mm
    write_dicom(
        folder / "ST1" / "SE3", np.rint(thick).astype(np.int16), (dz * step, dy, dx), (x, y, z + 0.5 * dz * (step - 1)),
        series="thick", number=3, kernel="B31f", description=f"CHEST {dz * step:.1f} B31f",
        padding=patient.scanner.padding, **common,
    )  # fmt: skip
    _write_scout(folder / "ST1" / "SE1", patient, common)
    return [thin, folder / "ST1" / "SE3"]


def _write_scout(folder: Path, patient: Patient, common: dict) -> None:
    """A frontal localizer: one coronal image of summed attenuation."""
    import pydicom

    dz, _, dx = patient.spacing_mm
    x, y, z = patient.origin_mm
    path_length = np.maximum(patient.hu, -1000).astype(np.float32).mean(axis=1) + 1000
    image = np.clip(path_length[::-1] * 1.2 - 400, -1000, 1200).astype(np.int16)
    (path,) = write_dicom(
        folder, image[None], (1.0, dz, dx), (x, y, z), series="scout", number=1, kernel="T20f",
        description="TOPOGRAM 0.6 T20f",        image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), **common,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    dataset.ImagePositionPatient = [f"{v:.4f}" for v in (x, 0.0, z + dz * (len(patient.scan) - 1))]
    dataset.save_as(path, enforce_file_format=True)


def _write_clip(job: tuple) -> tuple[list[Path], dict]:
    """One clip of the ``video`` layout: class folders, several containers, a list with the groups."""
    out, seed, index, *_ = job
    path, row = write_clip(out, seed, index)
    return [path], row


_LAYOUTS = {"folder": _write_folder, "video": _write_clip}
