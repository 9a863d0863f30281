"""Heads over sequences of slice vectors (B, D, F). torch only.

The sequence runs along dimension 1, over the slices of one case. Two published codes ran their recurrent layer along
the batch instead: the prediction for one patient then depends on the others that happen to be evaluated with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from voco.errors import InputError
from voco.losses import full_precision

REDUCTIONS = ("last", "max", "mean")


class KerasLSTM(nn.Module):
    """An LSTM of one layer and direction with Keras' parameters: one bias per gate where torch has two.

    ``4 * (hidden * (in + hidden) + hidden)`` parameters, rows in torch's order of gates (input, forget, cell, output),
    Keras' initial values: Glorot uniform, orthogonal, zero bias, and 1 for the forget gate.

    Args:
        in_features: width of the input.
        hidden: width of the state.
    """

    def __init__(self, in_features: int, hidden: int):
        super().__init__()
        self.hidden_size = hidden
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, in_features))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        nn.init.xavier_uniform_(self.weight_ih)
        nn.init.orthogonal_(self.weight_hh)
        with torch.no_grad():
            self.bias[hidden : 2 * hidden] = 1

    def forward(self, x: Tensor | PackedSequence) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """(B, D, in_features), or such sequences packed, as ``torch.nn.LSTM(batch_first=True)`` takes and gives."""
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
        # has_biases, layers, dropout, training, bidirectional
        options = (True, 1, 0.0, self.training, False)
        if isinstance(x, PackedSequence):
            zeros = x.data.new_zeros(1, int(x.batch_sizes[0]), self.hidden_size)
            y, h, c = torch.lstm(x.data, x.batch_sizes, (zeros, zeros), weights, *options)
            state = (h, c) if x.unsorted_indices is None else (h[:, x.unsorted_indices], c[:, x.unsorted_indices])
            return PackedSequence(y, x.batch_sizes, x.sorted_indices, x.unsorted_indices), state
        zeros = x.new_zeros(1, len(x), self.hidden_size)
        y, h, c = torch.lstm(x, (zeros, zeros), weights, *options, True)
        return y, (h, c)


class RecurrentHead(nn.Module):
    """An LSTM or GRU along the slices, then one vector per case.

    Computed in float32 whatever autocast says: a state that is carried over a hundred slices adds up rounding errors.

    Args:
        in_features: width of the slice vectors.
        cell: ``lstm`` or ``gru``.
        hidden: width of the state, per direction.
        bidirectional: a second layer from the last slice to the first; its states follow those of the first.
        reduce: ``last`` (state after the last slice; of the backward direction after the first), ``max`` or ``mean``
            over the slices.
        layers: recurrent layers on top of each other.
        bias: ``torch`` (two per gate) or ``keras`` (one; LSTM of one layer and direction only).
    """

    def __init__(
        self,
        in_features: int,
        cell: Literal["lstm", "gru"] = "lstm",
        hidden: int = 256,
        bidirectional: bool = False,
        reduce: Literal["last", "max", "mean"] = "last",
        layers: int = 1,
        bias: Literal["torch", "keras"] = "torch",
    ):
        super().__init__()
        cells = {"lstm": nn.LSTM, "gru": nn.GRU}
        if reduce not in REDUCTIONS or cell not in cells:
            raise InputError(
                f"a recurrent head has a cell of {', '.join(cells)} and reduces by {', '.join(REDUCTIONS)}; found "
                f"{cell!r} and {reduce!r}"
            )
        if bias not in ("torch", "keras") or (bias == "keras" and (cell != "lstm" or bidirectional or layers > 1)):
            raise InputError(
                f"bias is 'torch', or 'keras' for an LSTM of one layer and direction; found {bias!r} with cell "
                f"{cell!r}, {layers} layers, bidirectional {bidirectional}"
            )
        self.reduce, self.directions = reduce, 1 + bidirectional
        self.out_features = hidden * self.directions
        if bias == "keras":
            self.rnn = KerasLSTM(in_features, hidden)
        else:
            self.rnn = cells[cell](in_features, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, D, in_features) -> (B, out_features).

        Args:
            x: slice vectors; behind a case's length anything finite may stand.
            lengths: (B,) number of slices of each case, all of them where None.
        """
        check_sequences(x, lengths)
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            x = x.to(next(self.parameters()).dtype)
            if lengths is None:
                y, state = self.rnn(x)
            else:
                packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
                y, state = self.rnn(packed)
                fill = float("-inf") if self.reduce == "max" else 0.0
                y, _ = pad_packed_sequence(y, batch_first=True, padding_value=fill)
            if self.reduce == "max":
                return full_precision(y.amax(1))
            if self.reduce == "mean":
                y = full_precision(y)
                return y.mean(1) if lengths is None else y.sum(1) / lengths.to(y)[:, None]
            h = state[0] if isinstance(state, tuple) else state
            return full_precision(torch.cat(h[-self.directions :].unbind(), 1))


class AttentionHead(nn.Module):
    """A weighted mean of the slices, weights learned: softmax over slices of ``v tanh(V x)``.

    Ilse et al. 2018, "Attention-based deep multiple instance learning", eq. 8. Order does not matter to it.

    Args:
        in_features: width of the slice vectors.
        hidden: width of the layer that scores a slice.
    """

    def __init__(self, in_features: int, hidden: int = 128):
        super().__init__()
        self.out_features = in_features
        self.score = nn.Sequential(nn.Linear(in_features, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))

    def weights(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, D, in_features) -> (B, D), non-negative with sum 1 over a case's slices."""
        check_sequences(x, lengths)
        scores = full_precision(self.score(x.to(self.score[0].weight.dtype))[..., 0])
        if lengths is not None:
            scores = scores.masked_fill(~_inside(x, lengths), float("-inf"))
        return scores.softmax(1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, D, in_features) -> (B, in_features); ``lengths`` (B,) counts each case's slices."""
        weights = self.weights(x, lengths)
        return (weights[..., None] * full_precision(x)).sum(1)


class MeanHead(nn.Module):
    """The mean of the slices.

    Args:
        in_features: width of the slice vectors.
    """

    def __init__(self, in_features: int):
        super().__init__()
        self.out_features = in_features

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, D, in_features) -> (B, in_features); ``lengths`` (B,) counts each case's slices."""
        check_sequences(x, lengths)
        x = full_precision(x)
        if lengths is None:
            return x.mean(1)
        return x.masked_fill(~_inside(x, lengths)[..., None], 0).sum(1) / lengths.to(x)[:, None]


class MultiOutputHead(nn.Module):
    """One linear layer per output on the same features, such as the organs of a trauma classifier.

    Args:
        in_features: width of the features.
        outputs: name -> number of logits, e.g. ``{"bowel": 1, "extravasation": 1, "kidney": 3, "liver": 3,
            "spleen": 3}`` of the RSNA 2023 abdominal trauma task.
    """

    def __init__(self, in_features: int, outputs: Mapping[str, int]):
        super().__init__()
        if not outputs or min(outputs.values()) < 1:
            raise InputError(f"outputs are names with a number of logits of at least 1; found {dict(outputs)}")
        # A ModuleDict takes no key that is one of its own attributes, and a column of labels may be called "type".
        taken = nn.ModuleDict()
        self.keys = {name: f"output {name}" if hasattr(taken, name) else name for name in outputs}
        self.layers = nn.ModuleDict({self.keys[name]: nn.Linear(in_features, width) for name, width in outputs.items()})
        self.register_buffer("offset", torch.zeros(len(outputs)))
        self.register_buffer("gain", torch.ones(len(outputs)))

    def layer(self, name: str) -> nn.Linear:
        """The linear layer of an output."""
        return self.layers[self.keys[name]]

    @torch.no_grad()
    def set_scale(self, scale: Mapping[str, tuple[float, float]]) -> None:
        """Let outputs give mean + std * layer(x), so that values in any unit are learned at the same rate.

        Args:
            scale: name -> (mean, std); other outputs stay as they are.
        """
        for i, name in enumerate(self.keys):
            self.offset[i], self.gain[i] = scale.get(name, (0.0, 1.0))

    @torch.no_grad()
    def set_prior(self, prior: Mapping[str, Sequence[float]]) -> None:
        """Let outputs begin at a class prior, so that the first steps are not spent on finding it.

        Args:
            prior: name -> probability of each class, above 0 (one logit: of negative and positive); other outputs stay
                as they are.
        """
        for name, share in prior.items():
            logits = torch.log(torch.as_tensor(share, dtype=torch.float64))
            bias = self.layer(name).bias
            bias.copy_(logits[1:] - logits[:1] if len(bias) == 1 else logits - logits.mean())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, in_features) -> name: (B, logits), at least float32."""
        raw = {name: full_precision(self.layer(name)(x)) for name in self.keys}
        return {name: y * self.gain[i] + self.offset[i] for i, (name, y) in enumerate(raw.items())}


KINDS: dict[str, tuple[type[nn.Module], dict]] = {
    "lstm": (RecurrentHead, {"cell": "lstm", "reduce": "last"}),
    "bilstm": (RecurrentHead, {"cell": "lstm", "reduce": "max", "bidirectional": True}),
    "gru": (RecurrentHead, {"cell": "gru", "reduce": "last"}),
    "attention": (AttentionHead, {}),
    "mean": (MeanHead, {}),
}


def make_sequence_head(kind: str, in_features: int, **options) -> nn.Module:
    """A head ``forward(x (B, D, F), lengths=None) -> (B, out_features)``.

    Args:
        kind: ``lstm`` (last state), ``bilstm`` (maximum over slices), ``gru`` (last state), ``attention``, ``mean``.
        in_features: F, width of the slice vectors.
        options: keywords of the class behind it, ``RecurrentHead`` or ``AttentionHead``; they win over the kind's.

    Raises:
        InputError: unknown kind or option.
    """
    if kind not in KINDS:
        raise InputError(f"a sequence head is one of {', '.join(KINDS)}; found {kind!r}")
    head, preset = KINDS[kind]
    try:
        return head(in_features, **{**preset, **options})
    except TypeError as error:
        raise InputError(f"sequence head {kind!r} with {options}: {error}") from error


def check_sequences(x: Tensor, lengths: Tensor | None) -> None:
    """Refuse what is not (B, D, F) with one length of 1 to D per case.

    Raises:
        InputError: another shape, or lengths that are not in that range.
    """
    if x.ndim != 3 or not x.shape[1]:
        raise InputError(f"a sequence head takes slice vectors (B, D, F) with D of at least 1; found {tuple(x.shape)}")
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or lengths.is_floating_point():
        raise InputError(
            f"lengths are one integer per case, ({len(x)},); found {tuple(lengths.shape)} of {lengths.dtype}"
        )
    if not lengths.is_meta and not ((lengths >= 1) & (lengths <= x.shape[1])).all():
        raise InputError(f"lengths must be from 1 to {x.shape[1]}, the slices there are; found {lengths.tolist()}")


def _inside(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, D), whether a slice belongs to its case."""
    return torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
