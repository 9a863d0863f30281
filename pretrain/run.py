"""Pretrain an encoder: ``accelerate launch pretrain/run.py --config NAME --data.root DATA --out runs/x``.

What depends on the kind of data lies in ``volumes.py`` (VoCo on CT) and ``videos.py`` (labeled clips): a job.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.config import FREE_ON_RESUME, LATER, SCHEMA, check, check_same_data
from pretrain.training import Training, autocast_dtype, ready_to_train, training_loader
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
    job = _job(config)
    check(config, world)
    job.check()
    check_precision(config["train"].precision)
    check_trackers([] if config["plan"] else config["log"].with_)
    die_with_parent()
    alone = rank == 0 and not config["plan"]
    with FolderLock(Path(config["out"])) if alone else contextlib.nullcontext():
        return _run(config, job, rank, world)


def _job(config: dict):
    """The part of the run that knows its data."""
    if config["method"].name == "video":
        from pretrain.videos import VideoJob

        return VideoJob(config)
    from pretrain.volumes import VolumeJob

    return VolumeJob(config)


def _run(config: dict, job, rank: int, world: int) -> int:
    """Reads top to bottom: prepare data, build, train, export."""
    from voco.engine.launch import build_accelerator, start_trackers
    from voco.engine.log import MetricLog, read_rows
    from voco.engine.loop import LoopState, explain_out_of_memory, resolve_resume
    from voco.engine.record import RunRecord, describe_device
    from voco.engine.resume import check_same_settings
    from voco.engine.signals import StopRequest

    main_process = rank == 0

    def say(text: str) -> None:
        if main_process:
            print(text, file=sys.stderr, flush=True)

    out, train = Path(config["out"]), config["train"]
    resume = None if config["plan"] else resolve_resume(train.resume, out)
    if resume is not None:
        check_same_settings(resume.parent.parent / "config.yaml", to_dict(config), FREE_ON_RESUME, LATER)
        if _is_finished(out, resume):
            say(f"{out} is already finished ({resume.name}); its encoder is in {out / 'encoder'}")
            return 0
    encoder = _build_encoder(config)
    if encoder.load_report is not None:
        say(f"weights: {encoder.load_report}")
    job.check_encoder(encoder)  # refuses crops and clips that do not fit, before hours of preparing
    data = job.prepare_data(encoder.input_spec, rank, world, say)
    encoder.input_spec = job.as_fed(encoder.input_spec)
    method = job.build_method(encoder, data)
    if resume is not None:
        check_same_data(resume, data)
    if main_process and not config["plan"]:
        data.write(out)
        save_yaml(config, out / "config.yaml")
    data.check(config["data"].max_rejected)
    probe = job.start_probe(data, say) if main_process and not config["plan"] else None
    if main_process and not config["plan"]:
        _write_fingerprints(job.fingerprints(data), out)
    goes_on = resume is not None and _is_own(resume, out)
    for note in job.notes(world, data):
        say(f"note: {note}")
    for note in job.fallen(read_rows(out / "metrics.jsonl")) if goes_on or config["plan"] else ():
        say(note)

    flops = _count_flops(job, data, method) if main_process and not config["plan"] else None
    trackers = [] if config["plan"] else config["log"].with_
    accelerator = build_accelerator(
        precision=train.precision,
        out=out,
        trackers=trackers,
        find_unused=job.find_unused(method),
        threads=train.threads,
    )
    _check_agreement(accelerator, data.fingerprint)
    with explain_out_of_memory(_MEMORY_SETTINGS):
        method.to(accelerator.device)
        if config["plan"]:
            return _plan(config, job, data, accelerator, method, say)
    record = RunRecord(out, active=main_process)
    log = MetricLog(out, accelerator)
    state = LoopState()
    try:
        with StopRequest() as stop, explain_out_of_memory(_MEMORY_SETTINGS):
            untrained = lambda i: job.build_method(_build_encoder(config, like=encoder, number=i), data)  # noqa: E731
            monitor = None
            if main_process:
                monitor = job.start_monitor(data, method, untrained, accelerator, goes_on)
            model, optimizer, checkpoints = ready_to_train(config, accelerator, method, out)
            if resume is not None:
                state = LoopState.from_dict(checkpoints.load(resume, method, optimizer))
                say(f"resumed {resume.name} of {resume.parent.parent}")
            log.rewind(state.step if goes_on else None)
            start_trackers(accelerator, flatten(to_dict(config)), names=trackers, out=out, resumed_at=state.step)
            facts = _facts(config, data, encoder, method, accelerator, flops)
            record.update(**facts | {"cost": record.values.get("cost", {}) | facts["cost"]})
            record.session(first_step=state.step, **describe_device(accelerator))
            training = Training(config, job, data, accelerator, method, log, record, monitor, probe)
            if monitor is not None and state.step == 0 and resume is None:
                log.metrics(0, monitor.report(method, 0, accelerator.device, autocast_dtype(accelerator)))
                accelerator.log(monitor.constants(), step=0)
            if state.step == 0 and resume is None:
                training.probe_now(0)
            accelerator.wait_for_everyone()
            state = training.train(model, optimizer, state, checkpoints, stop)
            training.finish(state, stop.received)
    except BaseException as error:
        record.close("failed", error=f"{type(error).__name__}: {error}"[:500], last_step=state.step)
        raise
    finally:
        accelerator.end_training()
    return 0


_MEMORY_SETTINGS = (
    "--train.batch_size (or raise --train.accumulate), the size of crops or clips, --encoder.name, or turn on "
    "--encoder.activation_checkpointing true (on a GPU also --train.precision bf16); --plan prints the largest batch"
)


def _write_fingerprints(fingerprints, out: Path) -> None:
    """Which scans are used; absent for data that are no scans, also where an earlier run in this folder left some."""
    from voco.data.fingerprint import FILE

    if fingerprints is None:
        (out / FILE).unlink(missing_ok=True)
    else:
        fingerprints.write(out / FILE)


def _check_agreement(accelerator, fingerprint: str) -> None:
    """Every process must have the same scans in the same order, or they would train on a mixture in silence."""
    from accelerate.utils import gather_object

    if len(found := set(gather_object([fingerprint]))) > 1:
        raise InputError(f"processes found different scans ({sorted(found)}), did files change just now? Start again")


def _is_own(resume: Path, out: Path) -> bool:
    return resume.resolve().parent == (out / "checkpoints").resolve()


def _is_finished(out: Path, resume: Path) -> bool:
    """Whether the checkpoint is the last one of this very folder, and the run went on to its end after it."""
    import json

    from voco.engine.checkpoint import folder_name

    if not (_is_own(resume, out) and (out / "run.json").is_file()):
        return False
    record = json.loads((out / "run.json").read_text())
    last = (record.get("sessions") or [{}])[-1].get("last_step")
    ended = record.get("state") == "finished" and last is not None and resume.name == folder_name(last)
    return ended and (out / "encoder" / "config.json").is_file()


def _build_encoder(config: dict, *, like=None, number: int = 0):
    """The encoder with the weights asked for, or, given ``like``, an untrained one of the same kind and input."""
    import torch

    from voco.encoders import create_encoder
    from voco.rng import derive_seed

    settings = config["encoder"]
    if like is not None:  # not the weights that the run itself starts from
        torch.manual_seed(derive_seed(config["seed"], "untrained", number))
        return create_encoder(like.name, input_spec=like.input_spec, **like.arguments)
    torch.manual_seed(derive_seed(config["seed"], "init"))
    arguments = settings.arguments | ({"depth_stride": settings.depth_stride} if settings.depth_stride else {})
    pairs = list(zip(settings.window[::2], settings.window[1::2])) or None
    encoder = create_encoder(settings.name, checkpoint=settings.weights, window=pairs, **arguments)
    encoder.set_grad_checkpointing(settings.activation_checkpointing)
    if settings.freeze:
        _freeze(encoder, settings.freeze)
    return encoder


def _freeze(encoder, parts) -> None:
    """Keep parts of the network as they are.

    Raises:
        InputError: random weights, a name that no parameter has, or a norm whose statistics would move all the same.
    """
    from voco.encoders.timm_nets import batch_norms

    if encoder.load_report is None:
        raise InputError(f"--encoder.freeze {parts} would keep random weights: give --encoder.weights")
    for part in parts:
        found = [p for name, p in encoder.named_parameters() if name == part or name.startswith(f"{part}.")]
        if not found:
            known = dict.fromkeys(name.partition(".")[0] for name, _ in encoder.named_parameters())
            raise InputError(f"--encoder.freeze {part}: no parameter begins so; parts are {', '.join(known)}")
        if any(batch_norms(module) for name, module in encoder.named_modules() if name == part):
            raise InputError(f"--encoder.freeze {part}: it has BatchNorms, whose statistics would move; not supported")
        for parameter in found:
            parameter.requires_grad_(False)


def _facts(config: dict, data, encoder, method, accelerator, flops: int | None) -> dict:
    """Entries of ``run.json`` that do not change while the run goes on."""
    from voco.engine.cost import FLOPS_RULE

    report = encoder.load_report
    parameters = sum(p.numel() for p in encoder.parameters())
    return {
        "method": config["method"].name,
        "encoder": encoder.name,
        "parameters": parameters,
        "seed": config["seed"],
        "processes": accelerator.num_processes,
        "batch_statistics": _batch_statistics(config, method, accelerator.num_processes),
        "data_fingerprint": data.fingerprint,
        "data": data.counts,
        "load_report": report.to_dict() if report is not None else None,
        "cost": {
            "parameters_encoder": parameters,
            "parameters_trained": sum(p.numel() for p in method.parameters() if p.requires_grad),
            "flops_per_volume": flops,
            "flops_rule": FLOPS_RULE,
        },
    }


def _batch_statistics(config: dict, method, world: int) -> dict:
    """What norms and pairs of volumes are taken over: the part of a step that depends on how its batch is cut."""
    from voco.encoders.timm_nets import batch_norms

    train, options = config["train"], config["method"].options
    own = train.batch_size // (train.accumulate * world)
    processes = world if options.norm_scope == "global" else 1
    found = {
        "norm_scope": options.norm_scope,
        "layers": sum(norm.training for norm in batch_norms(method.encoder.train())),
        "processes": processes,
        "samples": own * processes,
    }
    if hasattr(options, "inter_scope"):
        pairs = own * (world if options.inter_scope == "global" else 1) if options.inter_weight > 0 else 0
        found |= {"projector_norm": options.projector_norm, "volumes_paired": pairs}
    return found


def _count_flops(job, data, method) -> int | None:
    """Operations of one training sample; before any process group, whose collectives cannot be counted."""
    import torch

    from voco.engine.cost import flops_per_sample

    sample = job.dataset(data, method)[0]
    return flops_per_sample(method, {name: torch.stack([value, value]) for name, value in sample.items()})


def _plan(config: dict, job, data, accelerator, method, say) -> int:
    from voco.data.dataset import batches_of
    from voco.engine.plan import make_plan

    train = config["train"]
    model, optimizer, _ = ready_to_train(config, accelerator, method, Path(config["out"]))
    with batches_of(training_loader(config, job, data, method, accelerator, 0, _TIMED_STEPS + 3)) as batches:
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
    say(f"  disk: {job.disk(data)}")
    if note := job.size_note(method.encoder, data):
        say(f"  {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
