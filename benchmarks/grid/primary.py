"""What is named before anybody looks: the primary comparisons, stored with time and digest, and held to afterwards."""

from __future__ import annotations

from typing import Any

from benchmarks.cells.store import Store, append_line, now
from benchmarks.grid.cell import Work
from benchmarks.grid.settings import digest
from voco.errors import InputError
from voco.files import read_json, write_json

PLAN, HISTORY = "plan.json", "plan_history.jsonl"


def named(work: Work) -> dict[str, Any]:
    """Primary comparisons and margins in the words of the report: tasks and networks by their registered names.

    Raises:
        InputError: two tasks of the grid are one for the report and have different margins.
    """
    grid = work.grid
    words = {name: settings["task"]["name"] for name, settings in work.tasks.items()}
    primary = []
    for item in grid.primary:
        found = dict(item)
        if "task" in item:
            found["task"] = words[item["task"]]
        if "encoder" in item:
            found["encoder"] = grid.blocks[item["encoder"]].encoder
        primary.append(found)
    margin: dict[str, float] = {}
    for name, value in grid.margin.items():
        word = words.get(name, name)
        if margin.setdefault(word, value) != value:
            raise InputError(f"margin: two tasks of the grid are {word}; give them the same margin")
    return {"primary": primary, "margin": margin}


def store_plan(store: Store) -> dict[str, Any]:
    """Store what the grid names, with the time; refuse to change it once a test set was opened.

    Every version is kept in ``plan_history.jsonl``.

    Returns:
        Contents of ``plan.json``, as the report reads them.

    Raises:
        InputError: other primaries or margins than those that were stored before the first look.
    """
    path, wanted = store.out / PLAN, named(store.work)
    stored = read_json(path)
    with_digest = {**wanted, "digest": digest(wanted)}
    if stored.get("digest") == with_digest["digest"]:
        return stored
    if stored and (looked := first_look(store)):
        old, new = (f"{len(plan['primary'])} primaries, margin {plan['margin'] or 'none'}" for plan in (stored, wanted))
        raise InputError(
            f"primary comparisons or margins differ from those stored at {stored['time']} ({PLAN}: {old}; now: {new}), "
            f"and a test set has been opened since ({looked}). Put them back, or take another --out, where they count "
            "as named after the fact"
        )
    plan = {**with_digest, "time": now()}
    append_line(store.out / HISTORY, plan)
    write_json(path, plan, indent=1, default=str)
    return plan


def first_look(store: Store) -> str:
    """Time of the oldest look at any test set of the grid; empty where nobody looked."""
    from benchmarks.cells.store import read_lines

    times = [
        line.get("time", "unknown") for path in (store.out / "splits").glob("*/test_ledger.jsonl")
        for line in read_lines(path)
    ]  # fmt: skip
    return min(times, default="")
