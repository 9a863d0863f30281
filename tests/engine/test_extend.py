"""Going on from another run: where from, what may differ, what is kept and said."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml

from voco.engine.extend import begin_extension, changed_settings, check_apart, extension_note, extension_point
from voco.engine.log import MetricLog
from voco.engine.loop import LoopState
from voco.errors import InputError


@pytest.fixture
def run(tmp_path):
    """A run of four steps with a damaged last checkpoint."""
    folder = tmp_path / "a"
    for step in (2, 4):
        checkpoint = folder / f"checkpoints/step-{step:08d}"
        checkpoint.mkdir(parents=True)
        files = {"model.safetensors": 3 if step == 2 else 99}
        (checkpoint / "model.safetensors").write_bytes(b"abc")
        (checkpoint / "state.json").write_text(json.dumps({"format": 1, "step": step, "files": files}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "train": {"steps": 4, "lr": 0.1, "decay": "all"}}))
    (folder / "run.json").write_text(json.dumps({"state": "stopped", "wall_seconds": 7.5}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": n}) + "\n" for n in range(1, 5)))
    (folder / "best.safetensors").write_bytes(b"best")
    return folder


def test_the_newest_whole_checkpoint_is_the_start(run, tmp_path):
    assert extension_point(str(run), steps=3).name == "step-00000002"
    assert extension_point(str(run / "checkpoints/step-00000002"), steps=3).name == "step-00000002"
    with pytest.raises(InputError, match=r"has 2 steps already and --train.steps is 2.*give more than 2"):
        extension_point(str(run), steps=2)
    with pytest.raises(InputError, match="no checkpoint there; give the folder"):
        extension_point(str(tmp_path), steps=9)
    with pytest.raises(InputError, match=r"no such folder; give"):
        extension_point(str(tmp_path / "nosuch"), steps=9)
    for part in ("encoder", "checkpoints"):
        with pytest.raises(InputError, match=rf"did you mean {run}\?"):
            extension_point(str(run / part), steps=9)
    for inside in (run, run / "checkpoints/step-00000002"):
        with pytest.raises(InputError, match="is --out itself"):
            check_apart(str(inside), run)
    check_apart(str(run), tmp_path / "b")


def test_only_some_settings_may_differ(run):
    now = {"seed": 0, "train": {"steps": 9, "lr": 0.2, "decay": "all", "extend": "a"}}
    arguments = {
        "free": ["out"],
        "extendable": ["train.steps", "train.lr", "train.extend"],
        "new": {"train.extend": ""},
    }
    assert changed_settings(run, now, **arguments) == [
        "train.extend:  -> a", "train.lr: 0.1 -> 0.2", "train.steps: 4 -> 9"
    ]  # fmt: skip
    with pytest.raises(InputError, match="seed: 0 -> 1") as error:
        changed_settings(run, now | {"seed": 1}, **arguments)
    assert "--encoder.weights" in str(error.value) and "train.lr" in str(error.value).split("may change")[1]
    (run / "config.yaml").unlink()
    with pytest.raises(InputError, match="nobody knows"):
        changed_settings(run, now, **arguments)


def test_what_an_extension_has_of_its_source(run, tmp_path):
    out = tmp_path / "b"
    out.mkdir()
    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    log = MetricLog(out, accelerator)
    watch = {"best": 0.7, "best_step": 2, "stale": 3, "lr_factor": 0.1, "ended": 1}
    state = LoopState(step=2, watch=watch, extended=[{"run": "old", "step": 1, "changed": ["train.lr: 1 -> 2"]}])
    begin_extension(state, run, ["train.extend:  -> a", "train.steps: 4 -> 9"], log, out / "best.safetensors")
    assert [row["step"] for row in log.rows()] == [1, 2], "what came after the checkpoint is not of this run"
    assert (out / "best.safetensors").read_bytes() == b"best"
    assert state.watch == {"best": 0.7, "best_step": 2}, "a run that ended early goes on"
    assert state.extended[1] == {
        "run": "a", "state": "stopped", "wall_seconds": 7.5, "step": 2, "changed": ["train.steps: 4 -> 9"]
    }  # fmt: skip
    note = extension_note(state.extended)
    assert "from step 1 of old (train.lr: 1 -> 2), then from step 2 of a (train.steps: 4 -> 9)" in note
    assert "not the result of one run" in note
