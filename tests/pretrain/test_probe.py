"""The probe of a pretraining run: which scans it takes, what it measures, and that it changes nothing."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import voco
from pretrain.probe import Probe, match_labels
from pretrain.training import Training
from voco.data.cache import write_entry
from voco.data.manifest import Case
from voco.data.prepare import PreparedEntry
from voco.data.privacy import hash_patient_id
from voco.encoders import create_encoder
from voco.errors import InputError
from voco.geometry import Geometry
from voco.methods.voco3d import VoCo3D
from voco.transfer.views import View

GEOMETRY = Geometry(grid=(2, 2), crop=16)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """12 patients of one scan; the odd ones are denser. The last four are held out."""
    folder = tmp_path_factory.mktemp("cache")
    found = []
    for i in range(12):
        rng = np.random.default_rng(i)
        hu = rng.normal(200 if i % 2 else -100, 200, (20, 36, 30)).clip(-1000, 900).astype(np.int16)
        path = folder / f"{i:032x}.b2nd"
        write_entry(path, hu, (3.0, 3.0, 3.0), {})
        case = Case(f"c{i}", f"site/c{i}.nii.gz", hash_patient_id(f"P{i}"))
        found.append([PreparedEntry(case, path, hu.shape, (3.0, 3.0, 3.0))])
    return found[:8], found[8:]


def table(tmp_path, rows, header="case,label"):
    path = tmp_path / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def match(path, cohort, column=None, most=100):
    return match_labels(path, column, *cohort, seed=0, most=most)


def ids(scans, validation=None):
    return [e.case.id for e, v in zip(scans.entries, scans.validation) if validation is None or v == validation]


@pytest.mark.parametrize("key", ["case", "path", "patient"])
def test_scans_are_found_by_any_of_their_names(cohort, tmp_path, key):
    names = {"case": "c{}", "path": "./site/c{}.nii.gz", "patient": "P{}"}[key]
    scans = match(table(tmp_path, [f"{names.format(i)},{i % 2}" for i in range(12)], f"{key},label"), cohort)
    assert sorted(ids(scans)) == sorted(f"c{i}" for i in range(12))
    assert scans.kind == "binary" and scans.classes == ("0", "1")
    assert sorted(ids(scans, True)) == ["c10", "c11", "c8", "c9"], "held-out patients judge"
    assert {e.case.id: v for e, v in zip(scans.entries, scans.labels)}["c3"] == 1


def test_patients_with_a_test_row_are_never_looked_at(cohort, tmp_path):
    train, held = cohort
    double = PreparedEntry(Case("c0-again", "x", train[0][0].case.patient), train[0][0].path, (20, 36, 30), (3, 3, 3))
    rows = [f"c{i},{i % 2},{'test' if i in (0, 9) else 'validation' if i > 5 else 'train'}" for i in range(12)]
    path = table(tmp_path, [*rows, "c0-again,1,train"], "case,label,split")
    scans = match(path, ([[*train[0], double], *train[1:]], held))
    assert not {"c0", "c0-again", "c9"} & set(ids(scans))
    assert sorted(ids(scans, True)) == ["c10", "c11", "c6", "c7", "c8"]
    assert "2 patients with test rows are left out" in " ".join(scans.notes)


def test_without_usable_held_out_patients_each_class_is_parted(cohort, tmp_path):
    train, held = cohort
    scans = match(table(tmp_path, [f"c{i},{'ab'[i % 2]}" for i in range(8)]), (train, held))
    assert len(ids(scans, True)) == 2 and scans.classes == ("a", "b")
    assert set(scans.labels[scans.validation]) == {0, 1}
    again = match(table(tmp_path, [f"c{i},{'ab'[i % 2]}" for i in reversed(range(8))]), (train, held))
    assert ids(again, True) == ids(scans, True)


def test_kinds_of_labels(cohort, tmp_path):
    numbers = match(table(tmp_path, [f"c{i},{i * 0.5}" for i in range(12)]), cohort)
    assert numbers.kind == "regression" and numbers.labels.max() == 5.5
    three = match(table(tmp_path, [f"c{i},{'xyz'[i % 3]},0" for i in range(12)], "case,kind,age"), cohort, "kind")
    assert three.kind == "multiclass" and three.classes == ("x", "y", "z")


def test_words_for_unknown_are_no_class(cohort, tmp_path):
    rows = [f"c{i};{'NA' if i == 3 else '#N/A' if i == 4 else '0,5' if i % 2 else '1,5'}" for i in range(12)]
    scans = match(table(tmp_path, rows, "case;label"), cohort)
    assert scans.classes == ("0.5", "1.5") and not {"c3", "c4"} & set(ids(scans))
    assert "'NA' (1), '#N/A' (1)" in " ".join(scans.notes)


@pytest.mark.parametrize(
    ("header", "rows", "column", "words"),
    [
        ("case,label", ["d1,0", "d2,1"], None, "column case has d1, d2; the run has c0, c1"),
        ("name,label", ["c1,0"], None, "needs a column case, path or patient"),
        ("case,a,b", ["c1,0,1"], None, "say which column"),
        ("case,label", ["c1,0", "c1,1"], None, "more than once"),
        ("case,label", ["c1,0", "c2,0", "c9,0"], None, "one value"),
        ("case,label", ["c1,0", "c9,1"], None, "both need every class"),
        ("case,label,split", ["c1,0,dev2"], None, "train, validation and test"),
        ("case,label", ["c1,0"], "grade", "lacks the columns grade"),
        ("case,grade", ["c1,0"], "grad", "did you mean 'grade'"),
        ("case,label", ["c1,a", "c2,b", "c3,none"], None, "'none' .*--probe.unknown none"),
        ("case,label", ["c1,0", "c2,inf"], None, "not finite"),
    ],
)
def test_labels_that_cannot_be_used_are_one_error(cohort, tmp_path, header, rows, column, words):
    with pytest.raises(InputError, match=words):
        match(table(tmp_path, rows, header), cohort, column)


@pytest.mark.parametrize("region", ["window", "whole"])
def test_a_probe_sees_what_is_there_and_leaves_no_trace(cohort, tmp_path, region):
    scans = match(table(tmp_path, [f"c{i},{i % 2}" for i in range(12)]), cohort)
    torch.manual_seed(0)
    method = VoCo3D(create_encoder("cnn3d_s"), GEOMETRY).train()
    method.encoder.set_grad_checkpointing(True)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    probe = Probe(scans, GEOMETRY, region, windows=3)
    row = probe.report(method)
    assert row["probe/linear_auroc"] == 1.0 and 0 <= row["probe/knn_auroc"] <= 1  # density is easy
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(module.training for module in method.modules())
    assert all(p.grad is None for p in method.parameters())


def test_features_are_those_of_the_encoder(cohort, tmp_path):
    scans = match(table(tmp_path, [f"c{i},{i % 2}" for i in range(12)]), cohort)
    method = VoCo3D(create_encoder("cnn3d_s"), GEOMETRY).eval()
    probe = Probe(scans, GEOMETRY, "window", windows=100)
    got = probe.features(method)[0]
    from voco.data.cache import PreparedVolume

    volume = PreparedVolume.open(scans.entries[0].path)
    places = [(d, h, w) for d in (0, 4) for h in (0, 16, 20) for w in (0, 14)]  # 20 x 36 x 30 in steps of 16
    boxes = torch.stack([torch.from_numpy(volume.read(place, (16, 16, 16))) for place in places])
    with torch.no_grad():
        wanted = method.encoder(boxes.unsqueeze(1)).mean(0)
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-6)
    view = View("tiles", GEOMETRY.size)
    for windows in (100, 3):
        found = Probe(scans, GEOMETRY, "window", windows=windows).features(method)
        same = [voco.embed(method.encoder, entry, view=view, windows=windows) for entry in scans.entries]
        np.testing.assert_allclose(found, np.stack(same), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("health", "every", "probes", "reports"), [(3, 2, [2, 4, 6, 7], [3, 6, 7]), (3, 0, [3, 6, 7], [3, 6, 7])]
)
def test_probes_come_when_they_are_due(health, every, probes, reports, monkeypatch):
    from types import SimpleNamespace as Bag

    config = {"train": Bag(steps=7), "eval": Bag(every=health), "probe": Bag(every=every, labels="x")}
    training, seen = Training(Bag(config=config), *[None] * 5), []
    monkeypatch.setattr(training, "probe_now", seen.append)
    monkeypatch.setattr(training, "_health", lambda step: {"step": step})
    steps = range(1, 8)
    assert [row["step"] for row in map(training.report, steps) if row] == reports and seen == probes


@pytest.mark.slow
def test_a_run_with_a_probe_is_the_run_without(tmp_path):
    import SimpleITK as sitk

    for i in range(8):
        hu = np.random.default_rng(i).integers(-900, 900, (40, 60, 60)).astype(np.int16)
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing((3.0, 3.0, 3.0))
        (tmp_path / "scans").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(tmp_path / "scans" / f"s{i}.nii.gz"))
    labels = table(tmp_path, [f"s{i},{i % 2}" for i in range(8)])
    small = (
        "--encoder.name cnn3d_s --data.spacing [3,3,3] --data.crop_body false --data.workers 0 --method.geometry.crop"
    )
    small += " 16 --train.steps 5 --train.batch_size 2 --train.warmup 1 --log.every 1 --eval.every 2 --eval.queries 4"
    root = Path(__file__).parents[2]
    for name, more in (("plain", []), ("probed", ["--probe.labels", labels, "--probe.every", "3"])):
        out = ["--data.root", str(tmp_path / "scans"), "--out", str(tmp_path / name)]
        command = [sys.executable, "-m", "pretrain.run", *small.split(), *out, *more]
        subprocess.run(command, check=True, capture_output=True, cwd=root)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("plain", "probed")]
    probes = [json.loads(line) for line in rows[1] if "probe/" in line]
    assert [row["step"] for row in probes] == [0, 3, 5] and all("probe/knn_auroc" in row for row in probes)
    assert [line for line in rows[1] if "probe/" not in line] == rows[0]
