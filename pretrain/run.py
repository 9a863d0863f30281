"""Pretrain an encoder: ``accelerate launch pretrain/run.py --config NAME --data.root DATA --out runs/x``.

What depends on the kind of data lies in ``scans.py`` and ``clips.py``, what depends on the method in ``voco.methods``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.config import EXTENDABLE, FREE_ON_RESUME, NEW, SCHEMA, check, check_same_data
from pretrain.cross import check_is_no_fold, fold_configs, judge_recipe, run_folds
from pretrain.pretraining import (
    MEMORY_SETTINGS,
    Session,
    build_encoder,
    build_network,
    is_finished,
    is_own,
    pretrain,
    write_fingerprints,
)
from pretrain.sources import build_method, make_source, notes
from pretrain.training import ready_to_train, training_loader
from voco.config import parse, save_yaml, to_dict
from voco.errors import InputError
from voco.methods import method_class

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
    check_is_no_fold(Path(config["out"]))
    check_precision(config["train"].precision)
    check_trackers([] if config["plan"] else config["log"].with_)
    die_with_parent()
    alone = rank == 0 and not config["plan"]
    with FolderLock(Path(config["out"])) if alone else contextlib.nullcontext():
        return _run(config, rank, world)


def _run(config: dict, rank: int, world: int) -> int:
    """Reads top to bottom: prepare data, build, train, export."""
    from voco.engine.launch import build_accelerator
    from voco.engine.log import read_rows
    from voco.engine.loop import explain_out_of_memory

    main_process = rank == 0
    writes = main_process and not config["plan"]

    def say(text: str) -> None:
        if main_process:
            print(text, file=sys.stderr, flush=True)

    out, train = Path(config["out"]), config["train"]
    resume, changes = _resume(config, out)
    if resume is not None and is_finished(out, resume):
        say(f"{out} is already finished ({resume.name}); its encoder is in {out / 'encoder'}")
        return 0
    encoder = build_encoder(config)
    if encoder.load_report is not None:
        say(f"weights: {encoder.load_report}")
    # refuses crops and clips that do not fit, before hours of preparing
    method_class(config["method"].name).check_encoder(encoder, config["method"])
    source = make_source(config, encoder).prepare(encoder.input_spec, rank, world, say)
    data = source.cohort
    encoder.input_spec = source.as_fed(encoder.input_spec)
    method = build_method(config, encoder, data)
    if resume is not None:
        check_same_data(resume, data)
    if writes:
        data.write(out)
        save_yaml(config, out / "config.yaml")
    data.check(config["data"].max_rejected)
    folds = source.folds(fold_configs(config))
    _check_folds(config, folds)
    probe = source.start_probe(getattr(method, "geometry", None), say) if main_process else None
    if writes:
        write_fingerprints(source.fingerprints(), out)
    goes_on = resume is not None and is_own(resume, out)
    for note in notes(source, world):
        say(f"note: {note}")
    for note in source.fallen(read_rows(out / "metrics.jsonl")) if goes_on or config["plan"] else ():
        say(note)

    flops = _count_flops(source, method) if writes else None
    accelerator = build_accelerator(
        precision=train.precision,
        out=out,
        trackers=[] if config["plan"] else config["log"].with_,
        find_unused=method.find_unused,
        threads=train.threads,
    )
    _check_agreement(accelerator, data.fingerprint)
    if config["plan"]:
        with explain_out_of_memory(MEMORY_SETTINGS):
            method.to(accelerator.device)
            return _plan(source, accelerator, method, say, resume)
    try:
        return _train(source, folds, (encoder, method), accelerator, (resume, changes), probe, flops, say)
    finally:
        accelerator.end_training()


def _train(source, folds, network, accelerator, start, probe, flops, say) -> int:
    """The folds, where there are any, then the training whose encoder is the run's."""
    from voco.engine.record import RunRecord
    from voco.engine.signals import StopRequest

    config, (resume, changes) = source.config, start
    active, recipe = accelerator.is_main_process, None
    record = RunRecord(Path(config["out"]), active=active, plugins=config.get("plugins", ()))
    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    try:
        with StopRequest() as stop:
            session = Session(accelerator, stop, flops, say, scaler)
            if folds:
                if not run_folds(session, folds, record):
                    record.close("stopped", signal=stop.received)
                    return 0
                recipe = judge_recipe(config) if accelerator.is_main_process else None
                say(f"the recipe is judged, see {Path(config['out']) / 'health.json'}; now the encoder, on all scans")
                network = build_network(source)
            pretrain(session, source, network, record, resume, changes, probe=probe, recipe=recipe)
    except BaseException as error:
        record.fail(error)
        raise
    return 0


def _resume(config: dict, out: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, with settings like those that it, or a fold, was begun with; and, where another run
    is extended, what differs."""
    from voco.engine.checkpoint import list_checkpoints
    from voco.engine.extend import changed_settings, check_apart, extension_point, run_of
    from voco.engine.loop import resolve_resume
    from voco.engine.resume import check_same_settings

    train = config["train"]
    if train.extend:
        check_apart(train.extend, out)
    resume = None if config["plan"] else resolve_resume(train.resume, out)
    if resume is None and train.extend:
        point = extension_point(train.extend, steps=train.steps)
        return point, changed_settings(run_of(point), to_dict(config), FREE_ON_RESUME, EXTENDABLE, NEW)
    folds_began = any(list_checkpoints(folder) for folder in out.glob("folds/fold-*/checkpoints"))
    if resume is not None or (folds_began and not config["plan"]):
        begun = out if resume is None else run_of(resume)
        check_same_settings(begun / "config.yaml", to_dict(config), FREE_ON_RESUME, NEW)
    return resume, []


def _check_folds(config: dict, folds) -> None:
    """Folds that began must have seen the scans of today; before any of them goes on, or is taken as finished."""
    from voco.engine.loop import resolve_resume

    for fold in () if config["plan"] else folds:
        resume = resolve_resume(fold.config["train"].resume, Path(fold.config["out"]))
        if resume is not None:
            check_same_data(resume, fold.cohort)


def _check_agreement(accelerator, fingerprint: str) -> None:
    """Every process must have the same scans in the same order, or they would train on a mixture in silence."""
    from accelerate.utils import gather_object

    if len(found := set(gather_object([fingerprint]))) > 1:
        raise InputError(f"processes found different scans ({sorted(found)}), did files change just now? Start again")


def _count_flops(source, method) -> int | None:
    """Operations of one training sample; before any process group, whose collectives cannot be counted."""
    import torch

    from voco.engine.cost import flops_per_sample

    sample = method.dataset(source)[0]
    return flops_per_sample(method, {name: torch.stack([value, value]) for name, value in sample.items()})


def _plan(source, accelerator, method, say, resume) -> int:
    from voco.data.dataset import batches_of
    from voco.engine.plan import make_plan

    config, train = source.config, source.config["train"]
    taken = 0 if resume is None else json.loads((resume / "state.json").read_text())["step"]
    model, optimizer, _ = ready_to_train(config, accelerator, method, Path(config["out"]))
    with batches_of(training_loader(source, method, accelerator, 0, _TIMED_STEPS + 3)) as batches:
        plan = make_plan(
            accelerator,
            model,
            optimizer,
            batches,
            timed=_TIMED_STEPS,
            batch_size=train.batch_size,
            steps=train.steps - taken,
            keep=train.keep,
            pretrainings=config["eval"].cross + 1,
        )
    say(plan.text())
    say(f"  disk: {source.disk()}")
    parameters = sum(p.numel() for p in method.encoder.parameters())
    if note := method.size_note(parameters, source.size[0], train.steps * train.batch_size):
        say(f"  {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
