"""The report that every method on scans gets: encoder features say where a crop lies, how many ways they vary, and
whether they are all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.health.test_health import noise_volumes
from voco.encoders import create_encoder
from voco.geometry import Geometry
from voco.health import build_eval_windows, evaluate, verdict
from voco.health.scores import effective_rank, spread
from voco.methods.base import ScanMethod
from voco.methods.options import VoCoOptions
from voco.methods.voco3d import VoCo3D
from voco.reference import reference_lines

GEOMETRY = Geometry(crop=16)


class Plain(ScanMethod):
    """An encoder and nothing else."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.geometry = encoder, GEOMETRY


@pytest.fixture(scope="module")
def windows():
    return build_eval_windows(noise_volumes(3, (40, 60, 60)), GEOMETRY, per_scan=1, seed=0)


@pytest.fixture(scope="module")
def report(windows):
    torch.manual_seed(0)
    return evaluate(Plain(create_encoder("cnn3d_s")), windows, queries=3, seed=0)


def test_features_get_the_scores_that_voco_gives_them(windows, report):
    torch.manual_seed(0)
    other = VoCo3D(create_encoder("cnn3d_s"), GEOMETRY, options=VoCoOptions(embedding="deepest", projector_dim=8))
    voco = evaluate(other, windows, queries=3, seed=0)
    own = {name for name in voco.tallies if name.startswith("encoder_")}
    assert set(report.tallies) == own and len(own) > 8
    for name in own:
        np.testing.assert_allclose(report.tallies[name].hits, voco.tallies[name].hits, atol=1e-6, err_msg=name)
    assert report.values["effective_rank"] == pytest.approx(voco.values["effective_rank"], rel=1e-3)
    assert "feature_spread" not in voco.values, "what VoCo runs report stays"


def test_rank_and_spread_are_those_of_the_base_crops(windows, report):
    torch.manual_seed(0)
    encoder = create_encoder("cnn3d_s")
    with torch.no_grad():
        boxes = [
            torch.from_numpy(w.hu[z : z + 16, y : y + 16, x : x + 16].copy())
            for w in windows
            for z, y, x in GEOMETRY.base_starts().tolist()
        ]
        features = encoder(torch.stack(boxes)[:, None]).double().numpy()
    mean = features.mean(0)
    literal = np.sqrt(sum(((f - mean) ** 2).sum() for f in features) / sum((f**2).sum() for f in features))
    assert report.values["feature_spread"] == pytest.approx(literal, rel=1e-3)
    assert report.values["effective_rank"] == pytest.approx(effective_rank(features), rel=1e-3)
    assert spread(np.ones((4, 3))) == 0 == spread(np.zeros((4, 3))) and spread(np.array([[1.0], [-1.0]])) == 1


@pytest.mark.parametrize(
    ("weight", "words"), [(0.0, "collapsed: all places of all scans"), (np.nan, "broken: the feat")]
)
def test_collapse_and_numbers_that_are_none_are_said(windows, weight, words):
    method = Plain(create_encoder("cnn3d_s"))
    with torch.no_grad():
        for parameter in method.encoder.stages[-1].parameters():
            parameter.mul_(weight)
    known = vars(reference_lines(GEOMETRY))
    found = evaluate(method, windows, queries=3, seed=0)
    assert verdict(found, known, step=9, warmup_steps=0)[0].startswith(words)


def test_an_untrained_network_is_not_called_collapsed(report):
    assert not any(
        s.startswith("collapsed") for s in verdict(report, vars(reference_lines(GEOMETRY)), step=9, warmup_steps=0)
    )
