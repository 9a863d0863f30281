"""All folds of a run, one after another: train or probe, score, keep the model; what is done is not done again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from finetune.cohort import Cohort, pick
from finetune.scoring import Predictions, score_part
from finetune.testset import check_leaks, open_test_set, write_split
from finetune.training import FoldRun, autocast_dtype, train_fold
from voco.data.progress import Progress
from voco.engine.lock import FolderLock
from voco.errors import InputError
from voco.tasks.base import Task
from voco.transfer.prediction_files import (
    PREDICTIONS,
    read_images,
    read_predictions,
    write_images,
    write_predictions,
)
from voco.transfer.views import View

SCORES = "scores"


@dataclass
class Session:
    """One run with everything that its folds share; ``run.py`` puts it together.

    Attributes:
        changes: settings that differ from those of the run that is extended.
    """

    config: dict
    task: Task
    view: View
    cohort: Cohort
    splits: Any
    encoder: Any
    cache: Path
    accelerator: Any
    stop: Any
    record: Any
    say: Callable[[str], None]
    exposure: dict[str, float]
    looks: int = 0
    leaks: Any = None
    changes: Sequence[str] = ()
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return Path(self.config["out"])

    def folder(self, fold: int) -> Path:
        """Of a fold: that of the run where there is only one."""
        return self.out if len(self.splits.folds) == 1 else self.out / f"fold-{fold}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the split that are scored."""
        return ("validation", "test") if self.config["eval"] == "test" else ("validation",)


def run_folds(session: Session) -> bool:
    """Work through the folds; False after a stop was asked for."""
    chosen = session.config["fold"]
    folds = [fold for fold in session.splits.folds if chosen in (-1, fold.number)]
    write_split(session)
    check_leaks(session)
    if session.config["eval"] == "test":
        open_test_set(session, folds)
    return all(_run_fold(session, fold) for fold in folds)


def _run_fold(session: Session, fold) -> bool:
    out = session.folder(fold.number)
    if session.accelerator.is_main_process:
        (out / SCORES).mkdir(parents=True, exist_ok=True)
    session.accelerator.wait_for_everyone()
    missing = [part for part in session.parts if not is_scored(session, fold, part)]
    if not missing and (out / "model.json").is_file():
        session.facts[fold.number] = json.loads((out / "model.json").read_text())["training"]
        session.say(f"fold {fold.number}: already trained and scored, in {out}")
        return True
    if len(session.splits.folds) > 1:
        session.say(f"fold {fold.number} of {len(session.splits.folds)}, in {out}")
    # a job of an array holds the lock of its fold: a run of all folds must not work on it at the same time
    shared = out != session.out and session.config["fold"] < 0 and session.accelerator.is_main_process
    with FolderLock(out) if shared else contextlib.nullcontext():
        return _work_on_fold(session, fold, out, missing)


def _work_on_fold(session: Session, fold, out: Path, missing: Sequence[str]) -> bool:
    source = session.config["train"].extend
    source = Path(source) / out.relative_to(session.out) if source else None
    run = FoldRun(
        config=session.config,
        fold=fold.number,
        out=out,
        task=session.task,
        view=session.view,
        train=pick(session.cohort, fold.ids("train")),
        validation=pick(session.cohort, fold.ids("validation")),
        early_stopping=fold.early_stopping,
        build_model=partial(build_study_model, session, fold.number),
        accelerator=session.accelerator,
        stop=session.stop,
        say=session.say,
        source=source,
        changes=session.changes,
    )
    if (out / "model.json").is_file():
        model = _saved_model(session, out)
        run.facts = json.loads((out / "model.json").read_text())["training"]
    else:
        model = _trained(session, run)
        if model is None:
            return False
    session.facts[fold.number] = run.facts
    for part in missing:
        studies = run.validation if part == "validation" else pick(session.cohort, fold.ids(part))
        found = _score(session, run, model, studies, part)
        if session.accelerator.is_main_process:
            _keep(scores_folder(session, fold.number, part), found)
        if run.stop_asked():
            return False
    if session.accelerator.is_main_process and not (out / "model.json").is_file():
        _save(session, run, model, out)
    session.accelerator.wait_for_everyone()
    return True


def build_study_model(session: Session, fold: int):
    """The untrained model of a fold: the encoder as it was given, a head from the run's seed."""
    import copy

    import torch

    from voco.rng import derive_seed
    from voco.transfer.model import StudyModel, output_widths

    torch.manual_seed(derive_seed(session.config["seed"], "head", fold))
    # deepcopy, so that every fold starts from the same encoder
    return StudyModel(
        copy.deepcopy(session.encoder),
        output_widths(session.task.outputs),
        session.config["head"],
        learn=session.config["learn"],
        chunk=session.config["input"].chunk,
    )


def _trained(session: Session, run: FoldRun):
    if session.config["mode"] == "full":
        return train_fold(run)
    from finetune.probing import probe_fold

    return probe_fold(run, session.cache)


def _saved_model(session: Session, out: Path):
    from voco.transfer.artifact import load_model

    model = load_model(out).model.to(session.accelerator.device)
    model.chunk = session.config["input"].chunk
    return model


def _score(session: Session, run: FoldRun, model, studies, part: str) -> Predictions:
    from voco.transfer.predict import allowed_flips, score_study

    accelerator, config = session.accelerator, session.config
    if config["mode"] != "full" and not config["tta"]:
        from finetune.probing import score_probe

        return score_probe(run, model, studies, part, session.cache)
    flips = allowed_flips(session.task) if config["tta"] else [()]
    bar = Progress(f"score {part}", len(studies), accelerator.is_main_process and bool(studies))
    try:
        return score_part(
            studies,
            lambda study: score_study(
                model, session.task, study.paths, session.view, device=accelerator.device,
                dtype=autocast_dtype(accelerator), flips=flips,
            ),
            session.task, session.view, fold=run.fold, split=part, learn=model.learn, accelerator=accelerator,
            progress=lambda study: bar.step(accelerator.num_processes),
        )  # fmt: skip
    finally:
        bar.close()


def scores_folder(session: Session, fold: int, part: str) -> Path:
    """Where the predictions of a part of a fold lie; those averaged over flips have a folder of their own."""
    return session.folder(fold) / SCORES / f"{part}{'-tta' if session.config['tta'] else ''}"


def is_scored(session: Session, fold, part: str) -> bool:
    """Whether a part of a fold has its predictions, or nobody in it."""
    return (scores_folder(session, fold.number, part) / PREDICTIONS).is_file() or not pick(
        session.cohort, fold.ids(part)
    )


def _keep(folder: Path, found: Predictions) -> None:
    """Keep the predictions of a part; the table of the cases comes last and says that both are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    images = found.image_frame()
    if images is not None:
        write_images(folder, images)
    write_predictions(folder, found.frame())


def read_scores(session: Session) -> tuple[Any, Any]:
    """All rows of all folds: cases, and slices or None."""
    import pandas as pd

    folders = [scores_folder(session, fold.number, part) for fold in session.splits.folds for part in session.parts]
    folders = [folder for folder in folders if (folder / PREDICTIONS).is_file()]
    if not folders:
        raise InputError(
            "no case was scored: the split has no validation patients; --eval test scores the test set, --fraction_val "
            "full keeps all validation patients"
        )
    images = [rows for folder in folders if (rows := read_images(folder)) is not None]
    cases = pd.concat([read_predictions(folder) for folder in folders], ignore_index=True)
    return cases, pd.concat(images, ignore_index=True) if images else None


def _save(session: Session, run: FoldRun, model, out: Path) -> None:
    """The model with what new scans need, and the encoder as any other."""
    from voco import __version__
    from voco.transfer.artifact import save_model
    from voco.transfer.operating import operating_points
    from voco.weights.export import save_encoder

    config = session.config
    train = config["train"]
    provenance = {
        "method": f"finetune {session.task.name}",
        "data": str(session.cohort.manifest.root.name),
        "data_sets": list(session.task.data_sets),
        "cases": len(run.train),
        "data_fingerprint": session.cohort.fingerprint,
        "supervised": True,
        "synthetic": session.cohort.synthetic > 0,
        **({"extended": found["note"]} if (found := run.facts.get("extended")) else {}),
        "steps": run.facts.get("last_step", 0),
        "settings": {"mode": config["mode"], "fold": run.fold, "seed": config["seed"], "lr": train.lr,
                     "batch_size": train.batch_size, "fraction": config["fraction"]},
        "cost": run.facts.get("cost"),
        "library_version": __version__,
    }  # fmt: skip
    save_encoder(model.encoder, out / "encoder", provenance, fingerprints=_fingerprints(session, run).to_bytes())
    validated = scores_folder(session, run.fold, "validation")
    points = {}
    if (validated / PREDICTIONS).is_file():
        points = operating_points(session.task, read_predictions(validated))
    save_model(
        out, model, session.task, session.view, mode=config["mode"],
        facts={
            "training": run.facts,
            "operating_points": points,
            "tta": config["tta"],
        },
    )  # fmt: skip
    (out / "best.safetensors").unlink(missing_ok=True)


def _fingerprints(session: Session, run: FoldRun):
    """Of the scans that the encoder learned from: none where it was frozen, and not those that validated."""
    from voco.data.fingerprint import Fingerprints

    entries = [session.cohort.entries[study.id] for study in (*run.train, *run.validation)]
    learned = session.config["mode"] == "full"
    trained = [learned] * len(run.train) + [False] * len(run.validation)
    names = () if session.cohort.synthetic else session.task.data_sets
    return Fingerprints.of_entries(entries, trained=trained, data_sets=names)
