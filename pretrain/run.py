"""Pretrain an encoder: ``accelerate launch pretrain/run.py --config NAME --data.root SCANS --out runs/x``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.config import SCHEMA, check, check_same_scans, check_same_settings, notes
from voco.config import flatten, parse, save_yaml, to_dict
from voco.errors import InputError

_TIMED_STEPS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status: 0 (also after a clean stop), 2 for bad input, 130 interrupted."""
    try:
        return run(parse(SCHEMA, argv))
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is prepared and the last checkpoint", file=sys.stderr)
        return 130


def run(config: dict) -> int:
    """One run from settings to encoder, alone in its folder."""
    from voco.engine.launch import check_precision, check_trackers, launched_rank
    from voco.engine.lock import FolderLock
    from voco.engine.signals import die_with_parent

    rank, world = launched_rank()
    check(config, world)
    check_precision(config["train"].precision)
    check_trackers([] if config["plan"] else config["log"].with_)
    die_with_parent()
    alone = rank == 0 and not config["plan"]
    with FolderLock(Path(config["out"])) if alone else contextlib.nullcontext():
        return _run(config, rank, world)


def _run(config: dict, rank: int, world: int) -> int:
    """Reads top to bottom: prepare data, build, train, export."""
    from voco.engine.launch import build_accelerator, start_trackers
    from voco.engine.log import MetricLog
    from voco.engine.loop import LoopState, explain_out_of_memory, resolve_resume
    from voco.engine.record import RunRecord, describe_device
    from voco.engine.signals import StopRequest

    main_process = rank == 0

    def say(text: str) -> None:
        if main_process:
            print(text, file=sys.stderr, flush=True)

    out, train = Path(config["out"]), config["train"]
    resume = None if config["plan"] else resolve_resume(train.resume, out)
    if resume is not None:
        check_same_settings(resume, config)
        if _is_finished(out, resume, train.steps):
            say(f"{out} is already finished ({train.steps} steps); its encoder is in {out / 'encoder'}")
            return 0
    encoder = _build_encoder(config)
    method = _build_method(config, encoder)  # refuses crops that do not fit, before hours of preparing
    cohort = _prepare_data(config, encoder.input_spec, rank, world, say)
    encoder.input_spec = _as_fed(encoder.input_spec, config)
    if resume is not None:
        check_same_scans(resume, cohort)
    if main_process and not config["plan"]:
        cohort.write(out)
        save_yaml(config, out / "config.yaml")
    cohort.check(config["data"].max_rejected)
    for note in notes(config, world, cohort.counts):
        say(f"note: {note}")

    trackers = [] if config["plan"] else config["log"].with_
    accelerator = build_accelerator(
        precision=train.precision,
        out=out,
        trackers=trackers,
        find_unused=config["method"].options.embedding != "pyramid",
        threads=train.threads,
    )
    _check_agreement(accelerator, cohort.fingerprint)
    with explain_out_of_memory(_MEMORY_SETTINGS):
        method.to(accelerator.device)
        if config["plan"]:
            return _plan(config, cohort, accelerator, method, say)
    record = RunRecord(out, active=main_process)
    log = MetricLog(out, accelerator)
    state = LoopState()
    try:
        with StopRequest() as stop, explain_out_of_memory(_MEMORY_SETTINGS):
            goes_on = resume is not None and _is_own(resume, out)
            monitor = _start_monitor(config, cohort, encoder, accelerator, goes_on) if main_process else None
            model, optimizer, checkpoints = _ready_to_train(config, accelerator, method, out)
            if resume is not None:
                state = LoopState.from_dict(checkpoints.load(resume, method, optimizer))
                say(f"resumed {resume.name} of {resume.parent.parent}")
            log.rewind(state.step if goes_on else None)
            start_trackers(accelerator, flatten(to_dict(config)), names=trackers, out=out, resumed_at=state.step)
            record.update(**_facts(config, cohort, encoder, accelerator))
            record.session(first_step=state.step, **describe_device(accelerator))
            if monitor is not None and state.step == 0 and resume is None:
                log.metrics(0, monitor.report(method, 0, accelerator.device, _autocast_dtype(accelerator)))
                accelerator.log(monitor.constants(), step=0)
            accelerator.wait_for_everyone()
            state = _train(config, cohort, accelerator, model, optimizer, state, checkpoints, log, stop, monitor)
            finished = state.step >= train.steps
            _finish(config, cohort, accelerator, method, log, record, state, monitor, finished, stop.received)
    except BaseException as error:
        record.close("failed", error=f"{type(error).__name__}: {error}"[:500], last_step=state.step)
        raise
    finally:
        accelerator.end_training()
    return 0


_MEMORY_SETTINGS = (
    "--train.batch_size (or raise --train.accumulate), --method.geometry.crop, --encoder.name, or turn on "
    "--encoder.activation_checkpointing true and --train.precision bf16"
)


def _check_agreement(accelerator, fingerprint: str) -> None:
    """Every process must have the same scans in the same order, or they would train on a mixture in silence."""
    from accelerate.utils import gather_object

    if len(found := set(gather_object([fingerprint]))) > 1:
        raise InputError(f"processes found different scans ({sorted(found)}), did files change just now? Start again")


def _is_own(resume: Path, out: Path) -> bool:
    return resume.resolve().parent == (out / "checkpoints").resolve()


def _is_finished(out: Path, resume: Path, steps: int) -> bool:
    """Whether the checkpoint is the last one of this very folder, and the run went on to its end after it."""
    import json

    from voco.engine.checkpoint import folder_name

    if not (_is_own(resume, out) and resume.name == folder_name(steps) and (out / "run.json").is_file()):
        return False
    ended = json.loads((out / "run.json").read_text()).get("state") == "finished"
    return ended and (out / "encoder" / "config.json").is_file()


def _build_encoder(config: dict, *, like=None):
    """The encoder with the weights asked for, or, given ``like``, a fresh one of the same kind and input."""
    import torch

    from voco.encoders import create_encoder
    from voco.rng import derive_seed

    settings = config["encoder"]
    torch.manual_seed(derive_seed(config["seed"], "init"))
    if like is not None:
        return create_encoder(like.name, input_spec=like.input_spec, **like.arguments)
    arguments = {"depth_stride": settings.depth_stride} if settings.depth_stride else {}
    encoder = create_encoder(settings.name, checkpoint=settings.weights, window=settings.window or None, **arguments)
    encoder.set_grad_checkpointing(settings.activation_checkpointing)
    return encoder


def _as_fed(spec, config: dict):
    """The encoder's input spec with the geometry that it is trained on, which its export must state."""
    from dataclasses import replace

    from voco.data.resample import parse_spacing

    settings, numbers = config["method"], None
    geometry, prepared = settings.geometry, parse_spacing(_spacing(config, spec))
    if settings.region != "whole" and None not in prepared:  # whole volumes are resized, whatever they measure
        shrunk = zip(prepared, geometry.size, geometry.network_shape)
        numbers = tuple(mm * cut / fed for mm, cut, fed in shrunk)
    return replace(spec, spacing_mm=numbers, size=geometry.network_shape)


def _spacing(config: dict, spec) -> list:
    """Spacing of the prepared volumes: the user's, else what the encoder asks for where a voxel has a fixed size."""
    native = config["method"].region == "whole" or spec.spacing_mm is None
    return config["data"].spacing or (["native"] if native else list(spec.spacing_mm))


def _prepare_data(config: dict, spec, rank: int, world: int, say):
    from voco.data.cohort import load_cohort
    from voco.data.prepare import PrepareSettings

    data = config["data"]
    return load_cohort(
        data.root,
        Path(data.cache) if data.cache else Path(config["out"]).parent / "cache",
        PrepareSettings(spacing_mm=_spacing(config, spec), crop_body=data.crop_body),
        select=data.select,
        exclude=data.exclude,
        patient_regex=data.patient_regex,
        heldout=data.heldout,
        seed=config["seed"],
        workers=data.workers,
        rank=rank,
        world=world,
        say=say,
    )


def _build_method(config: dict, encoder):
    import torch

    from voco.methods.voco3d import VoCo3D
    from voco.rng import derive_seed

    settings = config["method"]
    torch.manual_seed(derive_seed(config["seed"], "heads"))
    return VoCo3D(encoder, settings.geometry, settings.augmentation, settings.options)


def _loader(config: dict, cohort, method, accelerator, start: int, steps: int):
    from voco.data.dataset import StepSampler, WindowDataset, make_loader

    data, train, settings = config["data"], config["train"], config["method"]
    dataset = WindowDataset(
        [[entry.path for entry in patient] for patient in cohort.train],
        size=settings.geometry.window,
        region=settings.region,
        draws=method.sampler,
        seed=config["seed"],
    )
    sampler = StepSampler(
        start, steps, train.batch_size, train.accumulate, accelerator.process_index, accelerator.num_processes
    )
    pin = accelerator.device.type == "cuda"
    return make_loader(dataset, sampler, workers=data.workers, timeout=data.timeout, pin=pin)


def _ready_to_train(config: dict, accelerator, method, out: Path):
    from voco.engine.checkpoint import Checkpoints
    from voco.engine.optim import make_optimizer

    train = config["train"]
    optimizer = make_optimizer(
        method, lr=train.lr, weight_decay=train.weight_decay, betas=train.betas, amsgrad=train.amsgrad
    )
    model, optimizer = accelerator.prepare(method, optimizer)
    return model, optimizer, Checkpoints(out / "checkpoints", keep=train.keep, accelerator=accelerator)


def _start_monitor(config: dict, cohort, encoder, accelerator, goes_on: bool):
    """The health report on held-out scans, its lines measured (once a run); None without held-out scans."""
    from voco.health.monitor import HealthMonitor
    from voco.reference import reference_lines

    entries = [entry for patient in cohort.heldout for entry in patient]
    if not entries:
        return None
    settings, scope = config["method"], config["eval"]
    monitor = HealthMonitor(
        Path(config["out"]),
        volumes=[e.path for e in entries],
        names=[e.case.id for e in entries],
        geometry=settings.geometry,
        region=settings.region,
        hu_windows=encoder.input_spec.windows,
        references=reference_lines(
            settings.geometry,
            negative=settings.options.negative,
            positive_weight=settings.options.positive_weight,
        ),
        per_scan=scope.windows,
        queries=scope.queries,
        max_scans=scope.scans,
        seed=config["seed"],
        warmup=config["train"].warmup,
    )
    build = lambda: _build_method(config, _build_encoder(config, like=encoder))  # noqa: E731
    monitor.measure_lines(build, accelerator.device, reuse=goes_on)
    return monitor


def _autocast_dtype(accelerator):
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def _report(config: dict, accelerator, method, log, monitor, step: int) -> dict[str, float]:
    """Score the method now, draw every picture, and say at once what should not wait for the end."""
    from voco.rng import generator

    dtype = _autocast_dtype(accelerator)
    row = monitor.report(method, step, accelerator.device, dtype)
    accelerator.log(monitor.constants(), step=step)
    for sentence in monitor.warnings():
        log.say(f"step {step}: {sentence}")
    draws = method.sampler(generator(config["seed"], "figure"))
    monitor.draw(method, [*log.rows(), {"step": step, **row}], draws, accelerator.device, dtype)
    return row


def _train(config: dict, cohort, accelerator, model, optimizer, state, checkpoints, log, stop, monitor):
    from functools import partial

    from voco.data.dataset import batches_of
    from voco.engine.loop import LoopSettings, fit
    from voco.engine.optim import learning_rate

    train = config["train"]
    method = accelerator.unwrap_model(model)

    def evaluate(step: int) -> dict[str, float]:
        return _report(config, accelerator, method, log, monitor, step) if monitor is not None else {}

    def milestone(step: int) -> None:
        _export(config, cohort, method, Path(config["out"]) / "milestones" / f"step-{step:08d}" / "encoder", step)

    with batches_of(_loader(config, cohort, method, accelerator, state.step, train.steps)) as batches:
        return fit(
            accelerator,
            model,
            optimizer,
            batches,
            settings=LoopSettings(
                steps=train.steps,
                learning_rate=partial(
                    learning_rate, steps=train.steps, lr=train.lr, warmup=train.warmup, floor=train.lr_floor
                ),
                accumulate=train.accumulate,
                clip=train.clip,
                log_every=config["log"].every,
                save_every=train.save_every,
                eval_every=config["eval"].every,
                milestones=train.milestones,
                max_skipped=train.max_skipped,
            ),
            state=state,
            checkpoints=checkpoints,
            log=log,
            stop=stop,
            evaluate=evaluate if cohort.heldout else None,
            on_milestone=milestone,
        )


def _facts(config: dict, cohort, encoder, accelerator) -> dict:
    """Entries of ``run.json`` that do not change while the run goes on."""
    report = encoder.load_report
    return {
        "method": config["method"].name,
        "encoder": encoder.name,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "seed": config["seed"],
        "processes": accelerator.num_processes,
        "data_fingerprint": cohort.fingerprint,
        "data": cohort.counts,
        "load_report": report.to_dict() if report is not None else None,
    }


def _export(config: dict, cohort, method, folder: Path, step: int, monitor=None) -> Path:
    """Write the encoder as it is now, with its history."""
    from dataclasses import asdict

    from voco import __version__
    from voco.weights.export import save_encoder

    settings, train = config["method"], config["train"]
    results = {}
    if monitor is not None and monitor.latest is not None:
        results = {name: monitor.latest.score(name) for name in _CARD_SCORES if monitor.latest.score(name) is not None}
    provenance = {
        "method": settings.name,
        "preset": settings.preset,
        "data": "unlabeled CT of the user",
        "cases": cohort.counts["train_scans"],
        "patients": cohort.counts["train_patients"],
        "data_fingerprint": cohort.fingerprint,
        "steps": step,
        "volumes_seen": step * train.batch_size,
        "settings": flatten(asdict(settings))
        | {"lr": train.lr, "batch_size": train.batch_size, "seed": config["seed"]},
        "results": results,
        "library_version": __version__,
        "citation": _CITATION,
    }
    return save_encoder(method.encoder, folder, provenance)


_CARD_SCORES = ("intra", "position_accuracy", "position_accuracy_balanced", "disjoint_accuracy_balanced", "mean_cosine")
_CITATION = (
    "Wu, Zhuang, Chen: VoCo (CVPR 2024, arXiv 2402.17300); Large-Scale 3D Medical Image Pre-training (arXiv 2410.09890)"
)


def _finish(config, cohort, accelerator, method, log, record, state, monitor, finished: bool, signal_name) -> None:
    """Export and say where to look; only the main process has anything to do."""
    if not accelerator.is_main_process:
        return
    out = Path(config["out"])
    if not finished:
        record.close("stopped", signal=signal_name, last_step=state.step)
        log.say(f"stopped by {signal_name} after step {state.step}; the same command continues from there")
        return
    if monitor is not None and monitor.latest is None:  # killed after the last checkpoint: its row is written already
        _report(config, accelerator, method, log, monitor, state.step)
    folder = _export(config, cohort, method, out / "encoder", state.step, monitor)
    record.close("finished", last_step=state.step, skipped_steps=state.skipped)
    lines = ["", f"finished {state.step} steps; wrote"]
    lines += [f"  {folder}   load with: voco.load_encoder({str(folder)!r})"]
    files = ("figures", "metrics.jsonl", "run.json", "rejected.csv")
    lines += [f"  {out / name}" for name in files if (out / name).exists()]
    lines += [f"  curves: tensorboard --logdir {out}"] if "tensorboard" in config["log"].with_ else []
    if monitor is not None:
        lines += ["did it learn?", *(f"  {sentence}" for sentence in monitor.verdict)]
    for line in lines:
        log.say(line)


def _plan(config: dict, cohort, accelerator, method, say) -> int:
    from voco.data.dataset import batches_of
    from voco.engine.plan import make_plan

    train = config["train"]
    model, optimizer, _ = _ready_to_train(config, accelerator, method, Path(config["out"]))
    with batches_of(_loader(config, cohort, method, accelerator, 0, _TIMED_STEPS + 3)) as batches:
        plan = make_plan(
            accelerator,
            model,
            optimizer,
            batches,
            timed=_TIMED_STEPS,
            batch_size=train.batch_size,
            steps=train.steps,
            keep=train.keep,
        )
    say(plan.text())
    prepared = sum(entry.bytes for patients in (cohort.train, cohort.heldout) for scans in patients for entry in scans)
    say(f"  disk: {prepared / 1e9:.2f} GB of prepared scans (already there)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
