"""Rules for tables of positions, against formulas worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from voco.weights.positions import (
    bias_table_from_2d,
    resize_bias_table,
    resize_bicubic,
    resize_linear,
    window_of_table,
)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sources(found, wanted):
    """Where the centres of ``wanted`` cells lie among ``found`` cells, held at the outermost centres."""
    return torch.tensor([min(max((i + 0.5) * found / wanted - 0.5, 0.0), found - 1.0) for i in range(wanted)]).double()


RESIZERS = {
    "linear": (lambda t: resize_linear(t, 15), 15),
    "bicubic": (lambda t: resize_bicubic(t, (4, 6), (4, 6)), 24),
    "bias": (lambda t: resize_bias_table(t, (2, 3, 2), (2, 3, 2)), 45),
}


@pytest.mark.parametrize("kind", RESIZERS)
def test_a_table_of_the_right_size_is_not_touched(kind):
    resize, rows = RESIZERS[kind]
    table = random(rows, 3)
    assert resize(table) is table


@pytest.mark.parametrize(
    "resize",
    [
        lambda t: resize_linear(t, 7),
        lambda t: resize_linear(t, 40),
        lambda t: resize_bicubic(t, (3, 15), (8, 5)),
        lambda t: resize_bias_table(t, (2, 2, 3), (5, 3, 2)),
        lambda t: bias_table_from_2d(t, (2, 8), (3, 5, 5)),
    ],
)
def test_constants_stay_constant(resize):
    row = random(1, 3)
    torch.testing.assert_close(resize(row.repeat(45, 1)), row.expand(len(resize(row.repeat(45, 1))), 3))


@pytest.mark.parametrize("wanted", [5, 8, 31])
def test_linear_ramps_stay_ramps(wanted):
    slope = random(1, 3)
    table = torch.arange(15, dtype=torch.float64)[:, None] * slope
    torch.testing.assert_close(resize_linear(table, wanted), sources(15, wanted)[:, None] * slope)


def test_planes_keep_their_rows_and_columns():
    """Bicubic with a = -0.75 on a target that is not square, one axis at a time, by the kernel's own formula."""
    table = random(8 * 6, 2)
    plane = table.reshape(8, 6, 2)

    def weights(found, wanted):
        matrix, a = torch.zeros(wanted, found, dtype=torch.float64), -0.75
        for i in range(wanted):
            centre = (i + 0.5) * found / wanted - 0.5
            first = int(centre // 1)
            for j in range(first - 1, first + 3):
                d = abs(centre - j)
                near = (a + 2) * d**3 - (a + 3) * d**2 + 1
                far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
                matrix[i, min(max(j, 0), found - 1)] += near if d <= 1 else far
        return matrix

    expected = torch.einsum("ih,jw,hwc->ijc", weights(8, 3), weights(6, 11), plane)
    torch.testing.assert_close(resize_bicubic(table, (8, 6), (3, 11)), expected.reshape(33, 2))


def test_ramps_of_relative_bias_along_each_axis():
    found, wanted, slopes = (4, 3, 2), (2, 5, 3), (1.0, 10.0, 100.0)
    old, new = [2 * n - 1 for n in found], [2 * n - 1 for n in wanted]
    table = torch.tensor([[sum(s * i for s, i in zip(slopes, place))] for place in itertools.product(*map(range, old))])
    axes = [sources(n, m) for n, m in zip(old, new)]
    expected = torch.tensor([[sum(s * float(i) for s, i in zip(slopes, place))] for place in itertools.product(*axes)])
    torch.testing.assert_close(resize_bias_table(table, found, wanted), expected, rtol=1e-5, atol=1e-4)


def test_a_2d_bias_is_the_same_at_every_depth_offset():
    table = random(13 * 13, 3)
    inflated = bias_table_from_2d(table, (7, 7), (8, 7, 7)).reshape(15, 169, 3)
    assert all(torch.equal(plane, table) for plane in inflated)
    larger = bias_table_from_2d(table, (7, 7), (2, 12, 12)).reshape(3, 529, 3)
    expected = torch.nn.functional.interpolate(table.t().reshape(1, 3, 13, 13), size=(23, 23), mode="bicubic")
    assert all(torch.allclose(plane, expected.reshape(3, 529).t()) for plane in larger)


@pytest.mark.parametrize(
    ("window", "rows"),
    [((8, 7, 7), 2535), ((16, 7, 7), 5239), ((1, 7, 7), 169), ((1, 12, 12), 529), ((8, 12, 12), 7935)],
)
def test_windows_are_known_by_their_tables(window, rows):
    assert window_of_table(rows) == window


def test_unclear_tables_have_no_window():
    assert window_of_table(15 * 15) is None  # 8 x 8, or depth 5 of 3 x 3
    assert window_of_table(14) is None
    assert window_of_table(0) is None
