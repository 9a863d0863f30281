from __future__ import annotations

import numpy as np
import pytest

from benchmarks.published import read_published, tables, why_not_comparable
from voco.errors import InputError

THREE_D = ("Slow R50", "SlowFast R50", "R(2+1)D R50", "CSN R101", "MViT", "Swin-T", "PENet")


def cells(task, fraction, chain):
    rows = [
        r for r in read_published("ke2023_table1") if (r.task, r.fraction) == (task, fraction) and r.model in THREE_D
    ]
    kinds = {
        "scratch": lambda p: p == "scratch",
        "video": lambda p: p.startswith("kinetics") and "->" not in p,
        "ct": lambda p: p == "stanford_ct",
        "video -> ct": lambda p: p.startswith("kinetics") and "->" in p,
    }
    found = {r.model: r.value for r in rows if kinds[chain](r.pretraining)}
    assert set(found) == set(THREE_D)
    return np.array([found[name] for name in THREE_D])


def test_all_cells_of_table_1_are_there_and_give_the_means_that_the_paper_states():
    rows = read_published("ke2023_table1")
    assert len(rows) == 180 and len({(r.model, r.pretraining, r.task, r.fraction) for r in rows}) == 180
    stated = {
        ("video", "scratch"): (0.074, 0.146, 0.077, 0.124),
        ("video", "ct"): (0.072, 0.182, 0.068, 0.144),
        ("video -> ct", "ct"): (0.002, 0.069, 0.055, 0.146),
        ("video", "video -> ct"): (0.070, 0.112, 0.012, -0.002),
    }
    where = (("rsna_pe", 0.1), ("rsna_pe", 1), ("lidc", 0.1), ("lidc", 1))
    for (a, b), means in stated.items():
        found = [(cells(*place, a) - cells(*place, b)).mean() for place in where]
        assert found == pytest.approx(means, abs=0.0011)  # printed cells are rounded
    assert cells("rsna_pe", 0.01, "scratch").mean() == pytest.approx(0.498, abs=0.001)


def test_odd_cells_are_marked_and_kept_as_printed():
    rows = read_published("ke2023_table1")
    flat = [r for r in rows if (r.value, r.low, r.high) == (0.5, 0.5, 0.5)]
    assert len(flat) > 10 and all("did not train" in r.remark for r in flat)
    odd = [r for r in rows if not r.low <= r.value <= r.high]
    assert [(r.model, r.low, r.high) for r in odd] == [("MViT", 0.572, 0.560)] and "interval" in odd[0].remark


def test_every_number_has_a_source_and_a_certainty():
    assert tables() == ["ke2023_table1", "viptt2021", "voco2d_rsna2023"]
    for name in tables():
        for row in read_published(name):
            assert row.citation and row.table == name
            assert row.certainty in ("read in the paper", "read in the abstract", "second-hand", "unconfirmed")
            assert -1 <= row.value <= 1  # shares, not per cent
    kappas = [r.value for r in read_published("viptt2021") if r.part == "validation"]
    assert kappas == [0.17, 0.35]
    with pytest.raises(InputError, match="ke2023_table1"):
        read_published("nobody")


def test_only_what_was_measured_alike_is_compared():
    row = next(r for r in read_published("ke2023_table1") if r.model == "Swin-T" and r.fraction == 1)
    alike = {"task": "rsna_pe", "options": {"preset": "ke_3d"}, "metric": "auroc", "part": "test",
             "split_rule": "ke2023", "test_units": 1092, "fraction": 1.0}  # fmt: skip
    assert why_not_comparable(row, **alike) == ""
    for change, words in (
        ({"options": {"preset": "default"}}, "labels: published preset ke_3d, own default"),
        ({"test_units": 40}, "test units: published 1092, own 40"),
        ({"split_rule": "holdout"}, "split: published ke2023, own holdout"),
        ({"metric": "ap"}, "metric"),
        ({"synthetic": True}, "synthetic"),
    ):
        assert words in why_not_comparable(row, **alike | change)
    unclear = next(r for r in read_published("ke2023_table1") if r.model == "ResNet-18" and r.fraction == 1)
    assert "not known" in why_not_comparable(unclear, **alike)
