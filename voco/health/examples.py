"""A few queries of the held-out windows with the network's answers, for the picture that explains VoCo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from voco.figures.anatomy import SimilarityCase
from voco.health.evaluate import evaluating, inspect_windows
from voco.health.windows import EvalWindow, draw_queries, scenes

_MOSTLY = 0.5


def similarity_examples(
    method,
    windows: Sequence[EvalWindow],
    *,
    count: int = 4,
    seed: int,
    batch_volumes: int = 2,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    slabs: bool = False,
) -> list[SimilarityCase]:
    """Of the first windows, which are of different scans, the first query that lies mostly in one cell: a fixed rule.

    Args:
        method, windows, seed, batch_volumes, device, autocast_dtype: as for ``evaluate``.
        count: at most so many cases.
        slabs: queries of the neighbouring slab, which share no voxel with the bases, in place of queries of the window;
            windows without one are left out.
    """
    geometry = method.geometry
    windows, hu, bases = scenes(windows, geometry, slabs=slabs)
    if not windows:
        return []
    asked = draw_queries(windows, geometry, 12, seed, 0.0, slabs=slabs)
    # all windows of whole batches, because a projector without running statistics depends on its batch
    many = min(len(windows), -(-count // batch_volumes) * batch_volumes)
    with evaluating(method):
        found = inspect_windows(
            method,
            hu[:many],
            bases,
            asked.starts[:many],
            None,
            batch_volumes=batch_volumes,
            device=torch.device(device),
            autocast_dtype=autocast_dtype,
        )
    cases = []
    for i, window in enumerate(windows[:count]):
        query = int(np.argmax(asked.labels[i].max(-1) > _MOSTLY))
        corner = asked.starts[i, query].tolist()
        crop = hu[i][tuple(slice(s, s + n) for s, n in zip(corner, geometry.size))]
        place = (int(bases[0, 0]), corner[1], corner[2]) if slabs else tuple(corner)
        shown = hu[i][: geometry.size[0]] if slabs else hu[i]
        similarity, labels = found["cosine"][i, query], asked.labels[i, query]
        cases.append(SimilarityCase(shown, crop, place, similarity, labels, str(window.key[0])))
    return cases
