"""The scores against literal loops, scipy and scikit-learn; the evaluation against methods whose score is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score

from tests.health.nulls import ArrayVolume
from voco.crops import cut, overlap_labels
from voco.errors import InputError
from voco.geometry import Geometry
from voco.health import (
    build_eval_windows,
    calibrate_batchnorm,
    evaluate,
    evaluate_histogram,
    outer_window,
    similarity_examples,
)
from voco.health.scores import (
    effective_rank,
    hu_histograms,
    position_credit,
    position_tallies,
    rank_correlation,
    standardised_cosine,
)
from voco.losses import voco_cross_entropy

GEOMETRY = Geometry(crop=8)


def noise_volumes(count, shape=(20, 30, 28), seed=0):
    rng = np.random.default_rng(seed)
    return [ArrayVolume(rng.integers(-1000, 500, shape)) for _ in range(count)]


class KnownMethod:
    """Answers with a given function of the true overlap, whatever the voxels are."""

    def __init__(self, answer, geometry=GEOMETRY):
        self.geometry, self.answer = geometry, answer

    def inspect(self, hu, base_starts, query_starts, shift):
        flat = query_starts.clone()
        flat[..., 0] = self.geometry.base_starts()[0, 0]
        cosine = self.answer(overlap_labels(flat, self.geometry), shift)
        many = base_starts.shape[0] + query_starts.shape[1]
        features = torch.arange(many * 5.0).reshape(1, many, 5).sin().expand(len(hu), -1, -1)
        same = torch.eye(base_starts.shape[0]).expand(len(hu), -1, -1)
        return SimpleNamespace(cosine=cosine, base_cosine=same, features=features, embeddings=features)

    def loss_terms(self, cosine, labels):
        positive, negative = voco_cross_entropy(labels, cosine.relu())
        return {"intra": positive + negative, "intra_positive": positive, "intra_negative": negative}


# ---- scores


def test_rank_correlation_is_scipys_with_ties():
    rng = np.random.default_rng(1)
    similarity = rng.normal(size=(40, 9)).round(1)
    labels = rng.random((40, 9)) * (rng.random((40, 9)) < 0.5)
    found = rank_correlation(similarity, labels)
    assert found == pytest.approx([spearmanr(a, b).statistic for a, b in zip(similarity, labels)])
    assert rank_correlation(np.ones((2, 9)), labels[:2]).tolist() == [0.0, 0.0]


def test_position_scores_are_accuracy_and_scikit_learns_balanced_accuracy():
    rng = np.random.default_rng(2)
    labels = rng.random((300, 9))
    similarity = labels + rng.normal(scale=0.4, size=labels.shape)
    found = position_tallies(rng.integers(0, 5, 300), similarity, labels)
    true, picked = labels.argmax(1), similarity.argmax(1)
    assert found["accuracy"].value == pytest.approx((true == picked).mean())
    assert found["accuracy_balanced"].value == pytest.approx(balanced_accuracy_score(true, picked))
    assert found["accuracy_balanced"].clusters == 5


def test_balanced_accuracy_counts_only_cells_that_occur():
    labels = np.eye(9)[[4, 4, 4, 0]]
    similarity = np.eye(9)[[4, 4, 1, 0]]
    found = position_tallies(np.zeros(4), similarity, labels)
    assert found["accuracy"].value == 0.75
    assert found["accuracy_balanced"].value == pytest.approx((2 / 3 + 1) / 2)


def test_tied_similarity_is_a_blind_pick_and_tied_overlap_does_not_count():
    labels = np.array([[0.6, 0.4, 0, 0], [1.0, 0, 0, 0], [0.1, 0.9, 0, 0], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    similarity = np.array([[0.2, 0.1, 0, 0], [0.3, 0.3, 0.3, 0.3], [0, 0.7, 0.7, 0], [np.nan] * 4, [0.2, 0.1, 0, 0]])
    assert position_credit(similarity, labels).tolist() == pytest.approx([1.0, 0.25, 0.5, 0.0, np.nan], nan_ok=True)
    found = position_tallies(np.zeros(5), similarity, labels)
    assert found["accuracy"].value == pytest.approx(1.75 / 4)
    assert found["accuracy_balanced"].value == pytest.approx((1.25 / 3 + 0.5) / 2)


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_effective_rank_counts_equal_directions(directions):
    # rows +e_i and -e_i are centred and have equal singular values in each of the directions
    features = np.concatenate([np.eye(12)[:directions], -np.eye(12)[:directions]]) + 5.0
    assert effective_rank(features) == pytest.approx(directions)
    assert effective_rank(np.full((6, 4), 3.0)) == 0.0
    assert np.isnan(effective_rank(np.array([[np.nan, 1.0], [0.0, 1.0]])))


def test_standardised_cosine_is_the_literal_formula_and_ignores_constant_entries():
    rng = np.random.default_rng(3)
    bases, queries = rng.normal(size=(2, 9, 6)) * 50 + 200, rng.normal(size=(2, 4, 6)) * 50 + 200
    with_constant = [np.concatenate([x, np.full((*x.shape[:2], 1), 7.0)], axis=-1) for x in (bases, queries)]
    with_constant[1][..., -1] = 900.0  # varies in the queries alone: carries no order over the bases
    found = standardised_cosine(*with_constant)
    for b in range(2):
        mean, deviation = bases[b].mean(0), bases[b].std(0)
        for q in range(4):
            for n in range(9):
                u, v = (queries[b, q] - mean) / deviation, (bases[b, n] - mean) / deviation
                expected = (u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum())
                assert found[b, q, n] == pytest.approx(expected)


def test_hu_histograms_are_numpys_after_clip_and_shift():
    rng = np.random.default_rng(4)
    crops = rng.integers(-1500, 900, (3, 4, 5, 6)).astype(np.int16)
    shift = np.array([-0.093, 0.0, 0.071])
    # 25 bins: with 24 the clipped values would fall on a bin's edge, where rounding decides
    found = hu_histograms(torch.from_numpy(crops), (-1000, 500), torch.from_numpy(shift), bins=25)
    for crop, s, shares in zip(crops, shift, found.numpy()):
        counts, _ = np.histogram(crop.clip(-1000, 500) + s * 1500, bins=25, range=(-1150, 650))
        assert np.abs(shares * crop.size - counts).sum() <= 2
        assert shares.sum() == pytest.approx(1.0)
    assert hu_histograms(torch.from_numpy(crops), (-1000, 500)).shape == (3, 24)


# ---- windows


def test_slabs_are_neighbours_along_z_and_share_no_voxel():
    depth = np.arange(40, dtype=np.int16)[:, None, None]
    volume = ArrayVolume(np.broadcast_to(depth, (40, 30, 30)))
    windows = build_eval_windows([volume, volume], GEOMETRY, per_scan=4, seed=1)
    assert {w.side for w in windows} == {"above", "below"}
    for window in windows:
        base, query = window.slabs[:8, 0, 0].tolist(), window.slabs[8:, 0, 0].tolist()
        assert base == list(range(base[0], base[0] + 8)) and query == list(range(query[0], query[0] + 8))
        assert query[0] - base[0] == (8 if window.side == "above" else -8)


def test_windows_depend_on_seed_and_name_alone():
    volumes = noise_volumes(3)
    windows = build_eval_windows(volumes, GEOMETRY, seed=3, names=["a", "b", "c"])
    assert [w.scan for w in windows] == [0, 1, 2, 0, 1, 2]
    turned = build_eval_windows(
        [lambda v=v: v for v in volumes[::-1]], GEOMETRY, seed=3, names=["c", "b", "a"], per_scan=1
    )
    assert np.array_equal(turned[2].hu, windows[0].hu) and np.array_equal(turned[0].hu, windows[2].hu)
    other = build_eval_windows(volumes, GEOMETRY, seed=4, names=["a", "b", "c"])
    assert not np.array_equal(other[0].hu, windows[0].hu)
    assert len({w.scan for w in build_eval_windows(volumes * 4, GEOMETRY, seed=0, max_scans=5)}) == 5


def test_shallow_scans_and_whole_volumes_have_no_disjoint_score():
    shallow, deep = noise_volumes(1, (11, 30, 30)), noise_volumes(1, (12, 30, 30))
    windows = build_eval_windows(shallow + deep, GEOMETRY, seed=0)
    assert [w.slabs is None for w in windows] == [True, False] * 2
    report = evaluate(KnownMethod(lambda y, s: y), windows, seed=0)
    assert (report.scans, report.disjoint_scans) == (2, 1)
    whole = build_eval_windows(deep, GEOMETRY, seed=0, region="whole")
    report = evaluate(KnownMethod(lambda y, s: y), whole, seed=0)
    assert report.score("disjoint_accuracy") is None and "neighbouring slab" in report.disjoint_missing
    with pytest.raises(InputError, match="held-out"):
        build_eval_windows([], GEOMETRY, seed=0)


# ---- evaluation


@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry(crop=8, window_depth=14, random_axes="all", grid=(4, 3))])
def test_an_oracle_is_perfect_and_a_constant_is_chance(geometry):
    windows = build_eval_windows(noise_volumes(3, (24, 36, 28)), geometry, seed=0)
    inplane = geometry.random_axes == "inplane"
    oracle = evaluate(KnownMethod(lambda y, s: y, geometry), windows, seed=0)
    for score in ("position_accuracy", "position_accuracy_balanced", "disjoint_accuracy", "disjoint_accuracy_balanced"):
        assert oracle.score(score) == 1.0, score
        assert oracle.interval(score) is None  # no width: every scan is alike
    assert oracle.score("rank_correlation") == pytest.approx(1.0)
    assert oracle.score("reg") == 0.0 and oracle.score("mean_cosine") == 0.0
    if inplane:  # with an offset along z the overlap is smaller than the oracle, which looks at the plane, says
        assert oracle.score("intra") == pytest.approx(0.0, abs=1e-5)
    constant = evaluate(KnownMethod(lambda y, s: torch.full_like(y, 0.2), geometry), windows, seed=0)
    for score in ("position_accuracy", "position_accuracy_balanced", "disjoint_accuracy", "disjoint_accuracy_balanced"):
        assert constant.score(score) == pytest.approx(1 / geometry.bases), score
    assert constant.score("rank_correlation") == 0.0


def test_always_guessing_the_centre_is_a_quarter_plain_and_a_ninth_balanced():
    windows = build_eval_windows(noise_volumes(20, (16, 26, 26)), GEOMETRY, seed=0)
    centre = torch.eye(9)[4]
    report = evaluate(KnownMethod(lambda y, s: centre.expand_as(y)), windows, seed=0, queries=60)
    assert report.score("position_accuracy") == pytest.approx(0.25, abs=0.03)  # sd of 2400 draws 0.009
    assert report.score("position_accuracy_balanced") == pytest.approx(1 / 9, abs=0.01)


def test_only_shifted_passes_carry_shifts_within_range():
    seen = []
    windows = build_eval_windows(noise_volumes(2), GEOMETRY, seed=0)
    evaluate(KnownMethod(lambda y, s: seen.append(s) or y), windows, seed=0, queries=6)
    assert sum(s is None for s in seen) == sum(s is not None for s in seen) > 0
    shifts = torch.cat([s.flatten() for s in seen if s is not None])
    assert shifts.abs().max() <= 0.1 and shifts.min() < -0.05 and shifts.max() > 0.05


def test_loss_terms_are_those_of_the_method_in_groups_as_in_training():
    windows = build_eval_windows(noise_volumes(2), GEOMETRY, seed=0, per_scan=1)
    seen = []
    method = KnownMethod(lambda y, s: seen.append(y) or (0.5 * y + 0.1))
    report = evaluate(method, windows, seed=0, queries=7)  # 7 queries are three pairs, one left over
    per_window = []
    for y in seen[0]:
        pairs = [voco_cross_entropy(y[None, i : i + 2], 0.5 * y[None, i : i + 2] + 0.1) for i in (0, 2, 4)]
        per_window.append(np.mean([float(p + n) for p, n in pairs]))
    assert report.score("intra") == pytest.approx(np.mean(per_window), abs=1e-5)
    parts = report.score("intra_positive") + report.score("intra_negative")
    assert report.score("intra") == pytest.approx(parts, abs=1e-5)


def test_histogram_line_knows_textures_and_only_through_the_slab_where_they_go_on():
    rng = np.random.default_rng(7)
    plane = np.kron(rng.permutation(36).reshape(6, 6) * 40 - 900, np.ones((8, 8)))
    same = [ArrayVolume(np.broadcast_to(plane, (20, 48, 48)))] * 2
    noise = noise_volumes(12, (20, 48, 48))
    found = {}
    for name, volumes in (("same", same), ("noise", noise)):
        windows = build_eval_windows(volumes, GEOMETRY, seed=0, per_scan=4)
        found[name] = evaluate_histogram(windows, GEOMETRY, outer_window([(-1000, 500)]), seed=0)
    assert found["same"].score("clean_position_accuracy") > 0.7
    assert found["same"].score("clean_disjoint_accuracy") > 0.7
    assert found["noise"].score("clean_position_accuracy") > 0.3  # shared voxels tell
    assert found["noise"].score("clean_disjoint_accuracy") < 0.2  # nothing else does


def test_batches_do_not_change_which_window_gets_which_answer():
    windows = build_eval_windows(noise_volumes(3), GEOMETRY, seed=0, per_scan=1)
    method = KnownMethod(lambda y, s: y + 0.3 * torch.sin(100 * y) - 0.1)
    one, two = (evaluate(method, windows, seed=0, batch_volumes=b) for b in (1, 2))
    assert one.metrics() == pytest.approx(two.metrics())
    assert outer_window([(-160, 240), (-1000, 400)]) == (-1000, 400)


class TinyNetwork(torch.nn.Module):
    """A BatchNorm network with the interface of a method."""

    def __init__(self):
        super().__init__()
        self.geometry = GEOMETRY
        self.encoder = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.BatchNorm3d(4), torch.nn.Dropout(0.5))
        self.frozen = torch.nn.BatchNorm1d(4).eval()

    def inspect(self, hu, base_starts, query_starts, shift):
        starts = torch.cat([base_starts.expand(len(hu), -1, -1), query_starts], 1)
        x = cut(hu, starts, self.geometry.size).flatten(0, 1)[:, None].float() / 1000
        f = self.encoder(x).mean((2, 3, 4)).reshape(len(hu), -1, 4)
        unit = torch.nn.functional.normalize(f, dim=-1)
        b, q = unit[:, : len(base_starts)], unit[:, len(base_starts) :]
        return SimpleNamespace(cosine=q @ b.mT, base_cosine=b @ b.mT, features=f, embeddings=f)

    loss_terms = KnownMethod.loss_terms


def test_evaluation_leaves_weights_modes_and_random_state_alone():
    windows = build_eval_windows(noise_volumes(2), GEOMETRY, seed=0)
    method = TinyNetwork().train()
    method.frozen.eval()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    random_state = torch.get_rng_state()
    first = evaluate(method, windows, seed=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert first.metrics() == evaluate(method, windows, seed=0).metrics()
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert method.training and method.encoder[1].training and not method.frozen.training


def test_batchnorm_calibration_estimates_the_statistics_and_nothing_else():
    windows = build_eval_windows(noise_volumes(4), GEOMETRY, seed=0)
    method = TinyNetwork().train()
    method.frozen.eval()
    weight = method.encoder[0].weight.clone()
    assert calibrate_batchnorm(method, windows, batch_volumes=8) == 1
    starts = GEOMETRY.base_starts().expand(8, -1, -1)
    crops = cut(torch.from_numpy(np.stack([w.hu for w in windows])), starts, GEOMETRY.size).flatten(0, 1)
    with torch.no_grad():
        expected = method.encoder[0](crops[:, None].float() / 1000).mean((0, 2, 3, 4))
    assert torch.allclose(method.encoder[1].running_mean, expected, atol=0.02)
    assert torch.equal(method.encoder[0].weight, weight) and method.encoder[1].momentum == 0.1
    assert method.encoder[1].training and not method.frozen.training
    assert calibrate_batchnorm(torch.nn.Linear(2, 2), windows) == 0


# ---- the real method


def test_loss_terms_of_the_method_are_those_of_its_forward_pass():
    from voco.encoders import create_encoder
    from voco.geometry import Augmentation
    from voco.health.windows import draw_queries
    from voco.methods.voco3d import VoCo3D

    torch.manual_seed(0)
    geometry = Geometry(crop=16)
    method = VoCo3D(create_encoder("cnn3d_s"), geometry, Augmentation()).train()
    windows = build_eval_windows(noise_volumes(2, (34, 50, 60)), geometry, seed=0, per_scan=1)
    assert calibrate_batchnorm(method, windows) > 0
    report = evaluate(method, windows, seed=5, queries=2)
    asked = draw_queries(windows, geometry, 2, 5, 0.1, slabs=False)
    nothing = {"flips": torch.zeros(2, 11, 3).bool(), "turns": torch.zeros(2, 11).long(), "shift": torch.zeros(2, 11)}
    hu = torch.from_numpy(np.stack([w.hu for w in windows]))
    with torch.no_grad():
        expected = method.eval()({"hu": hu, "case": torch.tensor([0, 1]), "starts": asked.starts, **nothing})
    for name in ("intra", "intra_positive", "intra_negative", "inter", "reg"):
        assert report.score(name) == pytest.approx(float(expected[name]), abs=1e-5), name
    assert 1 < report.score("effective_rank") <= 17
    half = evaluate(method, windows, seed=5, queries=2, positions_only=True)
    assert set(half.tallies) < set(report.tallies) and not any("clean" in name for name in half.tallies)
    assert all(half.score(name) == report.score(name) for name in half.tallies)
    example = similarity_examples(method, windows, seed=5, count=1)[0]
    _, row, col = example.start
    assert np.array_equal(example.crop, windows[0].hu[:, row : row + 16, col : col + 16])
    other = similarity_examples(method, windows, seed=5, count=1, slabs=True)[0]
    assert np.array_equal(
        other.crop, windows[0].slabs[16:, other.start[1] : other.start[1] + 16, other.start[2] : other.start[2] + 16]
    )
    starts = torch.tensor([[example.start]]).reshape(1, 3)
    assert example.labels == pytest.approx(overlap_labels(starts, geometry)[0].numpy())
    lonely = evaluate(method, windows[:1], seed=5, queries=2)
    assert lonely.score("inter") is None and lonely.interval("intra") is None
