"""Did it learn: held-out scores of the encoder's features against lines that need no learning, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from voco.health import judgement
from voco.health.judgement import Judgement, Words, beside_best, hold_against, sentence
from voco.health.report import HEADLINE, PARTS, POSITION_SCORES, HealthReport
from voco.health.windows import PADDED_SHARE

# Of the sentences and numbers below; a change of what decides is a new rule.
RULE = "sign flips of whole patients, prediction limit of untrained networks, one-sided 2.5 % (rule 2)"
COLLAPSE_COSINE = 0.95
COLLAPSE_SPREAD = 0.01
# What a verdict needs beside the constant guess.
LINES = ("step0", "untrained", "histogram")
WORDS = Words(
    cluster="scan",
    balanced="balanced",
    scores={
        HEADLINE: "place accuracy of the encoder",
        PARTS[0]: "position accuracy of the encoder",
        PARTS[1]: "disjoint accuracy of the encoder",
    },
    lines={
        "constant": "constant guess",
        "step0": "own step 0",
        "untrained": "untrained networks",
        "histogram": "HU histogram",
    },
    picture="figures/positions.png",
)
_LISTED = 5


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
        score: e.g. ``HEADLINE``.

    Returns:
        None where the report does not have the score.

    Raises:
        InputError: a line was measured on other windows.
    """
    own = report.tally(score)
    if own is None:
        return None
    return hold_against(score, own, constant_line(score, references), lines, LINES)


def judgements(
    report: HealthReport, lines: Mapping[str, HealthReport], references: Mapping[str, float]
) -> list[Judgement]:
    """Of the encoder's features: place accuracy, which decides, and its two parts, as far as they were measured."""
    found = [judge(report, lines, references, score) for score in (HEADLINE, *PARTS)]
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
    ``nothing learned``, ``collapsed``, ``broken`` or ``note``. "Learned" means that place accuracy of the
    encoder's features, the mean of position and disjoint accuracy, is above the constant guess, the run's own step 0,
    the mean of untrained networks and the HU histogram, each with p <= 0.025 when run and line are swapped within whole
    patients, and above what an untrained network reaches by its draw.

    Args:
        report: the encoder as it is now.
        references: fields of ``voco.reference.reference_lines`` for the geometry and loss of the run.
        step: steps taken so far.
        warmup_steps: the loss is judged only after these.
        lines: the lines that need no learning, by name.
        earlier: rows of metrics.jsonl of this run, for what was better before.
    """
    lines = lines or {}
    sentences = _about_features(report) or _about_loss(report, references, step, warmup_steps)
    if sentences and sentences[0].startswith("broken"):
        return sentences
    found = judgements(report, lines, references)
    sentences += [sentence(one, words(report)) for one in found[:1]]
    sentences += _about_parts(found[1:])
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
    now = None if report is None else {score: report.score(score) for score in WORDS.scores}
    return judgement.fallen(rows, WORDS, now, step)


def words(report: HealthReport) -> Words:
    """What the sentences about a report call things: scans are patients, where every patient has one."""
    several = HEADLINE in report.tallies and report.tallies[HEADLINE].clusters < report.scans
    return replace(WORDS, cluster="patient") if several else WORDS


def _about_parts(parts: Sequence[Judgement]) -> list[str]:
    if not parts:
        return []
    told = [
        f"{WORDS.scores[one.score].removesuffix(' of the encoder')} {beside_best(one, WORDS)}"
        + (f"{'' if one.above else ', not surely'} above every line" if one.judgeable else "")
        for one in parts
    ]
    return [
        f"note: place accuracy is the mean of {' and '.join(told)}." if len(told) == 2 else f"note: it is {told[0]}."
    ]


def _about_projector(report: HealthReport, lines: Mapping[str, HealthReport], references) -> list[str]:
    """The second line: what the projector makes of the features, which depends on the evaluation batch."""
    parts = []
    for score in POSITION_SCORES:
        one = judge(report, lines, references, f"{score}_balanced")
        if one is not None and report.learns:
            parts.append(f"{score.replace('_', ' ')} {beside_best(one, WORDS)}")
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


def nameless(sentences: Sequence[str], report: HealthReport) -> list[str]:
    """Sentences of a verdict without the names of scans, for an encoder that may be published."""
    named, plain = _about_padding(report), _about_padding(replace(report, padded={}))
    return [plain[0] if [sentence] == named else sentence for sentence in sentences]


def padding_note(share: float, scans: Mapping[str, float], where: str) -> str:
    """What windows larger than the scans mean, and which scans they are.

    Args:
        share: mean share of padded voxels.
        scans: those above ``PADDED_SHARE``, with their share; none names nobody.
        where: what the share is of.
    """
    worst = sorted(scans.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} {value:.0%}" for name, value in worst[:_LISTED])
    more = f" and {len(worst) - _LISTED} more" if len(worst) > _LISTED else ""
    return (
        f"{share:.0%} of the voxels in windows of {where} lie outside the scan (more than {PADDED_SHARE:.0%}), so that "
        f"place can be read from the padding{f': {named}{more}' if named else ''}. Take a smaller "
        "--method.geometry.crop, a finer --data.spacing, or leave small scans out."
    )


def _about_features(report) -> list[str]:
    """Of a method whose loss says nothing about places: whether its features are numbers, and not all the same."""
    apart = report.score("feature_spread")
    if apart is None:
        return []
    if not math.isfinite(apart):
        return [
            "broken: the features of held-out scans are not finite; go back to an earlier checkpoint and lower the "
            "learning rate, or train in bf16 or fp32 instead of fp16."
        ]
    if apart >= COLLAPSE_SPREAD:
        return []
    return [
        f"collapsed: all places of all scans get nearly the same features (spread {apart:.2g} < {COLLAPSE_SPREAD:g} of "
        "their length); lower the learning rate, and check that the method has something that keeps them apart."
    ]


def _about_loss(report, references, step, warmup_steps) -> list[str]:
    intra, cosine = report.score("intra"), report.score("mean_cosine")
    if intra is None or cosine is None:
        return []
    best = float(references["best_constant"])
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
