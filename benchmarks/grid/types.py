"""What a grid is made of: data, pretraining, encoders with their sources, tasks, modes. Read by ``grid_config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.grid.fields import Node

SCRATCH = "scratch"
UNITS = ("steps", "volumes", "gpu_hours", "flops")
LAYOUTS = ("folder", "video", "rsna_pe", "lidc", "imageclef_tb", "rsna_trauma")


@dataclass(frozen=True)
class Data:
    """A data set: a folder that is there, or synthetic patients that are made when they are not.

    Attributes:
        root: folder; relative ones start from where the command runs.
        phantom: arguments of ``voco phantom``.
        download: where to get it and how to lay it out, for the error when it is not there.
    """

    name: str
    root: str = ""
    phantom: Mapping[str, Any] = field(default_factory=dict)
    download: str = ""


@dataclass(frozen=True)
class Search:
    """Learning rates that are tried with one seed, each source with the same ones.

    Attributes:
        schedule: steps of a trial as a share of those of a final cell; 1 = as long.
    """

    lr: tuple[float, ...]
    seed: int = 0
    schedule: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One pretraining, to be applied to any network.

    Attributes:
        stage: ``pretrain``, or ``finetune`` for supervised pretraining on another labeled set.
        exclude: tasks whose test patients must not be seen.
    """

    name: str
    recipe: str
    data: str
    stage: Literal["pretrain", "finetune"] = "pretrain"
    settings: Mapping[str, Any] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How much pretraining each source gets.

    Attributes:
        unit: what is equal: ``steps``, ``volumes``, ``gpu_hours`` or ``flops``.
        amount: of it.
        per: ``stage``: every stage of a chain gets it; ``chain``: the stages of a chain share it.
    """

    unit: Literal["steps", "volumes", "gpu_hours", "flops"]
    amount: float
    per: Literal["stage", "chain"] = "stage"


@dataclass(frozen=True)
class Source:
    """Where the weights come from: published ones, own pretraining, one after the other, or nothing.

    Attributes:
        weights: tag, file, folder or hub id to start from; empty for random weights.
        stages: own pretraining stages that follow.
        settings: finetune settings of this source alone; a source that has any is no matched one.
        download: how to get weights that are a file or folder, for the error when they are not there.
    """

    name: str
    weights: str = ""
    stages: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    download: str = ""


@dataclass(frozen=True)
class Block:
    """One network with its sources.

    Attributes:
        encoder: registered name.
        settings: finetune settings of all its sources; ``by_task`` those for single tasks.
        budget: of its pretraining, where it is not that of the grid.
    """

    name: str
    encoder: str
    sources: Mapping[str, Source]
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: Budget | None = None


@dataclass(frozen=True)
class Task:
    """One labeled set with its protocol: a recipe of the finetune stage and what differs from it."""

    name: str
    recipe: str
    data: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Search | None = None


@dataclass(frozen=True)
class Mode:
    """How much is learned, for which part of the grid.

    Attributes:
        mode: of the finetune stage.
        tasks, encoders, fractions: for which; ``sources`` None = all of an encoder.
        seeds: how many.
        inputs: ``task``: what the task's recipe says; ``pretrained``: what the encoder was pretrained with.
        search: None where nothing is searched by the grid (linear probes choose their penalty themselves).
        long_scratch: scratch is also trained with a schedule that many times longer; 1 = it is not.
    """

    name: str
    mode: Literal["full", "linear", "knn"]
    tasks: tuple[str, ...]
    encoders: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: int
    inputs: tuple[str, ...]
    sources: tuple[str, ...] | None = None
    search: Search | None = None
    long_scratch: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cheap:
    """A line that a good encoder must beat (``benchmarks/cheap.py``).

    Attributes:
        line: its name there.
        tasks: for which.
        encoder, weights: 2D network of the line ``slices``.
    """

    line: str
    tasks: tuple[str, ...]
    encoder: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Grid:
    """A whole YAML file, checked."""

    title: str
    data: Mapping[str, Data]
    tasks: Mapping[str, Task]
    stages: Mapping[str, Stage]
    blocks: Mapping[str, Block]
    modes: Mapping[str, Mode]
    budget: Budget | None = None
    matched: bool = False
    pretraining_runs: int = 1
    primary: tuple[Mapping[str, Any], ...] = ()
    margin: Mapping[str, float] = field(default_factory=dict)
    cheap: tuple[Cheap, ...] = ()
    reference: str = SCRATCH
    processes: int = 1
    jobs: int = 1

    def with_data(self, places: Mapping[str, str]) -> Grid:
        """The same grid with some data sets taken from other folders.

        Raises:
            InputError: a name that the grid does not have.
        """
        known = Node(None, "--data")
        for name in places:
            replace(known, value=name).name(list(self.data), "data")
        moved = {name: Data(name, root=path, download=self.data[name].download) for name, path in places.items()}
        return replace(self, data={**self.data, **moved})
