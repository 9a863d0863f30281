from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml

from voco.config import Schema, changed, flatten, parse, save_yaml, to_dict
from voco.errors import InputError


@dataclass(frozen=True)
class Inner:
    grid: tuple[int, int] = (3, 3)
    """Grid."""
    depth: int | None = None
    """Depth."""


@dataclass
class A:
    """Method A."""

    name: Literal["a"] = "a"
    """Name."""
    preset: str = "default"
    """Preset."""
    inner: Inner = field(default_factory=Inner)
    """Inner."""
    rate: float = 1e-4
    """Rate."""
    presets: ClassVar = {"default": {}, "wide": {"inner": {"grid": (4, 4)}, "rate": 0.5}}


@dataclass
class B:
    """Method B."""

    name: Literal["b"] = "b"
    """Name."""
    only_b: int = 1
    """Only here."""


@dataclass
class Data:
    """Data."""

    spacing: list[float | Literal["native"]] = field(default_factory=list)
    """Spacing."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Lists by name."""
    with_: list[str] = field(default_factory=lambda: ["x"], metadata={"help": "Reserved word."})


@dataclass
class Top:
    out: str
    """Out."""
    seed: int = 0
    """Seed."""


@pytest.fixture
def schema(tmp_path):
    return Schema(
        prog="t",
        description="t",
        top=Top,
        groups={"data": Data, "method": lambda: {"a": A, "b": B}},
        config_dir=tmp_path,
    )


def test_defaults_options_and_lists(schema):
    c = parse(schema, ["--out", "x", "--data.spacing", "5", "1.25", "native", "--method.rate", "3e-4"])
    assert c["out"] == "x" and c["seed"] == 0
    assert c["data"].spacing == [5.0, 1.25, "native"]
    assert isinstance(c["method"], A) and c["method"].rate == 3e-4
    assert c["method"].inner == Inner((3, 3), None)


def test_lists_by_name(schema):
    c = parse(schema, ["--out", "x", "--data.classes", "{stage: [I, II], side: ['1']}", "--seed", "2"])
    assert c["data"].classes == {"stage": ["I", "II"], "side": ["1"]}


@pytest.mark.parametrize("argv", [["1.5"], ["[1.5]"], ["=1.5"]], ids=["plain", "brackets", "equals"])
def test_one_value_is_a_list_too(schema, argv):
    option = [f"--data.spacing{argv[0]}"] if argv[0].startswith("=") else ["--data.spacing", *argv]
    assert parse(schema, ["--out", "x", *option])["data"].spacing == [1.5]


def test_negative_numbers_are_values_not_options(schema):
    assert parse(schema, ["--out", "x", "--data.spacing", "-1", "-.5", "--seed", "3"])["data"].spacing == [-1.0, -0.5]


def test_saved_yaml_repeats_the_run(schema, tmp_path):
    first = parse(
        schema, ["--out", "x", "--method.preset", "wide", "--method.inner.depth", "7", "--data.with", "p", "q"]
    )
    save_yaml(first, tmp_path / "saved.yaml")
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["data"]["with"] == ["p", "q"]
    again = parse(schema, ["--config", str(tmp_path / "saved.yaml")])
    assert again == first


def test_preset_replaces_defaults_and_options_win(schema):
    wide = parse(schema, ["--out", "x", "--method.preset=wide"])["method"]
    assert wide.inner.grid == (4, 4) and wide.rate == 0.5
    mixed = parse(schema, ["--out", "x", "--method.preset", "wide", "--method.rate", "2"])["method"]
    assert mixed.inner.grid == (4, 4) and mixed.rate == 2


def test_method_by_name_from_yaml_and_command_line(schema, tmp_path):
    (tmp_path / "bee.yaml").write_text("method:\n  name: b\n  only_b: 5\n")
    assert parse(schema, ["--config", "bee", "--out", "x"])["method"] == B(only_b=5)
    assert parse(schema, ["--out", "x", "--method.name", "b"])["method"] == B()


def test_later_configs_and_options_win(schema, tmp_path):
    (tmp_path / "one.yaml").write_text("seed: 1\nmethod: {rate: 1.0}\n")
    (tmp_path / "two.yaml").write_text("seed: 2\n")
    c = parse(schema, ["--config", "one", "--config", "two.yaml", "--out", "x"])
    assert c["seed"] == 2 and c["method"].rate == 1.0
    assert parse(schema, ["--config", "one", "--out", "x", "--seed", "9"])["seed"] == 9


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config", "nowhere"], "nowhere"),
        (["--method.name", "c"], "known: a, b"),
        (["--method.preset", "odd"], "known: default, wide"),
    ],
)
def test_bad_names_say_what_is_known(schema, argv, words):
    with pytest.raises(InputError, match=words):
        parse(schema, ["--out", "x", *argv])


def test_yaml_that_is_no_mapping(schema, tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="key: value"):
        parse(schema, ["--config", "list", "--out", "x"])


@pytest.mark.parametrize("argv", [["--method.ratee", "1"], ["--method.rate", "fast"], ["--seed", "1.5"]])
def test_unknown_and_ill_typed_options_stop(schema, argv, capsys):
    with pytest.raises(SystemExit):
        parse(schema, ["--out", "x", *argv])
    assert "error" in capsys.readouterr().err


def test_changed_lists_differences(schema):
    old = to_dict(parse(schema, ["--out", "x"]))
    new = to_dict(parse(schema, ["--out", "y", "--method.rate", "1", "--data.with", "z"]))
    assert changed(old, new, ["out", "data."]) == ["method.rate: 0.0001 -> 1.0"]
    assert changed(old, old) == []
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_help_of_the_pretraining_stage_is_quick_and_complete():
    code = (
        "import sys; from pretrain.run import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('TORCH' if 'torch' in sys.modules else 'NO-TORCH')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "NO-TORCH" in done.stdout
    for option in ("--data.root", "--train.resume", "--method.geometry.crop", "--log.with", "--encoder.weights"):
        assert option in done.stdout
    silent = re.findall(r"^  (--\S+) [^\n ]*(?:, \S+ \S+)?(?:\n *|  +)\(type:", done.stdout, flags=re.MULTILINE)
    assert not silent, f"options without help: {silent}"


def test_every_recipe_parses():
    from pretrain.config import CONFIG_DIR, SCHEMA

    recipes = sorted(CONFIG_DIR.glob("*.yaml"))
    assert {"demo", "voco3d_swin_b", "voco3d_swin_l", "voco3d_swin_h", "voco3d_v1", "voco3d_r3d18"} <= {
        p.stem for p in recipes
    }
    for path in recipes:
        config = parse(SCHEMA, ["--config", path.stem, "--out", "x", "--data.root", "y"])
        assert config["data"].root == "y"
        assert Path(path).read_text().startswith("#"), f"{path.name} needs a header"
