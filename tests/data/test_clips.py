from __future__ import annotations

import pickle
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from voco.data.clip_cohort import look_at, look_into, say_notes
from voco.data.clip_frames import ClipSettings, choose_frames, clip_range, crop_start, resized
from voco.data.clips import Clip, ClipDataset, build_clip_manifest, load_clips, split_groups
from voco.data.dataset import StepSampler, make_loader
from voco.data.video import FrameIndex, probe, read_frames
from voco.errors import InputError, ScanError
from voco.phantom.video import write_video


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """30 frames of 32 x 48 at 10 fps; frame t is gray 8 t, columns are brighter to the right."""
    path = tmp_path_factory.mktemp("sample") / "clip.avi"
    frames = np.zeros((30, 32, 48, 3), np.uint8)
    frames += (6 * np.arange(30)).astype(np.uint8)[:, None, None, None]
    frames += np.arange(48).astype(np.uint8)[None, None, :, None]
    write_video(path, frames, 10, codec="mjpeg", qmin="1", qmax="1")
    return path


def lay_out(root, sample, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample, root / name)
    return root


def rows(manifest):
    return [(clip.path, clip.label, clip.group, clip.split) for clip in manifest.clips]


# layouts


def test_class_folders(tmp_path, sample):
    lay_out(tmp_path, sample, ["run/b.avi", "run/a.avi", "jump/x/c.avi", "jump/y/d.mkv", "loose.mp4", "run/notes.txt"])
    manifest = build_clip_manifest(tmp_path)
    assert rows(manifest) == [
        ("jump/x/c.avi", "jump", "x", None),
        ("jump/y/d.mkv", "jump", "y", None),
        ("run/a.avi", "run", "run/a.avi", None),
        ("run/b.avi", "run", "run/b.avi", None),
    ]
    assert manifest.classes == ("jump", "run")
    assert any("beside the class folders" in note and "loose.mp4" in note for note in manifest.notes)
    by_letter = build_clip_manifest(tmp_path, group_regex=r"/([a-d])\.", classes=["run"])
    assert [clip.group for clip in by_letter.clips] == ["a", "b"] and by_letter.classes == ("run",)
    with pytest.raises(InputError, match="no clip of class swim"):
        build_clip_manifest(tmp_path, classes=["swim"])
    with pytest.raises(InputError, match="split has no meaning"):
        build_clip_manifest(tmp_path, split=1)


def test_class_folders_in_parts_of_a_split(tmp_path, sample):
    lay_out(tmp_path, sample, ["set/train/a/1.avi", "set/val/a/2.avi", "set/test/a/3.avi", "set/train/b/4.avi"])
    manifest = build_clip_manifest(tmp_path)
    assert [(clip.label, clip.split) for clip in manifest.clips] == [("a", "train"), ("b", "train"), ("a", "heldout")]
    assert any("1 clips marked as test" in note for note in manifest.notes)


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path, sample):
    lay_out(tmp_path, sample, ["2/a.avi", "10/b.avi", "1/c.avi"])
    assert build_clip_manifest(tmp_path).classes == ("1", "2", "10")


def test_names_that_hold_the_class(tmp_path, sample):
    lay_out(tmp_path, sample, ["asl_yes_1.avi", "asl_no_2.avi", "deep/asl_yes_2.avi", "other.avi"])
    with pytest.raises(InputError, match="label_regex"):
        build_clip_manifest(lay_out(tmp_path / "flat", sample, ["asl_yes_1.avi"]))
    shutil.rmtree(tmp_path / "flat")
    manifest = build_clip_manifest(tmp_path, label_regex=r"asl_([a-z]+)_", group_regex=r"_(\d)\.")
    assert [(clip.label, clip.group) for clip in manifest.clips] == [("no", "2"), ("yes", "1"), ("yes", "2")]
    with pytest.raises(InputError, match="has no group"):
        build_clip_manifest(tmp_path, label_regex="asl")
    with pytest.raises(InputError, match="matches none of 4"):
        build_clip_manifest(tmp_path, label_regex="(zzz)")
    with pytest.raises(InputError, match="no regular expression"):
        build_clip_manifest(tmp_path, label_regex="(")


UCF = [
    f"{c}/v_{n}_g0{g}_c0{k}.avi"
    for c, n in (("Mix", "Mix"), ("HandstandX", "HandStandX"))
    for g in (1, 2)
    for k in (1, 2)
]


def test_ucf_groups_and_official_lists(tmp_path, sample):
    root = lay_out(tmp_path / "UCF", sample, UCF)
    manifest = build_clip_manifest(root)
    assert manifest.classes == ("HandstandX", "Mix")  # folders, not the other spelling in the names
    assert Counter(clip.group for clip in manifest.clips) == dict.fromkeys(
        ("HandstandX/g01", "HandstandX/g02", "Mix/g01", "Mix/g02"), 2
    )
    train, held, _ = split_groups(manifest.clips, 0.3, 0)
    assert len(train) == len(held) == 4 and not {c.group for c in train} & {c.group for c in held}
    with pytest.raises(InputError, match=r"trainlist02\.txt is not in"):
        build_clip_manifest(root, split=2)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist02.txt").write_text("".join(f"{name} 1\n" for name in UCF if "g02" in name))
    (lists / "testlist02.txt").write_text("".join(f"{n}\n" for n in UCF if "g01_c01" in n) + "Mix/v_Mix_g07_c09.avi\n")
    manifest = build_clip_manifest(root, split=2)
    assert Counter(clip.split for clip in manifest.clips) == {"train": 4, "heldout": 2}
    assert manifest.missing == ["v_mix_g07_c09"]
    train, held, _ = split_groups(manifest.clips, 0.9, 5)
    assert [c.id for c in held] == ["HandstandX/v_HandStandX_g01_c01.avi", "Mix/v_Mix_g01_c01.avi"] and len(train) == 4


def test_kinetics_list(tmp_path, sample):
    lay_out(
        tmp_path, sample, ["v/ab-_c12345x_000007_000017.avi", "v/other_00001_000010_000020.avi", "w/whole_video.avi"]
    )
    (tmp_path / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nride a bike,ab-_c12345x,7,17,train\n"
        "swim,other_00001,10,20,validate\nswim,whole_video,1,2,train\nswim,gone0000000,3,13,train\n"
    )
    manifest = build_clip_manifest(tmp_path / "k.csv")
    found = {clip.id: clip for clip in manifest.clips}
    assert found["ab-_c12345x_000007_000017"].path == "v/ab-_c12345x_000007_000017.avi"
    assert found["ab-_c12345x_000007_000017"].start_s is None
    assert found["other_00001_000010_000020"].split == "heldout"
    assert (found["whole_video_000001_000002"].start_s, found["whole_video_000001_000002"].end_s) == (1.0, 2.0)
    assert manifest.missing == ["gone0000000_000003_000013"] and not manifest.rejected
    assert any("3 of its 4 clips are there, 1 are missing" in note for note in manifest.notes)


def test_plain_list(tmp_path, sample):
    lay_out(tmp_path, sample, ["a.avi", "b.avi"])
    (tmp_path / "clips.csv").write_text(
        "path,label,group,split,start_s,end_s\na.avi,x,p1,train,,\na.avi,y,p1,train,0.5,1.5\nb.avi,x,p2,val,,\n"
        "c.avi,x,p3,,,\na.avi,x,p1,,,\nb.avi,,p2,,,\nb.avi,x,p2,,2,1\nb.avi,x,p2,,one,\n"
    )
    manifest = build_clip_manifest(tmp_path)  # a clips.csv in a folder speaks for it
    assert [(c.id, c.label, c.group, c.split) for c in manifest.clips] == [
        ("a.avi", "x", "p1", "train"),
        ("a.avi@0.5-1.5", "y", "p1", "train"),
        ("b.avi", "x", "p2", "heldout"),
    ]
    reasons = " | ".join(f"{r.path}: {r.reason}" for r in manifest.rejected)
    for text in ("c.avi: no such file", "listed 2 times", "path or label is empty", "not before end_s", "no number"):
        assert text in reasons
    (tmp_path / "pairs.txt").write_text("a.avi 3\nb.avi 12\n")
    assert build_clip_manifest(tmp_path / "pairs.txt").classes == ("3", "12")
    (tmp_path / "bad.csv").write_text("file,class\na.avi,x\n")
    with pytest.raises(InputError, match="path,label"):
        build_clip_manifest(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("path,label,split\na.avi,x,later\n")
    with pytest.raises(InputError, match="later"):
        build_clip_manifest(tmp_path / "bad.csv")
    with pytest.raises(InputError, match="does not exist"):
        build_clip_manifest(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no video file"):
        build_clip_manifest(tmp_path / "empty")


# split


def test_lists_as_spreadsheets_write_them(tmp_path, sample):
    lay_out(tmp_path, sample, ["x/a.avi", "x/b.avi", "x/c.avi"])
    text = "path;label;group;split\nx\\a.avi;run;NA;\nx/b.avi;none;g;train\nx/c.avi;#N/A;g;train\n"
    (tmp_path / "clips.csv").write_text(text, encoding="utf-16")
    manifest = build_clip_manifest(tmp_path)
    assert rows(manifest) == [("x/a.avi", "run", "x/a.avi", None), ("x/b.avi", "none", "g", "train")]
    assert [(item.path, item.reason) for item in manifest.rejected] == [("x/c.avi", "the label '#N/A' is unknown")]


def test_how_files_are_read_is_said(tmp_path, sample):
    lay_out(tmp_path, sample, ["run/a.avi", "jump/b.avi"])
    said = []
    note = {"note": "no times: taken as 25 frames per second"}
    found = {"run/a.avi": replace(probe(sample), **note), "run/c.avi": replace(probe(sample), **note), "x": "broken"}
    say_notes(found, said.append)
    assert said == ["2 files have no times (first: run/a.avi: no times: taken as 25 frames per second)"]


def clips_of(groups: dict[str, str]):
    return [Clip(f"{g}-{i}", f"{g}-{i}", label, g) for g, labels in groups.items() for i, label in enumerate(labels)]


def test_groups_stay_together_and_classes_are_held_out_alike():
    clips = clips_of({f"actor{n}": "aabbcc" for n in range(10)})
    train, held, notes = split_groups(clips, 0.2, 3)
    assert Counter(c.label for c in held) == {"a": 4, "b": 4, "c": 4} and not notes
    assert not {c.group for c in train} & {c.group for c in held} and len(train) + len(held) == len(clips)
    again = split_groups(clips[::-1], 0.2, 3)[1]
    assert {c.id for c in again} == {c.id for c in held}
    assert len({frozenset(c.group for c in split_groups(clips, 0.2, seed)[1]) for seed in range(20)}) > 5
    assert split_groups(clips, 0, 0) == (clips, [], [])


def test_every_class_that_can_be_held_out_is():
    groups = {f"{c}{n}": c * (n + 1) for c in "abcdefgh" for n in range(4 if c > "b" else 2)} | {"lone": "zzz"}
    for seed in range(10):
        train, held, notes = split_groups(clips_of(groups), 0.1, seed)
        assert {c.label for c in held} == set("abcdefgh") and {c.label for c in train} == set("abcdefghz")
        assert notes == ["1 classes have a single group and cannot be held out: z"]


def test_a_group_on_both_sides_of_a_list_is_refused():
    clips = [Clip("1", "1", "a", "g", "train"), Clip("2", "2", "a", "g", "heldout")]
    with pytest.raises(InputError, match="both in the training"):
        split_groups(clips, 0.2, 0)
    with pytest.raises(InputError, match="from 0 to below 1"):
        split_groups(clips, 1.0, 0)


# frames and crops


def index_of(times):
    times = np.array(times, float)
    return FrameIndex(times, times - times[0], np.ones(len(times), bool), times)


def test_frame_rules():
    ten = index_of(np.arange(100) / 10)  # 10 fps, 9.9 s
    rule = ClipSettings(frames=5)
    assert choose_frames(ten, 0, 100, rule, 0.7).tolist() == [0, 25, 49, 74, 99]
    span = ClipSettings(frames=5, span_s=2.0)
    assert choose_frames(ten, 0, 100, span, 0.0).tolist() == [0, 5, 10, 15, 20]
    assert choose_frames(ten, 0, 100, span, 1.0).tolist() == [79, 84, 89, 94, 99]
    assert choose_frames(ten, 10, 14, span, 1.0).tolist() == [10, 11, 11, 12, 13]
    # every third frame of 30 fps is every frame of 10 fps
    stride = ClipSettings(frames=8, rule="stride", stride=3, fps=30)
    assert choose_frames(ten, 0, 100, stride, 0.5).tolist() == list(range(46, 54))
    assert choose_frames(ten, 95, 100, stride, 0.9).tolist() == [95, 96, 97, 98, 99, 99, 99, 99]
    first = ClipSettings(frames=4, rule="first")
    assert choose_frames(ten, 7, 100, first, 0.9).tolist() == [7, 8, 9, 10]
    assert choose_frames(ten, 7, 9, first, 0.9).tolist() == [7, 8, 8, 8]
    assert choose_frames(ten, 0, 100, ClipSettings(frames=1), 0.5).tolist() == [49]
    # a long pause counts by its time, not by its frames
    pause = index_of([0.0, 0.1, 0.2, 5.0, 10.0])
    assert choose_frames(pause, 0, 5, ClipSettings(frames=3), 0).tolist() == [0, 3, 4]


def test_parts_of_a_file():
    ten = index_of(np.arange(100) / 10)
    assert clip_range(ten, None, None) == (0, 100)
    assert clip_range(ten, 1.0, 2.0) == (10, 20)
    assert clip_range(ten, 50.0, 60.0) == (99, 100)


def test_sizes_and_crops():
    settings = ClipSettings(size=(112, 112), scale=(128 / 112, 128 / 112))
    assert resized((240, 320), settings, 0.3) == (128, 171) and resized((320, 240), settings, 0.3) == (171, 128)
    wide = ClipSettings(size=(100, 200), scale=(1, 1.5))
    assert resized((100, 100), wide, 0.0) == (200, 200) and resized((100, 100), wide, 1.0) == (300, 300)
    assert crop_start((128, 171), settings, (0.5, 0.5)) == (8, 30)
    corners = {crop_start((114, 112), settings, (s, s)) for s in np.linspace(0, 0.999, 50)}
    assert corners == {(0, 0), (1, 0), (2, 0)}
    for bad in ({"rule": "last"}, {"frames": 0}, {"size": (0, 4)}, {"stride": 0}, {"scale": (0.9, 1)}, {"fps": 0}):
        with pytest.raises(InputError):
            ClipSettings(**bad)


# dataset


def dataset(root, sample, **kw):
    lay_out(root, sample, [f"{c}/{n}.avi" for c in "ab" for n in range(3)])
    manifest = build_clip_manifest(root)
    settings = kw.pop("settings", ClipSettings(frames=4, size=(16, 16), scale=(1.25, 1.25)))
    return ClipDataset(manifest.root, manifest.clips, manifest.classes, settings=settings, **kw)


def draw(rng):
    unit = torch.rand(4, generator=rng)
    return {"start": unit[0], "crop": unit[1:3], "extra": unit[3]}


def test_evaluation_is_the_middle(tmp_path, sample):
    data = dataset(
        tmp_path, sample, train=False, colour="gray", settings=ClipSettings(4, (16, 16), "first", scale=(1, 1))
    )
    assert [int(data[i]["label"]) for i in range(6)] == [0, 0, 0, 1, 1, 1] and [
        int(data[i]["case"]) for i in (0, 5)
    ] == [0, 5]
    item = data[1]
    assert item["frames"].shape == (4, 16, 16, 1) and item["frames"].dtype == torch.uint8
    assert item["label"].dtype == torch.int64 and item["replaced"] == 0
    # 32 x 48 halves to 16 x 24, of which the middle 16 columns start at column 4: gray 2 * 4 + 0.5 and 2 more a column
    expected = 6 * np.arange(4)[:, None] + 2 * np.arange(4, 20) + 0.5
    assert np.abs(item["frames"][:, 8, :, 0].numpy() - expected).max() <= 3


def test_samples_depend_on_position_alone(tmp_path, sample):
    data = dataset(tmp_path, sample, draws=draw, seed=4)
    other = pickle.loads(pickle.dumps(data))
    for position in (3, 0, 17, 12, 3):
        one, two = data[position], other[position]
        assert one.keys() == {"frames", "label", "case", "replaced", "start", "crop", "extra"}
        assert all(torch.equal(one[key], two[key]) for key in one)
    for epoch in (0, 1, 7):
        assert sorted(int(data[6 * epoch + i]["case"]) for i in range(6)) == list(range(6))
    assert [int(data[i]["case"]) for i in range(6)] != [int(data[6 + i]["case"]) for i in range(6)]
    assert not torch.equal(data[0]["frames"], dataset(tmp_path, sample, draws=draw, seed=5)[0]["frames"])


def test_draws_place_the_sample(tmp_path, sample):
    settings = ClipSettings(frames=2, size=(16, 16), rule="stride", stride=1, fps=10, scale=(1, 1))
    seen = []
    for start, crop in ((0.0, 0.0), (1.0, 0.0), (0.0, 0.999)):
        data = dataset(
            tmp_path, sample, colour="gray", settings=settings,
            draws=lambda rng, s=start, c=crop: {"start": torch.tensor(s), "crop": torch.tensor([c, c])},
        )  # fmt: skip
        seen.append(data[0]["frames"][:, 8, 0, 0].tolist())
    assert np.abs(np.array(seen) - [[1, 7], [169, 175], [17, 23]]).max() <= 3


def test_kept_clips_change_nothing(tmp_path, sample):
    kept, fresh = (dataset(tmp_path, sample, seed=1, keep_bytes=n) for n in (1 << 24, 0))
    assert not fresh._kept
    for position in [*range(12), *range(12)]:
        assert torch.equal(kept[position]["frames"], fresh[position]["frames"])
    assert len(kept._kept) == 6 and sum(v.nbytes for v in kept._kept.values()) == (1 << 24) - kept._room
    small = dataset(tmp_path, sample, seed=1, keep_bytes=16 * 54_000 + 1)
    assert [small[i]["case"] for i in range(6)] and 0 < len(small._kept) <= 16
    assert len(pickle.dumps(kept)) < 5000


def test_a_clip_that_breaks_is_replaced_and_counted(tmp_path, sample):
    data = dataset(tmp_path, sample, keep_bytes=0)
    order = [int(data[i]["case"]) for i in range(6)]
    broken = order[2]
    (tmp_path / data.clips[broken].path).write_bytes(b"not a video any more")
    data = pickle.loads(pickle.dumps(data))
    found = [data[i] for i in range(6)]
    assert [int(item["case"]) for item in found] == [*order[:2], order[3], *order[3:]]
    assert [float(item["replaced"]) for item in found] == [0, 0, 1, 0, 0, 0]
    for clip in data.clips:
        (tmp_path / clip.path).unlink()
    with pytest.raises(ScanError, match="no such file"):
        pickle.loads(pickle.dumps(data))[0]


def test_loader_batches_are_the_same_for_any_number_of_workers(tmp_path, sample):
    data = dataset(tmp_path, sample, draws=draw)
    batches = [next(iter(make_loader(data, StepSampler(0, 1, 4), workers=n, timeout=60, pin=False))) for n in (0, 1)]
    assert batches[0]["frames"].shape == (4, 4, 16, 16, 3)
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


def test_parts_of_one_file_are_different_clips(tmp_path, sample):
    lay_out(tmp_path, sample, ["a.avi"])
    (tmp_path / "clips.csv").write_text("path,label,start_s,end_s\na.avi,early,0,1\na.avi,late,2,3\n")
    manifest = build_clip_manifest(tmp_path)
    settings = ClipSettings(frames=3, size=(16, 16), scale=(1, 1))
    data = ClipDataset(tmp_path, manifest.clips, manifest.classes, settings=settings, train=False)
    means = [data[i]["frames"].float().mean((1, 2, 3)) for i in range(2)]
    assert torch.allclose(means[1] - means[0], torch.full((3,), 120.0), atol=3)


# cohort


def test_load_clips(tmp_path, sample):
    root = lay_out(tmp_path / "data", sample, [f"{c}/{g}/{n}.avi" for c in "ab" for g in "uvwxy" for n in range(2)])
    (root / "a" / "u" / "bad.mp4").write_text("no video")
    (root / "b" / "u" / "empty.mkv").write_bytes(b"")
    said = []
    cohort = load_clips(root, tmp_path / "cache", heldout=0.2, seed=0, workers=0, say=said.append)
    assert cohort.classes == ("a", "b") and cohort.counts["heldout_groups"] == 1
    assert (len(cohort.train), len(cohort.heldout), cohort.counts["rejected_clips"]) == (16, 4, 2)
    assert any("found 22 clips of 2 classes" in text for text in said)
    cohort.write(tmp_path / "run")
    table = (tmp_path / "run" / "rejected.csv").read_text()
    assert "a/u/bad.mp4,no video file" in table.replace('"', "") and "b/u/empty.mkv,the file is empty" in table
    assert not (tmp_path / "run" / "missing.csv").exists()
    cohort.check(0.2)
    with pytest.raises(InputError, match="2 of 22"):
        cohort.check(0.05)
    # the same data elsewhere is the same data; one clip more is not
    shutil.copytree(root, tmp_path / "copy")
    other = load_clips(tmp_path / "copy", tmp_path / "cache", heldout=0.2, seed=0, workers=0)
    assert other.fingerprint == cohort.fingerprint
    shutil.copy(sample, tmp_path / "copy" / "a" / "u" / "more.avi")
    more = load_clips(tmp_path / "copy", tmp_path / "cache", heldout=0.2, seed=0, workers=0)
    assert more.fingerprint != cohort.fingerprint
    short = load_clips(root, tmp_path / "cache", heldout=0.2, seed=0, workers=0, min_frames=31)
    assert not short.train and "30 frames, fewer than the wanted 31" in {r.reason for r in short.rejected}
    with pytest.raises(InputError, match="nothing is left"):
        short.check(0.5)
    with pytest.raises(InputError, match="at least two classes"):
        load_clips(root, tmp_path / "cache", heldout=0.2, seed=0, workers=0, classes=["a"]).check(1.0)


def test_files_are_looked_into_once(tmp_path, sample, monkeypatch):
    root = lay_out(tmp_path / "data", sample, ["a/1.avi", "a/2.avi", "b/3.avi"])
    looked = []
    monkeypatch.setattr("voco.data.clip_cohort.look_at", lambda path: looked.append(path) or look_at(path))
    manifest = build_clip_manifest(root)
    first = look_into(manifest, tmp_path / "cache", 0)
    assert len(looked) == 3 and first["a/1.avi"] == probe(sample)
    assert (
        look_into(manifest, tmp_path / "cache", 0) == first == look_into(manifest, tmp_path / "cache", 0, first=False)
    )
    assert len(looked) == 3
    (root / "b" / "3.avi").write_bytes(b"x")
    assert "no video file" in look_into(manifest, tmp_path / "cache", 0)["b/3.avi"] and len(looked) == 4


def test_looking_in_other_processes(tmp_path, sample):
    root = lay_out(tmp_path / "data", sample, ["a/1.avi", "b/2.avi"])
    (root / "b" / "3.mp4").write_text("no video")
    one = load_clips(root, tmp_path / "one", heldout=0, seed=0, workers=1)
    none = load_clips(root, tmp_path / "none", heldout=0, seed=0, workers=0)
    assert one == none and len(one.rejected) == 1 and len(one.train) == 2


def test_the_tests_own_clips_are_what_they_should_be(sample):
    means = read_frames(sample, indices=range(30), colour="gray").mean((1, 2, 3))
    assert np.abs(means - 6 * np.arange(30) - 23.5).max() < 2
