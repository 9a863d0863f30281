"""Downstream tasks: what is read, what is learned, and the official metric. One file per task."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from voco.errors import InputError
from voco.registry import Registry
from voco.tasks.base import Output, Scores, Task

# Where each task lives; a task is imported when it is used.
TASKS: Registry[str | type[Task]] = Registry("task")
TASKS.register("rsna_pe")("voco.tasks.rsna_pe:RSNAPE")
TASKS.register("imageclef_tb")("voco.tasks.imageclef_tb:ImageCLEFTB")
TASKS.register("rsna_trauma")("voco.tasks.rsna_trauma:RSNATrauma")
TASKS.register("lidc")("voco.tasks.lidc:LIDC")
TASKS.register("table")("voco.tasks.table:Table")
__all__ = ["TASKS", "Output", "Scores", "Task", "create_task", "register_task", "task_class"]


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Decorator that files a task under the name that ``--task.name`` takes; its ``name`` is set to it.

    Raises:
        InputError: a class whose ``Options`` the command line could not name.
        ValueError: the name is taken.
    """

    def add(cls: type[Task]) -> type[Task]:
        known = getattr(getattr(cls, "Options", None), "__dataclass_fields__", {})
        if "name" not in known or known["name"].default != name:
            raise InputError(
                f"the task {name} needs Options, a dataclass with a field name: Literal[{name!r}] = {name!r}"
            )
        cls.name = name
        return TASKS.register(name)(cls)

    return add


def task_class(name: str) -> type[Task]:
    """The class of a task; ``task_class(name).Options`` are its settings.

    Raises:
        InputError: unknown name, with the closest known ones.
    """
    place = TASKS[name]
    if isinstance(place, type):
        return place
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def create_task(name: str, **options) -> Task:
    """A task with its options: ``create_task("rsna_pe", preset="ke_3d")``."""
    cls = task_class(name)
    return cls(cls.Options(**options))
