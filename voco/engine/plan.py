"""What a run would cost: real steps are timed, the rest is arithmetic, and each figure says which it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from voco.engine.cost import peak_memory_bytes
from voco.engine.log import duration

_WARMUP = 3
_GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Measured and derived costs of a run.

    Attributes:
        seconds_per_step: median of the timed steps, measured.
        peak_memory_bytes: per process, measured at the batch size asked for.
        largest_batch: per process and micro-batch, extrapolated linearly from two measured sizes; None if unknown.
        memory_bytes: what one process has to itself, GPU or its share of the machine.
        checkpoint_bytes: of one checkpoint, derived from the tensors it holds.
        pretrainings: how often these steps are taken, in folders of their own, such as once per fold and once more.
    """

    seconds_per_step: float
    timed_steps: int
    peak_memory_bytes: int
    largest_batch: int | None
    memory_bytes: int
    checkpoint_bytes: int
    batch_size: int
    steps: int
    keep: int
    processes: int
    pretrainings: int = 1

    def text(self) -> str:
        """For the console."""
        hours = self.seconds_per_step * self.steps
        volumes = self.batch_size / self.seconds_per_step * 3600
        largest = "not known" if self.largest_batch is None else f"about {self.largest_batch}"
        several, each = [], ""
        if self.pretrainings > 1:
            all_hours, each = hours * self.pretrainings, " of each pretraining"
            several = [f"  {self.pretrainings} such pretrainings: {duration(all_hours)} ({all_hours / 3600:.2f} h)"]
        return "\n".join(
            [
                f"plan for {self.steps} steps of {self.batch_size} volumes on {self.processes} process(es):",
                f"  {self.seconds_per_step:.3f} s per step (median of {self.timed_steps} timed), "
                f"{volumes:,.0f} volumes per hour",
                f"  {duration(hours)} in all ({hours / 3600:.2f} h), without evaluation",
                *several,
                f"  peak memory {self.peak_memory_bytes / _GB:.2f} GB of {self.memory_bytes / _GB:.1f} GB per process",
                f"  largest batch per process and micro-batch: {largest} (linear extrapolation)",
                f"  disk: {self.checkpoint_bytes / _GB:.2f} GB per checkpoint, {self.keep} kept{each}, "
                "one more while saving",
            ]
        )


def make_plan(
    accelerator,
    model,
    optimizer,
    batches: Iterator[dict],
    *,
    timed: int,
    batch_size: int,
    steps: int,
    keep: int,
    pretrainings: int = 1,
) -> Plan:
    """Take real steps (the model is changed: throw it away afterwards) and extrapolate.

    Args:
        model, optimizer: prepared.
        batches: at least ``timed + 3`` batches of the real loader, one micro-batch each.
        batch_size: global.
        pretrainings: see ``Plan``.
    """
    seconds, first, accumulate = [], None, 1
    for index in range(timed + _WARMUP):
        start = time.perf_counter()
        batch = next(batches)
        first = batch if first is None else first
        micro = next(iter(batch.values())).shape[0]
        accumulate = batch_size // (micro * accelerator.num_processes)
        for _ in range(accumulate - 1):
            _backward(accelerator, model, batch, accumulate)
            batch = next(batches)
        _backward(accelerator, model, batch, accumulate)
        _finish_step(accelerator, model, optimizer)
        if index >= _WARMUP:
            seconds.append(time.perf_counter() - start)
    peak = peak_memory_bytes(accelerator.device)
    largest, memory = _largest_batch(accelerator, model, optimizer, first, peak)
    method = accelerator.unwrap_model(model)
    size = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    moments = 3 if any(g.get("amsgrad") for g in optimizer.param_groups) else 2
    return Plan(
        seconds_per_step=sorted(seconds)[len(seconds) // 2],
        timed_steps=len(seconds),
        peak_memory_bytes=peak,
        largest_batch=largest,
        memory_bytes=memory,
        checkpoint_bytes=size + moments * trained,
        batch_size=batch_size,
        steps=steps,
        keep=keep,
        processes=accelerator.num_processes,
        pretrainings=pretrainings,
    )


def _backward(accelerator, model, batch: dict, accumulate: int) -> None:
    batch = {k: v.to(accelerator.device) for k, v in batch.items()}
    accelerator.backward(model(batch)["loss"] / accumulate)


def _finish_step(accelerator, model, optimizer) -> None:
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    accelerator.unwrap_model(model).after_step()
    optimizer.zero_grad(set_to_none=True)
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)


def _largest_batch(accelerator, model, optimizer, batch: dict, peak: int) -> tuple[int | None, int]:
    """Peak memory at the planned size and at twice that gives the memory of one more volume."""
    device, size = accelerator.device, next(iter(batch.values())).shape[0]
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        import psutil

        own = psutil.Process().memory_info().rss
        memory = (psutil.virtual_memory().available + own) // max(1, accelerator.num_processes)
    double = {k: torch.cat([v, v]) for k, v in batch.items()}
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        _backward(accelerator, model, double, 1)
        _finish_step(accelerator, model, optimizer)
    except torch.OutOfMemoryError:
        return size, memory
    each = (peak_memory_bytes(accelerator.device) - peak) / size
    if each <= 0:
        return None, memory
    return max(size, int((0.92 * memory - peak) / each) + size), memory
