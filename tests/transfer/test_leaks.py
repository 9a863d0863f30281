"""Verdicts on cases: from fingerprints, from lists of public data sets, and over a chain of trainings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from voco.data.fingerprint import Fingerprints, data_set_digest, patient_digest
from voco.encoders import create_encoder, load_encoder
from voco.errors import InputError
from voco.transfer.data_sets import NOT_CT, canonical_name, is_not_ct, named_in_path, shared
from voco.transfer.leaks import NO_MATCH, VERDICTS, LeakGuard, refuse_seen, sources_of, summary, write_leaks
from voco.weights.export import save_encoder
from voco.weights.sources import all_sources


class Chain:
    """What a guard looks at in an encoder."""

    def __init__(self, *provenance, **files):
        self.provenance = list(provenance)
        self.fingerprints = {f"{name}.npz": prints.to_bytes() for name, prints in files.items()}


def prints(*seeds, patients=(), trained=True, data_sets=()):
    rows = [np.random.default_rng(seed) for seed in seeds]
    names = list(patients) or [f"person-{seed:05d}-x" for seed in seeds]
    return Fingerprints(
        np.array([rng.integers(0, 256, 16) for rng in rows], np.uint8),
        np.array([rng.integers(0, 256, 1728) for rng in rows], np.uint8),
        np.array([list(patient_digest(name)) for name in names], np.uint8),
        np.broadcast_to(np.asarray(trained), len(seeds)).copy(),
        frozenset(map(data_set_digest, data_sets)),
    )


def run_of(name):
    return {"method": "voco3d", "fingerprints": f"{name}.npz"}


def verdict(chain, cases, data_sets=("my hospital",)):
    return LeakGuard(chain).verdicts(cases, data_sets)["verdict"].tolist()


def test_each_verdict_from_fingerprints():
    seen = prints(0, 1, 2, 3, patients=["a-1000", "b-2000", "c-3000", "d-4000"], trained=[True, True, True, False])
    cases = prints(0, 11, 12, 3, 14, patients=["z-9000", "y-9001", "c-3000", "d-4000", "d-4000"])
    near = cases.signatures.astype(int)
    near[1] = np.clip(seen.signatures[1].astype(int) * 0.9 + np.random.default_rng(5).normal(0, 5, 1728), 0, 255)
    cases = replace(cases, signatures=near.astype(np.uint8))
    found = LeakGuard(Chain(run_of("a"), a=seen)).verdicts(cases, ["my hospital"], names=list("abcde"))
    assert found["case"].tolist() == list("abcde")
    assert found["verdict"].tolist() == ["seen", "near-duplicate", "same patient", NO_MATCH, NO_MATCH]
    assert "held out" in found["evidence"][3] and "correlation 0.9" in found["evidence"][1]
    assert summary(found) == "1 seen; 1 near-duplicate; 1 same patient; 2 no match found"


def test_nobodys_name_is_no_evidence():
    seen, cases = prints(0, patients=["patient_001"]), prints(1, patients=["patient_001"])
    assert verdict(Chain(run_of("a"), a=seen), cases) == [NO_MATCH]


@pytest.mark.parametrize(
    ("used", "asked", "expected"),
    [
        (["LUNA16"], ["LIDC-IDRI"], "same data set"),
        (["lidc_idri"], ["LUNA16"], "same data set"),
        (["PreCT-160K"], ["LIDC-IDRI"], "same data set"),
        (["Our Hospital"], ["our-hospital"], "same data set"),
        (["NLST"], ["LIDC-IDRI"], NO_MATCH),
    ],
)
def test_data_sets_of_own_runs_are_known_by_digest(used, asked, expected):
    assert verdict(Chain(run_of("a"), a=prints(0, data_sets=used)), prints(1), asked) == [expected]


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("swinunetr_b.voco_ssl", ["LIDC-IDRI"], "same data set"),
        ("swinunetr_b.voco_ssl", ["LUNA16"], "same data set"),
        ("swinunetr_b.voco_ssl", ["RSNA-PE"], NO_MATCH),
        ("swinunetr_b.voco_ssl", [], "unknown"),
        ("swinunetr_v1_b.suprem", ["RSNA-2023-Abdominal-Trauma"], "same data set"),
        ("swinvit_b.nvidia_dae", ["LIDC-IDRI"], "unknown"),
        ("slow_r50.kinetics400", [], NO_MATCH),
    ],
)
def test_published_weights_are_judged_by_their_list(name, asked, expected):
    found = LeakGuard(Chain(all_sources()[name].to_dict())).verdicts(prints(1, 2), asked)
    assert found["verdict"].tolist() == [expected] * 2
    assert expected == "unknown" or any(word in found["evidence"][0] for word in (*asked, "no CT"))


@pytest.mark.parametrize(
    "entry",
    [
        {"source": "file", "file": "x.pt"},
        {"method": "voco3d", "steps": 5},
        {"method": "voco3d", "fingerprints": "lost.npz"},
        {"source": "r", "data": ["LAION-2B"]},
        {"source": "r", "data": ["Kinetics-400"], "file_is_the_published_one": False, "file": "k.pth"},
        {"source": "nnssl", "dataset": "Dataset745"},
        {},
    ],
)
def test_what_is_not_known_is_never_taken_for_a_search_in_vain(entry):
    clean = {"source": "r", "data": ["ImageNet-1k"]}
    assert verdict(Chain(clean), prints(1)) == [NO_MATCH]
    assert verdict(Chain(entry), prints(1)) == ["unknown"]
    assert verdict(Chain(clean, entry, run_of("a"), a=prints(0)), prints(1)) == ["unknown"]
    assert verdict(Chain(entry, run_of("a"), a=prints(1)), prints(1)) == ["seen"]


def test_a_run_without_fingerprints_may_name_its_data_sets():
    run = Chain({"method": "finetune lidc", "data_sets": ["LIDC-IDRI"]})
    assert verdict(run, prints(1), ["LUNA16"]) == ["same data set"] and verdict(run, prints(1)) == ["unknown"]


def test_from_scratch_and_from_videos_nothing_was_seen():
    assert verdict(Chain(), prints(1), []) == [NO_MATCH]
    assert verdict(Chain({"method": "video"}), prints(1), []) == [NO_MATCH]


def test_a_chain_keeps_the_fingerprints_of_every_training(tmp_path):
    first, second = prints(0, 1), prints(2)
    save_encoder(create_encoder("cnn3d_s"), tmp_path / "a", {"method": "voco3d"}, fingerprints=first.to_bytes())
    save_encoder(
        create_encoder("cnn3d_s", checkpoint=tmp_path / "a"), tmp_path / "b", {"method": "x"}, None, second.to_bytes()
    )
    assert verdict(tmp_path / "b", prints(0, 2, 5)) == ["seen", "seen", NO_MATCH]
    assert [len(source.fingerprints) for source in sources_of(load_encoder(tmp_path / "b"))] == [2, 1]
    assert len(list((tmp_path / "b").glob("fingerprints-*.npz"))) == 2
    save_encoder(create_encoder("cnn3d_s"), tmp_path / "b", {"method": "y"}, fingerprints=first.to_bytes())
    assert len(list((tmp_path / "b").glob("fingerprints-*.npz"))) == 1, "files of what was there before are gone"
    with pytest.raises(InputError, match="no encoder or run folder"):
        LeakGuard(tmp_path)


def test_a_seen_test_scan_is_refused_unless_allowed(tmp_path):
    table = pd.DataFrame([(f"c{i}", "seen", "e") for i in range(7)] + [("z", "clean", "")])
    table.columns = ["case", "verdict", "evidence"]
    with pytest.raises(
        InputError,
        match=r"7 of 8 test scans(.|\n)*7 seen; 1 no match found(.|\n)*c0: seen(.|\n)*and 2 more(.|\n)*--allow_seen",
    ):
        refuse_seen(table)
    refuse_seen(table, allow_seen=True)
    for name in VERDICTS[3:]:
        refuse_seen(table.assign(verdict=name))
    for name in ("near-duplicate", "same patient"):
        with pytest.raises(InputError, match="--allow_seen"):
            refuse_seen(table.assign(verdict=name))
    assert pd.read_csv(write_leaks(table, tmp_path))["verdict"].tolist() == table["verdict"].tolist()


def test_every_data_set_in_use_is_in_the_vocabulary():
    from voco.tasks import TASKS, task_class

    listed = {name for source in all_sources().values() for name in source.data} - {"unknown"}
    listed |= {name for task in TASKS for name in task_class(task).data_sets}
    assert not {name for name in listed if canonical_name(name) is None}
    assert is_not_ct("kinetics400") and not is_not_ct("LIDC-IDRI") and canonical_name("own") is None
    assert all(canonical_name(name) == name for name in NOT_CT)
    assert shared(["PreCT-160K"], ["LUNA16"]) == {"LUNA16"}
    assert named_in_path("/data/LIDC-IDRI/LIDC-IDRI-0001/x.dcm") == {"LIDC-IDRI"}
