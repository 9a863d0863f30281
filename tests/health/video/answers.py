"""Answers, methods and clips whose scores are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from voco.errors import ScanError
from voco.health.video import line_of, report_of

CLASSES = tuple("abcdefg")


def probabilities(label, classes, skill, rng):
    """(N, classes) of somebody who knows the label by so much."""
    logits = rng.normal(size=(len(label), classes))
    logits[np.arange(len(label)), label] += skill
    answer = np.exp(logits)
    return answer / answer.sum(1, keepdims=True)


def answers(clips=120, classes=7, seed=0, skill=2.0, groups=12):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, clips)
    answer = probabilities(label, classes, skill, rng)
    return label, answer, [f"actor{i}" for i in rng.integers(0, groups, clips)]


def known_report(skill=2.0, features=2.0, clips=120, classes=7, groups=12, **more):
    """A report of a classifier and of features that know so much; the clips are always the same."""
    label, answer, group = answers(clips, classes, skill=skill, groups=groups)
    nearest = None if features is None else probabilities(label, classes, features, np.random.default_rng(1))
    return report_of(np.arange(clips), label, answer, classes=CLASSES[:classes], groups=group, nearest=nearest, **more)


def known_line(name="single_frame", skill=0.0, clips=120, classes=7, groups=12, seed=2):
    """A line on the clips of ``known_report``."""
    label, _, group = answers(clips, classes, groups=groups)
    nearest = probabilities(label, classes, skill, np.random.default_rng(seed))
    return line_of(np.arange(clips), label, nearest, classes=CLASSES[:classes], groups=group, name=name)


class KnownMethod(nn.Module):
    """Knows a clip by its first pixel; answers its class, and has it among its features, with a given scale."""

    def __init__(self, classes=("left", "right", "up"), scale=5.0, features=1.0):
        super().__init__()
        self.classes, self.scale, self.features = classes, scale, features
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(len(classes))

    def inspect(self, frames):
        assert not self.training and not torch.is_grad_enabled()
        known = torch.eye(len(self.classes))[frames[:, 0, 0, 0, 0].long() % len(self.classes)]
        return self.features * self.norm(known), self.drop(self.scale * known)


def blind(number):
    """A method without training: the same features whatever it sees."""
    return KnownMethod(scale=0.0, features=0.0)


class Clips(torch.utils.data.Dataset):
    """Clip i of class i % 3; ``broken`` ones cannot be read; counts how often anything is read."""

    def __init__(self, count, views=1, broken=(), still=False, replaces=False):
        self.count, self.views, self.broken, self.still, self.reads = count, views, broken, still, 0
        self.replaces = replaces

    def __len__(self):
        return self.count * self.views

    def __getitem__(self, index):
        clip, self.reads = index // self.views, self.reads + 1
        if clip in self.broken:
            if self.replaces:
                return {**self[index + self.views], "replaced": torch.tensor(1.0)}
            raise ScanError("no frame can be decoded")
        frames = torch.full((4, 32, 32, 3), 90, dtype=torch.uint8)
        frames[0, 0, 0] = clip % 3  # not in the middle frame
        if self.still:  # a frame that gives the class away
            frames[:, 8:24, 8 * (clip % 3) : 8 * (clip % 3) + 8] = 200
        return {"frames": frames, "label": torch.tensor(clip % 3), "case": torch.tensor(0)}
