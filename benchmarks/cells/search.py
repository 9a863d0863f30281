"""The search of a group: which value its final cells are trained with, chosen on validation alone."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.cells.store import Store, now
from voco.files import read_json, write_json

SETTING = "train.lr"


def decide(store: Store, group: str, failed: dict[str, str], *, validation: bool = True) -> dict[str, Any] | None:
    """Choose from the trials of a group and store the choice, which stays for good.

    Args:
        failed: trials that crashed, by id, with the reason.
        validation: whether anybody validates; without, nothing can be chosen and the middle value is taken.

    Returns:
        The choice; None where every trial crashed.
    """
    if (found := store.choice(group)) is not None:
        return found
    trials = store.work.trials(group)
    values = [float(trial.facts["lr"]) for trial in trials]
    middle = values[(len(values) - 1) // 2]
    tried, higher = {}, True
    for trial in trials:
        if validation and trial.id not in failed:
            results = read_json(store.folder(trial) / "results.json")
            main = results.get("main", {})
            higher = bool(main.get("higher_is_better", True))
            tried[f"{trial.facts['lr']:g}"] = main.get("value")
    scored = {float(lr): value for lr, value in tried.items() if value is not None and math.isfinite(value)}
    if validation and not scored and len(failed) == len(trials):
        return None
    notes = [f"lr {store.work.cells[name].facts['lr']:g} crashed" for name in failed]
    if scored:
        # of equally good ones the one nearest to the middle, then the smaller
        best = max(scored.values()) if higher else min(scored.values())
        equal = [lr for lr, value in scored.items() if value == best]
        chosen = min(equal, key=lambda lr: (abs(math.log(lr / middle)), lr))
    else:
        chosen = middle
        notes.append("nobody validates inside the label budget, so the middle value was taken")
    edge = bool(scored) and len(values) > 1 and chosen in (values[0], values[-1])
    choice = {
        "time": now(),
        "group": group,
        "setting": SETTING,
        "chosen": chosen,
        # values only: what could not be scored says so in the note
        "tried": {lr: value for lr, value in tried.items() if value is not None},
        "seed": trials[0].facts["seed"],
        "steps": trials[0].facts["steps"],
        "edge": edge,
        "note": "; ".join(notes),
        "trials": {trial.id: failed.get(trial.id, "scored") for trial in trials if validation},
    }
    write_json(store.choice_file(group), choice, indent=1, default=str)
    return store.choice(group)


def edge_warnings(store: Store) -> list[str]:
    """Sentences about chosen values that lie at the end of what was tried."""
    found = []
    for group in dict.fromkeys(cell.group for cell in store.work.of("search")):
        choice = store.choice(group)
        if choice is not None and choice["edge"]:
            values = ", ".join(f"{trial.facts['lr']:g}" for trial in store.work.trials(group))
            found.append(
                f"{group}: the learning rate {choice['chosen']:g} lies on the edge of what was searched ({values}); "
                "a wider search may change the figure"
            )
    return found
