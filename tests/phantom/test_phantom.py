from __future__ import annotations

import hashlib
import json
import time

import numpy as np
import pytest

from voco import read_volume
from voco.errors import InputError
from voco.phantom import GROUPS, LABELS, make_patient, write_cohort
from voco.phantom.anatomy.anatomy import draw_anatomy
from voco.phantom.anatomy.lungs import lung_distance
from voco.phantom.anatomy.shapes import Points
from voco.phantom.layouts.writers import write_dicom, write_nifti
from voco.rng import derive_seed

SPACING = (5.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def patients():
    return [make_patient(11, index, spacing_mm=SPACING) for index in range(2)]


@pytest.fixture(scope="module")
def fine():
    start = time.process_time()
    patient = make_patient(11, 0, size=(90, 120, 120))
    return patient, time.process_time() - start


def centre(mask: np.ndarray) -> np.ndarray:
    return np.array([axis.mean() for axis in np.nonzero(mask)])


def core(mask: np.ndarray) -> np.ndarray:
    """Voxels whose six neighbours belong to the part too: no partial volume, no blur from next door."""
    from scipy.ndimage import binary_erosion

    return binary_erosion(mask)


def digest(patient) -> str:
    return hashlib.sha256(patient.scan.tobytes() + patient.labels.tobytes()).hexdigest()


def test_same_seed_same_bytes_and_other_seeds_differ(patients):
    again = make_patient(11, 1, spacing_mm=SPACING)
    assert digest(again) == digest(patients[1])
    assert again.parameters == patients[1].parameters
    seeds = [draw_anatomy(derive_seed(seed, "phantom", index)) for seed in range(5) for index in range(5)]
    assert len({a.right_dome_z for a in seeds}) == 25 and digest(patients[0]) != digest(patients[1])


def test_scan_settings_do_not_touch_the_anatomy(patients):
    coarse = make_patient(11, 0, spacing_mm=(7.0, 6.0, 6.0))
    assert coarse.anatomy == patients[0].anatomy
    volume = [p.mask("liver").sum() * np.prod(p.spacing_mm) for p in (coarse, patients[0])]
    assert volume[0] == pytest.approx(volume[1], rel=0.06)
    other = make_patient(11, 0, spacing_mm=SPACING, scanner=patients[1].scanner)
    assert other.anatomy == patients[0].anatomy and digest(other) != digest(patients[0])


def test_sides_and_order_are_those_of_a_human(patients):
    for p in patients:
        at = {name: centre(p.mask(name)) for name in ("heart", "liver", "spleen", "lung_right", "lung_left", "spine")}
        at |= {
            name: centre(p.mask(name)) for name in ("sternum", "stomach", "aorta", "superior_vena_cava", "rib_right")
        }
        at |= {name: centre(p.mask(name)) for name in ("rib_left", "left_ventricle", "right_atrium", "airway_lumen")}
        # Index 2 grows toward the patient's left, index 1 toward the back, index 0 toward the head.
        assert at["liver"][2] < at["spine"][2] < at["spleen"][2]
        assert at["lung_right"][2] < at["spine"][2] < at["lung_left"][2]
        assert at["rib_right"][2] < at["spine"][2] < at["rib_left"][2]
        assert at["spine"][2] < at["stomach"][2]
        assert at["heart"][2] > at["spine"][2] and at["left_ventricle"][2] > at["right_atrium"][2]
        assert at["superior_vena_cava"][2] < at["aorta"][2]
        assert at["sternum"][1] < at["heart"][1] < at["spine"][1]
        assert at["liver"][0] < at["heart"][0] < at["superior_vena_cava"][0]
        assert at["airway_lumen"][0] > at["heart"][0]
        table = np.nonzero(p.labels == LABELS["table"])[1]
        assert table.mean() > at["spine"][1] and p.mask("body")[:, -1].sum() == 0
        # The tip of the heart points left, front, down from the middle of the heart.
        left, top = p.mask("left_ventricle"), centre(p.mask("left_atrium"))
        assert (centre(left) - top)[2] > 0 > (centre(left) - top)[1]


@pytest.mark.parametrize(
    ("part", "low", "high"),
    [
        ("lungs", -920, -760),
        ("airway_lumen", -1000, -850),
        ("subcutaneous_fat", -125, -70),
        ("muscle", 40, 75),
        ("liver", 40, 135),
        ("spleen", 35, 150),
        ("vertebra", 100, 700),
        ("spinal_canal", 10, 70),
    ],
)
def test_hu_lie_in_textbook_ranges(fine, part, low, high):
    patient, _ = fine
    inside = core(patient.mask(part))
    assert inside.sum() > 50
    assert low < np.median(patient.hu[inside]) < high


def test_contrast_follows_the_phase():
    anatomies = [draw_anatomy(derive_seed(5, "phantom", index)) for index in range(40)]
    by_phase = {a.phase: (index, a) for index, a in enumerate(anatomies)}
    assert set(by_phase) == {"none", "pulmonary", "arterial", "portal"}
    blood = {phase: a.hu for phase, (_, a) in by_phase.items()}
    assert all(30 < blood["none"][name] < 60 for name in ("right_heart", "left_heart", "aorta", "pulmonary_artery"))
    assert 250 <= blood["pulmonary"]["pulmonary_artery"] < 450
    assert blood["arterial"]["aorta"] > blood["arterial"]["right_heart"] + 50
    assert all(110 < blood["portal"][name] < 190 for name in ("right_heart", "left_heart", "aorta"))
    # What was drawn is what the scan shows.
    index, anatomy = by_phase["pulmonary"]
    p = make_patient(5, index, size=(30, 50, 50), spacing_mm=(5.0, 5.0, 5.0))
    for part, key in (("right_ventricle", "right_heart"), ("left_ventricle", "left_heart")):
        inside = core(p.mask(part))
        assert inside.sum() > 20
        assert np.median(p.hu[inside]) == pytest.approx(anatomy.hu[key], abs=12)


def test_organs_have_human_volumes(patients):
    for p in patients:
        voxel = np.prod(p.spacing_mm) / 1e6
        assert 2.0 < p.mask("lungs").sum() * voxel < 8.0
        assert 0.25 < p.mask("heart").sum() * voxel < 1.2


def test_lungs_differ_between_patients():
    limits = ((-230, 102), (-110, 115), (-150, 150))
    rng = np.random.default_rng(0)
    points = Points(*(rng.uniform(*limit, 8000).astype(np.float32) for limit in limits))
    box = np.prod([high - low for low, high in limits]) / 1e6
    litres = []
    for index in range(10):
        anatomy = draw_anatomy(derive_seed(0, "phantom", index))
        litres.append((lung_distance(anatomy, points) < 0).mean() * box * np.prod(anatomy.scale_zyx))
    assert min(litres) > 2 and max(litres) < 8.5 and max(litres) > 1.3 * min(litres)


def test_parts_lie_inside_the_body_and_lungs_inside_the_ribs(patients):
    from scipy.ndimage import binary_fill_holes

    for p in patients:
        assert max(int(m.sum()) for m in p.masks.values()) <= p.scan.size
        assert sum(int(m.sum()) for m in p.masks.values()) == p.scan.size  # every voxel is exactly one part
        outside = p.hu[p.labels == LABELS["outside"]]
        assert np.median(outside) < -900
        lungs = p.mask("lungs")
        for k in range(0, p.scan.shape[0], 8):
            if lungs[k].any():
                body = p.mask("body")[k] | (p.labels[k] == LABELS["outside"]) & (p.hu[k] < -2000)
                assert (lungs[k] & ~binary_fill_holes(body)).sum() == 0
        heart, ribs = p.mask("heart"), p.mask("ribs")
        assert np.nonzero(heart)[2].max() < np.nonzero(ribs)[2].max()
        assert np.nonzero(lungs)[2].min() > np.nonzero(ribs)[2].min()
        assert np.nonzero(lungs)[2].max() < np.nonzero(ribs)[2].max()


def test_groups_name_known_parts(patients):
    assert all(part in LABELS for parts in GROUPS.values() for part in parts)
    both = patients[0].mask("lung_left") & patients[0].mask("lung_right")
    assert not both.any()
    with pytest.raises(InputError, match="unknown part 'lungz'"):
        patients[0].mask("lungz")


def test_an_edit_changes_only_its_place(patients):
    def nodule(canvas, anatomy):
        canvas.hu[40:44, 30:36, 30:36] = 30

    twin = make_patient(11, 0, spacing_mm=SPACING, edit=nodule)
    changed = np.argwhere(twin.scan != patients[0].scan)
    assert len(changed)
    slices = max(1, round(SPACING[0] / SPACING[1]))
    assert changed[:, 0].min() >= 40 // slices - 3 and changed[:, 0].max() <= 44 // slices + 3
    assert changed[:, 1].min() >= 27 and changed[:, 2].max() <= 39


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAI", "SPL", "AIR"])
def test_nifti_of_any_orientation_reads_back_canonical(tmp_path, code):
    import SimpleITK as sitk

    array = np.random.default_rng(0).integers(-1024, 2000, (5, 6, 7)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", array, (2.5, 0.7, 0.8), (-10.0, 20.0, -30.0), code)
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert image.GetSpacing() == pytest.approx((0.8, 0.7, 2.5), abs=1e-5)
    assert image.GetOrigin() == pytest.approx((-10.0, 20.0, -30.0), abs=1e-4)


@pytest.mark.parametrize("padding", [None, -1024, -3024])
def test_dicom_reads_back_canonical_and_names_are_shuffled(tmp_path, padding):
    import pydicom
    import SimpleITK as sitk

    array = np.random.default_rng(1).integers(-1024, 3000, (9, 6, 7)).astype(np.int16)
    if padding is not None:
        array[:, 0] = padding
    paths = write_dicom(
        tmp_path, array, (2.5, 0.7, 0.8), (-10.0, 20.0, -30.0), patient="PHANTOM-0001", key=(1, 2), padding=padding
    )
    assert sorted(paths) != paths
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = sitk.DICOMOrient(reader.Execute(), "LPS")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert image.GetSpacing() == pytest.approx((0.8, 0.7, 2.5))
    assert image.GetOrigin() == pytest.approx((-10.0, 20.0, -30.0))
    headers = [pydicom.dcmread(path) for path in paths]
    assert len({h.SOPInstanceUID for h in headers}) == 9 and len({h.SeriesInstanceUID for h in headers}) == 1
    assert all(h.SOPInstanceUID.is_valid and str(h.PatientName) == "PHANTOM^0001" for h in headers)
    if padding is not None:
        stored = headers[0].PixelPaddingValue * headers[0].RescaleSlope + headers[0].RescaleIntercept
        assert stored == padding


def tree(root) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_cohort_is_deterministic_and_independent_of_its_size(tmp_path):
    import SimpleITK as sitk

    options = {"seed": 4, "size": (16, 24, 24), "progress": False, "workers": 1}
    paths = write_cohort(tmp_path / "a", cases=3, **options)
    write_cohort(tmp_path / "b", cases=2, **options)
    first, second = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert all(first[name] == value for name, value in second.items() if not name.endswith(".jsonl"))
    assert len(first) > len(second)
    assert any(path.is_dir() for path in paths) and any(path.is_file() for path in paths)
    rows = [json.loads(line) for line in (tmp_path / "a" / "phantoms.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"PHANTOM-{i:04d}" for i in range(3)]
    for row in rows[:2]:
        path = tmp_path / "a" / row["paths"][0]
        scan = make_patient(4, int(row["name"][-4:]), size=(16, 24, 24)).scan
        if path.is_dir():
            read = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
        else:
            read = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(read, "LPS")), scan)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, np.maximum(scan, -1024))
        assert volume.spacing_mm == pytest.approx(row["spacing_mm"], abs=1e-4)


def test_a_dicom_study_may_hold_a_scout_and_a_thick_series(tmp_path):
    import pydicom

    paths = write_cohort(tmp_path, cases=2, seed=4, format="dicom", size=(16, 24, 24), progress=False, workers=1)
    assert [p.name for p in paths if "PHANTOM-0001" in str(p)] == ["SE2", "SE3"]
    study = paths[-1].parent
    first = {p.name: pydicom.dcmread(next(p.iterdir())) for p in study.iterdir()}
    assert list(first["SE1"].ImageType)[2] == "LOCALIZER" and list(first["SE1"].ImageOrientationPatient)[5] == -1
    assert len({h.StudyInstanceUID for h in first.values()}) == 1
    assert len({h.SeriesInstanceUID for h in first.values()}) == 3
    assert float(first["SE3"].SliceThickness) > float(first["SE2"].SliceThickness)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "nope"}, "unknown phantom layout 'nope'"),
        ({"format": "png"}, "unknown phantom format 'png'"),
        ({"cases": 0}, "cases is 0"),
        ({"spacing_mm": (0, 1, 1)}, "more than 0 mm"),
        ({"size": (2, 32, 32)}, "at least 4 voxels"),
    ],
)
def test_bad_settings_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_cohort(tmp_path, **{"cases": 1, "progress": False, **options})


def test_small_patients_are_quick(fine):
    _, seconds = fine
    assert seconds < 10
