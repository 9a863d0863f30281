"""One pretraining from a fresh network to its encoder, in its folder; a command may take several after one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.sources import build_method, notes
from pretrain.stopping import BEST
from pretrain.training import Training, autocast_dtype, ready_to_train
from voco.config import flatten, to_dict
from voco.errors import InputError

MEMORY_SETTINGS = (
    "--train.batch_size (or raise --train.accumulate), the size of crops or clips, --encoder.name, or turn on "
    "--encoder.activation_checkpointing true (on a GPU also --train.precision bf16); --plan prints the largest batch"
)


@dataclass(frozen=True)
class Session:
    """What the pretrainings of one command share.

    Attributes:
        accelerator: one for all, as a process can have one group.
        stop: the command's ``StopRequest``.
        flops: operations of one training sample; None where they are not known.
        say: tells the user, on the main process.
        scaler: state of the loss scaler before any step; None without one.
    """

    accelerator: Any
    stop: Any
    flops: int | None
    say: Callable[[str], None]
    scaler: dict | None

    def stop_asked(self) -> bool:
        """Whether any process was asked to stop; all of them get the same answer, so that none waits for the others."""
        from accelerate.utils import gather_object

        own = self.stop.received is not None
        return own if self.accelerator.num_processes == 1 else any(gather_object([own]))


def pretrain(session: Session, source, network, record, resume: Path | None, changes=(), **parts) -> bool:
    """Train one network in its folder, from its newest checkpoint on; False after a stop was asked for.

    Args:
        source: data and settings (``pretrain.scans.Scans``, ``pretrain.clips.Clips``).
        network: (encoder, method) as they are before the first step.
        record: of ``config["out"]``; closed in the end.
        resume: checkpoint to go on from.
        changes: settings that differ from those of the run that is extended.
        parts: ``probe``, ``recipe`` and ``fold`` of ``Training``.
    """
    from voco.engine.extend import begin_extension, extension_facts, extension_note, run_of
    from voco.engine.launch import start_trackers, stop_trackers
    from voco.engine.log import MetricLog
    from voco.engine.loop import LoopState, explain_out_of_memory
    from voco.engine.record import describe_device

    config, accelerator, (encoder, method) = source.config, session.accelerator, network
    out = Path(config["out"])
    goes_on = resume is not None and is_own(resume, out)
    log, state = MetricLog(out, accelerator), LoopState()
    try:
        with explain_out_of_memory(MEMORY_SETTINGS):
            if session.scaler is not None:  # nothing of a training before this one
                accelerator.scaler.load_state_dict(session.scaler)
            method.to(accelerator.device)
            monitor = None
            if accelerator.is_main_process and source.cohort.heldout:
                monitor = start_monitor(source, network, accelerator.device, goes_on)
            model, optimizer, checkpoints = ready_to_train(config, accelerator, method, out)
            if resume is not None:
                state = LoopState.from_dict(checkpoints.load(resume, method, optimizer))
                session.say(f"resumed {resume.name} of {resume.parent.parent}")
            log.rewind(state.step if goes_on else None)
            if resume is not None and not goes_on and config["train"].extend:
                begin_extension(state, run_of(resume), changes, log, out / BEST)
                state.watch = state.watch if (out / BEST).is_file() else {}
            if state.extended:
                session.say(f"note: {extension_note(state.extended)}")
            trackers = config["log"].with_
            start_trackers(accelerator, flatten(to_dict(config)), names=trackers, out=out, resumed_at=state.step)
            facts = _facts(source, encoder, method, accelerator, session.flops)
            facts["notes"] = notes(source, accelerator.num_processes)
            record.values.pop("extended", None)  # of an extension that came to no checkpoint
            facts |= {"extended": extension_facts(state.extended)} if state.extended else {}
            record.update(**facts | {"cost": record.values.get("cost", {}) | facts["cost"]})
            record.session(first_step=state.step, **describe_device(accelerator))
            training = Training(source, accelerator, method, log, record, monitor, **parts)
            if monitor is not None and state.step == 0 and resume is None:
                log.metrics(0, monitor.report(method, 0, accelerator.device, autocast_dtype(accelerator)))
                accelerator.log(monitor.constants(), step=0)
            if state.step == 0 and resume is None:
                training.probe_now(0)
            accelerator.wait_for_everyone()
            state = training.train(model, optimizer, state, checkpoints, session.stop)
            training.finish(state, session.stop.received)
    except BaseException as error:
        record.fail(error, last_step=state.step)
        raise
    finally:
        stop_trackers(accelerator)
    accelerator.free_memory()
    return state.step >= config["train"].steps or bool(state.watch.get("ended"))


def start_monitor(source, network, device, goes_on: bool):
    """The report on held-out data, its lines measured (once a run); None for a method that has none.

    Args:
        network: (encoder, method) as they are before the first step.
        goes_on: the lines may be taken from an earlier session of this run.
    """
    config, (encoder, method) = source.config, network
    monitor = method.monitor(source)
    if monitor is not None:
        untrained = lambda i: build_method(config, build_encoder(config, like=encoder, number=i), source.cohort)  # noqa: E731
        monitor.measure_lines(method, untrained, device, reuse=goes_on)
    return monitor


def is_own(resume: Path, out: Path) -> bool:
    """Whether a checkpoint is of this very run."""
    return resume.resolve().parent == (out / "checkpoints").resolve()


def is_finished(out: Path, resume: Path) -> bool:
    """Whether the checkpoint is the last one of this very folder, and the run went on to its end after it."""
    from voco.engine.checkpoint import folder_name
    from voco.engine.record import read_record

    if not is_own(resume, out):
        return False
    record = read_record(out)
    last = (record.get("sessions") or [{}])[-1].get("last_step")
    ended = record.get("state") == "finished" and last is not None and resume.name == folder_name(last)
    return ended and (out / "encoder" / "config.json").is_file()


def write_fingerprints(fingerprints, out: Path) -> None:
    """Which scans are used; absent for data that are no scans, also where an earlier run in this folder left some."""
    from voco.data.fingerprint import FILE

    if fingerprints is None:
        (out / FILE).unlink(missing_ok=True)
    else:
        fingerprints.write(out / FILE)


def build_network(source):
    """(encoder, method) before the first step, the same each time."""
    encoder = build_encoder(source.config)
    encoder.input_spec = source.as_fed(encoder.input_spec)
    return encoder, build_method(source.config, encoder, source.cohort)


def build_encoder(config: dict, *, like=None, number: int = 0):
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
    encoder = create_encoder(
        settings.name, checkpoint=settings.weights, which=settings.which, window=pairs, **arguments
    )
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


def _facts(source, encoder, method, accelerator, flops: int | None) -> dict:
    """Entries of ``run.json`` that do not change while the run goes on."""
    from voco.engine.cost import FLOPS_RULE

    config, data = source.config, source.cohort
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

    train = config["train"]
    own = train.batch_size // (train.accumulate * world)
    processes = world if method.norm_scope == "global" else 1
    return {
        "norm_scope": method.norm_scope,
        "layers": sum(norm.training for norm in batch_norms(method.encoder.train())),
        "processes": processes,
        "samples": own * processes,
        **method.batch_facts(own, world),
    }
