"""How often the verdict says "trained" of noise and of what is there; run as a program, with a number of
draws and probes, checkpoints or folds, it prints the rows of the table in docs/finetune.md.

The plain rule beside it is what is often done: penalty or checkpoint chosen on the patients that judge, and the 95 %
interval of percentiles taken for an answer.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from voco.stats import ranking
from voco.tasks import create_task
from voco.tasks.base import Output
from voco.tasks.rsna_pe import RSNAPE
from voco.transfer.probes import GRID, fit_probe, knn_scores, linear_probe
from voco.transfer.verdict import verdict


class _Scans(RSNAPE):
    """Cases are units here, so nothing need be put together."""

    def to_units(self, predictions: pd.DataFrame) -> pd.DataFrame:
        return predictions


PE, OUTPUT = _Scans(create_task("rsna_pe").options), Output("pe")
PATIENTS = (2, 4, 6, 8, 10, 20, 40)
CHECKPOINTS, MANY = (6, 10, 14, 20, 30, 60), 20
WIDTH, TRAINING, DRAWS = 8, 30, 300


def people(rng, count: int, scans: int, shift: float):
    """Patient (n,), label (n,) and features (n, F) of scans; half of the patients are ill, at least one of either."""
    owner = np.repeat(np.arange(count), rng.integers(1, scans + 1, count))
    label = (np.arange(count) % 2)[owner].astype(float)
    x = rng.normal(size=(len(owner), WIDTH))
    if scans > 1:  # scans of a patient look alike
        x = np.sqrt(0.6) * rng.normal(size=(count, WIDTH))[owner] + np.sqrt(0.4) * x
    x[:, 0] += shift * label
    return owner, label, x


def new_rule(owner, label, scores, among: int = 1, folds=0, seed: int = 0) -> bool | None:
    names = [f"{i:04d}" for i in range(len(label))]
    rows = pd.DataFrame(
        {"case": names, "patient": owner, "unit": names, "fold": folds, "split": "validation", "label_pe": label,
         "score_pe": scores}
    )  # fmt: skip
    numbers = np.unique(folds)
    return verdict(PE, rows, {int(f): {"score_pe": 0.5} for f in numbers}, {int(f): among for f in numbers}, seed)[
        "trained"
    ]


def plain_rule(owner, label, scores, rng) -> bool:
    count = owner.max() + 1
    draws = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)[:, owner]
    values = ranking.auroc(label, scores, draws)
    values = values[np.isfinite(values)]
    return len(values) >= DRAWS / 2 and bool(np.percentile(values, 2.5) > 0.5)


def auroc(label, scores) -> float:
    positives = int(label.sum())
    return (rankdata(scores)[label == 1].sum() - positives * (positives + 1) / 2) / (
        positives * (len(label) - positives)
    )


def probes(repeats: int, scans: int = 1, shift: float = 0.0) -> dict[tuple[str, int], list]:
    """Verdicts on probes of noise features (with ``shift``: one of them tells the classes apart)."""
    found: dict[tuple[str, int], list] = {}
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        group, y, x = people(rng, TRAINING, scans, shift)
        owner, label, held = people(rng, max(PATIENTS), scans, shift)
        fitted = linear_probe(OUTPUT, x, y, groups=group).logits(held)[:, 0]
        near = knn_scores(OUTPUT, x, y, held, neighbours=10)[:, 0]
        each = [fit_probe(OUTPUT, x, y, C).logits(held)[:, 0] for C in GRID]
        for count in PATIENTS:
            own = owner < count
            args = owner[own], label[own]
            found.setdefault(("linear", count), []).append(new_rule(*args, fitted[own], seed=seed))
            found.setdefault(("knn", count), []).append(new_rule(*args, near[own], seed=seed))
            best = max(each, key=lambda s: auroc(args[1], s[own]))
            found.setdefault(("plain", count), []).append(plain_rule(*args, best[own], rng))
    return found


def checkpoints(repeats: int, alike: float, scans: int = 1, shift: float = 0.0) -> dict[tuple[str, int], list]:
    """Verdicts on the best of twenty checkpoints whose scores correlate by ``alike``."""
    found: dict[tuple[str, int], list] = {}
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        owner, label, common = people(rng, max(CHECKPOINTS), scans, 0.0)
        own = [people(np.random.default_rng((seed, k)), max(CHECKPOINTS), 1, 0.0)[2][:, 1] for k in range(MANY)]
        noise = [np.sqrt(0.6) * o[owner] + np.sqrt(0.4) * rng.normal(size=len(owner)) for o in own]
        each = [np.sqrt(alike) * common[:, 0] + np.sqrt(1 - alike) * other + shift * label for other in noise]
        for count in CHECKPOINTS:
            inside = owner < count
            args = owner[inside], label[inside]
            best = max(each, key=lambda s: auroc(args[1], s[inside]))[inside]
            found.setdefault(("chosen", count), []).append(new_rule(*args, best, MANY, seed=seed))
            found.setdefault(("plain", count), []).append(plain_rule(*args, best, rng))
    return found


def crossed(repeats: int, folds: int, rounds: int) -> list:
    """Verdicts on probes of noise under repeated cross-validation of 60 patients, 10 of whom validate in each fold."""
    found = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        owner, label, x = people(rng, 60, 1, 0.0)
        parts = []
        for fold in range(folds * rounds):
            if fold % folds == 0:
                test = np.array_split(rng.permutation(60), folds)
            rest = np.setdiff1d(np.arange(60), test[fold % folds])
            validate = np.concatenate([rng.choice(rest[label[rest] == side], 5, replace=False) for side in (0, 1)])
            train = np.setdiff1d(rest, validate)
            scores = fit_probe(OUTPUT, x[train], label[train], 0.1).logits(x[validate])[:, 0]
            parts.append((owner[validate], label[validate], scores, np.full(len(validate), fold)))
        who, y, s, f = map(np.concatenate, zip(*parts))
        found.append(new_rule(who, y, s, folds=f, seed=seed))
    return found


def share(verdicts: list) -> float:
    return float(np.mean([found is True for found in verdicts]))


def bound(repeats: int) -> float:
    """2.5 % and three standard errors."""
    return 0.025 + 3 * np.sqrt(0.025 * 0.975 / repeats)


@pytest.mark.slow
@pytest.mark.parametrize("scans", [1, 4])
def test_probes_of_noise_are_called_trained_in_one_of_forty_at_most(scans):
    found = probes(400, scans)
    for (rule, count), verdicts in found.items():
        if rule != "plain":
            assert share(verdicts) <= bound(400), (rule, count)
            assert (set(verdicts) == {None}) == (count < 8), "below eight patients nothing can be shown"
    assert share(found["plain", 2]) > 0.2, "what it replaces is far too sure"


@pytest.mark.slow
@pytest.mark.parametrize("scans", [1, 4])
@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_the_best_of_twenty_checkpoints_of_noise_is_no_better(alike, scans):
    for (rule, count), verdicts in checkpoints(400, alike, scans).items():
        if rule == "chosen":
            assert share(verdicts) <= bound(400), count
            assert (set(verdicts) == {None}) == (count < 14)


@pytest.mark.slow
@pytest.mark.parametrize("folds,rounds", [(5, 1), (5, 4)])
def test_cross_validated_probes_of_noise_are_no_better(folds, rounds):
    assert share(crossed(200, folds, rounds)) <= bound(200)


@pytest.mark.slow
def test_what_is_there_is_found():
    found = probes(100, shift=2.0)
    assert share(found["linear", 40]) > 0.95 and share(found["linear", 20]) > 0.8
    assert share(checkpoints(100, 0.9, shift=2.0)["chosen", 30]) > 0.9


def _print(name: str, found: dict, counts) -> None:
    for rule in dict.fromkeys(rule for rule, _ in found):
        cells = []
        for count in counts:
            verdicts = found[rule, count]
            unknown = rule != "plain" and set(verdicts) == {None}
            cells.append("not judged" if unknown else f"{100 * share(verdicts):.1f}")
        print(f"| {name} | {rule} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    repeats, part = int(sys.argv[1]), sys.argv[2]
    if part == "probes":
        for name, scans, shift in (("noise", 1, 0), ("noise, 1 to 4 scans", 4, 0), ("signal", 1, 1.5)):
            _print(name, probes(repeats // 4 if shift else repeats, scans, shift), PATIENTS)
    if part == "checkpoints":
        for name, alike, scans, shift in (
            ("unlike", 0.0, 1, 0), ("alike", 0.9, 1, 0), ("alike, 1 to 4 scans", 0.9, 4, 0), ("signal", 0.9, 1, 1.5)
        ):  # fmt: skip
            _print(name, checkpoints(repeats // 4 if shift else repeats, alike, scans, shift), CHECKPOINTS)
    if part == "folds":
        for rounds in (1, 4):
            print(f"5 folds x {rounds}: {100 * share(crossed(repeats // 2, 5, rounds)):.1f}", flush=True)
