from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.cheap import LINES
from benchmarks.grid.config import CONFIG_DIR, find_config, read_grid
from benchmarks.grid.maker import _LINES
from tests.benchmarks.grids import TINY, write_grid_file
from voco.errors import InputError

SHIPPED = ("demo", "matched", "ke2023_table1", "viptt2021", "voco2d_rsna2023")


def put(path: str, value):
    """Set (or, with ..., remove) an entry of a nested dict by dotted path."""

    def change(grid):
        *above, last = path.split("/")
        for name in above:
            grid = grid[name]
        grid.pop(last) if value is ... else grid.__setitem__(last, value)

    return change


WRONG = [
    ("sceds", 3, "sceds: unknown key; did you mean seeds?"),
    ("tasks/block/setings", {}, "tasks.block.setings: unknown key; did you mean settings?"),
    ("tasks/block/data", "label", "tasks.block.data: 'label' is no entry of data; did you mean labeled?"),
    ("tasks", {}, "tasks: expected at least one entry"),
    ("title", ..., "title missing"),
    ("title", 3, "title: expected text, found 3"),
    ("seeds", 0, "seeds: expected a whole number of at least 1, found 0"),
    ("seeds", True, "seeds: expected a whole number"),
    ("fractions", [0.5, 1.5], "fractions[1]: expected a share of the labels"),
    ("fractions", [0.5, 0.5], "fractions: 0.5 stands twice"),
    ("fractions", 0.5, "fractions: expected a list, found 0.5"),
    (
        "search",
        {"lr": ["1e-3"]},
        "search.lr[0]: expected a number, found '1e-3'; YAML reads that as text, write 1.0e-03",
    ),
    ("search", {"lr": [0.1], "seed": 7}, "search: seed 7 is none of the 2 seeds"),
    ("budget", {"unit": "epochs", "amount": 3}, "budget.unit: expected one of steps, volumes, gpu_hours, flops"),
    ("budget", ..., "budget: missing; the preset matched pretrains every source equally long"),
    ("preset", "fair", "preset: expected one of matched; found 'fair'"),
    ("pretraining/voco3d/exclude", ["blocks"], "pretraining.voco3d.exclude[0]: 'blocks' is no entry of tasks"),
    (
        "encoders/3d/sources/scratch",
        {"weights": "x"},
        "encoders.3d.sources.scratch: scratch starts from random weights",
    ),
    ("encoders/3d/sources/other", {}, "encoders.3d.sources.other: the source scratch starts from random weights"),
    (
        "encoders/3d/sources/voco3d/settings",
        {"train": {}},
        "encoders.3d.sources.voco3d.settings: sources of the preset",
    ),
    ("encoders/3d/sources/voco3d/train", ["video", "voco"], "train[1]: 'voco' is no entry of pretraining"),
    ("modes/full/mode", "half", "modes.full.mode: expected one of full, linear, knn"),
    ("modes/probe", {}, "modes.probe: expected one of full, linear, knn; found 'probe'"),
    ("modes/full/inputs", ["pretrained"], "modes.full.inputs: the preset matched needs the input task"),
    ("modes/full/sources", ["vocco"], "modes.full.sources[0]: 'vocco' is no entry of the sources of its encoders"),
    ("primary", [{"a": "voco3d", "b": "kinetics"}], "primary[0]: a and b must be two sources of one encoder"),
    ("primary", [{"a": "voco3d", "b": "scratch", "fraction": 0.3}], "primary[0]: no mode of the grid has such cells"),
    ("primary", [{"a": "voco3d"}], "primary[0]: b missing"),
    ("margin", {"blocc": 0.1}, "margin.blocc: 'blocc' is no entry of tasks"),
    ("margin", -1, "margin: expected a number above 0"),
    ("cheap", ["prior", "magic"], "cheap[1]: expected one of prior"),
    ("cheap", ["slices"], "cheap[0]: the line slices has a 2D network"),
    ("data/labeled", {"root": "a", "phantom": {}}, "data.labeled: expected either root"),
    ("data/scans/phantom/layout", "rsna", "data.scans.phantom.layout: expected one of folder"),
    ("data/scans/phantom/spacing", [1, 2], "data.scans.phantom.spacing: expected three numbers"),
    ("data", [], "data: expected a mapping, found a list"),
]


@pytest.mark.parametrize("path, value, message", WRONG, ids=[f"{path}={value}"[:60] for path, value, _ in WRONG])
def test_a_wrong_value_is_named_by_its_path(tmp_path, path, value, message):
    file = write_grid_file(tmp_path, put(path, value))
    with pytest.raises(InputError) as caught:
        read_grid(file)
    assert message in str(caught.value) and str(caught.value).startswith(str(file))


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    (tmp_path / "grid.yaml").write_text(TINY + "seeds: 3\n")
    with pytest.raises(InputError, match="key 'seeds' stands twice"):
        read_grid(tmp_path / "grid.yaml")


def test_what_is_no_yaml_or_no_file(tmp_path):
    (tmp_path / "grid.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match="is not YAML"):
        read_grid(tmp_path / "grid.yaml")
    with pytest.raises(InputError, match="expected a YAML file or one of demo"):
        find_config("demmo")


def test_modes_take_from_the_top_what_they_do_not_say(tmp_path):
    grid = read_grid(write_grid_file(tmp_path))
    full, linear = grid.modes["full"], grid.modes["linear"]
    assert full.fractions == (1.0,) and linear.fractions == (0.5, 1.0) and full.seeds == linear.seeds == 2
    assert full.search.lr == (1e-4, 1e-3, 1e-2) and linear.search is None
    assert full.long_scratch == 3 and linear.long_scratch == 1


def test_shipped_grids_can_be_read():
    assert {path.stem for path in CONFIG_DIR.glob("*.yaml")} == {*SHIPPED, "voco3d_study"}
    for name in SHIPPED:
        grid = read_grid(find_config(name))
        for data in grid.data.values():
            assert data.phantom or data.download, f"{name}: {data.name} does not say where to get it"


def test_recipes_of_shipped_grids_exist():
    root = Path(CONFIG_DIR).parents[1]
    for name in SHIPPED:
        text = yaml.safe_load(find_config(name).read_text())
        for task in text["tasks"].values():
            assert (root / "finetune" / "configs" / f"{task['recipe']}.yaml").is_file()
        for stage in text.get("pretraining", {}).values():
            assert (root / stage.get("stage", "pretrain") / "configs" / f"{stage['recipe']}.yaml").is_file()


def test_the_demo_compares_two_networks_with_four_sources_each():
    grid = read_grid(find_config("demo"))
    assert grid.matched and all(len(block.sources) == 4 for block in grid.blocks.values())
    assert set(grid.tasks) == {"pe", "tb"} and all(mode.seeds == 3 for mode in grid.modes.values())
    seeds = [data.phantom["seed"] for data in grid.data.values()]
    assert len(set(seeds)) == len(seeds)
    used = {stage.data for stage in grid.stages.values()} & {task.data for task in grid.tasks.values()}
    assert not used, "pretraining must see other patients than those with labels"


def test_cheap_lines_have_a_name_for_tables():
    from benchmarks import cheap_lines

    titles = [cheap_lines.Prior, cheap_lines.Metadata, cheap_lines.Position, cheap_lines.Slices]
    assert set(_LINES) == set(LINES) and [_LINES[name] for name in LINES] == [line.title for line in titles]
