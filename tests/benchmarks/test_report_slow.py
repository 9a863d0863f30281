"""Proofs that take longer: a thousand cells, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.report import write_report
from tests.benchmarks.run_maker import KINETICS, SYNTHETIC, VOCO, write_grid, write_run

SOURCES = {"scratch": (), "kinetics": (KINETICS,), "voco": (VOCO,), "chain": (KINETICS, VOCO)}
CHROMIUM = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--allow-file-access-from-files")  # fmt: skip


def clone(base: Path, folder: Path, rng: np.random.Generator, *, encoder: str, fraction: float, seed: int) -> None:
    """Another run like ``base``: other scores, encoder, share of labels and seed."""
    shutil.copytree(base, folder)
    rows = pd.read_csv(folder / "predictions.csv")
    rows["score_label"] = np.clip(rows["score_label"] + rng.normal(0, 0.1, len(rows)), 0, 1)
    rows.to_csv(folder / "predictions.csv", index=False)
    results = json.loads((folder / "results.json").read_text())
    results["facts"] |= {"encoder": encoder, "fraction": fraction, "seed": seed}
    (folder / "results.json").write_text(json.dumps(results))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings |= {"fraction": fraction, "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.slow
def test_a_thousand_finished_cells_render_in_a_minute(tmp_path):
    rng, made = np.random.default_rng(0), 0
    for labels in (1, 2):
        for name, provenance in SOURCES.items():
            base = write_run(
                tmp_path / "base" / f"{name}-{labels}", provenance=provenance, labels_seed=labels, patients=150
            )
            for encoder in "abcde":
                for fraction in (0.05, 0.1, 0.2, 0.5, 1.0):
                    for seed in range(5):
                        folder = tmp_path / "grid" / f"{labels}{name}{encoder}{fraction}-{seed}"
                        clone(base, folder, rng, encoder=encoder, fraction=fraction, seed=seed)
                        made += 1
    assert made == 1000
    seconds = {}
    for what, paper in (("cold", False), ("warm", False), ("warm, with paper/", True)):
        start, wall = time.process_time(), time.perf_counter()
        page = write_report([tmp_path / "grid"], tmp_path / "out", paper=paper)
        seconds[what] = (time.process_time() - start, time.perf_counter() - wall)
    print(f"CPU and wall seconds: {seconds}; page {page.stat().st_size / 1e6:.1f} MB")
    # of this process's own time: the wall clock of a busy machine says nothing about the report
    assert max(cpu for cpu, _ in seconds.values()) < 60


CHECKS = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective));
addEventListener("load", () => {
  const table = document.querySelector("table.sortable"), head = table.tHead.rows[0].cells[2];
  const numbers = () => [...table.tBodies[0].rows].map(row => Number(row.cells[2].dataset.v));
  head.querySelector("button").click();
  const up = numbers();
  head.querySelector("button").click();
  document.querySelectorAll("details").forEach(part => part.open = true);
  const texts = [...document.querySelectorAll("svg.chart text")].map(node => node.getBoundingClientRect().height);
  const found = {up, down: numbers(), sorted: head.getAttribute("aria-sort"), errors, wide: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth, smallest: Math.min(...texts),
    paper: getComputedStyle(document.body).backgroundColor,
    loaded: performance.getEntriesByType("resource").length};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = write_grid(tmp_path_factory.mktemp("grid"), seeds=2, patients=40)
    write_run(root / "phantom", patients=20, labels_seed=4, marks=[SYNTHETIC])
    return write_report([root], tmp_path_factory.mktemp("page"), paper=False)


def opened(folder: Path, page: Path, width: int, dark: bool) -> dict:
    """What the page says of itself in a frame of this width."""
    (folder / "checked.html").write_text(page.read_text().replace("</body>", CHECKS + "</body>"))
    frame = f'<iframe src="checked.html" style="border:0" width="{width}" height="4000"></iframe>'
    listen = "onmessage = event => document.getElementById('found').textContent = event.data"
    (folder / "frame.html").write_text(
        f'<body style="margin:0"><script>{listen}</script>{frame}<pre id="found"></pre></body>'
    )
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    options = (*QUIET, scheme, f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},4000")
    address = (folder / "frame.html").as_uri()
    shot = folder / f"{width}-{'dark' if dark else 'light'}.png"
    subprocess.run([CHROMIUM, *options, f"--screenshot={shot}", address], capture_output=True, timeout=300, check=True)
    assert shot.stat().st_size > 10_000
    command = [CHROMIUM, *options, "--virtual-time-budget=10000", "--dump-dom", address]
    text = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    return json.loads(re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL).group(1).replace("&gt;", ">"))


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_page_in_a_browser(report, tmp_path, width, dark):
    found = opened(tmp_path, report, width, dark)
    assert found["wide"] == width and found["overflow"] <= 0, "the page is wider than the screen"
    assert found["up"] == sorted(found["up"]) and found["down"] == found["up"][::-1] and found["sorted"] == "descending"
    assert found["errors"] == [] and found["loaded"] == 0
    assert found["smallest"] > 8, "words in a chart are too small to read"
    assert found["paper"] == ("rgb(23, 27, 36)" if dark else "rgb(255, 255, 255)")
