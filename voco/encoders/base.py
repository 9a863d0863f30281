"""The one encoder interface: canonical Hounsfield units in, feature maps in canonical axes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.registry import Registry

if TYPE_CHECKING:
    from voco.weights.report import LoadReport

AIR_HU = -1024


@dataclass(frozen=True)
class Arch:
    """One registered architecture.

    Attributes:
        build: ``build(input_spec, **arguments) -> Encoder``; imports what it needs when it is called.
        input_spec: what the architecture is fed unless weights or the caller say otherwise.
        summary: one line for ``voco encoders``.
        family: encoders of one family share tensor names; names the conversion in ``voco.weights.families``.
        part: shell pattern of the architectures that a part of this one is made of: with their weights it can start,
            through ``Encoder.load_part``.
    """

    build: Callable[..., Encoder]
    input_spec: InputSpec
    summary: str
    family: str = ""
    part: str = ""

    def check_arguments(self, name: str, arguments: dict) -> None:
        """Refuse arguments that ``build`` does not take.

        Raises:
            InputError: an unknown argument, with the known ones.
        """
        known = list(inspect.signature(self.build).parameters)[1:]
        if unknown := sorted(set(arguments) - set(known)):
            raise InputError(f"encoder {name!r} takes no argument {unknown}; it takes {known or 'none'}")


ENCODERS: Registry[Arch] = Registry("encoder")


class Encoder(nn.Module):
    """What every encoder offers. A family implements ``_maps`` (network axes) and lists its ``feature_info``.

    ``prepare`` turns Hounsfield units into the network's input ``x``; ``forward_features``, ``pyramid``,
    ``sequence`` and ``pool`` take ``x``, so that augmentation can act between the two. Maps come back in canonical
    (D, H, W) order whatever axes the network itself uses.

    Args:
        input_spec: windows, axes, smallest size and size multiple of the input. ``spacing_mm`` and ``size`` describe
            the data stage's work and may be replaced on the instance; the rest belongs to the weights.
        feature_info: one dict per pyramid map, shallow to deep: ``num_chs``, ``reduction`` (d, h, w) canonical,
            ``module`` (the name of the module that makes it).

    Attributes:
        name: registered name, set by ``create_encoder``; ``arguments`` are the keywords that rebuild it.
        provenance: one dict per training that the weights went through, oldest first.
        fingerprints: files (name to bytes) that say which scans those trainings saw; entries of ``provenance`` name
            them.
        load_report: what the last ``load_weights`` did, or None.
        pooling: what ``pool`` gives: ``"deepest"`` or ``"pyramid"``, the average of the deepest map or of all; a family
            with a ``pool`` of its own has a word of its own: ``"class_token"`` (MViT), ``"head"`` (X3D), ``"flatten"``
            (slices), ``"recurrent"`` (sequences).
        stem_keys: tensors whose second dimension is the number of input channels.
        minimum_coverage: share of the parameters that a weights file must fill.
        optional_parts: argument that added a part to the network ("decoder") -> regular expression of its tensors.
    """

    pooling: str = "deepest"
    stem_keys: tuple[str, ...] = ()
    minimum_coverage: float = 1.0
    optional_parts: Mapping[str, str] = MappingProxyType({})

    def __init__(self, input_spec: InputSpec, feature_info: list[dict]):
        super().__init__()
        self.input_spec = input_spec
        self.feature_info = feature_info
        self.name = ""
        self.arguments: dict = {}
        self.provenance: list[dict] = []
        self.fingerprints: dict[str, bytes] = {}
        self.load_report = None
        self.grad_checkpointing = False

    @property
    def family(self) -> str:
        """Name of the family in ``voco.weights.families``; empty for an encoder that has no registered name."""
        return ENCODERS[self.name].family if self.name in ENCODERS else ""

    @property
    def pyramid_features(self) -> int:
        """Width of ``pooled_pyramid``."""
        return sum(info["num_chs"] for info in self.feature_info)

    @property
    def num_features(self) -> int:
        """Width of ``pool`` and of ``encoder(hu)``."""
        return self.pyramid_features if self.pooling == "pyramid" else self.feature_info[-1]["num_chs"]

    @property
    def sequence_features(self) -> int:
        """Width of the vectors of ``sequence``."""
        return self.feature_info[-1]["num_chs"]

    def prepare(self, hu: Tensor) -> Tensor:
        """Canonical Hounsfield units to the network's input.

        Args:
            hu: (B, 1, D, H, W) in HU, any real dtype (int16 from the cache); axes toward Superior, Posterior, Left.

        Returns:
            (B, channels, three spatial axes in the network's order): windows scaled to [0, 1], then mean and std,
            padded with air on both sides to the size multiple. Float32, or the dtype of the parameters if that is
            not float32.

        Raises:
            InputError: wrong shape, or smaller than ``input_spec.min_size``.
        """
        spec = self.input_spec
        if hu.ndim != 5 or hu.shape[1] != 1:
            raise InputError(f"an encoder takes Hounsfield units of shape (B, 1, D, H, W); found {tuple(hu.shape)}")
        size = tuple(hu.shape[2:])
        self._check_min_size(size)
        hu = hu.float()
        pads = [(-n % m) for n, m in zip(size, spec.size_multiple)]
        if any(pads):
            # Air is padded as HU, before windowing, so that every window gives it its own value.
            hu = F.pad(hu, [n for pad in reversed(pads) for n in (pad // 2, pad - pad // 2)], value=AIR_HU)
        channels = [
            ((hu.clamp(low, high) - low) / (high - low) - mean) / std
            for (low, high), mean, std in zip(spec.windows, spec.mean, spec.std)
        ]
        x = channels[0] if len(channels) == 1 else torch.cat(channels, 1)
        order, flipped = spec.axis_order
        x = x.permute(0, 1, *(2 + axis for axis in order))
        if flipped:
            x = x.flip([2 + axis for axis in flipped])
        return x.contiguous().to(next(self.parameters()).dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Deepest map (B, F, d, h, w) of a prepared tensor, canonical axes; F is ``feature_info[-1]["num_chs"]``."""
        self._check_input(x)
        return self._canonical(self._deepest(x))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps of a prepared tensor, shallow to deep, canonical axes; ``feature_info`` describes them."""
        self._check_input(x)
        return [self._canonical(m) for m in self._maps(x)]

    def sequence(self, x: Tensor) -> Tensor:
        """One vector per depth position, head to foot order as in the volume: (B, d, F) from the deepest map."""
        return _mean(self.forward_features(x), (3, 4)).transpose(1, 2)

    def pooled_pyramid(self, x: Tensor) -> Tensor:
        """Averages of all pyramid maps side by side: (B, ``pyramid_features``), at least float32."""
        self._check_input(x)
        return torch.cat([_mean(m, (2, 3, 4)) for m in self._maps(x)], 1)

    def pool(self, x: Tensor) -> Tensor:
        """One vector per volume: (B, ``num_features``), at least float32."""
        if self.pooling == "pyramid":
            return self.pooled_pyramid(x)
        self._check_input(x)
        return _mean(self._deepest(x), (2, 3, 4))

    def forward(self, hu: Tensor) -> Tensor:
        """Canonical HU (B, 1, D, H, W) to (B, ``num_features``): ``pool(prepare(hu))``."""
        return self.pool(self.prepare(hu))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, about a third more time."""
        self.grad_checkpointing = enable

    def load_part(self, source: str | Path, *, which: str = "auto") -> LoadReport:
        """Fill the part that ``Arch.part`` names from weights of its own; called by ``load_weights``."""
        raise NotImplementedError

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Pyramid maps in the network's own axes, shallow to deep."""
        raise NotImplementedError

    def _deepest(self, x: Tensor) -> Tensor:
        """Last of ``_maps``; families override it where the others need not be computed."""
        return self._maps(x)[-1]

    def _run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """``module(*inputs)``, through activation checkpointing when that is on and gradients are wanted."""
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return module(*inputs)
        return checkpoint(module, *inputs, use_reentrant=False, context_fn=partial(_recompute_contexts, module))

    def _canonical(self, m: Tensor) -> Tensor:
        order, flipped = self.input_spec.axis_order
        if flipped:
            m = m.flip([2 + axis for axis in flipped])
        return m.permute(0, 1, *(2 + order.index(axis) for axis in range(3)))

    def _check_min_size(self, size: tuple[int, ...]) -> None:
        smallest = self.input_spec.min_size
        if any(n < low for n, low in zip(size, smallest)):
            raise InputError(
                f"{self._label} takes crops of at least {_size(smallest)} voxels (D x H x W), found {_size(size)}; "
                f"cut larger crops, pad with air ({AIR_HU} HU), or choose an encoder for small crops (cnn3d_s)"
            )

    def _check_input(self, x: Tensor) -> None:
        spec = self.input_spec
        if x.ndim != 5 or x.shape[1] != spec.channels:
            raise InputError(
                f"{self._label} takes a prepared tensor of shape (B, {spec.channels}, three axes), found "
                f"{tuple(x.shape)}; make it with encoder.prepare(hu)"
            )
        order, _ = spec.axis_order
        size = tuple(x.shape[2 + order.index(axis)] for axis in range(3))
        self._check_min_size(size)
        if any(n % m for n, m in zip(size, spec.size_multiple)):
            raise InputError(
                f"{self._label} takes sizes that are multiples of {_size(spec.size_multiple)} (D x H x W), found "
                f"{_size(size)}; encoder.prepare(hu) pads to them"
            )

    @property
    def _label(self) -> str:
        return f"encoder {self.name}" if self.name else type(self).__name__


def register_encoder(
    name: str, *aliases: str, input_spec: InputSpec, summary: str, family: str = "", part: str = ""
) -> Callable:
    """Decorator that files ``build(input_spec, **arguments) -> Encoder`` under ``name``; see ``Arch``."""

    def add(build: Callable[..., Encoder]) -> Callable[..., Encoder]:
        ENCODERS.register(name, *aliases)(Arch(build, input_spec, summary, family, part))
        return build

    return add


def _mean(m: Tensor, dims: tuple[int, ...]) -> Tensor:
    # Sums over 64^3 half-precision values lose digits; the reduction casts while it reads, without a float32 copy.
    return m.mean(dims, dtype=torch.float32 if m.dtype in (torch.float16, torch.bfloat16) else None)


def _size(size: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in size)


def _recompute_contexts(module: nn.Module):
    return nullcontext(), _running_statistics_kept(module)


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Recomputing a forward pass would move BatchNorm's running statistics a second time.

    The buffers stay in use with a momentum of 0: without them the recomputed graph would save other tensors.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
