"""An exported folder gives the same encoder back, bit for bit, or says why not."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from voco.encoders import create_encoder, load_encoder
from voco.errors import InputError
from voco.weights.export import save_encoder
from voco.weights.load import load_weights

PROVENANCE = {
    "method": "voco3d",
    "data": "9 CT scans",
    "steps": 100,
    "settings": {"learning_rate": 1e-3},
    "results": {"held_out_intra": 0.42},
    "license": "cc-by-4.0",
    "citation": "A paper | with a bar",
}


def trained(**keywords):
    """A small encoder whose running statistics and geometry are not the defaults."""
    torch.manual_seed(4)
    encoder = create_encoder("cnn3d_s", **keywords)
    encoder(hu())
    encoder.input_spec = replace(encoder.input_spec, spacing_mm=(2.5, 1.25, 1.25))
    return encoder.eval()


def hu():
    return torch.randint(-1200, 1500, (3, 1, 32, 40, 33), generator=torch.Generator().manual_seed(0), dtype=torch.int16)


@pytest.mark.parametrize(
    "keywords", [{}, {"window": (-175, 250)}, {"window": [(-1000, 500), (-100, 900)]}], ids=["default", "one", "two"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_bit_identical(keywords, dtype, tmp_path):
    encoder = trained(**keywords).to(dtype)
    assert save_encoder(encoder, tmp_path / "run" / "encoder", PROVENANCE) == tmp_path / "run" / "encoder"
    for place in ("run", "run/encoder", "run/encoder/config.json", "run/encoder/model.safetensors"):
        again = load_encoder(tmp_path / place)
        assert not again.training
        assert again.input_spec == encoder.input_spec
        assert torch.equal(again(hu()), encoder(hu()))
    assert again.provenance == [PROVENANCE]
    assert again.load_report.coverage == 1.0
    assert sorted(os.listdir(tmp_path / "run" / "encoder")) == ["README.md", "config.json", "model.safetensors"]


def test_arguments_and_alias_survive(tmp_path):
    encoder = create_encoder("swin_t", drop_path_rate=0.2, window=(-1000, 500))
    again = load_encoder(save_encoder(encoder, tmp_path / "e", {}))
    assert (again.name, again.arguments) == ("swinunetr_t", {"drop_path_rate": 0.2})
    assert again.input_spec == encoder.input_spec
    state = encoder.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert len(load_file(tmp_path / "e" / "model.safetensors")) == 145


def test_history_grows_and_weights_bring_their_spec(tmp_path):
    save_encoder(trained(window=(-175, 250)), tmp_path / "a", PROVENANCE)
    second = create_encoder("cnn3d_s", checkpoint=tmp_path / "a")
    assert second.input_spec.windows == ((-175.0, 250.0),)
    assert second.input_spec.spacing_mm == (2.5, 1.25, 1.25)
    save_encoder(second, tmp_path / "b", {"method": "again"})
    assert [entry["method"] for entry in load_encoder(tmp_path / "b").provenance] == ["voco3d", "again"]
    other = create_encoder("cnn3d_s", checkpoint=tmp_path / "a", window=(-1000, 500))
    assert other.input_spec.windows == ((-1000.0, 500.0),)


def test_card_is_a_hub_card(tmp_path):
    folder = save_encoder(trained(), tmp_path / "e", PROVENANCE, card="An encoder of mine.")
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "voco"
    assert "computed-tomography" in front["tags"]
    for expected in (
        "An encoder of mine.",
        "voco.load_encoder(",
        "9 CT scans",
        "| learning_rate | 0.001 |",
        "| held_out_intra | 0.42 |",
        "2.5 x 1.25 x 1.25 mm",
        "[-1000, 500]",
        "A paper | with a bar",
    ):
        assert expected in body
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert yaml.safe_load((save_encoder(trained(), tmp_path / "f", {}) / "README.md").read_text().split("---\n")[1])[
        "license"
    ] == ("unknown")


@pytest.mark.parametrize("failing_write", [0, 1, 2])
def test_a_failed_write_leaves_the_old_encoder(failing_write, tmp_path, monkeypatch):
    old = trained()
    save_encoder(old, tmp_path / "e", PROVENANCE)
    new = trained()
    torch.nn.init.ones_(new.stem[0].weight)
    calls = []

    def full_disk(fd):
        calls.append(fd)
        if len(calls) > failing_write:
            raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_encoder(new, tmp_path / "e", PROVENANCE)
    monkeypatch.undo()
    assert torch.equal(load_encoder(tmp_path / "e")(hu()), old(hu()))
    assert len(os.listdir(tmp_path / "e")) == 3
    save_encoder(new, tmp_path / "e", PROVENANCE)
    assert torch.equal(load_encoder(tmp_path / "e")(hu()), new(hu()))


def edit(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_wrong_folders_are_named(tmp_path):
    folder = save_encoder(trained(), tmp_path / "e", PROVENANCE)
    with pytest.raises(InputError, match=r"holds a cnn3d_s, not a r3d_18"):
        create_encoder("r3d_18", checkpoint=folder)
    edit(folder, arch="r3d_18")
    with pytest.raises(InputError, match="does not fit encoder r3d_18"):
        load_encoder(folder)
    edit(folder, arch="resnet_of_tomorrow")
    with pytest.raises(InputError, match=r"resnet_of_tomorrow.*known: .*cnn3d_s"):
        load_encoder(folder)
    edit(folder, format="transformers")
    with pytest.raises(InputError, match="not written by voco"):
        load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_encoder(folder)
    with pytest.raises(InputError, match="not an encoder folder"):
        load_encoder(tmp_path)


def test_weights_that_do_not_belong_to_the_config(tmp_path):
    folder = save_encoder(trained(), tmp_path / "e", PROVENANCE)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "extra.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"do not belong together(.|\n)*extra\.weight"):
        load_encoder(folder)
    state.pop("stem.1.running_mean")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"do not belong together(.|\n)*stem\.1\.running_mean"):
        load_encoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load_encoder(folder)


def test_weights_beside_a_foreign_config_are_a_plain_file(tmp_path):
    encoder = trained()
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    again = create_encoder("cnn3d_s", checkpoint=tmp_path / "model.safetensors").eval()
    assert torch.equal(again(hu()), encoder(hu()))


def test_only_registered_encoders_are_exported(tmp_path):
    from voco.encoders.cnn3d import CNN3D, SPEC

    with pytest.raises(InputError, match="create_encoder"):
        save_encoder(CNN3D(SPEC), tmp_path / "e", {})
    with pytest.raises(InputError, match="plain JSON"):
        save_encoder(trained(), tmp_path / "e", {"data": object()})
    assert not (tmp_path / "e" / "config.json").exists()


def test_hub_ids(tmp_path, monkeypatch):
    from voco.weights import download

    def unreachable(*_):
        raise InputError("no route to host")

    monkeypatch.setattr(download, "fetch_hub_file", unreachable)
    with pytest.raises(InputError, match=r"no file or folder someone/an-encoder, and as a Hugging Face id: no route"):
        load_encoder("someone/an-encoder")
    folder = save_encoder(trained(), tmp_path / "e", PROVENANCE)
    monkeypatch.setattr(download, "fetch_hub_file", lambda *_: folder)
    assert torch.equal(load_encoder("someone/an-encoder")(hu()), trained()(hu()))


def test_reports_survive_in_the_encoder(tmp_path):
    folder = save_encoder(trained(), tmp_path / "e", PROVENANCE)
    encoder = create_encoder("cnn3d_s")
    report = load_weights(encoder, folder)
    assert encoder.load_report is report
    assert encoder.provenance == [PROVENANCE]
