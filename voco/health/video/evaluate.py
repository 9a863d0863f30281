"""Ask networks for features and classes of clips, and clips for the class whose mean lies nearest."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voco.errors import InputError
from voco.health.evaluate import estimate_batchnorm, evaluating
from voco.health.video.report import ClipLine, VideoReport, better_of, line_of, report_of
from voco.short_repr import short_repr

# Batches of training clips that BatchNorm statistics of networks without training are estimated from.
_CALIBRATION_BATCHES = 8

Batches = Iterable[Mapping[str, torch.Tensor]]


@short_repr
@dataclass(frozen=True)
class Seen:
    """What M samples look like to K networks.

    Attributes:
        case, label: (M,).
        features: of each network (M, F).
        answers: of each network (M, C) probabilities of its classifier; None of one without.
    """

    case: np.ndarray
    label: np.ndarray
    features: list[np.ndarray]
    answers: list[np.ndarray | None]


def look_at(
    methods: Sequence,
    batches: Batches,
    *,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
) -> Seen | None:
    """Pass clips through networks, all of them batch by batch, so that each clip is decoded once; None without clips.

    Weights, modes and random state are left as they were.

    Args:
        methods: have ``inspect`` (``voco.methods.base.ClipMethod``).
        batches: ``frames`` (B, T, H, W, 3|1) uint8, ``label`` (B,), ``case`` (B,) clip numbers.
        device: where the methods are.
        autocast_dtype: e.g. ``torch.bfloat16`` to look as in training; None is float32.
    """
    device, found, truth = torch.device(device), [[] for _ in methods], []
    precision = torch.autocast(device.type, dtype=autocast_dtype) if autocast_dtype else contextlib.nullcontext()
    with contextlib.ExitStack() as stack:
        for method in methods:
            stack.enter_context(evaluating(method))
        for batch in batches:
            frames = batch["frames"].to(device)
            truth.append((batch["case"].numpy(), batch["label"].numpy()))
            for method, rows in zip(methods, found):
                with precision:
                    features, logits = method.inspect(frames)
                # not every device has float64
                answers = None if logits is None else logits.cpu().double().softmax(1).numpy()
                rows.append((features.float().cpu().double().numpy(), answers))
    if not truth:
        return None
    case, label = (np.concatenate(part) for part in zip(*truth))
    features = [np.concatenate([row[0] for row in rows]) for rows in found]
    answers = [None if rows[0][1] is None else np.concatenate([row[1] for row in rows]) for rows in found]
    return Seen(case, label, features, answers)


def evaluate_clips(
    method,
    batches: Batches,
    groups: Sequence[str],
    *,
    train: Batches = (),
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    name: str = "trained",
    unreadable: Mapping[str, str] | None = None,
) -> VideoReport:
    """Ask a method for the class of every held-out clip: its classifier, and the nearest class mean of its features.

    Args:
        method: has ``classes`` and ``inspect``.
        batches: of held-out clips, see ``look_at``. Samples with the same number are views of one clip: their
            probabilities are averaged.
        groups: of the held-out clips, by clip number.
        train: of the training clips that the class means are taken of; without any, features are not scored.
        device, autocast_dtype: see ``look_at``.
        name, unreadable: of the report.

    Raises:
        InputError: no held-out clip can be read.
    """
    known = look_at([method], train, device=device, autocast_dtype=autocast_dtype)
    asked = look_at([method], batches, device=device, autocast_dtype=autocast_dtype)
    if asked is None:
        why = "; ".join(f"{clip}: {reason}" for clip, reason in list((unreadable or {}).items())[:3])
        raise InputError(f"no held-out clip could be read{': ' + why if why else ''}")
    if known is None and asked.answers[0] is None:
        raise InputError("no training clip could be read, and the method has no classifier: there is nothing to report")
    nearest = None
    if known is not None:
        nearest = nearest_centroid(known.features[0], known.label, asked.features[0], len(method.classes))
    return report_of(
        asked.case,
        asked.label,
        nearest if asked.answers[0] is None else asked.answers[0],
        classes=method.classes,
        groups=groups,
        name=name,
        nearest=nearest,
        unreadable=unreadable,
    )


def network_lines(
    networks: Sequence[torch.nn.Module],
    batches: Batches,
    groups: Sequence[str],
    *,
    train: Batches,
    device: torch.device | str = "cpu",
) -> list[ClipLine]:
    """Score the features of networks without training as those of the trained one, one line each.

    A network counts with the better of two states of its BatchNorm statistics, as they are and estimated from training
    clips: untrained ones have none worth the name, and one state or the other alone makes a low line.

    Args:
        networks: methods with ``classes`` and ``inspect``; they are not changed.
        batches, groups, train, device: see ``evaluate_clips``.
    """
    some = [batch for number, batch in enumerate(train) if number < _CALIBRATION_BATCHES]
    states = []
    for number, network in enumerate(networks):
        states.append((number, network))
        # the copy has its own statistics and shares the weights
        calibrated = copy.deepcopy(network, memo={id(p): p for p in network.parameters()})
        if estimate_batchnorm(calibrated, lambda: look_at([calibrated], some, device=device)):  # noqa: B023
            states.append((number, calibrated))
    known = look_at([state for _, state in states], train, device=device)
    asked = look_at([state for _, state in states], batches, device=device)
    if known is None or asked is None:
        return []
    classes, lines = networks[0].classes, [[] for _ in networks]
    for (number, _), seen, features in zip(states, known.features, asked.features):
        nearest = nearest_centroid(seen, known.label, features, len(classes))
        one = line_of(asked.case, asked.label, nearest, classes=classes, groups=groups, name=f"network {number}")
        lines[number].append(one)
    return [better_of(found) for found in lines]


def nearest_centroid(train: np.ndarray, label: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities of a classifier that compares with the mean of each class: (M, C), softmax of minus the distance.

    Args:
        train: (N, F) descriptors, standardised here by their mean and deviation.
        label: (N,) classes.
        test: (M, F).
        classes: number of classes; one that does not occur in ``label`` is never the answer.
    """
    mean, deviation = train.mean(0), train.std(0)
    deviation = np.where(deviation > 1e-6 * max(1e-6, np.abs(train).max()), deviation, np.inf)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    distance = np.full((len(test), classes), np.inf)
    for c in np.unique(label):
        distance[:, c] = np.linalg.norm(test - train[label == c].mean(0), axis=1)
    score = np.exp(distance.min(1, keepdims=True) - distance)
    return score / score.sum(1, keepdims=True)
