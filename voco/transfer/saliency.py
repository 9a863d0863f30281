"""Where a model looked: gradient of a study's score with respect to its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from voco.data.cache import PreparedVolume
from voco.transfer.model import StudyModel
from voco.transfer.views import View, read_window

_SMOOTH_VOXELS = 1.0


def study_saliency(
    model: StudyModel,
    paths: Sequence[Path],
    view: View,
    output: str,
    *,
    device: torch.device,
    windows: Sequence[int],
    index: int = 0,
) -> np.ndarray:
    """Absolute gradient of one logit with respect to the Hounsfield units, times the step that a voxel could take.

    The gradient of each window's own logit is taken (Simonyan et al. 2014), multiplied by the voxel's distance from air
    in units of the Hounsfield window (gradient times input), smoothed by about a voxel and put back into the volume.

    Args:
        output: name of the output.
        windows: numbers of the windows to look at; the others stay 0.
        index: which of the output's logits.

    Returns:
        (D, H, W) float32, at least 0, of the prepared volume; the largest value where windows overlap.
    """
    from scipy.ndimage import gaussian_filter

    volumes = [PreparedVolume.open(path) for path in paths]
    shape, starts = volumes[0].shape, view.windows(volumes[0].shape)
    found = np.zeros(shape, np.float32)
    low, high = model.encoder.input_spec.windows[0]
    training = model.training
    model.eval()
    try:
        for number in windows:
            hu = np.stack([read_window(v, starts[number], view) for v in volumes])
            x = torch.from_numpy(hu[None]).to(device).float().requires_grad_()
            with torch.enable_grad():
                logit = model.logits(model.window_features(x))[output][0, index]
                (gradient,) = torch.autograd.grad(logit, x)
            inside = x.detach().clamp(low, high) - low
            weight = (gradient * inside).abs().sum(1)[0].float().cpu().numpy()
            _put(found, gaussian_filter(weight, _SMOOTH_VOXELS), starts[number])
    finally:
        model.train(training)
    return found


def _put(volume: np.ndarray, window: np.ndarray, start: np.ndarray) -> None:
    """Take the maximum of a volume and a window that lies at ``start``, as far as it is inside."""
    low = [max(0, int(s)) for s in start]
    high = [min(n, int(s) + k) for n, s, k in zip(volume.shape, start, window.shape)]
    place = tuple(slice(a, b) for a, b in zip(low, high))
    part = tuple(slice(a - int(s), b - int(s)) for a, b, s in zip(low, high, start))
    np.maximum(volume[place], window[part], out=volume[place])
