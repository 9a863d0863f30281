"""voco embed: features of scans as tables."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

import voco
from voco.cli import main
from voco.data.cache import PreparedVolume
from voco.embed_command import encoder_of
from voco.encoders import create_encoder
from voco.transfer.features import default_view
from voco.transfer.views import View
from voco.weights.export import save_encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder with a small tile, and two scans of one patient and one of another."""
    folder = tmp_path_factory.mktemp("embed")
    torch.manual_seed(0)
    spec = create_encoder("cnn3d_s").input_spec.to_dict() | {"size": [16, 16, 16], "spacing_mm": [4.0, 4.0, 4.0]}
    save_encoder(create_encoder("cnn3d_s", input_spec=spec), folder / "run" / "encoder", {"method": "test"})
    for i, name in enumerate(("roe/a", "roe/b", "doe/c")):
        image = sitk.GetImageFromArray(np.random.default_rng(i).integers(-900, 900, (20, 24, 28)).astype(np.int16))
        image.SetSpacing((4.0, 4.0, 4.0))
        path = folder / "scans" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
    (folder / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    return folder


def test_a_table_has_the_mean_over_the_tiles_of_each_scan(place, capsys):
    out = place / "out" / "f.csv"
    command = ["embed", str(place / "run"), str(place / "scans"), str(out), "--workers", "1", "--keep_air"]
    assert main(command) == 0
    assert "embedded 3 scans, rejected 1" in capsys.readouterr().out
    table = pd.read_csv(out)
    assert list(table.columns[:3]) == ["case", "patient", "path"] and len(table) == 3
    assert table["patient"].tolist() == ["doe", "roe", "roe"]
    assert table["path"].tolist() == ["doe/c.nii.gz", "roe/a.nii.gz", "roe/b.nii.gz"]
    assert pd.read_csv(out.parent / "rejected.csv")["path"].tolist() == ["broken.nii.gz"]
    encoder = voco.load_encoder(place / "run")
    array = voco.read_volume(place / "scans" / "doe" / "c.nii.gz").array
    places = [(d, h, w) for d in (0, 4) for h in (0, 8) for w in (0, 12)]
    tiles = torch.stack([torch.from_numpy(array[d : d + 16, h : h + 16, w : w + 16]) for d, h, w in places])
    with torch.no_grad():
        wanted = encoder(tiles.unsqueeze(1)).mean(0).numpy()
    row = table[table["case"].str.contains("doe")].iloc[0, 3:].to_numpy(float)
    np.testing.assert_allclose(row, wanted, rtol=1e-3, atol=1e-6)

    # the other formats, from the cache that was made
    for name in ("g.npz", "g.parquet"):
        assert main(["embed", str(place / "run"), str(out.parent / "cache"), str(place / name), "--keep_air"]) == 0
    with np.load(place / "g.npz") as found:
        assert sorted(found["case"]) == sorted(table["case"]) and found["features"].dtype == np.float32
    np.testing.assert_allclose(pd.read_parquet(place / "g.parquet").iloc[:, 3:], table.iloc[:, 3:], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out": "x.txt"}, "ends in .csv, .npz, .parquet"),
        ({"source": "nowhere"}, "does not exist"),
        ({"encoder": "cnn3d_s"}, "without weights"),
        ({"encoder": "./nowhere"}, "nowhere is not an encoder folder"),
        ({"extra": ["--device", "gpu7"]}, "--device"),
        ({"extra": ["--view", "resize"], "source": "cache"}, "other settings"),
    ],
)
def test_what_cannot_work_is_one_sentence(place, tmp_path, capsys, change, words):
    from voco.data.manifest import build_manifest
    from voco.data.prepare import PrepareSettings, prepare

    if change.get("source") == "cache":
        manifest = build_manifest(place / "scans")
        prepare(manifest.cases, manifest.root, tmp_path / "cache", PrepareSettings((9, 9, 9)), progress=False)
        change = change | {"source": str(tmp_path / "cache")}
    command = [
        *("embed", change.get("encoder", str(place / "run"))),
        *(change.get("source", str(place / "scans")), str(tmp_path / change.get("out", "x.csv"))),
        *change.get("extra", []),
    ]
    assert main(command) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


def test_an_encoder_by_name_and_weights(place):
    encoder = encoder_of("cnn3d_s", str(place / "run"))
    assert not encoder.training and encoder.input_spec.size == (16, 16, 16)


def test_an_encoder_without_a_voxel_size_sees_the_whole_scan():
    encoder = create_encoder("cnn3d_s")
    encoder.input_spec = replace(encoder.input_spec, spacing_mm=None)
    view = default_view(encoder)
    assert view.kind == "resize" and view.size == encoder.input_spec.size


def test_embedding_leaves_the_encoder_as_it_was_and_does_not_depend_on_chunks(place, tmp_path):
    from voco.data.cache import write_entry

    array = np.random.default_rng(0).integers(-900, 900, (20, 40, 20)).astype(np.int16)
    write_entry(tmp_path / "a.b2nd", array, (4.0, 4.0, 4.0), {})
    encoder, volume = create_encoder("cnn3d_s").train(), PreparedVolume.open(tmp_path / "a.b2nd")
    before = json.dumps({k: v.double().sum().item() for k, v in encoder.state_dict().items()})
    one, many = (voco.embed(encoder, volume, view=View("tiles", (16, 16, 16)), chunk=n) for n in (1, 50))
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-6)
    assert all(m.training for m in encoder.modules())
    assert before == json.dumps({k: v.double().sum().item() for k, v in encoder.state_dict().items()})
