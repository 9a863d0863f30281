"""What was answered to held-out clips, by a network in training or by what learned nothing, and the scores of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from voco.health.inference import interval
from voco.health.scores import Tally, tally_rows
from voco.short_repr import short_repr

# Of the encoder's features, whatever the classifier makes of them. Balanced: the mean recall of the classes.
HEADLINE = "features_top1_balanced"
_KINDS = {"case": np.int64, "label": np.int64, "predicted": np.int64, "place": np.int64, "loss": np.float64}


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
        group: (N,) who or what must not be shared with the training clips (an actor): the clusters of all that is said.
        views: samples per clip whose probabilities were averaged; the largest number over the clips.
        unreadable: clip -> why it could not be read.
        features_place: (N,) as ``place``, of the nearest mean of a class among the encoder's features; None where no
            training clip is known.
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
    features_place: np.ndarray | None = None

    @property
    def top_k(self) -> int:
        """Of the second accuracy: 5, or one less than there are classes, since all of them are always right."""
        return min(5, len(self.classes) - 1)

    @property
    def score_names(self) -> tuple[str, ...]:
        """``top1``, ``top1_balanced`` (mean recall of the classes), ``top5`` (fewer with few classes), ``loss``.

        Those are the classifier's; ``features_top1`` and ``features_top1_balanced`` are of the nearest class mean.
        """
        second = (f"top{self.top_k}",) if self.top_k > 1 else ()
        features = () if self.features_place is None else ("features_top1", HEADLINE)
        return ("top1", "top1_balanced", *second, "loss", *features)

    def tally(self, score: str) -> Tally:
        """Sums per group of one of ``score_names``."""
        if score == "loss":
            return tally_rows(_numbers(self.group), self.loss)
        place = self.features_place if score.startswith("features_") else self.place
        return _accuracy(place[None], self, score.removeprefix("features_"))

    def score(self, name: str) -> float | None:
        """One number by name, None where there is none of that name."""
        return self.tally(name).value if name in self.score_names and len(self.label) else None

    def interval(self, name: str) -> tuple[float, float] | None:
        """95 % interval over groups, None where there is none."""
        return interval(self.tally(name)) if name in self.score_names and len(self.label) else None

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
            if (limits := self.interval(name)) is not None:
                flat[f"{prefix}/{name}_low"], flat[f"{prefix}/{name}_high"] = limits
        counts = {"clips": len(self.label), "groups": len(set(self.group)), "unreadable": len(self.unreadable)}
        return flat | {f"{prefix}/{name}": float(value) for name, value in counts.items()}

    def to_dict(self) -> dict:
        """Everything, ready for JSON, with the scores beside the answers that they follow from."""
        scores = {n: {"value": self.score(n), "interval": self.interval(n)} for n in self.score_names}
        return _plain(self) | {"scores": scores, "recall": self.recall()}

    @classmethod
    def from_dict(cls, saved: Mapping) -> VideoReport:
        """Inverse of ``to_dict``, also after a trip through JSON and of what version 0.1 wrote."""
        return cls(**_typed(cls, saved, _KINDS | {"features_place": np.int64}))


@short_repr
@dataclass(frozen=True)
class ClipLine:
    """What learned nothing, or nothing yet: the nearest class mean for N held-out clips, of one network or of several.

    Attributes:
        name: as figures call it.
        classes, case, label, group: as in ``VideoReport``.
        place: (K, N) how many classes are nearer than the true one, for each of K networks; scores are means over them.
    """

    name: str
    classes: tuple[str, ...]
    case: np.ndarray
    label: np.ndarray
    group: tuple[str, ...]
    place: np.ndarray

    @property
    def score_names(self) -> tuple[str, ...]:
        """``top1``, ``top1_balanced`` and, with more than two classes, ``top5`` or fewer."""
        second = min(5, len(self.classes) - 1)
        return ("top1", "top1_balanced", *((f"top{second}",) if second > 1 else ()))

    def tally(self, name: str) -> Tally | None:
        """Sums per group; a line has one kind of answer, which stands beside features and classifier alike."""
        name = name.removeprefix("features_")
        return _accuracy(self.place, self, name) if name in self.score_names else None

    def score(self, name: str) -> float | None:
        """One number by name, None where there is none of that name."""
        found = self.tally(name)
        return None if found is None else found.value

    def of_networks(self, name: str) -> list[float]:
        """A score of each of several networks."""
        name = name.removeprefix("features_")
        return [_accuracy(place[None], self, name).value for place in self.place] if len(self.place) > 1 else []

    def to_dict(self) -> dict:
        """Everything, ready for JSON."""
        return _plain(self)

    @classmethod
    def from_dict(cls, saved: Mapping) -> ClipLine:
        """Inverse of ``to_dict``."""
        return cls(**_typed(cls, saved, {"case": np.int64, "label": np.int64, "place": np.int64}))


def better_of(states: Sequence[ClipLine]) -> ClipLine:
    """One network in several states of its running statistics: the one with the higher balanced accuracy."""
    return max(states, key=lambda state: state.score("top1_balanced"))


def mean_of(networks: Sequence[ClipLine], name: str) -> ClipLine:
    """Several networks on the same clips as one line."""
    return replace(networks[0], name=name, place=np.concatenate([network.place for network in networks]))


def report_of(
    case: np.ndarray,
    label: np.ndarray,
    answer: np.ndarray,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    name: str = "trained",
    nearest: np.ndarray | None = None,
    unreadable: Mapping[str, str] | None = None,
) -> VideoReport:
    """A report from probabilities.

    Args:
        case: (M,) clip number of each sample.
        label: (M,) true class.
        answer: (M, C) probabilities of the classifier; those of one clip are averaged.
        classes, name, unreadable: of the report.
        groups: of the clips, by clip number.
        nearest: (M, C) as ``answer``, of the nearest class mean among the features.
    """
    clips, label_of, mean, place = _per_clip(case, label, answer)
    true, finite = mean[np.arange(len(clips)), label_of], np.isfinite(mean).all(1)
    return VideoReport(
        name=name,
        classes=tuple(classes),
        case=clips,
        label=label_of,
        predicted=np.where(finite, np.where(finite[:, None], mean, 0).argmax(1), -1),
        place=place,
        loss=-np.log(np.maximum(true, np.finfo(np.float64).tiny)),
        group=tuple(str(groups[c]) for c in clips),
        views=int(np.unique(case, return_counts=True)[1].max()),
        unreadable=dict(unreadable or {}),
        features_place=None if nearest is None else _per_clip(case, label, nearest)[-1],
    )


def line_of(
    case: np.ndarray,
    label: np.ndarray,
    nearest: np.ndarray,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    name: str,
) -> ClipLine:
    """A line from the probabilities of ``nearest_centroid``; arguments as for ``report_of``."""
    clips, label_of, _, place = _per_clip(case, label, nearest)
    return ClipLine(name, tuple(classes), clips, label_of, tuple(str(groups[c]) for c in clips), place[None])


def _per_clip(case: np.ndarray, label: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, ...]:
    """Clip numbers, their labels, mean probabilities, and how many classes stand before the true one."""
    clips, first, of_clip = np.unique(case, return_index=True, return_inverse=True)
    mean = np.zeros((len(clips), answer.shape[1]))
    np.add.at(mean, of_clip, answer)
    mean, label = mean / np.bincount(of_clip)[:, None], label[first]
    true = mean[np.arange(len(clips)), label]
    # of equal probabilities the first counts as the larger, as argmax has it
    before = (mean == true[:, None]) & (np.arange(mean.shape[1]) < label[:, None])
    place = (mean > true[:, None]).sum(1) + before.sum(1)
    return clips, label, mean, np.where(np.isfinite(mean).all(1), place, mean.shape[1])


def _accuracy(place: np.ndarray, clips: VideoReport | ClipLine, score: str) -> Tally:
    """Sums per group of ``top1``, ``top1_balanced``, ``top5`` …, of (K, N) places the mean over K."""
    right = (place < int(score.removesuffix("_balanced").removeprefix("top"))).mean(0)
    if not score.endswith("_balanced"):
        return tally_rows(_numbers(clips.group), right, share=True)
    cell = np.eye(len(clips.classes))[clips.label]
    return tally_rows(_numbers(clips.group), right[:, None] * cell, cell, share=True)


def _numbers(group: Sequence[str]) -> np.ndarray:
    return np.unique(np.array(group, dtype=str), return_inverse=True)[1]


def _plain(report) -> dict:
    saved = {f.name: getattr(report, f.name) for f in fields(report)}
    return saved | {k: v.tolist() for k, v in saved.items() if isinstance(v, np.ndarray)}


def _typed(cls, saved: Mapping, kinds: Mapping) -> dict:
    values = {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
    values |= {name: np.asarray(values[name], kind) for name, kind in kinds.items() if values.get(name) is not None}
    return values | {"classes": tuple(values["classes"]), "group": tuple(values["group"])}
