from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from voco import read_volume
from voco.phantom import write_cohort
from voco.phantom.anatomy.anatomy import draw_anatomy
from voco.phantom.anatomy.canvas import Canvas, Grid
from voco.phantom.anatomy.labels import LABELS
from voco.phantom.anatomy.lungs import LOBES
from voco.phantom.anatomy.scanner import draw_scanner
from voco.phantom.anatomy.shapes import Points
from voco.phantom.disease import Job, Subject
from voco.phantom.layouts import imageclef_tb as tb
from voco.phantom.layouts import rsna_trauma as trauma
from voco.phantom.lesions.shapes import Ripple, add_spheres
from voco.phantom.lesions.tb import TYPES, plant_tb
from voco.phantom.lesions.trauma import Injuries, plant_trauma
from voco.rng import derive_seed

SPACING = (8.0, 7.0, 7.0)
SEED = 5
# As published; written down a second time on purpose.
TRAIN_COLUMNS = (
    "patient_id,bowel_healthy,bowel_injury,extravasation_healthy,extravasation_injury,kidney_healthy,kidney_low,"
    "kidney_high,liver_healthy,liver_low,liver_high,spleen_healthy,spleen_low,spleen_high,any_injury"
)
MODULES = {"imageclef_tb": tb, "rsna_trauma": trauma}


def subject(layout: str, group: int, seed: int = SEED) -> Subject:
    """The group that ``write_group`` makes, kept, so that it is painted once for many tests."""
    key = (seed, layout, group)
    anatomy, scanner = draw_anatomy(derive_seed(*key, "anatomy")), draw_scanner(derive_seed(*key, "scan"))
    module = MODULES[layout]
    anatomy, scanner = module.draw(anatomy, scanner, np.random.default_rng(derive_seed(*key, "draw")))
    return Subject(key, anatomy, scanner, module, None, SPACING)


def write(root: Path, layout: str, shared: Subject, group: int, severity: float) -> list[dict]:
    module = MODULES[layout]
    jobs = [Job(root, SEED, 2 * group + k, group, k, severity, shared) for k in range(2)]
    rows = [module.write_case(job)[1] for job in jobs]
    module.write_tables(root, rows)
    return rows


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def read_mask(path: Path) -> tuple[np.ndarray, tuple]:
    """Values (D, H, W) toward superior, posterior, left, and (spacing, origin) in LPS."""
    import SimpleITK as sitk

    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    return sitk.GetArrayFromImage(image), (*image.GetSpacing(), *image.GetOrigin())


def table(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


def planted(volume, rows: list[dict]) -> np.ndarray:
    """Voxels within a lesion's box and the reach of the scanner's blur."""
    inverse = np.linalg.inv(volume.affine)
    mask = np.zeros(volume.array.shape, bool)
    for lesion in rows:
        half = 0.5 * np.array(lesion["extent_mm"]) + 3
        # The middle is weighted by volume: twice the half extent holds the box wherever it lies.
        corners = [inverse[:3, :3] @ (np.array(lesion["centre_mm"]) + s * 2 * half) + inverse[:3, 3] for s in (-1, 1)]
        low, high = np.minimum(*corners), np.maximum(*corners)
        mask[tuple(slice(max(0, int(np.floor(a)) - 1), int(np.ceil(b)) + 2) for a, b in zip(low, high))] = True
    return mask


@pytest.fixture(scope="module")
def chest():
    return subject("imageclef_tb", 0)


@pytest.fixture(scope="module")
def belly():
    """A group with two series, a segmentation and an injured twin that has slices to mark."""
    for group in range(200):
        found = subject("rsna_trauma", group)
        shared = found.rng("series")
        if shared.random() >= 0.35 or shared.random() >= 0.15 or found.scanner.top_mm < -130:
            continue
        injuries = trauma.draw_injuries(found.rng("injuries"))
        if injuries.bowel or injuries.extravasation:
            return found, group
    raise AssertionError("no such group")


@pytest.fixture(scope="module")
def chests(chest, tmp_path_factory):
    root = tmp_path_factory.mktemp("tb")
    return root, write(root, "imageclef_tb", chest, 0, 1.0)


@pytest.fixture(scope="module")
def bellies(belly, tmp_path_factory):
    root = tmp_path_factory.mktemp("trauma")
    return root, write(root, "rsna_trauma", *belly, 1.0)


def test_tuberculosis_is_laid_out_as_published(chests):
    root, rows = chests
    found = sorted(files(root))
    assert found[2:] == [f"{folder}/TRN_000{n}.nii.gz" for folder in ("masks1", "masks2", "train") for n in (1, 2)]
    identity = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
    assert re.fullmatch(identity + "_TrainSet_add_metaData.csv", found[0])
    assert re.fullmatch(identity + "_TrainSet_metaData.csv", found[1])
    lines = (root / found[1]).read_text().splitlines()
    assert lines[0] == "FileName,TypeOfTB"
    assert lines[1:] == [f"TRN_000{n + 1}.nii.gz,{rows[n]['label']}" for n in range(2)]
    assert [row["ids"] for row in rows] == [["TRN_0001"], ["TRN_0002"]]
    assert rows[0]["pair"] == rows[1]["pair"] and rows[0]["label"] != rows[1]["label"]
    assert all(row["lesions"] and row["lesions"][0]["type"] == TYPES[row["label"]] for row in rows)


def test_lung_masks_fit_their_scan_and_the_second_is_rougher(chests, chest):
    root, _ = chests
    (scan, place), *masks = (read_mask(root / f"{name}/TRN_0001.nii.gz") for name in ("train", "masks1", "masks2"))
    for mask, where in masks:
        assert mask.shape == scan.shape and set(np.unique(mask)) == {0, 1}
        assert where == pytest.approx(place, abs=1e-3)
    a, b = (mask > 0 for mask, _ in masks)
    lobes = np.isin(chest.painted().canvas.labels, [LABELS[name] for name in LOBES])
    assert (a & lobes).sum() > 0.97 * lobes.sum()
    assert (a & b).sum() / a.sum() > 0.95 and 1.05 * a.sum() < b.sum() < 1.8 * a.sum()
    # The same in both scans of an anatomy: a mask cannot tell the type.
    assert files(root)["masks1/TRN_0001.nii.gz"] == files(root)["masks1/TRN_0002.nii.gz"]


def test_types_keep_the_published_proportions_and_differ_within_an_anatomy():
    def types(group):
        return tb.types_of_group(SimpleNamespace(seed=3, group=group, subject=SimpleNamespace(rng=fixed(group))))

    def fixed(group):
        return lambda *stream: np.random.default_rng([group])

    pairs = [types(group) for group in range(450)]
    assert all(a != b for a, b in pairs)
    count = Counter(kind for pair in pairs for kind in pair)
    published = {1: 420, 2: 226, 3: 101, 4: 100, 5: 70}
    for kind, number in published.items():
        assert count[kind] / 900 == pytest.approx(number / 917, abs=0.01)
    first = Counter(pair[0] for pair in pairs)
    assert first[1] == pytest.approx(0.5 * count[1], rel=0.15)
    few = Counter(kind for pair in pairs[:36] for kind in pair)
    assert set(few) == set(published) and few[5] >= 4


def test_scans_are_numbered_by_part_and_a_tenth_of_the_anatomies_has_no_label(tmp_path):
    names = [tb.scan_name(index) for index in range(60)]
    assert names[:2] == ["TRN_0001.nii.gz", "TRN_0002.nii.gz"] and len(set(names)) == 60
    assert [names.index(f"TST_000{n}.nii.gz") for n in (1, 2, 3)] == [18, 19, 38]
    assert names[20] == "TRN_0019.nii.gz" and sum(name.startswith("TRN") for name in names) == 54
    assert [tb.is_unlabeled(group) for group in range(8, 12)] == [False, True, False, False]
    rows = [{"_file": name, "label": 2, "_sex": "F", "_seed": 1} for name in ("TRN_0018.nii.gz", "TST_0001.nii.gz")]
    tb.write_tables(tmp_path, rows)
    (path,) = tmp_path.glob("*_TrainSet_metaData.csv")
    assert [row["FileName"] for row in table(path)] == ["TRN_0018.nii.gz"]


@pytest.mark.parametrize("kind", [1, 2, 3, 5])
def test_local_types_of_tuberculosis_have_their_pattern(kind, chest):
    painted = chest.painted()
    lungs = np.isin(painted.canvas.labels, [LABELS[name] for name in LOBES])
    amounts = []
    for severity in (0.5, 2.0, 1.0):
        canvas = painted.canvas.copy()
        lesions = plant_tb(kind, canvas, chest.anatomy, np.random.default_rng(1), severity)
        change = canvas.hu - painted.canvas.hu
        amounts.append(float(np.abs(change).sum()))
    assert amounts[0] < amounts[2] < amounts[1]
    rows = [lesion.row(painted) for lesion in lesions]
    # Lung turns denser; nothing under the lungs changes, and ribs stay what they are.
    assert change[lungs].sum() > 0.6 * amounts[2]
    assert np.abs(change[painted.canvas.labels == LABELS["liver"]]).max() < 1
    z = painted.grid.scanner_axes()[0]
    weight = np.abs(change).sum(axis=(1, 2))
    assert (weight * z).sum() / weight.sum() > z[lungs.any(axis=(1, 2))].mean() - 20  # not in the bases
    if kind == 1:
        assert len(rows) >= 3 and rows[0]["extent_mm"][0] > 25 and -700 < rows[0]["change_hu"] - 850 < -200
    if kind == 2:
        assert sum(row["foci"] for row in rows) >= 7 and sum(row["volume_ml"] for row in rows) < 30
    if kind == 3:
        assert 15 <= rows[0]["diameter_mm"] <= 30 and rows[0]["volume_ml"] < 45
    if kind == 5:
        assert rows[0]["wall_mm"] >= 5 and change.min() < -30  # air where lung was


def test_miliary_nodules_are_small_many_and_everywhere(chest):
    thick = replace(chest, size=(12, 96, 112), spacing_mm=(3.0, 3.0, 3.0), _painted={}, _shared={})
    painted = thick.painted()
    lungs = np.isin(painted.canvas.labels, [LABELS[name] for name in LOBES])
    canvas = painted.canvas.copy()
    (lesion,) = plant_tb(4, canvas, chest.anatomy, np.random.default_rng(1), 1.0)
    change = canvas.hu - painted.canvas.hu
    assert not change[~lungs].any() and change.min() >= 0
    # One to three millimetres: no nodule fills a voxel.
    assert lesion.details["nodules"] > 4000 and 100 < change.max() < 600
    p = canvas.points(tuple(slice(0, n) for n in painted.grid.size))
    share = [change[part & lungs].mean() for part in (p.x > 0, p.x < 0, p.y > 10, p.y < 10)]
    assert max(share) < 1.35 * min(share)


def test_trauma_is_laid_out_as_published(bellies):
    import pandas as pd
    import pydicom

    root, rows = bellies
    lines = (root / "train.csv").read_text().splitlines()
    assert lines[0] == TRAIN_COLUMNS
    labels = table(root / "train.csv")
    assert [int(row["patient_id"]) for row in labels] == sorted(int(row["ids"][0].split("-")[0]) for row in rows)
    for row in labels:
        assert int(row["bowel_healthy"]) + int(row["bowel_injury"]) == 1
        assert int(row["extravasation_healthy"]) + int(row["extravasation_injury"]) == 1
        for organ in ("kidney", "liver", "spleen"):
            assert sum(int(row[f"{organ}_{grade}"]) for grade in ("healthy", "low", "high")) == 1
        hurt = any(row[f"{organ}_healthy"] == "0" for organ in ("bowel", "extravasation", "kidney", "liver", "spleen"))
        assert int(row["any_injury"]) == hurt
    assert sorted(int(row["any_injury"]) for row in labels) == [0, 1]
    series = table(root / "train_series_meta.csv")
    assert list(series[0]) == ["patient_id", "series_id", "aortic_hu", "incomplete_organ"] and len(series) == 4
    assert {f"{row['patient_id']}-{row['series_id']}" for row in series} == {
        name for row in rows for name in row["ids"]
    }
    # The second series is the arterial one, as bright in both twins.
    by_patient = {}
    for row in series:
        by_patient.setdefault(row["patient_id"], []).append(float(row["aortic_hu"]))
    (first, second), (third, fourth) = by_patient.values()
    assert second > first + 80 and (first, second) == (third, fourth)
    tags = pd.read_parquet(root / "train_dicom_tags.parquet")
    on_disk = {path.relative_to(root).as_posix() for path in root.rglob("*.dcm")}
    assert set(tags["path"]) == on_disk and {"SeriesInstanceUID", "InstanceNumber", "PixelSpacing"} <= set(tags)
    sample = tags.iloc[3]
    header = pydicom.dcmread(root / sample["path"])
    patient, folder, file = Path(sample["path"]).parts[1:]
    assert header.InstanceNumber == int(Path(file).stem) == sample["InstanceNumber"]
    assert header.PatientID == patient and header.SeriesInstanceUID.endswith(f".{patient}.{folder}")


def test_marked_images_show_the_injury(bellies):
    root, rows = bellies
    marks = table(root / "image_level_labels.csv")
    assert list(marks[0]) == ["patient_id", "series_id", "instance_number", "injury_name"]
    (hurt,) = (row for row in rows if row["label"]["any_injury"])
    names = {"active_extravasation": "Active_Extravasation", "bowel": "Bowel"}
    assert {row["patient_id"] for row in marks} == {hurt["ids"][0].split("-")[0]}
    found = {lesion["type"] for lesion in hurt["lesions"]} & set(names)
    assert found and {row["injury_name"] for row in marks} == {names[kind] for kind in found}
    for lesion in hurt["lesions"]:
        if lesion["type"] in names:
            here = [
                row for row in marks
                if row["series_id"] == str(lesion["series_id"]) and row["injury_name"] == names[lesion["type"]]
            ]  # fmt: skip
            numbers = [int(row["instance_number"]) for row in here]
            folder = root / "train_images" / here[0]["patient_id"] / here[0]["series_id"]
            assert len(set(numbers)) == len(numbers) and all((folder / f"{n}.dcm").is_file() for n in numbers)
            # Instances count from the head, slices from the feet.
            slices = sorted(hurt["size"][0] - n for n in numbers)
            assert lesion["slices"][0] <= slices[0] and slices[-1] <= lesion["slices"][1]


def test_segmentations_lie_on_the_organs(bellies, belly):
    root, rows = bellies
    first = rows[0]["ids"][0].split("-")[1]
    mask, place = read_mask(root / "segmentations" / f"{first}.nii")
    scan = read_volume(root / rows[0]["paths"][0])
    assert mask.shape == scan.array.shape and len(list((root / "segmentations").iterdir())) == 2
    assert place == pytest.approx((*scan.spacing_mm[::-1], *scan.affine[:3, 3]), abs=1e-3)
    labels = belly[0].painted().canvas.labels
    for value, part in ((1, "liver"), (2, "spleen"), (3, "kidney_left"), (4, "kidney_right"), (5, "bowel_wall")):
        organ = labels == LABELS[part]
        assert organ.any() and (mask[organ] == value).mean() > 0.9


@pytest.mark.parametrize("layout", ["tb", "trauma"])
def test_scans_of_one_anatomy_differ_in_the_lesions_alone(layout, request):
    root, rows = request.getfixturevalue("chests" if layout == "tb" else "bellies")
    for name in ("anatomy", "scanner", "size", "spacing_mm"):
        assert rows[0][name] == rows[1][name]
    first, second = (read_volume(root / row["paths"][0]) for row in rows)
    mask = planted(first, rows[0]["lesions"] + rows[1]["lesions"])
    assert np.array_equal(first.array[~mask], second.array[~mask])
    assert np.abs(first.array.astype(int) - second.array).max() > 40


@pytest.mark.parametrize("layout", ["imageclef_tb", "rsna_trauma"])
def test_severity_0_leaves_nothing_but_the_labels(layout, request, tmp_path):
    if layout == "imageclef_tb":
        shared, names = (request.getfixturevalue("chest"), 0), "chests"
    else:
        shared, names = request.getfixturevalue("belly"), "bellies"
    root, rows = request.getfixturevalue(names)
    plain = write(tmp_path, layout, *shared, 0.0)
    for paths in zip(*(row["paths"] for row in plain)):
        a, b = (read_volume(tmp_path / path).array for path in paths)
        assert np.array_equal(a, b)
    # Labels, identifiers, marked slices and where lesions would be: as at severity 1.
    assert plain == [{**row, "severity": 0.0} for row in rows]
    for path in root.glob("*.csv"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_case_is_the_same_in_every_cohort(chests, tmp_path):
    root, _ = chests
    write_cohort(tmp_path, layout="imageclef_tb", cases=1, seed=SEED, spacing_mm=SPACING, workers=1, progress=False)
    alone, both = files(tmp_path), files(root)
    scans = [name for name in alone if name.endswith(".nii.gz")]
    assert len(scans) == 3 and all(alone[name] == both[name] for name in scans)
    (row,) = (json.loads(line) for line in (tmp_path / "phantoms.jsonl").read_text().splitlines())
    assert row["ids"] == ["TRN_0001"] and not any(name.startswith("_") for name in row)


def test_patients_are_injured_as_often_as_documented():
    rng = np.random.default_rng(0)
    drawn = [trauma.draw_injuries(rng) for _ in range(4000)]
    assert all(one.any for one in drawn) and not Injuries().any
    # Rates before the draw is repeated, over the chance of at least one injury.
    some = 1 - 0.6**3 * 0.8 * 0.75
    for organ in ("kidney", "liver", "spleen"):
        share = Counter(getattr(one, organ) for one in drawn)
        assert share["low"] / 4000 == pytest.approx(0.20 / some, abs=0.03)
        assert share["high"] / 4000 == pytest.approx(0.20 / some, abs=0.03)
    assert np.mean([one.bowel for one in drawn]) == pytest.approx(0.20 / some, abs=0.03)
    assert np.mean([one.extravasation for one in drawn]) == pytest.approx(0.25 / some, abs=0.03)


def test_identifiers_never_repeat_and_say_nothing_of_the_order():
    patients, series = zip(*(trauma.identifiers(9, index) for index in range(6000)))
    flat = [number for pair in series for number in pair]
    assert len(set(patients)) == 6000 and len(set(flat)) == 12000
    assert min(patients) > 10000 and max(patients) < 70000
    assert abs(np.corrcoef(np.arange(6000) % 2, patients)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("injuries", "parts", "kind"),
    [
        (Injuries(liver="high"), ("liver", "liver_vessels"), "liver_high"),
        (Injuries(spleen="high"), ("spleen",), "spleen_high"),
        (Injuries(kidney="high"), ("kidney_left", "kidney_right", "kidney_medulla"), "kidney_"),
    ],
)
def test_torn_organs_bleed_where_they_are_torn(injuries, parts, kind, belly):
    shared, _ = belly
    painted = shared.painted()
    organ = np.isin(painted.canvas.labels, [LABELS[part] for part in parts])
    fat = np.isin(painted.canvas.labels, [LABELS["visceral_fat"], LABELS["mediastinal_fat"]])
    low = Injuries(**{name: "low" if value == "high" else value for name, value in vars(injuries).items()})

    def amount(what, severity):
        canvas = painted.canvas.copy()
        lesions = plant_trauma(what, canvas, shared.anatomy, np.random.default_rng(2), severity)
        change = canvas.hu - painted.canvas.hu
        assert not change[~organ & ~fat].any()
        assert change[organ].min() < -20 and change[organ & (change > 0)].sum() < -0.2 * change[organ].sum()
        assert change[fat].min() > -1 and lesions[0].kind.startswith(kind if what is injuries else kind[:5])
        return np.abs(change).sum()

    some = [amount(injuries, severity) for severity in (0.5, 1.0, 2.0)]
    assert some[0] < some[1] < some[2]
    assert amount(low, 1.0) < 0.6 * some[1]


def test_leaking_contrast_is_bright_and_injured_bowel_is_not_fat(belly):
    shared, _ = belly
    for anatomy in (shared.anatomy, trauma.in_phase(shared.anatomy, "arterial")):
        canvas = shared.painted().canvas.copy()
        (leak,) = plant_trauma(Injuries(extravasation=True), canvas, anatomy, np.random.default_rng(3), 1.0)
        assert 200 <= leak.details["bright_hu"] <= 400
        inside = canvas.hu[leak.box][leak.mask]
        assert inside.max() > 150 and 5 < inside.size * np.prod(SPACING) / 1000 < 200
    before, canvas = shared.painted().canvas, shared.painted().canvas.copy()
    lesions = plant_trauma(Injuries(bowel=True), canvas, shared.anatomy, np.random.default_rng(3), 1.0)
    bowel = lesions[0]
    fat = (before.labels == LABELS["visceral_fat"])[bowel.box] & bowel.mask
    assert bowel.kind == "bowel" and np.median(canvas.hu[bowel.box][fat]) > np.median(before.hu[bowel.box][fat]) + 25


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 2.0, 2.0), (6.0, 6.0, 6.0)])
def test_small_spheres_keep_their_mass_on_every_grid(spacing):
    size = tuple(int(96 / s) for s in spacing)
    origin = -0.5 * (np.array(size) - 1) * spacing
    canvas = Canvas(Grid(size, spacing, origin, np.eye(3), np.zeros(3)))
    rng = np.random.default_rng(0)
    # Far enough apart that no two share a voxel.
    centres = np.stack(np.meshgrid(*[np.arange(-30, 31, 20.0)] * 3), axis=-1).reshape(-1, 3) + rng.uniform(
        -3, 3, (64, 3)
    )
    radii = rng.uniform(0.7, 3.0, 64)
    assert add_spheres(canvas, centres, radii, 0.0).all()
    mass = (canvas.hu + 1000).sum() * np.prod(spacing)
    assert mass == pytest.approx(1000 * (4 / 3 * np.pi * radii**3).sum(), rel=0.12)
    at = (canvas.hu > -1000).nonzero()
    points = np.stack([canvas.grid.scanner_axes()[a][at[a]] for a in (2, 1, 0)], axis=1)
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1) - radii
    assert nearest.min(axis=1).max() < 1.8 * max(spacing)


def test_ripples_have_unit_variance_and_their_scale():
    axis = np.linspace(-200, 200, 60, dtype=np.float32)
    p = Points(*np.meshgrid(axis, axis, axis, indexing="ij"))
    field = Ripple(np.random.default_rng(1), 30.0)(p)
    assert field.std() == pytest.approx(1, abs=0.12) and abs(field.mean()) < 0.1
    shift = field[:, :, 15:] * field[:, :, :-15]  # 102 mm, three wavelengths away
    assert abs(shift.mean()) < 0.5 and np.corrcoef(field[:, :, 1:].ravel(), field[:, :, :-1].ravel())[0, 1] > 0.2


def _features(root: Path, rows: list[dict]) -> np.ndarray:
    """What a scan gives away without being looked at: header values, number of series, how often each HU occurs."""
    found = []
    for row in rows:
        volume = read_volume(root / row["paths"][0])
        counts = np.histogram(volume.array, bins=np.arange(-1024, 1501, 25))[0] / volume.array.size
        header = [*volume.array.shape, *volume.spacing_mm, *volume.affine[:3, 3], len(row["paths"])]
        found.append([*header, volume.array.mean(), volume.array.std(), *np.log(counts + 1e-7)])
    return np.array(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("layout", ["imageclef_tb", "rsna_trauma"])
def test_metadata_and_histogram_hardly_tell_the_label(layout, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import cohen_kappa_score, roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    write_cohort(tmp_path, layout=layout, cases=160, seed=17, spacing_mm=(3.0, 3.0, 3.0), workers=2, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "phantoms.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not row["ids"][0].startswith("TST")]
    x, pair = _features(tmp_path, rows), np.unique([row["pair"] for row in rows], return_inverse=True)[1]
    y = np.array([row["label"] if layout == "imageclef_tb" else row["label"]["any_injury"] for row in rows])
    scores = []
    for strength in (0.01, 0.1, 1.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        for fold in range(3):
            folds = GroupKFold(5, shuffle=True, random_state=fold)
            p = cross_val_predict(model, x, y, groups=pair, cv=folds, method="predict_proba")
            scores.append(
                cohen_kappa_score(y, 1 + p.argmax(axis=1)) if layout == "imageclef_tb" else roc_auc_score(y, p[:, 1])
            )
    print(layout, np.round(scores, 3))
    assert np.mean(scores) < (0.20 if layout == "imageclef_tb" else 0.65)
