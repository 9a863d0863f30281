"""Labels and scores between slices and windows, by hand and through a DICOM series with gaps and a repeated slice."""

import numpy as np
import pytest

from tests.data.dicom_maker import anatomy, positions, series, uid
from voco.data.cache import PreparedVolume
from voco.data.layouts.labeled import LabeledCase
from voco.data.layouts.lidc_xml import NoduleSlices
from voco.data.manifest import Case
from voco.data.prepare import PrepareSettings, prepare
from voco.errors import ScanError
from voco.tasks.slices import (
    SliceTable,
    any_positive_window,
    image_rows,
    slice_scores,
    slices_in_windows,
    window_label,
)


def table(index, z=None, depth=10, kept=None):
    z = np.asarray(index, float) if z is None else z
    kept = [True] * len(index) if kept is None else kept
    slices = [
        {"sop_uid": f"u{k}", "z_mm": float(mm), "kept": flag, "index": float(i)}
        for k, (i, mm, flag) in enumerate(zip(index, z, kept))
    ]
    return SliceTable.of({"shape": [depth, 4, 4], "slices": slices})


def test_windows_hold_the_nearest_planes():
    found = table([0, 0.4, 0.6, 3.4, 3.6, 4, 7.2])
    inside = slices_in_windows(found.index, np.array([0, 4, 6]), 4)
    literal = [[start <= np.floor(i + 0.5) < start + 4 for i in found.index] for start in (0, 4, 6)]
    assert inside.tolist() == literal
    assert inside.sum(0).tolist() == [1, 1, 1, 1, 1, 1, 2]


def test_the_grid_ends_before_the_last_slice_and_crops_leave_some_out():
    # resampled: the grid has 4 planes, the last image lies 0.9 planes above; cropped: whole planes away
    assert table([0, 1.3, 2.6, 3.9], depth=4).index.tolist() == [0, 1.3, 2.6, 3]
    assert slices_in_windows(table([0, 1.3, 2.6, 3.9], depth=4).index, np.array([0]), 4).all()
    cropped = table([-2, -1, 0, 1, 2, 3, 4], depth=4)
    assert slices_in_windows(cropped.index, np.array([0]), 4)[0].tolist() == [False] * 2 + [True] * 4 + [False]
    assert SliceTable.of({"shape": [4, 4, 4], "slices": None}) is None


def test_scores_of_slices():
    scores = np.array([0.2, 0.8, 0.5])
    inside = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(slice_scores(scores, inside), [0.2, 0.8, 0.8, np.nan])
    np.testing.assert_allclose(slice_scores(scores, inside, "mean"), [0.2, 0.5, 0.8, np.nan])
    assert np.isnan(slice_scores(np.zeros(0), np.zeros((0, 2)))).all()


def test_window_labels_say_when_they_do_not_know():
    nan = np.nan
    for labels, least, expected in (
        ([0, 1, 0], 1, 1), ([0, 0], 1, 0), ([1, 1, 1, 0], 4, 0), ([1] * 4, 4, 1), ([nan, nan], 1, nan), ([], 1, nan),
        ([0, nan], 1, nan), ([1, nan], 1, 1), ([1, nan, 0, 0], 3, 0), ([1, nan, nan], 3, nan),
    ):  # fmt: skip
        np.testing.assert_equal(window_label(np.array(labels, float), least), float(expected))


@pytest.mark.parametrize("seed", range(5))
def test_study_label_from_windows(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        n, length, least = int(rng.integers(1, 60)), int(rng.integers(1, 20)), int(rng.integers(1, 5))
        stride = int(rng.integers(1, length + 1))
        labels = (rng.random(n) < rng.choice([0.05, 0.2])).astype(float)
        windows, start = [], 0
        while True:  # until a window reaches the last slice
            windows.append(labels[start : start + length])
            if start + length >= n:
                break
            start += stride
        assert any_positive_window(labels, length, stride, least) == float(any(w.sum() >= least for w in windows))
    # 100 slices make 4 windows of 32, the last of 4 slices
    last = np.zeros(100)
    last[96:] = 1
    assert any_positive_window(last, 32, 32, 4) == 1 and any_positive_window(last, 32, 32, 5) == 0
    across = np.zeros(100)
    across[30:34] = 1
    assert any_positive_window(across, 32, 32, 4) == 0 and any_positive_window(across, 32, 16, 4) == 1


def test_repeated_slices_count_once_and_foreign_labels_are_found():
    found = table([0, 1, 1, 2], z=[0.0, 5.0, 5.005, 10.0], kept=[True, True, False, True])
    labels = found.labels({"u1": 0.0, "u2": 1.0, "u3": 0.0})
    np.testing.assert_array_equal(labels, [np.nan, 0, 1, 0])
    index, merged = found.positions(labels)
    np.testing.assert_array_equal(index, [0, 1, 2])
    np.testing.assert_array_equal(merged, [np.nan, 1, 0])
    with pytest.raises(ScanError, match="none of its 4 images"):
        found.labels({"x": 1.0})
    with pytest.raises(ScanError, match="those of another series"):
        found.labels(NoduleSlices([{"x": 1.0}], 1))
    assert np.isnan(found.labels(None)).all()
    assert found.labels(NoduleSlices([{"u0": 0.0, "u3": 10.0}], 1)).tolist() == [1] * 4
    assert found.labels(NoduleSlices([], 1)).tolist() == [0] * 4


# A series of 2 mm steps with a hole of one slice, its 4th slice stored twice, and files in no order.
STEPS = [0, 1, 2, 3, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("spacing", [None, (3.0, None, None), (1.0, None, None)])
def test_a_real_series_through_reading_and_preparing(tmp_path, spacing):
    hu = anatomy((10, 8, 9))
    hu[4] = hu[3]
    where = positions(1)[0] + np.array(STEPS)[:, None] * 2.0 * np.array([0, 0, 1.0])
    order = np.random.default_rng(0).permutation(10)
    series(tmp_path / "scan", hu[order], where=where[order])
    names = {int(k): uid("s", "a", place + 1, "") for place, k in enumerate(order)}
    case = Case("scan", "scan", "p")
    result = prepare([case], tmp_path, tmp_path / "cache", PrepareSettings(spacing), progress=False)
    volume = PreparedVolume.open(result.entries[0].path)
    found = SliceTable.of(volume.meta)
    step = volume.spacing_mm[0]
    assert step == pytest.approx(spacing[0] if spacing else 2.0) and len(found.sop_uids) == 10
    assert found.kept.sum() == 9 and not found.kept[4]
    # the label of each image stays with the millimetre where it lies, also of the one that was dropped
    planes = np.clip(np.array(STEPS) * 2.0 / step, 0, volume.shape[0] - 1)
    np.testing.assert_allclose(found.index, planes, atol=1e-6)
    labels = {names[k]: float(k in (4, 5)) for k in range(10)}
    # which of the two equal images was kept is not told, so either may be the labeled one
    assert found.labels(labels).tolist() in ([0, 0, 0, k, 1 - k, 1, 0, 0, 0, 0] for k in (0, 1))
    index, merged = found.positions(found.labels(labels))
    np.testing.assert_allclose(index, np.delete(planes, 4), atol=1e-6)
    assert merged.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0]
    # windows of 3 planes: the score of each image is that of the windows around it
    starts = np.arange(0, volume.shape[0] - 2)
    inside = slices_in_windows(found.index, starts, 3)
    scores = slice_scores(starts.astype(float), inside)
    nearest = np.floor(found.index + 0.5)
    np.testing.assert_array_equal(scores, np.minimum(nearest, starts[-1]))
    rows = image_rows(LabeledCase(case, slices={**labels, "gone": 1.0}), found, found.labels(labels), scores)
    assert rows["sop_uid"][-1] == "gone" and rows["label"][-1] == 1 and np.isnan(rows["score"][-1])
    assert {len(column) for column in rows.values()} == {11}
    assert rows["z_mm"][:10].tolist() == pytest.approx([-100 + 2 * s for s in STEPS])
