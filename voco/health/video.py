"""Scores of a clip classifier on held-out clips: what it answered to each, and every number that follows from that."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from voco.errors import InputError
from voco.health.evaluate import evaluating
from voco.health.report import RESAMPLES, Difference
from voco.health.scores import Tally, bootstrap_difference, bootstrap_interval, tally_scans
from voco.short_repr import short_repr

FEW_GROUPS = 10
_ONE_ANSWER = 0.95
_EQUAL = 1e-6  # the rounding of a network that answers every class equally


@short_repr
@dataclass(frozen=True)
class VideoReport:
    """Answers to N held-out clips; scores and intervals are computed from them.

    Attributes:
        name: what answered, as figures call it.
        classes: names, in the order of the labels.
        case, label, predicted: (N,) clip number, true class, class with the largest probability (-1 where the answer is
            not finite).
        place: (N,) how many classes are more probable than the true one: 0 is right.
        loss: (N,) cross-entropy of the probabilities.
        group: (N,) who or what must not be shared with the training clips (an actor): intervals resample these.
        views: samples per clip whose probabilities were averaged; the largest number over the clips.
        unreadable: clip -> why it could not be read.
        seed: of resampling.
    """

    name: str
    classes: tuple[str, ...]
    case: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    place: np.ndarray
    loss: np.ndarray
    group: tuple[str, ...]
    views: int = 1
    unreadable: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    @property
    def top_k(self) -> int:
        """Of the second accuracy: 5, or one less than there are classes, since all of them are always right."""
        return min(5, len(self.classes) - 1)

    @property
    def score_names(self) -> tuple[str, ...]:
        """``top1``, ``top1_balanced`` (mean recall of the classes), ``top5`` (fewer with few classes), ``loss``."""
        second = (f"top{self.top_k}",) if self.top_k > 1 else ()
        return ("top1", "top1_balanced", *second, "loss")

    def tally(self, score: str) -> Tally:
        """Sums per group of one of ``score_names``."""
        groups = np.unique(np.array(self.group, dtype=str), return_inverse=True)[1]
        if score == "top1_balanced":
            cell = np.eye(len(self.classes))[self.label]
            return tally_scans(groups, (self.place == 0)[:, None] * cell, cell)
        rows = self.loss if score == "loss" else self.place < int(score.removeprefix("top"))
        return tally_scans(groups, rows)

    def score(self, name: str) -> float | None:
        """One number by name, None where there is none of that name."""
        return self.tally(name).value if name in self.score_names and len(self.label) else None

    def interval(self, name: str) -> tuple[float, float] | None:
        """95 % bootstrap interval over groups, None with fewer than two."""
        return bootstrap_interval(self.tally(name), resamples=RESAMPLES, seed=self.seed) if len(self.label) else None

    def confusion(self) -> np.ndarray:
        """(C, C) number of clips: true class in rows, answer in columns. Answers that are not finite are left out."""
        matrix = np.zeros((len(self.classes),) * 2, int)
        answered = self.predicted >= 0
        np.add.at(matrix, (self.label[answered], self.predicted[answered]), 1)
        return matrix

    def recall(self) -> dict[str, float | None]:
        """Class -> share of its clips that were named right; None for a class without a held-out clip."""
        right = self.place == 0
        of_class = [right[self.label == c] for c in range(len(self.classes))]
        return {name: float(hits.mean()) if len(hits) else None for name, hits in zip(self.classes, of_class)}

    def metrics(self, prefix: str = "heldout") -> dict[str, float]:
        """Flat names for metrics.jsonl and TensorBoard: ``heldout/top1``, ``heldout/top1_low``, …"""
        flat = {}
        for name in self.score_names:
            if (value := self.score(name)) is None:
                continue
            flat[f"{prefix}/{name}"] = value
            if (interval := self.interval(name)) is not None:
                flat[f"{prefix}/{name}_low"], flat[f"{prefix}/{name}_high"] = interval
        counts = {"clips": len(self.label), "groups": len(set(self.group)), "unreadable": len(self.unreadable)}
        return flat | {f"{prefix}/{name}": float(value) for name, value in counts.items()}

    def to_dict(self) -> dict:
        """Everything, ready for JSON, with the scores beside the answers that they follow from."""
        saved = {f.name: getattr(self, f.name) for f in fields(self)}
        saved |= {k: v.tolist() for k, v in saved.items() if isinstance(v, np.ndarray)}
        scores = {n: {"value": self.score(n), "interval": self.interval(n)} for n in self.score_names}
        return saved | {"scores": scores, "recall": self.recall()}

    @classmethod
    def from_dict(cls, saved: Mapping) -> VideoReport:
        """Inverse of ``to_dict``, also after a trip through JSON."""
        kinds = {"case": np.int64, "label": np.int64, "predicted": np.int64, "place": np.int64, "loss": np.float64}
        values = {f.name: saved[f.name] for f in fields(cls)}
        values |= {name: np.asarray(values[name], kind) for name, kind in kinds.items()}
        return cls(**values | {"classes": tuple(values["classes"]), "group": tuple(values["group"])})


def evaluate_clips(
    method,
    batches: Iterable[Mapping[str, torch.Tensor]],
    groups: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    name: str = "trained",
    seed: int = 0,
    unreadable: Mapping[str, str] | None = None,
) -> VideoReport:
    """Ask a method for the class of every held-out clip. Weights, modes and random state are left as they were.

    Args:
        method: has ``classes`` and ``logits`` (``voco.methods.video.VideoClassification``).
        batches: ``frames`` (B, T, H, W, 3|1) uint8, ``label`` (B,), ``case`` (B,) clip numbers. Samples with the same
            number are views of one clip: their probabilities are averaged.
        groups: of the clips, by clip number.
        device: where the method is.
        autocast_dtype: e.g. ``torch.bfloat16`` to evaluate as trained; None is float32.
        name, seed, unreadable: of the report.
    """
    device, found = torch.device(device), []
    precision = torch.autocast(device.type, dtype=autocast_dtype) if autocast_dtype else contextlib.nullcontext()
    with evaluating(method):
        for batch in batches:
            with precision:
                logits = method.logits(batch["frames"].to(device))
            answer = logits.cpu().double().softmax(1).numpy()  # not every device has float64
            found.append((batch["case"].numpy(), batch["label"].numpy(), answer))
    if not found:
        why = "; ".join(f"{clip}: {reason}" for clip, reason in list((unreadable or {}).items())[:3])
        raise InputError(f"no held-out clip could be read{': ' + why if why else ''}")
    return report_of(
        *(np.concatenate(part) for part in zip(*found)),
        classes=method.classes,
        groups=groups,
        name=name,
        seed=seed,
        unreadable=unreadable,
    )


def report_of(
    case: np.ndarray,
    label: np.ndarray,
    answer: np.ndarray,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    name: str = "trained",
    seed: int = 0,
    unreadable: Mapping[str, str] | None = None,
) -> VideoReport:
    """A report from probabilities.

    Args:
        case: (M,) clip number of each sample.
        label: (M,) true class.
        answer: (M, C) probabilities; those of one clip are averaged.
        classes, name, seed, unreadable: of the report.
        groups: of the clips, by clip number.
    """
    clips, first, of_clip = np.unique(case, return_index=True, return_inverse=True)
    views = np.bincount(of_clip)
    mean = np.zeros((len(clips), answer.shape[1]))
    np.add.at(mean, of_clip, answer)
    mean, label = mean / views[:, None], label[first]
    true = mean[np.arange(len(clips)), label]
    finite = np.isfinite(mean).all(1)
    # of equal probabilities the first counts as the larger, as argmax has it
    before = (mean == true[:, None]) & (np.arange(mean.shape[1]) < label[:, None])
    place = (mean > true[:, None]).sum(1) + before.sum(1)
    return VideoReport(
        name=name,
        classes=tuple(classes),
        case=clips,
        label=label,
        predicted=np.where(finite, np.where(finite[:, None], mean, 0).argmax(1), -1),
        place=np.where(finite, place, mean.shape[1]),
        loss=-np.log(np.maximum(true, np.finfo(np.float64).tiny)),
        group=tuple(str(groups[c]) for c in clips),
        views=int(views.max()),
        unreadable=dict(unreadable or {}),
        seed=seed,
    )


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


def constant_lines(report: VideoReport) -> dict[str, float]:
    """What the best constant answer scores on these clips: the k most frequent classes of the held-out clips.

    ``loss`` is that of answering every class equally often, which a network knows that has learned nothing.
    """
    counts = np.sort(np.bincount(report.label, minlength=len(report.classes)))[::-1]
    lines = {"top1": counts[0] / counts.sum(), "top1_balanced": 1 / np.count_nonzero(counts)}
    if report.top_k > 1:
        lines[f"top{report.top_k}"] = counts[: report.top_k].sum() / counts.sum()
    return {name: float(value) for name, value in lines.items()} | {"loss": math.log(len(report.classes))}


def differences(report: VideoReport, lines: Mapping[str, VideoReport], score: str) -> dict[str, Difference]:
    """A score minus each line (``constant`` and the given ones), paired over groups where the line has answers.

    Raises:
        InputError: a line was measured on other clips.
    """
    constant, interval = constant_lines(report)[score], report.interval(score)
    low, high = (None, None) if interval is None else (interval[0] - constant, interval[1] - constant)
    found = {"constant": Difference(report.score(score) - constant, low, high)}
    for name, line in lines.items():
        if not np.array_equal(line.case, report.case):
            raise InputError(f"the line {name!r} was measured on other clips; evaluate both on the same held-out clips")
        value, interval = bootstrap_difference(
            report.tally(score), line.tally(score), resamples=RESAMPLES, seed=report.seed
        )
        found[name] = Difference(value, *(interval or (None, None)))
    return found


def verdict(
    report: VideoReport, lines: Mapping[str, VideoReport] | None = None, *, step: int, warmup_steps: int
) -> list[str]:
    """Say in plain words whether the run has learned.

    Each sentence starts with what it is: ``learned``, ``not learned``, ``loss``, ``nothing learned``, ``collapsed``,
    ``broken`` or ``note``. "Learned" means: balanced top-1 above the constant answer and every other line, with the
    lower end of the interval of each difference above zero.

    Args:
        report: the network as it is now.
        lines: reports of what learned nothing about motion, by name (``single_frame``), on the same clips.
        step: steps taken so far.
        warmup_steps: loss and collapse are judged only after these.
    """
    loss, chance = report.score("loss"), math.log(len(report.classes))
    if not math.isfinite(loss) or (report.predicted < 0).any():
        return [
            f"broken: {np.count_nonzero(report.predicted < 0)} of {len(report.label)} held-out answers are not finite; "
            "go back to an earlier checkpoint and lower the learning rate, or train in bf16 or fp32 instead of fp16."
        ]
    early = step < max(1, warmup_steps)  # a fresh network gives one answer to everything
    sentences = [] if early else _about_one_answer(report)
    sentences.append(_about_loss(loss, chance, step, early))
    sentences.append(_about_score(report, lines or {}))
    groups = len(set(report.group))
    if groups < 2:
        sentences.append("note: one held-out group gives no interval, so nothing can be called learned; hold out more.")
    elif groups < FEW_GROUPS:
        sentences.append(
            f"note: only {groups} held-out groups: intervals from so few are rough and usually too narrow; hold out "
            f"{FEW_GROUPS} or more before comparing runs."
        )
    if absent := [name for name, recall in report.recall().items() if recall is None]:
        sentences.append(f"note: no held-out clip of {len(absent)} of {len(report.classes)} classes: {_some(absent)}.")
    if report.unreadable:
        sentences.append(
            f"note: {len(report.unreadable)} held-out clips could not be read: {_some(report.unreadable)}."
        )
    return sentences


def _about_one_answer(report: VideoReport) -> list[str]:
    counts = np.bincount(report.predicted, minlength=len(report.classes))
    most, share = int(counts.argmax()), counts.max() / counts.sum()
    occurs = (report.label == most).mean()
    if share <= _ONE_ANSWER or occurs > _ONE_ANSWER - 0.1:
        return []
    return [
        f"collapsed: {share:.0%} of the held-out clips are called {report.classes[most]!r} ({occurs:.0%} are); lower "
        "the learning rate, check that the classes are balanced and that the network reads enough frames."
    ]


def _about_loss(loss: float, chance: float, step: int, early: bool) -> str:
    if loss < chance - _EQUAL:
        return f"loss: held-out cross-entropy {loss:.3f} is below that of not knowing ({chance:.3f})."
    if early:
        return (
            f"loss: held-out cross-entropy {loss:.3f} is not below that of not knowing ({chance:.3f}) yet; step {step} "
            "is still in warm-up, too early to judge."
        )
    return (
        f"nothing learned: held-out cross-entropy {loss:.3f} is at or above that of not knowing ({chance:.3f}) after "
        "warm-up; if the training loss falls, the clips are learned by heart: more clips or groups, dropout, fewer "
        "steps; if it does not, look at the learning rate and at the frames (figures/clips.png)."
    )


def _about_score(report: VideoReport, lines: Mapping[str, VideoReport]) -> str:
    score = "top1_balanced"
    found, interval = differences(report, lines, score), report.interval(score)
    between = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    values = {"constant": constant_lines(report)[score]} | {name: line.score(score) for name, line in lines.items()}
    listed = ", ".join(f"{_line_name(name)} {value:.2f}" for name, value in values.items())
    text = f"top-1 {report.score(score):.2f}{between} (balanced over classes; {listed})"
    below = [_line_name(name) for name, d in found.items() if d.value <= 0]
    unsure = [_line_name(name) for name, d in found.items() if d.value > 0 and not d.surely_above]
    if not below and not unsure:
        return f"learned: {text}, above {'both' if len(found) == 2 else 'it'} with the interval of each difference."
    parts = [f"not above the {' and the '.join(below)}"] if below else []
    if unsure:
        parts.append(f"above the {' and the '.join(unsure)}, but not surely (the interval of the difference has zero)")
    return f"not learned: {text}: {'; '.join(parts)}."


def _line_name(name: str) -> str:
    return {"constant": "constant answer", "single_frame": "single frame"}.get(name, name)


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
