"""Pieces of work of a grid, and what their files and folders are called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.grid.types import Grid

# In the order of work. Splits are made by the grid itself, all others are commands.
KINDS = ("data", "split", "calibrate", "pretrain", "search", "cheap", "final")
FOLDERS = {"data": "data", "split": "splits", "calibrate": "calibration", "pretrain": "pretraining",
           "search": "search", "cheap": "cells", "final": "cells"}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One piece of work with a folder of its own.

    Attributes:
        id: kind and name, readable and unique within the grid: ``final/pe-3d-scratch-linear-20pct-seed0``.
        kind: one of ``KINDS``.
        needs: ids of cells that come before.
        settings: nested, for the YAML file of a run; what a search chooses is not among them.
        facts: what a reader wants to know: ``source``, ``encoder``, ``task``, ``fraction``, ``seed`` …
        identity: what else the result hangs on, e.g. the name of published weights.
        group: cells with the same one share a search, and a shard.
        data: name of the data set that it reads.
        uses: id of the pretraining run whose encoder it starts from; empty for none.
        prepares: what it computes for others too (prepared volumes, features), by key.
    """

    id: str
    kind: str
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    data: str = ""
    uses: str = ""
    prepares: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]

    @property
    def stage(self) -> str:
        """Stage of the library that runs it."""
        return str(self.facts.get("stage", "finetune"))


@dataclass(frozen=True)
class Work:
    """All cells of a grid, in an order in which each comes after what it needs.

    Attributes:
        cells: by id.
        tasks: resolved settings of each task's protocol.
    """

    grid: Grid
    cells: Mapping[str, Cell]
    tasks: Mapping[str, Mapping[str, Any]]

    def of(self, *kinds: str) -> list[Cell]:
        return [cell for cell in self.cells.values() if cell.kind in kinds]

    def trials(self, group: str) -> list[Cell]:
        """Cells of the search of a group, from the smallest value to the largest."""
        return [cell for cell in self.cells.values() if cell.kind == "search" and cell.group == group]


def slug(text: str) -> str:
    """``video -> voco3d`` to ``video-to-voco3d``: a name for folders."""
    return re.sub(r"[^a-z0-9.]+", "-", text.replace("->", "to").lower()).strip("-.")


def percent(fraction: float) -> str:
    return f"{100 * fraction:g}pct"


def fraction_file(fraction: float, seed: int) -> str:
    """Split file of a share of the labels: another one for each seed, the whole for all."""
    return "whole.csv" if fraction == 1 else f"labels-{percent(fraction)}-seed{seed}.csv"
