"""Score new scans: ``accelerate launch finetune/predict.py --model runs/y --data.root NEW --out DIR``.

All folds of a run vote: their probabilities are averaged. With labels the task's metrics are computed, at thresholds
that were fixed on the validation patients of the run, also for subgroups.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from voco.config import Schema, parse
from voco.errors import InputError

# The part of new scans in predictions.csv; ``leaks.csv`` says whether the model knows any of them.
PART = "test"


@dataclass
class Run:
    """Which model scores what."""

    model: str
    """Folder of a finetune run, or of one fold of it."""
    out: str
    """Folder for predictions; made if missing."""
    labels: str | None = None
    """CSV with a column case or path, columns named after the outputs (see `results.json`), and any others."""
    subgroups: list[str] = field(default_factory=list)
    """Columns of the labels, or attributes of the data set, by which metrics are given as well."""
    layout: Literal["scans", "labeled", "unlabeled"] = "scans"
    """scans: any CT scans. labeled, unlabeled: the task's own data set, its labeled part or its official test part."""
    tta: bool = False
    """Average over the flips that the task allows."""
    bootstrap: int = 2000
    """Resamplings of the patients behind every interval."""
    seed: int = 0
    """Of the resamplings."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32; frozen features are fp32."""
    threads: int = 0
    """CPU threads per process; 0 = the cores shared among the processes of this machine."""


@dataclass
class Data:
    """New scans."""

    root: str | None = None
    """Folder (NIfTI, MHD/MHA, NRRD, DICOM at any depth), CSV manifest, or the folder of the task's data set."""
    cache: str | None = None
    """Folder for prepared scans; unset = `cache` inside --out."""
    offset: float | None = None
    """HU added to the values of every scan, e.g. -1024 for stored values that lost their rescale intercept; 0 = they
    are Hounsfield units, whatever they look like; unset = they should be, and what surely is not is refused."""
    select: str = "thinnest_axial"
    """Which DICOM series of a study is used, for the layout scans: thinnest_axial, largest or all."""
    patient_regex: str | None = None
    """Regular expression whose first group in the relative path is the patient, for the layout scans."""
    max_rejected: float = 0.2
    """Stop when more than this share of the scans cannot be used."""
    workers: int = 4
    """Processes that prepare scans."""


@dataclass
class Input:
    """Memory."""

    chunk: int = 0
    """Windows that go through the encoder at once; 0 = as in training."""


SCHEMA = Schema(
    prog="finetune/predict.py",
    description="Score new scans with the model, or the ensemble of folds, of a finetune run.",
    top=Run,
    groups={"data": Data, "input": Input},
    config_dir=Path(__file__).parent / "configs",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status: 0, 2 for bad input, 130 interrupted."""
    try:
        return run(parse(SCHEMA, argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is prepared", file=sys.stderr)
        return 130


def run(config: dict) -> int:
    """Score every scan and write what was found."""
    from finetune.cohort import prepare_studies
    from finetune.run import compute_precision
    from voco.engine.launch import build_accelerator, launched_rank
    from voco.engine.lock import FolderLock
    from voco.engine.signals import die_with_parent

    rank, world = launched_rank()
    die_with_parent()
    out = Path(config["out"])
    models = load_ensemble(Path(config["model"]))
    task, view = models[0].task, models[0].view
    with FolderLock(out) if rank == 0 else contextlib.nullcontext():
        manifest = read_scans(config, task)
        for note in manifest.notes if rank == 0 else ():
            print(f"note: {note}", file=sys.stderr)
        cohort = prepare_studies(
            manifest, task, view, Path(config["data"].cache or out / "cache"),
            mask_channel=check_masks(manifest, task, view), workers=config["data"].workers,
            offset=config["data"].offset, rank=rank, world=world,
            say=lambda text: print(text, file=sys.stderr) if rank == 0 else None,
            targets=config["layout"] == "labeled",
        )  # fmt: skip
        cohort = label_studies(cohort, task, config)
        check_subgroups(config["subgroups"], cohort)
        if rank == 0:
            cohort.write(out)
        cohort.check(config["data"].max_rejected)
        leaks = check_seen(config, models, cohort)
        precision = compute_precision(config["precision"], models[0].facts["mode"])
        accelerator = build_accelerator(precision=precision, out=out, trackers=[], threads=config["threads"])
        cases, images = score(config, models, cohort, accelerator)
        if rank == 0:
            write(config, models, cohort, cases, images, leaks)
        accelerator.wait_for_everyone()
    return 0


def load_ensemble(folder: Path) -> list:
    """The trained models of a run: its own, or those of its folds.

    Raises:
        InputError: no model there, or folds of different tasks, views or inputs.
    """
    from voco.transfer.artifact import MODEL_FILE, load_model

    folders = [folder]
    if not (folder / MODEL_FILE).is_file():
        folders = sorted(found.parent for found in folder.glob(f"fold-*/{MODEL_FILE}"))
    if not folders:
        raise InputError(f"{folder} holds no trained model ({MODEL_FILE}): give the folder of a finished finetune run")
    models = [load_model(path) for path in folders]
    if len({str((m.view, m.task.name, m.facts["outputs"])) for m in models}) > 1:
        raise InputError(f"the folds in {folder} were not trained alike; give the folder of one of them")
    return models


def read_scans(config: dict, task):
    """The cases to score, with labels where the layout has them."""
    from voco.data.layouts.labeled import LabeledCase, LabeledManifest
    from voco.data.manifest import build_manifest

    data = config["data"]
    if not data.root:
        raise InputError("no data given: --data.root FOLDER with new scans")
    if not Path(data.root).exists():
        raise InputError(f"--data.root {data.root} does not exist")
    if config["layout"] == "labeled":
        return task.read(data.root)
    if config["layout"] == "unlabeled":
        return task.read_unlabeled(data.root)
    found = build_manifest(
        data.root, select=data.select, patient_regex=data.patient_regex, progress=True, workers=data.workers, test=True
    )
    cases = [LabeledCase(replace(case, split=None)) for case in found.cases]
    return LabeledManifest(found.root, cases, list(found.rejected), list(found.notes))


def check_masks(manifest, task, view) -> bool:
    """Whether masks are a channel of the model.

    Raises:
        InputError: the model saw scans through masks, and these have none.
    """
    channel = task.mask_use == "channel"
    if (channel or view.mask) and not any(labeled.case.mask for labeled in manifest.cases):
        raise InputError(
            f"this model sees scans through their masks (task.masks {task.mask_name}), and these have none: give "
            "the folder of the data set with --layout labeled or unlabeled"
        )
    return channel


def check_subgroups(columns: Sequence[str], cohort) -> None:
    """Refuse columns that no scan has, before any is scored."""
    known = {name for study in cohort.studies.values() for name in study.labeled.attributes}
    for column in columns:
        if column not in known:
            raise InputError(f"--subgroups {column}: no such column; found {', '.join(sorted(known)) or 'none'}")


def label_studies(cohort, task, config: dict):
    """The cohort with targets: of the layout, of ``--labels``, or unknown."""
    from voco.transfer.labels import read_labels

    unknown = {output.name: float("nan") for output in task.outputs}
    given = {}
    if config["labels"]:
        # also of scans that could not be prepared: their rows are no mistake
        cases = {labeled.id: labeled for labeled in cohort.manifest.cases}
        given = read_labels(config["labels"], task, cases, [item.path for item in cohort.rejected])
    for name, study in cohort.studies.items():
        targets = study.targets or unknown
        if name in given:
            targets = {**targets, **given[name].targets}
            labeled = replace(study.labeled, attributes={**study.labeled.attributes, **given[name].attributes})
            study = replace(study, labeled=labeled)
        cohort.studies[name] = replace(study, targets=dict(targets))
    return cohort


def check_seen(config: dict, models: list, cohort):
    """Per scan, the worst verdict of the leak guard over the models; also where a head was fitted or chosen by it."""
    from dataclasses import replace

    import pandas as pd

    from finetune.testset import data_set_names, locate
    from voco.transfer.leaks import VERDICTS, LeakGuard

    task = models[0].task
    names = data_set_names(cohort, task if config["layout"] != "scans" else None)
    entries = [cohort.entries[name] for name in sorted(cohort.studies)]
    tables = []
    for trained in models:
        guard = LeakGuard(trained.model.encoder)
        last = guard.sources[-1] if guard.sources else None
        if last is not None and last.fingerprints is not None:
            # a frozen encoder did not learn from these scans, but the head did, and thresholds were fixed on others
            prints = replace(last.fingerprints, trained=last.fingerprints.trained | True)
            guard.sources[-1] = replace(last, fingerprints=prints)
        tables.append(guard.verdicts(entries, names))
    together = pd.concat(tables, ignore_index=True)
    rank = together["verdict"].map(VERDICTS.index)
    return locate(together.loc[rank.groupby(together["case"]).idxmin()].reset_index(drop=True), cohort)


def score(config: dict, models: list, cohort, accelerator):
    """Predictions of the ensemble: rows of cases and of slices, probabilities averaged over the models."""
    import pandas as pd

    from finetune.scoring import score_part
    from finetune.training import autocast_dtype
    from voco.data.progress import Progress
    from voco.transfer.predict import allowed_flips, score_study

    task, view = models[0].task, models[0].view
    flips = allowed_flips(task) if config["tta"] else [()]
    if any(bool(m.facts.get("tta")) != config["tta"] for m in models) and accelerator.is_main_process:
        how = "plain scores, these are" if config["tta"] else "scores averaged over flips (--tta), these are not"
        print(f"note: the thresholds of this model were fixed on {how}", file=sys.stderr)
    studies = [cohort.studies[name] for name in sorted(cohort.studies)]
    cases, images = [], []
    for number, trained in enumerate(models):
        model = trained.model.to(accelerator.device)
        model.chunk = config["input"].chunk or model.chunk
        label = "score" if len(models) == 1 else f"score with model {number + 1} of {len(models)}"
        bar = Progress(label, len(studies), accelerator.is_main_process)
        found = score_part(
            studies,
            lambda study, model=model: score_study(
                model, task, study.paths, view, device=accelerator.device, dtype=autocast_dtype(accelerator),
                flips=flips,
            ),
            task, view, fold=0, split=PART, learn=model.learn, accelerator=accelerator,
            progress=lambda study, bar=bar: bar.step(accelerator.num_processes),
        )  # fmt: skip
        bar.close()
        cases.append(found.frame())
        if (rows := found.image_frame()) is not None:
            images.append(rows)
    mean = cases[0].copy()
    for name in task.score_columns:
        mean[name] = sum(frame[name] for frame in cases) / len(cases)
    if not images:
        return mean, None
    together = pd.concat(images).groupby(["case", "sop_uid"], sort=False)["score"].mean().reset_index(name="mean")
    merged = images[0].merge(together, on=["case", "sop_uid"])
    return mean, merged.assign(score=merged["mean"]).drop(columns="mean")


def write(config: dict, models: list, cohort, cases, images, leaks) -> None:
    """Predictions, what the model knew of the scans, and results where there are labels."""
    from voco.transfer.leaks import summary, write_leaks
    from voco.transfer.results import text_table, write_images, write_predictions, write_results

    out, task = Path(config["out"]), models[0].task
    points = ensemble_points(models)
    for output in task.outputs:
        if output.name in points:
            called = cases[output.score_columns[0]] >= points[output.name]["threshold"]
            cases[f"call_{output.name}"] = called.astype(int)
    written = [write_predictions(out, cases), write_leaks(leaks, out)]
    print(f"leak guard: {summary(leaks)}", file=sys.stderr)
    if images is not None:
        written.append(write_images(out, images))
    if config["layout"] == "unlabeled" and (path := task.write_submission(out / "submission.csv", cases, images)):
        written.append(path)
    labeled = cases[task.label_columns].notna().any(axis=1)
    if labeled.any():
        results = summarise_new(config, models, cohort, cases[labeled], images, points, leaks)
        written.append(write_results(out, results))
        print(text_table(results), file=sys.stderr)
        for name, point in results["operating_points"].items():
            at = f"{name} at {point['threshold']:.3g}, fixed on validation"
            found = f"sensitivity {point['sensitivity']:.3f} ({point['positive']} positive)"
            found += f", specificity {point['specificity']:.3f} ({point['negative']} negative)"
            print(f"{at}: {found}", file=sys.stderr)
        for line in subgroup_lines(results):
            print(line, file=sys.stderr)
    print(f"scored {len(cases)} scans with {len(models)} model(s); wrote", file=sys.stderr)
    for path in (*written, out / "rejected.csv"):
        print(f"  {path}", file=sys.stderr)


def ensemble_points(models: list) -> dict[str, dict[str, float]]:
    """Threshold per output: that of the model, or the mean over the folds, each fixed on its own validation part."""
    points: dict[str, list[float]] = {}
    for trained in models:
        for name, point in trained.facts.get("operating_points", {}).items():
            points.setdefault(name, []).append(point["threshold"])
    return {name: {"threshold": sum(found) / len(found)} for name, found in points.items() if len(found) == len(models)}


def summarise_new(config: dict, models: list, cohort, cases, images, points, leaks) -> dict[str, Any]:
    """``results.json`` of new scans, with operating points and subgroups."""
    from voco.transfer.leaks import NO_MATCH, summary
    from voco.transfer.operating import apply_operating_points
    from voco.transfer.results import summarise

    task = models[0].task
    settings = {"n": config["bootstrap"], "seed": config["seed"], "split": PART}
    own = leaks[leaks["case"].isin(cases["case"])]
    marks = [f"training of the model and these cases: {summary(own)} (leaks.csv)"]
    marks = marks if (own["verdict"] != NO_MATCH).any() else []
    results = summarise(task, cases, images, marks=marks, rule=config["layout"], facts={"model": config["model"],
                        "models": len(models), "scans": cohort.counts}, **settings)  # fmt: skip
    results["operating_points"] = apply_operating_points(task, cases, points)
    results["subgroups"] = {}
    for column in config["subgroups"]:
        groups = {}
        for value, rows in cases.groupby(cases[column].fillna("").astype(str)):
            own = summarise(task, rows, None, **settings)
            groups[value or "(empty)"] = {"main": own["main"], "counts": own["parts"][PART]["counts"]}
        results["subgroups"][column] = groups
    return results


def subgroup_lines(results: dict) -> list[str]:
    """For the console: the main metric per subgroup."""
    lines = []
    for column, groups in results["subgroups"].items():
        for value, found in groups.items():
            main = found["main"]
            shown = "not defined" if main["value"] is None else f"{main['value']:.3f}"
            if main.get("low") is not None:
                shown += f" ({main['low']:.3f} to {main['high']:.3f})"
            lines.append(f"{column} = {value}: {main['name']} {shown}, {found['counts']['units']} units")
    return lines


if __name__ == "__main__":
    sys.exit(main())
