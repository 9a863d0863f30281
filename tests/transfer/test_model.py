from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from voco.encoders import ENCODERS, create_encoder
from voco.engine.optim import make_optimizer
from voco.errors import InputError
from voco.transfer.model import HeadOptions, StudyModel, parameter_groups, stage_of_parameters

SIZE = (32, 32, 32)


def encoder(**options):
    torch.manual_seed(0)
    return create_encoder("cnn3d_s", **options)


def model(learn="study", chunk=0, **options) -> StudyModel:
    made = encoder()
    torch.manual_seed(1)
    return StudyModel(made, {"a": 1, "b": 3}, HeadOptions(**options), learn=learn, chunk=chunk).eval()


def windows(count: int, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, *SIZE, generator=generator) * 300


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_order_and_padding_of_windows_change_nothing(pooling):
    net = model(pooling=pooling)
    torch.manual_seed(2)
    vectors = torch.randn(5, net.num_features)

    def pooled(*studies, places):
        stacked = torch.full((len(studies), places, net.num_features), 0.0)
        valid = torch.zeros(len(studies), places, dtype=torch.bool)
        for i, rows in enumerate(studies):
            stacked[i, : len(rows)], valid[i, : len(rows)] = vectors[rows], True
        return net.pool_windows(stacked, valid)

    together = pooled([0, 1, 2], [3, 4], places=3)
    alone = torch.cat([pooled([2, 0, 1], places=3), pooled([4, 3], places=7)])
    assert torch.allclose(together, alone, atol=1e-6)
    literal = {"mean": vectors[:3].mean(0), "max": vectors[:3].amax(0)}
    if pooling in literal:
        assert torch.allclose(together[0], literal[pooling], atol=1e-6)
    else:  # Ilse et al. 2018, equation 9, written out
        head = net.attention
        gate = torch.sigmoid(vectors[:3] @ head.gate.weight.T + head.gate.bias)
        score = (torch.tanh(vectors[:3] @ head.value.weight.T + head.value.bias) * gate) @ head.score.weight[0]
        weight = torch.exp(score) / torch.exp(score).sum()
        assert torch.allclose(together[0], weight @ vectors[:3], atol=1e-6) and weight.std() > 0


def test_windows_find_their_places():
    net = model()
    hu = windows(3)
    valid = torch.tensor([[True, False], [True, True]])
    with torch.no_grad():
        features = torch.cat([net.encoder(part) for part in hu.split(1)])
        found = net(hu, valid)
        expected = net.logits(torch.stack([features[0], features[1:].mean(0)]))
        each = StudyModel(net.encoder, {"a": 1, "b": 3}, learn="window").eval()
        each.head = net.head
        rows = each(hu, valid)
    for name in ("a", "b"):
        assert torch.allclose(found[name], expected[name], atol=1e-5)
        assert torch.allclose(rows[name], net.head(features)[name], atol=1e-5)
    assert found["a"].shape == (2, 1) and rows["b"].shape == (3, 3)


@pytest.mark.parametrize("options", [
    {}, {"features": "pyramid", "pooling": "attention", "hidden": 8}, {"features": "sequence"},
    {"features": "deepest", "pooling": "max"},
])  # fmt: skip
def test_chunks_change_neither_values_nor_gradients(options):
    hu, valid = windows(3), torch.tensor([[True, True, True]])
    found = []
    for chunk in (0, 2):
        net = model(chunk=chunk, **options)
        out = net(hu, valid)
        (out["a"].sum() + out["b"].square().sum()).backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        found.append((torch.cat([out["a"], out["b"]], 1), gradients))
    (whole, all_gradients), (parts, part_gradients) = found
    assert torch.allclose(whole, parts, atol=1e-5) and all_gradients.keys() == part_gradients.keys()
    for name, gradient in all_gradients.items():
        assert torch.allclose(gradient, part_gradients[name], atol=1e-4 * max(1, float(gradient.abs().max()))), name


def test_recomputed_chunks_move_running_statistics_once():
    hu, valid = windows(2), torch.ones(1, 2, dtype=torch.bool)
    net = model(chunk=1).train()
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm3d))
    literal = copy.deepcopy(net)
    net(hu, valid)["a"].sum().backward()
    for part in hu.split(1):
        literal.window_features(part)
    other = next(m for m in literal.modules() if isinstance(m, nn.BatchNorm3d))
    assert int(norm.num_batches_tracked) == 2 and norm.momentum == other.momentum > 0
    assert torch.allclose(norm.running_mean, other.running_mean)


@pytest.mark.parametrize("chunk", [0, 1])
def test_a_frozen_encoder_gets_no_gradient_and_keeps_its_statistics(chunk):
    net = model(features="sequence", chunk=chunk)
    net.frozen = True
    net.train()
    before = copy.deepcopy(net.encoder.state_dict())
    net(windows(2), torch.ones(1, 2, dtype=torch.bool))["a"].sum().backward()
    assert all(p.grad is None for p in net.encoder.parameters())
    assert all(p.grad is not None for p in net.sequence.parameters())
    assert net.head.layer("a").weight.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())


def test_the_second_channel_is_the_scan_inside_its_mask():
    made = encoder(window=[(-1000, 400), (-1000, 400)])
    net = StudyModel(made, {"a": 1}).eval()
    hu = windows(2)
    inside = torch.where(hu > 0, hu, torch.full_like(hu, -1024))
    seen = []
    made.pool = lambda x: seen.append(x) or torch.zeros(len(x), made.num_features)
    net.window_features(torch.cat([hu, inside], 1))
    scaled = [(x.clamp(-1000, 400) + 1000) / 1400 for x in (hu, inside)]
    assert torch.allclose(seen[0], torch.cat(scaled, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["pool", "deepest", "pyramid", "sequence"])
def test_features_are_those_of_the_encoder(kind):
    net = model(features=kind, sequence="mean")
    hu = windows(2)
    with torch.no_grad():
        found = net.window_features(hu)
        x = net.encoder.prepare(hu)
        maps = net.encoder.pyramid(x)
        literal = {
            "pool": net.encoder(hu),
            "deepest": maps[-1].mean((2, 3, 4)),
            "pyramid": torch.cat([m.mean((2, 3, 4)) for m in maps], 1),
            "sequence": maps[-1].mean((2, 3, 4)),  # a mean over depth of means in the plane
        }[kind]
    assert found.shape == (2, net.num_features) and torch.allclose(found, literal, atol=1e-5)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="whole studies"):
        StudyModel(encoder(), {"a": 1}, HeadOptions(pooling="attention"), learn="window")
    with pytest.raises(InputError, match="decoder"):
        StudyModel(encoder(), {"a": 1}, HeadOptions(features="decoder"))


def test_groups_fall_by_stage_and_hold_every_parameter_once():
    net = model(pooling="attention", hidden=4)
    groups = parameter_groups(net, weight_decay=0.1, layer_decay=0.5, head_lr=3.0)
    grouped = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped) == len(list(net.parameters()))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = dict(net.named_parameters())
    last = len(net.encoder.feature_info) - 1
    for stage, info in enumerate(net.encoder.feature_info):
        own = [n for n in names if n.startswith(f"encoder.{info['module']}.")]
        assert own and all(scale[id(names[n])] == 0.5 ** (last + 1 - stage) for n in own), info
    assert {scale[id(p)] for n, p in names.items() if not n.startswith("encoder.")} == {3.0}
    assert all(decay[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in names.values())
    optimizer = make_optimizer(net, lr=1.0, weight_decay=0.3, betas=(0.9, 0.999), amsgrad=False, groups=groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(grouped)
    flat = parameter_groups(net, weight_decay=0.0, layer_decay=1.0)
    assert {group["lr_scale"] for group in flat} == {1.0}


def test_a_stage_may_end_with_an_activation_or_with_the_whole_trunk():
    layer = partial(nn.Conv3d, 1, 1, 1)
    trunk = nn.Sequential(layer(), nn.ReLU(), layer(), nn.Sequential(layer(), nn.ReLU()), layer())
    made = nn.ModuleDict({"trunk": trunk, "lstm": nn.LSTM(2, 2)})
    made.feature_info = [{"module": "trunk.1"}, {"module": "trunk.3"}, {"module": "trunk"}]
    stages = stage_of_parameters(made)
    weights = [stages[f"trunk.{name}.weight"] for name in ("0", "2", "3.0", "4")]
    assert weights == [0, 1, 1, 2] and stages["lstm.weight_ih_l0"] == 2


SOME = ("cnn3d_s", "slowfast_r50", "swin3d_t")


@pytest.mark.parametrize(
    "name", [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(ENCODERS) if n not in SOME)]
)
def test_stages_of_every_encoder_run_from_the_stem_to_the_head(name):
    with torch.device("meta"):
        made = create_encoder(name)
    stages = stage_of_parameters(made)
    assert set(stages) == {n for n, _ in made.named_parameters()}
    for number, info in enumerate(made.feature_info):
        inside = [n for n in stages if n.startswith(f"{info['module']}.")]
        if inside and not any(other["module"].startswith(f"{info['module']}.") for other in made.feature_info):
            assert {stages[n] for n in inside} == {number}, (info, {stages[n] for n in inside})
    assert max(stages.values()) == len(made.feature_info) - 1, "the last stage learns fastest"
    assert min(stages.values()) == 0
