"""Scores of clips against literal loops and scikit-learn; the monitor against methods and clips that are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)
from sklearn.neighbors import NearestCentroid
from torch import nn

from voco.errors import InputError, ScanError
from voco.health.video import (
    VideoReport,
    constant_lines,
    differences,
    evaluate_clips,
    nearest_centroid,
    report_of,
    verdict,
)
from voco.health.video_monitor import VideoMonitor

CLASSES = tuple("abcdefg")


def answers(clips=120, classes=7, seed=0, skill=2.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, clips)
    logits = rng.normal(size=(clips, classes))
    logits[np.arange(clips), label] += skill
    answer = np.exp(logits)
    return label, answer / answer.sum(1, keepdims=True), [f"actor{i}" for i in rng.integers(0, 12, clips)]


def known_report(**changes):
    label, answer, groups = answers(**changes)
    return report_of(np.arange(len(label)), label, answer, classes=CLASSES[: answer.shape[1]], groups=groups)


class KnownMethod(nn.Module):
    """Knows a clip by its first pixel, and answers its class with given logits."""

    def __init__(self, classes=("left", "right", "up"), scale=5.0):
        super().__init__()
        self.classes, self.scale = classes, scale
        self.drop = nn.Dropout(0.5)

    def logits(self, frames):
        assert not self.training and not torch.is_grad_enabled()
        known = frames[:, 0, 0, 0, 0].long()
        return self.drop(self.scale * torch.eye(len(self.classes))[known % len(self.classes)])


class Clips(torch.utils.data.Dataset):
    """Clip i of class i % 3; ``broken`` ones cannot be read; counts how often anything is read."""

    def __init__(self, count, views=1, broken=(), still=False, replaces=False):
        self.count, self.views, self.broken, self.still, self.reads = count, views, broken, still, 0
        self.replaces = replaces

    def __len__(self):
        return self.count * self.views

    def __getitem__(self, index):
        clip, self.reads = index // self.views, self.reads + 1
        if clip in self.broken:
            if self.replaces:
                return {**self[index + self.views], "replaced": torch.tensor(1.0)}
            raise ScanError("no frame can be decoded")
        frames = torch.full((4, 32, 32, 3), 90, dtype=torch.uint8)
        frames[0, 0, 0] = clip % 3  # not in the middle frame
        if self.still:  # a frame that gives the class away
            frames[:, 8:24, 8 * (clip % 3) : 8 * (clip % 3) + 8] = 200
        return {"frames": frames, "label": torch.tensor(clip % 3), "case": torch.tensor(0)}


def test_scores_equal_those_of_scikit_learn():
    label, answer, groups = answers()
    report = report_of(np.arange(120), label, answer, classes=CLASSES, groups=groups)
    predicted = answer.argmax(1)
    assert report.score("top1") == pytest.approx((predicted == label).mean())
    assert report.score("top5") == pytest.approx(top_k_accuracy_score(label, answer, k=5))
    assert report.score("top1_balanced") == pytest.approx(balanced_accuracy_score(label, predicted))
    assert report.score("loss") == pytest.approx(log_loss(label, answer))
    assert np.array_equal(report.confusion(), confusion_matrix(label, predicted))
    assert list(report.recall().values()) == pytest.approx(recall_score(label, predicted, average=None))
    assert report.score("top4") is None and report.score("anything") is None


def test_intervals_resample_groups():
    label, answer, groups = answers(clips=60)
    report = report_of(np.arange(60), label, answer, classes=CLASSES, groups=groups)
    right, actors = answer.argmax(1) == label, np.array(groups)
    sums = np.array([[right[actors == a].sum(), (actors == a).sum()] for a in sorted(set(groups))])
    rng = np.random.default_rng(1)
    drawn = [sums[rng.integers(0, len(sums), len(sums))].sum(0) for _ in range(4000)]
    expected = np.percentile([hits / clips for hits, clips in drawn], [2.5, 97.5])
    assert report.interval("top1") == pytest.approx(expected, abs=0.02)
    metrics = report.metrics("heldout")
    assert metrics["heldout/top1_low"] == report.interval("top1")[0] and metrics["heldout/clips"] == 60
    assert metrics["heldout/groups"] == len(set(groups)) and "heldout/top5" in metrics
    alone = report_of(np.arange(60), label, answer, classes=CLASSES, groups=["one"] * 60)
    assert alone.interval("top1") is None and "heldout/top1_low" not in alone.metrics()


def test_few_classes_name_the_k_that_was_scored():
    assert known_report(classes=3).score_names == ("top1", "top1_balanced", "top2", "loss")
    assert known_report(classes=2).score_names == ("top1", "top1_balanced", "loss")
    assert "top1" in constant_lines(known_report(classes=2)) and "top5" in constant_lines(known_report())


def test_views_of_a_clip_are_averaged():
    case, label = np.array([4, 9, 4, 9]), np.array([0, 1, 0, 1])
    answer = np.array([[0.4, 0.6], [0.3, 0.7], [0.9, 0.1], [0.6, 0.4]])
    groups = [str(i) for i in range(10)]
    report = report_of(case, label, answer, classes="ab", groups=groups)
    assert report.views == 2 and report.case.tolist() == [4, 9] and report.group == ("4", "9")
    assert report.predicted.tolist() == [0, 1]
    assert report.loss.tolist() == pytest.approx([-math.log(0.65), -math.log(0.55)])


def test_ties_and_answers_that_are_not_finite():
    equal = report_of(np.arange(3), np.arange(3), np.full((3, 3), 1 / 3), classes="abc", groups="ghi")
    assert equal.score("top1") == pytest.approx(1 / 3) and equal.score("top2") == pytest.approx(2 / 3)
    answer = np.array([[1.0, 0, 0], [np.nan, np.nan, np.nan], [0, 0, 1.0]])
    report = report_of(np.arange(3), np.arange(3), answer, classes="abc", groups="ghi")
    assert report.predicted.tolist() == [0, -1, 2] and report.score("top2") == pytest.approx(2 / 3)
    assert report.confusion().sum() == 2
    [sentence] = verdict(report, step=10, warmup_steps=0)
    assert sentence.startswith("broken: 1 of 3")


def test_reports_survive_json():
    report = known_report()
    again = VideoReport.from_dict(json.loads(json.dumps(report.to_dict(), default=float)))
    assert again.metrics() == report.metrics() and again.classes == report.classes and again.group == report.group


def test_constant_lines_are_the_best_constant_answers():
    label = np.array([0] * 5 + [1] * 3 + [2] * 2)
    report = report_of(np.arange(10), label, np.full((10, 4), 0.25), classes="abcd", groups="0123456789")
    lines = constant_lines(report)
    assert lines == pytest.approx({"top1": 0.5, "top1_balanced": 1 / 3, "top3": 1.0, "loss": math.log(4)})
    assert report.score("loss") == pytest.approx(lines["loss"])


def test_nearest_centroid_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90)
    train = rng.normal(size=(90, 6)) * [1, 5, 0.1, 1, 1, 0] + label[:, None]
    test = rng.normal(size=(40, 6)) + rng.integers(0, 3, 40)[:, None]
    scale = train.std(0)
    expected = NearestCentroid().fit(train / scale, label).predict(test / scale)
    found = nearest_centroid(train, label, test, classes=4)
    assert np.array_equal(found.argmax(1), expected)
    assert found.sum(1) == pytest.approx(1) and found[:, 3].max() == 0


def test_verdict_says_what_the_numbers_say():
    good, chance = known_report(skill=4.0), known_report(skill=0.0)
    first = verdict(good, {"single_frame": chance}, step=100, warmup_steps=10)
    assert [s.split(":")[0] for s in first] == ["loss", "learned"] and "single frame" in first[1]
    bad = verdict(chance, {"single_frame": good}, step=100, warmup_steps=10)
    assert [s.split(":")[0] for s in bad] == ["nothing learned", "not learned"]
    assert "not above the single frame" in bad[1] or "and the single frame" in bad[1]
    early = verdict(chance, step=5, warmup_steps=10)[0]
    assert early.startswith("loss: ") and "still in warm-up" in early
    found = differences(good, {"single_frame": chance}, "top1_balanced")
    assert found["single_frame"].value == pytest.approx(good.score("top1_balanced") - chance.score("top1_balanced"))
    assert found["single_frame"].surely_above
    with pytest.raises(InputError, match="other clips"):
        differences(good, {"single_frame": known_report(clips=50)}, "top1")


def test_one_answer_to_everything_is_called_collapsed():
    label = np.repeat(np.arange(4), 10)
    answer = np.tile([0.1, 0.1, 0.7, 0.1], (40, 1))
    report = report_of(np.arange(40), label, answer, classes="abcd", groups=["g"] * 40)
    found = verdict(report, step=10, warmup_steps=0)
    assert found[0].startswith("collapsed: 100% of the held-out clips are called 'c' (25% are)")
    assert any("one held-out group" in s for s in found)
    assert [s.split(":")[0] for s in verdict(report, step=0, warmup_steps=0)][:2] == ["loss", "not learned"]
    few = report_of(np.arange(4), label[:4], answer[:4], classes="abcd", groups="ggh.", unreadable={"x.mp4": "why"})
    found = verdict(few, step=10, warmup_steps=0)
    assert any("only 3 held-out groups" in s for s in found) and any("3 of 4 classes: b, c, d" in s for s in found)
    assert any("1 held-out clips could not be read: x.mp4" in s for s in found)


def test_evaluation_leaves_the_method_as_it_was():
    method = KnownMethod().train()
    dataset = Clips(6)
    batches = [torch.utils.data.default_collate([{**dataset[i], "case": torch.tensor(i)}]) for i in range(6)]
    report = evaluate_clips(method, batches, list("aabbcc"))
    assert report.score("top1") == 1 and method.training and method.drop.training
    assert report.score("loss") == pytest.approx(-math.log(math.exp(5) / (math.exp(5) + 2)))
    with pytest.raises(InputError, match=r"no held-out clip could be read: x: damaged"):
        evaluate_clips(method, [], [], unreadable={"x": "damaged"})


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_monitor_reads_judges_and_writes(tmp_path, keep_bytes):
    held = Clips(12, views=2, broken=(5,))
    names, groups = [f"clip{i}" for i in range(12)], [f"actor{i // 3}" for i in range(12)]
    monitor = VideoMonitor(
        tmp_path, heldout=held, names=names, groups=groups, classes=("left", "right", "up"), seed=0, warmup=1,
        batch_clips=5, keep_bytes=keep_bytes,
    )  # fmt: skip
    monitor.measure_lines(Clips(60, broken=(0, 1)), reuse=False)
    assert monitor.lines["single_frame"].score("top1") < 0.7
    metrics = monitor.report(KnownMethod(), 7, "cpu")
    assert metrics["heldout/top1"] == 1 and metrics["heldout/clips"] == 11 and metrics["heldout/unreadable"] == 1
    assert monitor.latest.views == 2 and monitor.latest.unreadable == {"clip5": "no frame can be decoded"}
    assert monitor.latest.score("top1_balanced") == 1 and not monitor.warnings()
    saved = json.loads((tmp_path / "video.json").read_text())
    assert saved["step"] == 7 and saved["verdict"] == monitor.verdict and saved["clips"] == names[:5] + names[6:]
    assert saved["report"]["scores"]["top1"]["value"] == 1
    lines = monitor.constants()
    assert lines["lines/constant_loss"] == pytest.approx(math.log(3)) and "lines/single_frame_top1_balanced" in lines

    reads = held.reads
    assert monitor.report(KnownMethod(), 8, "cpu") == metrics
    assert held.reads - reads == (0 if keep_bytes else 24)
    made = monitor.draw(KnownMethod(), [{"step": 8, "loss": 1.0, **metrics}], {}, "cpu")
    assert [p.name for p in made] == ["accuracy.png", "confusion.png", "clips.png"] and all(p.is_file() for p in made)

    again = VideoMonitor(
        tmp_path, heldout=held, names=names, groups=groups, classes=("left", "right", "up"), seed=0, warmup=1
    )
    again.measure_lines(None, reuse=True)
    assert again.lines["single_frame"].metrics() == monitor.lines["single_frame"].metrics()


def test_a_frame_that_gives_the_class_away_is_found(tmp_path):
    monitor = VideoMonitor(
        tmp_path, heldout=Clips(12, still=True), names=[str(i) for i in range(12)], groups=list("abcdefghijkl"),
        classes=("left", "right", "up"), seed=0, warmup=0,
    )  # fmt: skip
    monitor.measure_lines(Clips(60, still=True), reuse=False)
    assert monitor.lines["single_frame"].score("top1") == 1
    monitor.report(KnownMethod(), 1, "cpu")
    assert any(s.startswith("not learned") and "not above the single frame" in s for s in monitor.verdict)


def test_a_constant_method_is_warned_about_at_once(tmp_path):
    monitor = VideoMonitor(
        tmp_path, heldout=Clips(12), names=[str(i) for i in range(12)], groups=list("abcdefghijkl"),
        classes=("left", "right", "up"), seed=0, warmup=0,
    )  # fmt: skip
    monitor.report(KnownMethod(scale=0.0), 5, "cpu")
    assert [s.split(":")[0] for s in monitor.warnings()] == ["collapsed", "nothing learned"]


def test_a_clip_that_the_data_set_replaced_is_not_scored(tmp_path):
    monitor = VideoMonitor(
        tmp_path, heldout=Clips(6, broken=(2,), replaces=True), names=list("abcdef"), groups=list("abcdef"),
        classes=("left", "right", "up"), seed=0, warmup=0,
    )  # fmt: skip
    metrics = monitor.report(KnownMethod(), 1, "cpu")
    assert metrics["heldout/clips"] == 5 and monitor.latest.unreadable == {"c": "cannot be decoded"}
