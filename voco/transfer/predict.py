"""Scores of whole studies from a model: per study, per window, per source slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from voco.data.cache import PreparedVolume
from voco.short_repr import short_repr
from voco.tasks.base import Task
from voco.transfer.features import CHUNK, evaluating, window_vectors
from voco.transfer.model import StudyModel
from voco.transfer.views import View


@short_repr
@dataclass(frozen=True)
class StudyScores:
    """Scores of one study.

    Attributes:
        columns: score column to number.
        windows: score column to (N,) scores of the windows, from the same head.
        starts: (N, 3) first voxels of the windows in the prepared volume.
        logits: what the loss is taken of: (1, width) per output where studies are learned, else (N, width).
    """

    columns: dict[str, float]
    windows: dict[str, np.ndarray]
    starts: np.ndarray
    logits: dict[str, np.ndarray]


def score_study(
    model: StudyModel,
    task: Task,
    paths: Sequence[Path],
    view: View,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    flips: Sequence[Sequence[int]] = ((),),
) -> StudyScores:
    """Score one prepared study, in evaluation mode, without gradients; independent of every other study.

    Args:
        paths: of the prepared volume, and of the scan inside its mask where that is a channel.
        dtype: half precision of autocast; None for float32.
        flips: flips to average the probabilities over, each a set of axes of ``task.flips``; the plain study is ``()``.
    """
    volumes = [PreparedVolume.open(path) for path in paths]
    starts = view.windows(volumes[0].shape)
    with evaluating(model, device, dtype):
        vectors = [_vectors(model, volumes, starts, view, dtype, axes) for axes in flips]
        found = [score_features(model, task, each, starts) for each in vectors]
    study = [unflip(task, scores.columns, axes) for scores, axes in zip(found, flips)]
    windows = [unflip(task, scores.windows, axes) for scores, axes in zip(found, flips)]
    mean = {name: float(np.mean([row[name] for row in study])) for name in study[0]}
    return StudyScores(mean, {n: np.mean([w[n] for w in windows], 0) for n in windows[0]}, starts, found[0].logits)


def score_features(model: StudyModel, task: Task, features: torch.Tensor, starts: np.ndarray) -> StudyScores:
    """Scores of one study from the vectors (N, F) of its windows; the caller has turned gradients off."""
    each = _numpy(model.logits(features))
    windows = task.scores(each)
    if model.learn == "window":
        return StudyScores(_pool_scores(task, windows, model.options.pooling), windows, starts, each)
    valid = torch.ones(1, len(features), dtype=torch.bool, device=features.device)
    pooled = _numpy(model.logits(model.pool_windows(features.unsqueeze(0), valid)))
    columns = {name: float(values[0]) for name, values in task.scores(pooled).items()}
    return StudyScores(columns, windows, starts, pooled)


def window_features(
    model: StudyModel, paths: Sequence[Path], view: View, *, dtype: torch.dtype | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, F) float32 of the windows of a prepared study, and their first voxels (N, 3)."""
    volumes = [PreparedVolume.open(path) for path in paths]
    starts = view.windows(volumes[0].shape)
    return _vectors(model, volumes, starts, view, dtype, ()).float().cpu().numpy(), starts


def allowed_flips(task: Task) -> list[tuple[int, ...]]:
    """Every combination of the flips that a task allows, the plain study first."""
    axes = sorted(task.flips)
    return [found for count in range(len(axes) + 1) for found in combinations(axes, count)]


def unflip(task: Task, columns: Mapping, axes: Sequence[int]) -> dict:
    """Scores of a flipped study as those of the study: sided outputs change places back."""
    if not axes:
        return dict(columns)
    single = {o.name: columns[o.score_columns[0]] for o in task.outputs if len(o.score_columns) == 1}
    swapped = task.flip_targets(single, list(axes))
    return {**columns, **{o.score_columns[0]: swapped[o.name] for o in task.outputs if o.name in single}}


def _vectors(model: StudyModel, volumes, starts, view: View, dtype, axes: Sequence[int]) -> torch.Tensor:
    def read(hu: torch.Tensor) -> torch.Tensor:
        return model.window_features(hu.flip([2 + axis for axis in axes]) if axes else hu)

    return window_vectors(model, read, volumes, starts, view.size, chunk=model.chunk or CHUNK, dtype=dtype)


def _pool_scores(task: Task, each: Mapping[str, np.ndarray], pooling: str) -> dict[str, float]:
    """A study's scores from its windows' probabilities; classes are normalised again after a maximum."""
    how = np.max if pooling == "max" else np.mean
    columns = {name: float(how(values)) for name, values in each.items()}
    for output in task.outputs:
        if output.kind == "multiclass":
            total = sum(columns[name] for name in output.score_columns)
            columns |= {name: columns[name] / total for name in output.score_columns}
    return columns


def _numpy(logits: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: z.double().cpu().numpy() for name, z in logits.items()}
