"""What an evaluation found: scores with intervals, differences to the lines that need no learning, plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from voco.health.scores import Tally, bootstrap_difference, bootstrap_interval

# the headline last; balanced, because always guessing the centre cell is worth 0.25 in the plain scores of a 3x3 grid
POSITION_SCORES = ("position_accuracy", "disjoint_accuracy")
COLLAPSE_COSINE = 0.95
FEW_SCANS = 10
RESAMPLES = 2000


@dataclass(frozen=True)
class HealthReport:
    """Scores of one descriptor (trained, untrained, histogram) on one set of held-out windows.

    Attributes:
        name: what was evaluated, as figures call it.
        tallies: score name -> per-scan sums; from these come values and intervals.
        values: numbers without an interval over scans (effective rank, inter, padded share).
        scans, disjoint_scans, windows, queries: how much was looked at; ``disjoint_scans`` are deep enough for the
            disjoint score, ``queries`` are per window.
        seed: of windows, queries and resampling.
        disjoint_missing: why there is no disjoint score; None where there is one.
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

    def score(self, name: str) -> float | None:
        """One number by name (e.g. ``intra``, ``disjoint_accuracy_balanced``), None where it was not measured."""
        if name in self.tallies:
            return self.tallies[name].value
        return self.values.get(name)

    def interval(self, name: str) -> tuple[float, float] | None:
        """95 % bootstrap interval over scans, None where there is none."""
        tally = self.tallies.get(name)
        return None if tally is None else bootstrap_interval(tally, resamples=RESAMPLES, seed=self.seed)

    def metrics(self, prefix: str = "heldout") -> dict[str, float]:
        """Flat names for metrics.jsonl and TensorBoard: ``heldout/intra``, ``heldout/intra_low``, ..."""
        flat = {}
        for name, tally in self.tallies.items():
            flat[f"{prefix}/{name}"] = tally.value
            if (interval := self.interval(name)) is not None:
                flat[f"{prefix}/{name}_low"], flat[f"{prefix}/{name}_high"] = interval
        flat |= {f"{prefix}/{name}": float(value) for name, value in self.values.items()}
        return flat | {f"{prefix}/scans": self.scans, f"{prefix}/disjoint_scans": self.disjoint_scans}

    def to_dict(self) -> dict:
        """Everything, ready for JSON; keeps the per-scan sums so that intervals and differences can be recomputed."""
        tallies = {k: {"hits": t.hits.tolist(), "weight": t.weight.tolist()} for k, t in self.tallies.items()}
        return {**self.__dict__, "tallies": tallies, "values": dict(self.values)}

    @classmethod
    def from_dict(cls, saved: Mapping) -> HealthReport:
        tallies = {
            k: Tally(np.asarray(t["hits"], np.float64), np.asarray(t["weight"], np.float64))
            for k, t in saved["tallies"].items()
        }
        return cls(**{**saved, "tallies": tallies})


@dataclass(frozen=True)
class Difference:
    """Score minus line, with a 95 % interval over scans (low and high None where one scan allows none)."""

    value: float
    low: float | None
    high: float | None

    @property
    def surely_above(self) -> bool:
        return self.low is not None and self.low > 0


def constant_line(score: str, references: Mapping[str, float]) -> float:
    """What the best constant guess scores: ``balanced_chance`` for balanced scores, ``position_chance`` otherwise."""
    return float(references["balanced_chance" if score.endswith("_balanced") else "position_chance"])


def differences(
    report: HealthReport, lines: Mapping[str, HealthReport], references: Mapping[str, float]
) -> dict[str, dict[str, Difference]]:
    """Every position score minus each line, paired over scans.

    Args:
        report: the trained encoder.
        lines: reports of descriptors that learned nothing, by name (``untrained``, ``histogram``), on the same windows.
        references: fields of ``voco.reference.reference_lines``.

    Returns:
        score -> line -> difference; the lines are ``constant`` and the given ones.

    Raises:
        InputError: a line was measured on other windows.
    """
    found = {}
    for score in [f"{s}{suffix}" for s in POSITION_SCORES for suffix in ("", "_balanced")]:
        if score not in report.tallies:
            continue
        chance, interval = constant_line(score, references), report.interval(score)
        low, high = (None, None) if interval is None else (interval[0] - chance, interval[1] - chance)
        found[score] = {"constant": Difference(report.score(score) - chance, low, high)}
        for name, line in lines.items():
            if score in line.tallies:
                value, interval = bootstrap_difference(
                    report.tallies[score], line.tallies[score], resamples=RESAMPLES, seed=report.seed
                )
                found[score][name] = Difference(value, *(interval or (None, None)))
    return found


def verdict(
    report: HealthReport,
    references: Mapping[str, float],
    *,
    step: int,
    warmup_steps: int,
    lines: Mapping[str, HealthReport] | None = None,
) -> list[str]:
    """Say in plain words whether the run has learned.

    Each sentence starts with what it is: ``learned``, ``not learned``, ``loss``, ``nothing learned``, ``collapsed``,
    ``broken`` or ``note``. "Learned" means: above the constant guess, the untrained encoder and the HU histogram, with
    the lower end of the interval of each paired difference above zero.

    Args:
        report: the encoder as it is now.
        references: fields of ``voco.reference.reference_lines`` for the geometry and loss of the run.
        step: steps taken so far.
        warmup_steps: the loss is judged only after these.
        lines: the lines that need no learning, by name.
    """
    sentences = _about_loss(report, references, step, warmup_steps)
    if sentences and sentences[0].startswith("broken"):
        return sentences
    found = differences(report, lines or {}, references)
    for score in POSITION_SCORES:
        balanced = f"{score}_balanced"
        if balanced in found:
            sentences.append(_about_score(report, balanced, found[balanced], lines or {}, references))
        if (remark := _about_clean(report, f"clean_{balanced}", lines or {})) is not None:
            sentences.append(remark)
    if report.disjoint_missing:
        sentences.append(f"note: no disjoint position accuracy: {report.disjoint_missing}.")
    if report.scans < 2:
        sentences.append("note: one held-out scan gives no interval, so nothing can be called learned; hold out more.")
    elif report.scans < FEW_SCANS:
        sentences.append(
            f"note: only {report.scans} held-out scans: intervals from so few are rough and usually too narrow; "
            f"hold out {FEW_SCANS} or more before comparing runs."
        )
    return sentences


def _about_loss(report, references, step, warmup_steps) -> list[str]:
    intra, cosine, best = report.score("intra"), report.score("mean_cosine"), float(references["best_constant"])
    if intra is None or cosine is None:
        return []
    if not (math.isfinite(intra) and math.isfinite(cosine)):
        return [
            f"broken: the held-out loss is not finite (intra {intra}, mean cosine {cosine}); go back to an earlier "
            "checkpoint and lower the learning rate, or train in bf16 or fp32 instead of fp16."
        ]
    sentences = []
    if cosine > COLLAPSE_COSINE:
        sentences.append(
            f"collapsed: all places of a scan get nearly the same embedding (mean cosine {cosine:.3f} > "
            f"{COLLAPSE_COSINE}); lower the learning rate, check that the regulariser is on and that the crops are not "
            "mostly air."
        )
    if intra < best:
        sentences.append(f"loss: held-out intra {intra:.3f} is below the best constant predictor ({best:.3f}).")
    elif step < warmup_steps:
        sentences.append(
            f"loss: held-out intra {intra:.3f} is not below the best constant predictor ({best:.3f}) yet; step {step} "
            f"is still in warm-up ({warmup_steps} steps), too early to judge."
        )
    else:
        sentences.append(
            f"nothing learned: held-out intra {intra:.3f} is at or above the best constant predictor ({best:.3f}) "
            "after warm-up; check the learning rate, that base and random crops share one projector batch, that the HU "
            "window fits the scans, and the share of padded voxels."
        )
    return sentences


def _about_score(report, score, found, lines, references) -> str:
    words = {"position_accuracy_balanced": "position accuracy", "disjoint_accuracy_balanced": "disjoint accuracy"}[
        score
    ]
    low_high = report.interval(score)
    interval = "" if low_high is None else f" [{low_high[0]:.2f}, {low_high[1]:.2f}]"
    values = {"constant": constant_line(score, references)}
    values |= {name: line.score(score) for name, line in lines.items() if score in line.tallies}
    listed = ", ".join(f"{_line_name(name)} {value:.2f}" for name, value in values.items())
    text = f"{words} {report.score(score):.2f}{interval} (balanced; {listed})"
    absent = [name for name in ("untrained", "histogram") if name not in values]
    if absent:
        return f"note: {text}; without the line of the {' and the '.join(map(_line_name, absent))} it says little."
    below = [_line_name(name) for name, d in found.items() if d.value <= 0]
    unsure = [_line_name(name) for name, d in found.items() if d.value > 0 and not d.surely_above]
    if not below and not unsure:
        return f"learned: {text}, above all three with the interval of each difference."
    parts = [f"not above the {' and the '.join(below)}"] if below else []
    if unsure:
        parts.append(f"above the {' and the '.join(unsure)}, but not surely (the interval of the difference has zero)")
    return f"not learned: {text}: {'; '.join(parts)}."


def _about_clean(report, score, lines) -> str | None:
    """The histogram is a stronger line on crops as they are: say so where the encoder stays below it."""
    line = lines.get("histogram")
    if line is None or score not in line.tallies or score not in report.tallies:
        return None
    mine, other = report.score(score), line.score(score)
    if mine > other:
        return None
    words = score.removesuffix("_balanced").removeprefix("clean_").replace("_", " ")
    return f"note: without intensity shift the HU histogram has the better {words} ({other:.2f}, encoder {mine:.2f})."


def _line_name(name: str) -> str:
    return {"constant": "constant guess", "untrained": "untrained encoder", "histogram": "HU histogram"}.get(name, name)
