"""From predictions to ``results.json``: every metric with its interval, per fold and pooled, all recomputable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voco.errors import InputError
from voco.files import write_json
from voco.stats.interval import LEVEL
from voco.tasks.base import Task
from voco.transfer.intervals import PartFigures
from voco.transfer.prediction_files import read_images, read_predictions, write_images, write_predictions
from voco.transfer.verdict import candidates, constant_scores, verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "constant_scores",
    "judge",
    "read_images",
    "read_predictions",
    "read_results",
    "recompute",
    "summarise",
    "text_table",
    "write_images",
    "write_predictions",
    "write_results",
]
RESULTS = "results.json"
RESAMPLES = 2000


def summarise(
    task: Task,
    predictions: pd.DataFrame,
    images: pd.DataFrame | None = None,
    *,
    split: str = "validation",
    constants: Mapping[int, Mapping[str, float]] | None = None,
    looks: int | None = None,
    marks: Sequence[str] = (),
    rule: str = "",
    facts: Mapping[str, Any] | None = None,
    n: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that ``results.json`` says, from predictions alone.

    A metric is computed within each fold and averaged over folds; metrics that do not compare scores with each other
    are also computed over all folds together. The verdict (``voco.transfer.verdict``) compares the main metric on
    validation with that of a constant predictor on the same patients.

    Args:
        task: whose metrics.
        predictions: rows as in ``predictions.csv``.
        images: rows as in ``predictions_images.parquet``.
        split: part whose figures are the result, ``validation`` or ``test``.
        constants: per fold, from ``constant_scores``; without it there is no verdict.
        looks: at the test set so far.
        marks: remarks that must stand beside every figure.
        rule: of the split.
        facts: more to store, e.g. versions and settings; ``training`` says among how many models validation chose.
        n: resamples.
        seed: of the resamples.

    Returns:
        A dict that JSON can hold; undefined numbers are None and have a reason.
    """
    if (predictions["split"] == split).sum() == 0:
        raise InputError(f"there is no prediction of the {split} part; found {sorted(set(predictions['split']))}")
    parts = {
        name: PartFigures(task, predictions, images, name, n, seed).block()
        for name in ("validation", "test")
        if (predictions["split"] == name).any()
    }
    return {
        "task": task.name,
        "version": task.version,
        "options": _plain(task.options),
        "outputs": [{"name": o.name, "kind": o.kind, "classes": list(o.classes)} for o in task.outputs],
        "unit": task.noun,
        "evaluation": task.evaluation,
        "split": split,
        "rule": rule,
        "main": {"name": task.main_metric, **parts[split]["metrics"][task.main_metric]},
        "verdict": verdict(task, predictions, constants, candidates(facts or {}), seed),
        "looks_at_test": looks,
        "marks": list(marks),
        "interval": {
            "level": LEVEL,
            "method": "percentiles of a bootstrap over patients, a draw serves all folds and repeats; "
            "AUROC of few cases: Newcombe 2006, method 5",
            "says": "how figures vary with other patients, not with another training run",
            "resamples": n,
            "seed": seed,
        },
        "parts": parts,
        "constants": {str(fold): dict(scores) for fold, scores in (constants or {}).items()},
        "facts": dict(facts or {}),
    }


def write_results(out: str | Path, results: Mapping[str, Any]) -> Path:
    """Write ``results.json``, whole or not at all."""
    path = Path(out) / RESULTS
    return write_json(path, results, indent=1, nan=False)


def read_results(out: str | Path) -> dict[str, Any]:
    """``results.json`` of a run folder."""
    path = Path(out) / RESULTS
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected the folder of a finished finetune run")
    return json.loads(path.read_text())


def recompute(out: str | Path, task: Task | None = None) -> dict[str, Any]:
    """What ``results.json`` must say, from the predictions beside it.

    Args:
        out: run folder.
        task: as of the run; None builds it from what the file says.
    """
    stored = read_results(out)
    task = task or rebuild_task(stored)
    constants = {int(fold): scores for fold, scores in stored["constants"].items()}
    again = summarise(
        task,
        read_predictions(out),
        read_images(out),
        split=stored["split"],
        constants=constants or None,
        looks=stored["looks_at_test"],
        marks=stored["marks"],
        rule=stored["rule"],
        facts=_with_scorings(Path(out), stored, task),
        n=stored["interval"]["resamples"],
        seed=stored["interval"]["seed"],
    )
    return json.loads(json.dumps(again))


def judge(out: str | Path, task: Task | None = None) -> dict[str, Any]:
    """The verdict on a run folder, old or new, by the present rule: see ``voco.transfer.verdict``.

    Args:
        out, task: as for ``recompute``.
    """
    stored = read_results(out)
    task = task or rebuild_task(stored)
    constants = {int(fold): scores for fold, scores in stored["constants"].items()}
    chosen_among = candidates(_with_scorings(Path(out), stored, task))
    return verdict(task, read_predictions(out), constants, chosen_among, stored["interval"]["seed"])


def _with_scorings(out: Path, stored: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Facts of a run; where an older one does not say how often validation was scored, its log does."""
    trainings = stored["facts"].get("training") or {}
    counted = {}
    for fold, training in trainings.items():
        log = (out if len(trainings) == 1 else out / f"fold-{fold}") / "metrics.jsonl"
        if "chosen_among" not in training and "best_step" in training and log.is_file():
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            counted[fold] = training | {"chosen_among": scorings(rows, f"validation_{task.main_metric}")}
    return stored["facts"] | ({"training": trainings | counted} if counted else {})


def scorings(rows: Sequence[Mapping[str, Any]], key: str) -> int:
    """How many rows of ``metrics.jsonl`` hold a number that the best weights could be chosen by; at least 1."""
    return max(1, sum(row.get(key) is not None for row in rows))


def rebuild_task(stored: Mapping[str, Any], what: str = "these results") -> Task:
    """The task that results are of, as this code computes it.

    Args:
        stored: content of ``results.json``.
        what: the results' name in the error.

    Raises:
        InputError: the code computes another version of the task.
    """
    from voco.tasks import create_task

    task = create_task(stored["task"], **{k: v for k, v in stored["options"].items() if k != "name"})
    if task.version != stored["version"]:
        raise InputError(
            f"{what} are of version {stored['version']} of {task.name}, this code computes version "
            f"{task.version}: numbers may differ; use the code that is named in run.json"
        )
    return task


def _plain(options: Any) -> dict[str, Any]:
    found = dataclasses.asdict(options) if dataclasses.is_dataclass(options) else dict(vars(options))
    return json.loads(json.dumps(found, default=str))


def text_table(results: Mapping[str, Any]) -> str:
    """Results for the console: the main figure, what must be said with it, then every metric, rounded."""
    part = results["parts"][results["split"]]
    counts, main = part["counts"], results["main"]
    folds = len(part["folds"])
    lines = [
        f"{results['task']} v{results['version']}, {results['split']}: {main['name']} {_rounded(main)}",
        f"{counts['units']} units ({results['unit']}), {counts['patients']} patients, {counts['cases']} scans"
        + (f"; mean of {folds} folds" if folds > 1 else ""),
        *(f"{name}: {_in_words(found)}" for name, found in counts["classes"].items()),
        results["verdict"]["text"],
    ]
    if results["looks_at_test"] is not None and results["split"] == "test":
        lines.append(f"looks at this test set so far: {results['looks_at_test']}")
    lines += [results["evaluation"]] if results["evaluation"] else []
    lines += [f"mark: {mark}" for mark in results["marks"]]
    width = max(map(len, part["metrics"]))
    for name, figure in part["metrics"].items():
        better_way = "higher" if figure["higher_is_better"] else "lower"
        lines.append(f"  {name:<{width}}  {_rounded(figure):<32}  {better_way} is better")
    return "\n".join(lines)


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items())


def _rounded(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"not defined ({figure['reason']})"
    if figure["low"] is None:
        return f"{figure['value']:.3f} (no interval: {figure['reason']})"
    return f"{figure['value']:.3f} (95 %: {figure['low']:.3f} to {figure['high']:.3f})"
