from __future__ import annotations

import numpy as np
import pytest
import torch

from voco.data.cache import entry_path, write_entry
from voco.encoders import create_encoder
from voco.tasks import create_task
from voco.transfer.model import HeadOptions, StudyModel, output_widths
from voco.transfer.predict import allowed_flips, score_study, unflip, window_features
from voco.transfer.views import View, read_window

CPU = torch.device("cpu")
VIEW = View("slice_windows", (16, 32, 32), stride=(8, 32, 32))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    hu = np.random.default_rng(0).normal(0, 300, (45, 32, 32)).astype(np.int16)
    path = entry_path(tmp_path_factory.mktemp("cache"), "c" * 32)
    write_entry(path, hu, (2, 1, 1), {})
    return (path,), hu


def model(task, learn="study", chunk=0, **options) -> StudyModel:
    torch.manual_seed(0)
    return StudyModel(
        create_encoder("cnn3d_s"), output_widths(task.outputs), HeadOptions(**options), learn=learn, chunk=chunk
    ).train()


def windows_of(hu, flips=()):
    parts = [hu[d : d + 16] for d in (0, 8, 16, 24, 29)]
    x = torch.from_numpy(np.stack(parts)).float()[:, None]
    return x.flip([2 + axis for axis in flips]) if flips else x


def classes():
    return create_task(
        "table", labels=["stage"], kind="multiclass", classes={"stage": ["I", "II", "III"]}, flips=[0, 1]
    )


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_a_study_is_scored_as_the_formula_says(study, pooling):
    paths, hu = study
    task, net = classes(), None
    net = model(task, pooling=pooling)
    found = score_study(net, task, paths, VIEW, device=CPU)
    assert net.training, "the mode that it was in"
    net.eval()
    with torch.no_grad():
        features = net.encoder(windows_of(hu))
        pooled = {"mean": features.mean(0), "max": features.amax(0)}.get(pooling)
        if pooled is None:
            pooled = net.attention(features[None], torch.ones(1, 5, dtype=torch.bool))[0]
        expected = torch.softmax(net.head.layer("stage")(pooled).double(), 0)
        each = torch.softmax(net.head.layer("stage")(features).double(), 1)
    assert list(found.columns) == ["score_stage_I", "score_stage_II", "score_stage_III"]
    assert list(found.columns.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert np.allclose(np.stack(list(found.windows.values()), 1), each.numpy(), atol=1e-6)
    assert found.starts.tolist() == [[d, 0, 0] for d in (0, 8, 16, 24, 29)] and found.logits["stage"].shape == (1, 3)


@pytest.mark.parametrize("pooling, how", [("max", np.max), ("mean", np.mean)])
def test_windows_learned_on_their_own_are_pooled_by_probability(study, pooling, how):
    paths, hu = study
    task = classes()
    net = model(task, "window", pooling=pooling)
    found = score_study(net, task, paths, VIEW, device=CPU)
    with torch.no_grad():
        each = torch.softmax(net.eval().head(net.encoder(windows_of(hu)))["stage"].double(), 1).numpy()
    expected = how(each, axis=0)
    assert list(found.columns.values()) == pytest.approx((expected / expected.sum()).tolist(), abs=1e-6)
    assert found.logits["stage"].shape == (5, 3)
    binary = create_task("rsna_pe")
    net = model(binary, "window", pooling=pooling)
    found = score_study(net, binary, paths, VIEW, device=CPU)
    assert found.columns["score_pe"] == pytest.approx(how(found.windows["score_pe"]))


@pytest.mark.parametrize("learn", ["study", "window"])
def test_chunks_change_no_score(study, learn):
    task = classes()
    found = [score_study(model(task, learn, chunk), task, study[0], VIEW, device=CPU) for chunk in (0, 1, 3)]
    for other in found[1:]:
        assert list(other.columns.values()) == pytest.approx(list(found[0].columns.values()), abs=1e-6)
        for name, values in other.windows.items():
            assert np.allclose(values, found[0].windows[name], atol=1e-6)


def test_flips_are_averaged_as_probabilities(study):
    paths, hu = study
    task = classes()
    net = model(task)
    flips = allowed_flips(task)
    assert flips == [(), (0,), (1,), (0, 1)]
    found = score_study(net, task, paths, VIEW, device=CPU, flips=flips)
    with torch.no_grad():
        net.eval()
        each = [
            torch.softmax(net.head(net.encoder(windows_of(hu, f)).mean(0)[None])["stage"].double(), 1) for f in flips
        ]
    assert list(found.columns.values()) == pytest.approx(torch.stack(each).mean((0, 1)).tolist(), abs=1e-6)
    assert np.std([p[0, 0].item() for p in each]) > 0


def test_sided_outputs_change_places_back(study):
    paths, hu = study
    task = create_task("rsna_pe", heads="exam")
    net = model(task)
    assert allowed_flips(task) == [(), (2,)]
    found = score_study(net, task, paths, VIEW, device=CPU, flips=[(2,)])
    with torch.no_grad():
        z = net.eval().head(net.encoder(windows_of(hu, (2,))).mean(0)[None])
    left, right = (torch.sigmoid(z[f"{side}sided_pe"].double()).item() for side in ("left", "right"))
    assert found.columns["score_leftsided_pe"] == pytest.approx(right, abs=1e-6)
    assert found.columns["score_rightsided_pe"] == pytest.approx(left, abs=1e-6) and abs(left - right) > 1e-4
    central = torch.sigmoid(z["central_pe"].double()).item()
    assert found.columns["score_central_pe"] == pytest.approx(central, abs=1e-6)
    both = score_study(net, task, paths, VIEW, device=CPU, flips=[(), (2,)])
    plain = score_study(net, task, paths, VIEW, device=CPU)
    expected = (plain.columns["score_leftsided_pe"] + right) / 2
    assert both.columns["score_leftsided_pe"] == pytest.approx(expected, abs=1e-6)
    assert unflip(task, plain.columns, ()) == plain.columns


def test_features_are_those_that_scores_come_from(study):
    paths, hu = study
    task = classes()
    net = model(task, chunk=2)
    features, starts = window_features(net, paths, VIEW)
    with torch.no_grad():
        assert np.allclose(features, net.eval().encoder(windows_of(hu)).numpy(), atol=1e-5)
    assert features.dtype == np.float32 and len(starts) == 5


def test_a_window_beyond_the_study_is_air():
    class Volume:
        def read(self, start, size):
            assert all(type(s) is int for s in start)
            return np.zeros(size, np.int16)

    assert read_window(Volume(), np.array([0, -3, 2]), VIEW).shape == VIEW.size
