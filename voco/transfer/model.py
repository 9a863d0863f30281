"""A model of whole studies: an encoder on windows, pooling over windows, one head per output. torch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voco.distributed import largest, spans_ranks
from voco.encoders.base import _recompute_contexts
from voco.encoders.timm_nets import batch_norms
from voco.errors import InputError
from voco.losses import full_precision
from voco.sequence import MultiOutputHead, make_sequence_head


@dataclass(frozen=True)
class HeadOptions:
    """From the encoder's maps to the outputs of the task."""

    features: Literal["pool", "deepest", "pyramid", "sequence", "decoder"] = "pool"
    """What of the encoder is read: pool, what the encoder itself gives for a volume; deepest or pyramid, averages of
    the deepest map or of all of them; sequence, one vector per depth position; decoder, of files that have one."""
    spatial: Literal["mean", "max"] = "mean"
    """How maps become vectors, with features deepest and pyramid: their mean, as published, or their maximum, which
    finds a small lesion anywhere in a large window."""
    sequence: Literal["lstm", "bilstm", "gru", "attention", "mean"] = "bilstm"
    """Head along depth, with features sequence."""
    sequence_options: dict[str, Any] = field(default_factory=dict)
    """Further keywords of that head, e.g. {hidden: 128}."""
    pooling: Literal["mean", "max", "attention"] = "mean"
    """How the windows of a study become one vector, or, where windows are learned on their own, one score (attention:
    learned; not for windows learned on their own)."""
    hidden: int = 0
    """Width of a hidden layer before the outputs; 0 = a linear layer, as published."""
    dropout: float = 0.0
    """Dropout before the outputs."""


class GatedAttention(nn.Module):
    """Learned weights over the windows of a study: gated attention pooling of Ilse et al. (ICML 2018, equation 9).

    Args:
        in_features: width of a window's vector.
        hidden: width of the two layers that score it.
    """

    def __init__(self, in_features: int, hidden: int = 128):
        super().__init__()
        self.value, self.gate = nn.Linear(in_features, hidden), nn.Linear(in_features, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, K, F) with (B, K) bool to (B, F)."""
        score = self.score(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))[..., 0]
        weight = torch.softmax(score.masked_fill(~valid, float("-inf")), 1)
        return (weight.unsqueeze(-1) * x).sum(1)


class StudyModel(nn.Module):
    """Scores of studies from their windows.

    Args:
        encoder: a ``voco.encoders.Encoder``.
        outputs: name to number of logits.
        options: of the head.
        learn: ``study``: windows are pooled and the study is what is learned. ``window``: each window is learned on
            its own, and a study's score is the maximum or mean of its windows' probabilities.
        chunk: windows that go through the encoder at once; 0 = all. While training, chunks are recomputed in the
            backward pass, so memory is bounded by one of them. BatchNorm normalises each chunk by itself, or together
            with the chunks that other processes have at the same time.

    Attributes:
        frozen: the encoder is in evaluation mode and gets no gradient.
        frozen_statistics: BatchNorms of the encoder use and keep their running statistics; their weights learn.
    """

    frozen: bool = False
    frozen_statistics: bool = False

    def __init__(
        self,
        encoder: nn.Module,
        outputs: Mapping[str, int],
        options: HeadOptions | None = None,
        *,
        learn: Literal["study", "window"] = "study",
        chunk: int = 0,
    ):
        super().__init__()
        options = options or HeadOptions()
        if learn == "window" and options.pooling == "attention":
            raise InputError(
                "--head.pooling attention learns from whole studies: use --learn study, or pooling max or mean"
            )
        check_reading(encoder, options)
        self.encoder, self.options, self.learn, self.chunk = encoder, options, learn, chunk
        self.sequence: nn.Module | None = None
        width = self._feature_width()
        if options.features == "sequence":
            self.sequence = make_sequence_head(options.sequence, width, **options.sequence_options)
            width = self.sequence.out_features
        self.num_features = width
        self.attention = GatedAttention(width) if options.pooling == "attention" else None
        layers = [nn.Dropout(options.dropout)] if options.dropout else []
        if options.hidden:
            layers += [nn.Linear(width, options.hidden), nn.ReLU(inplace=True)]
            layers += [nn.Dropout(options.dropout)] if options.dropout else []
        self.neck = nn.Sequential(*layers)
        self.head: nn.Module = MultiOutputHead(options.hidden or width, outputs)
        self.train()  # an encoder comes in evaluation mode

    def _feature_width(self) -> int:
        encoder, kind = self.encoder, self.options.features
        if kind == "pool":
            return encoder.num_features
        if kind == "pyramid":
            return encoder.pyramid_features
        if kind == "decoder":
            return encoder.decoder_features
        return encoder.sequence_features if kind == "sequence" else encoder.feature_info[-1]["num_chs"]

    def window_features(self, hu: Tensor) -> Tensor:
        """Vectors of windows.

        Args:
            hu: (M, S, D, H, W) Hounsfield units; with S = 2 the second version (the scan inside its mask) fills the
                encoder's second channel.

        Returns:
            (M, F) at least float32.
        """
        count = -(-len(hu) // self.chunk) if self.chunk else 1
        if self.chunk and spans_ranks(self):
            # every process enters a BatchNorm over all of them equally often, or they would wait for ever
            count = largest(count, hu.device)
        if count == 1:
            return self._encode(hu)
        # of equal size: a BatchNorm should not see a lonely last window
        features = torch.cat([self._encode_part(part) for part in hu.tensor_split(min(count, len(hu)))])
        for _ in range(count - len(hu)):
            # fewer windows than chunks: a window goes through again, counts in the statistics, and changes nothing else
            features = features + 0 * self._encode_part(hu[:1]).sum()
        return features

    def _encode_part(self, hu: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or self.frozen:
            return self._encode(hu)
        return checkpoint(self._encode, hu, use_reentrant=False, context_fn=partial(_recompute_contexts, self))

    def train(self, mode: bool = True) -> StudyModel:
        """Training or evaluation mode; a frozen encoder, and BatchNorms that are, stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        elif self.frozen_statistics:
            for norm in batch_norms(self.encoder):
                norm.eval()
        return self

    def _encode(self, hu: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = read_encoder(self.encoder, hu, self.options)
        return full_precision(self.sequence(x)) if self.sequence is not None else x

    def pool_windows(self, features: Tensor, valid: Tensor) -> Tensor:
        """Vectors of studies: (B, K, F) with (B, K) bool, true where there is a window, to (B, F)."""
        if self.attention is not None:
            return self.attention(features, valid)
        mask = valid.unsqueeze(-1)
        if self.options.pooling == "max":
            return features.masked_fill(~mask, float("-inf")).amax(1)
        return (features * mask).sum(1) / mask.sum(1).clamp_min(1)

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Outputs of vectors (M, F), of windows or of studies: name to (M, width)."""
        return self.head(self.neck(features))

    def forward(self, hu: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Logits for training.

        Args:
            hu: (M, S, D, H, W) the windows of all studies one after the other, any real dtype.
            valid: (B, K) bool with M times true: which places of the studies they fill.

        Returns:
            Name to (B, width) where studies are learned, to (M, width) where windows are.
        """
        features = self.window_features(hu)
        if self.learn == "window":
            return self.logits(features)
        stacked = features.new_zeros(*valid.shape, features.shape[1])
        stacked[valid] = features
        return self.logits(self.pool_windows(stacked, valid))


def read_encoder(encoder: nn.Module, hu: Tensor, options: HeadOptions) -> Tensor:
    """What the options read of an encoder.

    Args:
        hu: (M, S, D, H, W) Hounsfield units of windows; see ``StudyModel.window_features``.

    Returns:
        (M, F) at least float32; (M, d, F) for features ``sequence``.
    """
    kind = options.features
    x = encoder.prepare(hu[:, :1])
    if hu.shape[1] == 2:
        # every channel has its own Hounsfield window; the second one looks at the masked scan
        x = torch.cat([x[:, :1], encoder.prepare(hu[:, 1:])[:, 1:]], 1)
    if kind == "pool":
        return full_precision(encoder.pool(x))
    if options.spatial == "max":
        maps = encoder.pyramid(x) if kind == "pyramid" else [encoder.forward_features(x)]
        return full_precision(torch.cat([m.amax((2, 3, 4)) for m in maps], 1))
    if kind == "pyramid":
        return full_precision(encoder.pooled_pyramid(x))
    if kind == "decoder":
        return full_precision(encoder.pooled_decoder(x))
    if kind == "sequence":
        return encoder.sequence(x)
    return full_precision(encoder.forward_features(x)).mean((2, 3, 4))


def check_reading(encoder: nn.Module, options: HeadOptions) -> None:
    """Refuse what cannot be read of an encoder: a decoder that it lacks, a maximum of what is no map.

    Raises:
        InputError: with the options or the argument that work.
    """
    if options.spatial == "max" and options.features not in ("deepest", "pyramid"):
        raise InputError(f"--head.spatial max is for features deepest and pyramid, not {options.features}")
    if options.features == "decoder" and not hasattr(encoder, "pooled_decoder"):
        raise InputError(
            f"--head.features decoder: encoder {encoder.name!r} was built without one; ask for it with "
            f"--encoder.arguments '{{decoder: true}}' (swinunetr_*, nnunet_*), or use deepest, pyramid or pool"
        )


def stage_of_parameters(encoder: nn.Module) -> dict[str, int]:
    """Number of the stage that each parameter of an encoder belongs to, from 0 (stem) on.

    Stages end with the modules that ``feature_info`` names, in the order in which the encoder registers its modules,
    whether these have parameters of their own (a block) or not (an activation); what follows the last one counts to it.
    """
    order = {name: place for place, (name, _) in enumerate(encoder.named_modules())}
    names = [info.get("module", "") for info in encoder.feature_info]
    ends = [max(p for n, p in order.items() if n == name or n.startswith(f"{name}.")) for name in names if name]
    stages = {}
    for name, _ in encoder.named_parameters():
        place = order[name.rpartition(".")[0]]
        stages[name] = min(sum(end < place for end in ends), max(0, len(ends) - 1))
    return stages


def parameter_groups(
    model: StudyModel, *, weight_decay: float, layer_decay: float, head_lr: float = 1.0, decay: str = "matrices"
) -> list[dict[str, Any]]:
    """Groups for the optimizer: ``lr_scale`` falls by ``layer_decay`` with every stage away from the head.

    Args:
        weight_decay: of matrices and kernels; with ``decay`` ``all`` of biases and norms too.
        layer_decay: 1 = one learning rate for all; 0.75 is common for transformers (BEiT, MAE).
        head_lr: learning rate of the head as a multiple of the encoder's.
    """
    stages = stage_of_parameters(model.encoder)
    last = max(stages.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.removeprefix("encoder.") if name.startswith("encoder.") else None
        scale = head_lr if inside is None else layer_decay ** (last + 1 - stages[inside])
        own_decay = weight_decay if parameter.ndim > 1 or decay == "all" else 0.0
        groups.setdefault((scale, own_decay), []).append(parameter)
    return [{"params": found, "lr_scale": scale, "weight_decay": own} for (scale, own), found in groups.items()]


def output_widths(outputs: Sequence) -> dict[str, int]:
    """Name to number of logits of a task's outputs."""
    return {output.name: output.width for output in outputs}
