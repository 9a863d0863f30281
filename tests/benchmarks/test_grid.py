from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.grid.cell import slug
from benchmarks.grid.config import find_config, read_grid
from benchmarks.grid.expand import expand
from benchmarks.grid.settings import Checker, as_pretrained, digest, merge
from tests.benchmarks.grids import Trusting, make_store, make_work, write_grid_file
from tests.benchmarks.test_grid_config import put
from voco.errors import InputError


def test_every_cell_is_there_once(tmp_path):
    work = make_work(tmp_path)
    # full: 3 sources x 2 seeds + 2 longer ones; linear: 3 sources x 2 shares x 2 seeds; search: 3 sources x 3 rates
    assert Counter(cell.kind for cell in work.cells.values()) == {
        "data": 2, "split": 1, "pretrain": 3, "search": 9, "final": 6 + 2 + 12,
    }  # fmt: skip
    assert "final/block-3d-video-to-voco3d-linear-50pct-seed1" in work.cells
    done = set()
    for cell in work.cells.values():
        assert set(cell.needs) <= done, f"{cell.id} stands before what it needs"
        done.add(cell.id)


def test_only_the_source_differs_within_a_matched_block(tmp_path):
    work = make_work(tmp_path)
    finals = [cell for cell in work.of("final") if cell.facts["mode"] == "linear" and cell.facts["seed"] == 1]
    by_fraction = {}
    for cell in finals:
        by_fraction.setdefault(cell.facts["fraction"], []).append(cell)
    for cells in by_fraction.values():
        assert len({digest(cell.settings) for cell in cells}) == 1 and len({cell.uses for cell in cells}) == 3
    assert {cell.facts["comparison"] for cell in finals} == {"source"}


def test_the_seed_is_that_of_subset_head_and_order(tmp_path):
    work = make_work(tmp_path)
    first, second = (work.cells[f"final/block-3d-scratch-linear-50pct-seed{seed}"] for seed in (0, 1))
    assert (first.settings["seed"], second.settings["seed"]) == (0, 1)
    assert merge(first.settings, {"seed": 1}) == second.settings


def test_the_longer_schedule_of_scratch_is_no_source_effect(tmp_path):
    long = make_work(tmp_path).cells["final/block-3d-scratch-full-long-100pct-seed0"]
    assert long.settings["train"]["steps"] == 9000 and long.facts["schedule"] == 3  # the recipe has 3,000
    assert long.facts["comparison"] == "system" and long.facts["row"] == "3 x longer schedule"


def test_chains_start_from_one_another_and_share_their_beginning(tmp_path):
    work = make_work(tmp_path, put("encoders/3d/sources/video", {"train": ["video"]}))
    chain = work.cells["pretrain/3d-video-voco3d-run0"]
    assert chain.uses == "pretrain/3d-video-run0" and chain.uses in chain.needs
    assert work.cells["final/block-3d-video-linear-50pct-seed0"].uses == chain.uses
    assert [cell.settings["train"]["steps"] for cell in work.of("pretrain")] == [10, 10, 10]


def test_a_budget_of_a_chain_is_divided_among_its_stages(tmp_path):
    work = make_work(tmp_path, put("budget", {"unit": "volumes", "amount": 160, "per": "chain"}))
    steps = {cell.name: cell.settings["train"]["steps"] for cell in work.of("pretrain")}
    # batches of 8 volumes and 16 clips
    assert steps == {
        "3d-voco3d-run0": 20, "3d-video-part-of-2-run0": 5, "3d-video-voco3d-part-of-2-run0": 10,
    }  # fmt: skip


def test_every_stage_of_an_encoder_can_have_a_budget_of_its_own(tmp_path):
    work = make_work(tmp_path, put("encoders/3d/budget", {"unit": "steps", "amount": 7}))
    assert {cell.settings["train"]["steps"] for cell in work.of("pretrain")} == {7}


def test_several_pretraining_runs_go_round_the_seeds(tmp_path):
    work = make_work(tmp_path, put("pretraining_runs", 2))
    uses = [work.cells[f"final/block-3d-voco3d-linear-50pct-seed{seed}"].uses for seed in (0, 1)]
    assert uses == ["pretrain/3d-voco3d-run0", "pretrain/3d-voco3d-run1"]
    assert [work.cells[name].settings["seed"] for name in uses] == [0, 1]


def test_budgets_of_hours_are_measured_first(tmp_path):
    work = make_work(tmp_path, put("budget", {"unit": "gpu_hours", "amount": 2}))
    assert {cell.name for cell in work.of("calibrate")} == {"3d-video", "3d-voco3d"}
    for cell in work.of("pretrain"):
        assert cell.facts["calibrated"] in cell.needs and cell.facts["steps"] is None


def test_the_input_of_the_pretraining_is_what_the_encoder_asks_for(tmp_path):
    work = make_work(tmp_path, put("inputs", ["task", "pretrained"]))
    cells = [c for c in work.of("final") if c.facts["input"] == "pretrained"]
    assert len(cells) == len(work.of("final")) / 2 and {c.facts["comparison"] for c in cells} == {"system"}
    assert not any("window" in c.settings["input"] for c in cells)
    assert as_pretrained({"input": {"window": [1, 2], "size": [8], "crop_body": False}}) == {
        "input": {"crop_body": False}
    }


def test_published_weights_are_part_of_what_a_cell_is(tmp_path):
    a = make_store(tmp_path / "a", put("encoders/3d/sources/kinetics", {"weights": "tag_a"}))
    b = make_store(tmp_path / "a", put("encoders/3d/sources/kinetics", {"weights": "tag_b"}))
    name, other = (f"final/block-3d-{source}-linear-50pct-seed0" for source in ("kinetics", "scratch"))
    assert a.digest(a.work.cells[name]) != b.digest(b.work.cells[name])
    assert a.digest(a.work.cells[other]) == b.digest(b.work.cells[other])


@pytest.mark.parametrize(
    "path, value, changes",
    [
        ("modes/linear/settings", {"probe": {"neighbours": 3}}, True),
        ("pretraining/voco3d/settings", {"train": {"lr": 0.5}}, True),
        ("data/scans/phantom/seed", 5, True),
        ("tasks/block/settings/split", {"test": 0.4}, True),
        ("seeds", 3, False),
        ("fractions", [0.25, 0.5, 1.0], False),
        ("margin", 0.5, False),
        ("title", "another", False),
        ("search/lr", [0.1, 0.2], False),
        ("launch", {"jobs": 2}, False),
    ],
)
def test_the_digest_of_a_cell_is_that_of_all_it_hangs_on_and_nothing_else(tmp_path, path, value, changes):
    name = "final/block-3d-voco3d-linear-50pct-seed1"
    before, after = make_store(tmp_path), make_store(tmp_path, put(path, value))
    assert (before.digest(before.work.cells[name]) != after.digest(after.work.cells[name])) == changes


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("encoders/3d/settings", {"task": {"kind": "auto"}}, "settings.task is for all cells of a task: tasks.block"),
        ("modes/full/settings", {"fraction": 0.3}, "settings.fraction is set by the grid itself"),
        ("tasks/block/settings/seed", 3, "tasks.block: settings.seed is set by the grid itself"),
        ("tasks/block/recipe", "tabel", "tasks.block.recipe: no recipe 'tabel'; give a path to a YAML file or one of:"),
        ("tasks/block/settings/input", {}, "tasks.block.settings.input.window: missing; the preset matched"),
        ("encoders/3d/sources/Voco3D", {"train": ["video"]}, "two cells would be called"),
    ],
)
def test_settings_that_contradict_the_grid(tmp_path, path, value, message):
    with pytest.raises(InputError) as caught:
        make_work(tmp_path, put(path, value))
    assert message in str(caught.value)


def test_a_budget_of_operations_is_not_for_supervised_stages(tmp_path):
    def change(grid):
        grid["pretraining"]["voco3d"] = {"stage": "finetune", "recipe": "table", "data": "labeled"}
        grid["budget"] = {"unit": "flops", "amount": 1e15}

    with pytest.raises(InputError, match=r"pretraining\.voco3d is supervised, use steps or volumes"):
        make_work(tmp_path, change)


def test_supervised_pretraining_is_a_run_of_the_finetune_stage(tmp_path):
    def change(grid):
        grid["pretraining"]["ct"] = {"stage": "finetune", "recipe": "table", "data": "labeled"}
        grid["encoders"]["3d"]["sources"]["ct"] = {"train": ["ct"]}

    cell = make_work(tmp_path, change).cells["pretrain/3d-ct-run0"]
    assert cell.stage == "finetune" and cell.settings["train"]["steps"] == 10


def test_cheap_lines_are_cells_with_their_shares_and_seeds(tmp_path):
    work = make_work(tmp_path, put("cheap", ["prior", {"line": "slices", "encoder": "slices/resnet18"}]))
    names = [cell.name for cell in work.of("cheap")]
    assert [name for name in names if "prior" in name] == [
        "block-prior-50pct-seed0", "block-prior-50pct-seed1", "block-prior-100pct-seed0",
    ]  # fmt: skip
    assert sum("slices" in name for name in names) == 4
    assert work.cells["cheap/block-slices-50pct-seed0"].settings["encoder"]["name"] == "slices/resnet18"


def test_the_stages_themselves_refuse_what_they_do_not_know(tmp_path):
    grid = read_grid(write_grid_file(tmp_path, put("modes/linear/settings", {"train": {"stepps": 3}})))
    with pytest.raises(InputError, match=r"modes.linear, .* does not accept these settings: .*stepps"):
        expand(grid, Checker())
    grid = read_grid(write_grid_file(tmp_path, put("pretraining/voco3d/settings", {"train": {"lr": "much"}})))
    with pytest.raises(InputError, match=r"pretraining.voco3d.settings: pretrain/run.py .*train.lr"):
        expand(grid, Checker())
    grid = read_grid(write_grid_file(tmp_path, put("tasks/block/settings/train", {"layer_decay": 2})))
    with pytest.raises(InputError, match=r"tasks.block.settings: --train.layer_decay is a factor"):
        expand(grid, Checker())


def test_the_stages_accept_the_settings_of_the_demo():
    work = expand(read_grid(find_config("demo")), Checker())
    assert len(work.of("pretrain")) == 6 and len(work.of("final")) > 90


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matched", "ke2023_table1", "viptt2021", "voco2d_rsna2023"])
def test_the_stages_accept_the_settings_of_all_shipped_grids(name):
    assert expand(read_grid(find_config(name)), Checker()).of("final")


def test_the_grid_of_ke_et_al_has_every_cell_of_their_table():
    from benchmarks.published import read_published

    work = expand(read_grid(find_config("ke2023_table1")), Trusting())
    finals = [cell for cell in work.of("final") if cell.facts["seed"] == 0]
    assert len(finals) == len(read_published("ke2023_table1")) == 180
    names = {(c.facts["task"].removesuffix("_slices"), c.facts["encoder"], c.facts["source"]) for c in finals}
    assert len(names) == 2 * 10 * 4 and {c.facts["comparison"] for c in finals} == {"system"}
    readers = {c.facts["encoder"] for c in finals if c.facts["task"].endswith("_slices")}
    assert readers == {"resnet18", "resnext101", "lrcn"}
    chain = work.cells["pretrain/resnet18-tv-in1k-stanford-slices-run0"]
    assert chain.stage == "finetune" and chain.settings["encoder"]["name"] == "slices/resnet18"
    steps = {c.facts["task"]: c.settings["train"]["steps"] for c in finals if c.facts["encoder"] == "lrcn"}
    assert steps == {"rsna_slices": 8000, "lidc_slices": 1150}


def test_the_source_says_what_a_stage_starts_from_and_not_its_recipe():
    """The recipe of ViPTT-Net's videos starts from ImageNet weights and freezes them."""
    work = expand(read_grid(find_config("viptt2021")), Trusting())
    begun = {c.identity.get("weights", ""): c.settings["encoder"] for c in work.of("pretrain")}
    assert {weights: own["freeze"] for weights, own in begun.items()} == {"": [], "slices/vgg16.imagenet": ["slices"]}
    assert [own["weights"] for own in begun.values()] == [None, None]


def test_names_of_folders():
    assert slug("video -> voco3d") == "video-to-voco3d" and slug("slices/ResNet18.tv") == "slices-resnet18.tv"
    assert merge({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}}


def test_a_thousand_cells_are_expanded_quickly(tmp_path):
    import time

    grid = read_grid(write_grid_file(tmp_path, put("seeds", 100)))
    start = time.process_time()
    work = expand(grid, Trusting())
    assert len(work.of("final")) == 1000 and time.process_time() - start < 5
