"""Who trains, who validates and who tests: splits by patient, cross-validation, and budgets of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from voco.data.fold import Fold, Splits
from voco.data.layouts.labeled import SPLITS, LabeledCase
from voco.data.split_files import read_splits
from voco.data.strata import Labels, count_classes, nested_order, part, patient_labels
from voco.errors import InputError

Rule = Literal["holdout", "kfold", "repeated", "published", "file", "ke2023"]
TRAIN, VALIDATION, TEST = SPLITS
VALIDATION_SHARE = 0.2  # of a label budget
VALIDATION_PER_CLASS = 2
_SHOWN = 5


def split_rule(cases: Sequence[LabeledCase], rule: str, *, file: str | None, folds: int, repeats: int) -> Rule:
    """The rule that settings mean: a file wins over folds, folds over a rule; ``auto`` is what the data set says, if it
    says anything.

    Args:
        cases: labeled cases.
        rule: of ``make_splits``, or ``auto``.
        file, folds, repeats: as given; no file, or 0 folds, are none.
    """
    if file:
        return "file"
    if folds:
        return "repeated" if repeats > 1 else "kfold"
    if rule == "auto":
        return "published" if any(case.case.split or case.fold is not None for case in cases) else "holdout"
    return rule


def make_splits(
    cases: Sequence[LabeledCase],
    stratum: Callable[[LabeledCase], str],
    *,
    rule: Rule = "holdout",
    folds: int = 5,
    repeats: int = 1,
    test: float = 0.2,
    val: float = 0.15,
    fraction: float = 1.0,
    fraction_val: Literal["share", "full"] = "share",
    seed: int = 0,
    file: str | Path | None = None,
    order: Sequence[str] | None = None,
) -> Splits:
    """Part a cohort by patient.

    Patients are shuffled by a hash of (seed, patient), not by their order in a file, and parted label by label. In
    fold f of a cross-validation the test part is fold f and validation a share of the rest.

    Args:
        cases: ``case.patient`` stays together.
        stratum: the labels of a case as one word; labels that are divided by ``/`` are balanced one after the other.
        rule: ``holdout`` (three parts), ``kfold``, ``repeated`` (K-fold, ``repeats`` times), ``published`` (columns
            split and fold of the data set; with both, its test part stays and fold f validates), ``file`` (a split file
            given back), or ``ke2023`` (shuffle of the patients in the order of the table as the released code of Ke et
            al. 2023 does it: ``train_test_split`` with 0.30, then 0.5, random_state 2, labels not balanced).
        folds: K.
        repeats: of ``repeated``.
        test: share of patients of ``holdout``.
        val: share of the patients that do not test.
        fraction: share of the patients that do not test whose labels may be used. The patients of a small share are
            among those of every larger one.
        fraction_val: ``share``: validation patients count towards the share (20 % of it); where they are fewer than
            two of each class they train too, and there is no early stopping. ``full``: the share is one of training
            patients, and the whole validation set is kept, as published work does; every result says so.
        seed: another seed, another split.
        file: for the rule ``file``.
        order: patients in the order of the published table, for ``ke2023``; else the order of ``cases``.

    Raises:
        InputError: shares, folds or a file that cannot be; one patient in two parts; too few patients.
    """
    if not cases:
        raise InputError("there is no labeled case to split")
    _check(rule, folds, repeats, test, val, fraction, file)
    patients = {case.id: case.patient for case in cases}
    labels = patient_labels([(case.patient, stratum(case)) for case in cases])
    notes: list[str] = []
    if rule == "file":
        found = read_splits(file, cases)
    elif rule == "published":
        found = [Fold(i, parts) for i, parts in enumerate(_published(cases, labels, val, seed, notes))]
    else:
        if any(case.case.split or case.fold is not None for case in cases):
            notes.append("the data set has a split of its own, which is not used (--split.rule published takes it)")
        by_patient = _by_patient(rule, labels, list(order or dict.fromkeys(patients.values())), folds, repeats, test,
            val, seed, notes)  # fmt: skip
        found = [Fold(i, {c: parts[p] for c, p in patients.items()}) for i, parts in enumerate(by_patient)]
    _small_classes(labels, folds if rule in ("kfold", "repeated") else 3, notes)
    already = any(fold.left_out for fold in found)
    if fraction < 1 and not already:
        found = [_reduce(fold, patients, labels, fraction, fraction_val, seed) for fold in found]
    else:
        if fraction < 1:
            _check_budget(found, patients, fraction, file)
        found = [_judge(fold, patients, labels) for fold in found]
    marks = _marks(found, patients, fraction_val == "full")
    _check_training(found, patients, labels, notes)
    return Splits(found, patients, {case.id: case.case.path for case in cases}, rule, seed, fraction, notes, marks)


def _check(rule, folds, repeats, test, val, fraction, file) -> None:
    if rule not in Rule.__args__:
        raise InputError(f"--split.rule {rule!r} is not known; expected one of {', '.join(Rule.__args__)}")
    if not 0 <= val < 1 or not 0 <= test < 1:
        raise InputError(
            f"the shares of test ({test:g}) and validation ({val:g}) are from 0 to below 1, so that somebody is "
            "left to train on"
        )
    if not 0 < fraction <= 1:
        raise InputError(f"--fraction is the share of labeled patients, above 0 and at most 1; found {fraction:g}")
    if rule in ("kfold", "repeated") and folds < 2:
        raise InputError(f"--folds is {folds}; cross-validation needs at least 2")
    if rule == "repeated" and repeats < 1:
        raise InputError(f"--split.repeats is {repeats}; expected at least 1")
    if (rule == "file") != (file is not None):
        raise InputError(f"a split file goes with --split.rule file: found rule {rule!r} and file {file}")


def _by_patient(rule, labels: Labels, table, folds, repeats, test, val, seed, notes) -> list[dict[str, str]]:
    """Part of every patient, per fold."""
    everybody = sorted(labels)
    if rule == "ke2023":
        return [_ke2023(table, everybody, notes)]
    if rule == "holdout":
        parts = part(everybody, labels, (test, val * (1 - test), (1 - val) * (1 - test)), seed, "split")
        return [_words(zip((TEST, VALIDATION, TRAIN), parts))]
    if folds > len(everybody):
        raise InputError(f"--folds is {folds}, but there are only {len(everybody)} patients")
    found = []
    for repeat in range(repeats if rule == "repeated" else 1):
        tests = part(everybody, labels, [1 / folds] * folds, seed, "split", repeat)
        found += [_validate(labels, tested, val, seed, repeat, f) for f, tested in enumerate(tests)]
    return found


def _validate(labels: Labels, tested: Sequence[str], val: float, seed: int, *key: int | str) -> dict[str, str]:
    rest = sorted(set(labels) - set(tested))
    validating, training = part(rest, labels, (val, 1 - val), seed, "validation", *key)
    return _words([(TEST, tested), (VALIDATION, validating), (TRAIN, training)])


def _words(parts) -> dict[str, str]:
    return {patient: name for name, members in parts for patient in members}


def _ke2023(table: Sequence[str], everybody: Sequence[str], notes: list[str]) -> dict[str, str]:
    import numpy as np

    known = set(everybody)
    ids = [patient for patient in dict.fromkeys(table) if patient in known]
    if len(ids) < len(known):
        raise InputError(f"{len(known) - len(ids)} patients are not in the order of the table that was given")
    if len(ids) < 4:
        raise InputError(f"the split of Ke et al. needs at least 4 patients, found {len(ids)}")

    def shuffled(names, share):  # scikit-learn's train_test_split: the first of a permutation test
        count = int(np.ceil(share * len(names)))
        places = np.random.RandomState(2).permutation(len(names))
        return [names[i] for i in places[count:]], [names[i] for i in places[:count]]

    training, rest = shuffled(ids, 0.30)
    validating, tested = shuffled(rest, 0.5)
    notes.append("split of Ke et al. 2023: it depends on the order of the table, and labels are not balanced")
    return _words([(TRAIN, training), (VALIDATION, validating), (TEST, tested)])


def _published(cases, labels: Labels, val, seed, notes) -> list[dict[str, str]]:
    """Part of every case, per fold, from the columns of the data set."""
    has_split, has_fold = (sum(v is not None for v in column) for column in _columns(cases))
    if not has_split and not has_fold:
        raise InputError("the data set has no column split or fold; choose another --split.rule, such as holdout")
    training = [case for case in cases if case.case.split != TEST]
    if has_split not in (0, len(cases)) or (has_fold and any(case.fold is None for case in training)):
        raise InputError(
            f"of {len(cases)} cases {has_split} have a published split and {has_fold} a fold; all must have one (cases "
            "of the test part need no fold)"
        )
    folds_of: dict[str, set] = {}
    for case in cases:
        folds_of.setdefault(case.patient, set()).add((case.fold if case.case.split != TEST else None, case.case.split))
    if both := sorted(patient for patient, found in folds_of.items() if len(found) > 1):
        raise InputError(f"{len(both)} patients are in more than one part or fold of the published split "
            f"({', '.join(both[:_SHOWN])}); each has one")  # fmt: skip
    if not has_fold:
        words = {case.patient: case.case.split for case in cases}
        if VALIDATION not in words.values() and val > 0:
            own = sorted(p for p, word in words.items() if word == TRAIN)
            words.update(dict.fromkeys(part(own, labels, (val, 1 - val), seed, "validation")[0], VALIDATION))
            notes.append(f"the published split has no validation part: {val:.0%} of its training patients validate")
        return [{case.id: words[case.patient] for case in cases}]
    numbers = sorted({case.fold for case in training})
    if len(numbers) < 2:
        raise InputError(f"the column fold holds only {numbers}; cross-validation needs at least 2 folds")
    found = []
    for key, number in enumerate(numbers):
        inside = {case.patient for case in training if case.fold == number}
        if any(case.case.split == TEST for case in cases):
            words = {c.patient: TEST if c.case.split == TEST else TRAIN for c in cases}
            words.update(dict.fromkeys(inside, VALIDATION))
        else:
            words = _validate(labels, sorted(inside), val, seed, key)
        found.append({case.id: words[case.patient] for case in cases})
    return found


def _columns(cases) -> tuple[list, list]:
    return [case.case.split for case in cases], [case.fold for case in cases]


def _members(fold: Fold, patients: Mapping[str, str], name: str, inside: bool = True) -> list[str]:
    left_out = fold.left_out if inside else ()
    return sorted({patients[case] for case, word in fold.parts.items() if word == name and case not in left_out})


def _reduce(fold: Fold, patients, labels: Labels, fraction: float, kind: str, seed: int) -> Fold:
    """Keep the labels of a share of the patients that do not test."""
    training, validating = (_members(fold, patients, name) for name in (TRAIN, VALIDATION))
    first, second = (
        nested_order(members, labels, seed, "fraction", name)
        for name, members in ((TRAIN, training), (VALIDATION, validating))
    )
    if kind == "full":
        count = max(1, _floor(fraction * len(first)))
        chosen = set(first[:count]) | set(second)
    else:
        budget = max(1, _floor(fraction * (len(first) + len(second))))
        validate = min(_floor(VALIDATION_SHARE * budget), len(second))
        train = min(budget - validate, len(first))
        chosen = set(first[:train]) | set(second[: budget - train])
    reduced = Fold(
        fold.number,
        fold.parts,
        frozenset(c for c, p in patients.items() if fold.parts[c] != TEST and p not in chosen),
    )
    judged = _judge(reduced, patients, labels)
    if judged.early_stopping or kind == "full":
        return judged
    # Too few to stop by: their labels are spent all the same, so they train.
    parts = {c: TRAIN if w == VALIDATION and c not in reduced.left_out else w for c, w in fold.parts.items()}
    return Fold(fold.number, parts, reduced.left_out, False, judged.reason)


def _floor(value: float) -> int:
    return int(value + 1e-9)


def _judge(fold: Fold, patients, labels: Labels) -> Fold:
    """Say whether the validation set is fit for early stopping."""
    validating = _members(fold, patients, VALIDATION)
    everybody = sorted({p for c, p in patients.items() if fold.parts[c] != TEST})
    known, have = count_classes(everybody, labels), count_classes(validating, labels)
    reason = ""
    if not validating:
        reason = "no validation patients inside the label budget" if fold.left_out else "no validation patients"
    elif fold.left_out:
        short = [name for name in sorted(known) if have[name] < VALIDATION_PER_CLASS]
        if short:
            reason = (
                f"{len(validating)} validation patients, fewer than {VALIDATION_PER_CLASS} of {len(short)} of "
                f"{len(known)} classes"
            )
    elif (varied := _varied(known)) and not varied & _varied(have):
        reason = f"all {len(validating)} validation patients have the same label"
    return Fold(fold.number, fold.parts, fold.left_out, not reason, reason)


def _varied(count: Counter) -> set[int]:
    """Positions of labels that have more than one value."""
    positions = Counter(position for position, _ in count)
    return {position for position, n in positions.items() if n > 1}


def _small_classes(labels: Labels, parts: int, notes: list[str]) -> None:
    count = count_classes(list(labels), labels)
    wide = len({position for position, _ in count}) > 1
    small = [
        f"{word}{f' of label {position + 1}' if wide else ''} ({n})"
        for (position, word), n in sorted(count.items())
        if n < parts
    ]
    if small:
        notes.append(
            f"classes with fewer patients than parts, so that some part has none: {', '.join(small[:_SHOWN])}"
            + (f" and {len(small) - _SHOWN} more" if len(small) > _SHOWN else "")
        )


def _check_budget(found: Sequence[Fold], patients, fraction: float, file) -> None:
    for fold in found:
        training = _members(fold, patients, TRAIN, inside=False)
        pool = len(training) + len(_members(fold, patients, VALIDATION, inside=False))
        has = sum(len(_members(fold, patients, name)) for name in (TRAIN, VALIDATION))
        only = len(_members(fold, patients, TRAIN))
        if has != max(1, _floor(fraction * pool)) and only != max(1, _floor(fraction * len(training))):
            raise InputError(
                f"the split file {file} already leaves out patients (it keeps {has} of {pool} in fold {fold.number}), "
                f"which is not the fraction {fraction:g}; give the file of the whole split, or leave --fraction at 1"
            )


def _marks(found: Sequence[Fold], patients, asked: bool) -> list[str]:
    """A split file does not say how it was made: a whole validation set beyond its share of the budget tells."""
    for fold in found:
        everyone, inside = (len(_members(fold, patients, TRAIN, inside=i)) for i in (False, True))
        whole, kept = (len(_members(fold, patients, VALIDATION, inside=i)) for i in (False, True))
        beyond = kept == whole and kept > VALIDATION_SHARE * (inside + kept)
        if inside < everyone and kept and (asked or beyond):
            return [f"full validation set: {kept} validation patients beside {inside} training patients"]
    return []


def _check_training(found: Sequence[Fold], patients, labels: Labels, notes: list[str]) -> None:
    known = count_classes(list(labels), labels)
    remarks: dict[str, list[int]] = {}
    for fold in found:
        training = _members(fold, patients, TRAIN)
        if not training:
            raise InputError(f"fold {fold.number} has no patient to train on; check the shares or the split file")
        have = count_classes(training, labels)
        if _varied(known) and not _varied(have):
            raise InputError(
                f"no two of the {len(training)} training patients of fold {fold.number} have different labels, so "
                "nothing can be learned: a class needs patients in every part. Label more patients of the rare one, or "
                "take a larger --fraction, another --split.seed, or smaller --split.test and --split.val"
            )
        if not fold.early_stopping:
            words = f"no early stopping, a fixed number of steps ({fold.reason})"
            remarks.setdefault(words, []).append(fold.number)
        if missing := sum(1 for name in known if not have[name]):
            remarks.setdefault(f"{missing} of {len(known)} classes have no training patient", []).append(fold.number)
    for words, numbers in remarks.items():
        which = "" if len(found) == 1 else f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: "
        notes.append(which + words)
