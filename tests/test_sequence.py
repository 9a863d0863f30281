"""Sequence heads: over slices and never over cases, published parameter counts, formulas written out."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from voco.errors import InputError
from voco.sequence import KerasLSTM, MultiOutputHead, make_sequence_head

HEADS = {
    "lstm": ("lstm", {"hidden": 5}),
    "lstm, one bias": ("lstm", {"hidden": 5, "bias": "keras"}),
    "lstm, mean": ("lstm", {"hidden": 5, "reduce": "mean"}),
    "bilstm": ("bilstm", {"hidden": 5}),
    "bilstm, last": ("bilstm", {"hidden": 5, "reduce": "last", "layers": 2}),
    "gru": ("gru", {"hidden": 5}),
    "bigru, last": ("gru", {"hidden": 5, "bidirectional": True}),
    "bigru, mean": ("gru", {"hidden": 5, "bidirectional": True, "reduce": "mean"}),
    "attention": ("attention", {"hidden": 4}),
    "mean": ("mean", {}),
}


@pytest.fixture(params=HEADS)
def head(request):
    kind, options = HEADS[request.param]
    torch.manual_seed(0)
    return make_sequence_head(kind, 3, **options).double()


def sequences(batch=4, slices=7, seed=1):
    return torch.randn(batch, slices, 3, generator=torch.Generator().manual_seed(seed)).double()


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_cases_are_independent(head):
    x = sequences()
    together = head(x)
    assert together.shape == (4, head.out_features)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head(x[order]), together[order], rtol=1e-12, atol=1e-12)
    alone = torch.cat([head(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)
    x = sequences().requires_grad_()
    head(x)[1].sum().backward()
    assert x.grad[1].any()
    assert not x.grad[[0, 2, 3]].any()


@pytest.mark.parametrize("name", HEADS)
def test_order_of_slices_matters_to_recurrent_heads(name):
    kind, options = HEADS[name]
    torch.manual_seed(0)
    head = make_sequence_head(kind, 3, **options).double()
    x = sequences()
    change = (head(x[:, [1, 0, 2, 3, 4, 6, 5]]) - head(x)).abs().max()
    assert change < 1e-12 if kind in ("attention", "mean") else change > 1e-3


def test_padding_behind_a_case_changes_nothing(head):
    lengths = torch.tensor([3, 7, 1, 5])
    x = sequences()
    padded = head(x, lengths)
    alone = torch.cat([head(x[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())])
    torch.testing.assert_close(padded, alone, rtol=1e-12, atol=1e-12)
    behind = x.clone()
    behind[torch.arange(7) >= lengths[:, None]] = 1e3
    torch.testing.assert_close(head(behind, lengths), padded, rtol=0, atol=0)
    torch.testing.assert_close(head(x[:2], torch.tensor([4, 4])), head(x[:2, :4]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head(x, torch.full((4,), 7)), head(x), rtol=1e-12, atol=1e-12)


def test_every_parameter_gets_a_gradient(head):
    head(sequences(2).requires_grad_()).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in head.parameters())


def test_half_precision_and_copies(head):
    head = head.float()
    x = sequences().float()
    plain = head(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head(x)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0.02)
    again = pickle.loads(pickle.dumps(copy.deepcopy(head)))
    assert torch.equal(again(x), plain)
    half = copy.deepcopy(head).to(torch.bfloat16)(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0, atol=0.05)
    assert copy.deepcopy(head).to("meta")(x.to("meta")).shape == (4, head.out_features)


def lstm_by_hand(x, weight_ih, weight_hh, bias):
    """Keras' LSTM, one case at a time and gate by gate; gates are stacked input, forget, cell, output."""
    states = []
    for case in x:
        h = c = torch.zeros(weight_hh.shape[1], dtype=x.dtype)
        for vector in case:
            gates = [w @ vector + u @ h + b for w, u, b in zip(*(t.chunk(4) for t in (weight_ih, weight_hh, bias)))]
            c = 1 / (1 + torch.exp(-gates[1])) * c + 1 / (1 + torch.exp(-gates[0])) * torch.tanh(gates[2])
            h = 1 / (1 + torch.exp(-gates[3])) * torch.tanh(c)
        states.append(h)
    return torch.stack(states)


def test_keras_lstm_by_hand_and_against_torch():
    torch.manual_seed(0)
    lstm = KerasLSTM(3, 6).double()
    torch.nn.init.uniform_(lstm.bias, -1, 1)
    x = sequences()
    y, (h, c) = lstm(x)
    expected = lstm_by_hand(x, lstm.weight_ih, lstm.weight_hh, lstm.bias)
    torch.testing.assert_close(h[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y[:, -1], expected, rtol=1e-12, atol=1e-12)

    two_biases = nn.LSTM(3, 6, batch_first=True).double()
    own = {"weight_ih_l0": lstm.weight_ih, "weight_hh_l0": lstm.weight_hh, "bias_ih_l0": lstm.bias}
    two_biases.load_state_dict({**own, "bias_hh_l0": torch.zeros_like(lstm.bias)})
    theirs, (their_h, their_c) = two_biases(x)
    for ours, other in ((y, theirs), (h, their_h), (c, their_c)):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)


def test_keras_lstm_has_keras_count_and_initial_values():
    torch.manual_seed(0)
    lstm = KerasLSTM(512, 256)
    assert count(lstm) == 787_456 == 4 * (256 * (512 + 256) + 256)
    assert count(nn.LSTM(512, 256)) == 787_456 + 4 * 256
    assert torch.equal(lstm.bias.reshape(4, 256).sum(1), torch.tensor([0.0, 256, 0, 0]))
    assert lstm.weight_ih.abs().max() <= (6 / (4 * 256 + 512)) ** 0.5
    torch.testing.assert_close(lstm.weight_hh.T @ lstm.weight_hh, torch.eye(256), rtol=0, atol=1e-5)


def test_reductions_by_hand():
    """The same recurrent layer read out in three ways, against torch's states."""
    torch.manual_seed(0)
    last, highest, mean = (
        make_sequence_head("gru", 3, hidden=5, bidirectional=True, reduce=r).double() for r in ("last", "max", "mean")
    )
    highest.load_state_dict(last.state_dict())
    mean.load_state_dict(last.state_dict())
    x = sequences()
    states = last.rnn(x)[0]
    torch.testing.assert_close(last(x), torch.cat([states[:, -1, :5], states[:, 0, 5:]], 1))
    torch.testing.assert_close(highest(x), states.max(1).values)
    torch.testing.assert_close(mean(x), states.sum(1) / 7)


def test_attention_by_hand():
    torch.manual_seed(0)
    head = make_sequence_head("attention", 3, hidden=4).double()
    x = sequences(1)
    scores = torch.exp(torch.tanh(x[0] @ head.score[0].weight.T + head.score[0].bias) @ head.score[2].weight[0])
    torch.testing.assert_close(head.weights(x)[0], scores / scores.sum())
    torch.testing.assert_close(head(x)[0], (scores[:, None] * x[0]).sum(0) / scores.sum())
    weights = head.weights(sequences(2), torch.tensor([2, 7]))
    assert not weights[0, 2:].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(2).double())


def test_multi_output_head():
    head = MultiOutputHead(256, {"bowel": 1, "extravasation": 1, "kidney": 3, "liver": 3, "spleen": 3})
    assert count(head) == 11 * 257
    x = torch.randn(2, 256)
    logits = head(x)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        "bowel": (2, 1),
        "extravasation": (2, 1),
        "kidney": (2, 3),
        "liver": (2, 3),
        "spleen": (2, 3),
    }
    torch.testing.assert_close(logits["liver"], x @ head.layers["liver"].weight.T + head.layers["liver"].bias)
    plain = logits["liver"]
    head.set_scale({"liver": (60.0, 10.0)})
    torch.testing.assert_close(head(x)["liver"], 60 + 10 * plain)
    torch.testing.assert_close(head(x)["spleen"], logits["spleen"], rtol=0, atol=0)
    # names of labels that torch's own containers use
    assert MultiOutputHead(4, {"type": 5, "training": 1})(x[:, :4])["type"].shape == (len(x), 5)
    with pytest.raises(InputError, match="at least 1"):
        MultiOutputHead(4, {"bowel": 0})


def test_refusals(head):
    with pytest.raises(InputError, match=r"\(B, D, F\).*found \(4, 3\)"):
        head(sequences()[:, 0])
    with pytest.raises(InputError, match="D of at least 1"):
        head(sequences()[:, :0])
    for lengths in (torch.tensor([0, 7, 7, 7]), torch.tensor([7, 7, 7, 8])):
        with pytest.raises(InputError, match="from 1 to 7"):
            head(sequences(), lengths)
    with pytest.raises(InputError, match="one integer per case"):
        head(sequences(), torch.ones(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("lstn", {}, "one of lstm, bilstm, gru, attention, mean"),
        ("lstm", {"reduce": "sum"}, "last, max, mean"),
        ("lstm", {"cell": "rnn"}, "lstm, gru"),
        ("bilstm", {"bias": "keras"}, "one layer and direction"),
        ("mean", {"hidden": 3}, "hidden"),
    ],
)
def test_unknown_options(kind, options, match):
    with pytest.raises(InputError, match=match):
        make_sequence_head(kind, 3, **options)
