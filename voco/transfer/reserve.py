"""``voco split``: who tests is settled before anything is pretrained, for both stages in one go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voco.data.layouts.labeled import SPLITS, LabeledCase, LabeledManifest
from voco.errors import InputError
from voco.files import write_text


def reserve(
    cohort: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    options: Mapping[str, str] | None = None,
    test: float = 0.2,
    val: float = 0.15,
    seed: int = 0,
    patient_regex: str | None = None,
) -> list[str]:
    """Write a split file and, beside it, the list of its test patients for ``pretrain/run.py --data.exclude``.

    Args:
        cohort: folder or list of scans; with ``task`` a data set as published.
        out: split file to write; the list is named after it, ``….exclude.csv``. What is there already is not changed.
        task: whose labels are balanced; without it scans are parted without regard to labels.
        options: of the task; values are read as YAML.
        test: share of patients to reserve.
        val: share of the others that validate.
        seed: another seed, other patients.
        patient_regex: whose scan it is, from its path; without ``task``.

    Returns:
        Lines for the console, the written files last.

    Raises:
        InputError: the cohort cannot be read or parted, or other files stand where these belong.
    """
    from voco.data.manifest_patients import exclude_patients
    from voco.data.split_files import exclusion_text, is_split, split_text
    from voco.data.splits import make_splits

    if not 0 < test < 1:
        raise InputError(f"--test is the share of patients to reserve, between 0 and 1; found {test:g}")
    out = Path(out)
    listed = out.with_name(f"{out.stem}.exclude.csv")
    manifest, stratum = _read(cohort, task, dict(options or {}), patient_regex)
    if len({case.patient for case in manifest.cases}) < 2:
        raise InputError(f"{cohort} holds scans of one patient only, so none can be reserved")
    splits = make_splits(manifest.cases, stratum, test=test, val=val, seed=seed)
    tested = {splits.patients[case] for case in splits.folds[0].ids("test")}
    texts = {out: split_text(splits), listed: exclusion_text(manifest.cases, sorted(tested))}
    for path, text in texts.items():
        same = is_split if path == out else _is_text
        if path.exists() and not same(path, text):
            raise InputError(
                f"{path} exists and holds another split; a reserved test set must not change: name another --out, or "
                "remove it if nothing was trained with it"
            )
    for path, text in texts.items():
        write_text(path, text)
    # Read back by the rules of pretraining: nothing of a test patient may stay.
    kept, _ = exclude_patients([case.case for case in manifest.cases], listed)
    if {case.patient for case in kept} & tested or len({case.patient for case in kept}) + len(tested) < len(
        set(splits.patients.values())
    ):
        raise InputError(f"{listed} does not part the patients of {cohort}: their names are not distinct; rename them")
    notes = [f"note: {note}" for note in [*manifest.notes, *splits.notes]]
    return [*notes, *_counts(manifest, splits), str(listed), str(out)]


def _is_text(path: Path, text: str) -> bool:
    return path.read_text(encoding="utf-8", errors="replace") == text


def _read(cohort, task: str | None, options: dict[str, str], patient_regex: str | None):
    if task is None:
        from voco.data.manifest import build_manifest

        if options:
            raise InputError("--option belongs to a task; name it with --task")
        found = build_manifest(cohort, patient_regex=patient_regex, progress=True)
        cases = [LabeledCase(case) for case in found.cases]
        return LabeledManifest(found.root, cases, found.rejected, found.notes), lambda case: ""
    import yaml

    from voco.tasks import create_task, task_class

    if patient_regex is not None:
        raise InputError("--patient_regex is for scans without labels; a task knows whose scan it is")
    known = set(task_class(task).Options.__dataclass_fields__) - {"name"}
    if wrong := sorted(set(options) - known):
        raise InputError(f"task {task} has no option {', '.join(wrong)}; it has {', '.join(sorted(known)) or 'none'}")
    chosen = create_task(task, **{name: yaml.safe_load(value) for name, value in options.items()})
    return chosen.read(cohort), chosen.stratum


def _counts(manifest: LabeledManifest, splits) -> list[str]:
    counts = splits.counts(0)
    scans = {name: len(splits.folds[0].ids(name)) for name in SPLITS}
    word = "patients" if manifest.patient_level else "studies (the data set names no patients)"
    lost = f"; {len(manifest.rejected)} scans cannot be used" if manifest.rejected else ""
    shown = ", ".join(f"{name} {counts[name]} ({scans[name]} scans)" for name in SPLITS)
    return [f"{sum(counts.values())} {word}: {shown}{lost}"]
