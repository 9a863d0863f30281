"""Layouts of RSNA PE and LIDC-IDRI: small trees by hand, and what may be wrong with them."""

import csv

import numpy as np
import pydicom
import pytest

from tests.data.dicom_maker import anatomy, dataset, positions, save
from voco.data.layouts.lidc import read_lidc
from voco.data.layouts.lidc_xml import NoduleSlices, read_reading
from voco.data.layouts.rsna_pe import EXAM, IDS, IMAGE, read_rsna_pe
from voco.errors import InputError

# The published order of columns.
PUBLISHED = (
    "StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,pe_present_on_image,negative_exam_for_pe,qa_motion,qa_contrast,"
    "flow_artifact,rv_lv_ratio_gte_1,rv_lv_ratio_lt_1,leftsided_pe,chronic_pe,true_filling_defect_not_pe,rightsided_pe,"
    "acute_and_chronic_pe,central_pe,indeterminate"
)


def pe_rows(study, images, **exam):
    """Rows of one exam; ``images`` are labels."""
    labels = dict.fromkeys(EXAM, 0) | exam
    return [
        {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}s", "SOPInstanceUID": f"{study}-{k}", IMAGE: image}
        | labels
        for k, image in enumerate(images)
    ]


def pe_tree(root, rows, part="train", touch=True):
    root.mkdir(exist_ok=True)
    (root / part).mkdir(exist_ok=True)
    with open(root / f"{part}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, PUBLISHED.split(",") if part == "train" else IDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows if touch else ():
        folder = root / part / row["StudyInstanceUID"] / row["SeriesInstanceUID"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row['SOPInstanceUID']}.dcm").touch()
    return root


POSITIVE = pe_rows("a1", [0, 1, 1, 0], rv_lv_ratio_lt_1=1, leftsided_pe=1)
NEGATIVE = pe_rows("b2", [0, 0, 0], negative_exam_for_pe=1)
UNSURE = pe_rows("c3", [0, 0], indeterminate=1, qa_motion=1)


def reasons(manifest):
    return {item.path: item.reason for item in manifest.rejected}


def test_rsna_pe_as_published(tmp_path):
    assert ",".join((*IDS, IMAGE, *EXAM)) == PUBLISHED
    manifest = read_rsna_pe(pe_tree(tmp_path, [*UNSURE, *POSITIVE, *NEGATIVE]))
    assert [case.id for case in manifest.cases] == ["a1", "b2", "c3"] and not manifest.rejected
    case = manifest.cases[0]
    assert (case.unit, case.patient, case.case.path, case.case.files) == ("a1", "a1", "train/a1/a1s", ())
    assert case.labels == dict.fromkeys(EXAM, 0.0) | {"rv_lv_ratio_lt_1": 1.0, "leftsided_pe": 1.0}
    assert dict(case.slices) == {"a1-0": 0.0, "a1-1": 1.0, "a1-2": 1.0, "a1-3": 0.0}
    assert case.slices.get("b2-0") is None and case.slices.positive == 2
    assert not manifest.patient_level and any("no patient identity" in note for note in manifest.notes)
    assert manifest.order == ["c3", "a1", "b2"], "as in the table: the split of Ke et al. goes by it"


def test_rsna_pe_test_part_has_no_labels(tmp_path):
    manifest = read_rsna_pe(pe_tree(tmp_path, POSITIVE, part="test"), "test")
    assert manifest.cases[0].labels == {} and manifest.cases[0].slices is None
    assert manifest.cases[0].case.path == "test/a1/a1s"


def test_rsna_pe_faults_of_one_exam(tmp_path):
    bad = {
        "d1": (
            pe_rows("d1", [1, 0], negative_exam_for_pe=1),
            "1 images show an embolus, but negative_exam_for_pe is 1",
        ),
        "d2": (pe_rows("d2", [0, 0]), "neither is"),
        "d3": (pe_rows("d3", [0], negative_exam_for_pe=1, indeterminate=1), "both are"),
        "d4": (pe_rows("d4", [0], negative_exam_for_pe=1, central_pe=1), "no image shows an embolus, but central_pe"),
        "d5": ([*pe_rows("d5", [0], negative_exam_for_pe=1), *pe_rows("d5", [0, 0], indeterminate=1)[1:]], "differ"),
    }
    manifest = read_rsna_pe(pe_tree(tmp_path, [row for rows, _ in bad.values() for row in rows] + NEGATIVE))
    assert [case.id for case in manifest.cases] == ["b2"]
    for study, (_, why) in bad.items():
        assert why in reasons(manifest)[f"train/{study}"]


def test_rsna_pe_files_that_do_not_match(tmp_path):
    rows = [*POSITIVE, *NEGATIVE, *UNSURE]
    pe_tree(tmp_path, rows)
    (tmp_path / "train/a1/a1s/extra.dcm").touch()
    (tmp_path / "train/b2/b2s/b2-1.dcm").unlink()
    (tmp_path / "train/b2/other").mkdir()
    for file in (tmp_path / "train/c3/c3s").iterdir():
        file.unlink()
    (tmp_path / "train/c3/c3s").rmdir()
    (tmp_path / "train/unknown").mkdir()
    manifest = read_rsna_pe(tmp_path)
    assert [case.id for case in manifest.cases] == ["a1"]
    assert [file.rsplit("/")[-1] for file in manifest.cases[0].case.files] == [f"a1-{k}.dcm" for k in range(4)]
    why = reasons(manifest)
    assert "no row of this image" in why["train/a1/a1s/extra.dcm"]
    assert "1 of its 3 images in train.csv have no file (first: b2-1.dcm)" in why["train/b2/b2s"]
    assert "no row of this series" in why["train/b2/other"]
    assert "no such folder" in why["train/c3/c3s"]
    assert "no row of this study" in why["train/unknown"]


def test_rsna_pe_tables_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match=r"train\.csv does not exist"):
        read_rsna_pe(tmp_path)
    pe_tree(tmp_path, POSITIVE + POSITIVE[:1])
    with pytest.raises(InputError, match=r"1 SOPInstanceUIDs have more than one row \(a1-0\)"):
        read_rsna_pe(tmp_path)
    pe_tree(tmp_path, [POSITIVE[0] | {"central_pe": 2}, *POSITIVE[1:]])
    with pytest.raises(InputError, match=r"1 values of central_pe are not 0 or 1 \(line 2: 2\)"):
        read_rsna_pe(tmp_path)
    pe_tree(tmp_path, [POSITIVE[0] | {"central_pe": "yes"}])
    with pytest.raises(InputError, match=r"not a readable table.*yes"):
        read_rsna_pe(tmp_path)
    (tmp_path / "train.csv").write_text("StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID\na,b,c\n")
    with pytest.raises(InputError, match="lacks the columns pe_present_on_image"):
        read_rsna_pe(tmp_path)


def test_rsna_pe_mark_and_blanks_in_the_header(tmp_path):
    pe_tree(tmp_path, NEGATIVE)
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text("\ufeff" + text.replace("StudyInstanceUID,", "StudyInstanceUID, ", 1))
    assert read_rsna_pe(tmp_path).cases[0].id == "b2"


# LIDC-IDRI


def roi(uid, z, points=3, inclusion="TRUE"):
    edges = "".join(f"<edgeMap><xCoord>{k}</xCoord><yCoord>{k}</yCoord></edgeMap>" for k in range(points))
    return (
        f"<roi><imageZposition>{z}</imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def nodule(*rois, ratings="<malignancy>3</malignancy>"):
    rated = f"<characteristics><subtlety>5</subtlety>{ratings}</characteristics>" if ratings else ""
    return f"<unblindedReadNodule><noduleID>0</noduleID>{rated}{''.join(rois)}</unblindedReadNodule>"


def reading(series, *sessions, head=""):
    body = "".join(f"<readingSession><annotationVersion>3.12</annotationVersion>{s}</readingSession>" for s in sessions)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{head}<LidcReadMessage uid="1" xmlns="http://www.nih.gov">'
        f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{body}</LidcReadMessage>"
    )


def lidc_series(root, patient, series, count=2, modality="CT"):
    """A folder with a series; returns its SeriesInstanceUID."""
    for k, where in enumerate(positions(count)):
        made = dataset(
            (anatomy((1, 4, 5))[0] + 1024).astype(np.uint16), study=patient, series=series, number=k, position=where,
            PatientID=patient, Modality=modality,
        )  # fmt: skip
        save(made, root / f"LIDC-IDRI/{patient}/{made.StudyInstanceUID}/{made.SeriesInstanceUID}/{k:06d}.dcm")
    return made.SeriesInstanceUID


def test_annotation_counts_and_ranges(tmp_path):
    path = tmp_path / "a.xml"
    long = nodule(roi("u0", 0), roi("u2", 5.0))
    path.write_text(
        reading(
            "s",
            long + nodule(roi("u1", 2.5, points=1), ratings=""),  # a point: smaller than 3 mm
            nodule(roi("u1", 2.5), roi("u2", 5), roi("u3", 7.5, points=1)),  # the last one is a point, not an outline
            nodule(roi("u1", 2.5), roi("u1", 2.5, inclusion="FALSE")),
            nodule(roi("u3", 7.5, points=1), ratings="<malignancy>0</malignancy>")
            + "<nonNodule><nonNoduleID>1</nonNoduleID><imageZposition>2.5</imageZposition></nonNodule>",
        ).replace("<subtlety>5</subtlety><malignancy>0", "<subtlety>0</subtlety><malignancy>0")
    )
    found = read_reading(path)
    assert (found.series, found.readers, len(found.nodules)) == ("s", 4, 3)
    uids, z = ["u0", "u1", "u2", "u3", "u4"], np.array([0, 2.5, 5, 7.5, 10])
    # u0 holds 1, u1 the first by its range although nothing is drawn there, the second and the third; u2 two.
    for agreement, expected in ((1, [1, 1, 1, 0, 0]), (2, [0, 1, 1, 0, 0]), (3, [0, 1, 0, 0, 0]), (4, [0] * 5)):
        slices = NoduleSlices(found.nodules, agreement)
        assert slices.at(uids, z).tolist() == expected
        assert slices.at(uids, z + 100).tolist() == expected, "another origin of z"
        assert dict(slices) == {uid: float(v) for uid, v in zip(uids[:3], expected)}
        assert slices.positive == any(expected)
    # a slice that no reader touched, inside a range
    assert NoduleSlices(found.nodules[:1], 1).at(["u0", "gap", "u2"], z[:3]).tolist() == [1, 1, 1]
    assert np.isnan(NoduleSlices(found.nodules, 1).at(["other"], z[:1])).all()
    # readers that name different UIDs for one position: the one that is not among the images goes by its z
    other = NoduleSlices([{"u0": 0.0, "u1": 2.5}, {"copy of u1": 2.5, "copy of u2": 5.0}], 2)
    assert other.at(uids, z).tolist() == other.at(uids, z + 100).tolist() == [0, 1, 0, 0, 0]
    empty = NoduleSlices((), 3)
    assert empty and len(empty) == 0 and not empty.positive and empty.at(uids, z).tolist() == [0] * 5


def test_annotation_files_that_are_refused(tmp_path):
    path = tmp_path / "a.xml"
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
    for text, why in (
        (reading("s", "", head=bomb), "document type"),
        (reading("s", "")[:-5], "not readable as XML"),
        (reading("", ""), "no SeriesInstanceUid"),
        (reading("s"), "no readingSession"),
        (reading("s", nodule(roi("", 3))), "its image is not known"),
        (reading("s", nodule(roi("u", "here"))), "its image is not known"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=why):
            read_reading(path)
    path.write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"/>')
    assert read_reading(path) is None


def test_lidc_as_published(tmp_path):
    one, first, second = (
        lidc_series(tmp_path, p, s)
        for p, s in (("LIDC-IDRI-0001", "a"), ("LIDC-IDRI-0002", "a"), ("LIDC-IDRI-0002", "b"))
    )
    lidc_series(tmp_path, "LIDC-IDRI-0001", "x", modality="DX")
    bare = lidc_series(tmp_path, "LIDC-IDRI-0003", "a")
    beside = next((tmp_path / "LIDC-IDRI/LIDC-IDRI-0001").glob(f"*/{one}"))
    (beside / "069.xml").write_text(reading(one, *[nodule(roi("u", 1.0))] * 4))
    (tmp_path / "LIDC-XML-only").mkdir()
    for k, uid in enumerate((one, first, second, "gone")):
        sessions = [nodule(roi("u", 1.0))] * 4 if uid == one else [""] * 4
        (tmp_path / f"LIDC-XML-only/{k}.xml").write_text(reading(uid, *sessions))
    manifest = read_lidc(tmp_path)
    ids = [case.id for case in manifest.cases]
    assert ids[0] == "LIDC-IDRI-0001" and all(name.startswith("LIDC-IDRI-0002-") for name in ids[1:]) and len(ids) == 3
    assert [case.patient for case in manifest.cases] == ["LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0002"]
    assert [case.labels["nodule"] for case in manifest.cases] == [1.0, 0.0, 0.0]
    assert manifest.cases[0].case.files == tuple(f"{manifest.cases[0].case.path}/{k:06d}.dcm" for k in range(2))
    why = reasons(manifest)
    assert "not there" in why["gone"] and len(why) == 2 and "CT series without labels" in next(iter(why.values()))
    assert any(bare in path for path in why) and any("1 radiographs" in note for note in manifest.notes)
    # the folder itself may be named: the same cases with the same paths
    again = read_lidc(tmp_path / "LIDC-IDRI")
    assert [case.case for case in again.cases] == [case.case for case in manifest.cases]
    # two files of one series that disagree
    (beside / "069.xml").write_text(reading(one, *[""] * 4))
    clash = read_lidc(tmp_path)
    assert len(clash.cases) == 2 and any("differs from another" in reason for reason in reasons(clash).values())


def test_lidc_table_in_place_of_annotations(tmp_path):
    one, two = lidc_series(tmp_path, "LIDC-IDRI-0001", "a"), lidc_series(tmp_path, "LIDC-IDRI-0002", "a")
    head = "PatientID,SeriesInstanceUID,SOPInstanceUID,nodule_present_on_image,Split\n"
    rows = f"LIDC-IDRI-0001,{one},u0,0,train\nLIDC-IDRI-0001,{one},u1,1,train\nLIDC-IDRI-0002,{two},v0,0,valid\n"
    path = tmp_path / "slices.csv"
    path.write_text(head + rows)
    cases = read_lidc(tmp_path, table=path).cases
    assert [(case.labels["nodule"], case.case.split) for case in cases] == [(1.0, "train"), (0.0, "validation")]
    assert dict(cases[0].slices) == {"u0": 0.0, "u1": 1.0}
    path.write_text(head + "".join(reversed(rows.splitlines(keepends=True))))
    assert read_lidc(tmp_path, table=path).order == ["LIDC-IDRI-0002", "LIDC-IDRI-0001"]
    for change, why in (
        (("u1,1", "u0,1"), "more than once"),
        (("u1,1", "u1,x"), "not usable"),
        (("valid", "?"), "Split"),
    ):
        path.write_text(head + rows.replace(*change))
        with pytest.raises(InputError, match=why):
            read_lidc(tmp_path, table=path)


def test_lidc_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="no CT series"):
        read_lidc(tmp_path)
    lidc_series(tmp_path, "LIDC-IDRI-0001", "a")
    with pytest.raises(InputError, match="no annotation file"):
        read_lidc(tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("told", [True, False])
def test_headers_that_keep_only_a_few_elements(tmp_path, told):
    """Files of RSNA sets have short letters as UIDs and need not tell their class in the data set."""
    from voco.data.read import read_volume

    hu = anatomy((5, 6, 7))
    for k, where in enumerate(positions(5)):
        made = dataset((hu[k] + 1024).astype(np.uint16), number=k + 1, position=where)
        made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = "6897fa", "2bfbb7", f"c0f3cb03{k}"
        for name in ("PatientID", "PatientName", "AccessionNumber", "StudyDate", "ImageType", "SeriesDescription"):
            delattr(made, name)
        path = save(made, tmp_path / f"{k}.dcm")
        stored = pydicom.dcmread(path)
        del stored.SOPClassUID
        if not told:
            del stored.file_meta.MediaStorageSOPClassUID
        stored.save_as(path, enforce_file_format=False)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert [info.sop_uid for info in volume.slices] == [f"c0f3cb03{k}" for k in range(5)]
