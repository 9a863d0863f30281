"""Evaluate an encoder on a task: ``accelerate launch finetune/run.py --config NAME --data.root DATA --out runs/y``.

Reads top to bottom: settings, data set, encoder, view, split, prepared studies, then fold after fold: train or probe,
score, and at the end predictions, results and pictures. The test set is opened by ``--eval test`` alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from finetune.begun import begun_folders, check_same_data, check_same_split
from finetune.config import Command, check, schema
from voco.config import parse, save_yaml, to_dict
from voco.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status: 0 (also after a clean stop), 2 for bad input, 130 interrupted."""
    try:
        config = parse(schema(Command), argv)
        return plan(config) if config.pop("plan") else run(config)
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is prepared and the last checkpoint", file=sys.stderr)
        return 130


def plan(config: dict) -> int:
    """Print what a run would be; nothing is written."""
    from finetune.plan import print_plan
    from finetune.splitting import check_fold, make_split
    from voco.engine.launch import launched_rank

    rank, world = launched_rank()
    check(config, world)
    if rank == 0:
        encoder = build_encoder(config)
        settle_view(config, encoder)
        begun, _ = begun_folders(config) if config["train"].extend else ([], [])
        task, manifest, view, _ = _read(config, encoder, _to_stderr)
        splits = make_split(config, task, manifest, _to_stderr)
        check_fold(config, splits)
        # nothing is prepared here, so the split does not know which scans are there twice
        check_same_split([folder for folder in begun if not (folder / "duplicates.csv").exists()], splits)
        print_plan(config, task, manifest, encoder, view, splits, _to_stderr)
    return 0


def run(config: dict) -> int:
    """One run from settings to results, alone in its folder."""
    from voco.engine.launch import check_precision, check_trackers, launched_rank
    from voco.engine.lock import FolderLock
    from voco.engine.signals import die_with_parent

    rank, world = launched_rank()
    check(config, world)
    check_precision(config["train"].precision)
    check_trackers(config["log"].with_)
    die_with_parent()
    out = Path(config["out"])
    # folds of a job array share the folder of the run: each locks its own
    locked = out if config["fold"] < 0 else out / f"fold-{config['fold']}"
    with FolderLock(locked) if rank == 0 else contextlib.nullcontext():
        return _run(config, rank, world)


def _run(config: dict, rank: int, world: int) -> int:
    from finetune.cohort import prepare_studies
    from finetune.folds import Session, run_folds
    from finetune.splitting import check_fold, make_split, split_cohort
    from voco.engine.launch import build_accelerator
    from voco.engine.loop import explain_out_of_memory
    from voco.engine.record import RunRecord, describe_device
    from voco.engine.signals import StopRequest

    def say(text: str) -> None:
        if rank == 0:
            _to_stderr(text)

    out = Path(config["out"])
    encoder = build_encoder(config)
    settle_view(config, encoder)
    begun, changes = begun_folders(config)
    task, manifest, view, mask_channel = _read(config, encoder, say)
    check_fold(config, make_split(config, task, manifest))  # a wrong split is found before hours of preparing
    cache = Path(config["data"].cache or out.parent / "cache")
    cohort = prepare_studies(
        manifest, task, view, cache, mask_channel=mask_channel, workers=config["data"].workers,
        offset=config["data"].offset, rank=rank, world=world, say=say,
    )  # fmt: skip
    cohort, splits = split_cohort(config, task, cohort, cache, rank=rank, world=world, say=say)
    check_same_split(begun, splits)
    check_same_data(begun, cohort)
    if rank == 0:
        cohort.write(out, splits)
        save_yaml(config | {"fold": -1}, out / "config.yaml")
    cohort.check(config["data"].max_rejected)
    exposure = say_exposure(cohort, view, encoder, say)
    accelerator = build_accelerator(
        precision=compute_precision(config["train"].precision, config["mode"]),
        out=out,
        trackers=config["log"].with_,
        find_unused=True,
        threads=config["train"].threads,
    )
    record = RunRecord(locked_folder(config), active=rank == 0, plugins=config.get("plugins", ()))
    record.update(**_facts(config, task, encoder, view, cohort, accelerator))
    record.session(**describe_device(accelerator))
    with StopRequest() as stop:
        session = Session(
            config,
            task,
            view,
            cohort,
            splits,
            encoder,
            cache,
            accelerator,
            stop,
            record,
            say,
            exposure,
            changes=changes,
        )
        try:
            with explain_out_of_memory(_MEMORY_SETTINGS):
                done = run_folds(session)
        except BaseException as error:
            record.close("failed", error=f"{type(error).__name__}: {error}"[:500])
            raise
        if not done:
            record.close("stopped", signal=stop.received)
            say(f"stopped by {stop.received}; the same command continues from there")
            return 0
        if rank == 0 and config["fold"] < 0:
            from finetune.report import finish

            finish(session)
        if extended := next((f["extended"] for f in session.facts.values() if f.get("extended")), None):
            record.update(extended=extended)
        record.close("finished", folds={str(fold): facts for fold, facts in sorted(session.facts.items())})
    return 0


def _read(config: dict, encoder, say: Callable[[str], None]):
    """Task, its data set, view, and whether masks are a channel."""
    from finetune.cohort import check_varied

    task = build_task(config)
    manifest = task.read(config["data"].root)
    for note in manifest.notes:
        say(f"note: {note}")
    check_varied(task, manifest)
    if encoder.load_report is not None:
        say(f"weights: {encoder.load_report}")
    elif config["mode"] == "full" and config["train"].batchnorm == "frozen":
        say(
            "note: --train.batchnorm frozen without weights: the running statistics are those of no data, so BatchNorm "
            "normalises nothing"
        )
    view, mask_channel = build_view(config, task, encoder)
    check_together(config, task, view)
    return task, manifest, view, mask_channel


def build_task(config: dict):
    """The task with its options."""
    from voco.tasks import create_task

    options = {name: value for name, value in to_dict({"o": config["task"]})["o"].items() if name != "name"}
    return create_task(config["task"].name, **options)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


_MEMORY_SETTINGS = (
    "--train.batch_size (or raise --train.accumulate), --input.windows, --input.chunk, --input.size, or turn on "
    "--encoder.activation_checkpointing true (on a GPU also --train.precision bf16)"
)


def _facts(config: dict, task, encoder, view, cohort, accelerator) -> dict:
    """Entries of ``run.json`` that do not change while the run goes on."""
    report = encoder.load_report
    return {
        "task": f"{task.name} v{task.version}",
        "encoder": encoder.name,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "seed": config["seed"],
        "processes": accelerator.num_processes,
        "batch_statistics": _batch_statistics(config, encoder, view, cohort, accelerator.num_processes),
        "data_fingerprint": cohort.fingerprint,
        "data": cohort.counts,
        **({"notes": list(cohort.doubts)} if cohort.doubts else {}),
        "load_report": report.to_dict() if report is not None else None,
    }


def _batch_statistics(config: dict, encoder, view, cohort, world: int) -> dict:
    from voco.transfer.finetuner import batch_statistics

    train, windows = config["train"], 1
    if config["learn"] == "study":
        most = max(len(view.windows(study.shape)) for study in cohort.studies.values())
        windows = min(most, config["input"].windows or most)
    return batch_statistics(
        encoder,
        train.batchnorm if config["mode"] == "full" else "frozen",
        world=world,
        samples=train.batch_size // (train.accumulate * world),
        windows=windows,
        chunk=config["input"].chunk,
    )


def locked_folder(config: dict) -> Path:
    """The folder that this process writes ``run.json`` to."""
    out = Path(config["out"])
    return out if config["fold"] < 0 else out / f"fold-{config['fold']}"


def build_encoder(config: dict):
    """The encoder with the weights and the Hounsfield windows asked for."""
    import torch

    from voco.encoders import create_encoder
    from voco.rng import derive_seed
    from voco.transfer.model import check_reading

    settings = config["encoder"]
    torch.manual_seed(derive_seed(config["seed"], "init"))
    arguments = settings.arguments | ({"depth_stride": settings.depth_stride} if settings.depth_stride else {})
    window = config["input"].window
    pairs = list(zip(window[::2], window[1::2])) or None
    if config["task"] is not None and build_task(config).mask_use == "channel":
        pairs = _two_channels(settings, pairs)
    name = settings.name or _name_of(settings.weights)
    encoder = create_encoder(name, checkpoint=settings.weights, which=settings.which, window=pairs, **arguments)
    check_reading(encoder, config["head"])
    encoder.set_grad_checkpointing(settings.activation_checkpointing)
    encoder.input_spec = _with_statistics(encoder.input_spec, config["input"])
    return encoder


def _with_statistics(spec, settings):
    """The spec with the mean and standard deviation asked for."""
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if values and (len(values) != spec.channels or (name == "std" and min(values) <= 0)):
            raise InputError(
                f"--input.{name} takes {spec.channels} numbers, one per channel"
                f"{', above 0' if name == 'std' else ''}; found {values}"
            )
        if values:
            spec = replace(spec, **{name: tuple(values)})
    return spec


def _name_of(weights: str) -> str:
    """Which architecture a folder or tag of weights is of."""
    from voco.encoders import ENCODERS
    from voco.weights.folder import find_encoder_folder, read_config

    folder = find_encoder_folder(Path(weights)) if Path(weights).is_dir() else None
    if folder is not None:
        return read_config(folder)["arch"]
    arch = weights.partition(".")[0]
    if arch in ENCODERS and not Path(weights).exists():
        return arch
    raise InputError(
        f"--encoder.weights {weights} does not say which network it is; add --encoder.name (`voco inspect {weights}` "
        "tells what a file is)"
    )


def _two_channels(settings, pairs):
    """The Hounsfield window twice: once for the scan, once for the scan inside its mask."""
    from voco.encoders import create_encoder

    if pairs and len(pairs) != 1:
        raise InputError("--task.mask_use channel takes one Hounsfield window (--input.window LOW HIGH), used twice")
    if not pairs:
        pairs = create_encoder(settings.name or _name_of(settings.weights)).input_spec.windows[:1]
    return [*pairs, *pairs]


def settle_view(config: dict, encoder) -> None:
    """Replace ``view: auto`` by what it means, so that ``config.yaml`` says it."""
    from voco.transfer.features import default_kind

    if config["view"] == "auto":
        config["view"] = "resize" if config["mode"] == "full" else default_kind(encoder)


def compute_precision(precision: str, mode: str) -> str:
    """Frozen features are float32, as ``voco.embed`` gives them, unless another precision is asked for by name."""
    return "fp32" if precision == "auto" and mode != "full" else precision


def build_view(config: dict, task, encoder):
    """The view, and whether masks are a channel."""
    from voco.transfer.views import make_view

    settle_view(config, encoder)
    settings, use = config["input"], task.mask_use
    spacing = [None if value == "native" else value for value in settings.spacing]
    view = make_view(
        config["view"], encoder.input_spec, size=settings.size, spacing=spacing, stride=settings.stride,
        stored=settings.stored, crop_body=settings.crop_body, mask=use if use in ("crop", "fill") else "",
    )  # fmt: skip
    return view, use == "channel"


def check_together(config: dict, task, view) -> None:
    """Settings that are right or wrong only with this task and view, before any scan is prepared."""
    if config["learn"] == "window" and not (task.slice_labels and view.kind == "slice_windows"):
        raise InputError(
            f"--learn window needs labels of slices and --view slice_windows; task {task.name} with view {view.kind} "
            "has --learn study"
        )
    if task.unit == "voxel":
        raise InputError(f"task {task.name} scores voxels; this stage scores studies, and slices by their windows")
    train, turn = config["train"], config["augment"].turn_prob
    if config["mode"] == "full" and train.augment and turn > 0 and view.size[1] != view.size[2]:
        raise InputError(
            f"--augment.turn_prob {turn} turns windows by 90 degrees, which must be as high as wide; found "
            f"--input.size {' '.join(map(str, view.size))} (D H W)"
        )
    if train.class_weights == "task" and not task.class_weights():
        raise InputError(f"--train.class_weights task: task {task.name} has none; use balanced or none")


def say_exposure(cohort, view, encoder, say: Callable[[str], None]) -> dict:
    """Print what of a study reaches the encoder."""
    from voco.data.cache import PreparedVolume
    from voco.transfer.views import measure_exposure

    some = sorted(cohort.studies)[:: max(1, len(cohort.studies) // 8)][:8]
    volumes = [PreparedVolume.open(cohort.studies[name].paths[0]) for name in some]
    exposure = measure_exposure(view, encoder.input_spec, volumes)
    say(f"view: {view.text}; {exposure.text}")
    return asdict(exposure)


if __name__ == "__main__":
    sys.exit(main())
