"""One step, however its batch is cut: into micro-batches, over processes, and with BatchNorm over all of them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from finetune.training import count_classes, expected_weights
from tests.finetune.made import in_processes
from voco.encoders import create_encoder, load_encoder
from voco.encoders.base import Encoder
from voco.encoders.cnn3d import CNN3D, SPEC
from voco.encoders.spec import InputSpec
from voco.engine.launch import build_accelerator
from voco.engine.loop import _accumulate_gradients, _Clock
from voco.rng import generator
from voco.tasks import create_task
from voco.transfer.finetuner import FineTuner, batch_statistics
from voco.transfer.model import StudyModel, output_widths
from voco.weights.export import save_encoder

SIZE = (16, 16, 16)
TABLE = {"name": "table", "labels": ["one", "two"]}
GRADES = {"one": ["a", "b", "c"], "two": ["x", "y"]}
# task, what is learned, class weights, label smoothing
CASES = {
    "rsna_pe": ({"name": "rsna_pe"}, "study", "balanced", 0.0),
    "rsna_pe_window": ({"name": "rsna_pe"}, "window", "balanced", 0.1),
    "rsna_pe_exam": ({"name": "rsna_pe", "heads": "exam"}, "study", "balanced", 0.0),
    "lidc_window": ({"name": "lidc"}, "window", "balanced", 0.0),
    "imageclef_tb": ({"name": "imageclef_tb"}, "study", "balanced", 0.1),
    "trauma_task": ({"name": "rsna_trauma"}, "study", "task", 0.0),
    "trauma_balanced": ({"name": "rsna_trauma"}, "study", "balanced", 0.1),
    "trauma_two_organs": ({"name": "rsna_trauma", "organs": ["liver", "bowel"]}, "study", "task", 0.0),
    "multilabel": ({**TABLE, "kind": "multilabel"}, "study", "balanced", 0.0),
    "multilabel_unweighted": ({**TABLE, "kind": "multilabel"}, "study", "none", 0.2),
    "multiclass": ({**TABLE, "kind": "multiclass", "classes": GRADES}, "study", "balanced", 0.0),
    "regression": ({**TABLE, "kind": "regression"}, "study", "none", 0.0),
}
BATCH = 8
# (processes, micro-batches) besides one batch in one process
CUTS = ((1, 2), (1, 8), (2, 1), (2, 2))


class Plain(Encoder):
    """One convolution, no batch statistics."""

    def __init__(self):
        super().__init__(InputSpec(), [{"num_chs": 6, "reduction": (4, 4, 4)}])
        self.layer = nn.Conv3d(1, 6, 5, 4, 2)

    def _maps(self, x):
        return [self.layer(x).tanh()]


def training_set(task, count=40):
    """Targets of training units, rare classes and a third of the labels missing, and how often each is drawn."""
    rng = np.random.default_rng(5)
    targets = {}
    for output in task.outputs:
        width = max(2, output.width)
        values = rng.normal(3, 2, count) if output.kind == "regression" else (rng.random(count) ** 3 * width) // 1
        targets[output.name] = np.where(rng.random(count) < 0.35, np.nan, values)
    shares = rng.uniform(0.2, 3, count)
    return targets, shares / shares.sum()


def weights_of(task, kind, targets):
    if kind == "none":
        return None
    if kind == "task":
        return task.class_weights()
    counts = count_classes(task, targets)
    return {name: (n.sum() / (len(n) * np.maximum(n, 1))).tolist() for name, n in counts.items()}


def tuner(name, encoder=Plain, **settings):
    options, learn, kind, smoothing = CASES[name]
    task = create_task(**options)
    targets, shares = training_set(task)
    weights = weights_of(task, kind, targets)
    if task.name == "table" and options["kind"] == "regression":
        task._std = {"one": 1.7, "two": 0.4}
    torch.manual_seed(0)
    model = StudyModel(encoder(), output_widths(task.outputs), learn=learn, chunk=settings.pop("chunk", 0))
    method = FineTuner(
        model, task, class_weights=weights, expected=expected_weights(task, targets, shares, weights),
        label_smoothing=smoothing, **settings,
    )  # fmt: skip
    return method.double()


def whole_batch(name, windows=3, batch=BATCH):
    """A batch whose parts differ: rare classes at its end, nothing known in the first sample."""
    task, learn = create_task(**CASES[name][0]), CASES[name][1]
    targets, _ = training_set(task)
    rows = np.stack([targets[output.name][:batch] for output in task.outputs], 1)
    rows = rows[np.argsort(rows[:, 0])]
    rows[0] = np.nan
    source, k = generator(3), windows if learn == "study" else 1
    count = torch.randint(1, k + 1, (batch,), generator=source)
    return {
        "hu": (torch.randn(batch, k, 1, *SIZE, generator=source) * 400).to(torch.int16),
        "valid": torch.arange(k)[None] < count[:, None],
        "targets": torch.from_numpy(rows).double(),
    }


def cut(batch, micro, accumulate, rank=0, world=1):
    """The part of a process of one micro-batch, as ``StepSampler`` cuts."""
    size = len(batch["hu"]) // (accumulate * world)
    first = (micro * world + rank) * size
    return {name: value[first : first + size] for name, value in batch.items()}


def one_step(accelerator, method, batch, accumulate):
    """Loss, gradients and running statistics of the engine's step."""
    method = method.train()
    model = accelerator.prepare(method)
    rank, world = accelerator.process_index, accelerator.num_processes
    parts = [cut(batch, micro, accumulate, rank, world) for micro in range(accumulate)]
    terms, _ = _accumulate_gradients(accelerator, model, iter(parts), accumulate, _Clock())
    method.after_step()
    return {
        "loss": accelerator.reduce(terms["loss"], "mean"),
        "gradients": {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None},
        "buffers": {n: b.clone() for n, b in method.model.named_buffers() if "running" in n},
    }


def ranks_work(folder, jobs):
    """Run ``jobs``, (key, function, arguments) each, in this process of several, and keep what they give."""
    accelerator = build_accelerator(precision="fp32", out=folder, trackers=[], find_unused=True, threads=1)
    found = {key: function(accelerator, *arguments) for key, function, arguments in jobs}
    torch.save(found, folder / f"rank{accelerator.process_index}.pt")
    return 0


def in_ranks(folder: Path, world, jobs):
    assert in_processes(ranks_work, folder, jobs, world=world) == [0] * world
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def gradients_of(accelerator, name, accumulate):
    return one_step(accelerator, tuner(name), whole_batch(name), accumulate)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    jobs = [((n, a), gradients_of, (n, a)) for n in CASES for world, a in CUTS if world == 2]
    return in_ranks(tmp_path_factory.mktemp("pair"), 2, jobs)


def literal_loss(name):
    """The loss of the batch in numpy, by hand."""
    method, batch = tuner(name).eval(), whole_batch(name)
    task, (_, _, kind, smoothing) = method.task, CASES[name]
    units, shares = training_set(task)
    weights = weights_of(task, kind, units) or {}
    with torch.no_grad():
        logits = method.model(batch["hu"][batch["valid"]].float(), batch["valid"])
    terms = []
    for i, output in enumerate(task.outputs):
        z, table = logits[output.name].numpy(), weights.get(output.name)
        expected = sum(s * (table[int(y)] if table else 1.0) for y, s in zip(units[output.name], shares) if y == y)
        total = 0.0
        for row, y in zip(z, batch["targets"][:, i].tolist()):
            if np.isnan(y):
                continue
            if output.kind == "regression":
                total += ((row[0] - y) / task._std[output.name]) ** 2
                continue
            full = np.array([0.0, row[0]]) if output.kind == "binary" else row
            log_p = full - np.log(np.exp(full).sum())
            soft = np.full(len(full), smoothing / len(full))
            soft[int(y)] += 1 - smoothing
            total -= (table[int(y)] if table else 1.0) * (soft * log_p).sum()
        terms.append(total / (BATCH * expected))
    return np.mean(terms)


def largest_gap(one, two):
    assert one.keys() == two.keys() and one
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("name", CASES)
def test_gradients_do_not_depend_on_the_cut(name, pair):
    accelerator = Accelerator(cpu=True)
    whole = gradients_of(accelerator, name, 1)
    assert whole["loss"].item() == pytest.approx(literal_loss(name), rel=1e-6)
    size = max(g.abs().max().item() for g in whole["gradients"].values())
    assert size > 1e-4
    for world, accumulate in CUTS:
        if world == 1:
            found = [gradients_of(accelerator, name, accumulate)]
        else:
            found = [rank[name, accumulate] for rank in pair]
        for each in found:
            assert largest_gap(each["gradients"], whole["gradients"]) < 1e-8 * max(1, size), (world, accumulate)
            assert each["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-6)


def test_weights_of_classes_act_in_a_batch_of_one():
    task = create_task("table", labels=["one"], kind="binary")
    weights = {"one": torch.tensor([0.6, 0.6 * 5.98], dtype=torch.float64)}
    losses = [
        task.loss({"one": torch.zeros(1, 1).double()}, {"one": torch.tensor([y]).double()}, class_weights=weights)
        for y in (0.0, 1.0)
    ]
    assert (losses[1]["one"] / losses[0]["one"]).item() == pytest.approx(5.98, rel=1e-9)


def test_where_all_is_known_and_alike_nothing_is_divided():
    task = create_task("rsna_trauma")
    targets = {output.name: np.zeros(7) for output in task.outputs}
    shares = np.random.default_rng(0).random(7)
    assert set(expected_weights(task, targets, shares, None).values()) == {1.0}
    ones = {output.name: [1.0] * max(2, output.width) for output in task.outputs}
    assert set(expected_weights(task, targets, shares, ones).values()) == {1.0}
    unknown = {name: np.full(7, np.nan) for name in targets}
    assert set(expected_weights(task, unknown, shares, None).values()) == {1.0}, "nothing to divide by"
    logits = torch.randn(7, 1, generator=generator(1))
    y = torch.tensor([0.0, 1, 1, 0, 0, 0, 1])
    found = create_task("table", labels=["one"], kind="binary").loss({"one": logits}, {"one": y})["one"]
    each = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y, reduction="none")
    assert torch.equal(found, each.sum() / torch.ones(7).sum()), "to the bit what it was"


# BatchNorm


def network():
    return CNN3D(SPEC, (4, 6, 8, 12))


def norm_step(accelerator, batchnorm, chunk=0, recompute=False, accumulate=1, freeze_steps=0):
    """One step on six studies of one to three windows, so that processes have different numbers of them."""
    method = tuner("multilabel", network, batchnorm=batchnorm, chunk=chunk, freeze_steps=freeze_steps)
    method.model.encoder.set_grad_checkpointing(recompute)
    return one_step(accelerator, method, whole_batch("multilabel", batch=6), accumulate)


NORM_STEPS = {
    "all": ("all",),
    "recomputed": ("all", 0, True),
    "local": ("local",),
    "frozen": ("frozen",),
    "head": ("all", 0, False, 1, 5),
}


def score_apart(accelerator, windows):
    """Evaluation: processes have different numbers of studies, and none waits for another."""
    method = tuner("multilabel", network).eval()
    hu = torch.zeros(windows[accelerator.process_index], 1, *SIZE)
    with torch.no_grad():
        for window in hu:
            method.model(window[None], torch.ones(1, 1, dtype=torch.bool))
    return len(hu)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    jobs = [(name, norm_step, step) for name, step in NORM_STEPS.items()]
    jobs += [("chunked", norm_step, ("all", 1)), ("scored", score_apart, ((2, 0, 5),))]
    return in_ranks(tmp_path_factory.mktemp("three"), 3, jobs)


@pytest.mark.parametrize("name", ["all", "recomputed", "frozen", "head"])
def test_a_step_of_three_processes_is_that_of_one(three, name):
    valid = whole_batch("multilabel", batch=6)["valid"].sum(1).view(3, 2).sum(1)
    assert len(set(valid.tolist())) > 1, "processes with different numbers of windows"
    one = norm_step(Accelerator(cpu=True), *NORM_STEPS[name])
    for rank in three:
        assert rank[name]["loss"].item() == pytest.approx(one["loss"].item(), abs=1e-6)
        for part in ("gradients", "buffers"):
            assert largest_gap(rank[name][part], one[part]) < 1e-8, part
        assert all(torch.equal(rank[name]["buffers"][n], b) for n, b in three[0][name]["buffers"].items())


def test_local_statistics_are_another_loss(three):
    one = norm_step(Accelerator(cpu=True), "local")
    assert abs(three[0]["local"]["loss"] - one["loss"]) > 1e-3
    assert [rank["scored"] for rank in three] == [2, 0, 5]


def test_frozen_statistics_make_the_step_the_same_for_every_cut(three):
    accelerator = Accelerator(cpu=True)
    whole = norm_step(accelerator, "frozen")
    fresh = tuner("multilabel", network).model
    for found in (
        norm_step(accelerator, "frozen", 0, False, 6),
        norm_step(accelerator, "frozen", 2),
        three[1]["frozen"],
    ):
        assert largest_gap(found["gradients"], whole["gradients"]) < 1e-8
        assert all(torch.equal(value, fresh.state_dict()[n]) for n, value in found["buffers"].items())
    assert any("norm" in n and g.abs().max() > 1e-6 for n, g in whole["gradients"].items()), "weights of norms learn"
    accumulated = norm_step(accelerator, "all", 0, False, 2)
    assert abs(accumulated["loss"] - norm_step(accelerator, "all")["loss"]) > 1e-4, "batch statistics follow the cut"


def test_chunks_are_normalised_together_with_those_of_the_other_processes(three):
    """By hand in one process: chunk k holds window k of every process, or its first one where it has no k-th."""
    batch = whole_batch("multilabel", batch=6)
    method = tuner("multilabel", network).train()
    own = [cut(batch, 0, 1, rank, 3) for rank in range(3)]
    hu = [part["hu"][part["valid"]].float() for part in own]
    most = max(map(len, hu))
    assert min(map(len, hu)) < most
    chunks = [method.model._encode(torch.stack([h[k] if k < len(h) else h[0] for h in hu])) for k in range(most)]
    losses = []
    for rank, part in enumerate(own):
        features = torch.stack([chunks[k][rank] for k in range(len(hu[rank]))])
        stacked = features.new_zeros(*part["valid"].shape, features.shape[1])
        stacked[part["valid"]] = features
        logits = method.model.logits(method.model.pool_windows(stacked, part["valid"]))
        targets = {o.name: part["targets"][:, i] for i, o in enumerate(method.task.outputs)}
        weights = {name: getattr(method, f"weight_{name}") for name in method.weighted}
        losses.append(
            sum(method.task.loss(logits, targets, class_weights=weights, expected=method.expected).values()) / 2
        )
    loss = sum(losses) / 3
    loss.backward()
    expected = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    buffers = {n: b for n, b in method.model.named_buffers() if "running" in n}
    for rank in three:
        assert rank["chunked"]["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
        assert largest_gap(rank["chunked"]["gradients"], expected) < 1e-8
        assert largest_gap(rank["chunked"]["buffers"], buffers) < 1e-10, "moved once a chunk, although recomputed"


def test_a_saved_encoder_knows_nothing_of_it(tmp_path):
    method = tuner("multilabel", lambda: create_encoder("cnn3d_s"), batchnorm="all").float()
    plain = create_encoder("cnn3d_s")
    save_encoder(method.model.encoder, tmp_path / "encoder", {"method": "test"})
    loaded = load_encoder(tmp_path / "encoder")
    assert list(loaded.state_dict()) == list(plain.state_dict())
    kinds = {type(m) for m in loaded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.BatchNorm3d}


@pytest.mark.parametrize("batchnorm, world, samples, windows, most", [
    ("all", 3, 2, 4, 24), ("local", 3, 2, 4, 8), ("all", 1, 2, 4, 8),
])  # fmt: skip
def test_what_statistics_are_taken_over_is_said(batchnorm, world, samples, windows, most):
    encoder = network().eval()
    layers = sum(isinstance(m, nn.BatchNorm3d) for m in encoder.modules())
    found = batch_statistics(encoder, batchnorm, world=world, samples=samples, windows=windows, chunk=0)
    together = world if batchnorm == "all" else 1
    assert found == {
        "batchnorm": batchnorm, "layers": layers, "processes": together, "samples": samples * together,
        "windows_at_most": most,
    }  # fmt: skip
    assert not encoder.training
    chunked = batch_statistics(encoder, batchnorm, world=world, samples=samples, windows=windows, chunk=3)
    assert chunked["windows_at_most"] == 3 * together
    frozen = batch_statistics(encoder, "frozen", world=world, samples=samples, windows=windows, chunk=0)
    assert frozen == {"batchnorm": "frozen", "layers": 0}


def test_an_average_of_weights_keeps_frozen_statistics():
    method = tuner("multilabel", network, batchnorm="frozen", ema=0.5).train()
    before = copy.deepcopy(method.average.state_dict())
    method(cut(whole_batch("multilabel"), 0, 1))["loss"].backward()
    method.after_step()
    assert all(torch.equal(before[n], v) for n, v in method.average.state_dict().items() if "running" in n)
    method.eval()
    method.train()
    assert not any(m.training for m in method.model.encoder.modules() if isinstance(m, nn.BatchNorm3d))
