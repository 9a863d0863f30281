"""Downstream tasks: what is read, what is learned, and the official metric. One file per task."""

from __future__ import annotations

import importlib

from voco.tasks.base import Output, Scores, Task

# Where each task lives; a task is imported when it is used.
_TASKS = {
    "rsna_pe": "voco.tasks.rsna_pe:RSNAPE",
    "imageclef_tb": "voco.tasks.imageclef_tb:ImageCLEFTB",
    "rsna_trauma": "voco.tasks.rsna_trauma:RSNATrauma",
    "lidc": "voco.tasks.lidc:LIDC",
    "table": "voco.tasks.table:Table",
}
TASK_NAMES = tuple(_TASKS)
__all__ = ["TASK_NAMES", "Output", "Scores", "Task", "create_task", "task_class"]


def task_class(name: str) -> type[Task]:
    """The class of a task; ``task_class(name).Options`` are its settings."""
    from voco.errors import InputError

    if name not in _TASKS:
        raise InputError(f"unknown task {name!r}; known: {', '.join(_TASKS)}")
    module, _, attribute = _TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def create_task(name: str, **options) -> Task:
    """A task with its options: ``create_task("rsna_pe", preset="ke_3d")``."""
    cls = task_class(name)
    return cls(cls.Options(**options))
