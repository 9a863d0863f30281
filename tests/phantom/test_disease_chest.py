from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from voco import read_volume
from voco.errors import InputError
from voco.phantom import write_cohort
from voco.phantom.disease import write_group

SPACING = (6.0, 4.5, 4.5)
SEED = 3
# As published; written down a second time on purpose.
PE_COLUMNS = (
    "StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,pe_present_on_image,negative_exam_for_pe,qa_motion,qa_contrast,"
    "flow_artifact,rv_lv_ratio_gte_1,rv_lv_ratio_lt_1,leftsided_pe,chronic_pe,true_filling_defect_not_pe,rightsided_pe,"
    "acute_and_chronic_pe,central_pe,indeterminate"
)
ATTRIBUTES = ("leftsided_pe", "rightsided_pe", "central_pe")
SCORED = (*ATTRIBUTES, "chronic_pe", "acute_and_chronic_pe", "rv_lv_ratio_gte_1", "rv_lv_ratio_lt_1")
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")


def cohort(folder: Path, layout: str, cases: int, **settings) -> list[dict]:
    settings = {"seed": SEED, "spacing_mm": SPACING, "workers": 1, "progress": False, **settings}
    write_cohort(folder, layout=layout, cases=cases, **settings)
    return [json.loads(line) for line in (folder / "phantoms.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def arrays(root: Path, rows: list[dict]) -> list[np.ndarray]:
    return [read_volume(root / row["paths"][0]).array for row in rows]


@pytest.fixture(scope="module")
def pe(tmp_path_factory):
    root = tmp_path_factory.mktemp("pe")
    return root, cohort(root, "rsna_pe", 2)


@pytest.fixture(scope="module")
def lidc(tmp_path_factory):
    root = tmp_path_factory.mktemp("lidc")
    return root, cohort(root, "lidc", 2)


def near_lesions(root: Path, row: dict, shape: tuple) -> np.ndarray:
    """Voxels within a lesion's box and the reach of the scanner's blur."""
    volume = read_volume(root / row["paths"][0])
    inverse = np.linalg.inv(volume.affine)
    mask = np.zeros(shape, bool)
    for lesion in row["lesions"]:
        half = 0.5 * np.array(lesion["extent_mm"]) + 2
        corners = [inverse[:3, :3] @ (np.array(lesion["centre_mm"]) + sign * half) + inverse[:3, 3] for sign in (-1, 1)]
        low, high = np.minimum(*corners), np.maximum(*corners)
        box = [slice(max(0, int(np.floor(a)) - 2), int(np.ceil(b)) + 3) for a, b in zip(low, high)]
        mask[tuple(box)] = True
    return mask


def test_pe_is_laid_out_as_published(pe):
    root, rows = pe
    lines = (root / "train.csv").read_text().splitlines()
    assert lines[0] == PE_COLUMNS
    table = list(csv.DictReader(lines))
    on_disk = {path.relative_to(root / "train").as_posix() for path in root.rglob("*.dcm")}
    columns = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    assert {"/".join(row[name] for name in columns) + ".dcm" for row in table} == on_disk
    assert all(len(row[n]) == 12 and set(row[n]) <= set("0123456789abcdef") for row in table for n in columns)
    assert len({row["SOPInstanceUID"] for row in table}) == len(table)
    assert [row["ids"] for row in rows] == [
        [path.name] for path in (root / row["paths"][0] for row in rows) for path in [path.parent]
    ]
    volume = read_volume(root / rows[0]["paths"][0])
    assert {item.sop_uid for item in volume.slices} == {
        r["SOPInstanceUID"] for r in table if r["StudyInstanceUID"] == rows[0]["ids"][0]
    }


def test_pe_labels_follow_the_rules_of_the_set_and_what_was_planted(pe):
    root, rows = pe
    exams: dict[str, list] = {}
    for row in csv.DictReader((root / "train.csv").read_text().splitlines()):
        exams.setdefault(row["StudyInstanceUID"], []).append(row)
    assert sum(row["label"] for row in rows) == 1
    for row in rows:
        images = exams[row["ids"][0]]
        exam = {name: int(images[0][name]) for name in PE_COLUMNS.split(",")[4:]}
        assert all(int(image[name]) == value for image in images for name, value in exam.items())
        positive = any(int(image["pe_present_on_image"]) for image in images)
        assert positive == bool(row["label"]) == bool(row["lesions"])
        assert exam["negative_exam_for_pe"] + exam["indeterminate"] == (0 if positive else 1)
        assert any(exam[n] for n in SCORED) == positive
        assert exam["rv_lv_ratio_gte_1"] + exam["rv_lv_ratio_lt_1"] == int(positive)
        assert exam["rv_lv_ratio_gte_1"] == int(positive and row["rv_lv_ratio"] >= 1)
        aside = [lesion["centre_mm"][0] for lesion in row["lesions"] if len(lesion["sides"]) == 1]
        if positive:
            assert exam["leftsided_pe"] >= any(x > 15 for x in aside) and exam["rightsided_pe"] >= any(
                x < -15 for x in aside
            )
            held = {sop for lesion in row["lesions"] for sop in lesion["sop_uids"]}
            marked = {image["SOPInstanceUID"] for image in images if int(image["pe_present_on_image"])}
            assert marked <= held and len(marked) == row["positive_slices"] >= 4


@pytest.mark.parametrize("layout", ["pe", "lidc"])
def test_twins_differ_in_the_lesions_and_nowhere_else(layout, request):
    root, rows = request.getfixturevalue(layout)
    assert f"-seed{SEED}-" in rows[0]["pair"]  # who has the same name in two cohorts is the same patient
    assert rows[0]["pair"] == rows[1]["pair"] and {rows[0]["label"], rows[1]["label"]} == {0, 1}
    sick, well = sorted(rows[:2], key=lambda row: -row["label"])
    a, b = arrays(root, [sick, well])
    mask = near_lesions(root, sick, a.shape)
    assert mask.mean() < 0.05 and np.array_equal(a[~mask], b[~mask])
    change = a.astype(int) - b
    # Lumen of 250 to 350 HU to a clot of 30 to 60; lung of -860 to soft tissue. Noise is the same in both.
    assert change.min() < -120 if layout == "pe" else change.max() > 250
    assert len(sick["lesions"]) >= 2 and not well["lesions"]
    for name in ("anatomy", "scanner", "size", "spacing_mm"):
        assert sick[name] == well[name]


@pytest.mark.parametrize("layout", ["rsna_pe", "lidc"])
def test_severity_0_leaves_nothing_but_the_labels_in_a_cohort_of_any_size(layout, request, tmp_path):
    root, rows = request.getfixturevalue({"rsna_pe": "pe"}.get(layout, layout))
    again = write_group((layout, tmp_path, SEED, 0, 40, 0.0, None, SPACING))
    plain = [{k: v for k, v in row.items() if not k.startswith("_")} for _, row in again]
    plain = json.loads(json.dumps(plain))
    a, b = arrays(tmp_path, plain)
    assert np.array_equal(a, b)
    # Labels, identifiers and where lesions would be: as in the cohort of two at severity 1.
    assert plain == [{**row, "severity": 0.0} for row in rows]
    well = min(rows, key=lambda row: row["label"])
    first, second = files(root / well["paths"][0]), files(tmp_path / well["paths"][0])
    assert len(first) > 20 and first == second


def test_lidc_is_laid_out_as_published_and_its_readings_give_the_labels(lidc):
    root, rows = lidc
    space = "{http://www.nih.gov}"
    for row in rows:
        (xml,) = (root / row["paths"][0]).glob("*.xml")
        patient, study, series = xml.relative_to(root / "LIDC-IDRI").parts[:3]
        assert [patient] == row["ids"] and patient == f"LIDC-IDRI-{rows.index(row) + 1:04d}"
        tree = ET.parse(xml).getroot()
        assert tree.find(f"{space}ResponseHeader/{space}SeriesInstanceUid").text == series
        assert tree.find(f"{space}ResponseHeader/{space}StudyInstanceUID").text == study
        volume = read_volume(xml.parent)
        z_of = {item.sop_uid: item.z_mm for item in volume.slices}
        sessions = tree.findall(f"{space}readingSession")
        assert len(sessions) == 4
        reach: Counter = Counter()
        for nodule in tree.iter(f"{space}unblindedReadNodule"):
            slices = []
            for roi in nodule.findall(f"{space}roi"):
                sop, z = roi.find(f"{space}imageSOP_UID").text, float(roi.find(f"{space}imageZposition").text)
                assert z == pytest.approx(z_of[sop], abs=1e-3)
                x = [int(v.text) for v in roi.iter(f"{space}xCoord")]
                y = [int(v.text) for v in roi.iter(f"{space}yCoord")]
                assert min(x) >= 0 and max(x) < volume.array.shape[2] and max(y) < volume.array.shape[1]
                slices.append(z)
            if nodule.find(f"{space}characteristics") is not None:
                reach.update(sop for sop, z in z_of.items() if min(slices) - 1e-3 <= z <= max(slices) + 1e-3)
        agreed = {sop for sop, count in reach.items() if count >= 3}
        assert agreed == set(row["positive_sop_uids"]) and bool(agreed) == bool(row["label"])
        for lesion in row["lesions"]:
            assert agreed & set(lesion["sop_uids"])


def test_a_severity_that_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(InputError, match="severity is -1"):
        write_cohort(tmp_path, layout="lidc", cases=2, severity=-1.0)


def _features(root: Path, rows: list[dict]) -> np.ndarray:
    """What a scan gives away without being looked at: header values, and how often each HU occurs."""
    found = []
    for row in rows:
        volume = read_volume(root / row["paths"][0])
        counts = np.histogram(volume.array, bins=np.arange(-1024, 1501, 25))[0] / volume.array.size
        found.append(
            [
                *volume.array.shape,
                *volume.spacing_mm,
                *volume.affine[:3, 3],
                volume.array.mean(),
                volume.array.std(),
                *np.log(counts + 1e-7),
            ]
        )
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["rsna_pe", "lidc"])
def test_metadata_and_histogram_do_not_tell_the_label(layout, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = cohort(tmp_path, layout, 120, seed=17, spacing_mm=(3.0, 3.0, 3.0), workers=2)
    rows = [row for row in rows if not row.get("exam", {}).get("indeterminate")]
    x, label = _features(tmp_path, rows), np.array([row["label"] for row in rows])
    pair = np.unique([row["pair"] for row in rows], return_inverse=True)[1]
    assert label.mean() == 0.5
    for strength in (0.01, 1.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000))
        score = cross_val_predict(model, x, label, groups=pair, cv=GroupKFold(5), method="decision_function")
        auroc = roc_auc_score(label, score)
        # By chance an AUROC of n/2 against n/2 has a spread of about sqrt(1 / (3 n)).
        assert auroc <= 0.65 and auroc <= 0.5 + 2.5 * np.sqrt(1 / (3 * len(label)))


@pytest.mark.slow
def test_clots_show_against_their_vessel(tmp_path):
    rows = cohort(tmp_path, "rsna_pe", 24, seed=23, spacing_mm=(2.0, 2.0, 2.0), workers=2)
    ratios = []
    for sick, well in zip(rows[::2], rows[1::2]):
        if sick["exam"]["indeterminate"]:
            continue
        sick, well = sorted((sick, well), key=lambda row: -row["label"])
        a, b = arrays(tmp_path, [sick, well])
        change = (a.astype(int) - b)[near_lesions(tmp_path, sick, a.shape)]
        noise = sick["scanner"]["noise_hu"]
        ratios.append(-np.percentile(change[change < -20], 25) / noise)
    assert np.median(ratios) > 3
