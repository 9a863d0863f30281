from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from voco.cli import main
from voco.data.clips import build_clip_manifest, load_clips, split_groups
from voco.data.video import probe, read_frames
from voco.phantom.video import ACTORS, CLASSES, make_actor, make_clip, write_clip, write_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantoms")
    assert main(["phantom", str(path), "--layout", "video", "--cases", "18", "--seed", "2", "--workers", "1"]) == 0
    return path


def brightest(frame: np.ndarray) -> np.ndarray:
    """Where the shape is: clearly brighter than any background."""
    return frame.mean(-1) > 125


def centre(mask: np.ndarray) -> np.ndarray:
    """Centre (row, column) on a torus, as angles in rounds."""
    out = []
    for axis in (0, 1):
        weight = mask.sum(1 - axis)
        turn = np.exp(2j * np.pi * np.arange(len(weight)) / len(weight))
        out.append(np.angle((weight * turn).sum()) / (2 * np.pi))
    return np.array(out)


def round_trip(values) -> float:
    """How far something moved, in rounds, where single steps are shorter than half a round."""
    steps = np.diff(np.asarray(values), axis=0)
    return ((steps + 0.5) % 1 - 0.5).sum(0)


def test_layout(folder):
    manifest = build_clip_manifest(folder)
    assert manifest.classes == tuple(sorted(CLASSES)) and len(manifest.clips) == 18
    assert {clip.group for clip in manifest.clips} == {"actor00", "actor01", "actor02"}
    with open(folder / "clips.csv") as file:
        for row in csv.DictReader(file):
            assert row["path"].startswith(row["label"] + "/") and (folder / row["path"]).is_file()
    lines = [json.loads(line) for line in (folder / "phantoms.jsonl").read_text().splitlines()]
    for line in lines:
        info = probe(folder / line["path"])
        assert info.frames == line["frames"] and list(info.size) == line["size"]
        assert 8 <= info.frames <= 48 and min(info.size) >= 64 and max(info.size) <= 130
    assert len({line["path"].rsplit(".")[-1] for line in lines}) > 1
    cohort = load_clips(folder, folder.parent / "cache", heldout=0.3, seed=0, workers=0)
    cohort.check(0.0)
    assert {clip.label for clip in cohort.heldout} == set(CLASSES)


def test_files_show_what_was_drawn_at_its_time(folder):
    for clip in build_clip_manifest(folder).clips[::4]:
        index = int(clip.id.rsplit(".", 1)[0].rsplit("_", 1)[1])
        drawn = make_clip(2, index)
        found = read_frames(folder / clip.path, times_s=(drawn.times - drawn.times[0]) / drawn.fps)
        assert found.shape == drawn.frames.shape
        assert np.abs(found.mean(-1) - drawn.frames.mean(-1)).mean() < 5


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    for index in (3, 5, 11):
        path, row = write_clip(tmp_path, 2, index)
        assert path.read_bytes() == (folder / row["path"]).read_bytes()
    assert not np.array_equal(make_actor(2, 0).colour, make_actor(3, 0).colour)


@pytest.mark.parametrize("label", ["moves_down", "moves_left", "moves_right", "moves_up"])
def test_what_moves_moves_there(label):
    sign = {"moves_down": (1, 0), "moves_up": (-1, 0), "moves_right": (0, 1), "moves_left": (0, -1)}[label]
    for actor in range(3):
        clip = make_clip(0, list(CLASSES).index(label) + 8 * actor)
        assert (clip.label, clip.actor) == (label, f"actor{actor:02d}")
        moved = round_trip([centre(brightest(frame)) for frame in clip.frames])
        along, across = (moved * sign).sum(), (moved * sign[::-1]).sum()
        assert 0.35 < along < 1.25 and abs(across) < 0.1


def test_what_grows_grows_and_what_shrinks_shrinks():
    for label, sign in (("grows", 1), ("shrinks", -1)):
        for actor in range(3):
            clip = make_clip(0, list(CLASSES).index(label) + 8 * actor)
            steps = np.diff(np.log([brightest(frame).sum() for frame in clip.frames]))
            # from the end of a round it starts again: one large step back
            assert (np.sign(steps) == sign).mean() > 0.7 and (np.abs(steps) > 1).sum() <= 2


def test_what_turns_right_turns_clockwise():
    for label, sign in (("turns_right", 1), ("turns_left", -1)):
        clip = make_clip(0, list(CLASSES).index(label) + 8)  # the bar
        angles = []
        for frame in clip.frames:
            mask = brightest(frame)
            row, column = (centre(mask) * mask.shape).round().astype(int)
            mask = np.roll(mask, (mask.shape[0] // 2 - row, mask.shape[1] // 2 - column), (0, 1))
            y, x = np.argwhere(mask).T - np.argwhere(mask).mean(0)[:, None]
            # principal axis; rows grow downward, so growing angles turn clockwise; a bar repeats after half a turn
            angles.append(np.arctan2(2 * (x * y).mean(), (x * x).mean() - (y * y).mean()) / (2 * np.pi))
        assert 0.4 < sign * round_trip(angles) / 2 < 1.05


def test_no_frame_tells_the_class():
    """Place, size and angle at the first, middle and last frame: uniform for every class, or moved by chance alone."""
    count = 400
    for number, label in enumerate(CLASSES):
        scripts = [write_script(9, number + 8 * k) for k in range(count)]
        assert {script.label for script in scripts} == {label}
        for name in ("row", "column", "size", "angle"):
            for at in (0.0, 0.5, 1.0):
                values = np.sort([script.place[name][int(at * (len(script.times) - 1))] for script in scripts])
                # Kolmogorov-Smirnov distance from the uniform distribution; 96 of them, so the limit of 1 in 100,000
                assert np.abs(values - (np.arange(count) + 0.5) / count).max() < 2.47 / np.sqrt(count)


def test_actors_are_enough_to_hold_some_out():
    manifest_clips = [make_actor(0, n).name for n in range(ACTORS)]
    assert len(set(manifest_clips)) == ACTORS >= 16
    assert split_groups([], 0.2, 0) == ([], [], [])
