from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from voco.data.dataset import StepSampler, WindowDataset, make_loader
from voco.data.windows import read_window, window_start
from voco.errors import InputError, ScanError
from voco.rng import generator


class Array:
    """A volume in memory with the reading rules of a prepared one."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def read(self, start, size):
        out = np.full(size, -1024, np.int16)
        src = [slice(max(0, s), max(0, min(n, s + w))) for s, w, n in zip(start, size, self.shape)]
        dst = [slice(a.start - s, a.stop - s) for a, s in zip(src, start)]
        out[tuple(dst)] = self.array[tuple(src)]
        return out


def volume(name: int) -> Array:
    return Array(np.arange(name * 10_000, name * 10_000 + 6 * 7 * 8, dtype=np.int64).astype(np.int16).reshape(6, 7, 8))


def open_volume(name):
    if name == "broken":
        raise ScanError("torn entry")
    return volume(name)


def draw(rng):
    return {"number": torch.rand(2, generator=rng)}


def dataset(patients, seed=0):
    return WindowDataset(patients, size=(4, 4, 4), region="window", draws=draw, seed=seed, open_volume=open_volume)


def test_windows_are_uniform_over_valid_starts():
    starts = Counter(window_start((5, 4, 3), (3, 4, 5), generator(0, i)) for i in range(3000))
    assert set(starts) == {(z, 0, -1) for z in range(3)}
    assert all(900 < n < 1100 for n in starts.values())


def test_a_short_axis_is_centred_and_counted_as_padding():
    window = read_window(volume(0), (6, 7, 16), generator(0))
    assert window.start == (0, 0, -4) and window.padded_share == 0.5
    np.testing.assert_array_equal(window.hu[:, :, 4:12], volume(0).array)
    assert (window.hu[:, :, :4] == -1024).all() and (window.hu[:, :, 12:] == -1024).all()


def test_whole_region_resizes_with_aligned_corners():
    ramp = Array(np.broadcast_to(np.arange(0, 900, 100, dtype=np.int16), (4, 4, 9)).copy())
    window = read_window(ramp, (4, 4, 5), generator(0), region="whole")
    np.testing.assert_array_equal(window.hu[0, 0], [0, 200, 400, 600, 800])
    with pytest.raises(InputError, match="window, whole"):
        read_window(ramp, (4, 4, 5), generator(0), region="half")


def test_a_whole_volume_is_windowed_before_it_is_resized_as_published():
    edges = np.random.default_rng(0).choice(np.array([-1000, 40, 1500], np.int16), (6, 20, 20))
    size, low, high = (9, 33, 14), -175.0, 250.0
    window = lambda hu: (np.clip(hu.astype(np.float32), low, high) - low) / (high - low)  # noqa: E731
    published = torch.nn.functional.interpolate(
        torch.from_numpy(window(edges))[None, None], size=size, mode="trilinear", align_corners=True
    )[0, 0].numpy()
    found = read_window(Array(edges), size, generator(0), "whole", (low, high)).hu
    assert np.abs(window(found) - published).max() <= 0.51 / (high - low)  # whole Hounsfield units
    unclipped = read_window(Array(edges), size, generator(0), "whole").hu
    assert (np.abs(window(unclipped) - published) > 0.05).mean() > 0.2
    local = read_window(Array(edges), (3, 4, 5), generator(0), "window", (low, high)).hu
    np.testing.assert_array_equal(local, read_window(Array(edges), (3, 4, 5), generator(0)).hu)


def test_each_epoch_sees_each_patient_once_whatever_the_number_of_series():
    data = dataset([[0, 1, 2], [3], [4]])
    for epoch in range(4):
        cases = [int(data[epoch * 3 + i]["case"]) for i in range(3)]
        assert sorted(cases) == [0, 1, 2]
    orders = {tuple(int(data[e * 3 + i]["case"]) for i in range(3)) for e in range(20)}
    assert len(orders) > 1, "the order must change between epochs"


def test_series_of_a_patient_are_uniform():
    data = dataset([[0, 1, 2]])
    seen = Counter(int(data[p]["hu"].to(torch.int64).max()) // 10_000 for p in range(600))
    assert set(seen) == {0, 1, 2} and min(seen.values()) > 150


def test_a_sample_depends_on_seed_and_position_only():
    one, two = dataset([[0], [1]]), dataset([[0], [1]])
    for p in (5, 3, 5, 0):
        _ = two[p + 1]
        for key, value in one[p].items():
            assert torch.equal(value, two[p][key]), key
    assert not torch.equal(dataset([[0]], 1)[0]["number"], dataset([[0]], 2)[0]["number"])


def test_an_unreadable_file_is_replaced_and_counted():
    data = dataset([["broken"], [1]])
    samples = [data[p] for p in range(8)]
    assert {int(s["case"]) for s in samples} == {1}
    assert sum(float(s["replaced"]) for s in samples) == 4
    with pytest.raises(ScanError, match="torn entry"):
        dataset([["broken"]])[0]
    with pytest.raises(InputError, match="no patient"):
        dataset([])


def test_open_files_do_not_travel():
    data = dataset([[0]])
    _ = data[0]
    assert data._handles and not pickle.loads(pickle.dumps(data))._handles


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_a_step_without_overlap(world, accumulate):
    parts = [list(StepSampler(3, 5, 8, accumulate, rank, world)) for rank in range(world)]
    for step in range(2):
        positions = [p for micro in range(accumulate) for part in parts for p in part[step * accumulate + micro]]
        assert positions == list(range((3 + step) * 8, (4 + step) * 8))
    assert len(StepSampler(3, 5, 8, accumulate, 0, world)) == 2 * accumulate


def test_resuming_continues_the_same_sequence():
    whole = list(StepSampler(0, 9, 4))
    assert list(StepSampler(6, 9, 4)) == whole[6:]


def test_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="found 9 for 2 x 2"):
        StepSampler(0, 1, 9, 2, 0, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_same_batches_for_any_number_of_workers(workers):
    data = dataset([[0], [1], [2]])
    loader = make_loader(data, StepSampler(0, 4, 2), workers=workers, timeout=60, pin=False)
    for batch, positions in zip(loader, StepSampler(0, 4, 2), strict=True):
        for row, p in enumerate(positions):
            for key, value in dataset([[0], [1], [2]])[p].items():
                assert torch.equal(batch[key][row], value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failed_run_ends_and_takes_its_workers_along(workers):
    code = (
        "import torch\nfrom voco.data.dataset import StepSampler, batches_of, make_loader\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    seed = 0\n"
        "    def __getitem__(self, position): return {'x': torch.tensor(position)}\n"
        f"loader = make_loader(Data(), StepSampler(0, 100, 2), workers={workers}, timeout=60, pin=False)\n"
        "with batches_of(loader) as batches:\n"
        "    print(next(batches)['x'].tolist(), flush=True)\n"
        "    raise RuntimeError('as it happens')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "[0, 1]\n" and "as it happens" in done.stderr
