"""Recipes with the name of a paper against tables of what was published: equal, or listed in the head with a reason."""

from __future__ import annotations

import csv
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

import finetune.config
import pretrain.config
from voco.config import flatten, parse, to_dict

ROOT = Path(pretrain.config.__file__).parents[1]
STAGES = ("pretrain", "finetune", "benchmarks")
CERTAINTIES = {"code", "paper", "secondary", "unconfirmed"}
# Names of papers and methods; `video_ucf50` is named after data.
NAMED = re.compile(r"ke2023|viptt|voco2d_published|voco2d_rsna|voco3d_v\d")
# Files that follow another recipe.
FOLLOW = {
    "ke2023/swin3d_t": ("ke2023_rsna", "ke2023_lidc"),
    "ke2023/csn_r101": ("ke2023_rsna", "ke2023_lidc"),
    "ke2023/penet": ("ke2023_rsna", "ke2023_lidc"),
    "ke2023/mvit_rsna": ("ke2023_rsna",),
}
# What no paper says: where things lie, how often they are looked at and kept, and what changes memory alone.
OWN = re.compile(
    r"out|plan|fold|eval|allow_seen|(log|probe|score|data|eval)\..*|task\.(table|labels_csv)|method\.(name|preset)"
    r"|encoder\.activation_checkpointing|train\.(threads|save_every|keep|resume|milestones|max_skipped)"
)
# What papers do not have, and the value at which it changes nothing.
OFF = {
    "mode": "full", "learn": "study", "fraction": 1.0, "fraction_val": "share", "folds": 0, "repeats": 1, "tta": False,
    "seed": 0, "encoder.name": "", "encoder.weights": None, "encoder.depth_stride": 0, "encoder.freeze": [],
    "encoder.window": [], "input.spacing": [], "input.stride": [], "input.stored": [], "input.mean": [],
    "input.std": [], "input.windows": 0, "input.chunk": 0, "split.rule": "auto", "split.file": None, "split.seed": 0,
    "head.features": "pool", "head.pooling": "mean", "train.accumulate": 1, "train.schedule_steps": 0,
    "train.head_lr": 1.0, "train.layer_decay": 1.0, "train.batchnorm": "all", "train.ema": 0.0,
    "train.class_weights": "none", "train.balance": False, "train.match_depth": False, "train.label_smoothing": 0.0,
    "train.augment": True, "train.patience": 0, "train.plateau": 0, "augment.turn_prob": 0.0, "augment.noise_hu": 0.0,
    "method.geometry.crop_depth": None, "method.geometry.window_depth": None, "method.geometry.network_size": None,
    "method.clip.span_s": 0.0, "method.options.norm_scope": "global", "encoder.which": "auto", "data.offset": None,
    "train.extend": "", "task.unknown": None, "probe.unknown": None,
}  # fmt: skip
# What has no meaning beside a value of another setting.
VOID = {
    "train.momentum": {"train.optimizer": ("adam", "adamw")}, "train.dampening": {"train.optimizer": ("adam", "adamw")},
    "train.betas": {"train.optimizer": ("sgd",)}, "train.amsgrad": {"train.optimizer": ("sgd",)},
    "train.decay": {"train.weight_decay": (0.0,)}, "train.plateau_factor": {"train.plateau": (0,)},
    "head.spatial": {"head.features": ("pool",)}, "head.sequence": {"head.features": ("pool",)},
    "split.test": {"split.rule": ("ke2023",), "folds": (5,)}, "split.val": {"split.rule": ("ke2023",)},
    "task.mask_use": {"task.masks": ("none",)}, "method.clip.stride": {"method.clip.rule": ("first",)},
    "method.clip.fps": {"method.clip.rule": ("first",)},
    "method.options.inter_scope": {"method.options.inter_weight": (0.0,)},
    "method.options.dropout_rate": {"method.options.feature_dropout": ("none",)},
    "method.augmentation.shift_range": {"method.augmentation.shift_prob": (0.0,)},
}  # fmt: skip
BULLET = "# - "


@functools.cache
def tables() -> dict[tuple[str, str], list[dict[str, str]]]:
    found = defaultdict(list)
    for stage in STAGES:
        with open(ROOT / stage / "configs" / "published.csv", newline="") as file:
            for row in csv.DictReader(file):
                found[stage, row["recipe"]].append(row)
    return dict(found)


def path_of(stage: str, name: str) -> Path:
    return ROOT / stage / "configs" / f"{name}.yaml"


def listed(path: Path) -> list[str]:
    """The departures that the head of a recipe lists."""
    found, inside = [], False
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if line.startswith(BULLET):
            found, inside = [*found, line.removeprefix(BULLET)], True
        elif inside and line.startswith("#   "):
            found[-1] += " " + line.removeprefix("#   ")
        else:
            inside = False
    return found


def resolved(stage: str, name: str, folder: Path) -> list[dict]:
    """Flat settings of a recipe, defaults included; of a grid what its file says."""
    if stage == "benchmarks":
        return [flat(yaml.safe_load(path_of(stage, name).read_text()))]
    schema = {"pretrain": pretrain.config.SCHEMA, "finetune": finetune.config.schema()}[stage]
    chains = [(first, name) for first in FOLLOW.get(name, ())] or [(name,)]
    return [
        flat(to_dict(parse(schema, [*(x for one in chain for x in ("--config", one)), "--out", str(folder)])))
        for chain in chains
    ]


def flat(nested) -> dict:
    """Settings by dotted name, those that are mappings themselves (``encoder.arguments``) also whole."""
    found = dict(flatten(nested))

    def whole(values, prefix):
        for key, value in values.items():
            if isinstance(value, dict):
                found[f"{prefix}{key}"] = value
                whole(value, f"{prefix}{key}.")

    whole(nested, "")
    return found


def plain(value):
    """Tuples as lists, and numbers as YAML reads them or not: ``1e-05`` is a text to it."""
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[\d.]+e[-+]?\d+", value):
        return float(value)
    return value


@pytest.mark.parametrize("key", sorted(tables()), ids="/".join)
def test_every_published_value_is_that_of_the_recipe_or_listed_with_a_reason(key, tmp_path):
    departures = listed(path_of(*key))
    for settings in resolved(*key, tmp_path):
        for row in tables()[key]:
            name, reason = row["setting"], row["departure"]
            assert row["certainty"] in CERTAINTIES and row["source"], row
            if not name:
                assert reason, row
            else:
                assert name in settings, f"{name} is no setting of {key}"
                same = plain(settings[name]) == plain(yaml.safe_load(row["published"]))
                assert same != bool(reason), f"{name}: published {row['published']}, here {settings[name]}: {reason!r}"
    wanted = dict.fromkeys(row["departure"] for row in tables()[key] if row["departure"])
    assert sorted(departures) == sorted(wanted)
    assert all(len(reason) > 20 and reason.endswith(".") for reason in departures)


@pytest.mark.parametrize("key", sorted(k for k in tables() if k[0] != "benchmarks"), ids="/".join)
def test_every_setting_that_changes_a_number_has_a_row(key, tmp_path):
    known = {row["setting"] for row in tables()[key]}
    own = flat(yaml.safe_load(path_of(*key).read_text()))
    for settings in resolved(*key, tmp_path):
        # of a file that follows another one, what it says itself
        names = [name for name in settings if key[1] not in FOLLOW or name in own]
        for name in names:
            value = settings[name]
            idle = any(settings.get(other) in values for other, values in VOID.get(name, {}).items())
            inside = any(name.startswith(f"{setting}.") for setting in known if setting)
            if isinstance(value, dict) or name in known or inside or (OWN.fullmatch(name) and name not in OFF):
                continue
            assert idle or (name in OFF and plain(value) == OFF[name]), f"{name}: {value!r}"


def test_every_recipe_with_the_name_of_a_paper_has_a_table():
    for stage in STAGES:
        folder = ROOT / stage / "configs"
        names = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}
        assert {name for name in names if NAMED.search(name)} == {name for kind, name in tables() if kind == stage}


def test_tables_travel_with_the_package():
    text = (ROOT / "setup.cfg").read_text()
    for line in (
        "pretrain = configs/*.yaml, configs/*.csv",
        "finetune = configs/*.yaml, configs/*/*.yaml, configs/*.csv",
        "benchmarks = configs/*.yaml, configs/*.csv, published/*.csv",
    ):
        assert line in text


def test_the_learning_rate_of_2d_voco_is_that_of_step_60000_of_250000(tmp_path):
    """By hand: 1e-4 (1 + cos(pi 55,000 / 245,000)) / 2 at the end."""
    from voco.engine.optim import learning_rate

    (settings,) = resolved("pretrain", "voco2d_published_v2", tmp_path)
    steps, warmup = settings["train.schedule_steps"], settings["train.warmup"]
    last = learning_rate(settings["train.steps"], steps=steps, lr=settings["train.lr"], warmup=warmup)
    assert last == pytest.approx(8.80723e-5, rel=1e-5)
