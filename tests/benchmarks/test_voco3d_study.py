from __future__ import annotations

import json

import numpy as np
import yaml

from benchmarks.voco3d_study import CONFIG, _merge, _slug, table
from pretrain.config import SCHEMA
from voco.config import parse
from voco.health.report import HealthReport
from voco.health.scores import Tally


def test_variants_change_what_they_say_and_parse(tmp_path):
    study = yaml.safe_load(CONFIG.read_text())
    for name, change in study["variants"].items():
        path = tmp_path / f"{_slug(name)}.yaml"
        path.write_text(yaml.safe_dump(_merge(study["base"], change or {})))
        config = parse(SCHEMA, ["--config", str(path), "--data.root", "x", "--out", "y"])
        assert config["train"].steps == study["base"]["train"]["steps"]
    assert _merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


def test_the_table_shows_scores_beside_their_lines_and_failed_runs(tmp_path):
    def report(name, right):
        tally = Tally(np.array([[right]] * 4, float), np.array([[10.0]] * 4))
        tallies = {"intra": tally, "mean_cosine": tally, "position_accuracy_balanced": tally}
        return HealthReport(name, tallies, {"effective_rank": 12.0}, scans=4).to_dict()

    done = tmp_path / "done"
    done.mkdir()
    dump = lambda path, value: path.write_text(json.dumps(value, default=float))  # noqa: E731
    dump(done / "health.json", {"report": report("trained", 6)})
    dump(done / "health_lines.json", {"untrained": report("untrained", 3), "histogram": report("histogram", 2)})
    dump(done / "run.json", {"wall_seconds": 120})
    rows = table({"base": done, "other": tmp_path / "missing"}).splitlines()
    assert "| 0.60 (0.30 / 0.20) |" in rows[2] and "2.0" in rows[2] and "12.0" in rows[2]
    assert "failed" in rows[3]
