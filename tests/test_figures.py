"""Pictures: files of the promised size that are not blank, titles that say what the numbers say."""

from __future__ import annotations

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from voco.figures import SimilarityCase, crops_of_case, heldout_summary, loss_curves, position_scores, similarity_map
from voco.figures.export import save
from voco.figures.style import label_right, new_figure, smooth, spread
from voco.geometry import Augmentation, Geometry
from voco.health.report import HealthReport, mean_of
from voco.health.scores import Tally, place_tally

REFERENCES = {
    "zero_logits": 0.713,
    "best_constant": 0.583,
    "collapse": 5.57,
    "position_chance": 0.25,
    "balanced_chance": 1 / 9,
}
GEOMETRY = Geometry(crop=16)


def report(position, disjoint, scans=8):
    wave = np.linspace(-0.05, 0.05, scans)
    tallies = {}
    for prefix in ("", "clean_", "encoder_", "encoder_clean_"):
        for name, value in (("position_accuracy", position), ("disjoint_accuracy", disjoint)):
            for suffix in ("", "_balanced"):
                tallies[f"{prefix}{name}{suffix}"] = Tally((value + wave)[:, None], np.ones((scans, 1)))
        kinds = [tallies[f"{prefix}{kind}_accuracy_balanced"] for kind in ("position", "disjoint")]
        tallies[f"{prefix}place_accuracy_balanced"] = place_tally(*kinds)
    return HealthReport("trained", tallies, scans=scans, disjoint_scans=scans, windows=2 * scans, queries=12)


LINES = {
    "step0": report(0.34, 0.17),
    "untrained": mean_of([report(0.35 + d, 0.16 + d) for d in (-0.02, -0.01, 0.01, 0.02)], "untrained"),
    "histogram": report(0.26, 0.2),
}


def metrics(steps=120, final=0.4):
    rng = np.random.default_rng(0)
    rows = []
    for step in range(0, steps + 1, 2):
        intra = final + 0.4 * np.exp(-step / 30) + 0.05 * rng.normal()
        rows.append({"step": step, "loss": intra + 0.1, "intra": intra, "inter": 0.05, "reg": None, "lr": 1e-3})
        if step % 20 == 0:
            held = {"intra": final + 0.3 * np.exp(-step / 30)}
            held["encoder_position_accuracy_balanced"] = 0.5 - 0.2 * 0.9**step
            held["encoder_place_accuracy_balanced"] = 0.4 - 0.1 * 0.9**step
            held |= {f"{k}_low": v - 0.05 for k, v in held.items()} | {f"{k}_high": v + 0.05 for k, v in held.items()}
            rows.append({"step": step, "heldout/scans": 8} | {f"heldout/{k}": v for k, v in held.items()})
    return rows


@pytest.fixture
def texts(monkeypatch):
    """Everything that was written into the figure saved last."""
    seen = []
    plain = Figure.savefig

    def savefig(self, *args, **kwargs):
        from matplotlib.text import Text

        seen[:] = [t.get_text() for t in self.findobj(Text)]
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def check(path, width=1200):
    image = matplotlib.image.imread(path)
    assert image.shape[1] == width and image.shape[0] > 400
    assert image[..., :3].std() > 0.05
    return image


def case(right=True):
    hu = np.random.default_rng(1).integers(-1000, 400, (16, 48, 48)).astype(np.int16)
    labels = np.zeros(9)
    labels[[4, 5]] = 0.7, 0.3
    similarity = labels if right else np.roll(labels, 1)
    return SimilarityCase(hu, hu[:, 16:32, 20:36], (0, 16, 20), similarity - 0.1, labels, "case-1")


def test_loss_curves_show_terms_and_say_on_which_side_of_the_constant(tmp_path, texts):
    check(save(loss_curves(metrics(), REFERENCES), tmp_path / "figures" / "loss.png"))
    assert "Held-out intra loss is 0.41 at step 120: below the best constant predictor (0.583)" in texts
    assert "full collapse 5.57 is above ↑" in texts and "inter: between scans" in texts
    assert "reg: base crops kept apart" not in texts  # never logged
    save(loss_curves(metrics(final=0.7), REFERENCES), tmp_path / "loss.png")
    assert any("not below the best constant" in t for t in texts)
    save(loss_curves([{"step": 1, "intra": 0.5}], REFERENCES), tmp_path / "loss.png")
    assert any(t.startswith("Training intra loss is 0.50") for t in texts)
    check(save(loss_curves([], REFERENCES), tmp_path / "loss.png"))


def test_position_scores_label_every_line_and_what_was_not_measured(tmp_path, texts):
    check(save(position_scores(metrics(), LINES, REFERENCES), tmp_path / "scores.png"))
    assert {"HU histogram 0.26", "untrained networks 0.35", "own step 0 0.34", "constant guess 0.11"} <= set(texts)
    assert "At step 120: place accuracy, the mean of both, 0.40 (best line 0.26)" in texts
    assert texts.count("not measured") == 3  # no disjoint score in these rows, nothing through the projector


def test_summary_title_is_decided_by_paired_intervals(tmp_path, texts):
    check(save(heldout_summary(report(0.6, 0.3), LINES, REFERENCES), tmp_path / "s.png"))
    assert "Place accuracy of the encoder, the mean of both, 0.45: surely above every line" in texts
    save(heldout_summary(report(0.36, 0.19), LINES, REFERENCES), tmp_path / "s.png")
    assert "Place accuracy of the encoder, the mean of both, 0.28: not surely above every line" in texts
    save(heldout_summary(report(0.6, 0.3, scans=4), {}, REFERENCES), tmp_path / "s.png")
    assert "Place accuracy of the encoder, the mean of both, 0.45: cannot be judged" in texts


def test_similarity_map_writes_the_numbers_and_counts_right_cells(tmp_path, texts):
    path = save(similarity_map([case(), case(False)], GEOMETRY, (-1000, 500), note="not chosen"), tmp_path / "map.png")
    check(path)
    assert "1 of 2 crops placed in the right cell of the grid" in texts
    assert texts.count("right") == texts.count("wrong") == 1
    assert texts.count("0.70") == 2 and texts.count("0.60") == 2 and {"A", "R", "L"} <= set(texts)
    assert any("patient's left on the right" in t for t in texts)


def test_similarity_map_is_not_mirrored(tmp_path):
    hu = np.full((16, 48, 48), -1000, np.int16)
    hu[:, :, 36:] = 500  # patient's left: the largest W, the right of the picture
    lit = SimilarityCase(hu, hu[:, :16, :16], (0, 0, 0), np.zeros(9), np.eye(9)[0])
    image = check(save(similarity_map([lit], GEOMETRY, (-1000, 500)), tmp_path / "map.png"))
    panel = image[170:370, 75:325, :3].mean((0, 2))  # first panel: 262 pixels from 68
    assert panel[-40:].mean() > 0.8 > 0.4 > panel[:40].mean()


def test_crops_of_case_shows_what_was_drawn(tmp_path, texts):
    hu = np.random.default_rng(2).integers(-1000, 400, GEOMETRY.window).astype(np.int16)
    count = GEOMETRY.bases + GEOMETRY.random_crops
    draws = Augmentation(flip_prob=0, turn_prob=0, shift_prob=0).draw(count, torch.Generator().manual_seed(0))
    draws["starts"] = torch.tensor([[0, 16, 16], [0, 8, 16]])
    draws["flips"][0, 2], draws["turns"][0], draws["shift"][10] = True, 3, -0.05
    first = check(save(crops_of_case(hu, GEOMETRY, draws, (-1000, 500)), tmp_path / "crops.png"))
    assert {"flip L-R, 270°", "shift\u00a0-0.05", "1.00", ".50", "r1", "r2"} <= set(texts)
    assert any("2 of them augmented" in t for t in texts)
    again = check(save(crops_of_case(hu, GEOMETRY, draws, (-1000, 500)), tmp_path / "again.png"))
    assert np.array_equal(first, again)


def test_labels_are_spread_apart_in_order_and_stay_inside():
    wanted = [10.0, 11.0, 50.0, 99.0, 98.0]
    places = spread(wanted, 13, 0, 100)
    assert np.argsort(places).tolist() == np.argsort(wanted).tolist()
    assert np.diff(sorted(places)).min() >= 13 - 1e-9 and min(places) >= 0 and max(places) <= 100 + 1e-9
    assert spread([20.0, 80.0], 13, 0, 100) == [20.0, 80.0]
    axes = new_figure(400).add_subplot()
    label_right(axes, [])
    assert not axes.texts


def test_running_mean_is_a_literal_mean_of_neighbours():
    values = np.random.default_rng(3).normal(size=20)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(20)]
    assert smooth(values, 5) == pytest.approx(expected)


def test_importing_figures_imports_neither_matplotlib_nor_torch():
    code = "import sys, voco.figures; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
