"""VoCo 3D against a slow literal version, and the promises of its options."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from voco.crops import overlap_labels
from voco.encoders.base import Encoder
from voco.encoders.cnn3d import CNN3D, SPEC
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.geometry import Augmentation, Geometry
from voco.methods.options import VoCoOptions
from voco.methods.voco3d import VoCo3D, VoCoDraws
from voco.reference import reference_lines
from voco.rng import generator

GEOMETRY = Geometry(crop=16)
PARTS = {"loss", "intra", "intra_positive", "intra_negative", "inter", "reg", "mean_cosine", "logit_mean"}

PUBLISHED = Augmentation(flip_prob=0.2, turn_prob=0.2, shift_prob=0.5)  # every kind of draw, as in v2


class Plain(Encoder):
    """Two convolutions without batch statistics; sees RAS, with mean and std, so that axes and units matter."""

    def __init__(self):
        spec = InputSpec(axes="RAS", windows=((-800.0, 400.0),), mean=(0.4,), std=(0.3,))
        super().__init__(spec, [{"num_chs": n, "reduction": (r, r, r)} for n, r in ((6, 2), (10, 4))])
        self.one, self.two = nn.Conv3d(1, 6, 3, 2, 1), nn.Conv3d(6, 10, 3, 2, 1)
        self.calls = []

    def _maps(self, x):
        self.calls.append(len(x))
        first = self.one(x).tanh()
        return [first, self.two(first).tanh()]


def build(encoder="cnn", dtype=torch.float64, geometry=GEOMETRY, augmentation=None, seed=0, **options):
    torch.manual_seed(seed)
    encoder = Plain() if encoder == "plain" else CNN3D(SPEC, (8, 12, 16, 24))
    options = VoCoOptions(**{"projector_dim": 32, **options})
    return VoCo3D(encoder, geometry, augmentation or PUBLISHED, options).to(dtype)


def make_batch(method, volumes=4, seed=0, case=None):
    """Windows whose tissue varies with the place, so that position can be learned."""
    depth, rows, cols = method.geometry.window
    h, w = torch.linspace(-1, 1, rows)[:, None], torch.linspace(-1, 1, cols)[None]
    hu = []
    for i in range(volumes):
        a, b, c = torch.rand(3, generator=generator(seed, i, "body"))
        slice_ = -300 + 500 * torch.sin(2 * h + a) + 400 * torch.cos(2.5 * w + b) + 100 * c
        noise = torch.randn(depth, rows, cols, generator=generator(seed, i, "noise")) * 30
        hu.append((slice_ + noise).to(torch.int16))
    draws = [method.sampler(generator(seed, i)) for i in range(volumes)]
    stacked = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
    case = torch.arange(volumes) if case is None else torch.tensor(case)
    return {"hu": torch.stack(hu), "case": case, **stacked}


def literal_crops(method, batch):
    """Crops one by one: slice, resize, flip and turn in the canonical frame, prepare, shift."""
    geometry, spec = method.geometry, method.encoder.input_spec
    low, high = spec.windows[0]
    d, h, w = geometry.size
    crops = []
    for b in range(len(batch["hu"])):
        starts = torch.cat([geometry.base_starts(), batch["starts"][b]]).tolist()
        for k, (z, y, x) in enumerate(starts):
            crop = batch["hu"][b, z : z + d, y : y + h, x : x + w].float()[None, None]
            if geometry.network_size:
                crop = interpolate(
                    crop.clamp(low, high), [geometry.network_size] * 3, mode="trilinear", align_corners=True
                )
            crop = crop.flip([2 + a for a in range(3) if batch["flips"][b, k, a]])
            crop = torch.rot90(crop, int(batch["turns"][b, k]), (3, 4))
            crops.append(method.encoder.prepare(crop) + batch["shift"][b, k] / spec.std[0])
    return torch.cat(crops)


def literal_logits(u, v):
    return torch.stack([torch.cosine_similarity(a[None], v, dim=1).relu() for a in u])


def literal_ce(y, l, options):  # noqa: E741
    weight = y if options.positive_weight == "overlap" else (y > 0).to(y)
    above = -(weight * torch.log(1 - (y - l).abs() + 1e-6)).sum() / (weight.sum() + 1e-6)
    apart = l[y == 0]
    cost = -torch.log(1 - apart + 1e-6) if options.negative == "log" else apart**2
    return above + cost.sum() / (len(apart) + 1e-6)


def literal_loss(method, batch):
    """The formulas, volume by volume."""
    o, n, volumes = method.options, method.geometry.bases, len(batch["case"])
    x = literal_crops(method, batch)

    def embed(encoder):
        return encoder.pooled_pyramid(x) if o.embedding == "pyramid" else encoder.forward_features(x).mean((2, 3, 4))

    features = embed(method.encoder)
    dropped = features
    if "keep" in batch and method.training:
        keep = batch["keep"].flatten(0, 1)
        dropped = features * (keep if keep.ndim == 2 else keep[:, None]) / (1 - o.dropout_rate)
    student, teacher = method.student(dropped).chunk(volumes), [None] * volumes
    if o.teacher != "none":
        with torch.no_grad():
            if o.teacher == "model":
                teacher = method.teacher["projector"](embed(method.teacher["encoder"]))
            else:
                teacher = method.teacher(features)
        teacher = teacher.chunk(volumes)
    labels = overlap_labels(batch["starts"], method.geometry).to(features)
    intra, reg, inter = 0.0, 0.0, []
    for s, t, y in zip(student, teacher, labels):
        base, query = s[:n], s[n:]
        if o.intra == "detached":
            logits = literal_logits(query, base.detach())
        else:
            logits = literal_logits(query, t[:n])
            if o.intra == "symmetric":
                logits = (logits + literal_logits(t[n:], base)) / 2
        intra = intra + literal_ce(y, logits, o) / volumes
        for i in range(n):
            for j in range(i + 1, n):
                other = base[j].detach() if o.reg_stop_gradient == "one_side" else base[j]
                similarity = torch.cosine_similarity(base[i], other, dim=0).relu() ** o.reg_power
                reg = reg + similarity / (volumes * n * (n - 1) / 2)
    for i in range(volumes):
        j = (i + 1) % volumes
        if batch["case"][i] != batch["case"][j] and o.inter_weight:
            target = literal_logits(teacher[i][n:], teacher[j][:n])
            inter.append(literal_ce(target, literal_logits(student[i][n:], student[j][:n]), o))
    inter = sum(inter) / len(inter) if inter else torch.zeros(())
    return {"intra": intra, "inter": inter, "reg": reg, "loss": intra + o.inter_weight * inter + o.reg_weight * reg}


def blur_teacher(method):
    """A teacher that differs from the student, as after some steps."""
    for tensor in [] if method.teacher is None else method.teacher.parameters():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator(9, tensor.numel())).to(tensor)


V1 = {"teacher": "model", "intra": "symmetric", "negative": "square", "inter_weight": 0.0}
V0 = {"teacher": "none", "intra": "detached", "negative": "square", "inter_weight": 0.0}
VARIANTS = {
    "default": {},
    "weights": {"inter_weight": 0.3, "reg_weight": 2.0},
    "v2": {"norm_scope": "local", "inter_scope": "local", "feature_dropout": "crop"},
    "channel": {"feature_dropout": "channel", "dropout_rate": 0.5},
    "v1": V1,
    "v0": {**V0, "embedding": "deepest", "positive_weight": "one", "reg_stop_gradient": "none"},
    "nnssl": {**V0, "projector_norm": "instance", "reg_power": 1, "reg_stop_gradient": "none"},
    "detached_with_teacher": {"intra": "detached", "projector_norm": "none"},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("encoder", ["cnn", "plain"])
def test_forward_and_gradients_equal_the_literal_version(name, encoder):
    geometry = GEOMETRY if name != "v1" else Geometry(grid=(2, 3), crop=24, network_size=16, random_crops=3)
    method = build(encoder, geometry=geometry, **VARIANTS[name])
    blur_teacher(method)
    batch = make_batch(method, 3, case=[0, 1, 1])
    slow = literal_loss(method, batch)
    trained = {k: p for k, p in method.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(slow["loss"], trained.values(), allow_unused=True)
    found = method(batch)
    assert set(found) == PARTS and all(v.ndim == 0 and v.requires_grad == (k == "loss") for k, v in found.items())
    for key, value in slow.items():
        torch.testing.assert_close(found[key].detach(), value.detach().to(found[key]), rtol=1e-6, atol=1e-7)
    got = torch.autograd.grad(found["loss"], trained.values(), allow_unused=True)
    for key, a, b in zip(trained, got, expected):
        assert (a is None) == (b is None), key
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    unused = [key for key, g in zip(trained, got) if g is None]
    assert not unused or method.options.embedding == "deepest"


def test_a_volume_is_never_compared_with_itself():
    method = build()
    blur_teacher(method)
    for case in ([5], [7, 7], [3, 3, 3]):
        found = method(make_batch(method, len(case), case=case))
        assert found["inter"] == 0 and torch.isfinite(found["loss"])
    assert method(make_batch(method, 2, case=[0, 1]))["inter"] > 0


def test_teacher_is_frozen_and_starts_as_the_student():
    for kind in ("projector", "model"):
        method = build(teacher=kind)
        copy_ = method.teacher if kind == "projector" else method.teacher["projector"]
        for mine, other in zip(copy_.parameters(), method.student.parameters(), strict=True):
            assert torch.equal(mine, other) and mine is not other and not mine.requires_grad
        trained = {id(p) for p in method.parameters() if p.requires_grad}
        assert trained == {id(p) for part in (method.encoder, method.student) for p in part.parameters()}
        method(make_batch(method))["loss"].backward()
        assert all(p.grad is None for p in method.teacher.parameters())
    assert build(**V0).teacher is None


@pytest.mark.parametrize("kind", ["projector", "model"])
@pytest.mark.parametrize("timing", ["after_step", "before_step"])
def test_moving_average(kind, timing):
    method = build(teacher=kind, ema_timing=timing, teacher_momentum=0.75)
    blur_teacher(method)
    old = copy.deepcopy(method.teacher)
    batch = make_batch(method, 2)
    seen = {}
    for module in method.teacher.modules():
        module.register_forward_pre_hook(lambda m, _: seen.update({id(m): [p.clone() for p in m.parameters()]}))
    method(batch)
    moved = [not torch.equal(a, b) for a, b in zip(old.parameters(), method.teacher.parameters())]
    assert all(moved) if timing == "before_step" else not any(moved)
    if timing == "before_step":  # the teacher of this very forward had moved already
        last = method.teacher if kind == "projector" else method.teacher["projector"]
        assert all(torch.equal(a, b) for a, b in zip(seen[id(last)], last.parameters()))
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    method.after_step()
    if timing == "before_step":
        assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())
        return
    source = method.student.state_dict()
    if kind == "model":
        source = {f"encoder.{k}": v for k, v in method.encoder.state_dict().items()}
        source |= {f"projector.{k}": v for k, v in method.student.state_dict().items()}
        assert any("running_var" in k for k in source)
    for key, value in method.teacher.state_dict().items():
        expected = 0.75 * before[key] + 0.25 * source[key] if value.is_floating_point() else source[key]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_nothing_but_the_sampler_is_random():
    method = build(feature_dropout="crop", teacher="model", intra="symmetric")
    batch = make_batch(method)
    state = torch.get_rng_state()
    first = method(batch)["loss"]
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(method(batch)["loss"], first)


def test_dropout_acts_in_training_only_and_on_the_student_only():
    method = build("plain", feature_dropout="crop", projector_norm="none")
    batch = make_batch(method)
    batch["keep"][:] = True
    batch["keep"][:, 0] = False
    seen = []
    method.student.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    method.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    method(batch)
    student, teacher = (x.unflatten(0, (4, 11)) for x in seen)
    assert not student[:, 0].any() and teacher[:, 0].any()
    torch.testing.assert_close(student[:, 1:], teacher[:, 1:] * 1.25)
    seen.clear()
    method.eval()({k: v for k, v in batch.items() if k != "keep"})
    assert torch.equal(*seen)


def test_one_encoder_pass_for_all_crops():
    method = build("plain")
    method(make_batch(method, 3))
    assert method.encoder.calls == [3 * 11]


def test_sampler():
    method = build(feature_dropout="channel")
    sampler = pickle.loads(pickle.dumps(method.sampler))
    assert isinstance(sampler, VoCoDraws) and len(pickle.dumps(sampler)) < 2000
    draws, again = sampler(generator(4)), method.sampler(generator(4))
    assert {k: tuple(v.shape) for k, v in draws.items()} == {
        "starts": (2, 3), "flips": (11, 3), "turns": (11,), "shift": (11,), "keep": (11, method.features),
    }  # fmt: skip
    assert all(torch.equal(v, again[k]) for k, v in draws.items())
    assert "keep" not in build().sampler(generator(4))
    sampler = build(feature_dropout="crop").sampler
    kept = torch.stack([sampler(generator(i))["keep"] for i in range(500)])
    assert abs(kept.float().mean() - 0.8) < 0.02


def test_half_precision():
    method = build(dtype=torch.float32)
    batch = make_batch(method)
    exact = method(batch)["loss"].item()
    # Without oneDNN, whose bf16 weight gradient over maps two voxels wide reads unset memory: GPUs do not have it.
    with torch.backends.mkldnn.flags(enabled=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = method(batch)
        found["loss"].backward()
    assert all(v.dtype == torch.float32 for v in found.values())
    assert abs(found["loss"].item() - exact) < 0.02
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


def test_mean_cosine_tells_collapse():
    method = build("plain")
    batch = make_batch(method)
    assert method(batch)["mean_cosine"] < 0.9
    with torch.no_grad():
        method.student.layer3[0].weight.mul_(1e-4)
        method.student.layer3[0].bias.fill_(1.0)
    assert method(batch)["mean_cosine"] > 0.99


def test_inspect():
    method = build("plain").eval()
    blur_teacher(method)
    hu = torch.randint(-900, 500, (2, 20, 56, 60), dtype=torch.int16, generator=generator(0))
    bases = torch.tensor([[0, 0, 0], [0, 0, 16], [2, 30, 11]])
    queries = torch.stack([torch.tensor([[4, 40, 44], [1, 2, 3]]), torch.tensor([[0, 7, 8], [4, 0, 44]])])
    shift = torch.rand(2, 5, generator=generator(1)) * 0.2 - 0.1
    with torch.no_grad():
        found = method.inspect(hu, bases, queries, shift)
        crops = []
        for b in range(2):
            for k, (z, y, x) in enumerate(torch.cat([bases, queries[b]]).tolist()):
                crop = method.encoder.prepare(hu[b, z : z + 16, y : y + 16, x : x + 16][None, None])
                crops.append(crop + shift[b, k] / 0.3)
        features = method.encoder.pooled_pyramid(torch.cat(crops))
        student, teacher = method.student(features).view(2, 5, -1), method.teacher(features).view(2, 5, -1)
        still = method.inspect(hu, bases, queries)
    inside = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.features.double(), features.view(2, 5, -1), **inside)
    torch.testing.assert_close(found.embeddings, student, **inside)
    assert (still.features - found.features).abs().max() > 1e-3
    for b in range(2):
        for q in range(2):
            expected = torch.cosine_similarity(student[b, 3 + q][None], teacher[b, :3])
            torch.testing.assert_close(found.cosine[b, q], expected, **inside)
        for i in range(3):
            expected = torch.cosine_similarity(student[b, i][None], student[b, :3])
            torch.testing.assert_close(found.base_cosine[b, i], expected, **inside)
    assert found.features.dtype == torch.float32


def test_loss_terms_follow_the_options():
    cosines = torch.rand(2, 2, 9, generator=generator(0), dtype=torch.float64) * 1.6 - 0.8
    for options in ({}, {"negative": "square", "positive_weight": "one"}):
        method = build("plain", **options)
        labels = overlap_labels(make_batch(method, 2)["starts"], GEOMETRY).double()
        terms = method.loss_terms(cosines, labels)
        for b in range(2):
            expected = literal_ce(labels[b], cosines[b].relu(), method.options)
            torch.testing.assert_close(terms["intra"][b], expected)
        torch.testing.assert_close(terms["intra_positive"] + terms["intra_negative"], terms["intra"])


def test_it_learns_position():
    """Windows whose tissue tells the place: the loss falls below the best constant within 40 steps."""
    method = build(dtype=torch.float32, augmentation=Augmentation(flip_prob=0, turn_prob=0), projector_dim=64)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 2e-3)
    losses = []
    for step in range(40):
        found = method(make_batch(method, 4, seed=step))
        found["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        method.after_step()
        losses.append(found["intra"].item())
    assert sum(losses[-8:]) / 8 < reference_lines(GEOMETRY).best_constant - 0.1


def test_crops_that_the_encoder_cannot_take_are_refused():
    with pytest.raises(InputError, match="network_size"):
        build(geometry=Geometry(crop=2))


def test_accumulation_equals_one_batch_where_the_method_allows_it():
    """No batch statistics and no pairs of volumes: two halves give the gradient of the whole, otherwise they do not."""
    for options, same in ((V0 | {"projector_norm": "instance"}, True), (V0, False), ({}, False)):
        method = build("plain", **options)
        batch = make_batch(method, 4)
        trained = [p for p in method.parameters() if p.requires_grad]
        whole = torch.autograd.grad(method(batch)["loss"], trained)
        halves = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
        grads = [torch.autograd.grad(method(half)["loss"], trained) for half in halves]
        gap = max((w - (a + b) / 2).abs().max() for w, a, b in zip(whole, *grads))
        assert (gap < 1e-12) == same


@pytest.mark.parametrize("teacher", ["projector", "model"])
def test_inspection_in_parts_changes_nothing_and_needs_fewer_crops_at_once(teacher, monkeypatch):
    method = build("cnn", teacher=teacher).eval()
    hu = torch.randint(-900, 500, (2, *method.geometry.window), dtype=torch.int16, generator=generator(0))
    bases = method.geometry.base_starts()
    queries = torch.stack([method.geometry.draw_starts(generator(i)) for i in range(2)])
    sizes = []
    embed = method._embed
    monkeypatch.setattr(method, "_embed", lambda encoder, x: sizes.append(len(x)) or embed(encoder, x))
    with torch.no_grad():
        whole = method.inspect(hu, bases, queries)
        assert set(sizes) == {2 * (len(bases) + queries.shape[1])}
        sizes.clear()
        monkeypatch.setattr("voco.methods.voco3d._INSPECTED_VOXELS", 3 * 16**3)
        parts = method.inspect(hu, bases, queries)
    assert max(sizes) == 3
    for name in ("cosine", "base_cosine", "features", "embeddings", "teacher_embeddings"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-6)
