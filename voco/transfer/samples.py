"""Training samples of labeled studies: which study or window comes at which position, with its targets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from voco.data.cache import PreparedVolume
from voco.errors import InputError, ScanError
from voco.rng import generator
from voco.short_repr import short_repr
from voco.tasks.base import Task
from voco.transfer.augment import StudyAugmentation
from voco.transfer.views import View, read_window

_OPEN_FILES = 64


@short_repr
@dataclass(frozen=True)
class StudyItem:
    """One prepared study of the training set.

    Attributes:
        paths: of the prepared volume, and of the same scan inside its mask where that is a channel.
        shape: (D, H, W) of both.
        targets: of the study, per output; NaN = not known.
        stratum: class that balanced sampling goes by.
        slice_index: (L,) fractional D index of each labeled slice, sorted; empty without slice labels.
        slice_labels: (L,) their labels.
    """

    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    targets: Mapping[str, float]
    stratum: str
    slice_index: np.ndarray = field(default_factory=lambda: np.zeros(0))
    slice_labels: np.ndarray = field(default_factory=lambda: np.zeros(0))


class StudySamples(Dataset):
    """Samples addressed by one integer that counts since the start of training.

    Position ``p`` maps to epoch ``p // len(units)`` and to a place in that epoch's permutation, where units are studies
    or, with ``learn="window"``, windows whose label is known. With ``balance`` the class is drawn first and then a unit
    of it, with replacement. Either way everything random comes from (seed, position), so samples depend neither on
    workers, nor on processes, nor on restarts, and no two processes see the same draw.

    Args:
        items: studies to train on.
        view: their windows.
        task: for targets of windows and of flipped studies.
        learn: ``study`` or ``window``, see ``StudyModel``.
        windows: windows of a study in one sample at most, drawn anew each time; 0 = all of them, in order.
        augmentation: draws of the augmentation; None for none.
        balance: share of each class, ``{stratum: share}``; None for samples as they come.
        match_depth: with ``balance`` and windows, draw all classes at the depths where the rarest one occurs.
        seed: of the run.
    """

    def __init__(
        self,
        items: Sequence[StudyItem],
        *,
        view: View,
        task: Task,
        learn: Literal["study", "window"],
        windows: int,
        augmentation: StudyAugmentation | None,
        balance: Mapping[str, float] | None = None,
        match_depth: bool = False,
        seed: int = 0,
    ):
        self.items, self.view, self.task, self.learn = list(items), view, task, learn
        self.augmentation, self.seed = augmentation, seed
        self.starts = [view.windows(item.shape) for item in self.items]
        largest = max((len(found) for found in self.starts), default=0)
        self.windows = 1 if learn == "window" else min(windows or largest, largest)
        self.units, strata = self._list_units()
        if not self.units:
            raise InputError("no labeled study or window is left to train on; see rejected.csv and the split")
        self.by_class = _by_class(strata, balance) if balance is not None else None
        self.depths = self._by_depth() if match_depth else None
        if self.depths is not None:
            self.rarest = min(range(len(self.depths)), key=lambda k: len(self.depths[k]))
        self._order: tuple[int, torch.Tensor] | None = None
        self._handles: OrderedDict[Path, PreparedVolume] = OrderedDict()

    def __getstate__(self):
        # A handle must never travel to another process: blosc2 would share its threads and hang.
        return {**self.__dict__, "_handles": OrderedDict(), "_order": None}

    def _list_units(self) -> tuple[list[tuple[int, int]], list[str]]:
        """(item, window or -1) with the class of each."""
        if self.learn == "study":
            return [(i, -1) for i in range(len(self.items))], [item.stratum for item in self.items]
        units, strata = [], []
        for i, item in enumerate(self.items):
            for k, start in enumerate(self.starts[i]):
                targets = self.window_targets(item, int(start[0]))
                known = [v for v in targets.values() if not np.isnan(v)]
                if known:
                    units.append((i, k))
                    strata.append("/".join(f"{v:g}" for v in targets.values()))
        return units, strata

    def window_targets(self, item: StudyItem, start: int) -> dict[str, float]:
        """Targets of the window whose first slice is ``start``, from the labels of the slices in it."""
        inside = (item.slice_index >= start - 0.5) & (item.slice_index < start + self.view.size[0] - 0.5)
        return self.task.window_targets(item.slice_labels[inside])

    def unit_targets(self) -> dict[str, np.ndarray]:
        """Per output, the target of every unit; NaN = not known."""
        rows = [self._unit_targets(*unit) for unit in self.units]
        return {output.name: np.array([row[output.name] for row in rows]) for output in self.task.outputs}

    def unit_shares(self) -> np.ndarray:
        """How often each unit is drawn, (U,) that sum to 1; with matched depths, on average over its class."""
        if self.by_class is None:
            return np.full(len(self.units), 1 / len(self.units))
        groups, weights = self.by_class
        shares = np.zeros(len(self.units))
        for group, weight in zip(groups, (weights / weights.sum()).tolist()):
            shares[group] = weight / len(group)
        return shares

    def drawn_targets(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What training draws: per output the targets, NaN = not known, and how often each row of them is drawn.

        A row is a unit, or, where flips change targets, a unit under one set of flips. A window that augmentation moves
        counts with the label of its place in the list.
        """
        plain, shares = self.unit_targets(), self.unit_shares()
        probability = self.augmentation.flip_prob if self.augmentation is not None else 0.0
        found: list[tuple[dict[str, np.ndarray], float]] = [(plain, 1.0)]
        for axis in self.task.flips if probability else ():
            both = []
            for targets, share in found:
                turned = self.task.flip_targets(targets, [axis])
                if all(np.array_equal(turned[name], targets[name], equal_nan=True) for name in targets):
                    both.append((targets, share))
                else:
                    both += [(targets, share * (1 - probability)), (turned, share * probability)]
            found = both
        rows = {name: np.concatenate([targets[name] for targets, _ in found]) for name in plain}
        return rows, np.concatenate([shares * share for _, share in found])

    def _unit_targets(self, item: int, window: int) -> dict[str, float]:
        if window < 0:
            return dict(self.items[item].targets)
        return self.window_targets(self.items[item], int(self.starts[item][window][0]))

    def _by_depth(self) -> list[np.ndarray]:
        """Per class, where its windows lie in their studies, 0 to 1; the units of a class are put into that order."""
        if self.by_class is None or self.learn != "window":
            raise InputError("--train.match_depth is for --learn window with --train.balance true")
        groups, _ = self.by_class
        depths = []
        for k, group in enumerate(groups):
            at = np.array([self._depth(*self.units[unit]) for unit in group])
            order = np.argsort(at, kind="stable")
            groups[k] = [group[place] for place in order]
            depths.append(at[order])
        return depths

    def _depth(self, item: int, window: int) -> float:
        return (float(self.starts[item][window][0]) + 0.5 * self.view.size[0]) / self.items[item].shape[0]

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """One sample.

        Returns:
            ``hu`` (K, S, D, H, W) int16, ``valid`` (K,) bool, ``targets`` (outputs,) float32, ``replaced``, and the
            draws of the augmentation. A study that cannot be read any more is replaced by the next one and counted;
            only when every one fails is it an error.
        """
        epoch, place = divmod(position, len(self.units))
        reasons = []
        for attempt in range(len(self.units)):
            rng = generator(self.seed, "finetune", epoch, place, attempt)
            item, window = self.units[self._choose(epoch, place, attempt, rng)]
            try:
                return self._sample(item, window, rng) | {"replaced": torch.tensor(float(attempt > 0))}
            except (ScanError, OSError, RuntimeError) as error:
                for path in self.items[item].paths:
                    self._handles.pop(path, None)
                reasons.append(str(error))
        raise ScanError("no prepared study can be read any more; first reasons: " + "; ".join(reasons[:3]))

    def _choose(self, epoch: int, place: int, attempt: int, rng: torch.Generator) -> int:
        if self.by_class is not None:
            groups, shares = self.by_class
            drawn = int(torch.multinomial(shares, 1, generator=rng))
            first, last = 0, len(groups[drawn])
            if self.depths is not None:
                # The rarest class says where; a window of the drawn class is taken near there.
                rare = self.depths[self.rarest]
                depth = rare[int(torch.randint(len(rare), (), generator=rng))]
                first, last = _near(self.depths[drawn], depth)
            return groups[drawn][first + int(torch.randint(last - first, (), generator=rng))]
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.units), generator=generator(self.seed, "finetune order", epoch))
            self._order = (epoch, order)
        return int(self._order[1][(place + attempt) % len(self.units)])

    def _sample(self, number: int, window: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        item, starts = self.items[number], self.starts[number]
        picked, moves = torch.randperm(len(starts), generator=rng), torch.rand(len(starts), 3, generator=rng).numpy()
        chosen = [window] if window >= 0 else sorted(picked[: self.windows].tolist())
        draws, flips = {}, []
        if self.augmentation is not None:
            draws = self.augmentation.draw(rng, self.task.flips)
            flips = [axis for axis in range(3) if draws["flips"][axis]]
        hu = np.full((self.windows, len(item.paths), *self.view.size), -1024, np.int16)
        valid = torch.zeros(self.windows, dtype=torch.bool)
        targets = dict(item.targets)
        for k, index in enumerate(chosen):
            start = starts[index]
            if self.augmentation is not None and self.augmentation.jitter != "none":
                moving = {"all": (0, 1, 2), "plane": (1, 2), "depth": (0,)}[self.augmentation.jitter]
                start = self.view.jitter(start, item.shape, moves[index], moving)
            if self.learn == "window":
                moved = self.window_targets(item, int(start[0]))
                # moved onto slices without labels: the window as it was listed is as good
                start, targets = (
                    (start, moved) if not _all_nan(moved) else (starts[index], self._unit_targets(number, index))
                )
            for s, path in enumerate(item.paths):
                hu[k, s] = read_window(self._open(path), start, self.view)
            valid[k] = True
        targets = self.task.flip_targets(targets, flips)
        return {
            "hu": torch.from_numpy(hu),
            "valid": valid,
            "targets": torch.tensor([targets[output.name] for output in self.task.outputs], dtype=torch.float32),
            **draws,
        }

    def _open(self, path: Path) -> PreparedVolume:
        if path not in self._handles:
            self._handles[path] = PreparedVolume.open(path)
            if len(self._handles) > _OPEN_FILES:
                self._handles.popitem(last=False)
        self._handles.move_to_end(path)
        return self._handles[path]


def _near(depths: np.ndarray, depth: float) -> tuple[int, int]:
    """First and end of the sorted ``depths`` within 0.03 of one, or the closest of them alone."""
    first, last = np.searchsorted(depths, [depth - 0.03, depth + 0.03])
    if first == last:
        first = min(first, len(depths) - 1)
        if first > 0 and depth - depths[first - 1] < abs(depths[first] - depth):
            first -= 1
        last = first + 1
    return int(first), int(last)


def _all_nan(targets: Mapping[str, float]) -> bool:
    return all(np.isnan(value) for value in targets.values())


def _by_class(strata: Sequence[str], shares: Mapping[str, float]) -> tuple[list[list[int]], torch.Tensor]:
    """Units of each class and the probability of the class; an empty mapping means equal shares."""
    groups: dict[str, list[int]] = {}
    for index, stratum in enumerate(strata):
        groups.setdefault(stratum, []).append(index)
    if shares and set(shares) != set(groups):
        raise InputError(
            f"--train.class_shares names the classes {', '.join(sorted(shares))}; the training set has "
            f"{', '.join(sorted(groups))}"
        )
    names = sorted(groups)
    weights = [float(shares[name]) if shares else 1.0 for name in names]
    if min(weights) < 0 or sum(weights) <= 0:
        raise InputError(f"--train.class_shares must be shares of at least 0, found {dict(shares)}")
    return [groups[name] for name in names], torch.tensor(weights, dtype=torch.float64)
