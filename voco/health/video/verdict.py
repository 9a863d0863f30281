"""Did a run on labeled clips learn: top-1 of the encoder's features against lines that need no learning, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from voco.errors import InputError
from voco.health import judgement
from voco.health.judgement import Judgement, Words, beside_best, hold_against, sentence
from voco.health.video.report import HEADLINE, ClipLine, VideoReport

RULE = "sign flips of whole groups, prediction limit of untrained networks, one-sided 2.5 % (rule 2)"
# What a verdict needs beside the constant answer.
LINES = ("step0", "untrained", "single_frame")
WORDS = Words(
    cluster="group",
    balanced="balanced over classes",
    scores={HEADLINE: "top-1 of the encoder's features"},
    lines={
        "constant": "constant answer",
        "step0": "own step 0",
        "untrained": "untrained networks",
        "single_frame": "single frame",
    },
    picture="figures/accuracy.png",
)
_HEAD = "top1_balanced"
_ONE_ANSWER = 0.95
_EQUAL = 1e-6  # the rounding of a network that answers every class equally


def constant_lines(report: VideoReport | ClipLine) -> dict[str, float]:
    """What the best constant answer scores on these clips: the k most frequent classes of the held-out clips.

    ``loss`` is that of answering every class equally often, which a network knows that has learned nothing.
    """
    counts = np.sort(np.bincount(report.label, minlength=len(report.classes)))[::-1]
    second = min(5, len(report.classes) - 1)
    lines = {"top1": counts[0] / counts.sum(), "top1_balanced": 1 / np.count_nonzero(counts)}
    if second > 1:
        lines[f"top{second}"] = counts[:second].sum() / counts.sum()
    return {name: float(value) for name, value in lines.items()} | {"loss": math.log(len(report.classes))}


def judge(report: VideoReport, lines: Mapping[str, ClipLine], score: str = HEADLINE) -> Judgement | None:
    """Hold one accuracy against the constant answer and every given line, paired over groups.

    Args:
        report: the network as it is now.
        lines: what learned nothing, by name (``step0``, ``untrained``, ``single_frame``), on the same clips.
        score: one of the accuracies of the report.

    Returns:
        None where the report does not have the score.

    Raises:
        InputError: a line was measured on other clips.
    """
    for name, line in lines.items():
        if not np.array_equal(line.case, report.case):
            raise InputError(f"the line {name!r} was measured on other clips; evaluate both on the same held-out clips")
    if score not in report.score_names:
        return None
    constant = constant_lines(report)[score.removeprefix("features_")]
    return hold_against(score, report.tally(score), constant, lines, LINES)


def verdict(
    report: VideoReport,
    lines: Mapping[str, ClipLine] | None = None,
    *,
    step: int,
    warmup_steps: int,
    earlier: Sequence[Mapping] = (),
    classifier: bool = True,
) -> list[str]:
    """Say in plain words whether the run has learned.

    Each sentence starts with what it is: ``learned``, ``not learned``, ``cannot be judged``, ``loss``,
    ``nothing learned``, ``collapsed``, ``broken`` or ``note``. "Learned" means that balanced top-1 of the nearest class
    mean among the encoder's features is above the constant answer, the run's own step 0, the mean of untrained networks
    and the single frame, each with p <= 0.025 when run and line are swapped within whole groups, and above what an
    untrained network reaches by its draw.

    Args:
        report: the network as it is now.
        lines: what learned nothing, by name, on the same clips.
        step: steps taken so far.
        warmup_steps: loss and collapse are judged only after these.
        earlier: rows of metrics.jsonl of this run, for what was better before.
        classifier: the method has one; without, its features alone are judged.
    """
    lines = lines or {}
    loss, chance = report.score("loss"), math.log(len(report.classes))
    if not math.isfinite(loss) or (report.predicted < 0).any():
        return [
            f"broken: {np.count_nonzero(report.predicted < 0)} of {len(report.label)} held-out answers are not finite; "
            "go back to an earlier checkpoint and lower the learning rate, or train in bf16 or fp32 instead of fp16."
        ]
    early = step < max(1, warmup_steps)  # a fresh network gives one answer to everything
    sentences = [] if early else _about_one_answer(report)
    if classifier:
        sentences.append(_about_loss(loss, chance, step, early))
    found = judge(report, lines)
    if found is None:
        sentences.append("cannot be judged: no training clip could be read, so that no class has a mean to be near to.")
    else:
        sentences.append(sentence(found, WORDS))
    if classifier:
        head = beside_best(judge(report, lines, _HEAD), WORDS)
        sentences.append(f"note: through the classifier head, which only training needs: top-1 {head}.")
    now = {HEADLINE: report.score(HEADLINE)}
    sentences += judgement.fallen([row for row in earlier if row["step"] < step], WORDS, now, step)
    if absent := [name for name, recall in report.recall().items() if recall is None]:
        sentences.append(f"note: no held-out clip of {len(absent)} of {len(report.classes)} classes: {_some(absent)}.")
    if report.unreadable:
        sentences.append(
            f"note: {len(report.unreadable)} held-out clips could not be read: {_some(report.unreadable)}."
        )
    return sentences


def fallen(rows: Sequence[Mapping]) -> list[str]:
    """Sentences on a score of the encoder's features that was higher at an earlier report of the same run.

    Args:
        rows: of metrics.jsonl, oldest first; the last one that has the score is compared with those before it.
    """
    return judgement.fallen(rows, WORDS)


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


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
