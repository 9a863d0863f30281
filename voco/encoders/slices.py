"""Any 2D network of timm as a CT encoder: ``slices/resnet18``. Each axial slice is run alone; depth is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from voco.encoders.base import ENCODERS, Arch, Encoder, _mean, _recompute_contexts
from voco.encoders.spec import InputSpec
from voco.encoders.timm_nets import all_maps, batch_norms, build_net, closest, deepest_map, look_at
from voco.errors import InputError

PREFIX = "slices/"
WINDOW = (-175.0, 250.0)  # of the CT that 2D-VoCo was pretrained on (FLARE23)
SLICES = 32  # of each crop, in 2D-VoCo
FLATTENED_PLANE = (64, 64)  # crops of 2D-VoCo, whose maps are flattened
POOLS, NORMS = ("gap", "flatten"), ("batch", "frozen")
# Slices run at a time where nothing is asked for: as many as hold 16 planes of 256 x 256.
_PIXELS = 16 * 256 * 256
# A backward pass holds the activations of all layers at once, a forward pass those of two or three.
_RECOMPUTED_SHARE = 4


class SliceEncoder(Encoder):
    """A 2D network over the axial slices of a volume.

    Slices are run in chunks, so that activations take memory for a chunk and not for the volume; what is kept is one
    vector or one deepest map per slice. With gradients that needs slices that are frozen (``requires_grad_(False)``)
    or checkpointed (``set_grad_checkpointing``): quarters of a chunk are then run at a time, and again in the backward
    pass.

    Chunks never change a result, and BatchNorm decides how that is kept in training mode: ``norm="batch"`` takes its
    statistics over all slices of a call, which therefore go through in one piece; ``norm="frozen"`` leaves the running
    statistics as they are and uses them, which suits pretrained weights (with random weights they normalise nothing).
    Networks without batch statistics are always run in chunks.

    Args:
        input_spec: channels of the input; smallest size and multiples become those of the network.
        model: timm's name, without a tag.
        pool: ``gap``, the mean over the plane; ``flatten``, the whole deepest map as published in 2D-VoCo
            (arXiv 2601.14593), which ties the encoder to one ``plane``.
        chunk: slices run at a time, at most, all volumes of a batch counted; None for as many as make up 16 x 256 x 256
            pixels.
        norm: ``batch`` or ``frozen``; by default ``frozen`` where a chunk is given and ``batch`` where none is.
        plane: (H, W) of the slices. For ``flatten`` 64 x 64 as published, unless given; for networks that take one size
            only timm's, unless given.

    Raises:
        InputError: a model that timm does not have or that gives no maps, or arguments out of range.
    """

    def __init__(
        self,
        input_spec: InputSpec,
        model: str,
        pool: str = "gap",
        chunk: int | None = None,
        norm: str | None = None,
        plane: Sequence[int] | None = None,
    ):
        if pool not in POOLS or (norm is not None and norm not in NORMS):
            raise InputError(f"pool is one of {POOLS} and norm one of {NORMS}; found {pool!r} and {norm!r}")
        if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
            raise InputError(f"chunk is a number of slices from 1 up, found {chunk!r}")
        plane = _plane(plane) if plane is not None else FLATTENED_PLANE if pool == "flatten" else None
        layout = look_at(_known(model), plane)
        flat = plane if pool == "flatten" else layout.plane
        smallest = layout.plane or (layout.smallest,) * 2
        if flat and (any(n < low for n, low in zip(flat, smallest)) or any(n % layout.multiple for n in flat)):
            raise InputError(
                f"slices of {flat[0]}x{flat[1]} cannot be flattened by {model}; it takes planes of at least "
                f"{smallest[0]}x{smallest[1]} and multiples of {layout.multiple}"
            )
        super().__init__(
            replace(input_spec, min_size=(1, *(flat or smallest)), size_multiple=(1, *(layout.multiple,) * 2)),
            [
                {"num_chs": width, "reduction": (1, stride, stride), "module": module}
                for width, stride, module in zip(layout.widths, layout.strides, layout.modules)
            ],
        )
        self.layout, self.chunk, self.plane = layout, chunk, flat
        self.flatten = pool == "flatten"
        self.pooling = "flatten" if self.flatten else "deepest"
        self.stem_keys = layout.stem_keys
        self.norm = norm or ("batch" if chunk is None else "frozen")
        self.net = build_net(model, input_spec.channels, layout)
        self.train(self.training)

    @property
    def num_features(self) -> int:
        """Width of the vector of a slice, and of a volume."""
        width = self.feature_info[-1]["num_chs"]
        if not self.flatten:
            return width
        rows, columns = self.layout.plane_of(*self.plane)
        return width * rows * columns

    @property
    def sequence_features(self) -> int:
        return self.num_features

    def train(self, mode: bool = True) -> SliceEncoder:
        """Training or evaluation mode; BatchNorm stays in evaluation mode where it is frozen."""
        super().train(mode)
        if self.norm == "frozen":
            for module in batch_norms(self.net):
                module.eval()
        return self

    def sequence(self, x: Tensor) -> Tensor:
        """One vector per slice, (B, D, ``num_features``), in the order of the volume."""
        self._check_input(x)
        return self._over_slices(x, self._vector)[0]

    def pool(self, x: Tensor) -> Tensor:
        """Mean of ``sequence`` over the slices: (B, ``num_features``), at least float32."""
        return _mean(self.sequence(x), (1,))

    def pooled_pyramid(self, x: Tensor) -> Tensor:
        """Averages of all pyramid maps side by side; the maps themselves are never held for more than a chunk."""
        self._check_input(x)
        return _mean(torch.cat(self._over_slices(x, self._vectors), 2), (1,))

    def _maps(self, x: Tensor) -> list[Tensor]:
        return [m.transpose(1, 2) for m in self._over_slices(x, self._slice_maps)]

    def _deepest(self, x: Tensor) -> Tensor:
        return self._over_slices(x, self._slice_map)[0].transpose(1, 2)

    def _slice_map(self, part: Tensor) -> tuple[Tensor, ...]:
        return (deepest_map(self.net, part, self.layout),)

    def _slice_maps(self, part: Tensor) -> tuple[Tensor, ...]:
        return tuple(all_maps(self.net, part, self.layout))

    def _vector(self, part: Tensor) -> tuple[Tensor, ...]:
        m = deepest_map(self.net, part, self.layout)
        return (m.flatten(1) if self.flatten else _mean(m, (2, 3)),)

    def _vectors(self, part: Tensor) -> tuple[Tensor, ...]:
        return tuple(_mean(m, (2, 3)) for m in all_maps(self.net, part, self.layout))

    def _over_slices(self, x: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """``function`` of all slices, chunk by chunk: (B, C, D, H, W) to tensors (B, D, …)."""
        batch, depth = x.shape[0], x.shape[2]
        slices = x.transpose(1, 2).flatten(0, 1)
        results = [self._recomputed(function, part) for part in slices.split(self._chunk(slices))]
        return [torch.cat(parts).unflatten(0, (batch, depth)) for parts in zip(*results)]

    def _recomputed(self, function: Callable[[Tensor], tuple[Tensor, ...]], part: Tensor) -> tuple[Tensor, ...]:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return function(part)
        return checkpoint(function, part, use_reentrant=False, context_fn=partial(_recompute_contexts, self.net))

    def _chunk(self, slices: Tensor) -> int:
        if any(module.training for module in batch_norms(self.net)):
            if self.chunk is not None:
                raise InputError(
                    f"{self._label}: in training mode norm='batch' takes the statistics of all {len(slices)} slices of "
                    f"a call, and chunks of {self.chunk} would change them; use norm='frozen' to run chunks on the "
                    f"running statistics, or chunk=None"
                )
            return len(slices)
        chunk = self.chunk or max(1, _PIXELS // (slices.shape[-2] * slices.shape[-1]))
        if self.grad_checkpointing and torch.is_grad_enabled():
            return -(-chunk // _RECOMPUTED_SHARE)
        return chunk

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if self.plane is not None and tuple(x.shape[3:]) != self.plane:
            why = "flattened maps have one width" if self.flatten else "the network takes one size"
            raise InputError(
                f"{self._label} takes slices of {self.plane[0]}x{self.plane[1]} ({why}), found "
                f"{x.shape[3]}x{x.shape[4]}; resize or cut them, or create the encoder with plane=(H, W)"
            )


def slice_spec(model: str, tag: str = "") -> InputSpec:
    """What a slice encoder is fed: one abdominal window, statistics and plane of timm's record for the weights."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(f"{model}.{tag}" if tag else model)
    mean, std, size = (cfg.mean, cfg.std, cfg.input_size) if cfg else ((0.5,) * 3, (0.5,) * 3, (3, 224, 224))
    differ = len(set(mean)) > 1 or len(set(std)) > 1
    return InputSpec(
        windows=(WINDOW,),
        mean=(sum(mean) / 3 if differ else mean[0],),
        std=(sum(std) / 3 if differ else std[0],),
        size=(SLICES, *size[1:]),
        min_size=(1, 32, 32),
        rgb_mean=tuple(mean) if differ else None,
        rgb_std=tuple(std) if differ else None,
    )


def _known(model: str) -> str:
    import timm

    if not timm.is_model(model) or "." in model:
        names = timm.list_models()
        hint = closest(model, names)
        raise InputError(
            f"timm has no model {model!r}{f'; did you mean {PREFIX}' if hint else ''}{f' or {PREFIX}'.join(hint)}? "
            f"`voco encoders '{PREFIX}*'` lists all {len(names)}"
        )
    return model


def _plane(plane: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = (int(n) for n in plane)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise InputError(f"plane is (height, width) in voxels, found {plane!r}")
    return height, width


def _arch(name: str) -> Arch:
    """The architecture behind ``slices/MODEL``, made on the spot."""
    model = _known(name.removeprefix(PREFIX))

    def build(
        input_spec: InputSpec,
        pool: str = "gap",
        chunk: int | None = None,
        norm: str | None = None,
        plane: Sequence[int] | None = None,
    ) -> SliceEncoder:
        return SliceEncoder(input_spec, model, pool, chunk, norm, plane)

    return Arch(build, slice_spec(model), f"timm's {model} over the slices", "slices")


def _names() -> list[str]:
    import timm

    return [f"{PREFIX}{model}" for model in timm.list_models()]


ENCODERS.register_prefix(PREFIX, _arch, _names, "any 2D network of timm, over the slices")
