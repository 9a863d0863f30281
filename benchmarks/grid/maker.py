"""Cells of a grid, made from its modes: runs of the finetune stage, and what they stand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.grid.cell import Cell, percent, slug
from benchmarks.grid.pretraining import add_pretraining
from benchmarks.grid.settings import Checker, as_pretrained, digest, merge, read_recipe
from benchmarks.grid.types import SCRATCH, Block, Cheap, Grid, Mode, Source, Task
from voco.errors import InputError

# What splits are made of, so that it must be the same for all cells of a task; and what the grid sets itself.
_OF_THE_TASK = ("task", "split", "folds", "repeats", "fraction_val")
_OF_THE_GRID = ("fraction", "seed", "eval", "out", "fold", "mode")
LONG = "longer schedule"
# Names of the cheap lines in tables.
_LINES = {"prior": "class prior", "metadata": "metadata", "position": "place along z",
          "slices": "frozen 2D slices"}  # fmt: skip


def _refuse(settings: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    if wrong := sorted(set(settings) & set(names)):
        raise InputError(f"{where}: settings.{wrong[0]} is set by the grid itself (modes, fractions, seeds)")


def _prepared(data: str, settings: Mapping[str, Any]) -> str:
    """Key of the prepared volumes that a run reads."""
    return f"{data} {digest({key: settings.get(key) for key in ('view', 'input', 'task')})}"


class Maker:
    """Makes the cells of a grid, each once.

    Attributes:
        found: cells by id.
        protocols: resolved settings of each task.
    """

    def __init__(self, grid: Grid, checker: Checker):
        self.grid, self.checker = grid, checker
        self.found: dict[str, Cell] = {}
        self.protocols: dict[str, dict[str, Any]] = {}
        self._recipes: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, cell: Cell) -> str:
        same = self.found.get(cell.id)
        if same is not None and same != cell:
            raise InputError(f"two cells would be called {cell.id}; rename sources, encoders or modes")
        self.found[cell.id] = cell
        return cell.id

    def recipe(self, stage: str, name: str, where: str) -> dict[str, Any]:
        if (stage, name) not in self._recipes:
            self._recipes[stage, name] = read_recipe(stage, name, where)
        return self._recipes[stage, name]

    # What others stand on

    def add_data(self, name: str) -> list[str]:
        """Cell that makes a synthetic cohort; none for a folder that the user has."""
        data = self.grid.data[name]
        if not data.phantom:
            return []
        return [self.add(Cell(f"data/{slug(name)}", "data", identity={"phantom": dict(data.phantom)}, data=name))]

    def data_identity(self, name: str) -> dict[str, Any]:
        data = self.grid.data[name]
        return {"phantom": dict(data.phantom)} if data.phantom else {"root": data.root}

    def protocol(self, task: Task) -> dict[str, Any]:
        """Recipe and settings of a task, and its split cell."""
        where = f"tasks.{task.name}"
        _refuse(task.settings, _OF_THE_GRID, where)
        # auto would follow each encoder, and sources are compared on equal input
        settings = merge({"view": "resize"}, self.recipe("finetune", task.recipe, f"{where}.recipe"), task.settings)
        if task.name not in self.protocols:
            encoder = {"encoder": {"name": next(iter(self.grid.blocks.values())).encoder}}
            self.protocols[task.name] = self.checker.resolve(
                "finetune", merge(encoder, settings, {"encoder": encoder["encoder"]}), f"{where}.settings"
            )
        return settings

    def add_split(self, task: Task) -> str:
        self.protocol(task)
        resolved = self.protocols[task.name]
        rules = {key: resolved[key] for key in ("task", "split", "folds", "repeats", "fraction_val")}
        pairs = sorted(
            {
                (fraction, seed)
                for mode in self.grid.modes.values()
                if task.name in mode.tasks
                for fraction in mode.fractions
                for seed in range(mode.seeds)
            }
        )
        stages = self.grid.stages.values()
        return self.add(
            Cell(
                f"split/{slug(task.name)}",
                "split",
                tuple(self.add_data(task.data)),
                facts={
                    "task": task.name,
                    "rules": rules,
                    "files": [list(pair) for pair in pairs],
                    "exclude": any(task.name in stage.exclude for stage in stages),
                },
                identity={"rules": rules, "data": self.data_identity(task.data)},
                data=task.data,
            )
        )

    # Cells proper

    def cells_of(self, mode: Mode) -> Iterator[Cell]:
        for task_name in mode.tasks:
            for block_name in mode.encoders:
                block = self.grid.blocks[block_name]
                for fed in mode.inputs:
                    for source in block.sources.values():
                        if mode.sources is None or source.name in mode.sources:
                            yield from self._runs(mode, self.grid.tasks[task_name], block, fed, source)

    def _runs(self, mode: Mode, task: Task, block: Block, fed: str, source: Source) -> Iterator[Cell]:
        where = f"modes.{mode.name}, tasks.{task.name}, encoders.{block.name}, sources.{source.name}"
        own = merge(block.settings, block.by_task.get(task.name, {}), mode.settings, source.settings)
        _refuse(own, _OF_THE_GRID, where)
        if wrong := sorted(set(own) & set(_OF_THE_TASK)):
            raise InputError(f"{where}: settings.{wrong[0]} is for all cells of a task: tasks.{task.name}.settings")
        settings = merge(self.protocol(task), own, {"mode": mode.mode, "encoder": {"name": block.encoder}})
        settings = merge(settings, {"folds": 0, "repeats": 1})
        settings.get("split", {}).pop("file", None)
        settings = as_pretrained(settings) if fed == "pretrained" else settings
        resolved = self.checker.resolve("finetune", settings, where)
        if self.grid.matched and fed == "task" and not resolved["input"]["window"]:
            raise InputError(
                f"tasks.{task.name}.settings.input.window: missing; the preset matched feeds all sources the same "
                "Hounsfield window"
            )
        split = self.add_split(task)
        chains = [add_pretraining(self, block, source, run) for run in range(self._chains(mode, source))]
        search = task.search if mode.search and task.search else mode.search
        # the largest share first: the features of its patients serve the smaller ones
        for fraction in reversed(mode.fractions):
            name = "-".join([slug(task.name), slug(block.name), slug(source.name), slug(mode.name)])
            name += "-as-pretrained" if fed == "pretrained" else ""
            group = f"{name}-{percent(fraction)}"
            facts = {
                "stage": "finetune", "grid": self.grid.title, "source": source.name, "encoder": block.name,
                "network": block.encoder, "task": task.name, "mode": mode.mode, "input": fed, "fraction": fraction,
                "schedule": 1.0, "row": "" if fed == "task" else "as pretrained",
                "split_rule": self.protocols[task.name]["split"]["rule"],
                "comparison": "source" if self.grid.matched and fed == "task" else "system",
                "steps": resolved["train"]["steps"] if mode.mode == "full" else None,
            }  # fmt: skip
            base = Cell(
                group, "final", (split,), settings, facts,
                {"weights": source.weights if not source.stages else "", "data": self.data_identity(task.data)},
                group, task.data,
            )  # fmt: skip
            trials = []
            if search is not None:
                for lr in search.lr:
                    trial = self._seeded(base, search.seed, chains, fed, mode)
                    steps = max(1, round(resolved["train"]["steps"] * search.schedule))
                    tried = merge(trial.settings, {"train": {"lr": lr, "steps": steps}})
                    trials.append(
                        replace(
                            trial, id=f"search/{group}-lr{lr:g}-seed{search.seed}", kind="search", settings=tried,
                            facts={**trial.facts, "lr": lr, "steps": steps},
                        )
                    )  # fmt: skip
                yield from trials
            needs = tuple(trial.id for trial in trials)
            for seed in range(mode.seeds):
                cell = self._seeded(base, seed, chains, fed, mode)
                yield replace(cell, id=f"final/{group}-seed{seed}", needs=(*cell.needs, *needs))
                if mode.long_scratch > 1 and source.name == SCRATCH:
                    yield self._longer(cell, mode, resolved, f"final/{name}-long-{percent(fraction)}-seed{seed}", needs)

    def _chains(self, mode: Mode, source: Source) -> int:
        return min(self.grid.pretraining_runs, mode.seeds) if source.stages else 0

    def _seeded(self, base: Cell, seed: int, chains: list[str], fed: str, mode: Mode) -> Cell:
        """A cell with its seed: of the subset, the head, the order; and the pretraining run that goes with it."""
        uses = chains[seed % len(chains)] if chains else ""
        prepared = _prepared(base.data, base.settings) + (f" {base.facts['source']}" if fed == "pretrained" else "")
        prepares = [prepared]
        if mode.mode != "full":
            random = f" seed{seed}" if base.facts["source"] == SCRATCH else ""
            prepares.append(f"{base.facts['encoder']} {base.facts['source']} {uses}{random} {prepared}")
        return replace(
            base,
            settings=merge(base.settings, {"seed": seed, "fraction": base.facts["fraction"]}),
            facts={**base.facts, "seed": seed},
            needs=(*base.needs, *([uses] if uses else [])),
            uses=uses,
            prepares=tuple(prepares),
        )

    def _longer(self, cell: Cell, mode: Mode, resolved: Mapping[str, Any], name: str, needs: tuple[str, ...]) -> Cell:
        """Scratch with more steps: what pretraining saved in training time is given to it here."""
        steps = round(resolved["train"]["steps"] * mode.long_scratch)
        facts = {**cell.facts, "schedule": mode.long_scratch, "row": f"{mode.long_scratch:g} x {LONG}",
                 "comparison": "system", "steps": steps}  # fmt: skip
        longer = merge(cell.settings, {"train": {"steps": steps}})
        return replace(cell, id=name, settings=longer, facts=facts, needs=(*cell.needs, *needs))

    def add_cheap(self, task: Task, cheap: Cheap) -> None:
        """A line that needs no encoder of its own, once per share of the labels and seed."""
        modes = [mode for mode in self.grid.modes.values() if task.name in mode.tasks]
        if not modes:
            return
        # an encoder stands there because scans are prepared as its view wants them
        first = self.grid.blocks[modes[0].encoders[0]]
        name = cheap.encoder or first.encoder
        own = {} if cheap.encoder else merge(first.settings, first.by_task.get(task.name, {}))
        own.pop("head", None)  # some heads only learn, and no line has one
        settings = merge(
            self.protocol(task), own, {"encoder": {"name": name}, "mode": "linear", "folds": 0, "repeats": 1}
        )
        settings.get("split", {}).pop("file", None)
        self.checker.resolve("finetune", settings, f"cheap, tasks.{task.name}")
        split = self.add_split(task)
        for fraction in sorted({fraction for mode in modes for fraction in mode.fractions}):
            seeds = max(mode.seeds for mode in modes if fraction in mode.fractions)
            for seed in range(seeds if fraction < 1 or cheap.line == "slices" else 1):
                group = f"{slug(task.name)}-{cheap.line}-{percent(fraction)}"
                facts = {
                    "stage": "cheap", "grid": self.grid.title, "line": cheap.line, "source": _LINES[cheap.line],
                    "cheap": True, "encoder": "", "network": cheap.encoder, "task": task.name, "mode": "cheap",
                    "fraction": fraction, "seed": seed, "comparison": "system",
                }  # fmt: skip
                self.add(
                    Cell(
                        f"cheap/{group}-seed{seed}", "cheap", (split,),
                        merge(settings, {"seed": seed, "fraction": fraction}), facts,
                        {"line": cheap.line, "weights": cheap.weights, "data": self.data_identity(task.data)},
                        group, task.data, prepares=(_prepared(task.data, settings),),
                    )
                )  # fmt: skip
