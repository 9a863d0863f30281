"""Reads a grid from YAML; the first thing that is wrong is named by the path of its key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.grid.fields import Node, read_yaml
from benchmarks.grid.types import (
    LAYOUTS,
    SCRATCH,
    UNITS,
    Block,
    Budget,
    Cheap,
    Data,
    Grid,
    Mode,
    Search,
    Source,
    Stage,
    Task,
)
from voco.errors import InputError

CONFIG_DIR = Path(__file__).parents[1] / "configs"
_TOP = ("title", "preset", "data", "tasks", "pretraining", "pretraining_runs", "budget", "encoders", "modes",
        "fractions", "seeds", "inputs", "search", "long_scratch", "cheap", "primary", "margin", "report",
        "launch")  # fmt: skip


def find_config(name: str) -> Path:
    """A grid by path, or by its name in ``benchmarks/configs``.

    Raises:
        InputError: neither.
    """
    places = [Path(name), CONFIG_DIR / name, CONFIG_DIR / f"{name}.yaml"]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        known = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if "encoders" in path.read_text())
        raise InputError(f"no grid {name!r}: expected a YAML file or one of {', '.join(known)}")
    return found


def read_grid(path: str | Path) -> Grid:
    """Read and check a grid.

    Raises:
        InputError: the first thing that is wrong, by the path of its key.
    """
    path = Path(path)
    try:
        return _grid(Node(read_yaml(path)))
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def _grid(top: Node) -> Grid:
    at = top.keys(_TOP, ("title", "data", "tasks", "encoders", "modes"))
    data = {name: _data(name, node) for name, node in at["data"].items().items()}
    tasks = {name: _task(name, node, data) for name, node in at["tasks"].items().items()}
    stages = {name: _stage(name, node, data, tasks) for name, node in _of(at, "pretraining").items().items()}
    blocks = {name: _block(name, node, tasks, stages) for name, node in at["encoders"].items().items()}
    for name, found in (("data", data), ("tasks", tasks), ("encoders", blocks)):
        if not found:
            raise at[name].fail("expected at least one entry")
    matched = _of(at, "preset").value is not None and at["preset"].one_of(["matched"]) == "matched"
    budget = _budget(at["budget"]) if "budget" in at else None
    modes = _modes(at, tasks, blocks)
    report = _of(at, "report").keys(("reference",))
    launch = _of(at, "launch").keys(("processes", "jobs"))
    grid = Grid(
        title=at["title"].text(),
        data=data,
        tasks=tasks,
        stages=stages,
        blocks=blocks,
        modes=modes,
        budget=budget,
        matched=matched,
        pretraining_runs=at["pretraining_runs"].whole(1) if "pretraining_runs" in at else 1,
        primary=_of(at, "primary").list(lambda n: _primary(n, tasks, blocks, modes), 0) if "primary" in at else (),
        margin=_margin(at["margin"], tasks) if "margin" in at else {},
        cheap=at["cheap"].list(lambda n: _cheap(n, tasks), 0) if "cheap" in at else (),
        reference=report["reference"].text() if "reference" in report else SCRATCH,
        processes=launch["processes"].whole(1) if "processes" in launch else 1,
        jobs=launch["jobs"].whole(1) if "jobs" in launch else 1,
    )
    if matched:
        _check_matched(grid)
    return grid


def _of(at: Mapping[str, Node], name: str) -> Node:
    return at.get(name) or Node(None, name)


def _data(name: str, node: Node) -> Data:
    at = node.keys(("root", "phantom", "download"))
    if ("root" in at) == ("phantom" in at):
        raise node.fail("expected either root (a folder) or phantom (synthetic patients to make)")
    phantom: dict[str, Any] = {}
    if "phantom" in at:
        made = at["phantom"].keys(("layout", "cases", "seed", "severity", "spacing", "format"), ("layout", "cases"))
        phantom = {"layout": made["layout"].one_of(LAYOUTS), "cases": made["cases"].whole(1)}
        phantom["seed"] = made["seed"].whole() if "seed" in made else 0
        if "severity" in made:
            phantom["severity"] = made["severity"].number(0)
        if "spacing" in made:
            spacing = made["spacing"]
            if not isinstance(spacing.value, list) or len(spacing.value) != 3:
                raise spacing.fail(f"expected three numbers (D H W in mm), found {spacing.value!r}")
            phantom["spacing"] = [Node(v, f"{spacing.path}[{i}]").positive() for i, v in enumerate(spacing.value)]
        if "format" in made:
            phantom["format"] = made["format"].one_of(("nifti", "dicom", "mixed"))
    root = at["root"].text() if "root" in at else ""
    return Data(name, root, phantom, at["download"].text() if "download" in at else "")


def _task(name: str, node: Node, data: Mapping[str, Data]) -> Task:
    at = node.keys(("recipe", "data", "settings", "search"), ("recipe", "data"))
    search = _search(at["search"]) if "search" in at else None
    return Task(name, at["recipe"].text(), at["data"].name(list(data), "data"), _settings(at), search)


def _stage(name: str, node: Node, data: Mapping[str, Data], tasks: Mapping[str, Task]) -> Stage:
    at = node.keys(("stage", "recipe", "data", "settings", "exclude"), ("recipe", "data"))
    stage = at["stage"].one_of(("pretrain", "finetune")) if "stage" in at else "pretrain"
    exclude = at["exclude"].names(list(tasks), "tasks") if "exclude" in at else ()
    if exclude and stage == "finetune":
        raise at["exclude"].fail("is for pretraining on scans; a labeled set has its own split")
    return Stage(name, at["recipe"].text(), at["data"].name(list(data), "data"), stage, _settings(at), exclude)


def _block(name: str, node: Node, tasks: Mapping[str, Task], stages: Mapping[str, Stage]) -> Block:
    at = node.keys(("name", "sources", "settings", "by_task", "budget"), ("name", "sources"))
    sources = {own: _source(own, entry, stages) for own, entry in at["sources"].items().items()}
    if not sources:
        raise at["sources"].fail("expected at least one source, such as scratch: {}")
    by_task = {}
    for task, entry in _of(at, "by_task").items().items():
        Node(task, entry.path).name(list(tasks), "tasks")
        by_task[task] = entry.plain()
    budget = _budget(at["budget"]) if "budget" in at else None
    return Block(name, at["name"].text(), sources, _settings(at), by_task, budget)


def _source(name: str, node: Node, stages: Mapping[str, Stage]) -> Source:
    at = node.keys(("weights", "train", "settings", "download"))
    weights = at["weights"].text() if "weights" in at else ""
    chain = at["train"].names(list(stages), "pretraining") if "train" in at else ()
    if (name == SCRATCH) != (not weights and not chain):
        raise node.fail(
            f"the source {SCRATCH} starts from random weights, every other one has weights or train"
            if name != SCRATCH
            else f"{SCRATCH} starts from random weights: neither weights nor train"
        )
    return Source(name, weights, chain, _settings(at), at["download"].text() if "download" in at else "")


def _settings(at: Mapping[str, Node]) -> dict[str, Any]:
    return at["settings"].plain() if "settings" in at else {}


def _search(node: Node) -> Search:
    at = node.keys(("lr", "seed", "schedule"), ("lr",))
    rates = tuple(sorted(at["lr"].list(Node.positive)))
    schedule = at["schedule"].number(0.01, 1) if "schedule" in at else 1.0
    return Search(rates, at["seed"].whole() if "seed" in at else 0, schedule)


def _budget(node: Node) -> Budget:
    at = node.keys(("unit", "amount", "per"), ("unit", "amount"))
    per = at["per"].one_of(("stage", "chain")) if "per" in at else "stage"
    return Budget(at["unit"].one_of(UNITS), at["amount"].positive(), per)


_SHARED = ("fractions", "seeds", "inputs", "search", "long_scratch")


def _modes(at: Mapping[str, Node], tasks: Mapping[str, Task], blocks: Mapping[str, Block]) -> dict[str, Mode]:
    """Modes; what one does not say itself is said at the top of the file."""
    found = {}
    for name, node in at["modes"].items().items():
        own = node.keys(("mode", "tasks", "encoders", "sources", "settings", *_SHARED))
        said = {key: own.get(key) or at.get(key) for key in _SHARED}
        mode = (own.get("mode") or Node(name, node.path)).one_of(("full", "linear", "knn"))
        encoders = own["encoders"].names(list(blocks), "encoders") if "encoders" in own else tuple(blocks)
        known = sorted({source for block in encoders for source in blocks[block].sources})
        fractions = said["fractions"].list(_share) if said["fractions"] else (1.0,)
        search = _search(said["search"]) if said["search"] and mode == "full" else None
        found[name] = Mode(
            name=name,
            mode=mode,
            tasks=own["tasks"].names(list(tasks), "tasks") if "tasks" in own else tuple(tasks),
            encoders=encoders,
            fractions=tuple(sorted(fractions)),
            seeds=said["seeds"].whole(1) if said["seeds"] else 1,
            inputs=said["inputs"].list(lambda n: n.one_of(("task", "pretrained"))) if said["inputs"] else ("task",),
            sources=own["sources"].names(known, "the sources of its encoders") if "sources" in own else None,
            search=search,
            long_scratch=said["long_scratch"].number(1) if said["long_scratch"] and mode == "full" else 1.0,
            settings=_settings(own),
        )
        if search and search.seed >= found[name].seeds:
            raise (own.get("search") or at["search"]).fail(
                f"seed {search.seed} is none of the {found[name].seeds} seeds, counted from 0"
            )
    if not found:
        raise at["modes"].fail("expected at least one entry, such as linear: {}")
    return found


def _share(node: Node) -> float:
    value = node.positive()
    if value > 1:
        raise node.fail(f"expected a share of the labels, above 0 to 1; found {value:g}")
    return value


def _primary(node: Node, tasks, blocks: Mapping[str, Block], modes: Mapping[str, Mode]) -> dict[str, Any]:
    at = node.keys(("a", "b", "task", "encoder", "mode", "fraction"), ("a", "b"))
    encoders = [at["encoder"].name(list(blocks), "encoders")] if "encoder" in at else list(blocks)
    both = [name for name in encoders if {at["a"].value, at["b"].value} <= set(blocks[name].sources)]
    if not both or at["a"].value == at["b"].value:
        raise node.fail(
            f"a and b must be two sources of one encoder; found {at['a'].value!r} and {at['b'].value!r}, sources: "
            + "; ".join(f"{name}: {', '.join(blocks[name].sources)}" for name in encoders)
        )
    item: dict[str, Any] = {"a": at["a"].value, "b": at["b"].value}
    if "task" in at:
        item["task"] = at["task"].name(list(tasks), "tasks")
    if "encoder" in at:
        item["encoder"] = encoders[0]
    if "mode" in at:
        item["mode"] = at["mode"].one_of(sorted({mode.mode for mode in modes.values()}))
    if "fraction" in at:
        item["fraction"] = _share(at["fraction"])
    if not any(
        item.get("mode", mode.mode) == mode.mode
        and item.get("task", mode.tasks[0]) in mode.tasks
        and item.get("fraction", mode.fractions[0]) in mode.fractions
        and set(both) & set(mode.encoders)
        and (mode.sources is None or {item["a"], item["b"]} <= set(mode.sources))
        for mode in modes.values()
    ):
        raise node.fail("no mode of the grid has such cells")
    return item


def _cheap(node: Node, tasks: Mapping[str, Task]) -> Cheap:
    """A name, or a mapping that says more."""
    from benchmarks.cheap import LINES

    if not isinstance(node.value, dict):
        node = Node({"line": node.value}, node.path)
    at = node.keys(("line", "tasks", "encoder", "weights"), ("line",))
    line = Node(at["line"].value, node.path).one_of(LINES)
    own = at["tasks"].names(list(tasks), "tasks") if "tasks" in at else tuple(tasks)
    encoder = at["encoder"].text() if "encoder" in at else ""
    if (line == "slices") != encoder.startswith("slices/"):
        raise node.fail(
            "the line slices has a 2D network, such as {line: slices, encoder: slices/resnet18, weights: imagenet}; "
            "other lines have none"
        )
    return Cheap(line, own, encoder, at["weights"].text() if "weights" in at else "")


def _margin(node: Node, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Per task; one number is for all."""
    if not isinstance(node.value, dict):
        return {"": node.positive()}
    found = {}
    for name, entry in node.items().items():
        Node(name, entry.path).name(list(tasks), "tasks")
        found[name] = entry.positive()
    return found


def _check_matched(grid: Grid) -> None:
    """The preset ``matched``: within an encoder nothing differs but where the weights come from."""
    for name, block in grid.blocks.items():
        where = f"encoders.{name}"
        if SCRATCH not in block.sources or len(block.sources) < 2:
            raise InputError(f"{where}.sources: the preset matched compares {SCRATCH} with at least one other source")
        for source in block.sources.values():
            if source.settings:
                raise InputError(
                    f"{where}.sources.{source.name}.settings: sources of the preset matched share all settings; give "
                    f"them to {where}.settings, or leave out the preset"
                )
            if source.stages and (block.budget or grid.budget) is None:
                raise InputError(
                    "budget: missing; the preset matched pretrains every source equally long, such as {unit: steps, "
                    "amount: 10000}"
                )
    for mode in grid.modes.values():
        if "task" not in mode.inputs:
            raise InputError(f"modes.{mode.name}.inputs: the preset matched needs the input task, the same for all")
