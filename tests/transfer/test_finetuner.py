from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator

from tests.finetune.made import in_processes
from voco.encoders import create_encoder
from voco.engine.checkpoint import Checkpoints, find_checkpoint
from voco.engine.log import MetricLog
from voco.engine.loop import LoopSettings, LoopState, fit
from voco.engine.optim import make_optimizer
from voco.engine.signals import StopRequest
from voco.errors import InputError
from voco.rng import generator
from voco.tasks import create_task
from voco.transfer.augment import StudyAugmentation, augment_windows
from voco.transfer.finetuner import FineTuner
from voco.transfer.model import HeadOptions, StudyModel, output_widths, parameter_groups

SIZE = (16, 32, 32)


def task():
    return create_task("table", labels=["tumour", "node"], kind="multilabel")


def tuner(freeze_steps=0, features="pool", **settings) -> FineTuner:
    torch.manual_seed(0)
    made = task()
    model = StudyModel(create_encoder("cnn3d_s"), output_widths(made.outputs), HeadOptions(features=features))
    return FineTuner(model, made, freeze_steps=freeze_steps, **settings)


def batch(step=0, augmented=False) -> dict[str, torch.Tensor]:
    """Two studies of two and one windows."""
    source = generator(9, step)
    found = {
        "hu": (torch.randn(2, 2, 1, *SIZE, generator=source) * 300).to(torch.int16),
        "valid": torch.tensor([[True, True], [True, False]]),
        "targets": torch.tensor([[1.0, 0.0], [0.0, float("nan")]]),
    }
    if augmented:
        draws = [StudyAugmentation().draw(source, (0, 1, 2)) for _ in range(2)]
        found |= {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    return found


def test_the_loss_is_divided_by_the_weight_that_a_sample_is_expected_to_have():
    method = tuner(expected={"node": 0.5}).eval()
    found = method(batch())
    with torch.no_grad():
        x = batch()
        logits = method.model(x["hu"][x["valid"]].float(), x["valid"])
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    tumour = cross_entropy(logits["tumour"][:, 0], torch.tensor([1.0, 0.0]))
    node = cross_entropy(logits["node"][:1, 0], torch.tensor([0.0]))
    assert found["loss"].item() == pytest.approx((tumour + node).item() / 2, rel=1e-5)
    assert found["loss_tumour"].item() == pytest.approx(tumour.item(), rel=1e-5)
    weights = {"tumour": [1.0, 3.0], "node": [1.0, 1.0]}
    weighted = tuner(class_weights=weights, expected={"tumour": 2.5}).eval()(batch())
    each = cross_entropy(logits["tumour"][:, 0], torch.tensor([1.0, 0.0]), reduction="none")
    assert weighted["loss_tumour"].item() == pytest.approx(((3 * each[0] + each[1]) / (2 * 2.5)).item(), rel=1e-5)


def test_augmentation_is_that_of_the_study_and_only_in_training():
    method, x = tuner(), batch(augmented=True)
    seen = []
    method.model.forward = lambda hu, valid: (
        seen.append(hu) or {"tumour": hu.new_zeros(2, 1), "node": hu.new_zeros(2, 1)}
    )
    method.eval()(x)
    method.train()(x)
    plain = x["hu"][x["valid"]].float()
    assert torch.equal(seen[0], plain)
    names, study = ("flips", "turns", "plane", "values", "noise_seed"), [0, 0, 1]
    literal = [augment_windows(plain[i : i + 1], *(x[n][s : s + 1] for n in names)) for i, s in enumerate(study)]
    assert torch.allclose(seen[1], torch.cat(literal), atol=1e-2) and not torch.equal(seen[1], plain)


def run(out, *, steps=5, stop_after=None, freeze=3):
    """A short training through the engine; returns the method and its weights after every step."""
    accelerator = Accelerator(cpu=True)
    method = tuner(freeze_steps=freeze, features="sequence", ema=0.25)
    groups = parameter_groups(method.model, weight_decay=0.1, layer_decay=0.5)
    assert {g["weight_decay"] for g in groups} == {0.1, 0.0}
    everything = parameter_groups(method.model, weight_decay=0.1, layer_decay=0.5, decay="all")
    assert {g["weight_decay"] for g in everything} == {0.1}
    optimizer = make_optimizer(method, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999), amsgrad=False, groups=groups)
    model, optimizer = accelerator.prepare(method, optimizer)
    checkpoints = Checkpoints(out / "checkpoints", keep=9, accelerator=accelerator)
    log, state, history = MetricLog(out, accelerator), LoopState(), {}
    if (found := find_checkpoint(out / "checkpoints")) is not None:
        state = LoopState.from_dict(checkpoints.load(found, method, optimizer))
    log.rewind(state.step)
    with StopRequest() as stop:

        def batches():
            for step in range(state.step, steps):
                history[step] = copy.deepcopy(method.model.state_dict())
                if stop_after == step:
                    stop.received = "SIGTERM"
                yield batch(step)

        fit(
            accelerator, model, optimizer, batches(), state=state, checkpoints=checkpoints, log=log, stop=stop,
            settings=LoopSettings(steps, lambda step: 1e-2, log_every=1, save_every=0, eval_every=0),
        )  # fmt: skip
    history[state.step] = copy.deepcopy(method.model.state_dict())
    return method, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def changed(one, two, prefix) -> bool:
    names = [name for name in one if name.startswith(prefix)]
    return any(not torch.equal(one[name], two[name]) for name in names)


def test_the_encoder_rests_while_it_is_frozen_and_then_learns(whole):
    method, history = whole
    for step in range(5):
        assert changed(history[step], history[step + 1], "encoder.") == (step >= 3), step
        assert changed(history[step], history[step + 1], "head.") and changed(
            history[step], history[step + 1], "sequence."
        )
    assert not method.model.frozen and method.model.encoder.training and int(method.steps_done) == 5


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_continued_run_unfreezes_at_the_same_step(whole, tmp_path, stop_after):
    run(tmp_path, stop_after=stop_after)
    method, history = run(tmp_path)
    assert min(history) == stop_after + 1
    for step, weights in history.items():
        for name, value in weights.items():
            assert torch.equal(value, whole[1][step][name]), (step, name)
    assert int(method.steps_done) == 5
    for name, value in method.scored.state_dict().items():
        assert torch.equal(value, whole[0].scored.state_dict()[name]), name


def test_what_is_scored_is_a_moving_average_of_weights_and_statistics(whole):
    method, history = whole
    assert method.scored is not method.model and not method.scored.training
    for name, found in method.scored.state_dict().items():
        expected = history[0][name].double()
        for step in range(1, 6):
            decay = min(0.25, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * history[step][name].double()
        if found.is_floating_point():
            assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6), name
        else:
            assert torch.equal(found, history[5][name])
    assert changed(method.scored.state_dict(), history[5], "encoder.")
    assert not any(p.requires_grad for p in method.scored.parameters())


def test_without_an_average_the_last_weights_are_scored():
    method = tuner()
    assert method.scored is method.model
    with pytest.raises(InputError, match=r"--train.ema 1.0: .* lies in"):
        tuner(ema=1.0)


def step_of_a_rank(freeze_steps):
    """Ranks with running statistics of their own; 0 where they agree on the mean after a step."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    method = tuner(freeze_steps=freeze_steps, batchnorm="local").train()
    norms = [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    for i, norm in enumerate(norms):
        norm.running_mean.fill_(i + 10.0 * rank)
        norm.running_var.fill_(1.0 + rank)
    method.after_step()
    shift, var = (5.0, 1.5) if not freeze_steps else (10.0 * rank, 1.0 + rank)
    right = all((n.running_mean == i + shift).all() and (n.running_var == var).all() for i, n in enumerate(norms))
    return 0 if right and norms else 1


@pytest.mark.parametrize("freeze_steps", [0, 2])
def test_ranks_are_one_model_after_each_step(freeze_steps):
    assert in_processes(step_of_a_rank, freeze_steps, world=2) == [0, 0]


def test_a_window_too_small_to_learn_from_is_explained():
    method = tuner().train()
    x = batch()
    single = {
        "hu": x["hu"][:1, :1, :, :, :16, :16],
        "valid": torch.ones(1, 1, dtype=torch.bool),
        "targets": x["targets"][:1],
    }
    with pytest.raises(InputError, match="one window of 16 16 16 voxels"):
        method(single)
