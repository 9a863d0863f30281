"""The monitor of a run on clips, against methods and clips that are known."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.health.video.answers import Clips, KnownMethod, blind
from voco.errors import InputError
from voco.health.monitor import NETWORKS
from voco.health.video import HEADLINE, evaluate_clips
from voco.health.video.evaluate import network_lines
from voco.health.video.monitor import VideoMonitor


def make(out, heldout, train=None, names=None, groups=None, **more):
    names = names or [f"clip{i}" for i in range(heldout.count)]
    return VideoMonitor(
        out, heldout=heldout, train=train or Clips(60), names=names, groups=groups or names,
        classes=("left", "right", "up"), **({"warmup": 0} | more),
    )  # fmt: skip


def batch_of(dataset, case):
    return torch.utils.data.default_collate([{**dataset[case], "case": torch.tensor(case)}])


def test_evaluation_leaves_the_method_as_it_was():
    method, dataset = KnownMethod().train(), Clips(6)
    batches = [batch_of(dataset, i) for i in range(6)]
    state = torch.get_rng_state()
    report = evaluate_clips(method, batches, list("aabbcc"), train=batches)
    assert report.score("top1") == report.score(HEADLINE) == 1 and method.training and method.drop.training
    assert report.score("loss") == pytest.approx(-math.log(math.exp(5) / (math.exp(5) + 2)))
    assert evaluate_clips(method, batches, list("aabbcc")).score(HEADLINE) is None
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InputError, match=r"no held-out clip could be read: x: damaged"):
        evaluate_clips(method, [], [], unreadable={"x": "damaged"})


class Drowned(KnownMethod):
    """Features that a BatchNorm in its first state cannot tell from rounding, and a calibrated one can."""

    def inspect(self, frames):
        features, logits = super().inspect(frames)
        return torch.round(features), logits


def test_networks_count_in_the_better_state_and_are_not_changed():
    batches = [batch_of(Clips(12), i) for i in range(12)]
    drowned, plain = Drowned(), KnownMethod()
    with torch.no_grad():
        drowned.norm.weight.fill_(0.4)  # 0.4 rounds to 0; over the deviation of 0.47 it is more than a half
    before = {k: v.clone() for k, v in drowned.state_dict().items()}
    joined = [{k: torch.cat([b[k] for b in batches]) for k in batches[0]}]
    assert evaluate_clips(drowned, batches, list("abcdefghijkl"), train=batches).score(HEADLINE) == pytest.approx(1 / 3)
    found = network_lines([drowned, plain, blind(0)], joined, list("abcdefghijkl"), train=joined)
    assert [line.score(HEADLINE) for line in found] == pytest.approx([1.0, 1.0, 1 / 3])
    assert all(torch.equal(v, before[k]) for k, v in drowned.state_dict().items())


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_monitor_reads_judges_and_writes(tmp_path, keep_bytes):
    held, train = Clips(24, views=2, broken=(5,)), Clips(60, broken=(0, 1))
    names, groups = [f"clip{i}" for i in range(24)], [f"actor{i // 3}" for i in range(24)]
    monitor = make(tmp_path, held, train, names, groups, warmup=1, batch_clips=5, keep_bytes=keep_bytes)
    built = []

    def build(number):
        torch.manual_seed(number)
        built.append(number)
        return blind(number)

    state = torch.get_rng_state()
    monitor.measure_lines(blind(0), build, "cpu", reuse=False)
    assert built == list(range(NETWORKS)) and torch.equal(state, torch.get_rng_state())
    assert set(monitor.lines) == {"step0", "untrained", "single_frame"}
    assert monitor.lines["single_frame"].score("top1") < 0.7
    assert monitor.lines["untrained"].of_networks(HEADLINE) == pytest.approx([1 / 3] * NETWORKS)
    metrics = monitor.report(KnownMethod(), 7, "cpu")
    assert metrics["heldout/top1"] == metrics["heldout/features_top1"] == 1
    assert metrics["heldout/clips"] == 23 and metrics["heldout/unreadable"] == 1
    assert monitor.latest.views == 2 and monitor.latest.unreadable == {"clip5": "no frame can be decoded"}
    assert any(s.startswith("learned: top-1 of the encoder's features 1.00") for s in monitor.verdict)
    assert not monitor.warnings() and torch.equal(state, torch.get_rng_state())

    saved = json.loads((tmp_path / "video.json").read_text())
    assert saved["step"] == 7 and saved["verdict"] == monitor.verdict and saved["clips"] == names[:5] + names[6:]
    assert saved["report"]["scores"]["top1"]["value"] == 1 and "sign flips of whole groups" in saved["rule"]
    [judged] = saved["judged"]
    assert judged["learned"] and judged["clusters"] == 8 and judged["lines"]["step0"] == pytest.approx(1 / 3)
    lines = monitor.constants()
    assert lines["lines/constant_loss"] == pytest.approx(math.log(3))
    assert {f"lines/{name}_top1_balanced" for name in ("step0", "untrained", "single_frame")} <= set(lines)
    card = monitor.provenance()
    assert card["results"][HEADLINE] == 1 and card["verdict"] == monitor.verdict
    assert card["lines"][f"step0 of {HEADLINE}"] == pytest.approx(1 / 3)

    reads = held.reads, train.reads
    assert monitor.report(KnownMethod(), 8, "cpu") == metrics
    assert (held.reads - reads[0], train.reads - reads[1]) == ((0, 0) if keep_bytes else (48, 60))
    made = monitor.draw(KnownMethod(), [{"step": 8, "loss": 1.0, **metrics}], {}, "cpu")
    assert [p.name for p in made] == ["accuracy.png", "confusion.png", "clips.png"] and all(p.is_file() for p in made)

    again = make(tmp_path, held, train, names, groups)
    again.measure_lines(blind(0), lambda number: 1 / 0, "cpu", reuse=True)
    assert {k: line.to_dict() for k, line in again.lines.items()} == {k: v.to_dict() for k, v in monitor.lines.items()}
    row = {"step": 8, f"heldout/{HEADLINE}": 1.0}
    again.report(blind(0), 9, "cpu", earlier=[row])
    assert any(s.startswith("note: fell: top-1 of the encoder's features 0.33 at step 9") for s in again.warnings())


def test_room_is_shared_by_held_out_clips_and_training_samples(tmp_path):
    one = 4 * 32 * 32 * 3
    monitor = make(tmp_path, Clips(12), keep_bytes=13 * one)  # the held-out clips, and no 60 training samples
    monitor.measure_lines(blind(0), blind, "cpu", reuse=False)
    assert (monitor.heldout.kept_bytes, monitor.train.kept_bytes) == (12 * one, 0)


def test_lines_of_version_0_1_are_measured_anew(tmp_path):
    (tmp_path / "video_lines.json").write_text(json.dumps({"single_frame": {"name": "single_frame", "classes": ["a"]}}))
    monitor = make(tmp_path, Clips(12))
    monitor.measure_lines(blind(0), blind, "cpu", reuse=True)
    assert set(json.loads((tmp_path / "video_lines.json").read_text())) == {"step0", "untrained", "single_frame"}


def test_a_frame_that_gives_the_class_away_is_found(tmp_path):
    monitor = make(tmp_path, Clips(12, still=True), Clips(60, still=True))
    monitor.measure_lines(blind(0), blind, "cpu", reuse=False)
    assert monitor.lines["single_frame"].score("top1") == 1
    monitor.report(KnownMethod(), 1, "cpu")
    assert any(s.startswith("not learned") and "not above the single frame" in s for s in monitor.verdict)


def test_a_constant_method_is_warned_about_at_once(tmp_path):
    monitor = make(tmp_path, Clips(12))
    monitor.report(KnownMethod(scale=0.0), 5, "cpu")
    assert [s.split(":")[0] for s in monitor.warnings()] == ["collapsed", "nothing learned"]
    assert any(s.startswith("cannot be judged without the line of the own step 0") for s in monitor.verdict)


def test_a_clip_that_the_data_set_replaced_is_not_scored(tmp_path):
    monitor = make(tmp_path, Clips(6, broken=(2,), replaces=True), names=list("abcdef"))
    metrics = monitor.report(KnownMethod(), 1, "cpu")
    assert metrics["heldout/clips"] == 5 and monitor.latest.unreadable == {"c": "cannot be decoded"}


def test_without_a_training_clip_nothing_is_judged(tmp_path):
    monitor = make(tmp_path, Clips(6), Clips(60, broken=range(60)))
    monitor.measure_lines(blind(0), blind, "cpu", reuse=False)
    monitor.report(KnownMethod(), 1, "cpu")
    assert monitor.lines == {} and any("no training clip could be read" in s for s in monitor.verdict)
    assert json.loads((tmp_path / "video.json").read_text())["judged"] == []
