from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from voco.data.cache import entry_path, write_entry
from voco.encoders import create_encoder
from voco.errors import InputError
from voco.tasks import create_task
from voco.transfer.artifact import build_model, load_model, save_model
from voco.transfer.heads import NeighbourHead
from voco.transfer.model import HeadOptions
from voco.transfer.predict import score_study
from voco.transfer.views import View
from voco.weights.export import save_encoder

VIEW = View("tiles", (16, 32, 32), (2.0, None, 1.5), stride=(8, 16, 16))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    hu = np.random.default_rng(0).normal(0, 300, (30, 40, 36)).astype(np.int16)
    path = entry_path(tmp_path_factory.mktemp("cache"), "d" * 32)
    write_entry(path, hu, (2, 1, 1.5), {})
    return (path,)


def make(mode, task, **options):
    torch.manual_seed(0)
    encoder = create_encoder("cnn3d_s", window=[(-100, 900)])
    model = build_model(
        encoder, task, HeadOptions(**options), learn="study", chunk=2, mode=mode, bank=7, probe=(3, 0.1)
    )
    with torch.no_grad():
        for buffer in model.buffers():  # no value that a new model would have by itself
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
        if mode == "knn":
            targets = {"stage": torch.tensor([0.0, 1, 2, 0, 1, 2, float("nan")])}
            fitted = NeighbourHead.fit(task.outputs, torch.randn(7, model.num_features), targets, 3, 0.1)
            model.head.load_state_dict(fitted.state_dict())
    return model.eval()


@pytest.mark.parametrize("mode, options", [
    ("full", {"features": "sequence", "sequence": "bilstm", "sequence_options": {"hidden": 8}, "pooling": "attention",
              "hidden": 6, "dropout": 0.5}),
    ("linear", {"features": "pyramid"}),
    ("knn", {"pooling": "max"}),
])  # fmt: skip
def test_a_model_comes_back_bit_for_bit(study, tmp_path, mode, options):
    task = create_task("table", labels=["stage"], kind="multiclass", classes={"stage": ["I", "II", "III or IV"]})
    model = make(mode, task, **options)
    save_encoder(model.encoder, tmp_path / "encoder", {"method": "test"})
    points = {"stage": {"threshold": 0.25}}
    save_model(tmp_path, model, task, VIEW, mode=mode, facts={"operating_points": points})
    found = load_model(tmp_path)
    assert found.view == VIEW and found.facts["operating_points"] == points and found.facts["mode"] == mode
    assert found.task.outputs == task.outputs and not found.model.training and found.model.chunk == 2
    for (name, one), (other, two) in zip(model.state_dict().items(), found.model.state_dict().items()):
        assert name == other and torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0)), name
    before, after = (score_study(m, t, study, VIEW, device=CPU) for m, t in ((model, task), (found.model, found.task)))
    assert before.columns == after.columns
    assert all(np.array_equal(before.windows[n], after.windows[n]) for n in before.windows)


def test_folders_that_hold_no_such_model_are_refused(tmp_path):
    task = create_task("rsna_pe")
    with pytest.raises(InputError, match="no trained model"):
        load_model(tmp_path)
    model = make("linear", task)
    save_encoder(model.encoder, tmp_path / "encoder", {"method": "test"})
    save_model(tmp_path, model, task, VIEW, mode="linear", facts={})
    record = json.loads((tmp_path / "model.json").read_text())

    def refuse(words, **changed):
        (tmp_path / "model.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(InputError, match=words):
            load_model(tmp_path)

    refuse("format 9", format=9)
    refuse("version 99", task={**record["task"], "version": 99})
    refuse("does not fit", head={**record["head"], "hidden": 5})
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="not readable"):
        load_model(tmp_path)
