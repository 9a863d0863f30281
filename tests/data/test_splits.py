"""Splits: patients whole, labels balanced, budgets nested, files that must match, and patients reserved for testing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from voco.cli import main
from voco.data.layouts.labeled import LabeledCase
from voco.data.manifest import Case, build_manifest
from voco.data.manifest_patients import exclude_patients
from voco.data.split_files import exclusion_text, is_split, read_splits, split_text, write_splits
from voco.data.splits import make_splits
from voco.data.strata import nested_order, patient_labels
from voco.errors import InputError


def cohort(n=60, positive=0.3, seed=0, splits=None):
    """n patients, every third with two scans of the same label."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < round(positive * n)).astype(int)
    rng.shuffle(labels)
    return [
        LabeledCase(
            Case(f"c{i}-{k}", f"p{i}/c{i}-{k}.nii", f"p{i}", split=splits[i] if splits else None),
            {"y": float(labels[i])},
        )
        for i in range(n)
        for k in range(2 if i % 3 == 0 else 1)
    ]


def stratum(case):
    return f"{case.labels['y']:g}"


def patients(splits, fold, part, inside=True):
    own = splits.folds[fold]
    ids = own.ids(part) if inside else [c for c, word in own.parts.items() if word == part]
    return {splits.patients[case] for case in ids}


def positives(cases, names):
    return len({case.patient for case in cases if case.patient in names and case.labels["y"]})


@pytest.mark.parametrize("rule", ["holdout", "kfold", "repeated", "ke2023"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_patient_is_in_one_part_and_every_case_in_every_fold(rule, fraction):
    cases = cohort()
    splits = make_splits(cases, stratum, rule=rule, repeats=2, fraction=fraction)
    assert len(splits.folds) == {"kfold": 5, "repeated": 10}.get(rule, 1)
    for fold in splits.folds:
        assert set(fold.parts) == {case.id for case in cases}
        sides = {}
        for case in cases:
            sides.setdefault(case.patient, set()).add((fold.parts[case.id], case.id in fold.left_out))
        assert all(len(found) == 1 for found in sides.values())
        assert not {c for c in fold.left_out if fold.parts[c] == "test"}
    tested = Counter(p for f in range(len(splits.folds)) for p in patients(splits, f, "test"))
    if rule in ("kfold", "repeated"):
        assert set(tested.values()) == {len(splits.folds) // 5} and len(tested) == 60


@pytest.mark.parametrize("n,positive", [(60, 0.1), (61, 0.5), (203, 0.3), (25, 0.2)])
def test_labels_are_spread_as_evenly_as_scikit_learn_does(n, positive):
    from sklearn.model_selection import StratifiedKFold

    cases = cohort(n, positive)
    y = {case.patient: case.labels["y"] for case in cases}
    splits = make_splits(cases, stratum, rule="kfold", folds=5)
    ours = [(positives(cases, t), len(t)) for t in (patients(splits, f, "test") for f in range(5))]
    names = np.array(sorted(y))
    values = np.array([y[name] for name in names])
    theirs = [(int(values[t].sum()), len(t)) for _, t in StratifiedKFold(5).split(names, values)]
    for column in (0, 1):
        mine, other = ([row[column] for row in rows] for rows in (ours, theirs))
        assert max(mine) - min(mine) <= max(1, max(other) - min(other))
    assert sum(row[0] for row in ours) == round(positive * n)


def test_shares_of_a_holdout_are_those_asked_for():
    cases = cohort(200, 0.25)
    splits = make_splits(cases, stratum, test=0.2, val=0.125)
    assert splits.counts(0) == {"train": 140, "validation": 20, "test": 40}
    found = {part: positives(cases, patients(splits, 0, part)) for part in ("train", "validation", "test")}
    assert found == {"train": 35, "validation": 5, "test": 10}


def test_rare_labels_of_several_outputs_are_spread():
    rng = np.random.default_rng(0)
    words = ["/".join(str(int(v)) for v in rng.random(4) < (0.02, 0.06, 0.1, 0.3)) for _ in range(400)]
    cases = [LabeledCase(Case(f"c{i}", f"c{i}", f"p{i}"), {"w": word}) for i, word in enumerate(words)]
    splits = make_splits(cases, lambda case: case.labels["w"], rule="kfold")
    for i in range(4):
        total = sum(word.split("/")[i] == "1" for word in words)
        found = [sum(words[int(p[1:])].split("/")[i] == "1" for p in patients(splits, f, "test")) for f in range(5)]
        assert max(abs(count - total / 5) for count in found) <= 2 + 0.05 * total


def test_the_order_of_the_files_does_not_matter_and_a_newcomer_moves_few():
    cases = cohort(150)
    first = make_splits(cases, stratum)
    shuffled = [cases[i] for i in np.random.default_rng(1).permutation(len(cases))]
    assert make_splits(shuffled, stratum).folds[0].parts == first.folds[0].parts
    assert make_splits(cases, stratum, seed=1).folds[0].parts != first.folds[0].parts
    for rule in ("holdout", "kfold"):
        before = make_splits(cases, stratum, rule=rule).folds[0].parts
        for k in range(5):
            more = [*cases, LabeledCase(Case(f"n{k}", f"n{k}", f"new{k}"), {"y": float(k % 2)})]
            after = make_splits(more, stratum, rule=rule).folds[0].parts
            assert sum(after[c] != word for c, word in before.items()) <= 8


@pytest.mark.parametrize("rule", ["holdout", "kfold"])
@pytest.mark.parametrize("kind", ["share", "full"])
def test_budgets_are_nested_and_balanced(rule, kind):
    cases = cohort(300)
    whole = make_splits(cases, stratum, rule=rule)
    for f in range(len(whole.folds)):
        smaller = set()
        pool = patients(whole, f, "train") | patients(whole, f, "validation")
        for fraction in (0.05, 0.1, 0.11, 0.25, 0.5, 0.9, 1.0):
            splits = make_splits(cases, stratum, rule=rule, fraction=fraction, fraction_val=kind)
            train, val = (patients(splits, f, part) for part in ("train", "validation"))
            assert patients(splits, f, "test") == patients(whole, f, "test")
            if kind == "full":
                assert val == patients(whole, f, "validation")
                assert len(train) == int(fraction * len(patients(whole, f, "train")) + 1e-9)
                assert bool(splits.marks) == (fraction < 1)
                labeled = train
            else:
                labeled = train | val
                assert len(labeled) == int(fraction * len(pool) + 1e-9) and not splits.marks
                if splits.folds[f].early_stopping and fraction < 0.9:
                    assert len(val) == len(labeled) // 5
                    assert min(positives(cases, val), len(val) - positives(cases, val)) >= 2
            assert smaller <= labeled
            smaller = labeled
            assert abs(positives(cases, labeled) - 0.3 * len(labeled)) <= 3


def test_a_budget_too_small_for_validation_trains_with_all_of_it():
    cases = cohort(60)
    splits = make_splits(cases, stratum, fraction=0.25)
    fold = splits.folds[0]
    assert not fold.early_stopping and "fewer than 2" in fold.reason and splits.counts(0)["validation"] == 0
    assert splits.counts(0)["train"] == int(0.25 * 48) and any("fixed number of steps" in note for note in splits.notes)
    with pytest.raises(InputError, match="different labels"):
        make_splits(cases, stratum, fraction=0.01)


def test_every_beginning_of_the_nested_order_is_balanced():
    labels = {f"p{i}": (str(i % 5 == 0), str(i % 2)) for i in range(200)}
    order = nested_order(sorted(labels), labels, 0)
    for n in range(10, 200, 7):
        assert abs(sum(labels[p][0] == "True" for p in order[:n]) - n / 5) <= 2.5
    assert sorted(order) == sorted(labels)


def test_scans_of_a_patient_with_different_labels():
    assert patient_labels([("a", "0/1"), ("a", "1/1"), ("b", "0/0")]) == {"a": ("0+1", "1"), "b": ("0", "0")}


def test_the_published_split_of_ke_is_scikit_learns():
    from sklearn.model_selection import train_test_split

    cases = cohort(101)
    table = [f"p{i}" for i in np.random.default_rng(3).permutation(101)]
    splits = make_splits(cases, stratum, rule="ke2023", order=table)
    train, rest = train_test_split(table, test_size=0.30, random_state=2)
    val, test = train_test_split(rest, test_size=0.5, random_state=2)
    parts = {"train": train, "validation": val, "test": test}
    assert {part: patients(splits, 0, part) for part in parts} == {k: set(v) for k, v in parts.items()}
    # sizes that the paper gives for RSNA, and for the patients of LIDC
    for n, sizes in ((7279, (5095, 1092, 1092)), (1010, (707, 151, 152))):
        many = [LabeledCase(Case(f"c{i}", f"c{i}", f"p{i}"), {"y": i % 2}) for i in range(n)]
        assert tuple(make_splits(many, stratum, rule="ke2023").counts(0).values()) == sizes


def test_published_columns():
    words = ["train"] * 40 + ["test"] * 20
    cases = cohort(60, splits=words)
    splits = make_splits(cases, stratum, rule="published", val=0.25)
    assert splits.counts(0) == {"train": 30, "validation": 10, "test": 20} and "no validation part" in splits.notes[0]
    folded = [LabeledCase(c.case, c.labels, fold=int(c.patient[1:]) % 4 if c.case.split != "test" else None)
              for c in cases]  # fmt: skip
    splits = make_splits(folded, stratum, rule="published")
    assert len(splits.folds) == 4 and splits.counts(1) == {"train": 30, "validation": 10, "test": 20}
    bare = [LabeledCase(Case(c.id, c.case.path, c.patient), c.labels, fold=int(c.patient[1:]) % 4) for c in cases]
    splits = make_splits(bare, stratum, rule="published", val=0.2)
    assert patients(splits, 1, "test") == {f"p{i}" for i in range(1, 60, 4)} and splits.counts(1)["validation"] == 9
    with pytest.raises(InputError, match="no column split or fold"):
        make_splits(cohort(), stratum, rule="published")
    half = [*cases[:5], *(LabeledCase(Case(c.id, c.case.path, c.patient), c.labels) for c in cases[5:])]
    with pytest.raises(InputError, match="all must have one"):
        make_splits(half, stratum, rule="published")
    moved = [LabeledCase(c.case, c.labels, fold=i % 4) for i, c in enumerate(bare)]
    with pytest.raises(InputError, match="more than one part or fold"):
        make_splits(moved, stratum, rule="published")


@pytest.mark.parametrize("options", [{}, {"rule": "kfold", "fraction": 0.5}, {"fraction": 0.25}])
def test_a_split_file_repeats_the_split(tmp_path, options):
    cases = cohort()
    splits = make_splits(cases, stratum, **options)
    path = write_splits(tmp_path / "splits.csv", splits)
    for fraction in {1.0, options.get("fraction", 1.0)} - ({0.25} if options == {"fraction": 0.25} else set()):
        again = make_splits(cases, stratum, rule="file", file=path, fraction=fraction)
        assert split_text(again) == path.read_text()
        assert [f.early_stopping for f in again.folds] == [f.early_stopping for f in splits.folds]
    if "fraction" in options:
        with pytest.raises(InputError, match="already leaves out"):
            make_splits(cases, stratum, rule="file", file=path, fraction=0.8)


def test_a_split_file_that_does_not_match_is_one_error(tmp_path):
    cases = cohort(12)
    text = split_text(make_splits(cases, stratum))
    lines = text.splitlines()
    first = lines[1].split(",")[0]

    def broken(changed, match):
        path = tmp_path / "s.csv"
        path.write_text("\n".join(changed) + "\n")
        with pytest.raises(InputError, match=match):
            make_splits(cases, stratum, rule="file", file=path)

    broken([*lines, "stranger,x,x.nii,0,train,1"], r"1 cases are not in this cohort \('stranger'\)")
    broken([lines[0], *lines[2:]], f"of this cohort are not in the file .'{first}'")
    broken([*lines, lines[1]], "more than once")
    broken([line.replace(",test,", ",exam,") for line in lines], "holds the words 'exam'; expected train, valid")
    other = {"train": "test", "validation": "train", "test": "train"}
    twice = next(i for i, line in enumerate(lines) if line.startswith("c0-1"))
    word = lines[twice].split(",")[4]
    broken(
        [*lines[:twice], lines[twice].replace(word, other[word]), *lines[twice + 1 :]], "1 patients on more than one"
    )
    broken([line.replace(",0,", ",zero,") for line in lines], "fold must be a whole number")
    broken([line.replace("split", "part") for line in lines], "lacks the columns split")
    broken(["name,split", "a,train"], "no column case or patient")
    with pytest.raises(InputError, match="goes with"):
        make_splits(cases, stratum, file="x.csv")


def test_a_split_file_of_version_0_1_is_the_same_split(tmp_path):
    """It had no paths."""
    text = split_text(make_splits(cohort(12), stratum))
    rows = [line.split(",") for line in text.splitlines()]
    old, other = tmp_path / "old.csv", tmp_path / "other.csv"
    old.write_text("".join(",".join(row[:2] + row[3:]) + "\n" for row in rows))
    assert is_split(old, text) and not is_split(old, split_text(make_splits(cohort(12), stratum, seed=1)))
    other.write_text("".join(old.read_text().splitlines(keepends=True)[:-1]))
    assert not is_split(other, text)


def test_a_split_file_by_patient(tmp_path):
    cases = cohort(6)
    path = tmp_path / "s.csv"
    path.write_text("patient,split\n" + "".join(f"p{i},{'test' if i < 2 else 'train'}\n" for i in range(6)))
    (fold,) = read_splits(path, cases)
    assert {c.patient for c in cases if fold.parts[c.id] == "test"} == {"p0", "p1"} and len(fold.parts) == len(cases)


@pytest.mark.parametrize("wrong", [{"val": 1.0}, {"test": -0.1}, {"fraction": 0.0}, {"rule": "kfold", "folds": 1},
    {"rule": "kfold", "folds": 61}, {"rule": "lottery"}])  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(InputError):
        make_splits(cohort(), stratum, **wrong)


def test_reserved_patients_are_left_out_by_pretraining(tmp_path, capsys):
    """A folder of scans: two files a patient, the same file names everywhere, and one patient in another folder."""
    root = tmp_path / "ct"
    for i in range(12):
        for name in ("early.nii.gz", "late.nii.gz"):
            (root / f"P{i:02d}").mkdir(parents=True, exist_ok=True)
            (root / f"P{i:02d}" / name).write_bytes(b"")
    out = tmp_path / "s" / "splits.csv"
    assert main(["split", str(root), "--test", "0.25", "--out", str(out)]) == 0
    assert "12 patients: train 8 (16 scans), validation 1 (2 scans), test 3 (6 scans)" in capsys.readouterr().out
    cases = [LabeledCase(case) for case in build_manifest(root).cases]
    (fold,) = read_splits(out, cases)
    tested = {c for c, word in fold.parts.items() if word == "test"}
    listed = out.with_name("splits.exclude.csv")
    kept = {case.id for case in build_manifest(root, exclude=listed).cases}
    assert kept == {case.id for case in cases} - tested and len(tested) == 6
    # the same cohort seen from above, as another root
    above = build_manifest(tmp_path, exclude=listed)
    assert len(above.cases) == 18
    # a second call changes nothing; another seed is refused
    assert main(["split", str(root), "--test", "0.25", "--out", str(out)]) == 0
    assert main(["split", str(root), "--test", "0.25", "--out", str(out), "--seed", "1"]) == 2
    assert "must not change" in capsys.readouterr().err


def test_reserved_studies_of_a_task_are_left_out_by_pretraining(tmp_path):
    """Labels name files, pretraining reads the folder: the two must mean the same scans."""
    rows = ["FileName,TypeOfTB"]
    for i in range(1, 21):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"TRN_{i:04d}.nii.gz").write_bytes(b"")
        rows.append(f"TRN_{i:04d}.nii.gz,{i % 5 + 1}")
    (tmp_path / "x_TrainSet_metaData.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "tb.csv"
    arguments = ["split", str(tmp_path), "--task", "imageclef_tb", "--out", str(out)]
    assert main([*arguments, "--option", "colour=red"]) == 2 and main(arguments) == 0
    listed = tmp_path / "tb.exclude.csv"
    tested = {row.split(",")[0] for row in out.read_text().splitlines() if ",test," in row}
    kept = {case.path.split("/")[-1][:8] for case in build_manifest(tmp_path / "images", exclude=listed).cases}
    assert len(tested) == 4 and kept == {f"TRN_{i:04d}" for i in range(1, 21)} - tested


def test_names_that_others_share_are_not_used(tmp_path):
    paths = {"1": "1/scan.nii", "2": "2/1/scan.nii", "3": "3/scan.nii", "scan": "4/x.nii"}
    cases = [LabeledCase(Case(f"c{p}", path, p)) for p, path in paths.items()]
    for patient in paths:
        listed = tmp_path / "exclude.csv"
        listed.write_text(exclusion_text(cases, [patient]))
        kept, _ = exclude_patients([case.case for case in cases], listed)
        assert {case.patient for case in kept} == set(paths) - {patient}
    with pytest.raises(InputError, match="cannot be told"):
        exclusion_text([LabeledCase(Case("a", "x.nii", "p")), LabeledCase(Case("b", "x.nii", "x.nii"))], ["x.nii"])
