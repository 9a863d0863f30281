"""Reference lines against the published setting's printed values, and against losses of really drawn crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voco.crops import overlap_labels
from voco.geometry import Geometry
from voco.losses import voco_cross_entropy
from voco.methods.options import resolve
from voco.reference import overlap_shares, reference_lines
from voco.rng import generator

# zero logits, best constant, its place, position-marginal, collapse
PRINTED = {
    "default": (0.713, 0.583, 0.19, 0.544, 5.57),
    "v2": (0.713, 0.583, 0.19, 0.544, 5.57),
    "v1": (0.711, 0.361, 0.31, 0.551, 1.94),
}


@pytest.mark.parametrize("preset", PRINTED)
def test_printed_values(preset):
    settings = resolve(preset)
    lines = reference_lines(settings.geometry, settings.options.negative, settings.options.positive_weight)
    got = (lines.zero_logits, lines.best_constant, lines.best_constant_value, lines.position_marginal, lines.collapse)
    assert np.abs(np.subtract(got, PRINTED[preset])).max() < 0.0051
    assert np.abs(np.subtract(got, PRINTED[preset]))[[0, 1, 3]].max() < 0.0012


def test_position_guesses():
    three, four = reference_lines(Geometry()), reference_lines(Geometry(grid=(4, 4), crop=96))
    assert three.position_chance == 0.25 and three.balanced_chance == pytest.approx(1 / 9)
    assert four.position_chance == pytest.approx(1 / 9) and four.balanced_chance == pytest.approx(1 / 16)


def test_overlap_shares():
    v2, v1 = overlap_shares(Geometry()), overlap_shares(Geometry(grid=(4, 4), crop=96))
    assert [round(100 * v2[n], 3) for n in (4, 2, 1)] == [96.899, 3.076, 0.024]
    assert [round(100 * v1[n], 3) for n in (4, 2, 1)] == [97.928, 2.062, 0.011]


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(crop=6),
        Geometry(grid=(4, 2), crop=5, crop_depth=3, random_crops=3),
        Geometry(crop=4, window_depth=9, random_axes="all", random_crops=2),
        Geometry(grid=(2, 2), crop=4, random_crops=1),
        Geometry(grid=(1, 3), crop=5),
    ],
)
@pytest.mark.parametrize("negative", ["log", "square"])
@pytest.mark.parametrize("positive_weight", ["overlap", "one"])
def test_enumeration_equals_drawn_crops(geometry, negative, positive_weight):
    """The exact expectation lies within four standard errors of the mean over 20 000 drawn volumes."""
    volumes = 20000
    drawn = Geometry(**{**geometry.__dict__, "random_crops": geometry.random_crops * volumes})
    labels = overlap_labels(drawn.draw_starts(generator(0)).view(volumes, -1, 3), geometry).double()
    lines = reference_lines(geometry, negative, positive_weight)

    def mean(similarity):
        terms = voco_cross_entropy(labels, similarity, negative=negative, positive_weight=positive_weight)
        loss = sum(terms)
        return loss.mean().item(), 4 * loss.std().item() / volumes**0.5 + 1e-9

    for constant, line in [
        (0.0, lines.zero_logits),
        (lines.best_constant_value, lines.best_constant),
        (0.99, lines.collapse),
    ]:
        value, margin = mean(torch.full_like(labels, constant))
        assert abs(value - line) < margin
    marginal = labels.mean((0, 1)).expand_as(labels)
    assert abs(mean(marginal)[0] - lines.position_marginal) < mean(marginal)[1] + 0.01
    grid = [mean(torch.full_like(labels, c / 20))[0] for c in range(20)]
    assert min(grid) > lines.best_constant - mean(torch.full_like(labels, lines.best_constant_value))[1]
    right = labels.argmax(-1).flatten()[labels.flatten(0, 1).sum(-1) > 0].bincount(minlength=geometry.bases)
    assert abs(right.max() / right.sum() - lines.position_chance) < 0.02
