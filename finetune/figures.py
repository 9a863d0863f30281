"""Pictures of a run: ranking, calibration, confusion, learning curves, and the evidence behind a few scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.cohort import pick
from voco.figures import save_all
from voco.tasks.base import Output, known_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from finetune.folds import Session

FOLDER = "figures"
_WINDOWS = 3  # best windows of a study whose voxels are looked at


def draw_figures(session: Session, cases, results: dict[str, Any]) -> list[Path]:
    """Draw everything that these predictions have; returns the files, none where ``score.figures`` is off."""
    if not session.config["score"].figures:
        return []
    part = session.config["eval"]
    rows = cases[cases["split"] == part]
    drawn = {}
    for output in session.task.outputs:
        drawn |= _draw_output(session, output, rows)
    if session.config["mode"] == "full":
        drawn |= _draw_curves(session, results)
    drawn |= _draw_evidence(session, rows)
    return save_all(drawn, session.out / FOLDER)


def _units(session: Session, rows):
    """Rows of units, fold by fold, as metrics see them."""
    import pandas as pd

    return pd.concat([session.task.to_units(own) for _, own in rows.groupby("fold")], ignore_index=True)


def _draw_output(session: Session, output: Output, rows) -> dict[str, Figure]:
    from voco.figures.calibration import reliability
    from voco.figures.confusion import confusion
    from voco.figures.ranking import roc_pr

    units = _units(session, rows)
    labels, scores = known_labels(units, output)
    if output.kind == "regression" or not len(labels):
        return {}
    calibration, ranking = f"calibration_{output.name}", f"ranking_{output.name}"
    if output.kind == "multiclass":
        matrix = np.zeros((output.width, output.width), int)
        answers = scores.argmax(1)
        np.add.at(matrix, (labels.astype(int), answers), 1)
        right = (answers == labels).astype(float)
        return {
            f"confusion_{output.name}": confusion(matrix, output.classes, noun=f"{session.task.noun}s"),
            calibration: reliability(right, scores.max(1), name=output.name, event="right"),
        }
    drawn = {calibration: reliability(labels, scores[:, 0], name=output.name)}
    if len(np.unique(labels)) == 2:
        known = units[~np.isnan(units[output.label_column].to_numpy(float))]
        folds = known["fold"] if known["fold"].nunique() > 1 else None
        drawn[ranking] = roc_pr(
            labels, scores[:, 0], known["patient"], folds=folds, name=output.name, seed=session.config["seed"]
        )
    return drawn


def _draw_curves(session: Session, results: dict) -> dict[str, Figure]:
    from voco.figures.finetune import learning_curves

    folds, best = {}, {}
    for fold in session.splits.folds:
        path = session.folder(fold.number) / "metrics.jsonl"
        if path.is_file():
            folds[fold.number] = [json.loads(line) for line in path.read_text().splitlines()]
            best[fold.number] = session.facts.get(fold.number, {}).get("best_step")
    if not folds:
        return {}
    constant = results["verdict"].get("constant")
    figure = learning_curves(
        folds,
        session.task.main_metric,
        best_steps={k: v for k, v in best.items() if v is not None},
        constant=constant if isinstance(constant, float) else None,
        higher_is_better=session.task.higher_is_better,
    )
    return {"learning": figure}


def _draw_evidence(session: Session, rows) -> dict[str, Figure]:
    """The highest score, the highest among negatives and the lowest among positives, each with what is behind it."""
    from voco.figures.evidence import evidence

    output = session.task.outputs[0]
    if session.config["mode"] == "knn" or output.kind == "regression" or not session.config["score"].examples:
        return {}  # votes of neighbours have no useful gradient
    chosen = _examples(rows, output, session.config["score"].examples)
    found = []
    for fold_number, name in chosen:
        model = _model(session, fold_number)
        (study,) = pick(session.cohort, [name])
        found.append(_evidence(session, model, study, output))
    if not found:
        return {}
    low, high = session.encoder.input_spec.windows[0]
    words = output.name if output.kind == "binary" else f"{output.name}: {output.classes[-1]}"
    return {"evidence": evidence(found, hu_window=(low, high), note=words)}


def _examples(rows, output: Output, count: int) -> list[tuple[int, str]]:
    """(fold, case): most surely positive, worst false positive, worst false negative, and on in turn."""
    column, label = output.score_columns[-1], output.label_column
    truth = rows[label] == (output.width - 1 if output.kind == "multiclass" else 1)
    ranked = rows.sort_values(column, ascending=False)
    lists = [ranked[truth[ranked.index]], ranked[~truth[ranked.index]], ranked[truth[ranked.index]][::-1]]
    chosen: list[tuple[int, str]] = []
    for place in range(len(rows)):
        for table in lists:
            if place < len(table):
                item = (int(table.iloc[place]["fold"]), str(table.iloc[place]["case"]))
                if item not in chosen and len(chosen) < count:
                    chosen.append(item)
    return chosen


def _model(session: Session, fold: int):
    from voco.transfer.artifact import load_model

    return load_model(session.folder(fold)).model.to(session.accelerator.device)


def _evidence(session: Session, model, study, output: Output):
    from voco.data.cache import PreparedVolume
    from voco.figures.evidence import Evidence
    from voco.transfer.predict import score_study
    from voco.transfer.saliency import study_saliency

    device, view = session.accelerator.device, session.view
    scores = score_study(model, session.task, study.paths, view, device=device)
    column = output.score_columns[-1]
    each = scores.windows[column]
    looked = np.argsort(-each)[:_WINDOWS].tolist()
    volume = PreparedVolume.open(study.paths[0])
    index, labels = study.slices
    return Evidence(
        name=study.id,
        hu=volume.read((0, 0, 0), volume.shape),
        spacing_mm=volume.spacing_mm,
        starts=scores.starts[:, 0],
        depth=view.size[0],
        scores=each,
        slice_index=index,
        slice_labels=labels,
        saliency=study_saliency(
            model, study.paths, view, output.name, device=device, windows=looked, index=max(0, output.width - 1)
        ),
        truth=_truth(study, output),
        score=scores.columns[column],
    )


def _truth(study, output: Output) -> str:
    value = study.targets[output.name]
    if np.isnan(value):
        return "no label"
    return output.classes[int(value)] if output.kind == "multiclass" else ("positive" if value else "negative")
