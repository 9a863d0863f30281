"""What an evaluation found, with intervals over patients: of a network, of a line, of several untrained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from voco.errors import InputError
from voco.health.inference import interval
from voco.health.scores import Tally

POSITION_SCORES = ("position_accuracy", "disjoint_accuracy")
# What the verdict is about: the mean of both; balanced, because always guessing the centre cell is worth 0.25 in the
# plain scores of a 3x3 grid; of the encoder's features, which do not depend on what else is in the batch.
HEADLINE = "encoder_place_accuracy_balanced"
PARTS = tuple(f"encoder_{score}_balanced" for score in POSITION_SCORES)


@dataclass(frozen=True)
class HealthReport:
    """Scores of one descriptor (trained, untrained, histogram) on one set of held-out windows.

    Attributes:
        name: what was evaluated, as figures call it.
        tallies: score name -> sums per patient; from these come values and intervals.
        values: numbers without an interval over patients (effective rank, padded share).
        scans, disjoint_scans, windows, queries: how much was looked at; ``disjoint_scans`` are deep enough for the
            disjoint score, ``queries`` are per window.
        seed: of windows and queries.
        disjoint_missing: why there is no disjoint score; None where there is one.
        padded: scan -> share of its windows that lies outside of it, of scans with more than ``PADDED_SHARE``.
        networks: for a line of several networks, the tallies of each; ``tallies`` are then their mean.
    """

    name: str
    tallies: dict[str, Tally]
    values: dict[str, float] = field(default_factory=dict)
    scans: int = 0
    disjoint_scans: int = 0
    windows: int = 0
    queries: int = 0
    seed: int = 0
    disjoint_missing: str | None = None
    padded: dict[str, float] = field(default_factory=dict)
    networks: tuple[dict[str, Tally], ...] = ()

    def tally(self, name: str) -> Tally | None:
        """Sums of one score; a descriptor without a projector has one of its kind, which is that of its features."""
        found = self.tallies.get(name)
        return self.tallies.get(name.removeprefix("encoder_")) if found is None and not self.learns else found

    @property
    def learns(self) -> bool:
        """Whether it is a network, with features beside what the projector makes of them."""
        return any(name.startswith("encoder_") for name in self.tallies)

    def score(self, name: str) -> float | None:
        """One number by name (e.g. ``intra``, ``encoder_position_accuracy_balanced``), None where it is not known."""
        found = self.tally(name)
        return self.values.get(name) if found is None else found.value

    def interval(self, name: str) -> tuple[float, float] | None:
        """95 % interval over patients, None where there is none."""
        found = self.tally(name)
        return None if found is None else interval(found)

    def of_networks(self, name: str) -> list[float]:
        """A score of each of several networks."""
        return [one[name].value for one in self.networks if name in one]

    def metrics(self, prefix: str = "heldout") -> dict[str, float]:
        """Flat names for metrics.jsonl and TensorBoard: ``heldout/intra``, ``heldout/intra_low``, ..."""
        flat = {}
        for name, tally in self.tallies.items():
            flat[f"{prefix}/{name}"] = tally.value
            if (limits := self.interval(name)) is not None:
                flat[f"{prefix}/{name}_low"], flat[f"{prefix}/{name}_high"] = limits
        flat |= {f"{prefix}/{name}": float(value) for name, value in self.values.items()}
        return flat | {f"{prefix}/scans": self.scans, f"{prefix}/disjoint_scans": self.disjoint_scans}

    def to_dict(self) -> dict:
        """Everything, ready for JSON; keeps the sums per patient so that all that is said can be recomputed."""
        saved = {f.name: getattr(self, f.name) for f in fields(self)}
        return saved | {"tallies": _plain(self.tallies), "networks": [_plain(one) for one in self.networks]}

    @classmethod
    def from_dict(cls, saved: Mapping) -> HealthReport:
        """Inverse of ``to_dict``, also of what version 0.1 wrote."""
        known = {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
        networks = tuple(_tallies(one) for one in saved.get("networks", ()))
        return cls(**known | {"tallies": _tallies(saved["tallies"]), "networks": networks})


def _plain(tallies: Mapping[str, Tally]) -> dict:
    return {k: {"hits": t.hits.tolist(), "weight": t.weight.tolist(), "share": t.share} for k, t in tallies.items()}


def _tallies(saved: Mapping) -> dict[str, Tally]:
    return {
        name: Tally(np.asarray(t["hits"], np.float64), np.asarray(t["weight"], np.float64), t.get("share", False))
        for name, t in saved.items()
    }


def better_of(states: Sequence[HealthReport], name: str) -> HealthReport:
    """One network in several states of its running statistics: each score as high as any state has it."""
    tallies = {}
    for score in states[0].tallies:
        tallies[score] = max((state.tallies[score] for state in states), key=lambda tally: tally.value)
    return _like(states[0], name, tallies)


def mean_of(networks: Sequence[HealthReport], name: str) -> HealthReport:
    """The mean of several networks on the same windows, which are kept beside it."""
    tallies = {}
    for score, first in networks[0].tallies.items():
        hits = np.mean([network.tallies[score].hits for network in networks], axis=0)
        tallies[score] = Tally(hits, first.weight, first.share)
    return _like(networks[0], name, tallies, networks=tuple(network.tallies for network in networks))


def joined(parts: Sequence[HealthReport]) -> HealthReport:
    """Reports on different patients as one, such as those of folds.

    A score that some parts do not have, because their scans are too shallow for it, is of the patients of the others.
    Numbers without patients are means over windows.
    """
    networks = [part.networks for part in parts]
    if len({len(found) for found in networks}) > 1:
        raise InputError(f"lines of {sorted({len(found) for found in networks})} networks are not the same line")
    sums = ("scans", "disjoint_scans", "windows")
    measured = [part for part in parts if part.disjoint_missing is None]
    return _like(
        parts[0],
        parts[0].name,
        _stacked([part.tallies for part in parts]),
        networks=tuple(_stacked(tallies) for tallies in zip(*networks)),
        values=_weighted_means([(part.values, part.windows) for part in parts]),
        padded={scan: share for part in parts for scan, share in part.padded.items()},
        disjoint_missing=None if measured else parts[0].disjoint_missing,
        **{name: sum(getattr(part, name) for part in parts) for name in sums},
    )


def _stacked(parts: Sequence[Mapping[str, Tally]]) -> dict[str, Tally]:
    found: dict[str, Tally] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        hits, weight = (np.concatenate([getattr(tally, sums) for tally in own]) for sums in ("hits", "weight"))
        found[name] = Tally(hits, weight, own[0].share)
    return found


def _weighted_means(parts: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    means = {}
    for name in dict.fromkeys(name for values, _ in parts for name in values):
        own = [(values[name], count) for values, count in parts if name in values]
        means[name] = float(np.average([value for value, _ in own], weights=[count for _, count in own]))
    return means


def _like(report: HealthReport, name: str, tallies: dict[str, Tally], **changes) -> HealthReport:
    kept = {f.name: getattr(report, f.name) for f in fields(report)}
    return HealthReport(**kept | {"name": name, "tallies": tallies, "networks": ()} | changes)
