"""A run goes on beyond its end, or otherwise than it was meant to: in a folder of its own, and said with its result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voco.config import changed, flatten
from voco.engine.checkpoint import find_checkpoint, list_checkpoints
from voco.engine.record import read_record
from voco.errors import InputError
from voco.files import whole

# Of what ``Watch`` remembers: the best model stays the best; how long it has been so, and how far the learning rate has
# fallen since, begin anew.
_KEPT = ("best", "best_step", "looked_at", "plateau_best")


def check_apart(run: str, out: Path) -> None:
    """Stop where a run would be extended in its own folder."""
    if Path(out).resolve() in (Path(run).resolve(), *Path(run).resolve().parents):
        raise InputError(
            f"--train.extend {run} is --out itself; the run stays what it is and its extension needs a folder of its "
            "own: give another --out"
        )


def extension_point(run: str, *, steps: int) -> Path:
    """The checkpoint that ``--train.extend`` goes on from.

    Args:
        run: folder of a run, finished or stopped, or one of its checkpoints.
        steps: that it ends at.

    Raises:
        InputError: no checkpoint there, or no step left to take.
    """
    folder = Path(run)
    found = folder if (folder / "state.json").is_file() else find_checkpoint(folder / "checkpoints")
    if found is None:
        why = "no checkpoint there" if folder.exists() else "no such folder"
        if list_checkpoints(folder / "checkpoints"):
            why = "all of its checkpoints are damaged"
        if list_checkpoints(folder.parent / "checkpoints") or list_checkpoints(folder):
            why += f"; did you mean {folder.parent}?"
        raise InputError(
            f"--train.extend {run}: {why}; give the folder of a finished or stopped run, or a step-… folder of one. To "
            "start from an encoder alone, use --encoder.weights"
        )
    step = json.loads((found / "state.json").read_text())["step"]
    if step >= steps:
        raise InputError(
            f"--train.extend {run}: {found.name} has {step} steps already and --train.steps is {steps}; it counts all "
            f"steps from the first on: give more than {step}"
        )
    return found


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of."""
    return checkpoint.parent.parent


def changed_settings(
    run: Path, settings: Mapping[str, Any], free: Sequence[str], extendable: Sequence[str], new: Mapping[str, Any]
) -> list[str]:
    """What an extension does otherwise, as sentences ``train.steps: 100 -> 200``.

    Args:
        run: folder that is extended.
        settings: plain nested values of the extension.
        free: settings that change no number.
        extendable: settings that an extension may change.
        new: settings that runs of earlier versions do not have, with the value that they stood for.

    Raises:
        InputError: no settings there, or another method or other data.
    """
    import yaml

    if not (run / "config.yaml").is_file():
        raise InputError(f"--train.extend {run}: its config.yaml is missing, so nobody knows what it was trained with")
    old = {**new, **flatten(yaml.safe_load((run / "config.yaml").read_text()))}
    if lines := changed(old, settings, (*free, *extendable)):
        raise InputError(
            f"--train.extend {run} was trained with other settings:\n  "
            + "\n  ".join(lines)
            + f"\nAn extension may change {', '.join(extendable)} alone: repeat the others (--config "
            f"{run / 'config.yaml'}), or start a new run from its encoder with --encoder.weights {run}"
        )
    return changed(old, settings, free)


def extension_entry(run: Path, step: int, changes: Sequence[str]) -> dict:
    """What is kept of a run that is extended from ``step``, in the state of the loop and in ``run.json``."""
    values, place = read_record(run), run.resolve()
    return {
        "run": (place.parent if place.name.startswith("fold-") else place).name,
        "state": values.get("state"),
        "wall_seconds": values.get("wall_seconds"),
        "step": step,
        "changed": [line for line in changes if not line.startswith("train.extend")],
    }


def extension_note(record: Sequence[Mapping]) -> str:
    """What must be said with every result of an extended run."""
    parts = [f"from step {entry['step']} of {entry['run']} ({'; '.join(entry['changed']) or 'same settings'})"
             for entry in record]  # fmt: skip
    return (
        f"extended {', then '.join(parts)}: weights and optimizer went on, so this is not the result of one run with "
        "these settings"
    )


def extension_facts(extended: Sequence[Mapping]) -> dict:
    """Entry ``extended`` of ``run.json``."""
    return {"note": extension_note(extended), "runs": list(extended)}


def begin_extension(state, run: Path, changes: Sequence[str], log, best: Path) -> None:
    """Take over what a run has beside its checkpoint: rows, the best weights so far.

    Args:
        state: loop state of the checkpoint; the entry of this extension is added.
        run: folder that is extended.
        changes: of ``changed_settings``.
        log: of the extension.
        best: where the extension keeps its best weights, under the same name as the run.
    """
    state.extended = [*state.extended, extension_entry(run, state.step, changes)]
    state.watch = {name: value for name, value in state.watch.items() if name in _KEPT}
    log.inherit(run, state.step)
    if log.accelerator.is_main_process and (run / best.name).is_file():
        with whole(best) as place:
            shutil.copyfile(run / best.name, place)
    log.accelerator.wait_for_everyone()
