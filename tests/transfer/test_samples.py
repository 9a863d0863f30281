from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.training import expected_weights
from voco.data.cache import entry_path, write_entry
from voco.data.dataset import StepSampler, batches_of, make_loader
from voco.errors import InputError, ScanError
from voco.rng import generator
from voco.tasks import create_task
from voco.tasks.base import Output, Task
from voco.transfer.augment import StudyAugmentation, augment_windows
from voco.transfer.samples import StudyItem, StudySamples
from voco.transfer.views import View

# windows move, values stay
QUIET = StudyAugmentation(flip_prob=0, rotate=0, zoom=0, translate=0, shift_hu=0, contrast=0)
SHAPES = [(12, 10, 10), (20, 10, 10), (8, 10, 10), (17, 10, 10), (30, 10, 10), (9, 10, 10)]
VIEW = View("slice_windows", (8, 8, 8), stride=(4, 8, 8), stored=(10, 10))


class Sided(Task):
    """Left and right embolism, slice labels; a left-right flip swaps them."""

    name, slice_labels = "sided", True
    outputs = (Output("left"), Output("right"))

    def __init__(self, flips=(0, 2)):
        super().__init__(SimpleNamespace(name="sided"))
        self.flips = flips

    def flip_targets(self, targets, axes):
        return {"left": targets["right"], "right": targets["left"]} if 2 in axes else targets

    def window_targets(self, labels):
        known = labels[~np.isnan(labels)]
        value = float(known.max()) if len(known) else float("nan")
        return {"left": value, "right": 0.0 if value == value else float("nan")}


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Each voxel value tells its study and place; slices 3 to 5 of a study are positive, the last one is not known."""
    folder = tmp_path_factory.mktemp("cache")
    made = []
    for number, shape in enumerate(SHAPES):
        d, h, w = np.indices(shape)
        hu = (4000 * number + 100 * d + 10 * h + w).astype(np.int16)
        path = entry_path(folder, f"{number:032d}")
        write_entry(path, hu, (1, 1, 1), {})
        index = np.arange(shape[0], dtype=float)
        labels = ((index >= 3) & (index <= 5)).astype(float)
        labels[-1] = np.nan
        targets = {"left": float(number < 2), "right": 0.0}
        made.append(StudyItem((path,), shape, targets, str(int(number < 2)), index, labels))
    return made


def samples(items, **changed):
    settings = {"view": VIEW, "task": Sided(), "learn": "study", "windows": 2, "augmentation": StudyAugmentation()}
    return StudySamples(items, **{**settings, **changed})


def place(window) -> tuple[int, int, int, int]:
    """Study, slice, row and column of the first voxel of a window."""
    study, rest = divmod(int(window.flatten()[0]), 4000)
    return study, rest // 100, rest % 100 // 10, rest % 10


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def load(dataset, *, workers=0, start=0, steps=6, rank=0, world=1):
    sampler = StepSampler(start, steps, 4, 1, rank, world)
    with batches_of(make_loader(dataset, sampler, workers=workers, timeout=60, pin=False)) as batches:
        return list(batches)


def test_workers_restarts_and_pickling_change_no_sample(items):
    dataset = samples(items, balance={})
    whole = load(dataset)
    assert all(equal(a, b) for a, b in zip(whole, load(dataset, workers=2)))
    assert all(equal(a, b) for a, b in zip(whole[4:], load(samples(items, balance={}), start=4)))
    assert equal(pickle.loads(pickle.dumps(dataset))[5], dataset[5])
    assert not equal(dataset[0], dataset[6])


@pytest.mark.parametrize("balance", [None, {}])
def test_processes_together_see_what_one_sees(items, balance):
    dataset = samples(items, balance=balance)
    whole = load(dataset, steps=4)
    ranks = [load(dataset, steps=4, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        for name in batch:
            assert torch.equal(torch.cat([ranks[0][step][name], ranks[1][step][name]]), batch[name])
    seeds = [int(s) for batch in whole for s in batch["noise_seed"]]
    assert len(set(seeds)) == len(seeds), "no two samples, of any rank, share their draws"


def test_an_epoch_is_a_permutation_and_the_next_one_another(items):
    dataset = samples(items, augmentation=None)
    studies = [place(dataset[p]["hu"][0])[0] for p in range(18)]
    epochs = [studies[i : i + 6] for i in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert [place(samples(items, augmentation=None, seed=1)[p]["hu"][0])[0] for p in range(6)] != epochs[0]


@pytest.mark.parametrize("shares, expected", [({}, 0.5), ({"0": 0.8, "1": 0.2}, 0.2), ({"0": 3, "1": 1}, 0.25)])
def test_classes_come_in_the_shares_asked_for(items, shares, expected):
    dataset = samples(items, balance=shares)
    drawn = [dataset._choose(0, p, 0, generator(0, p)) for p in range(4000)]
    count = Counter(drawn)
    assert sum(count[i] for i in (0, 1)) / 4000 == pytest.approx(expected, abs=0.03)
    for group in ((0, 1), (2, 3, 4, 5)):  # even within a class
        inside = np.array([count[i] for i in group])
        assert np.abs(inside / inside.sum() - 1 / len(group)).max() < 0.05


def test_classes_are_drawn_at_the_same_depths(items):
    dataset = samples(items, learn="window", balance={}, match_depth=True)
    depth = {u: (dataset.starts[i][w][0] + 4) / SHAPES[i][0] for u, (i, w) in enumerate(dataset.units)}
    positive = dict(enumerate((dataset.unit_targets()["left"] > 0).tolist()))
    there = {value: [u for u in depth if positive[u] is value] for value in (False, True)}
    rarest = min(there.values(), key=len)
    # for each depth of the rarest class, what may stand for it: all within 0.03, or the closest
    allowed = {
        value: {
            other
            for u in rarest
            for other in (
                [v for v in group if abs(depth[v] - depth[u]) <= 0.03]
                or [v for v in group if abs(depth[v] - depth[u]) == min(abs(depth[w] - depth[u]) for w in group)]
            )
        }
        for value, group in there.items()
    }
    drawn = Counter(dataset._choose(0, p, 0, generator(0, p)) for p in range(3000))
    for value, units in there.items():
        found = {u for u in units if drawn[u]}
        assert found <= allowed[value]
        assert sum(drawn[u] for u in units) == pytest.approx(1500, abs=120)
        assert {depth[u] for u in found} == {depth[u] for u in allowed[value]}
    assert len(allowed[not positive[rarest[0]]]) < len(there[not positive[rarest[0]]])


@pytest.mark.parametrize("changed", [{"balance": {}}, {"learn": "window"}])
def test_depths_are_matched_for_balanced_windows_only(items, changed):
    with pytest.raises(InputError, match=r"--learn window with --train\.balance true"):
        samples(items, match_depth=True, **changed)


@pytest.mark.parametrize("shares, word", [({"0": 1.0}, "names the classes"), ({"0": 1.0, "1": -0.5}, "at least 0")])
def test_shares_of_classes_that_are_not_there_are_refused(items, shares, word):
    with pytest.raises(InputError, match=word):
        samples(items, balance=shares)


def test_a_sample_holds_windows_of_its_study_in_order(items):
    dataset = samples(items, windows=3, augmentation=None)
    for position in range(6):
        sample = dataset[position]
        places = [place(hu) for hu in sample["hu"][sample["valid"]]]
        study = places[0][0]
        starts = VIEW.windows(SHAPES[study]).tolist()
        assert len(places) == min(3, len(starts)) and places == sorted(set(places))
        assert all(s == study and [d, h, w] in starts for s, d, h, w in places)
        assert (sample["hu"][~sample["valid"]] == -1024).all() and "plane" not in sample
        assert sample["targets"].tolist() == [float(study < 2), 0.0] and sample["replaced"] == 0
    assert samples(items, windows=0).windows == max(len(VIEW.windows(shape)) for shape in SHAPES)


@pytest.mark.parametrize("jitter, free", [("all", (True, True)), ("plane", (False, True)), ("none", (False, False))])
def test_jitter_moves_windows_where_it_may(items, jitter, free):
    dataset = samples(items, windows=1, augmentation=replace(QUIET, jitter=jitter))
    places = [place(dataset[p]["hu"][0]) for p in range(80)]
    starts = {(s, *start) for s, shape in enumerate(SHAPES) for start in VIEW.windows(shape).tolist()}
    depths, planes = {(s, d) for s, d, _, _ in starts}, {(h, w) for _, _, h, w in places}
    assert any((s, d) not in depths for s, d, _, _ in places) == free[0]
    assert planes == ({(h, w) for h in range(3) for w in range(3)} if free[1] else {(1, 1)})


def test_targets_of_windows_follow_the_jitter(items):
    dataset = samples(items, learn="window", task=Sided((0,)), augmentation=replace(QUIET, flip_prob=0.5))
    found = set()
    for position in range(200):
        sample = dataset[position]
        _, depth, _, _ = place(sample["hu"][0])
        positive = float(depth <= 5 and depth + 7 >= 3)
        assert sample["targets"].tolist() == [positive, 0.0], depth
        found.add((depth, positive))
    assert {depth for depth, positive in found if positive} == set(range(6)) and len(found) > 15
    assert len(dataset.units) == sum(len(VIEW.windows(shape)) for shape in SHAPES)


def test_windows_without_a_known_label_are_not_learned(items):
    blank = replace(items[4], slice_labels=np.where(np.arange(30) >= 12, np.nan, 1.0))
    dataset = samples([blank], learn="window")
    starts = [d for d, _, _ in VIEW.windows(SHAPES[4]).tolist()]
    assert len(dataset.units) == sum(d < 12 for d in starts) < len(starts)
    assert all(not torch.isnan(dataset[p]["targets"]).any() for p in range(50))
    with pytest.raises(InputError, match="no labeled study or window"):
        samples([replace(blank, slice_labels=np.full(30, np.nan))], learn="window")


def test_a_left_right_flip_swaps_sided_labels(items):
    mirrored = samples(items, augmentation=replace(QUIET, flip_prob=1.0))
    straight = samples(items, augmentation=replace(QUIET, flip_prob=0.0))
    for position in range(6):
        one, two = mirrored[position], straight[position]
        assert one["flips"].tolist() == [True, False, True] and torch.equal(one["hu"], two["hu"])
        assert one["targets"].tolist() == two["targets"].tolist()[::-1]
        draws = [one[name][None] for name in ("flips", "turns", "plane", "values")]
        hu = one["hu"][:1].float()
        assert (augment_windows(hu, *draws) - hu.flip([2, 4])).abs().max() < 2  # values up to 24000


def test_the_targets_of_a_task_of_the_library_are_swapped(items):
    task = create_task("rsna_pe", heads="exam")
    targets = {output.name: 0.0 for output in task.outputs} | {"leftsided_pe": 1.0}
    dataset = samples([replace(items[0], targets=targets)], task=task, augmentation=replace(QUIET, flip_prob=1.0))
    found = dict(zip([output.name for output in task.outputs], dataset[0]["targets"].tolist()))
    assert found["rightsided_pe"] == 1 and sum(found.values()) == 1


@pytest.mark.parametrize("balance", [None, {}])
def test_a_study_that_cannot_be_read_is_replaced_and_counted(items, tmp_path, balance):
    torn = tmp_path / items[3].paths[0].name
    torn.write_bytes(items[3].paths[0].read_bytes()[:-200])
    dataset = samples([*items[:3], replace(items[3], paths=(torn,)), *items[4:]], balance=balance)
    found = [dataset[p] for p in range(60)]
    share = sum(float(sample["replaced"]) for sample in found) / 60
    expected = 1 / 6 if balance is None else 1 / 8
    assert share == pytest.approx(expected, abs=1e-6 if balance is None else 0.1) and share > 0
    assert 3 not in {place(sample["hu"][0])[0] for sample in found}
    with pytest.raises(ScanError, match="no prepared study can be read"):
        samples([replace(items[3], paths=(torn,))])[0]


@pytest.mark.parametrize("learn, balance", [("study", None), ("study", {"0": 0.3, "1": 0.7}), ("window", {})])
def test_the_expected_weight_is_that_of_what_is_drawn(items, learn, balance):
    """Labels missing, classes weighted and drawn unevenly, sides swapped by flips: the mean weight of draws is near."""
    known = [replace(item, targets={"left": float(k % 2), "right": [0.0, 1.0, np.nan][k % 3]}, stratum=str(k % 2))
             for k, item in enumerate(items)]  # fmt: skip
    augmentation = replace(QUIET, flip_prob=0.3, jitter="none")
    dataset = samples(known, learn=learn, balance=balance, augmentation=augmentation)
    weights = {"left": [0.5, 4.0], "right": [1.0, 7.0]}
    rows, shares = dataset.drawn_targets()
    expected = expected_weights(dataset.task, rows, shares, weights)
    drawn = np.stack([dataset[p]["targets"].numpy() for p in range(1500)])
    for i, (name, table) in enumerate(weights.items()):
        each = np.array([0.0 if np.isnan(y) else table[int(y)] for y in drawn[:, i]])
        assert expected[name] == pytest.approx(each.mean(), abs=4 * each.std() / len(each) ** 0.5), name
    assert shares.sum() == pytest.approx(1) and expected["left"] != expected["right"]
    plain = samples(known, learn=learn, balance=balance, task=Sided(flips=(0,))).drawn_targets()
    assert len(plain[1]) == len(dataset.units), "flips that change no target make no rows"
