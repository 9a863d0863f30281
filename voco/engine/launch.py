"""The one place that builds the Accelerator, after everything that can be checked without it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from voco.errors import InputError

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def launched_rank() -> tuple[int, int]:
    """(rank, number of processes) from the launcher's environment, before any process group exists."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def build_accelerator(
    *, precision: str, out: Path, trackers: list[str], find_unused: bool = False, timeout_hours: float = 2.0
):
    """Create the Accelerator for one run.

    Args:
        precision: ``auto`` is bf16 on a GPU that has it, else fp32.
        out: run folder; TensorBoard writes its events there.
        trackers: names accelerate knows (``tensorboard``, ``wandb``, ``mlflow`` …).
        find_unused: some trainable parameters get no gradient (an embedding that uses part of the network).
        timeout_hours: collective time-out; the other processes wait this long while one evaluates.

    Raises:
        InputError: fp16 without a GPU, or a distributed mode whose state cannot be saved whole by one process.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import DistributedType

    if precision not in PRECISIONS:
        raise InputError(f"--train.precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not on_gpu:
        raise InputError("--train.precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        log_with=trackers or None,
        project_dir=str(out),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=find_unused, broadcast_buffers=False, gradient_as_bucket_view=True
            ),
            InitProcessGroupKwargs(timeout=timedelta(hours=timeout_hours)),
        ],
    )
    supported = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in supported:
        raise InputError(
            f"accelerate is configured for {accelerator.distributed_type.value}; checkpoints of this project cover "
            "one process, several CPUs and several GPUs (DDP). Use `accelerate launch --multi_gpu …` instead"
        )
    return accelerator


def start_trackers(accelerator, config: dict[str, object], *, resumed_at: int) -> None:
    """Open the trackers with flat settings; TensorBoard hides what a resumed run will write again."""
    flat = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
    purge = {"purge_step": resumed_at + 1} if resumed_at else {}
    accelerator.init_trackers("", config=flat, init_kwargs={"tensorboard": purge})
