from __future__ import annotations

import os
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
