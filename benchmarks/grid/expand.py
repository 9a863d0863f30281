"""A grid expanded: every piece of work with its settings and what it needs, before anything runs."""

from __future__ import annotations

from benchmarks.grid.cell import KINDS, Work
from benchmarks.grid.maker import Maker
from benchmarks.grid.settings import Checker
from benchmarks.grid.types import Grid
from voco.errors import InputError


def expand(grid: Grid, checker: Checker | None = None) -> Work:
    """Every cell of a grid.

    Raises:
        InputError: settings that a stage does not accept, recipes that are not there.
    """
    maker = Maker(grid, checker or Checker())
    for name, mode in grid.modes.items():
        if not (made := list(maker.cells_of(mode))):
            raise InputError(f"modes.{name}: no cell; sources {mode.sources} with encoders {mode.encoders}")
        for cell in made:
            maker.add(cell)
    for cheap in grid.cheap:
        for task in cheap.tasks:
            maker.add_cheap(grid.tasks[task], cheap)
    order = {kind: place for place, kind in enumerate(KINDS)}
    # a stable sort: within a kind cells stay in the order in which they were made, chains one stage after the other
    cells = sorted(maker.found.values(), key=lambda cell: order[cell.kind])
    return Work(grid, {cell.id: cell for cell in cells}, maker.protocols)
