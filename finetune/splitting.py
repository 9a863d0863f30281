"""Who trains, validates and tests: the split of a cohort, before and after its scans are prepared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from voco.data.splits import make_splits, split_rule
from voco.errors import InputError


def split_cohort(config: dict, task, cohort, cache: Path, *, rank: int, world: int, say: Callable[[str], None]):
    """The split of a prepared cohort: patients who share a scan are one patient.

    Returns:
        The cohort with these patients joined, and the split. Where a split that was given parts the same scan, as
        ``--allow_seen`` allows, nothing is joined.

    Raises:
        InputError: a split that was given parts the same scan.
    """
    from finetune.cohort import join_duplicates
    from voco.data.duplicates import find_duplicates, refuse_parted

    entries = [cohort.entries[name] for name in cohort.studies]
    # of the labeled cases, whose patient may be named by a table and not by the scan
    entries = [replace(e, case=replace(e.case, patient=cohort.studies[e.case.id].labeled.patient)) for e in entries]
    duplicates = find_duplicates(entries, cache, rank=rank, world=world, say=say)
    together = join_duplicates(cohort, duplicates)
    if _rule(config, cohort.manifest) not in ("file", "published"):
        return together, make_split(config, task, together.manifest, say)
    splits = make_split(config, task, cohort.manifest, say)
    what = f"--split.file {config['split'].file}" if splits.rule == "file" else "the split of the data set"
    option = "" if config["allow_seen"] else "--allow_seen"
    parted = refuse_parted(duplicates, [fold.parts for fold in splits.folds], what, option)
    if parted:
        mark = f"{len(parted)} pairs of the same scan lie on two sides of the split (--allow_seen, duplicates.csv)"
        splits.marks.append(mark)
        return replace(cohort, duplicates=duplicates), splits
    joined = {case: together.studies[case].labeled.patient for case in together.studies}
    return together, replace(splits, patients=dict(splits.patients) | joined)


def make_split(config: dict, task, manifest, say: Callable[[str], None] | None = None):
    """Who trains, validates and tests; ``say`` is told what is special about it."""
    settings, folds = config["split"], config["folds"]
    splits = make_splits(
        manifest.cases, task.stratum, rule=_rule(config, manifest), folds=folds or 5, repeats=config["repeats"],
        test=settings.test, val=settings.val, fraction=config["fraction"], fraction_val=config["fraction_val"],
        seed=settings.seed, file=settings.file, order=manifest.order,
    )  # fmt: skip
    say = say or (lambda text: None)
    for note in splits.notes:
        say(f"note: {note}")
    alone = len({case.case.patient for case in manifest.cases}) == len(manifest.cases)
    word = "studies (the set has no patient identity)" if alone else "groups of studies that stay together"
    word = "patients" if manifest.patient_level else word
    if config["eval"] != "test" and not any(splits.counts(fold.number)["validation"] for fold in splits.folds):
        raise InputError(
            f"{len({case.patient for case in manifest.cases})} patient(s) leave nobody to validate, so nothing would "
            "be scored: add patients, raise --split.val, or take --fraction_val full; --eval test scores the test set"
        )
    for fold in splits.folds:
        counts = splits.counts(fold.number)
        say(f"fold {fold.number}: " + ", ".join(f"{n} {name}" for name, n in counts.items()) + f" {word}")
    return splits


def _rule(config: dict, manifest) -> str:
    settings = config["split"]
    return split_rule(
        manifest.cases, settings.rule, file=settings.file, folds=config["folds"], repeats=config["repeats"]
    )


def check_fold(config: dict, splits) -> None:
    """``--fold`` names one of several folds."""
    numbers = [fold.number for fold in splits.folds]
    if config["fold"] >= 0 and (len(numbers) == 1 or config["fold"] not in numbers):
        raise InputError(
            f"--fold {config['fold']}: the split has {len(numbers)} fold(s), counted from 0; leave --fold out to work "
            "on all in turn"
        )
