"""Did it learn: held-out scores of the encoder's features against lines that need no learning, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voco.health.inference import LEAST_CLUSTERS, Difference, chance_limit, compare
from voco.health.report import HEADLINES, POSITION_SCORES, HealthReport
from voco.health.scores import Tally
from voco.health.windows import PADDED_SHARE

# Of the sentences and numbers below; a change of what decides is a new rule.
RULE = "sign flips of whole patients, prediction limit of untrained networks, one-sided 2.5 % (rule 2)"
COLLAPSE_COSINE = 0.95
# What a verdict needs beside the constant guess.
LINES = ("step0", "untrained", "histogram")
_WORDS = {
    "constant": "constant guess",
    "step0": "own step 0",
    "untrained": "untrained networks",
    "histogram": "HU histogram",
}
_LISTED = 5


@dataclass(frozen=True)
class Judgement:
    """One score against all lines.

    Attributes:
        score: its name.
        value, interval: of the network.
        lines: value of each line, the constant guess first.
        differences: score minus line, for each.
        limit: how high untrained networks come by their draw; None without several of them.
        patients: that were asked.
        missing: lines that a verdict needs and that were not measured.
    """

    score: str
    value: float
    interval: tuple[float, float] | None
    lines: dict[str, float]
    differences: dict[str, Difference]
    limit: float | None
    patients: int
    missing: tuple[str, ...] = ()

    @property
    def judgeable(self) -> bool:
        """Whether there is anything to say: enough patients, and every line."""
        return self.patients >= LEAST_CLUSTERS and not self.missing

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
        """Patients that would show the smallest of the differences; None where one is not positive."""
        counts = [difference.needed for difference in self.differences.values()]
        return None if any(count is None for count in counts) else max(counts)


def constant_line(score: str, references: Mapping[str, float]) -> float:
    """What the best constant guess scores: ``balanced_chance`` for balanced scores, ``position_chance`` otherwise."""
    return float(references["balanced_chance" if score.endswith("_balanced") else "position_chance"])


def judge(
    report: HealthReport, lines: Mapping[str, HealthReport], references: Mapping[str, float], score: str
) -> Judgement | None:
    """Hold one score against the constant guess and every given line, paired over patients.

    Args:
        report: the trained encoder.
        lines: reports of what learned nothing, by name (``step0``, ``untrained``, ``histogram``), on the same windows.
        references: fields of ``voco.reference.reference_lines``.
        score: e.g. one of ``HEADLINES``.

    Returns:
        None where the report does not have the score.

    Raises:
        InputError: a line was measured on other windows.
    """
    own = report.tally(score)
    if own is None:
        return None
    constant = constant_line(score, references)
    found = {"constant": Tally(constant * own.weight, own.weight)}
    found |= {name: line.tally(score) for name, line in lines.items() if line.tally(score) is not None}
    networks = lines["untrained"].of_networks(score) if "untrained" in lines else []
    return Judgement(
        score=score,
        value=own.value,
        interval=report.interval(score),
        lines={name: tally.value for name, tally in found.items()},
        differences={name: compare(own, tally) for name, tally in found.items()},
        limit=chance_limit(networks) if len(networks) > 1 else None,
        patients=int((own.weight.sum(1) > 0).sum()),
        missing=tuple(name for name in LINES if name not in found),
    )


def judgements(
    report: HealthReport, lines: Mapping[str, HealthReport], references: Mapping[str, float]
) -> list[Judgement]:
    """Of the encoder's features: position accuracy, then disjoint accuracy, as far as they were measured.

    The second is called learned only where the first is: tests in a fixed order need no correction, so that the chance
    of one false "learned" among both stays what it is for one (Maurer, Hothorn, Lehmacher 1995).
    """
    found = [judge(report, lines, references, score) for score in HEADLINES]
    return [one for one in found if one is not None]


def verdict(
    report: HealthReport,
    references: Mapping[str, float],
    *,
    step: int,
    warmup_steps: int,
    lines: Mapping[str, HealthReport] | None = None,
    earlier: Sequence[Mapping] = (),
) -> list[str]:
    """Say in plain words whether the run has learned.

    Each sentence starts with what it is: ``learned``, ``not learned``, ``cannot be judged``, ``loss``,
    ``nothing learned``, ``collapsed``, ``broken`` or ``note``. "Learned" means that a score of the encoder's features
    is above the constant guess, the run's own step 0, the mean of untrained networks and the HU histogram, each with
    p <= 0.025 when run and line are swapped within whole patients, and above what an untrained network reaches by its
    draw.

    Args:
        report: the encoder as it is now.
        references: fields of ``voco.reference.reference_lines`` for the geometry and loss of the run.
        step: steps taken so far.
        warmup_steps: the loss is judged only after these.
        lines: the lines that need no learning, by name.
        earlier: rows of metrics.jsonl of this run, for what was better before.
    """
    lines = lines or {}
    sentences = _about_loss(report, references, step, warmup_steps)
    if sentences and sentences[0].startswith("broken"):
        return sentences
    sure = True
    for one in judgements(report, lines, references):
        sentences.append(_sentence(one, lines, before=sure))
        sure = sure and one.above
    sentences += _about_projector(report, lines, references)
    for score in POSITION_SCORES:
        sentences += _about_clean(report, f"encoder_clean_{score}_balanced", lines)
    sentences += fallen([row for row in earlier if row["step"] < step], report, step)
    sentences += _about_padding(report)
    if report.disjoint_missing:
        sentences.append(f"note: no disjoint position accuracy: {report.disjoint_missing}.")
    return sentences


def fallen(rows: Sequence[Mapping], report: HealthReport | None = None, step: int | None = None) -> list[str]:
    """Sentences on scores of the encoder's features that were higher at an earlier report of the same run.

    Args:
        rows: of metrics.jsonl, oldest first.
        report: the scores now; None takes the last row that has them.
        step: of the report.
    """
    found = []
    for score in HEADLINES:
        known = [(row[f"heldout/{score}"], row["step"]) for row in rows if row.get(f"heldout/{score}") is not None]
        if report is None and known:
            now, at = known.pop()
        else:
            now, at = None if report is None else report.score(score), step
        if now is None or not known:
            continue
        best, when = max(known)
        if now < best:
            found.append(
                f"note: fell: {_score_words(score)} {now:.2f} at step {at} is below the {best:.2f} at step {when} of "
                "this run; look at figures/positions.png, and take an earlier milestone or a lower learning rate if it "
                "goes on."
            )
    return found


def _sentence(one: Judgement, lines: Mapping[str, HealthReport], before: bool) -> str:
    text = f"{_score_words(one.score)} {_value(one.value, one.interval)} ({_listed_lines(one, lines)})"
    if one.missing:
        return f"cannot be judged without the line of the {_all(one.missing)}: {text}."
    if one.patients < LEAST_CLUSTERS:
        return f"cannot be judged with {_count(one.patients)}: {text}; {_enough(one)}."
    if one.above and before:
        return f"learned: {text}; above every line, p {_p(one.p)}."
    if one.above:
        return f"not learned: {text}; above every line, but counted only where position accuracy is."
    below = [name for name, d in one.differences.items() if d.value <= 0]
    unsure = [name for name, d in one.differences.items() if d.value > 0 and not d.surely_above]
    parts = [f"not above the {_all(below)}"] if below else []
    if unsure:
        p = max(one.differences[name].p for name in unsure)
        parts.append(f"above the {_all(unsure)}, but not surely (p {_p(p)}; {_enough(one)})")
    if one.limit is not None and one.value <= one.limit and not below:
        parts.append(f"untrained networks reach up to {one.limit:.2f} by their draw alone")
    return f"not learned: {text}; {'; '.join(parts)}."


def _enough(one: Judgement) -> str:
    """How many held-out patients would do."""
    if one.needed is None:
        return (
            f"at least {LEAST_CLUSTERS} held-out scans are needed"
            if one.patients < LEAST_CLUSTERS
            else ("more held-out scans would tell")
        )
    return (
        f"about {one.needed} held-out scans show a difference of this size"
        if one.needed < 1000
        else ("a difference of this size needs more than a thousand held-out scans")
    )


def _listed_lines(one: Judgement, lines: Mapping[str, HealthReport]) -> str:
    found = []
    for name, value in one.lines.items():
        networks = lines[name].of_networks(one.score) if name in lines else []
        many = f"{len(networks)} " if networks else ""
        spread = f" ± {np.std(networks, ddof=1):.2f}" if len(networks) > 1 else ""
        found.append(f"{many}{_WORDS.get(name, name)} {value:.2f}{spread}")
    return f"balanced, {_count(one.patients)}; {', '.join(found)}"


def _about_projector(report: HealthReport, lines: Mapping[str, HealthReport], references) -> list[str]:
    """The second line: what the projector makes of the features, which depends on the evaluation batch."""
    parts = []
    for score in POSITION_SCORES:
        one = judge(report, lines, references, f"{score}_balanced")
        if one is not None and report.learns:
            best = max(one.lines, key=one.lines.get)
            parts.append(
                f"{score.replace('_', ' ')} {_value(one.value, one.interval)} (best line: {_WORDS.get(best, best)} "
                f"{one.lines[best]:.2f})"
            )
    return [f"note: through the projector, which only training needs: {', '.join(parts)}."] if parts else []


def _about_clean(report: HealthReport, score: str, lines: Mapping[str, HealthReport]) -> list[str]:
    """The histogram is a stronger line on crops as they are: say so where the encoder stays below it."""
    mine, other = report.score(score), lines["histogram"].score(score) if "histogram" in lines else None
    if mine is None or other is None or mine > other:
        return []
    words = score.removesuffix("_balanced").removeprefix("encoder_clean_").replace("_", " ")
    return [f"note: without intensity shift the HU histogram has the better {words} ({other:.2f}, encoder {mine:.2f})."]


def _about_padding(report: HealthReport) -> list[str]:
    share = report.score("padded_share")
    if share is None or share <= PADDED_SHARE:
        return []
    return [f"note: {padding_note(share, report.padded, 'held-out scans')}"]


def padding_note(share: float, scans: Mapping[str, float], where: str) -> str:
    """What windows larger than the scans mean, and which scans they are.

    Args:
        share: mean share of padded voxels.
        scans: those above ``PADDED_SHARE``, with their share.
        where: what the share is of.
    """
    worst = sorted(scans.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} {value:.0%}" for name, value in worst[:_LISTED])
    more = f" and {len(worst) - _LISTED} more" if len(worst) > _LISTED else ""
    return (
        f"{share:.0%} of the voxels in windows of {where} lie outside the scan (more than {PADDED_SHARE:.0%}), so that "
        f"place can be read from the padding: {named}{more}. Take a smaller --method.geometry.crop, a finer "
        "--data.spacing, or leave small scans out."
    )


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


def _score_words(score: str) -> str:
    kind = "disjoint" if "disjoint" in score else "position"
    return f"{kind} accuracy{' of the encoder' if score.startswith('encoder_') else ''}"


def _value(value: float, limits: tuple[float, float] | None) -> str:
    return f"{value:.2f}" + ("" if limits is None else f" [{limits[0]:.2f}, {limits[1]:.2f}]")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _count(patients: int) -> str:
    return f"{patients} held-out scan{'s' if patients != 1 else ''}"


def _all(names: Sequence[str]) -> str:
    return " and the ".join(_WORDS.get(name, name) for name in names)
