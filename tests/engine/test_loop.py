from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from voco.data.dataset import StepSampler, make_loader
from voco.engine.checkpoint import Checkpoints, damage, find_checkpoint, list_checkpoints
from voco.engine.log import MetricLog, duration
from voco.engine.loop import LoopSettings, LoopState, _step, explain_out_of_memory, fit, resolve_resume
from voco.engine.optim import learning_rate, make_optimizer
from voco.engine.signals import StopRequest
from voco.errors import InputError
from voco.rng import generator


class Numbers(torch.utils.data.Dataset):
    seed = 0

    def __getitem__(self, position):
        return {"x": torch.randn(6, generator=generator(0, position)), "position": torch.tensor(position)}


class Method(nn.Module):
    """A tiny method with a BatchNorm and a moving average, to see that every kind of state is carried."""

    def __init__(self, poison=()):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.teacher = nn.Linear(8, 1).requires_grad_(False)
        self.poison = set(poison)
        self.updates = 0

    def forward(self, batch):
        x = batch["x"]
        if self.poison & set(batch["position"].tolist()):
            x = x * math.nan
        return {"loss": (self.net(x) - x.sum(1, keepdim=True)).pow(2).mean()}

    @torch.no_grad()
    def after_step(self):
        self.updates += 1
        self.teacher.weight.lerp_(self.net[3].weight, 0.1)


class Trainer:
    def __init__(self, out, steps=20, poison=(), stop_at=None, **settings):
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(cpu=True)
        self.method = Method(poison)
        optimizer = make_optimizer(self.method, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999), amsgrad=True)
        self.model, self.optimizer = self.accelerator.prepare(self.method, optimizer)
        self.checkpoints = Checkpoints(out / "checkpoints", keep=2, accelerator=self.accelerator)
        self.log = MetricLog(out, self.accelerator)
        self.stop_at = stop_at
        self.settings = LoopSettings(
            steps=steps,
            learning_rate=lambda s: learning_rate(s, steps=20, lr=1e-2, warmup=3),
            **{"log_every": 3, "save_every": 5, "eval_every": 10, "clip": 1.0, **settings},
        )

    def evaluate(self, step):
        assert not self.method.training
        return {"heldout/weight": float(self.method.teacher.weight.sum())}

    def run(self):
        state = LoopState()
        found = find_checkpoint(self.out / "checkpoints")
        if found is not None:
            state = LoopState.from_dict(self.checkpoints.load(found, self.method, self.optimizer))
        self.log.rewind(state.step)
        sampler = StepSampler(state.step, self.settings.steps, 4, self.settings.accumulate)
        with StopRequest() as stop:
            batches = self._watched(iter(make_loader(Numbers(), sampler, workers=0, timeout=0, pin=False)), state)
            return fit(
                self.accelerator,
                self.model,
                self.optimizer,
                batches,
                settings=self.settings,
                state=state,
                checkpoints=self.checkpoints,
                log=self.log,
                stop=stop,
                evaluate=self.evaluate,
            )

    def _watched(self, batches, state):
        for batch in batches:
            if self.stop_at is not None and state.step == self.stop_at:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = Trainer(tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer


@pytest.mark.parametrize("stop_at", [0, 4, 6, 9, 17])
def test_stopped_anywhere_and_resumed_is_bit_identical(whole, tmp_path, stop_at):
    first = Trainer(tmp_path, stop_at=stop_at)
    assert first.run().step == stop_at + 1
    second = Trainer(tmp_path)
    assert second.run().step == 20
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole.out / "metrics.jsonl").read_bytes()
    for (name, a), b in zip(whole.method.state_dict().items(), second.method.state_dict().values()):
        assert torch.equal(a, b), name


def test_rows_after_the_checkpoint_are_forgotten_after_a_crash(whole, tmp_path):
    Trainer(tmp_path, stop_at=9).run()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "loss": 1.0}\n{"step": 15, "lo')
    Trainer(tmp_path).run()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole.out / "metrics.jsonl").read_bytes()


def test_training_lowers_the_loss_and_logs_what_it_says(whole):
    rows = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["loss"] for r in rows if "loss" in r}
    assert list(losses) == [3, 6, 9, 12, 15, 18, 20]
    assert losses[20] < losses[3]
    assert [r["step"] for r in rows if "heldout/weight" in r] == [10, 20]
    assert rows[0]["lr"] == pytest.approx(1e-2) and not any("second" in k for r in rows for k in r)
    timing = json.loads((whole.out / "timings.jsonl").read_text().splitlines()[-1])
    assert timing["volumes_per_second"] > 0


def test_non_finite_steps_are_left_out_and_counted(tmp_path):
    trainer = Trainer(tmp_path, poison={13, 14, 30})
    state = trainer.run()
    assert state.skipped == 2 and state.skipped_in_a_row == 0
    assert trainer.method.updates == 18
    for name, value in trainer.method.state_dict().items():
        assert torch.isfinite(value.float()).all(), name
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-2 if "loss" not in rows[-1] else -1]["skipped"] == 2


def test_too_many_non_finite_steps_stop_the_run_and_keep_the_good_checkpoint(tmp_path):
    trainer = Trainer(tmp_path, poison=range(24, 80), max_skipped=3)
    with pytest.raises(FloatingPointError, match="3 steps in a row, up to step 9"):
        trainer.run()
    assert find_checkpoint(tmp_path / "checkpoints").name == "step-00000005"


def test_endless_overflows_of_the_scaler_count_towards_the_stop():
    state, optimizer = LoopState(), SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none: None)
    values = {"loss": 1.0, "grad_norm": math.inf}
    for _ in range(3):
        _step(SimpleNamespace(scaler=object()), optimizer, SimpleNamespace(), values, state, [])
    assert (state.overflows, state.skipped, state.skipped_in_a_row) == (3, 0, 3)
    good = SimpleNamespace(after_step=lambda: None)
    _step(SimpleNamespace(scaler=object()), optimizer, good, {"loss": 1.0, "grad_norm": 2.0}, state, [])
    assert (state.overflows, state.skipped_in_a_row) == (3, 0)


def test_accumulation_equals_one_large_batch_where_nothing_spans_the_batch(tmp_path):
    weights = []
    for accumulate in (1, 2):
        trainer = Trainer(tmp_path / str(accumulate), steps=5, accumulate=accumulate, save_every=0)
        trainer.method.net[1] = nn.Identity()
        trainer.optimizer = trainer.accelerator.prepare(
            make_optimizer(trainer.method, lr=1e-2, weight_decay=0, betas=(0.9, 0.999), amsgrad=False)
        )
        trainer.run()
        weights.append(trainer.method.net[0].weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_checkpoints_are_whole_few_and_last_points_to_the_newest(whole):
    root = whole.out / "checkpoints"
    assert [p.name for p in list_checkpoints(root)] == ["step-00000015", "step-00000020"]
    assert (root / "last").resolve().name == "step-00000020"
    assert not list(root.glob(".part-*"))


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    Trainer(tmp_path).run()
    root = tmp_path / "checkpoints"
    newest = root / "step-00000020" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    assert "instead of" in damage(newest.parent)
    assert find_checkpoint(root).name == "step-00000015"
    trainer = Trainer(tmp_path / "other")
    with pytest.raises(InputError, match="damaged"):
        trainer.checkpoints.load(newest.parent, trainer.method, trainer.optimizer)


def test_a_checkpoint_of_another_model_lists_the_differences(whole):
    other = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"net\.0\.weight"):
        whole.checkpoints.load(whole.out / "checkpoints" / "step-00000020", other, None)


def test_resolve_resume(whole, tmp_path):
    assert resolve_resume("auto", tmp_path) is None
    assert resolve_resume("auto", whole.out).name == "step-00000020"
    assert resolve_resume(str(whole.out), tmp_path).name == "step-00000020"
    assert resolve_resume(str(whole.out / "checkpoints" / "step-00000015"), tmp_path).name == "step-00000015"
    with pytest.raises(InputError, match="already holds"):
        resolve_resume("never", whole.out)
    with pytest.raises(InputError, match="no whole checkpoint"):
        resolve_resume(str(tmp_path), tmp_path)


def test_another_runs_checkpoint_is_only_where_a_run_starts(whole, tmp_path):
    own = Trainer(tmp_path, stop_at=6)
    own.run()
    assert resolve_resume(str(whole.out), tmp_path).parent.parent == tmp_path, (
        "the same command must go on after a stop"
    )
    first = whole.out / "checkpoints" / "step-00000015"
    with pytest.raises(InputError, match=r"later than step-00000015 \(step-00000020\)"):
        resolve_resume(str(first), whole.out)
    assert resolve_resume(str(whole.out / "checkpoints" / "last"), whole.out).name == "step-00000020"


def test_torn_checkpoints_of_a_killed_process_are_cleared_away(tmp_path):
    torn = tmp_path / "checkpoints" / ".part-step-00000003"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path / "checkpoints") is None
    Trainer(tmp_path, steps=5).run()
    assert not torn.exists() and find_checkpoint(tmp_path / "checkpoints").name == "step-00000005"


def test_a_new_start_forgets_all_rows(whole, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "x": 1}\n{"step": 3, "x": 1}\n')
    log = MetricLog(tmp_path, whole.accelerator)
    log.rewind(0)
    assert [row["step"] for row in log.rows()] == [0]
    log.rewind(None)
    assert log.rows() == []


def test_learning_rate_warms_up_and_ends_at_the_floor():
    rates = [learning_rate(s, steps=100, lr=2.0, warmup=10, floor=0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == 2.0 and rates[10] == 2.0
    assert rates[55] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5)) and rates[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_optimizer_decays_matrices_only():
    groups = make_optimizer(Method(), lr=1, weight_decay=0.3, betas=(0.9, 0.99), amsgrad=False).param_groups
    assert all(p.ndim > 1 for p in groups[0]["params"]) and groups[0]["weight_decay"] == 0.3
    assert all(p.ndim == 1 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0.0
    assert sum(len(g["params"]) for g in groups) == 6, "the frozen teacher must not be in the optimizer"


def test_out_of_memory_names_the_settings():
    with pytest.raises(InputError, match=r"Lower --train\.batch_size"), explain_out_of_memory("--train.batch_size"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_allocators_that_raise_a_plain_error_are_understood_and_others_pass():
    for text in (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDNN_STATUS_ALLOC_FAILED",
    ):
        with pytest.raises(InputError, match="Lower x"), explain_out_of_memory("x"):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory("x"):
        raise RuntimeError("shapes differ")


def test_durations():
    assert [duration(s) for s in (5, 65, 3700, math.nan)] == ["5 s", "1 min 05 s", "1 h 01 min", "?"]


def test_a_worker_is_told_when_its_launcher_dies(tmp_path):
    flag = tmp_path / "flag"
    worker = (
        "import sys, time\nfrom pathlib import Path\nfrom voco.engine.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        f"    Path({str(flag)!r}).write_text('ready')\n"
        "    end = time.time() + 30\n"
        "    while stop.received is None and time.time() < end: time.sleep(0.02)\n"
        f"    Path({str(flag)!r}).write_text(str(stop.received))\n"
    )
    launcher = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {worker!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", launcher], env={**os.environ, "ACCELERATE_MIXED_PRECISION": "no"})
    _wait_for(lambda: flag.exists() and flag.read_text() == "ready")
    process.send_signal(signal.SIGUSR1)  # the default action ends the launcher without a word to the worker
    process.wait(timeout=30)
    _wait_for(lambda: flag.read_text() == "SIGTERM")


def test_ctrl_c_asks_first_and_interrupts_the_second_time():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_stuck_in_a_call_ends_after_the_grace_time():
    code = (
        "import ctypes\nfrom voco.engine.signals import StopRequest\n"
        "with StopRequest(grace_seconds=0.5):\n"
        "    print('ready', flush=True)\n"
        "    lock = ctypes.CDLL(None)\n"
        "    sem = ctypes.create_string_buffer(64)\n"
        "    lock.sem_init(sem, 0, 0)\n"
        "    while True: lock.sem_wait(sem)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 1


def _wait_for(condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "timed out"
        time.sleep(0.05)
