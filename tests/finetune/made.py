"""Small labeled cohorts and settings for runs of the finetune stage that take a second."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.data.dicom_maker import positions, series, uid
from voco.data.layouts.rsna_pe import EXAM, IMAGE

SMALL = """
view: resize
task: {name: table}
encoder: {name: cnn3d_s}
input: {size: [24, 32, 32], window: [-200, 400], crop_body: false}
data: {workers: 0}
split: {test: 0.25, val: 0.34}
train: {steps: 6, batch_size: 4, lr: 1.0e-3, warmup: 2, save_every: 2, threads: 1, patience: 5}
score: {every: 3, bootstrap: 50, examples: 1}
log: {every: 1}
"""
SLICES = """
view: slice_windows
learn: window
task: {name: rsna_pe}
encoder: {name: cnn3d_s}
input: {size: [16, 32, 32], stride: [8], window: [-200, 400], crop_body: false}
data: {workers: 0}
head: {pooling: max}
split: {test: 0, val: 0.4}
train: {steps: 3, batch_size: 4, warmup: 1, threads: 1, balance: true, freeze_steps: 1}
score: {bootstrap: 20, examples: 0}
"""


def volume(seed: int, bright: bool, shape=(20, 36, 40)) -> np.ndarray:
    """Tissue that is different in every scan, with a bright block in positive ones; int16."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(0, 20, shape)
    coarse = rng.normal(0, 60, [-(-n // 6) for n in shape])
    hu += np.kron(coarse, np.ones((6, 6, 6)))[tuple(slice(n) for n in shape)]
    hu = hu.astype(np.int16)
    if bright:
        hu[tuple(slice(n // 4, n * 2 // 3) for n in shape)] += 250
    return hu


def write_scan(path: Path, seed: int, bright: bool) -> None:
    image = sitk.GetImageFromArray(volume(seed, bright))
    image.SetSpacing((2.0, 2.0, 3.0))
    sitk.WriteImage(image, str(path))


def write_table(path: Path, rows: Sequence[Sequence], columns=("path", "label", "patient", "site")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_cohort(root: Path, count: int = 16, patients: int = 12) -> list[tuple]:
    """NIfTI scans, every second one positive, and ``labels.csv``; returns its rows."""
    rows = []
    for number in range(count):
        write_scan(root / f"s{number:02d}.nii.gz", number, number % 2 == 0)
        patient = f"mrn-{7000 + number % patients}"
        rows.append((f"s{number:02d}.nii.gz", (number + 1) % 2, patient, "ab"[number % 3 == 0]))
    write_table(root / "labels.csv", rows)
    return rows


def write_pe(root: Path, count: int = 6, slices: int = 26) -> None:
    """Exams of DICOM slices and ``train.csv`` as in RSNA STR 2020; slices 4 to 8 of positive exams are positive."""
    rows = []
    for number in range(count):
        positive = number % 2 == 0
        hu = volume(number, False, (slices, 32, 32))
        hu[4:9, 8:20, 8:20] += 250 * positive
        name = f"exam{number}"
        study, own = uid(name), uid(name, "a")
        paths = series(
            root / "train" / study / own, hu, where=positions(slices), series="a", study=name, PatientID=name
        )
        exam = dict.fromkeys(EXAM, 0) | {"negative_exam_for_pe": int(not positive)}
        if positive:
            exam |= {"rv_lv_ratio_lt_1": 1, "leftsided_pe": 1}
        for k, path in enumerate(paths):
            sop = uid(name, "a", k + 1, "")
            path.rename(path.with_name(f"{sop}.dcm"))
            image = int(positive and 4 <= k <= 8)
            rows.append(
                {"StudyInstanceUID": study, "SeriesInstanceUID": own, "SOPInstanceUID": sop, IMAGE: image} | exam
            )
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def in_processes(function: Callable, *arguments, world: int = 1) -> list[int | None]:
    """Call a function in forked processes that see each other as ``accelerate launch`` lets them; their exit codes.

    A fork has everything imported, so this takes a second where a launcher takes twenty.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_call, args=(function, arguments, rank, world, port)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(90)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in started]


def _call(function: Callable, arguments: tuple, rank: int, world: int, port: int) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        os.environ["ACCELERATE_USE_CPU"] = "true"
    code = 99
    try:
        code = function(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code or 0)  # the parent's exit handlers are not this process's


def kill_at(module, name: str, call: int) -> None:
    """Let this process be killed, as by the kernel, when ``module.name`` is called for the n-th time."""
    plain, count = getattr(module, name), [0]

    def counted(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)

    setattr(module, name, counted)
