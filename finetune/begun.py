"""A run that goes on, in its own folder or from another: what must be the same, and what it has of the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.config import EXTENDABLE, FREE_ON_RESUME, LATER
from voco.config import flatten, to_dict
from voco.errors import InputError
from voco.files import whole


def begun_folders(config: dict) -> tuple[list[Path], list[str]]:
    """Folders whose patients and labels must be those of now: of the run, and of one that it extends.

    Returns:
        The folders, and what ``--train.extend`` changes.

    Raises:
        InputError: settings that are not those that a run was begun with; nothing to extend.
    """
    from voco.engine.extend import check_apart
    from voco.engine.resume import check_same_settings

    out, settings = Path(config["out"]), to_dict(config)
    old = {name: value for name, value in flatten(settings).items() if name in LATER} | {"train.extend": ""}
    source = Path(config["train"].extend)
    if config["train"].extend:
        check_apart(config["train"].extend, out)
    if has_begun(out):
        check_same_settings(out / "config.yaml", settings, FREE_ON_RESUME, old)
    if not config["train"].extend:
        return [out], []
    return [out, source], _check_extension(source, out, settings, config["train"].steps, old)


def _check_extension(source: Path, out: Path, settings: dict, steps: int, old: dict) -> list[str]:
    from voco.engine.checkpoint import list_checkpoints
    from voco.engine.extend import changed_settings, extension_point

    folders = sorted(path for path in source.glob("fold-*") if path.is_dir()) or [source]
    for folder in folders:
        if not list_checkpoints(out / folder.relative_to(source) / "checkpoints"):
            extension_point(str(folder), steps=steps)
    return changed_settings(source, settings, FREE_ON_RESUME, EXTENDABLE, old)


def has_begun(out: Path) -> bool:
    """Whether there is anything to continue; a start that failed on a wrong setting leaves nothing."""
    made = ("checkpoints/step-*", "scores/*/predictions.csv", "model.json")
    return any(next(out.glob(f"{folder}{name}"), None) for folder in ("", "fold-*/") for name in made)


def check_same_split(begun: Sequence[Path], splits) -> None:
    """A run that goes on has the patients it began with: with others, some it trained on could test.

    Raises:
        InputError: the cases or the split of a run that has begun are not those of now.
    """
    from finetune.testset import SPLIT_FILE
    from voco.data.split_files import is_split, split_text

    for out in begun:
        path = out / SPLIT_FILE
        if has_begun(out) and path.is_file() and not is_split(path, split_text(splits)):
            raise InputError(
                f"{out} was started with other cases, or cases parted otherwise, than these data give now: patients it "
                f"trained on could come to test. Bring the data back, or start another run (--split.file {path} "
                "repeats the split where the cases are the same)"
            )


def check_same_data(begun: Sequence[Path], cohort) -> None:
    """With other scans or labels, a run that goes on would be another one.

    Raises:
        InputError: the studies, their labels or their sizes are not those that the run, or a fold of it, began with.
    """
    from voco.engine.record import read_record

    for folder in (folder for out in begun for folder in (out, *sorted(out.glob("fold-*")))):
        saved = read_record(folder)
        if has_begun(folder) and saved.get("data_fingerprint", cohort.fingerprint) != cohort.fingerprint:
            raise InputError(
                f"{folder} was started with other studies or labels: {saved.get('data')} then, {cohort.counts} now. "
                "Bring them back, or start another run"
            )


def take_over(run, state, checkpoint: Path, log, best: Path) -> None:
    """Begin the extension of a fold: rows and best weights of its source.

    Args:
        run: the ``FoldRun``.
        state: loop state of the checkpoint.
    """
    from safetensors.torch import save_file

    from voco.engine.extend import begin_extension, run_of
    from voco.transfer.artifact import MODEL_FILE, load_model

    source = run_of(checkpoint)
    begin_extension(state, source, run.changes, log, best)
    kept = "best_step" in state.watch and not best.is_file() and (source / MODEL_FILE).is_file()
    if kept and run.accelerator.is_main_process:  # a finished run keeps its best weights as its model
        with whole(best) as place:
            save_file(load_model(source).model.state_dict(), place)
    run.accelerator.wait_for_everyone()
    if not best.is_file():
        state.watch = {}
