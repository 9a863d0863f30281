"""Every patient judged by a pretraining that did not see it: folds, one after another, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pretrain.pretraining import Session, build_network, is_finished, pretrain, write_fingerprints
from voco.config import save_yaml
from voco.engine.record import read_record
from voco.errors import InputError


def fold_config(config: dict, number: int) -> dict:
    """Settings of one fold: those of the run, in a folder of its own, without what only the encoder of the run is for.

    Args:
        number: counted from 1.
    """
    return config | {
        "out": str(Path(config["out"]) / "folds" / f"fold-{number}"),
        "train": replace(config["train"], milestones=[]),
        "probe": replace(config["probe"], labels=None),
    }


def check_is_no_fold(out: Path) -> None:
    """A fold goes on with its run: on its own it would be taken for a run with folds of its own.

    Raises:
        InputError: the folder is that of a fold.
    """
    fold = read_record(out).get("fold")
    if fold is not None:
        raise InputError(
            f"{out} is fold {fold['number']} of {fold['of']} of the run in {out.resolve().parents[1]}; give that "
            "folder as --out: its folds go on with it"
        )


def fold_configs(config: dict) -> list[dict]:
    """Settings of all folds; empty where none are asked for."""
    return [fold_config(config, number) for number in range(1, config["eval"].cross + 1)]


def run_folds(session: Session, folds: Sequence, record) -> bool:
    """Train every fold that is not finished yet; False after a stop was asked for.

    Args:
        folds: the data of the run, each time with other patients held out.
        record: of the run.
    """
    for number, source in enumerate(folds, 1):
        record.update(cross={"folds": len(folds), "done": number - 1})
        if not _run_fold(session, source, number) or session.stop_asked():
            return False
    record.update(cross={"folds": len(folds), "done": len(folds)})
    return True


def _run_fold(session: Session, source, number: int) -> bool:
    from voco.engine.loop import resolve_resume
    from voco.engine.record import RunRecord

    config, data = source.config, source.cohort
    out, main_process = Path(config["out"]), session.accelerator.is_main_process
    resume, of = resolve_resume(config["train"].resume, out), config["eval"].cross
    if resume is not None and is_finished(out, resume):
        session.say(f"fold {number} of {of} is done already, in {out}")
        return True
    counts = data.counts
    session.say(
        f"fold {number} of {of}: {counts['train_patients']} patients train, {counts['heldout_patients']} are held out; "
        f"in {out}"
    )
    network = build_network(source)
    if main_process:
        data.write(out)
        save_yaml(config, out / "config.yaml")
        write_fingerprints(source.fingerprints(), out)
    session.accelerator.wait_for_everyone()
    record = RunRecord(out, active=main_process, plugins=config.get("plugins", ()))
    record.update(fold={"number": number, "of": of})
    return pretrain(session, source, network, record, resume, fold=number)


def judge_recipe(config: dict):
    """What all folds of a run say together, from their folders; also left in the folder of the run."""
    from voco.engine.log import read_rows
    from voco.health.recipe import Recipe

    folders = [Path(fold["out"]) for fold in fold_configs(config)]
    rows = {folder: read_rows(folder / "metrics.jsonl") for folder in folders}
    return Recipe(Path(config["out"]), rows, config["train"].warmup)
