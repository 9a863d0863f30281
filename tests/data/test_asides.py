"""Public data sets as they unpack: scans are found, masks, PET and MR are set aside, whatever they are called."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from voco.data.asides import find_asides, has_air_and_tissue
from voco.data.cohort import prepare_together
from voco.data.manifest import build_manifest
from voco.data.peek import MAX_VALUES, NoVolume, peek
from voco.data.prepare import PrepareSettings
from voco.errors import InputError

SHAPE = (8, 24, 20)


def body(seed=0, shape=SHAPE):
    """HU (z, y, x) of a body with lungs in noisy air."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.where((x / 0.85) ** 2 + (y / 0.75) ** 2 < 1, 40.0, -1000.0)
    hu[((np.abs(x) - 0.4) / 0.3) ** 2 + (y / 0.4) ** 2 < 1 - 0.3 * z * random.uniform(0.2, 1)] = -850
    hu[x**2 + (y - 0.5) ** 2 < 0.03] = 500
    return np.clip(np.rint(hu + random.normal(0, 12, shape)), -1024, 3000).astype(np.int16)


def write(path, array, spacing=(2, 2, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(mm) for mm in spacing])
    sitk.WriteImage(image, str(path), True)


def mask(seed=0, *values, dtype=np.uint8):
    """Labels of the bone and the lungs of a body: one or two values over 0."""
    hu = body(seed)
    values = values or (1,)
    out = np.zeros(hu.shape, dtype)
    out[hu > 200], out[(hu < -700) & (hu > -960)] = values[-1], values[0]
    return out


def pet(seed=0):
    """Standardised uptake values: floats from 0, most of them small."""
    return (np.random.default_rng(seed).gamma(0.4, 1.0, SHAPE) * (body(seed) > -500)).astype(np.float32)


def mr(seed=0, top=900.0):
    """A T1-weighted body: noise outside, a broad spread of grey inside."""
    random = np.random.default_rng(seed)
    grey = random.gamma(4, top / 8, SHAPE) * (body(seed) > -500) + np.abs(random.normal(0, 8, SHAPE))
    return np.rint(grey).astype(np.int16)


def imageclef(root, i):
    write(root / f"images/TRN_{i:04d}.nii.gz", body(i))
    write(root / f"masks1/TRN_{i:04d}.nii.gz", mask(i, 1, 2))
    write(root / f"masks2/TRN_{i:04d}.nii.gz", mask(i, 1))


def luna16(root, i):
    write(root / f"subset{i % 2}/1.3.6.1.4.1.14519.{i}.mhd", body(i))
    write(root / f"seg-lungs-LUNA16/1.3.6.1.4.1.14519.{i}.mhd", mask(i, 3, 4))


def atm22(root, i):
    write(root / f"TrainBatch1/imagesTr/ATM_{i:03d}_0000.nii.gz", body(i))
    write(root / f"TrainBatch1/labelsTr/ATM_{i:03d}_0000.nii.gz", mask(i))


def aeropath(root, i):
    write(root / f"{i}/{i}_CT_HR.nii.gz", body(i))
    for organ in ("airways", "lungs"):
        write(root / f"{i}/{i}_CT_HR_label_{organ}.nii.gz", mask(i))


def verse(root, i):
    write(root / f"dataset-01training/rawdata/sub-verse{i:03d}/sub-verse{i:03d}_ct.nii.gz", body(i))
    folder = root / f"dataset-01training/derivatives/sub-verse{i:03d}"
    write(folder / f"sub-verse{i:03d}_seg-vert_msk.nii.gz", mask(i, 20, 24))


def kits(root, i):
    write(root / f"case_{i:05d}/imaging.nii.gz", body(i))
    write(root / f"case_{i:05d}/segmentation.nii.gz", mask(i, 1, 2))
    for name in ("kidney_instance-1_annotation-1", "tumor_instance-1_annotation-2"):
        write(root / f"case_{i:05d}/instances/{name}.nii.gz", mask(i))
    write(root / f"case_{i:05d}/instances/cyst_instance-1_annotation-1.nii.gz", np.zeros(SHAPE, np.uint8))


def lits(root, i):
    write(root / f"Training Batch 1/volume-{i}.nii", body(i))
    write(root / f"Training Batch 1/segmentation-{i}.nii", mask(i, 1, 2))


def decathlon(root, i):
    write(root / f"Task06_Lung/imagesTr/lung_{i:03d}.nii.gz", body(i).astype(np.float32))
    write(root / f"Task06_Lung/labelsTr/lung_{i:03d}.nii.gz", mask(i))
    write(root / f"Task05_Prostate/imagesTs/prostate_{i:02d}.nii.gz", mr(i))


def totalsegmentator(root, i):
    write(root / f"s{i:04d}/ct.nii.gz", body(i))
    for organ in ("lung_upper_lobe_left", "vertebrae_T8", "liver"):
        write(root / f"s{i:04d}/segmentations/{organ}.nii.gz", mask(i))
    write(root / f"s{i:04d}/combined.nii.gz", mask(i, 14, 117))


def nsclc_radiomics(root, i):
    write(root / f"LUNG1-{i:03d}/LUNG1-{i:03d}_CT.nii.gz", body(i))
    for name in ("GTV-1", "Lung-Left", "Spinal-Cord"):
        write(root / f"LUNG1-{i:03d}/LUNG1-{i:03d}_{name}.nii.gz", mask(i, 255))


def covid_19_20(root, i):
    write(root / f"Train/volume-covid19-A-{i:04d}_ct.nii.gz", body(i))
    write(root / f"Train/volume-covid19-A-{i:04d}_seg.nii.gz", mask(i))


def covid_20_cases(root, i):
    write(root / f"COVID-19-CT-Seg_20cases/coronacases_{i:03d}.nii.gz", body(i))
    for name in ("Lung_Mask", "Infection_Mask", "Lung_and_Infection_Mask"):
        write(root / f"{name}/coronacases_{i:03d}.nii.gz", mask(i, 1, 3).astype(np.float64))


def autopet(root, i):
    folder = root / f"PETCT_{i:08x}/03-23-2003-NA-PET-CT Ganzkoerper-{i}"
    write(folder / "CT.nii.gz", body(i, (12, 24, 20)), (2, 2, 2.5))
    write(folder / "CTres.nii.gz", body(i).astype(np.float64))
    write(folder / "SUV.nii.gz", pet(i))
    write(folder / "PET.nii.gz", pet(i) * 4000)
    write(folder / "SEG.nii.gz", mask(i))


def hecktor(root, i):
    write(root / f"imagesTr/CHUM-{i:03d}__CT.nii.gz", body(i))
    write(root / f"imagesTr/CHUM-{i:03d}__PT.nii.gz", pet(i)[:, :20], (4, 4, 4))
    write(root / f"labelsTr/CHUM-{i:03d}.nii.gz", mask(i, 1, 2))


def amos(root, i):
    write(root / f"imagesTr/amos_{i:04d}.nii.gz", body(i))
    write(root / f"labelsTr/amos_{i:04d}.nii.gz", mask(i, 3, 15))
    write(root / f"imagesTr/amos_{500 + i:04d}.nii.gz", mr(i, 300 * i))


def mosmed(root, i):
    write(root / f"studies/CT-{i % 4}/study_{i:04d}.nii.gz", body(i))
    write(root / f"masks/study_{i:04d}_mask.nii.gz", mask(i))


def vessel12(root, i):
    write(root / f"VESSEL12_01-05/VESSEL12_{i:02d}.mhd", body(i))
    write(root / f"VESSEL12_01-05_Lungmasks/VESSEL12_{i:02d}.mhd", mask(i))


def sliver(root, i):
    write(root / f"training/liver-orig{i:03d}.mhd", body(i))
    write(root / f"training/liver-seg{i:03d}.mhd", mask(i))


def han_seg(root, i):
    write(root / f"set_1/case_{i:02d}/case_{i:02d}_IMG_CT.nrrd", body(i))
    write(root / f"set_1/case_{i:02d}/case_{i:02d}_IMG_MR_T1.nrrd", mr(i) - np.int16(20))
    for organ in ("Brainstem", "OpticNrv_L"):
        write(root / f"set_1/case_{i:02d}/case_{i:02d}_OAR_{organ}.seg.nrrd", mask(i))


def segthor(root, i):
    write(root / f"train/Patient_{i:02d}/Patient_{i:02d}.nii.gz", body(i))
    write(root / f"train/Patient_{i:02d}/GT.nii.gz", mask(i, 1, 4))


def abdomen1k(root, i):
    write(root / f"AbdomenCT-1K-ImagePart1/Case_{i:05d}_0000.nii.gz", body(i))
    write(root / f"Mask/Case_{i:05d}.nii.gz", mask(i, 1, 4))


def computed(root, i):
    """What was computed of a scan, on its grid: network outputs, normalised values, fields, one-hot masks."""
    write(root / f"p{i}/ct.nii.gz", body(i))
    hu = body(i).astype(np.float32)
    write(root / f"p{i}/normalised.nii.gz", (hu - hu.mean()) / hu.std())
    write(root / f"p{i}/logits.nii.gz", np.where(mask(i) > 0, 6, -7) + hu / 1000)
    field = sitk.GetImageFromArray(np.stack([hu, hu, hu], -1), isVector=True)
    sitk.WriteImage(field, str(root / f"p{i}/field.mha"))
    onehot = sitk.JoinSeries([sitk.GetImageFromArray(mask(i, 1)), sitk.GetImageFromArray(1 - mask(i, 1))])
    sitk.WriteImage(onehot, str(root / f"p{i}/onehot.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(body(i)[4]), str(root / f"p{i}/key.nii.gz"))


def empty_masks(root, i):
    write(root / f"ct/p{i}.nii.gz", body(i))
    write(root / f"bleeding/p{i}.nii.gz", np.zeros(SHAPE, np.uint8))
    write(root / f"field/p{i}.nii.gz", np.ones(SHAPE, np.uint8))


def detached_masks(root, i):
    """Masks as lists of slices, in subfolders, and after a header of their own."""
    write(root / f"ct/{i}.nrrd", body(i))
    (root / "lobes/raw").mkdir(parents=True, exist_ok=True)
    names = [f"raw/ü{i}_{k}.raw" for k in range(SHAPE[0])]
    for name, plane in zip(names, mask(i, 1, 2)):
        (root / "lobes" / name).write_bytes(plane.tobytes())
    (root / f"lobes/{i}.mhd").write_text(
        "NDims = 3\nDimSize = 20 24 8\nElementSpacing = 2 2 4\nElementType = MET_UCHAR\nElementDataFile = LIST\n"
        + "\n".join(names)
    )
    (root / f"lobes/raw/{i}.raw").write_bytes(b"some header" + mask(i, 1, 2).tobytes())
    (root / f"lobes/{i}.nhdr").write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: lps\nsizes: 20 24 8\nspace directions: (2,0,0) (0,2,0) (0,0,4)\n"
        f"encoding: raw\nbyte skip: -1\ndata file: raw/{i}.raw\n"
    )


def tables_of_labels(root, i):
    """Values that no label set has, on the grid of the scan: 1000 over -1000, and probabilities."""
    write(root / f"scan/{i}.nii.gz", body(i))
    write(root / f"heart/{i}.nii.gz", (mask(i).astype(np.int16) * 2 - 1) * 1000)
    write(root / f"prob/{i}.nii.gz", np.random.default_rng(i).random(SHAPE).astype(np.float32))


TREES = [
    imageclef, luna16, atm22, aeropath, verse, kits, lits, decathlon, totalsegmentator, nsclc_radiomics, covid_19_20,
    covid_20_cases, autopet, hecktor, amos, mosmed, vessel12, sliver, han_seg, segthor, abdomen1k, tables_of_labels,
    computed, empty_masks, detached_masks,
]  # fmt: skip


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_trees_of_public_data_sets(tmp_path, tree):
    for i in range(1, 5):
        tree(tmp_path / "in", i)
    manifest = build_manifest(tmp_path / "in")
    entries, rejected = prepare_together(
        manifest.cases, manifest.root, tmp_path / "cache", PrepareSettings("native"), workers=1
    )
    assert not rejected and not manifest.rejected
    assert len(entries) == 4
    words = {word for entry in entries for word in entry.case.path.lower().replace("/", "_").split("_")}
    assert not words & {
        "masks1",
        "seg",
        "suv.nii.gz",
        "ctres.nii.gz",
        "gt.nii.gz",
        "heart",
        "prob",
        "lobes",
        "field",
        "key.nii.gz",
    }
    notes = [note for note in manifest.notes if note.startswith("set aside, not counted as scans: ")]
    total = sum(int(note.split(": ")[1].split(" ")[0]) for note in notes)
    files = sum(
        p.suffix in (".gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr")
        for p in (tmp_path / "in").rglob("*")
        if p.is_file()
    )
    assert total == files - 4, "each file is a scan, or said to be none"


def test_the_run_says_which_and_why(tmp_path):
    for i in range(1, 4):
        imageclef(tmp_path, i)
        write(tmp_path / f"pet/{i}.nii.gz", pet(i))
    notes = build_manifest(tmp_path).notes
    assert (
        "6 files masks by their values (3 in masks1/, 3 in masks2/; first: masks1/TRN_0001.nii.gz, whole num"
        in notes[0]
    )
    assert "3 files no CT (PET, MR or another modality) by their values (3 in pet/" in notes[1]


@pytest.mark.parametrize(
    "array",
    [
        np.clip(body(), -1000, -990),  # windowed to eleven values
        np.where(body() > -500, np.int16(40), np.int16(-1000)),  # a phantom of two materials
        np.digitize(body(), [-900, -500, 0, 200]).astype(np.int16) * np.int16(300) - np.int16(1000),
        body()[:, 8:16, 6:14].clip(-150, 250),  # a tight crop inside the body, soft-tissue window
        body() + np.int16(1024),  # a CT whose offset was lost: a scan to be mended, not to be set aside
        body() + np.int16(8192),
        body().astype(np.uint8),  # grey pictures
    ],
    ids=["window", "phantom", "steps", "crop", "offset", "offset 8192", "grey"],
)
def test_odd_scans_are_not_taken_for_masks(tmp_path, array):
    for i in range(4):
        write(tmp_path / f"in/p{i}.nii.gz", array)
    assert len(build_manifest(tmp_path / "in").cases) == 4


def test_a_scan_of_few_values_is_a_mask_only_beside_its_scan(tmp_path):
    phantom = np.where(body() > -500, np.int16(40), np.int16(-1000))
    write(tmp_path / "a/x.nii.gz", phantom)
    assert find_asides(tmp_path, ["a/x.nii.gz"]) == []
    write(tmp_path / "b/x.nii.gz", body(), (2, 2, 5))
    assert find_asides(tmp_path, ["a/x.nii.gz", "b/x.nii.gz"]) == [], "another voxel size"
    write(tmp_path / "b/x.nii.gz", body())
    (aside,) = find_asides(tmp_path, ["a/x.nii.gz", "b/x.nii.gz"])
    assert aside.path == "a/x.nii.gz" and aside.seen == "2 whole numbers from -1000 to 40, on the grid of b/x.nii.gz"


def test_an_odd_scan_among_others_of_its_grid_is_no_mask(tmp_path):
    for i in range(4):
        write(tmp_path / f"p{i}.nii.gz", body(i))
    write(tmp_path / "p4.nii.gz", np.where(body() > -500, np.int16(40), np.int16(-1000)))
    write(tmp_path / "p5.nii.gz", np.clip(body(), -160, 240))
    write(tmp_path / "p6.nii.gz", np.zeros(SHAPE, np.int16))
    for name, array in (("hu", body()), ("stored", body() + np.int16(1024))):
        write(tmp_path / f"pair/{name}.nii.gz", array)
    assert len(build_manifest(tmp_path).cases) == 9


def test_a_list_that_names_a_mask_says_so(tmp_path):
    for i in range(4):
        imageclef(tmp_path, i)
    lines = ["path", *(f"images/TRN_{i:04d}.nii.gz" for i in range(4)), "masks1/TRN_0000.nii.gz"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    manifest = build_manifest(tmp_path / "list.csv")
    assert len(manifest.cases) == 4
    assert manifest.rejected[0].path == "masks1/TRN_0000.nii.gz"
    assert "a mask, not a scan: whole numbers from 0 to 2" in manifest.rejected[0].reason
    (tmp_path / "list.csv").write_text("path\nmasks1/TRN_0000.nii.gz\n")
    with pytest.raises(InputError, match="a mask, not a scan"):
        build_manifest(tmp_path / "list.csv")


def test_masks_alone_are_no_cohort(tmp_path):
    write(tmp_path / "x/1.nii.gz", mask())
    with pytest.raises(InputError, match="1 files masks by their values"):
        build_manifest(tmp_path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_look_sees_what_simpleitk_reads(tmp_path, suffix, compress):
    """Labels, and all values of a volume that has no value far below zero, in any form of the file."""
    for array in (mask(2, 3, 7), (body() // 16 + 200).astype(np.uint16), body().astype(np.float32) / 100):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.5, 0.75, 4))
        sitk.WriteImage(image, str(tmp_path / f"x{suffix}"), compress)
        look, values = peek(tmp_path / f"x{suffix}"), np.unique(array)
        assert (look.low, look.high, look.complete) == (array.min(), array.max(), True)
        assert look.grid == ((20, 24, 8), (0.5, 0.75, 4.0))
        assert look.whole == (array.dtype.kind != "f")
        assert look.values is None if len(values) > MAX_VALUES else np.array_equal(look.values, values)


def test_a_look_tells_what_is_no_single_volume(tmp_path):
    channels = np.zeros((*SHAPE, 2), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(channels, isVector=True), str(tmp_path / "x.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(channels, isVector=True), str(tmp_path / "x.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(channels[0, ..., 0]), str(tmp_path / "x.nii"))
    seen = [peek(tmp_path / f"x.{suffix}") for suffix in ("mha", "nrrd", "nii")]
    assert seen == [NoVolume("2 values per voxel"), NoVolume("2 x 20 x 24 x 8 voxels"), NoVolume("20 x 24 voxels")]
    # Without a scan beside them they are files that somebody has to look at.
    assert find_asides(tmp_path, ["x.mha", "x.nrrd", "x.nii"]) == []


def test_a_look_at_damaged_files_is_nothing(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"\x1f\x8b torn")
    (tmp_path / "x.nrrd").write_bytes(b"NRRD0004\ntype: short\n\n")
    (tmp_path / "x.mhd").write_text("ObjectType = Image\n")
    assert [peek(tmp_path / name) for name in ("x.nii.gz", "x.nrrd", "x.mhd", "none.nii")] == [None] * 4


@pytest.mark.parametrize("offset", [0, 24, 1000, 1024, 8192])
def test_air_and_tissue_are_found_at_any_offset(offset):
    assert has_air_and_tissue(body() + offset)


def test_mr_has_no_air_and_tissue():
    assert not any(has_air_and_tissue(mr(i, top)) for i in range(4) for top in (300.0, 900.0, 1500.0, 4000.0))
