"""Methods, tasks and networks of a user, each in one file that only this folder has, through every stage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import benchmarks.report
import finetune.predict
import finetune.run
import pretrain.run
import voco
import voco.cli
from tests.finetune.made import write_scan
from tests.forks import forked
from voco.errors import InputError
from voco.plugins import load_plugin

TOYS = Path(__file__).parent / "toys"
METHOD, CLIPS, TASK, NETWORK = (
    f"--plugin={TOYS / name}.py" for name in ("toy_method", "toy_clips", "toy_task", "toy_encoder")
)
PRETRAIN = {
    "encoder": {"name": "toy_net"},
    "method": {"name": "toy_masked", "preset": "half", "block": 16},
    "data": {"workers": 0, "heldout": 0.34, "spacing": [2, 2, 2]},
    "train": {"steps": 4, "batch_size": 2, "lr": 1e-3, "warmup": 1, "save_every": 2, "threads": 1},
    "eval": {"every": 2, "windows": 1, "queries": 2},
    "log": {"every": 1, "with": []},
}
FINETUNE = {
    "mode": "linear",
    "view": "resize",
    "task": {"name": "toy_dense"},
    "input": {"size": [24, 32, 32], "window": [-200, 400], "crop_body": False},
    "data": {"workers": 0},
    "split": {"test": 0.25, "val": 0.34},
    "score": {"bootstrap": 20, "examples": 0, "figures": False},
    "log": {"every": 1, "with": []},
}


def digest(name: str) -> str:
    return hashlib.sha256((TOYS / f"{name}.py").read_bytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Twelve scans, of which the odd ones are dense, their table, and settings."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "scans").mkdir()
    for i in range(12):
        write_scan(folder / "scans" / f"s{i:02d}.nii.gz", i, bool(i % 2))
    (folder / "scans" / "dense.csv").write_text(
        "path,dense\n" + "".join(f"s{i:02d}.nii.gz,{i % 2}\n" for i in range(12))
    )
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(PRETRAIN))
    (folder / "finetune.yaml").write_text(yaml.safe_dump(FINETUNE))
    return folder


def start(main, work, out, *words, config=None):
    data = ["--data.root", str(work / "scans"), "--out", str(work / out)]
    return forked(main, [*(["--config", str(work / f"{config}.yaml")] if config else []), *data, *map(str, words)])


@pytest.fixture(scope="module")
def pretrained(work):
    done = start(pretrain.run.main, work, "toy", METHOD, NETWORK, config="pretrain")
    assert done.returncode == 0, done.stderr[-3000:]
    return work / "toy", done.stderr


@pytest.fixture(scope="module")
def tuned(work, pretrained):
    words = (TASK, NETWORK, "--encoder.weights", pretrained[0], "--eval", "test", "--allow_seen")
    done = start(finetune.run.main, work, "tuned", *words, config="finetune")
    assert done.returncode == 0, done.stderr[-3000:]
    return work / "tuned"


def test_a_method_of_one_file_pretrains_and_is_judged_by_its_features(pretrained):
    out, said = pretrained
    record, rows = json.loads((out / "run.json").read_text()), (out / "metrics.jsonl").read_text().splitlines()
    assert record["state"] == "finished" and record["method"] == "toy_masked" and record["encoder"] == "toy_net"
    asked = [{"name": name, "digest": digest(name)} for name in ("toy_method", "toy_encoder")]
    assert record["plugins"] == record["sessions"][-1]["plugins"] == asked
    assert yaml.safe_load((out / "config.yaml").read_text())["plugins"] == asked
    config = json.loads((out / "encoder" / "config.json").read_text())
    assert config["plugins"] == asked[1:], "weights need their network and not what trained it"
    [entry] = config["provenance"]
    assert entry["preset"] == "half" and entry["settings"]["share"] == 0.5 and entry["citation"] == "nobody yet"
    assert entry["samples"] == "scans" and "effective_rank" in entry["results"]
    scores = [row for row in map(json.loads, rows) if "heldout/encoder_place_accuracy_balanced" in row]
    assert [row["step"] for row in scores] == [0, 2, 4]
    assert all(row["heldout/effective_rank"] > 1 and row["heldout/feature_spread"] > 0 for row in scores)
    assert {row["hidden"] for row in map(json.loads, rows) if "hidden" in row} <= {i / 16 for i in range(17)}
    assert "cannot be judged with 4 held-out" in said and (out / "figures" / "positions.png").is_file()


def test_the_same_command_goes_on_to_the_same_weights(work, pretrained):
    shutil.copytree(pretrained[0], work / "again")
    shutil.rmtree(work / "again" / "checkpoints" / "step-00000004")
    done = start(pretrain.run.main, work, "again", METHOD, NETWORK, config="pretrain")
    assert done.returncode == 0 and "resumed step-00000002" in done.stderr, done.stderr[-3000:]
    weights = [(work / name / "encoder" / "model.safetensors").read_bytes() for name in ("toy", "again")]
    assert weights[0] == weights[1]


def test_what_is_missing_is_said_and_never_imported(work, pretrained, tuned):
    lacks = f"needs the plugin toy_encoder (digest {digest('toy_encoder')}), which is not loaded: give --plugin"
    with pytest.raises(InputError, match="needs the plugin toy_encoder"):
        voco.load_encoder(pretrained[0])
    done = start(pretrain.run.main, work, "toy", METHOD)
    assert done.returncode == 2 and "config.yaml " + lacks in done.stderr
    done = start(pretrain.run.main, work, "other", "--config", pretrained[0] / "config.yaml")
    assert done.returncode == 2 and "needs the plugins toy_method" in done.stderr and not (work / "other").exists()
    done = forked(voco.cli.main, ["inspect", str(pretrained[0])])
    assert done.returncode == 2 and lacks in done.stderr
    done = forked(voco.cli.main, ["inspect", str(pretrained[0]), NETWORK])
    assert done.returncode == 0 and "toy_net" in done.stderr and digest("toy_method") in done.stderr
    predict = ["--model", str(tuned), "--data.root", str(work / "scans"), "--data.workers", "1", "--bootstrap", "20"]
    done = forked(finetune.predict.main, [*predict, "--out", str(work / "predicted"), NETWORK])
    assert done.returncode == 2 and "model.json needs the plugin toy_task" in done.stderr
    done = forked(finetune.predict.main, [*predict, "--out", str(work / "predicted"), NETWORK, TASK])
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((work / "predicted" / "predictions.csv").read_text().splitlines()) == 13


def test_a_report_reads_runs_of_a_task_of_one_file(work, tuned):
    results = json.loads((tuned / "results.json").read_text())
    assert results["task"] == "toy_dense" and results["main"]["name"] == "right"
    words = [str(tuned), "--out", str(work / "report"), "--no-paper"]
    done = forked(benchmarks.report.main, words)
    assert done.returncode == 2 and f"needs the plugins toy_task (digest {digest('toy_task')}), toy_enc" in done.stderr
    done = forked(benchmarks.report.main, [*words, TASK])
    assert done.returncode == 2 and f"needs the plugin toy_encoder (digest {digest('toy_encoder')})" in done.stderr
    done = forked(benchmarks.report.main, [*words, TASK, NETWORK])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "toy_dense" in (work / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_method_on_clips_is_judged_by_the_nearest_class_mean(work):
    from voco.phantom.cohort import write_cohort

    pytest.importorskip("av")
    write_cohort(work / "clips", layout="video", cases=16, seed=0, workers=1, progress=False)
    settings = {k: v for k, v in PRETRAIN.items() if k in ("train", "log")} | {"data": {"workers": 0, "heldout": 0.34}}
    (work / "clips.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", str(work / "clips.yaml"), CLIPS, "--out", str(work / "order"), "--eval.every", "2"]
    words += ["--data.root", str(work / "clips"), "--method.name", "toy_order", "--encoder.name", "cnn3d_s"]
    done = forked(pretrain.run.main, [*words, "--method.clip.frames", "16", "--method.clip.size", "32", "32"])
    assert done.returncode == 0, done.stderr[-3000:]
    [entry] = voco.load_encoder(work / "order").provenance
    assert entry["samples"] == "clips" and "features_top1_balanced" in entry["results"]
    assert not any("classifier" in sentence or "cross-entropy" in sentence for sentence in entry["verdict"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("def f(:\n", "SyntaxError: .*line 1"),
        ("\nimport no_such_thing\n", r"ModuleNotFoundError: .*no_such_thing.*line 2"),
        ("from voco.methods import register_method\nregister_method('x')(object)\n", "needs Options, a dataclass"),
        ("from voco.tasks import register_task\nregister_task('x')(object)\n", "needs Options, a dataclass with"),
        (
            "from voco.encoders.base import register_encoder as add\nadd('cnn3d_s', input_spec=None, summary='')(len)",
            "registered twice",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_plugin(path)
    assert "voco.plugins.broken" not in sys.modules


def test_settings_cannot_load_code(work, tmp_path):
    (tmp_path / "s.yaml").write_text(f"plugin: {TOYS / 'toy_method.py'}\n")
    done = start(pretrain.run.main, work, "x", "--config", tmp_path / "s.yaml")
    assert done.returncode == 2 and "settings cannot load code; give --plugin on the command line" in done.stderr


@pytest.mark.slow
def test_processes_that_are_started_anew_find_the_code_of_their_samples(tmp_path):
    """A loader that spawns its processes unpickles the sampler there."""
    (tmp_path / "main.py").write_text(
        f"""
import multiprocessing, voco
if __name__ == "__main__":
    voco.load_plugin({str(TOYS / "toy_method.py")!r})
    import torch
    from voco.methods import method_class
    draws = __import__("sys").modules[method_class("toy_masked").__module__].BlockDraws(2, 0.5)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(draws, (torch.Generator().manual_seed(1),))
    print(torch.equal(found["hidden"], draws(torch.Generator().manual_seed(1))["hidden"]))
"""
    )
    environment = os.environ | {"PYTHONPATH": str(Path(voco.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_installed_plugins_are_found_by_their_entry_point(tmp_path):
    shutil.copy(TOYS / "toy_encoder.py", tmp_path / "my_networks.py")
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[voco.plugins]\nmine = my_networks\n")
    code = "import voco; e = voco.create_encoder('toy_net', width=4); print(e.num_features); "
    code += f"from voco.weights.export import save_encoder; save_encoder(e, {str(tmp_path / 'e')!r}, {{}})"
    paths = f"{tmp_path}{os.pathsep}{Path(voco.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    assert done.stdout.strip() == "8", done.stderr[-2000:]
    needed = json.loads((tmp_path / "e" / "config.json").read_text())["plugins"]
    assert needed == [{"name": "mine", "digest": digest("toy_encoder")}]


@pytest.mark.slow
def test_a_grid_of_toys(work):
    """Cells are processes of their own, each with the plugins of the grid."""
    few = yaml.safe_dump(PRETRAIN | {"data": {"workers": 0, "heldout": 0, "spacing": [2, 2, 2]}})
    (work / "few.yaml").write_text(few)
    grid = {
        "title": "toys",
        "data": {"labeled": {"root": str(work / "scans")}},
        "tasks": {"dense": {"recipe": str(work / "finetune.yaml"), "data": "labeled"}},
        "pretraining": {"masked": {"recipe": str(work / "few.yaml"), "data": "labeled", "exclude": ["dense"]}},
        "budget": {"unit": "steps", "amount": 2},
        "encoders": {"toy": {"name": "toy_net", "sources": {"scratch": {}, "masked": {"train": ["masked"]}}}},
        "seeds": 1,
        "modes": {"linear": {}},
    }
    (work / "grid.yaml").write_text(yaml.safe_dump(grid))
    command = [sys.executable, "-m", "benchmarks.sources", "--config", str(work / "grid.yaml"), "--no-paper"]
    command += ["--out", str(work / "grid")]
    root = Path(voco.__file__).parents[1]
    done = subprocess.run([*command, METHOD, TASK, NETWORK], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (work / "grid" / "report.md").read_text()
    assert "masked" in text and "dense" in text
    done = subprocess.run([*command, METHOD, NETWORK], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 2 and "grid needs the plugin toy_task" in done.stderr
