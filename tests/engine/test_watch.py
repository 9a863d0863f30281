from __future__ import annotations

import json
import math
import random

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from voco.data.dataset import StepSampler
from voco.engine.checkpoint import Checkpoints, find_checkpoint
from voco.engine.log import MetricLog
from voco.engine.loop import LoopSettings, LoopState, fit
from voco.engine.optim import make_optimizer
from voco.engine.resume import check_same_settings
from voco.engine.signals import StopRequest
from voco.engine.watch import Watch
from voco.errors import InputError


def look_at(watch: Watch, values, key="m", memory=None) -> list[dict]:
    memory = {} if memory is None else memory
    history = []
    for step, value in enumerate(values, 1):
        watch.look(step, {} if value is None else {key: value}, memory)
        history.append(dict(memory))
    return history


@pytest.mark.parametrize("higher, best", [(True, [1, 3, 6]), (False, [1, 2, 5])])
def test_the_best_evaluation_is_remembered_and_told(higher, best):
    told = []
    watch = Watch("m", higher, on_best=told.append)
    history = look_at(watch, [0.5, 0.4, 0.6, 0.6, 0.1, 0.7, math.nan, None])
    assert told == best and history[-1]["best_step"] == best[-1]
    assert history[-1]["best"] == (0.7 if higher else 0.1) and history[-1]["stale"] == 8 - best[-1]
    assert "ended" not in history[-1], "no patience, no end"


@pytest.mark.parametrize("values, ended_at", [
    ([0.5, 0.4, 0.4, 0.4], 4), ([0.5, 0.4, 0.6, 0.5, 0.6, 0.5], 6), ([None, None, None], 3),
    ([0.1, 0.2, 0.3, 0.4], None),
])  # fmt: skip
def test_patience_counts_evaluations_without_improvement(values, ended_at):
    history = look_at(Watch("m", True, patience=3), values)
    ended = [i for i, memory in enumerate(history, 1) if memory.get("ended")]
    assert (ended[0] if ended else None) == ended_at


@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_rate_falls_as_with_torchs_plateau_scheduler(patience, seed):
    source = random.Random(seed)
    losses = [
        source.choice([1.0, 0.9, 0.8, 0.7, 0.6]) + (0.0 if source.random() < 0.3 else i * -0.01) for i in range(40)
    ]
    losses[7] = math.nan
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=patience, threshold=0)
    watch = Watch("other", True, plateau=patience, plateau_key="validation_loss", factor=0.3)
    memory, rates = {}, []
    for step, loss in enumerate(losses, 1):
        scheduler.step(loss)
        watch.look(step, {"validation_loss": loss}, memory)
        rates.append((memory.get("lr_factor", 1.0), optimizer.param_groups[0]["lr"]))
    assert [a for a, _ in rates] == pytest.approx([b for _, b in rates]) and rates[-1][0] < 1


def test_an_evaluation_that_is_repeated_counts_once():
    watch, memory = Watch("m", True, patience=2), {}
    watch.look(10, {"m": 0.5}, memory)
    for _ in range(3):
        watch.look(20, {"m": 0.4}, memory)
    assert memory["stale"] == 1 and "ended" not in memory


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, batch):
        return {"loss": ((self.weight - batch["x"].mean(0)) ** 2).sum()}

    def after_step(self):
        pass


def train(out, *, stop_after=None, steps=40):
    """Train with a validation loss that gets worse half-way; ``stop_after`` ends the process's work there."""
    accelerator = Accelerator(cpu=True)
    method = Line()
    groups = [{"params": [method.weight], "lr_scale": 0.5, "weight_decay": 0.0}]
    optimizer = make_optimizer(
        method, lr=1.0, weight_decay=0, betas=(0.9, 0.999), amsgrad=False, kind="sgd", momentum=0.0, groups=groups
    )
    model, optimizer = accelerator.prepare(method, optimizer)
    checkpoints = Checkpoints(out / "checkpoints", keep=2, accelerator=accelerator)
    log, state = MetricLog(out, accelerator), LoopState()
    if (found := find_checkpoint(out / "checkpoints")) is not None:
        state = LoopState.from_dict(checkpoints.load(found, method, optimizer))
    log.rewind(state.step)
    told = []
    watch = Watch("m", False, patience=6, plateau=2, factor=0.5, on_best=told.append)
    with StopRequest() as stop:

        def batches():
            for positions in StepSampler(state.step, steps, 2):
                if stop_after is not None and state.step == stop_after:
                    stop.received = "SIGTERM"
                yield {"x": torch.stack([torch.full((3,), float(p % 7)) for p in positions])}

        def evaluate(step):
            value = abs(step - 12) / 10
            return {"m": value, "validation_loss": value}

        state = fit(
            accelerator, model, optimizer, batches(), state=state, checkpoints=checkpoints, log=log, stop=stop,
            evaluate=evaluate, watch=watch,
            settings=LoopSettings(steps, lambda step: 0.1, log_every=1, save_every=5, eval_every=3),
        )  # fmt: skip
    return method.weight.detach(), state, told


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, *train(out)


def test_training_ends_early_and_the_rate_follows_the_plateau(whole):
    out, _, state, told = whole
    # evaluations at 3, 6, 9, 12 improve; the sixth without is at step 30; the rate falls after the third
    assert state.step == 30 and told == [3, 6, 9, 12] and state.watch["best_step"] == 12
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}
    assert rates[21] == 0.1 and rates[22] == 0.05 and rates[30] == 0.05
    assert state.watch["lr_factor"] == 0.25, "the third evaluation after the first fall is also the last one"


@pytest.mark.parametrize("stop_after", [4, 12, 22, 29])
def test_a_continued_run_remembers_what_it_watched(whole, tmp_path, stop_after):
    out, weight, state, told = whole
    _, first, heard = train(tmp_path, stop_after=stop_after)
    assert first.step == stop_after + 1
    again, second, more = train(tmp_path)
    assert torch.equal(again, weight) and second.watch == state.watch and [*heard, *more] == told
    assert (tmp_path / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()


def test_a_run_that_ended_early_is_over(whole):
    out, weight, state, _ = whole
    again, second, told = train(out)
    assert second.step == state.step == 30 and told == [] and torch.equal(again, weight)


def test_groups_learn_at_their_own_rate():
    weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    holder = nn.ParameterList(weights)
    groups = [{"params": [w], "lr_scale": s, "weight_decay": 0.0} for w, s in zip(weights, (1.0, 0.25))]
    optimizer = make_optimizer(
        holder, lr=0.1, weight_decay=0.5, betas=(0.9, 0.999), amsgrad=False, kind="sgd", momentum=0.0, groups=groups
    )
    sum(w.sum() for w in weights).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group.get("lr_scale", 1.0)
    optimizer.step()
    assert weights[0].flatten().tolist() == pytest.approx([0.9] * 4) and weights[1].tolist() == pytest.approx(
        [0.975] * 2
    )
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    for kind, cls in kinds.items():
        made = make_optimizer(holder, lr=0.1, weight_decay=0.1, betas=(0.9, 0.99), amsgrad=False, kind=kind)
        assert type(made) is cls and [g["weight_decay"] for g in made.param_groups] == [0.1, 0.0]
    made = make_optimizer(
        holder, lr=0.1, weight_decay=0.1, betas=(0.9, 0.99), amsgrad=False, kind="sgd", momentum=0.8, dampening=0.7,
        decay="all",
    )  # fmt: skip
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0.1]
    assert {(g["momentum"], g["dampening"]) for g in made.param_groups} == {(0.8, 0.7)}


def test_other_settings_are_listed_and_free_ones_are_not(tmp_path):
    saved = tmp_path / "config.yaml"
    check_same_settings(saved, {"seed": 1}, [])  # nothing there yet
    saved.write_text("seed: 0\ntrain: {lr: 0.1, steps: 5}\ndata: {workers: 2, root: a}\n")
    same = {"seed": 0, "train": {"lr": 0.1, "steps": 5}, "data": {"workers": 4, "root": "b"}}
    check_same_settings(saved, same, ["data.workers", "data.root"])
    other = {**same, "seed": 3, "train": {"lr": 0.2, "steps": 5}}
    with pytest.raises(InputError, match=r"(?s)seed: 0 -> 3.*train.lr: 0.1 -> 0.2") as error:
        check_same_settings(saved, other, ["data.workers", "data.root"])
    assert "train.steps" not in str(error.value) and "workers" not in str(error.value)


def test_a_setting_of_a_later_version_stands_for_what_was_done_without_it(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text("seed: 0\neval: {every: 5}\n")
    check_same_settings(saved, {"seed": 0, "eval": {"every": 5, "cross": 0}}, [], {"eval.cross": 0})
    with pytest.raises(InputError, match=r"eval.cross: 0 -> 3"):
        check_same_settings(saved, {"seed": 0, "eval": {"every": 5, "cross": 3}}, [], {"eval.cross": 0})
    with pytest.raises(InputError, match=r"eval.cross: \(not set\) -> 0"):
        check_same_settings(saved, {"seed": 0, "eval": {"every": 5, "cross": 0}}, [])
