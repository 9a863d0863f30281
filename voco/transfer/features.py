"""Frozen features of scans: how a scan becomes one vector, for everything that wants one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from voco.data.cache import SUFFIX, PreparedArray, PreparedVolume
from voco.data.prepare import PreparedEntry, made_with, prepare_volume
from voco.data.volume import Volume
from voco.errors import InputError
from voco.losses import full_precision
from voco.transfer.model import HeadOptions, check_reading, read_encoder
from voco.transfer.views import Kind, View, make_view

CHUNK = 8


def embed(
    encoder: nn.Module,
    volume: Volume | PreparedVolume | PreparedEntry | str | Path,
    *,
    view: View | Kind | None = None,
    features: Literal["pool", "deepest", "pyramid", "decoder"] = "pool",
    spatial: Literal["mean", "max"] = "mean",
    pooling: Literal["mean", "max"] = "mean",
    windows: int = 0,
    chunk: int = CHUNK,
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """One vector of a scan: what ``voco embed`` writes, and what a linear probe learns from.

    The scan is prepared as the view says (air and table cut away, then resampled or stretched), the encoder is shown
    its windows in evaluation mode and without gradients, and their vectors are averaged. Modes, running statistics and
    random states stay as they are.

    Args:
        encoder: a ``voco.encoders.Encoder``, on any device.
        volume: what ``voco.read_volume`` gives, at the spacing it has; a path that it can read; or a scan that was
            prepared for the view (a ``.b2nd`` file of a cache, too).
        view: which windows: None for ``default_view``, a kind for one of the encoder's own sizes, or what ``make_view``
            gives.
        features, spatial, pooling: what is read of the encoder and how windows become one vector, see ``HeadOptions``.
        windows: at most so many, evenly spread over the scan; 0 for all.
        chunk: windows that go through the encoder at once. Bounds memory and changes no result beyond rounding.
        dtype: half precision of autocast; None for that of the weights.

    Returns:
        (F,) float32; F is ``encoder.num_features`` for ``features="pool"``.

    Raises:
        InputError: an option that does not exist, or a scan that was prepared otherwise.
        ScanError: a scan that cannot be read.
    """
    options = HeadOptions(features, spatial, pooling=pooling)
    for name, value, known in (
        ("features", features, ("pool", "deepest", "pyramid", "decoder")),
        ("spatial", spatial, ("mean", "max")),
        ("pooling", pooling, ("mean", "max")),
    ):
        if value not in known:
            raise InputError(f"{name} is one of {', '.join(known)} where nothing is learned, found {value!r}")
    check_reading(encoder, options)
    view = _chosen_view(encoder, view)
    prepared = _prepared(volume, view)
    starts = spread(view.windows(prepared.shape), windows)
    read = partial(read_encoder, encoder, options=options)
    vectors = window_vectors(encoder, read, [prepared], starts, view.size, chunk=chunk, dtype=dtype)
    return pool_vectors(vectors.cpu().numpy(), pooling)


def default_view(encoder: nn.Module, crop_body: bool = True) -> View:
    """How an encoder sees a scan when nobody says otherwise: tiles of its usual size at its spacing, or the whole scan
    stretched to that size where a voxel has no fixed size for it."""
    return make_view(default_kind(encoder), encoder.input_spec, crop_body=crop_body)


def default_kind(encoder: nn.Module) -> Kind:
    """The kind of ``default_view``."""
    return "resize" if encoder.input_spec.spacing_mm is None else "tiles"


def window_vectors(
    module: nn.Module,
    read: Callable[[Tensor], Tensor],
    volumes: Sequence,
    starts: np.ndarray,
    size: Sequence[int],
    *,
    chunk: int = CHUNK,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Vectors of windows of one prepared scan.

    Args:
        module: what computes them; it is in evaluation mode meanwhile.
        read: (M, S, D, H, W) int16 HU to (M, F).
        volumes: S versions of the scan: as it is, and inside its mask where that is a channel.
        starts: (N, 3) first voxels.
        size: (D, H, W) of a window.
        chunk: windows at once.
        dtype: half precision of autocast; None for none.

    Returns:
        (N, F), at least float32, on the device of ``module``.
    """
    if chunk < 1 or not len(starts):
        raise InputError(f"chunk and the number of windows must be at least 1, found {chunk} and {len(starts)}")
    device, found = next(module.parameters()).device, []
    with evaluating(module, device, dtype):
        for first in range(0, len(starts), chunk):
            places = [[int(s) for s in start] for start in starts[first : first + chunk]]
            hu = np.stack([[volume.read(place, size) for volume in volumes] for place in places])
            found.append(full_precision(read(torch.from_numpy(hu).to(device))))
    return torch.cat(found)


def pool_vectors(vectors: np.ndarray, pooling: str = "mean") -> np.ndarray:
    """(N, F) vectors of windows to the (F,) float32 one of the scan; added up in float64, so that order is nothing."""
    return (vectors.max(0) if pooling == "max" else vectors.mean(0, dtype=np.float64)).astype(np.float32)


def spread(places: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of (N, 3) places, evenly; all for 0."""
    if not 0 < most < len(places):
        return places
    return places[((np.arange(most) + 0.5) * len(places) / most).astype(int)]


@contextmanager
def evaluating(module: nn.Module, device: torch.device | str, dtype: torch.dtype | None) -> Iterator[None]:
    """Evaluation mode without gradients; every part gets its own mode back afterwards, also after an error."""
    modules = list(module.modules())
    modes = [part.training for part in modules]
    try:
        module.eval()
        # not inference_mode: a network that keeps a table between calls could not train with it afterwards
        with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        for part, mode in zip(modules, modes):
            part.training = mode


def _chosen_view(encoder: nn.Module, view: View | Kind | None) -> View:
    if isinstance(view, View):
        return view
    if view is not None and view not in get_args(Kind):
        raise InputError(f"view is one of {', '.join(get_args(Kind))}, or what make_view gives; found {view!r}")
    return make_view(view or default_kind(encoder), encoder.input_spec)


def _prepared(volume, view: View):
    """The scan as the view wants it; a prepared one must have been made so."""
    settings = view.prepare_settings()
    if isinstance(volume, (str, Path)) and not str(volume).endswith(SUFFIX):
        from voco.data.read import read_volume

        volume = read_volume(volume)
    if isinstance(volume, Volume):
        if view.mask:
            raise InputError(f"a view with mask {view.mask!r} takes prepared scans: prepare them with their masks")
        return PreparedArray(*prepare_volume(volume, settings))
    if isinstance(volume, (str, Path, PreparedEntry)):
        volume = PreparedVolume.open(getattr(volume, "path", volume))
    if not isinstance(volume, (PreparedVolume, PreparedArray)):
        raise InputError(
            f"a volume is what voco.read_volume gives, a path, or a prepared scan; found {type(volume).__name__}"
        )
    if not made_with(volume.meta, settings):
        raise InputError(
            f"{volume} was prepared with {volume.meta['settings']}, and this view needs {settings}: hand over the scan "
            "itself, or the view that it was prepared for"
        )
    return volume
