"""Operations of a training run, estimated from what its folder records: network, size of a window, windows seen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

# A backward pass takes about twice the operations of the forward pass: gradients of activations, and of weights.
TRAINING_PASSES, FROZEN_PASSES = 3, 1
ESTIMATE = (
    f"FLOPs of training are an estimate: {TRAINING_PASSES} x the forward pass of a window x the windows seen; scoring "
    "is not counted, and probes on frozen features are not estimated"
)

COUNTED = (
    "FLOPs of pretraining are those that its run counted, a grouped convolution by its groups; counts of runs from "
    "before that rule are left out"
)


def training_flops(facts: Mapping[str, Any], settings: Mapping[str, Any], encoder: Mapping[str, Any]) -> float | None:
    """Operations of training, over all folds; scoring is not counted.

    Args:
        facts: of ``results.json``.
        settings: of the run, with dotted names.
        encoder: ``arch``, ``arguments`` and ``input_spec`` as its ``config.json`` has them; empty where it is missing.

    Returns:
        Forward operations of a window times the windows seen, once where the encoder was frozen and three times
        elsewhere; None where the run does not tell, or the network cannot be counted.
    """
    size = _window_size(str(facts.get("view", "")))
    per_sample = _windows_per_sample(facts, settings)
    if facts.get("mode") != "full" or not encoder or size is None or per_sample is None:
        return None
    total = 0.0
    for fold in (facts.get("training") or {}).values():
        samples, steps = (fold.get("cost") or {}).get("samples_seen"), fold.get("last_step")
        if samples is None:
            return None
        frozen = min(1.0, (settings.get("train.freeze_steps") or 0) / steps) if steps else 0.0
        total += samples * per_sample * (TRAINING_PASSES - (TRAINING_PASSES - FROZEN_PASSES) * frozen)
    if not total:
        return None
    windows = tuple(map(tuple, encoder.get("input_spec", {}).get("windows") or ()))
    forward = forward_flops(str(encoder.get("arch")), json.dumps(encoder.get("arguments") or {}), windows, size)
    return None if forward is None else total * forward


@cache
def forward_flops(
    name: str, arguments: str, windows: tuple[tuple[float, float], ...], size: tuple[int, int, int]
) -> int | None:
    """Operations of one window's forward pass, counted on the meta device: nothing is computed, nothing allocated.

    Args:
        name: registered encoder.
        arguments: its keywords, as JSON.
        windows: Hounsfield windows, one per input channel.
        size: (D, H, W) voxels.

    Returns:
        None where the network is not known or needs values.
    """
    import torch

    from voco.encoders import create_encoder
    from voco.engine.cost import count_operations
    from voco.errors import InputError

    try:
        with torch.device("meta"):
            encoder = create_encoder(name, window=windows or None, **json.loads(arguments)).eval()
            with torch.no_grad(), count_operations() as counter:
                encoder(torch.empty(1, 1, *size))
    except (InputError, RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    return counter.get_total_flops() or None


def _window_size(view: str) -> tuple[int, int, int] | None:
    """(D, H, W) as the words of a view say it: ``tiles of 64 x 64 x 64 voxels at 1.5 mm``."""
    found = re.search(r"(\d+) x (\d+) x (\d+) voxels", view)
    return None if found is None else tuple(map(int, found.groups()))


def _windows_per_sample(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> float | None:
    """Windows of a training sample: one where windows are learned, else those of a study, at most as many as asked."""
    if facts.get("learn", settings.get("learn")) == "window" or settings.get("view") == "resize":
        return 1.0
    shown = (facts.get("exposure") or {}).get("windows")
    most = settings.get("input.windows") or 0
    if shown is None:
        return None
    return float(min(shown, most) if most else shown)
