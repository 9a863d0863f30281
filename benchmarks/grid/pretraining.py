"""Pretraining runs of a grid: chains that start from one another, each stage with the same budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.grid.cell import Cell, slug
from benchmarks.grid.settings import digest, merge
from benchmarks.grid.types import Block, Source, Stage
from voco.errors import InputError

if TYPE_CHECKING:
    from benchmarks.grid.maker import Maker

CALIBRATION_STEPS = 16


def add_pretraining(maker: Maker, block: Block, source: Source, run: int) -> str:
    """Add the chain of own pretraining of a source.

    Args:
        run: which of several pretraining runs with different seeds.

    Returns:
        Id of its last run.
    """
    before = ""
    for place in range(len(source.stages)):
        before = _add_stage(maker, block, source, run, place, before)
    return before


def _add_stage(maker: Maker, block: Block, source: Source, run: int, place: int, before: str) -> str:
    stage = maker.grid.stages[source.stages[place]]
    where = f"pretraining.{stage.name}"
    shape = {k: v for k, v in block.settings.get("encoder", {}).items() if k in ("arguments", "depth_stride")}
    settings = merge(
        maker.recipe(stage.stage, stage.recipe, f"{where}.recipe"), stage.settings,
        {"encoder": {"name": block.encoder, **shape}, "seed": run},
    )  # fmt: skip
    if settings["encoder"].get("weights"):  # of the recipe; here the source says what a run starts from
        settings = merge(settings, {"encoder": {"weights": None}})
    resolved = maker.checker.resolve(stage.stage, settings, f"{where}.settings")
    if stage.stage == "finetune" and (resolved["folds"] or resolved["mode"] != "full"):
        raise InputError(f"{where}.settings: supervised pretraining trains one network: mode full, folds 0")
    needs = [*maker.add_data(stage.data), *([before] if before else [])]
    needs += [maker.add_split(maker.grid.tasks[task]) for task in stage.exclude]
    identity: dict[str, Any] = {"stage": stage.stage, "data": maker.data_identity(stage.data)}
    identity |= {"weights": source.weights} if source.weights and not before else {}
    budget, calibrated, part = block.budget or maker.grid.budget, "", ""
    if budget is not None:
        share = len(source.stages) if budget.per == "chain" else 1
        amount, part = budget.amount / share, f"-part-of-{share}" if share > 1 else ""
        if budget.unit in ("steps", "volumes"):
            steps = amount if budget.unit == "steps" else amount / resolved["train"]["batch_size"]
            settings = merge(settings, {"train": {"steps": max(1, round(steps))}})
        else:
            calibrated = _add_calibration(maker, block, stage, settings, budget.unit)
            needs.append(calibrated)
            identity["budget"] = {"unit": budget.unit, "amount": amount}
    steps = settings.get("train", {}).get("steps", resolved["train"]["steps"])
    facts = {
        "stage": stage.stage, "name": stage.name, "encoder": block.name, "run": run, "calibrated": calibrated,
        "weights": "" if before else source.weights, "budget": identity.get("budget"), "exclude": list(stage.exclude),
        "steps": None if calibrated else steps, "batch_size": resolved["train"]["batch_size"],
    }  # fmt: skip
    start = slug(source.weights.rpartition("/")[2]) if source.weights else ""
    chain = "-".join(filter(None, (block.name, start, *source.stages[: place + 1])))
    prepares = f"{stage.stage} {stage.data} {digest([settings.get('data'), settings.get('method')])}"
    cell = Cell(
        f"pretrain/{slug(chain)}{part}-run{run}", "pretrain", tuple(needs), settings, facts, identity,
        data=stage.data, uses=before, prepares=(prepares,),
    )  # fmt: skip
    return maker.add(cell)


def _add_calibration(maker: Maker, block: Block, stage: Stage, settings: Mapping[str, Any], unit: str) -> str:
    """A few steps that tell what one costs."""
    if stage.stage != "pretrain":
        raise InputError(
            f"budget.unit: {unit} is for pretraining on scans or clips; pretraining.{stage.name} is "
            "supervised, use steps or volumes"
        )
    few = {"steps": CALIBRATION_STEPS, "warmup": 0, "milestones": [], "save_every": CALIBRATION_STEPS}
    short = merge(settings, {"train": few, "log": {"every": 1, "with": []}, "data": {"heldout": 0}, "seed": 0})
    if settings["encoder"].get("freeze"):  # it starts from random weights, which are not kept: a little too dear
        short = merge(short, {"encoder": {"freeze": []}})
    cell = Cell(
        f"calibrate/{slug(block.name)}-{slug(stage.name)}",
        "calibrate",
        tuple(maker.add_data(stage.data)),
        short,
        {"stage": "pretrain", "name": stage.name, "encoder": block.name, "steps": CALIBRATION_STEPS},
        {"stage": "pretrain", "data": maker.data_identity(stage.data)},
        data=stage.data,
    )
    return maker.add(cell)
