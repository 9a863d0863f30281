"""The command, the function, the page, the card and the linear probe give one vector of a scan."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune.figures
import voco
from finetune.run import main as finetune_main
from tests.finetune.made import write_scan, write_table
from voco.cli import main
from voco.data.cache import PreparedVolume
from voco.encoders import create_encoder
from voco.phantom.anatomy.patient import make_patient
from voco.phantom.layouts.writers import write_dicom, write_nifti
from voco.transfer.artifact import load_model
from voco.weights.export import save_encoder

ROOT = Path(__file__).parents[1]
REAL = os.environ.get("VOCO_TEST_CT")
SHORT = ["--data.workers", "0", "--split.test", "0", "--split.val", "0.4", "--score.bootstrap", "20"]
SHORT += ["--train.threads", "1"]  # more would be waited for by every later test that forks


def example(text: str, names: dict[str, str]) -> np.ndarray:
    """What the first block of Python on a page leaves in ``features``, run as it stands with files put in."""
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:1]
    for old, new in names.items():
        assert code.count(f'"{old}"') == 1
        code = code.replace(f'"{old}"', repr(new))
    space: dict = {}
    exec(compile(code, "page", "exec"), space)
    return np.asarray(space["features"])


def cached(cache: Path) -> dict[str, np.ndarray]:
    """(N, F) vectors of the windows of each scan that a probe has kept, by the scan's path."""
    [folder] = (cache / "features").iterdir()
    return {
        PreparedVolume.open(cache / f"{path.stem}.b2nd").meta["case"]["path"]: np.load(path)
        for path in folder.glob("*.npy")
    }


def every_way(run: Path, root: Path, work: Path, *options: str) -> dict[str, dict[str, np.ndarray]]:
    """Vectors of the scans that ``root/labels.csv`` lists, way by way."""
    names = [line.split(",")[0] for line in (root / "labels.csv").read_text().splitlines()[1:]]
    assert main(["embed", str(run), str(root / "labels.csv"), str(work / "f.npz"), "--workers", "1"]) == 0
    with np.load(work / "f.npz") as table:
        command = dict(zip(table["case"], table["features"]))
    probe = ["--config", "table", "--mode", "linear", "--encoder.weights", str(run), "--out", str(work / "probe")]
    data = ["--data.root", str(root / "labels.csv"), "--data.cache", str(work / "kept")]
    assert finetune_main([*probe, *data, *SHORT, *options]) == 0
    kept = cached(work / "kept")
    assert sorted(kept) == sorted(names)
    card = (run / "encoder" / "README.md").read_text()
    page = (ROOT / "README.md").read_text()
    encoder = voco.load_encoder(run)
    cases = [PreparedVolume.open(path).meta["case"] for path in (work / "cache").glob("*.b2nd")]
    by_path = {case["path"]: command[case["id"]] for case in cases}
    return {
        "voco embed": by_path,
        "voco.embed": {n: voco.embed(encoder, voco.read_volume(root / n)) for n in names},
        "README": {n: example(page, {"runs/x": str(run), "scan.nii.gz": str(root / n)}) for n in names},
        "card": {n: example(card, {"PATH_OR_HUB_ID": str(run), "scan.nii.gz": str(root / n)}) for n in names},
        "linear probe": {n: kept[n].mean(0) for n in names},
    }


def assert_one(ways: dict[str, dict[str, np.ndarray]]) -> None:
    first = ways.pop("voco.embed")
    for way, found in ways.items():
        for name, vector in first.items():
            assert vector.shape == found[name].shape
            np.testing.assert_allclose(found[name], vector, rtol=1e-5, atol=1e-5, err_msg=f"{way}, {name}")
    vectors = list(first.values())
    apart = min(np.abs(a - b).max() for i, a in enumerate(vectors) for b in vectors[:i])
    assert apart > 1e-3, "another scan is another vector, or equality would say nothing"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(finetune.figures, "draw_figures", lambda *args: [])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved encoder with small tiles at 4 mm, its BatchNorm not as it was initialised."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    spec = replace(create_encoder("cnn3d_s").input_spec, size=(16, 32, 32), spacing_mm=(4.0, 4.0, 4.0))
    encoder = create_encoder("cnn3d_s", input_spec=spec).train()
    encoder(torch.randint(-900, 400, (4, 1, 32, 32, 32)).float())
    save_encoder(encoder, folder / "encoder", {"method": "test"})
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Two drawn patients on tables, one as DICOM, and four blocks, which have no air around them; labels of all."""
    root = tmp_path_factory.mktemp("phantoms")
    found = ["drawn.nii.gz", "drawn_dicom"]
    one, two = (make_patient(seed, 0, size=(24, 72, 72), spacing_mm=(6.0, 5.0, 5.0)) for seed in (0, 1))
    write_nifti(root / found[0], one.scan, one.spacing_mm, one.origin_mm)
    write_dicom(root / found[1], two.hu, two.spacing_mm, two.origin_mm, patient="two", key=("two",))
    for number in range(4):
        write_scan(root / f"block{number}.nii.gz", number, number % 2 == 0)
        found.append(f"block{number}.nii.gz")
    write_table(root / "labels.csv", [(p, i % 2, f"p{i}") for i, p in enumerate(found)], ("path", "label", "patient"))
    return root


def test_phantoms_have_one_vector_each(run, phantoms, tmp_path):
    ways = every_way(run, phantoms, tmp_path)
    encoder, name = voco.load_encoder(run), next(iter(ways["voco.embed"]))
    scan = voco.read_volume(phantoms / name).resample(encoder.input_spec.spacing_mm)
    with torch.no_grad():
        whole = encoder(torch.from_numpy(scan.array)[None, None])[0].numpy()
    assert np.abs(whole - ways["voco.embed"][name]).max() > 1e-3, "the crop and the tiles matter on these scans"
    assert_one(ways)


@pytest.mark.parametrize("spacing", [None, (4.0, 4.0, 4.0)])
def test_a_probe_with_an_input_of_its_own_has_the_vector_of_that_view(run, phantoms, tmp_path, spacing):
    view = ["--view", "resize", "--input.size", "24"] if spacing is None else ["--view", "tiles", "--input.stride", "8"]
    read = ["--head.features", "pyramid", "--head.pooling", "max", "--input.window", "[-200, 300]"]
    options = ["--mode", "linear", "--encoder.weights", str(run), "--data.cache", str(tmp_path / "kept"), *view, *read]
    data = ["--data.root", str(phantoms / "labels.csv"), "--out", str(tmp_path / "probe"), "--input.chunk", "3"]
    assert finetune_main(["--config", "table", *options, *data, *SHORT]) == 0
    model = load_model(tmp_path / "probe")
    assert model.view.spacing_mm == (4.0, 4.0, 4.0) and model.view.kind == view[1]
    encoder = voco.load_encoder(tmp_path / "probe")
    assert encoder.input_spec.windows == ((-200.0, 300.0),)
    for name, vectors in cached(tmp_path / "kept").items():
        found = voco.embed(encoder, phantoms / name, view=model.view, features="pyramid", pooling="max")
        np.testing.assert_allclose(found, vectors.max(0), rtol=1e-5, atol=1e-5)


def test_the_view_of_a_probe_is_said_and_full_training_stretches(run, phantoms, tmp_path, capsys):
    options = ["--config", "table", "--encoder.weights", str(run), "--data.root", str(phantoms / "labels.csv"), *SHORT]
    for mode, words in (("knn", "tiles of 16 x 32 x 32 voxels at 4 x 4 x 4 mm"), ("full", "each study stretched")):
        assert finetune_main([*options, "--mode", mode, "--out", str(tmp_path / mode), "--plan"]) == 0
        assert words in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="VOCO_TEST_CT does not name a folder of real scans")
def test_real_scans_have_one_vector_each(tmp_path):
    names = ("chest_cip_ct-64.nrrd", "chest_elastix_baseline_small.mha", "abdomen_totalseg_example_ct.nii.gz",
             "extremity_sts_003.nii.gz", "chest_lidc_0001_slab_dicom")  # fmt: skip
    root = tmp_path / "scans"
    root.mkdir()
    for name in names:
        source = Path(REAL, name)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    rows = [(name, i % 2, f"p{i}") for i, name in enumerate(names)]
    write_table(root / "labels.csv", rows, ("path", "label", "patient"))
    torch.manual_seed(0)
    save_encoder(create_encoder("cnn3d_s"), tmp_path / "run" / "encoder", {"method": "test"})
    assert_one(every_way(tmp_path / "run", root, tmp_path))
