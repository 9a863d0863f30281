from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from voco.engine import launch
from voco.errors import InputError


def test_trackers_that_cannot_be_used_stop_before_any_work(monkeypatch):
    launch.check_trackers([])
    launch.check_trackers(["tensorboard"])
    with pytest.raises(InputError, match=r"no such tracker; known: .*wandb"):
        launch.check_trackers(["tensorboard", "wandbb"])
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(InputError, match="pip install wandb"):
        launch.check_trackers(["wandb"])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        # in a batch script of several tasks, python is started once
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (0, 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),
        # torchrun in a step of one task a node, as accelerate launch
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, (0, 1)),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            "srun started 2 tasks.*srun --ntasks-per-node 1 torchrun --n",
        ),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_NNODES": "2"}, "torchrun --nnodes .SLURM_NNODES.*--nproc_per_node 4"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 tasks.*torchrun --nproc_per_node 4"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "mpirun started 2 tasks of this command .PMI_SIZE"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, "srun started 2 tasks"),
        ({"SLURM_NPROCS": "4", "SLURM_PROCID": "3"}, "srun started 4 tasks"),
    ],
)
def test_ranks_come_from_torchrun_or_the_run_stops(environment, expected, monkeypatch):
    for name in [*launch._LAUNCHERS, *os.environ]:
        if name not in launch._LAUNCHERS and not re.match("SLURM_|RANK$|WORLD_SIZE$", name):
            continue
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, tuple):
        assert launch.launched_rank() == expected
        return
    with pytest.raises(InputError) as error:
        launch.launched_rank()
    assert re.search(expected, str(error.value), re.DOTALL) and "RANK=0 WORLD_SIZE=1" in str(error.value)


@pytest.mark.parametrize("rank", [{"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_a_rank_that_no_run_has(rank, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"no process of a run.*unset RANK"):
        launch.launched_rank()


def test_precision():
    with pytest.raises(InputError, match="choose one of auto, bf16"):
        launch.check_precision("int8")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_needs_a_gpu(precision, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=f"{precision} needs a GPU; use auto or fp32"):
        launch.check_precision(precision)
    assert launch.check_precision("auto") is False
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert launch.check_precision(precision) is True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux only")
@pytest.mark.parametrize(("launched", "expected"), [(False, 0), (True, int(signal.SIGTERM))])
def test_only_a_launcher_takes_its_worker_along(launched, expected):
    # a shell that ends (logging out of a machine) must not stop what nohup keeps alive
    code = (
        "import ctypes; from voco.engine.signals import die_with_parent; die_with_parent()\n"
        "number = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(number)); print(number.value)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
    environment = clean | ({"ACCELERATE_MIXED_PRECISION": "no"} if launched else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) == expected
