"""Who trains, validates and tests in a grid: one split per task, and the same shares of labels for all sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cells.store import Store
from benchmarks.grid.cell import Cell, fraction_file
from voco.data.splits import make_splits, split_rule
from voco.errors import InputError
from voco.files import write_text

if TYPE_CHECKING:
    import pandas as pd

    from voco.tasks.base import Task


def make_task(rules: Mapping[str, Any]) -> Task:
    """The task of a protocol."""
    from voco.tasks import create_task

    options = dict(rules["task"])
    return create_task(options.pop("name"), **options)


def write_splits_of(store: Store, cell: Cell) -> None:
    """Write the split files of a task, all in one folder, so that one ledger counts every look at its test set.

    The parts are the same for all; which labels lie inside a share depends on the seed of the run alone. Files that
    are there are left as they are.

    Raises:
        InputError: the data set cannot be read, or a share leaves nothing to train on.
    """
    from voco.data.split_files import exclusion_text, write_splits

    rules, folder = cell.facts["rules"], store.folder(cell)
    task = make_task(rules)
    manifest = task.read(store.root(cell.data))
    whole = folder / "whole.csv"
    settings, folds, repeats = rules["split"], rules["folds"], rules["repeats"]
    rule = split_rule(manifest.cases, settings["rule"], file=settings["file"], folds=folds, repeats=repeats)
    if not whole.is_file():
        splits = make_splits(
            manifest.cases, task.stratum, rule=rule, folds=folds or 5, repeats=repeats,
            test=settings["test"], val=settings["val"], seed=settings["seed"], order=manifest.order,
            file=settings["file"] if rule == "file" else None,
        )  # fmt: skip
        if not all(fold.ids("test") for fold in splits.folds):
            raise InputError(
                f"tasks.{cell.facts['task']}: the split has no test patients; give settings.split.test or "
                "settings.folds, a grid ends in figures on a test set"
            )
        write_splits(whole, splits)
    for fraction, seed in cell.facts["files"]:
        path = folder / fraction_file(fraction, seed)
        if not path.is_file():
            part = make_splits(
                manifest.cases, task.stratum, rule="file", file=whole, fraction=fraction,
                fraction_val=rules["fraction_val"], seed=seed,
            )  # fmt: skip
            write_splits(path, part)
    if cell.facts["exclude"]:
        tested = {case.patient for case in manifest.cases if _part(whole).get(case.id) == "test"}
        if len(_folds(whole)) > 1:
            raise InputError(
                f"pretraining cannot leave out the test patients of tasks.{cell.facts['task']}: in cross-validation "
                "everybody is tested; give it settings.folds 0"
            )
        write_text(folder / "whole.exclude.csv", exclusion_text(manifest.cases, sorted(tested)))
    store.write_cell(cell, rule=rule)


def split_file(store: Store, cell: Cell) -> Path:
    """The split file of a run."""
    split = store.work.cells[next(need for need in cell.needs if need.startswith("split/"))]
    return store.folder(split) / fraction_file(cell.facts["fraction"], cell.facts["seed"])


def has_validation(path: Path) -> bool:
    """Whether anybody validates inside the label budget, so that something can be chosen."""
    table = _read(path)
    return bool(((table["split"] == "validation") & (table["in_fraction"] == "1")).any())


def units_of_test(store: Store, cell: Cell) -> tuple[Task, pd.DataFrame]:
    """The task and the labels of its test units, one row per unit, from its split file and data set.

    Raises:
        InputError: the data set cannot be read.
    """
    import pandas as pd

    task = make_task(cell.facts["rules"])
    manifest = task.read(store.root(cell.data))
    part = _part(store.folder(cell) / "whole.csv")
    rows = []
    for case in manifest.cases:
        if part.get(case.id) == "test":
            targets = task.targets(case)
            labels = {output.label_column: targets[output.name] for output in task.outputs}
            rows.append(
                {"case": case.id, "patient": case.patient, "unit": case.unit, "fold": 0, "split": "test"} | labels
            )
    return task, task.to_units(pd.DataFrame(rows))


def training_patients(path: Path) -> int:
    """Patients inside the label budget that train; of several folds the mean."""
    table = _read(path)
    inside = table[(table["split"] == "train") & (table["in_fraction"] == "1")]
    return round(inside.groupby("fold")["patient"].nunique().mean()) if len(inside) else 0


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table if "in_fraction" in table else table.assign(in_fraction="1")


def _part(path: Path) -> dict[str, str]:
    """Part of every case; of several folds: test if it is tested in any."""
    table = _read(path)
    found = dict(zip(table["case"], table["split"]))
    tested = table.loc[table["split"] == "test", "case"]
    return found | dict.fromkeys(tested, "test")


def _folds(path: Path) -> list[str]:
    return sorted(set(_read(path)["fold"]))
