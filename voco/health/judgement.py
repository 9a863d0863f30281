"""One score against every line: what the differences allow to say, in numbers and in words, for scans and clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from voco.health.inference import LEAST_CLUSTERS, Difference, chance_limit, compare, interval
from voco.health.scores import Tally


class Line(Protocol):
    """Scores of what learned nothing."""

    def tally(self, name: str) -> Tally | None: ...

    def of_networks(self, name: str) -> list[float]: ...


@dataclass(frozen=True)
class Words:
    """What the sentences of a verdict call things.

    Attributes:
        cluster: what is swapped as a whole, singular (``scan``, ``group``).
        balanced: over what the scores are balanced.
        scores: score that is judged -> its words.
        lines: line -> its words.
        picture: where the scores stand over steps.
    """

    cluster: str
    balanced: str
    scores: Mapping[str, str]
    lines: Mapping[str, str]
    picture: str

    def count(self, clusters: int) -> str:
        return f"{clusters} held-out {self.cluster}{'s' if clusters != 1 else ''}"

    def all(self, names: Sequence[str]) -> str:
        return " and the ".join(self.lines.get(name, name) for name in names)


@dataclass(frozen=True)
class Judgement:
    """One score against all lines.

    Attributes:
        score: its name.
        value, interval: of the network.
        lines: value of each line, the constant guess first.
        differences: score minus line, for each.
        networks: values of the untrained networks, whose mean is their line.
        limit: how high untrained networks come by their draw; None without several of them.
        clusters: patients, or groups of clips, that were asked.
        missing: lines that a verdict needs and that were not measured.
    """

    score: str
    value: float
    interval: tuple[float, float] | None
    lines: dict[str, float]
    differences: dict[str, Difference]
    networks: tuple[float, ...]
    limit: float | None
    clusters: int
    missing: tuple[str, ...] = ()

    @property
    def judgeable(self) -> bool:
        """Whether there is anything to say: enough clusters, and every line."""
        return self.clusters >= LEAST_CLUSTERS and not self.missing

    @property
    def above(self) -> bool:
        """Surely above every line, and above what untrained networks reach by their draw."""
        sure = all(difference.surely_above for difference in self.differences.values())
        return self.judgeable and sure and (self.limit is None or self.value > self.limit)

    @property
    def p(self) -> float:
        """The largest p-value: all lines have to be beaten, so that nothing is corrected for their number."""
        return max(difference.p for difference in self.differences.values())

    @property
    def needed(self) -> int | None:
        """Clusters that would show the smallest of the differences; None where one is not positive."""
        counts = [difference.needed for difference in self.differences.values()]
        return None if any(count is None for count in counts) else max(counts)


def hold_against(
    score: str, own: Tally, constant: float, lines: Mapping[str, Line], needed: Sequence[str]
) -> Judgement:
    """Hold one score against the constant guess and every given line, paired over clusters.

    Args:
        score: its name.
        own: of the trained network.
        constant: what the best constant guess scores.
        lines: what learned nothing, by name, on the same questions.
        needed: names of the lines without which nothing can be said.

    Raises:
        InputError: a line was measured on other questions.
    """
    found = {"constant": Tally(constant * own.weight, own.weight)}
    found |= {name: line.tally(score) for name, line in lines.items() if line.tally(score) is not None}
    networks = tuple(lines["untrained"].of_networks(score)) if "untrained" in lines else ()
    return Judgement(
        score=score,
        value=own.value,
        interval=interval(own),
        lines={name: tally.value for name, tally in found.items()},
        differences={name: compare(own, tally) for name, tally in found.items()},
        networks=networks,
        limit=chance_limit(networks) if len(networks) > 1 else None,
        clusters=int((own.weight.sum(1) > 0).sum()),
        missing=tuple(name for name in needed if name not in found),
    )


def sentence(one: Judgement, words: Words) -> str:
    """What a judgement says: ``learned``, ``not learned`` or ``cannot be judged``, with all its numbers."""
    text = f"{words.scores[one.score]} {number(one.value, one.interval)} ({_beside(one, words)})"
    if one.missing:
        return f"cannot be judged without the line of the {words.all(one.missing)}: {text}."
    if one.clusters < LEAST_CLUSTERS:
        return f"cannot be judged with {words.count(one.clusters)}: {text}; {_enough(one, words)}."
    if one.above:
        return f"learned: {text}; above every line, p {_p(one.p)}."
    below = [name for name, d in one.differences.items() if d.value <= 0]
    unsure = [name for name, d in one.differences.items() if d.value > 0 and not d.surely_above]
    parts = [f"not above the {words.all(below)}"] if below else []
    if unsure:
        p = max(one.differences[name].p for name in unsure)
        parts.append(f"above the {words.all(unsure)}, but not surely (p {_p(p)}; {_enough(one, words)})")
    if one.limit is not None and one.value <= one.limit and not below:
        parts.append(f"untrained networks reach up to {one.limit:.2f} by their draw alone")
    return f"not learned: {text}; {'; '.join(parts)}."


def beside_best(one: Judgement, words: Words) -> str:
    """A score that decides nothing: its value and the best of the lines."""
    best = max(one.lines, key=one.lines.get)
    return f"{number(one.value, one.interval)} (best line: {words.all([best])} {one.lines[best]:.2f})"


def fallen(
    rows: Sequence[Mapping], words: Words, now: Mapping[str, float | None] | None = None, step: int | None = None
) -> list[str]:
    """Sentences on scores that decide and were higher at an earlier report of the same run.

    Args:
        rows: of metrics.jsonl, oldest first.
        now: the scores at ``step``; None takes the last row that has them.
    """
    found = []
    for score, name in words.scores.items():
        known = [(row[f"heldout/{score}"], row["step"]) for row in rows if row.get(f"heldout/{score}") is not None]
        if now is None and known:
            value, at = known.pop()
        else:
            value, at = None if now is None else now.get(score), step
        if value is None or not known:
            continue
        best, when = max(known)
        if value < best:
            found.append(
                f"note: fell: {name} {value:.2f} at step {at} is below the {best:.2f} at step {when} of this run; look "
                f"at {words.picture}, and take an earlier milestone or a lower learning rate if it goes on."
            )
    return found


def in_numbers(judgements: Sequence[Judgement]) -> list[dict]:
    """What a verdict rests on, ready for JSON: value, lines, differences and limit of each score that decides."""
    return [asdict(one) | {"learned": one.above} for one in judgements]


def for_card(judgements: Sequence[Judgement], results: Mapping[str, float], verdict: Sequence[str]) -> dict:
    """What travels with the weights: scores, the lines that they stand beside, and the verdict in words."""
    lines = {f"{name} of {one.score}": value for one in judgements for name, value in one.lines.items()}
    return {"results": dict(results), "lines": lines, "verdict": list(verdict)}


def number(value: float, limits: tuple[float, float] | None) -> str:
    """A score with its interval, where there is one."""
    return f"{value:.2f}" + ("" if limits is None else f" [{limits[0]:.2f}, {limits[1]:.2f}]")


def _beside(one: Judgement, words: Words) -> str:
    found = []
    for name, value in one.lines.items():
        several = len(one.networks) if name == "untrained" else 0
        many = f"{several} " if several else ""
        spread = f" ± {np.std(one.networks, ddof=1):.2f}" if several > 1 else ""
        found.append(f"{many}{words.all([name])} {value:.2f}{spread}")
    return f"{words.balanced}, {words.count(one.clusters)}; {', '.join(found)}"


def _enough(one: Judgement, words: Words) -> str:
    """How many held-out clusters would do."""
    many = f"held-out {words.cluster}s"
    if one.needed is None:
        return (
            f"at least {LEAST_CLUSTERS} {many} are needed"
            if one.clusters < LEAST_CLUSTERS
            else f"more {many} would tell"
        )
    if one.needed < 1000:
        return f"about {one.needed} {many} show a difference of this size"
    return f"a difference of this size needs more than a thousand {many}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
