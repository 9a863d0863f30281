"""What the three stages compute, stored so that a later version can be held against it.

    python -m tests.behaviour OUT                      run everything into OUT, a few minutes on two cores
    python -m tests.behaviour OUT --against OTHER      and compare with what another version left in OTHER

Short pretrainings (3D, 2D, video), fine-tunings (table, pulmonary embolism, tuberculosis; whole network, linear,
nearest neighbours), a grid and its report, each started as a user does, on synthetic patients and, with VOCO_TEST_CT,
on real scans. OUT/behaviour.json keeps digests of metrics, weights and predictions, and the numbers of results and of
the report; dates, wall times, versions and places are left out. Equal on one machine with one set of libraries; on
another one last digits may differ.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FILE = "behaviour.json"
_CROPS = ("--data.spacing", "[6,6,6]", "--method.geometry.crop", "32", "--method.options.projector_dim", "32")
_PRETRAIN = {
    "data": {"workers": 0, "heldout": 0.34},
    "train": {"steps": 4, "batch_size": 2, "lr": 1e-3, "warmup": 1, "save_every": 2, "milestones": [2], "threads": 1},
    "eval": {"every": 2, "windows": 1, "queries": 2},
    "log": {"every": 1, "with": []},
}
_FINETUNE = {
    "view": "resize",
    "encoder": {"name": "cnn3d_s"},
    "input": {"size": [24, 32, 32], "window": [-200, 400], "crop_body": False},
    "data": {"workers": 0},
    "split": {"test": 0.25, "val": 0.34},
    "train": {"steps": 4, "batch_size": 4, "lr": 1e-3, "warmup": 1, "save_every": 2, "threads": 1},
    "score": {"every": 2, "bootstrap": 50, "examples": 0},
    "log": {"every": 1, "with": []},
}
_SLICES = {"view": "slice_windows", "learn": "window", "head": {"pooling": "max"}}
_WHOLE = (
    *("metrics.jsonl", "model.safetensors", "head.safetensors"),
    *("splits.csv", "predictions.csv", "leaks.csv"),
)
# Facts about a run, not what it computed.
_PASSING = (
    "seconds",
    "time",
    "date",
    "commit",
    "version",
    "memory",
    "host",
    "path",
    "out",
    "root",
    "digest",
    "cost",
    "look",
)


def run_all(out: Path) -> None:
    """Every run, in order; a failure ends it."""
    data = out / "data"
    phantoms = {
        "scans": ("--layout", "folder", "--cases", "6", "--spacing", "6", "6", "6"),
        "clips": ("--layout", "video", "--cases", "16"),
        "pe": ("--layout", "rsna_pe", "--cases", "12", "--spacing", "12", "8", "8"),
        "tb": ("--layout", "imageclef_tb", "--cases", "14", "--spacing", "12", "8", "8"),
    }
    for name, options in phantoms.items():
        _start("voco.cli", "phantom", data / name, *options, "--seed", "0", "--workers", "1")
    _pretrain(out, "voco3d", "--data.root", data / "scans", "--encoder.name", "cnn3d_s", *_CROPS)
    _pretrain(out, "voco2d", "--data.root", data / "scans", "--config", "voco2d_demo", "--train.batch_size", "2")
    _pretrain(out, "video", "--data.root", data / "clips", "--config", "video_demo")
    if real := os.environ.get("VOCO_TEST_CT"):
        _pretrain(out, "real", "--data.root", real, "--encoder.name", "cnn3d_s", *_CROPS, "--data.max_rejected", "1")
    table = _table(data / "tb")
    encoder = out / "voco3d" / "encoder"
    for mode in ("full", "linear", "knn"):
        start = ("--encoder.weights", encoder) if mode != "full" else ()
        common = ("--mode", mode, "--probe.neighbours", "3", "--eval", "test", *start)
        _finetune(out, f"table-{mode}", _FINETUNE, "--task.name", "table", "--data.root", table, *common)
        _finetune(out, f"tb-{mode}", _FINETUNE, "--task.name", "imageclef_tb", "--data.root", data / "tb", *common)
    slices = _merged(_FINETUNE | _SLICES, {"input": {"size": [16, 32, 32], "stride": [8]}})
    _finetune(out, "pe", slices, "--task.name", "rsna_pe", "--data.root", data / "pe", "--eval", "test")
    _grid(out, table, data / "scans")


def _start(module: str, *words: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    print(f"{module} {' '.join(map(str, words))[:100]}: {done.returncode}", file=sys.stderr, flush=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])


def _pretrain(out: Path, name: str, *words: object) -> None:
    _start("pretrain.run", *_settings(out, name, _PRETRAIN, words), "--out", out / name)


def _finetune(out: Path, name: str, settings: dict, *words: object) -> None:
    _start("finetune.run", *_settings(out, name, settings, words), "--out", out / name)


def _settings(out: Path, name: str, settings: dict, words: tuple) -> tuple:
    """Recipe first, then these settings, then options."""
    words = list(words)
    recipe = []
    if "--config" in words:
        at = words.index("--config")
        recipe, words = words[at : at + 2], words[:at] + words[at + 2 :]
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return (*recipe, "--config", path, *words)


def _merged(base: dict, more: dict) -> dict:
    return {
        key: _merged(base.get(key, {}), value) if isinstance(value := more.get(key, base.get(key)), dict) else value
        for key in base | more
    }


def _table(root: Path) -> Path:
    """A table of the tuberculosis patients with two classes."""
    rows = [json.loads(line) for line in (root / "phantoms.jsonl").read_text().splitlines()]
    path = root / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        writer.writerows((row["paths"][0], number % 2) for number, row in enumerate(rows))
    return path


def _grid(out: Path, table: Path, scans: Path) -> None:
    recipe = out / "grid-recipe.yaml"
    recipe.write_text(yaml.safe_dump(_FINETUNE | {"task": {"name": "table"}}))
    voco = out / "grid-voco.yaml"
    voco.write_text(
        yaml.safe_dump(
            {
                "data": {"spacing": [6, 6, 6], "heldout": 0, "workers": 0},
                "method": {"geometry": {"crop": 32}},
                "train": {"batch_size": 2, "warmup": 0, "threads": 1},
                "log": {"with": []},
            }
        )
    )
    grid = {
        "title": "behaviour",
        "preset": "matched",
        "data": {"labeled": {"root": str(table)}, "scans": {"root": str(scans)}},
        "tasks": {
            "block": {"recipe": str(recipe), "data": "labeled", "settings": {"task": {"labels": ["label"]}}},
        },
        "pretraining": {"voco3d": {"recipe": str(voco), "data": "scans"}},
        "budget": {"unit": "steps", "amount": 2},
        "encoders": {"3d": {"name": "cnn3d_s", "sources": {"scratch": {}, "voco3d": {"train": ["voco3d"]}}}},
        "seeds": 2,
        "modes": {"linear": {}},
    }
    path = out / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    _start("benchmarks.sources", "--config", path, "--out", out / "grid", "--no-paper")


def collect(out: Path) -> dict[str, object]:
    """What was computed: digests of files, and numbers by their place in a file."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        # folders of cells end with a digest of settings, among which are the places of files
        name = re.sub(r"-[0-9a-f]{6}(?=/)", "", path.relative_to(out).as_posix())
        if path.name in _WHOLE:
            found[name] = hashlib.sha256(_known_columns(path)).hexdigest()
        elif path.name in ("results.json", "health.json", "report.json"):
            found |= {f"{name}: {place}": value for place, value in _numbers(json.loads(path.read_text()))}
        elif path.name == "report.md":
            found[name] = [line for line in path.read_text().splitlines() if line.startswith("|")][:80]
    return found


def _known_columns(path: Path) -> bytes:
    """A table without the columns that say where files lie."""
    if path.suffix != ".csv":
        return path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    return json.dumps([{key: value for key, value in row.items() if key != "path"} for row in rows]).encode()


def _numbers(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if not any(word in str(key).lower() for word in _PASSING):
                yield from _numbers(item, f"{place}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _numbers(item, f"{place}[{number}]")
    elif isinstance(value, (int, float)) or value is None:
        yield place, value


def compare(found: dict, other: dict) -> list[str]:
    """Sentences, one per difference."""
    lost = [f"{name}: not there any more" for name in other.keys() - found.keys()]
    new = [f"{name}: was not there" for name in found.keys() - other.keys()]
    both = found.keys() & other.keys()
    return sorted(lost + new + [f"{n}: {other[n]} then, {found[n]} now" for n in both if found[n] != other[n]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if not (out / FILE).is_file():
        out.mkdir(parents=True, exist_ok=True)
        run_all(out)
        (out / FILE).write_text(json.dumps(collect(out), indent=1, sort_keys=True))
    found = json.loads((out / FILE).read_text())
    print(f"{len(found)} digests and numbers in {out / FILE}")
    if arguments.against is None:
        return 0
    differences = compare(found, json.loads((arguments.against / FILE).read_text()))
    print("\n".join(differences[:50]) or "all equal")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
