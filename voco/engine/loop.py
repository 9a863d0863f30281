"""One training loop for every stage: the caller brings a method, the engine brings the rest. Knows no method."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from voco.engine.checkpoint import Checkpoints, damage, find_checkpoint, list_checkpoints
from voco.engine.log import MetricLog
from voco.engine.signals import StopRequest
from voco.engine.watch import Watch
from voco.errors import InputError


@dataclass
class LoopState:
    """What the loop must remember; data position, learning rate and schedule all follow from ``step``.

    Attributes:
        step: finished optimizer steps.
        skipped: steps left out because of a non-finite loss or gradient.
        overflows: steps that the fp16 loss scaler left out, which now and then is its normal way of working.
        skipped_in_a_row: steps left out since the last good one, for either reason.
        sums, count: running sums of the terms since the last logged row.
        watch: what ``Watch`` remembers; empty without one.
        extended: runs that were extended on the way here, see ``voco.engine.extend``.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    overflows: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    watch: dict[str, float] = field(default_factory=dict)
    extended: list[dict] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: Mapping) -> LoopState:
        return cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the loop.

    Attributes:
        steps: optimizer steps in all.
        learning_rate: step to learning rate.
        accumulate: micro-batches per step.
        clip: largest gradient norm; 0 leaves gradients as they are.
        log_every, save_every, eval_every: in steps; 0 for never (a checkpoint is always written at the end).
        milestones: steps at which ``on_milestone`` is called.
        max_skipped: non-finite steps in a row after which the run stops with an error.
    """

    steps: int
    learning_rate: Callable[[int], float]
    accumulate: int = 1
    clip: float = 0.0
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0
    milestones: Sequence[int] = ()
    max_skipped: int = 20


def fit(
    accelerator,
    model: nn.Module,
    optimizer,
    batches: Iterator[dict],
    *,
    settings: LoopSettings,
    state: LoopState,
    checkpoints: Checkpoints,
    log: MetricLog,
    stop: StopRequest,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    on_milestone: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> LoopState:
    """Train from ``state.step`` to ``settings.steps``, or until a stop is asked for; ends with a checkpoint.

    Args:
        model: prepared by accelerate; ``model(batch)`` returns 0-dim tensors, among them ``loss``.
        batches: micro-batches from step ``state.step`` on.
        evaluate: called on every process with the step; the main one returns numbers for ``metrics.jsonl``, and with
            ``watch`` every process the same.
        on_milestone: called on the main process.
        watch: ends training early, keeps the best model, lowers the learning rate on plateaus.

    Raises:
        FloatingPointError: ``settings.max_skipped`` non-finite steps in a row.
    """
    method = accelerator.unwrap_model(model)
    buffers = [b for b in method.buffers() if b.is_floating_point()]
    clock = _Clock()
    model.train()
    while state.step < settings.steps and not state.watch.get("ended"):
        lr = settings.learning_rate(state.step) * state.watch.get("lr_factor", 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        before = [b.clone() for b in buffers]
        terms, volumes = _accumulate_gradients(accelerator, model, batches, settings.accumulate, clock)
        norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
        values, stop_asked = _reduce(accelerator, {**terms, "grad_norm": norm}, stop.received is not None)
        _step(accelerator, optimizer, method, values, state, list(zip(buffers, before)))
        state.step += 1
        clock.stepped(volumes * accelerator.num_processes)
        if state.skipped_in_a_row == 0:
            for key, value in values.items():
                state.sums[key] = state.sums.get(key, 0.0) + value
            state.count += 1

        last = state.step == settings.steps
        if settings.log_every and (state.step % settings.log_every == 0 or last):
            _log_row(accelerator, log, state, lr, settings.steps, clock)
        if evaluate is not None and (last or (settings.eval_every and state.step % settings.eval_every == 0)):
            with clock.paused():
                row = _evaluate(accelerator, evaluate, model, log, state.step)
                if watch is not None:
                    watch.look(state.step, row, state.watch)
                    last = last or bool(state.watch.get("ended"))
        if state.step in settings.milestones and on_milestone is not None and accelerator.is_main_process:
            on_milestone(state.step)
        failed = state.skipped_in_a_row >= max(1, settings.max_skipped)
        if last or stop_asked or failed or (settings.save_every and state.step % settings.save_every == 0):
            with clock.paused():
                if not failed:  # the newest good checkpoint must survive
                    checkpoints.save(state.step, method, optimizer, asdict(state))
        if failed:
            raise FloatingPointError(
                f"loss or gradient was not finite in {state.skipped_in_a_row} steps in a row, up to step {state.step}. "
                "Lower --train.lr, use --train.precision bf16 or fp32 (fp16 overflows in large Swin encoders), or "
                "look at the scans of these steps. The last good checkpoint is kept"
            )
        if stop_asked and not last:
            break
    return state


def _accumulate_gradients(accelerator, model, batches, accumulate: int, clock: _Clock):
    """Forward and backward over the micro-batches of one step; returns mean terms (on the device) and volumes seen."""
    total: dict[str, torch.Tensor] = {}
    volumes = 0
    for micro in range(accumulate):
        with clock.waiting():
            batch = next(batches)
        batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in batch.items()}
        volumes += len(next(iter(batch.values())))
        synchronise = micro == accumulate - 1
        with contextlib.nullcontext() if synchronise else accelerator.no_sync(model):
            terms = model(batch)
            accelerator.backward(terms["loss"] / accumulate)
        for extra in ("padded_share", "replaced"):
            if extra in batch:
                terms[extra] = batch[extra].float().mean()
        for key, value in terms.items():
            total[key] = total.get(key, 0.0) + value.detach().float() / accumulate
    return total, volumes


def _reduce(accelerator, terms: dict[str, torch.Tensor], stop: bool) -> tuple[dict[str, float], bool]:
    """Means over the processes and whether any of them was asked to stop, in one transfer."""
    row = torch.stack([*(v.detach().double().to(accelerator.device) for v in terms.values())])
    row = torch.cat([row, torch.tensor([float(stop)], dtype=row.dtype, device=row.device)])
    if accelerator.num_processes > 1:
        row = accelerator.reduce(row, "mean")
    numbers = row.tolist()
    return dict(zip(terms, numbers)), numbers[-1] > 0


def _step(accelerator, optimizer, method, values: dict[str, float], state: LoopState, buffers) -> None:
    """Take the optimizer step, or leave it out when something is not finite."""
    finite_loss, finite_norm = math.isfinite(values["loss"]), math.isfinite(values["grad_norm"])
    if (finite_loss and finite_norm) or accelerator.scaler is not None:
        optimizer.step()  # the fp16 scaler looks for itself and must be told of overflows
    if finite_loss and finite_norm:
        state.skipped_in_a_row = 0
        method.after_step()
    else:
        for buffer, old in buffers:  # running statistics must not remember a batch that was thrown away
            buffer.copy_(old)
        if finite_loss and accelerator.scaler is not None:
            state.overflows += 1
        else:
            state.skipped += 1
        state.skipped_in_a_row += 1
    optimizer.zero_grad(set_to_none=True)


def _log_row(accelerator, log: MetricLog, state: LoopState, lr: float, steps: int, clock: _Clock) -> None:
    row = {k: v / state.count for k, v in state.sums.items()} if state.count else {}
    row |= {"lr": lr, "skipped": float(state.skipped), "overflows": float(state.overflows)}
    state.sums, state.count = {}, 0
    log.metrics(state.step, row)
    timing = clock.row()
    if accelerator.device.type == "cuda":
        timing["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(accelerator.device))
    log.timings(state.step, timing)
    text = f"loss {row.get('loss', math.nan):.4f}  {timing['volumes_per_second']:.3g} volumes/s"
    log.progress(state.step, steps, text + (f"  {state.skipped} skipped" if state.skipped else ""))


def _evaluate(accelerator, evaluate, model, log: MetricLog, step: int) -> dict[str, float]:
    model.eval()
    row = evaluate(step)
    model.train()
    if row and accelerator.is_main_process:
        log.metrics(step, row)
    accelerator.wait_for_everyone()
    return row


class _Clock:
    """Wall time of training since the last row: all of it, and the part spent waiting for data."""

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self._start, self._wait, self._pause, self._steps, self._volumes = time.perf_counter(), 0.0, 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self):
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self):
        start = time.perf_counter()
        yield
        self._pause += time.perf_counter() - start

    def stepped(self, volumes: int) -> None:
        self._steps += 1
        self._volumes += volumes

    def row(self) -> dict[str, float]:
        spent = max(time.perf_counter() - self._start - self._pause, 1e-9)
        row = {
            "seconds_per_step": spent / max(1, self._steps),
            "volumes_per_second": self._volumes / spent,
            "data_wait_share": self._wait / spent,
        }
        self._reset()
        return row


@contextlib.contextmanager
def explain_out_of_memory(settings: str):
    """Turn an out-of-memory error of the device into a sentence with the ``settings`` to lower and other help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # the allocator of the CPU and some CUDA libraries raise a plain RuntimeError
        words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in words):
            raise
        detail = str(error).split("\n")[0][:200]
        raise InputError(f"out of memory ({detail}). Lower {settings}") from error


def resolve_resume(resume: str, out: Path) -> Path | None:
    """Which checkpoint to continue from.

    Args:
        resume: ``auto`` (the newest in ``out``, if any), ``never``, or a checkpoint or run folder. That of another run
            is where ``out`` starts from; once ``out`` has checkpoints they win, so that the same command goes on.

    Raises:
        InputError: ``never`` with a folder that already holds checkpoints, a folder without any, or one of several
            checkpoints of ``out`` that is not the newest.
    """
    root = Path(out) / "checkpoints"
    if resume == "never":
        if list_checkpoints(root):
            raise InputError(f"{out} already holds checkpoints; choose another --out, or --train.resume auto to go on")
        return None
    if resume == "auto":
        found = find_checkpoint(root)
        if found is None and list_checkpoints(root):
            raise InputError(f"every checkpoint in {root} is damaged; choose another --out or remove them")
        return found
    folder = Path(resume).resolve()
    found = folder if (folder / "state.json").is_file() else find_checkpoint(folder / "checkpoints")
    if found is None:
        raise InputError(f"--train.resume {resume}: no whole checkpoint there; give a run folder or a step-… folder")
    if found.parent != root.resolve():
        return find_checkpoint(root) or found
    if later := [p.name for p in list_checkpoints(root) if p.name > found.name and damage(p) is None]:
        raise InputError(
            f"{root} holds checkpoints later than {found.name} ({', '.join(later)}), which the next start would "
            "continue instead; choose another --out, or remove them"
        )
    return found
