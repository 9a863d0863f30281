"""2D-VoCo against a slow literal version, its presets, and the health report on it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from voco.crops import overlap_labels
from voco.encoders.base import Encoder
from voco.encoders.cnn3d import CNN3D, SPEC
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.geometry import Augmentation, Geometry
from voco.health import build_eval_windows, calibrate_batchnorm, evaluate, evaluate_histogram
from voco.methods import method_class
from voco.methods.options2d import PRESETS, VoCo2DOptions, resolve
from voco.methods.voco2d import VoCo2D, slice_places
from voco.reference import reference_lines
from voco.rng import generator

GEOMETRY = Geometry(crop=16)
STILL = Augmentation(flip_prob=0, turn_prob=0, shift_prob=0)
EVERYTHING = Augmentation(flip_prob=0.5, turn_prob=0.5, shift_prob=1.0)


class Slices(Encoder):
    """Two 2D convolutions with batch norm over every slice; the vector of a slice is its mean or its flattened map."""

    def __init__(self, flatten: bool = False):
        infos = [{"num_chs": n, "reduction": (1, r, r), "module": m} for n, r, m in ((6, 2, "one"), (10, 4, "two"))]
        super().__init__(InputSpec(windows=((-800.0, 400.0),), mean=(0.4,), std=(0.3,)), infos)
        self.one, self.two = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, 10, 3, 2, 1)
        self.norm, self.flatten, self.calls = nn.BatchNorm2d(10), flatten, []

    @property
    def num_features(self) -> int:
        return 160 if self.flatten else 10

    def vectors(self, slices):
        """(R, 1, 16, 16) slices to (R, num_features)."""
        maps = self.norm(self.two(self.one(slices).tanh())).tanh()
        return maps.flatten(1) if self.flatten else maps.mean((2, 3))

    def _maps(self, x):
        self.calls.append(tuple(x.shape))
        first = self.one(x.transpose(1, 2).flatten(0, 1)).tanh()
        maps = first, self.norm(self.two(first)).tanh()
        return [m.unflatten(0, (len(x), -1)).transpose(1, 2) for m in maps]

    def sequence(self, x):
        maps = self.forward_features(x).transpose(1, 2)
        return maps.flatten(2) if self.flatten else maps.mean((3, 4))

    def pool(self, x):
        return self.sequence(x).mean(1)


def build(
    preset="default", flatten=False, dtype=torch.float64, seed=0, geometry=GEOMETRY, augmentation=None, **options
):
    torch.manual_seed(seed)
    settings = resolve(preset)
    options = replace(settings.options, **{"projector_dim": 32, "slices": 5, **options})
    return VoCo2D(Slices(flatten), geometry, augmentation or settings.augmentation, options).to(dtype)


def make_batch(method, volumes=4, seed=0, case=None):
    """Windows whose tissue varies with the place, so that position can be learned."""
    depth, rows, cols = method.geometry.window
    h, w = torch.linspace(-1, 1, rows)[:, None], torch.linspace(-1, 1, cols)[None]
    hu = []
    for i in range(volumes):
        a, b = torch.rand(2, generator=generator(seed, i, "body"))
        slice_ = -300 + 500 * torch.sin(2 * h + a) + 400 * torch.cos(2.5 * w + b)
        noise = torch.randn(depth, rows, cols, generator=generator(seed, i, "noise")) * 30
        hu.append((slice_ + noise).to(torch.int16))
    draws = [method.sampler(generator(seed, i)) for i in range(volumes)]
    stacked = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
    case = torch.arange(volumes) if case is None else torch.tensor(case)
    return {"hu": torch.stack(hu), "case": case, **stacked}


def blur_teacher(method):
    """A teacher that differs from the student, as after some steps."""
    for tensor in method.teacher.parameters():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator(9, tensor.numel())).to(tensor)
    return method


def literal_features(method, encoder, batch):
    """(M, F): crops one by one, slices one by one, all slices through the network at once, mean per crop."""
    size, n, crops = method.geometry.crop, method.options.slices, []
    for b in range(len(batch["hu"])):
        starts = torch.cat([method.geometry.base_starts(), batch["starts"][b]]).tolist()
        for k, (z, y, x) in enumerate(starts):
            hu = batch["hu"][b, z : z + size, y : y + size, x : x + size].double()
            slices = torch.stack([hu[int(i)] for i in torch.linspace(0, size - 1, n)])
            slices = slices.flip([a for a in range(3) if batch["flips"][b, k, a]])
            slices = torch.rot90(slices, int(batch["turns"][b, k]), (1, 2))
            unit = (slices.clamp(-800, 400) + 800) / 1200 + batch["shift"][b, k]
            crops.append((unit - 0.4) / 0.3)
    vectors = encoder.vectors(torch.cat(crops)[:, None])
    return torch.stack([v.mean(0) for v in vectors.split(n)])


def clamped_cosine(u, v):
    return torch.stack([torch.cosine_similarity(a[None], v, dim=1).clamp(0, 1) for a in u])


def literal_ce(y, l):  # noqa: E741
    """Positives weighted by their overlap, squared negatives."""
    positive = -(y * torch.log(1 - (y - l).abs() + 1e-6)).sum() / (y.sum() + 1e-6)
    return positive + (l[y == 0] ** 2).sum() / ((y == 0).sum() + 1e-6)


def literal_loss(method, batch):
    """The published formulas, volume by volume."""
    n, volumes, case = method.geometry.bases, len(batch["case"]), batch["case"]
    features = literal_features(method, method.encoder, batch)
    with torch.no_grad():
        teacher_features = literal_features(method, method.teacher["encoder"], batch)
    if "keep" in batch:
        features = features * batch["keep"].flatten(0, 1) / 0.8
    student = method.student(features).chunk(volumes)
    teacher = method.teacher["projector"](teacher_features).chunk(volumes)
    labels = overlap_labels(batch["starts"], method.geometry).double()
    intra, reg, inter = 0.0, 0.0, [torch.zeros(())]
    for s, t, y in zip(student, teacher, labels):
        logits = clamped_cosine(s[n:], t[:n])
        if method.options.intra == "symmetric":
            logits = (logits + clamped_cosine(t[n:], s[:n])) / 2
        intra = intra + literal_ce(y, logits) / volumes
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        for i, j in pairs:
            reg = reg + clamped_cosine(s[i : i + 1], s[j : j + 1].detach())[0, 0] ** 2 / (volumes * len(pairs))
    for i in range(volumes):
        j = (i + 1) % volumes
        if case[i] != case[j]:
            target = clamped_cosine(teacher[i][n:], teacher[j][:n]).detach()
            inter.append(literal_ce(target, clamped_cosine(student[i][n:], student[j][:n])))
    inter = sum(inter) / max(len(inter) - 1, 1)
    return {"intra": intra, "inter": inter, "reg": reg, "loss": intra + inter + reg}


@pytest.mark.parametrize(
    ("preset", "flatten", "volumes", "augmentation"),
    [("default", False, 3, EVERYTHING), ("published_v1", True, 1, None), ("published_v2", True, 3, None)],
)
def test_forward_and_gradients_equal_the_literal_version(preset, flatten, volumes, augmentation):
    method = blur_teacher(build(preset, flatten, augmentation=augmentation, ema_timing="after_step"))
    batch = make_batch(method, volumes)
    assert ("keep" in batch) == (preset == "published_v2")
    trained = {k: p for k, p in method.named_parameters() if p.requires_grad}
    assert any(k.startswith("teacher.projector") for k in trained) == (preset != "default")
    slow = literal_loss(method, batch)
    expected = torch.autograd.grad(slow["loss"], trained.values())
    found = method(batch)
    for key, value in slow.items():
        torch.testing.assert_close(found[key].detach(), value.detach().to(found[key]), rtol=1e-6, atol=1e-7)
    assert (found["inter"] == 0) == (volumes == 1)
    for key, a, b in zip(trained, torch.autograd.grad(found["loss"], trained.values()), expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_only_the_intra_loss_trains_the_published_teacher_projector():
    losses = []
    for weight in (0.0, 1.0):
        method = blur_teacher(build("published_v2", inter_weight=weight, reg_weight=weight, feature_dropout="none"))
        method(make_batch(method))["loss"].backward()
        losses.append([p.grad for p in method.teacher["projector"].parameters()])
        assert all(p.grad is None and not p.requires_grad for p in method.teacher["encoder"].parameters())
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*losses) if a.ndim == 2)


def test_one_encoder_pass_for_the_slices_of_all_crops():
    method = build()
    method(make_batch(method, 3))
    assert method.encoder.calls == [(3 * 11, 1, 5, 16, 16)]


def test_slices_are_the_published_ones():
    for depth, slices in ((64, 32), (96, 32), (32, 8), (16, 5), (3, 3)):
        assert torch.equal(slice_places(depth, slices), torch.linspace(0, depth - 1, slices).long())
    assert slice_places(63, 32).tolist() == list(range(0, 63, 2)) and slice_places(9, 1).tolist() == [4]
    method = build(geometry=Geometry(crop=24, network_size=16), slices=16)
    method(make_batch(method, 1))
    assert method.encoder.calls == [(11, 1, 16, 16, 16)]


def parts(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("preset", ["default", "published_v1", "published_v2"])
def test_when_and_what_of_the_teacher_moves(preset):
    """V1 moves before the teacher's pass, V2 after it, the default after the optimiser step; V1 and V2 move parameters
    of the encoder only, the default everything."""
    method = blur_teacher(build(preset, teacher_momentum=0.75))
    before, seen = parts(method.teacher), {}
    method.teacher["encoder"].one.register_forward_pre_hook(lambda m, _: seen.update(weight=m.weight.clone()))
    own = copy.deepcopy(method.teacher)
    batch = make_batch(method, 2)
    method(batch)
    moved = 0.75 * before["encoder.one.weight"] + 0.25 * method.encoder.one.weight
    torch.testing.assert_close(seen["weight"], moved if preset == "published_v1" else before["encoder.one.weight"])
    now = parts(method.teacher)
    assert torch.equal(now["encoder.one.weight"], before["encoder.one.weight"]) == (preset == "default")
    method.after_step()
    after = parts(method.teacher)
    if preset != "default":
        assert all(torch.equal(after[k], now[k]) for k in after)
        torch.testing.assert_close(after["encoder.one.weight"], moved)
        assert all(torch.equal(after[k], before[k]) for k in after if k.startswith("projector."))
        own["encoder"].train()
        if preset == "published_v1":
            own["encoder"].load_state_dict({k[8:]: v for k, v in after.items() if "running" not in k}, strict=False)
        literal_features(method, own["encoder"], batch)  # statistics come from the teacher's own pass alone
        running = ("norm.running_mean", "norm.running_var")
        for key in running:
            torch.testing.assert_close(after[f"encoder.{key}"], own["encoder"].state_dict()[key])
        return
    source = {f"encoder.{k}": v for k, v in method.encoder.state_dict().items()}
    source |= {f"projector.{k}": v for k, v in method.student.state_dict().items()}
    for key, value in after.items():
        expected = 0.75 * now[key] + 0.25 * source[key] if value.is_floating_point() else source[key]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_a_trained_teacher_projector_starts_with_weights_of_its_own():
    method = build("published_v2")
    weight = method.teacher["projector"].layer1[0].weight
    assert weight.requires_grad and not torch.equal(weight, method.student.layer1[0].weight)
    assert torch.equal(method.teacher["encoder"].one.weight, method.encoder.one.weight)
    assert not any(p.requires_grad for p in build().teacher.parameters())


def test_presets():
    assert VoCo2DOptions() == resolve().options and resolve().geometry == Geometry() and resolve().region == "window"
    assert resolve().augmentation == Augmentation(0, 0, 1, 0.1)
    v1, v2 = resolve("published_v1"), resolve("published_v2")
    assert v1.geometry.window == (96, 384, 384) and v1.geometry.bases == 16
    assert v2.geometry.window == (64, 192, 192) and v2.geometry.bases == 9
    assert v1.region == v2.region == "whole" and v1.augmentation == v2.augmentation == Augmentation(0, 0, 0, 0.1)
    assert (v1.options.ema_timing, v2.options.ema_timing) == ("before_step", "after_teacher")
    assert (v1.options.feature_dropout, v2.options.feature_dropout, v2.options.dropout_rate) == ("none", "channel", 0.2)
    for options in (v1.options, v2.options):
        assert (options.slices, options.projector_dim, options.teacher_momentum) == (32, 2048, 0.9)
        assert (options.teacher, options.teacher_projector, options.ema_buffers) == ("model", "trained", False)
        assert (options.negative, options.reg_power) == ("square", 2)
        assert (options.embedding, options.reg_weight) == ("deepest", 1)
    assert (v1.options.intra, v1.options.inter_weight) == ("symmetric", 0)
    assert (v2.options.intra, v2.options.inter_weight) == ("student_teacher", 1)
    assert (v1.geometry.network_shape, v2.geometry.network_shape) == ((64, 64, 64), (64, 64, 64))
    assert resolve("published_v2", slices=8).options.slices == 8
    assert method_class("voco2d") is VoCo2D and set(PRESETS) == {"default", "published_v1", "published_v2"}
    with pytest.raises(InputError, match="published_v2"):
        resolve("v2")
    with pytest.raises(InputError, match="teacher_projector"):
        resolve(colour=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slices": 0},
        {"teacher_projector": "trained", "teacher": "projector"},
        {"teacher_projector": "trained", "intra": "detached"},
        {"teacher_projector": "none"},
        {"negative": "abs"},
    ],
)
def test_contradicting_options_are_refused(wrong):
    with pytest.raises(InputError):
        VoCo2DOptions(**wrong)


def test_encoders_and_crops_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="voco3d"):
        VoCo2D(CNN3D(SPEC), GEOMETRY)
    with pytest.raises(InputError, match="16 deep"):
        build(slices=17)
    with pytest.raises(InputError, match="network_size"):
        encoder = Slices()
        encoder.input_spec = replace(encoder.input_spec, min_size=(1, 32, 32))
        VoCo2D(encoder, GEOMETRY, options=VoCo2DOptions(slices=5))


def test_reference_values_of_the_published_loss():
    """Derived elsewhere from the distribution of labels alone, for 3x3 crops of 64 with squared negatives."""
    v2 = resolve("published_v2")
    lines = reference_lines(v2.geometry, v2.options.negative, v2.options.positive_weight)
    found = (lines.zero_logits, lines.best_constant, lines.best_constant_value, lines.position_marginal, lines.collapse)
    assert [round(x, 2 if i in (2, 4) else 3) for i, x in enumerate(found)] == [0.713, 0.361, 0.31, 0.460, 1.94]
    # overlaps seen through noise of 0.1, clipped: 0.088 as a mean over 400,000 volumes
    method = build("published_v2", geometry=v2.geometry)
    starts = torch.stack([v2.geometry.draw_starts(generator(0, i)) for i in range(4000)])
    labels = overlap_labels(starts, v2.geometry).double()
    noisy = (labels + 0.1 * torch.randn(labels.shape, generator=generator(1), dtype=torch.float64)).clamp(0, 1)
    assert abs(method.loss_terms(noisy, labels)["intra"].mean() - 0.088) < 0.003
    zero = method.loss_terms(torch.zeros_like(labels), labels)["intra"].mean()
    assert abs(zero - lines.zero_logits) < 0.02


class Body:
    """A scan whose Hounsfield units tell the place."""

    def __init__(self, seed):
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 64, 64)), indexing="ij")
        noise = np.random.default_rng(seed).normal(0, 40, z.shape)
        self.array = (-300 + 500 * np.sin(2 * y) + 400 * np.cos(2.5 * x + 1) + noise).astype(np.int16)
        self.shape = self.array.shape

    def read(self, start, size):
        places = [np.clip(np.arange(s, s + n), 0, top - 1) for s, n, top in zip(start, size, self.shape)]
        return self.array[np.ix_(*places)]


@pytest.mark.parametrize("preset", ["default", "published_v2"])
def test_it_learns_position_and_the_health_report_says_so(preset):
    """Windows whose tissue tells the place: the loss falls below the best constant within 60 steps."""
    method = build(preset, dtype=torch.float32, projector_dim=64, feature_dropout="none")
    scans = [Body(i) for i in range(3)]
    windows = build_eval_windows(scans, GEOMETRY, per_scan=2, seed=0, names=["a", "b", "c"])
    untrained = copy.deepcopy(method)
    assert calibrate_batchnorm(untrained, windows) == 2  # student and teacher
    assert untrained.encoder.norm.running_mean.abs().max() > 0
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(60):
        found = method(make_batch(method, 4, seed=step))
        found["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        method.after_step()
        losses.append(found["intra"].item())
    best = reference_lines(GEOMETRY, negative="square").best_constant
    assert sum(losses[-8:]) / 8 < best - 0.05
    state = parts(method)
    trained = evaluate(method, windows, queries=6, seed=0)
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items()) and method.training
    lines = [evaluate(untrained, windows, queries=6, seed=0, name="untrained")]
    lines.append(evaluate_histogram(windows, GEOMETRY, (-800.0, 400.0), queries=6, seed=0))
    assert trained.disjoint_scans == 3 and trained.score("intra") < best
    assert trained.score("mean_cosine") < 0.9
    if preset != "default":  # without intensity shifts in training it lives on brightness, and stays below the lines
        return
    for name in ("position_accuracy_balanced", "disjoint_accuracy_balanced"):
        assert trained.score(name) > max(line.score(name) for line in lines), name
