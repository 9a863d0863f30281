"""Train one model on one fold: steps, scores on validation, the best weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.begun import take_over
from finetune.cohort import Study
from finetune.scoring import Predictions, score_part
from voco.config import flatten, to_dict
from voco.tasks.base import Task
from voco.transfer.views import View

_BEST = "best.safetensors"


@dataclass
class FoldRun:
    """What one fold needs at hand; ``run.py`` puts it together.

    Attributes:
        config: resolved settings.
        fold: its number; ``out`` its folder, that of the run where there is only one.
        train, validation: studies inside the label budget.
        early_stopping: whether there is a validation set to stop by.
        build_model: makes the untrained ``StudyModel``, the same each time.
        stop: the run's ``StopRequest``.
        source: folder of this fold in the run that is extended, and ``changes`` the settings that differ from it.
    """

    config: dict
    fold: int
    out: Path
    task: Task
    view: View
    train: Sequence[Study]
    validation: Sequence[Study]
    early_stopping: bool
    build_model: Callable[[], Any]
    accelerator: Any
    stop: Any
    say: Callable[[str], None]
    facts: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    changes: Sequence[str] = ()

    def stop_asked(self) -> bool:
        """Whether any process was asked to stop; all of them get the same answer, so that none waits for the others."""
        from accelerate.utils import gather_object

        own = self.stop.received is not None
        return own if self.accelerator.num_processes == 1 else any(gather_object([own]))


def train_fold(run: FoldRun):
    """Train, or go on training; returns the model with the best weights, or None after a stop was asked for."""
    from voco.engine.checkpoint import Checkpoints
    from voco.engine.extend import extension_facts, extension_point
    from voco.engine.launch import start_trackers, stop_trackers
    from voco.engine.log import MetricLog
    from voco.engine.loop import LoopState, resolve_resume
    from voco.transfer.results import scorings

    train, accelerator = run.config["train"], run.accelerator
    samples = _samples(run)
    targets = samples.unit_targets()
    weights = weigh_classes(run, count_classes(run.task, targets))
    expected = expected_weights(run.task, *samples.drawn_targets(), weights)
    prior = class_prior(run.task, targets, samples.unit_shares(), weights)
    method, model, optimizer = _ready_to_train(run, weights, expected, prior)
    checkpoints = Checkpoints(run.out / "checkpoints", keep=train.keep, accelerator=accelerator)
    log = MetricLog(run.out, accelerator)
    state, best = LoopState(), run.out / _BEST
    resume = resolve_resume(train.resume, run.out)
    begin = resume or (extension_point(str(run.source), steps=train.steps) if run.source else None)
    if resume is None and accelerator.is_main_process:
        best.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    if begin is not None:
        state = LoopState.from_dict(checkpoints.load(begin, method, optimizer))
        run.say(f"resumed {begin.name} of {begin.parent.parent}")
    log.rewind(state.step if resume is not None else None)
    if resume is None and begin is not None:
        take_over(run, state, begin, log, best)
    watch = _watch(run, method.scored, best)
    if train.steps > state.step and not state.watch.get("ended"):
        settings, names = flatten(to_dict(run.config)), run.config["log"].with_
        start_trackers(accelerator, settings, names=names, out=run.out, resumed_at=state.step)
        try:
            state = _fit(run, samples, method, model, optimizer, state, checkpoints, log, watch, weights)
        finally:
            stop_trackers(accelerator)
    finished = state.step >= train.steps or bool(state.watch.get("ended"))
    accelerator.free_memory()
    if not finished:
        return None
    if watch is not None and best.is_file():
        load_best(method.scored, best)
    run.facts |= {
        "last_step": state.step,
        "best_step": int(state.watch.get("best_step", state.step)),
        "stopped_early": bool(state.watch.get("ended")),
        "chosen_among": 1 if watch is None else scorings(log.rows(), watch.key),
        "skipped_steps": state.skipped,
        "units": len(samples.units),
        "class_weights": weights,
        "expected_weights": expected,
        "cost": _cost(run, state.step, log),
    }
    if state.extended:
        run.facts["extended"] = extension_facts(state.extended)
    method.scored.frozen = False
    return method.scored


def _ready_to_train(run: FoldRun, weights, expected, prior):
    """The method, and as accelerate prepares them the method and its optimizer."""
    from voco.engine.optim import make_optimizer
    from voco.transfer.finetuner import FineTuner
    from voco.transfer.model import parameter_groups

    train, model = run.config["train"], run.build_model()
    model.head.set_prior(prior)
    if scale := run.task.target_scale([study.labeled for study in run.train]):
        model.head.set_scale(scale)
    method = FineTuner(
        model, run.task, class_weights=weights, expected=expected, label_smoothing=train.label_smoothing,
        freeze_steps=train.freeze_steps, batchnorm=train.batchnorm, ema=train.ema,
    )  # fmt: skip
    method.to(run.accelerator.device)
    groups = parameter_groups(
        model, weight_decay=train.weight_decay, layer_decay=train.layer_decay, head_lr=train.head_lr, decay=train.decay
    )
    optimizer = make_optimizer(
        method, lr=train.lr, weight_decay=train.weight_decay, betas=(0.9, 0.999), amsgrad=False, kind=train.optimizer,
        momentum=train.momentum, dampening=train.dampening, groups=groups,
    )  # fmt: skip
    return method, *run.accelerator.prepare(method, optimizer)


def _watch(run: FoldRun, model, best: Path):
    """What validation decides; None where there are too few patients to stop by."""
    from voco.engine.checkpoint import save_weights
    from voco.engine.watch import Watch

    if not run.early_stopping:
        return None
    train = run.config["train"]
    key, higher = _watched(run)
    return Watch(
        key, higher, patience=train.patience, plateau=train.plateau, factor=train.plateau_factor,
        on_best=lambda step: save_weights(run.accelerator, model, best),
    )  # fmt: skip


def _fit(run: FoldRun, samples, method, model, optimizer, state, checkpoints, log, watch, weights):
    from voco.data.dataset import StepSampler, batches_of, make_loader
    from voco.engine.loop import LoopSettings, fit

    train, data, accelerator = run.config["train"], run.config["data"], run.accelerator
    sampler = StepSampler(
        state.step, train.steps, train.batch_size, train.accumulate, accelerator.process_index,
        accelerator.num_processes,
    )  # fmt: skip
    loader = make_loader(
        samples, sampler, workers=data.workers, timeout=data.timeout, pin=accelerator.device.type == "cuda"
    )
    settings = LoopSettings(
        steps=train.steps,
        learning_rate=_schedule(train),
        accumulate=train.accumulate,
        clip=train.clip,
        log_every=run.config["log"].every,
        save_every=train.save_every,
        eval_every=run.config["score"].every,
        max_skipped=train.max_skipped,
    )
    evaluate = (lambda step: validate(run, method.scored, weights)[1]) if run.validation else None
    with batches_of(loader) as batches:
        return fit(
            accelerator, model, optimizer, batches, settings=settings, state=state, checkpoints=checkpoints, log=log,
            stop=run.stop, evaluate=evaluate, watch=watch,
        )  # fmt: skip


def validate(run: FoldRun, model, class_weights: Mapping | None) -> tuple[Predictions, dict[str, float]]:
    """Score the validation studies; returns their predictions and a row of numbers, the same on every process."""
    from voco.transfer.predict import score_study

    accelerator = run.accelerator
    found = score_part(
        run.validation,
        lambda study: score_study(
            model, run.task, study.paths, run.view, device=accelerator.device, dtype=autocast_dtype(accelerator)
        ),
        run.task, run.view, fold=run.fold, split="validation", learn=model.learn, accelerator=accelerator,
        class_weights=_tensors(class_weights),
    )  # fmt: skip
    units = run.task.to_units(found.frame())
    row = {"validation_loss": found.loss()}
    for name, value in run.task.measure(units, found.image_frame()).values.items():
        if value is not None:
            row[f"validation_{name}"] = value
    return found, {name: value for name, value in row.items() if np.isfinite(value)}


def autocast_dtype(accelerator):
    """The half precision of the run, None in float32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def load_best(model, path: Path) -> None:
    """Put the best weights of a run back into its model."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))


def _samples(run: FoldRun):
    from voco.rng import derive_seed
    from voco.transfer.samples import StudySamples

    train, learn = run.config["train"], run.config["learn"]
    return StudySamples(
        [study.item(run.task, with_slices=learn == "window") for study in run.train],
        view=run.view,
        task=run.task,
        learn=learn,
        windows=run.config["input"].windows,
        augmentation=run.config["augment"] if train.augment else None,
        balance=train.class_shares if train.balance else None,
        match_depth=train.match_depth,
        seed=derive_seed(run.config["seed"], "fold", run.fold),
    )


def count_classes(task: Task, targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per output that has classes, how many targets are of each (binary: negative, positive)."""
    counts = {}
    for output in task.outputs:
        if output.kind != "regression":
            values = np.asarray(targets[output.name], float)
            known = values[np.isfinite(values)].astype(int)
            counts[output.name] = np.bincount(known, minlength=max(2, output.width))
    return counts


def weigh_classes(run: FoldRun, counts: Mapping[str, np.ndarray]) -> dict[str, list[float]] | None:
    """Per output, a weight for each class as ``--train.class_weights`` says; None for none."""
    kind = run.config["train"].class_weights
    if kind == "none":
        return None
    if kind == "task":
        return {name: [float(v) for v in values] for name, values in run.task.class_weights().items()}
    found = {}
    for name, count in counts.items():
        present = count > 0
        # scikit-learn's "balanced": n / (classes * count)
        found[name] = np.where(present, count.sum() / (present.sum() * np.maximum(count, 1)), 0.0).tolist()
    return found


def expected_weights(
    task: Task, targets: Mapping[str, np.ndarray], shares: np.ndarray, weights: Mapping[str, list[float]] | None
) -> dict[str, float]:
    """Per output, the mean weight of a sample in the loss: what ``Task.loss`` divides by.

    Exactly 1 where every target is known and has weight 1; also 1 where no target counts, so that nothing is divided
    by 0.

    Args:
        targets, shares: of ``StudySamples.drawn_targets``.
        weights: of the classes in the loss.
    """
    import torch

    each = task.sample_weights({name: torch.from_numpy(values) for name, values in targets.items()}, _tensors(weights))
    return {name: float((values.numpy() * shares).sum() / shares.sum()) or 1.0 for name, values in each.items()}


def class_prior(
    task: Task, targets: Mapping[str, np.ndarray], shares: np.ndarray, weights: Mapping[str, list[float]] | None
) -> dict[str, np.ndarray]:
    """Per output that has classes, the probabilities of the best constant answer to the training loss.

    Args:
        targets: per output one value per unit, NaN where unknown.
        shares: how often each unit is drawn.
        weights: of the classes in the loss.
    """
    found = {}
    for output in task.outputs:
        if output.kind == "regression":
            continue
        values = np.asarray(targets[output.name], float)
        known = np.isfinite(values)
        width = max(2, output.width)
        # a unit's worth of every class, so that one that training lacks is not ruled out
        count = 1 / width + known.sum() * np.bincount(
            values[known].astype(int), shares[known] / max(shares[known].sum(), 1e-12), minlength=width
        )
        count = count * np.asarray((weights or {}).get(output.name, np.ones(width)))
        if (count > 0).all():
            found[output.name] = count / count.sum()
    return found


def _tensors(class_weights: Mapping | None):
    import torch

    return {name: torch.tensor(v, dtype=torch.float64) for name, v in class_weights.items()} if class_weights else None


def _watched(run: FoldRun) -> tuple[str, bool]:
    if run.config["train"].watch == "loss":
        return "validation_loss", False
    return f"validation_{run.task.main_metric}", run.task.higher_is_better


def _schedule(train) -> Callable[[int], float]:
    from functools import partial

    from voco.engine.optim import learning_rate

    floor = 1.0 if train.schedule == "constant" else 0.0
    return partial(learning_rate, steps=train.steps, lr=train.lr, warmup=train.warmup, floor=floor)


def _cost(run: FoldRun, step: int, log) -> dict[str, Any]:
    from voco.engine.cost import peak_memory_bytes

    seconds, last = 0.0, 0
    for row in log.timing_rows():
        seconds += row["seconds_per_step"] * (row["step"] - last)
        last = row["step"]
    return {
        "samples_seen": step * run.config["train"].batch_size,
        "seconds_training": seconds,
        "peak_memory_bytes": peak_memory_bytes(run.accelerator.device),
    }
