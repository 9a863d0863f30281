"""Frozen features of whole scans: one vector per prepared volume, the mean over the windows of a view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from voco.data.cache import PreparedVolume
from voco.transfer.views import View, make_view, read_window

CHUNK = 8


def default_view(encoder, crop_body: bool = True) -> View:
    """How an encoder sees a scan when nobody says otherwise, as it was trained: tiles of its usual size at its spacing,
    or the whole scan stretched to that size where a voxel has no fixed size for it."""
    kind = "resize" if encoder.input_spec.spacing_mm is None else "tiles"
    return make_view(kind, encoder.input_spec, crop_body=crop_body)


def embed_volume(
    encoder,
    volume: PreparedVolume,
    view: View,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    chunk: int = CHUNK,
) -> np.ndarray:
    """One vector of a prepared scan.

    Args:
        encoder: a ``voco.encoders.Encoder`` on ``device``; its mode, gradients and running statistics stay as they are.
        volume: prepared as ``view.prepare_settings()`` says.
        view: which windows; their vectors are averaged.
        dtype: half precision of autocast; None for float32.
        chunk: windows that go through the encoder at once. Bounds memory and changes no result beyond rounding.

    Returns:
        (F,) float32.
    """
    starts = view.windows(volume.shape)
    total = np.zeros(encoder.num_features)
    with evaluating(encoder, device, dtype):
        for first in range(0, len(starts), chunk):
            hu = np.stack([read_window(volume, start, view) for start in starts[first : first + chunk]])
            vectors = encoder(torch.from_numpy(hu).unsqueeze(1).to(device))
            total += vectors.double().sum(0).cpu().numpy()
    return (total / len(starts)).astype(np.float32)


@contextmanager
def evaluating(module: torch.nn.Module, device: torch.device | str, dtype: torch.dtype | None) -> Iterator[None]:
    """Evaluation mode without gradients; every part gets its own mode back afterwards, also after an error."""
    modules = list(module.modules())
    modes = [part.training for part in modules]
    try:
        module.eval()
        with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            yield
    finally:
        for part, mode in zip(modules, modes):
            part.training = mode
