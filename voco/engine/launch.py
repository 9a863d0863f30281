"""The one place that builds the Accelerator, after everything that can be checked without it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from voco.errors import InputError
from voco.machine import cores

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def launched_rank() -> tuple[int, int]:
    """(rank, number of processes) from the launcher's environment, before any process group exists.

    Raises:
        InputError: several tasks of a launcher that tells none of them its rank: each would be a run of its own, in the
            folder of the others.
    """
    if "RANK" not in os.environ:
        _refuse_ranks_untold()
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(map(str.isdecimal, told)) or int(told[0]) >= int(told[1]):
        raise InputError(
            f"RANK={told[0]} and WORLD_SIZE={told[1]} in the environment are no process of a run: torchrun and "
            "accelerate launch set both; unset RANK and WORLD_SIZE to run one process"
        )
    return int(told[0]), int(told[1])


# Launchers by the variable in which a task finds how many there are. A job of SLURM may have many tasks and this
# process be alone in it, in the batch script or under torchrun: what counts is the step that started it.
_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "MPI_LOCALNRANKS": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "PALS_LOCAL_SIZE": "mpiexec",
}
_STEPS = ("SLURM_STEP_ID", "SLURM_STEPID")


def _tasks(variable: str) -> str:
    """How many tasks a launcher started. Of a step of SLURM without that number, the number of the job's tasks."""
    count = os.environ.get(variable, "")
    step = any(name in os.environ for name in _STEPS) or os.environ.get("SLURM_PROCID", "0") != "0"
    if variable == "SLURM_STEP_NUM_TASKS" and not count and step:
        return os.environ.get("SLURM_NTASKS") or os.environ.get("SLURM_NPROCS", "")
    return count


def _refuse_ranks_untold() -> None:
    for variable, launcher in _LAUNCHERS.items():
        count = _tasks(variable)
        if not count.isdecimal() or int(count) < 2:
            continue
        program = sys.argv[0] if sys.argv[0].endswith(".py") else "pretrain/run.py"
        start = f"torchrun --nproc_per_node {count} {program} …"
        if launcher == "srun":
            nodes = os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or "1"
            each = max(1, int(count) // int(nodes)) if nodes.isdecimal() and int(nodes) else int(count)
            ends = "" if nodes == "1" else " --nnodes $SLURM_NNODES --rdzv_backend c10d --rdzv_endpoint HOST:29500"
            start = f"srun --ntasks-per-node 1 torchrun{ends} --nproc_per_node {each} {program} …"
        raise InputError(
            f"{launcher} started {count} tasks of this command ({variable}) and none of them has a RANK, so "
            f"each would be a run of its own in the same folder. Let torchrun start the processes of one run:\n"
            f"  {start}\n"
            f"For one process, start one task. For runs of their own, each with its own --out, set RANK=0 WORLD_SIZE=1"
        )


def check_precision(precision: str) -> bool:
    """Whether the run will compute on a GPU, which half precision needs.

    Raises:
        InputError: unknown precision, or half precision without a GPU. fp16 has no kernels there; the bf16 weight
            gradient of a 3D convolution over maps two voxels wide reads memory that was never set (torch 2.15, oneDNN).
    """
    import torch

    if precision not in PRECISIONS:
        raise InputError(f"--train.precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    if precision in ("fp16", "bf16") and not on_gpu:
        raise InputError(
            f"--train.precision {precision} needs a GPU; use auto or fp32 on a CPU, where half precision gains "
            "nothing and can give gradients that are not finite"
        )
    return on_gpu


def build_accelerator(
    *,
    precision: str,
    out: Path,
    trackers: Sequence[str],
    find_unused: bool = False,
    threads: int = 0,
    timeout_hours: float = 2.0,
):
    """Create the Accelerator for one run.

    Args:
        precision: ``auto`` is bf16 on a GPU that has it, else fp32.
        out: run folder; trackers may write there.
        trackers: names accelerate knows (``tensorboard``, ``wandb``, ``mlflow`` …); opened by ``start_trackers``.
        threads: of a process that computes on the CPU; 0 shares the cores among the processes of this machine
            (launchers set one thread, which leaves a laptop idle).
        find_unused: some trainable parameters get no gradient (an embedding that uses part of the network).
        timeout_hours: collective time-out; the other processes wait this long while one evaluates.

    Raises:
        InputError: half precision without a GPU, or a distributed mode whose state one process cannot save whole.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import DistributedType

    on_gpu = check_precision(precision)
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if not on_gpu:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(threads or max(1, cores() // here))
    # torch warns of gradients in another memory layout than DDP's buckets, as 3D convolutions make them: a small copy
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # torch renames the option, accelerate passes the old name on
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    accelerator = Accelerator(
        cpu=not on_gpu and not torch.backends.mps.is_available(),  # else several CPU processes would not see each other
        mixed_precision={"fp32": "no"}.get(precision, precision),
        log_with=[name for name in trackers if name != "tensorboard"] or None,
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


def check_trackers(names: Sequence[str]) -> None:
    """Stop before any work when a tracker cannot be used: accelerate leaves one that is not installed out in silence.

    Raises:
        InputError: unknown, or its package is not installed.
    """
    if not names:
        return
    from accelerate.tracking import LoggerType, get_available_trackers

    known = [name for name in LoggerType.list() if name != "all"]
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise InputError(f"--log.with {name}: no such tracker; known: {', '.join(known)}")
        if name not in installed:
            raise InputError(f"--log.with {name}: not installed here; `pip install {name}`, or leave it out")


def start_trackers(accelerator, config: dict[str, object], *, names: Sequence[str], out: Path, resumed_at: int) -> None:
    """Open the trackers: TensorBoard in the run folder, others with the project ``voco`` and the folder's name.

    TensorBoard hides what a resumed run will write again, and gets no settings: as hyper-parameters they would make it
    scatter sub-folders over the run folder, which has ``config.yaml``.
    """
    from accelerate.tracking import TensorBoardTracker

    run = Path(out).resolve().name
    options = {"wandb": {"name": run, "dir": str(out)}, "mlflow": {"run_name": run}}
    flat = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
    others = [name for name in names if name != "tensorboard"]
    if others:
        accelerator.init_trackers("voco", config=flat, init_kwargs={k: v for k, v in options.items() if k in others})
    if "tensorboard" in names:
        purge = {"purge_step": resumed_at + 1} if resumed_at else {}
        board = TensorBoardTracker("", logging_dir=str(out), **purge)
        board.start()
        accelerator.trackers.append(board)


def stop_trackers(accelerator) -> None:
    """Close the trackers and leave the processes as they are, so that another training can follow in this one."""
    for tracker in accelerator.trackers:
        if accelerator.is_main_process or not tracker.main_process_only:
            tracker.finish()
    accelerator.trackers = []
