"""Compare settings of 3D VoCo on one data set: ``python benchmarks/voco3d_study.py --data SCANS --out reports/voco3d``.

Runs each variant of a YAML file through the pretraining stage and writes a Markdown table of held-out scores beside
the lines that need no learning. Finished runs are kept, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

CONFIG = Path(__file__).parent / "configs" / "voco3d_study.yaml"
SCORES = ("position_accuracy_balanced", "position_accuracy", "disjoint_accuracy_balanced", "disjoint_accuracy")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="base settings and variants (YAML)")
    parser.add_argument("--data", required=True, help="scans; a CSV with a split column fixes what is held out")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and the table")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    args = parser.parse_args(argv)
    study = yaml.safe_load(args.config.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = {name: args.out / _slug(name) for name in study["variants"]}
    # the first run prepares the scans for all: two at once would do the same work
    first, *others = jobs
    results = {first: _run(first, study, jobs[first], args.data)}
    with ThreadPoolExecutor(args.parallel) as pool:
        results |= dict(zip(others, pool.map(lambda name: _run(name, study, jobs[name], args.data), others)))
    (args.out / "table.md").write_text(table(jobs))
    print(args.out / "table.md")
    return max(results.values())


def _run(name: str, study: dict, out: Path, data: str) -> int:
    settings = out.with_suffix(".yaml")
    settings.write_text(yaml.safe_dump(_merge(study["base"], study["variants"][name] or {})))
    start = time.monotonic()
    command = [sys.executable, "-m", "pretrain.run", "--config", str(settings), "--data.root", data, "--out", str(out)]
    with open(out.with_suffix(".log"), "w") as log:
        status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    print(f"{name}: exit {status} after {time.monotonic() - start:.0f} s", flush=True)
    return status


def _merge(base: dict, change: dict) -> dict:
    merged = dict(base)
    for key, value in change.items():
        merged[key] = _merge(base.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table(jobs: dict[str, Path]) -> str:
    """Markdown rows of what each run reached: score with interval, then untrained / histogram in brackets."""
    head = ["variant", "held-out intra", *[s.replace("_", " ") for s in SCORES], "mean cosine", "effective rank", "min"]
    rows = [head, ["---"] * len(head)]
    for name, out in jobs.items():
        if not (out / "health.json").is_file():
            rows.append([name, "failed", *[""] * (len(head) - 2)])
            continue
        rows.append([name, *_cells(out)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cells(out: Path) -> list[str]:
    from voco.health import HealthReport

    report = HealthReport.from_dict(json.loads((out / "health.json").read_text())["report"])
    lines = {k: HealthReport.from_dict(v) for k, v in json.loads((out / "health_lines.json").read_text()).items()}
    cells = [f"{report.score('intra'):.3f}"]
    for score in SCORES:
        value, interval = report.score(score), report.interval(score)
        if value is None:
            cells.append("")
            continue
        between = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        without = " / ".join(f"{lines[k].score(score):.2f}" for k in ("untrained", "histogram"))
        cells.append(f"{value:.2f}{between} ({without})")
    minutes = json.loads((out / "run.json").read_text()).get("wall_seconds", 0) / 60
    return [*cells, f"{report.score('mean_cosine'):.2f}", f"{report.score('effective_rank'):.1f}", f"{minutes:.1f}"]


if __name__ == "__main__":
    sys.exit(main())
