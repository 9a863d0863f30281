"""How often networks that learned nothing are called learned (docs/health.md)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.health.nulls import NULLS, Bench, build, clustered, phantoms, rates, train
from voco.geometry import Geometry

NETWORKS, DRAWS, SIZES = 20, 20, (3, 5, 6, 10, 20)
GEOMETRY = Geometry(crop=16)  # of 6 mm: the grid of the demo at half its resolution

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def held():
    """Scores on 200 patients (20 draws of 10 share none), and every network before its first step."""
    bench = Bench(phantoms(10 * max(SIZES), seed=4242, spacing_mm=6.0), GEOMETRY)
    return bench, [bench.both_states(build(seed, GEOMETRY)) for seed in range(NETWORKS)]


@pytest.fixture(scope="module")
def cohort():
    """Patients to train on."""
    return phantoms(20, seed=77, spacing_mm=6.0)


def print_table(kind, found):
    for size, called in found.items():
        each = clustered(called)
        print(f"\n{kind:20s} {size:3d} scans: learned {each.mean:.4f} +- {each.error:.4f}", end="")


@pytest.mark.parametrize("kind", NULLS)
def test_networks_that_moved_without_learning_are_called_learned_in_one_of_forty(held, cohort, kind):
    bench, random = held
    steps = 50 if kind == "running statistics" else 100
    moved = [
        bench.score(train(build(s, GEOMETRY), cohort, seed=s, steps=steps, batch=4, lr=1e-3, kind=kind))
        for s in range(NETWORKS)
    ]
    found = rates(bench, moved, random, SIZES, DRAWS)
    print_table(kind, found)
    for size, called in found.items():
        each = clustered(called)
        assert size >= 6 or called.sum() == 0
        assert each.mean <= 0.025 + 2.5 * max(each.error, np.sqrt(0.025 * 0.975 / called.size))
