"""What a run does about its validation numbers: keep the best model, stop early, lower the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Watch:
    """Rules over the rows that evaluation returns. Everything remembered lies in a dict that checkpoints hold.

    Attributes:
        key: number to watch; a missing or undefined one counts as no improvement.
        higher: whether more is better.
        patience: evaluations without improvement after which training ends; 0 = never.
        plateau: evaluations without improvement of ``plateau_key`` (a loss) after which the learning rate is multiplied
            by ``factor``; 0 = never. As in torch's ReduceLROnPlateau, it falls after more than that many.
        on_best: called with the step, on every process, when ``key`` has improved.
    """

    key: str
    higher: bool
    patience: int = 0
    plateau: int = 0
    plateau_key: str = "validation_loss"
    factor: float = 0.5
    on_best: Callable[[int], None] = lambda step: None

    def look(self, step: int, row: dict[str, float], memory: dict[str, float]) -> None:
        """Take in the numbers of one evaluation.

        Args:
            memory: ``best``, ``best_step``, ``stale`` (evaluations since), ``lr_factor``, ``ended`` …; changed here.
        """
        if memory.get("looked_at") == step:  # an evaluation that a continued run repeats
            return
        memory["looked_at"] = step
        value = row.get(self.key)
        if value is not None and math.isfinite(value) and self._improves(value, memory.get("best"), self.higher):
            memory |= {"best": value, "best_step": step, "stale": 0}
            self.on_best(step)
        else:
            memory["stale"] = memory.get("stale", 0) + 1
        if self.patience and memory["stale"] >= self.patience:
            memory["ended"] = 1
        if self.plateau:
            self._look_at_plateau(row.get(self.plateau_key), memory)

    def _look_at_plateau(self, value: float | None, memory: dict[str, float]) -> None:
        if value is not None and math.isfinite(value) and self._improves(value, memory.get("plateau_best"), False):
            memory |= {"plateau_best": value, "plateau_stale": 0}
            return
        memory["plateau_stale"] = memory.get("plateau_stale", 0) + 1
        if memory["plateau_stale"] > self.plateau:
            memory |= {"lr_factor": memory.get("lr_factor", 1.0) * self.factor, "plateau_stale": 0}

    @staticmethod
    def _improves(value: float, best: float | None, higher: bool) -> bool:
        return best is None or (value > best if higher else value < best)
