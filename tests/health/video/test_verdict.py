"""What is said of clips whose scores are known."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from tests.health.video.answers import known_line, known_report
from voco.errors import InputError
from voco.health.inference import chance_limit
from voco.health.video import HEADLINE, judge, line_of, mean_of, report_of, verdict
from voco.health.video.verdict import fallen


def lines(skill=0.0, **kind):
    """All that a verdict needs, on the clips of ``known_report``."""
    networks = [known_line("untrained", skill, seed=seed, **kind) for seed in range(10, 16)]
    return {
        "step0": known_line("step0", skill, seed=20, **kind),
        "untrained": mean_of(networks, "untrained"),
        "single_frame": known_line("single_frame", skill, seed=21, **kind),
    }


def begins(sentences):
    return [s.split(":")[0] for s in sentences]


def say(report, beside=None, **more):
    return verdict(report, lines() if beside is None else beside, **({"step": 100, "warmup_steps": 10} | more))


def test_the_features_decide_and_the_classifier_is_a_note():
    good = say(known_report(skill=0.0, features=4.0))
    assert begins(good) == ["nothing learned", "learned", "note"]
    assert "above every line, p < 0.001" in good[1] and "6 untrained networks 0.1" in good[1] and " ± 0.0" in good[1]
    assert all(
        words in good[1] for words in ("own step 0", "single frame", "constant answer 0.14", "12 held-out groups")
    )
    assert (
        good[2].startswith("note: through the classifier head, which only training needs: top-1 0.")
        and "best line" in good[2]
    )
    bad = say(known_report(skill=4.0, features=0.0))
    assert begins(bad) == ["loss", "not learned", "note"]


def test_each_line_has_to_be_beaten():
    report = known_report(features=1.5)
    assert begins(say(report))[1] == "learned"
    for name in lines():
        strong = known_line(name, 4.0)
        strong = mean_of([strong] * 2, name) if name == "untrained" else strong
        found = say(report, lines() | {name: strong})[1]
        assert found.startswith("not learned") and "not above the" in found, name
        found = say(report, {k: line for k, line in lines().items() if k != name})[1]
        assert found.startswith("cannot be judged without the line of the"), name
    with pytest.raises(InputError, match="other clips"):
        judge(report, {"step0": known_line(clips=50)})
    with pytest.raises(InputError, match="other clips"):
        say(report, {"step0": replace(lines()["step0"], case=np.arange(1, 121))})


def test_a_lucky_draw_among_networks_that_differ_is_not_learning():
    networks = mean_of([known_line(skill=skill, seed=3) for skill in (0, 0.6, 1.2, 1.8, 2.4, 3.0)], "untrained")
    found = judge(known_report(features=3.0), lines() | {"untrained": networks})
    assert all(difference.surely_above for difference in found.differences.values())
    assert found.limit == chance_limit(networks.of_networks(HEADLINE)) > found.value and not found.above
    [sentence] = [s for s in say(known_report(features=3.0), lines() | {"untrained": networks}) if "learned" in s]
    assert sentence.startswith("not learned") and "untrained networks reach up to" in sentence


def test_a_large_data_set_whose_clips_are_groups_of_their_own_needs_no_more_memory_than_it_has():
    rng, count = np.random.default_rng(0), 20_000
    label, right = rng.integers(0, 40, count), rng.random((2, count)) < np.array([[0.31], [0.30]])
    answer = np.where(right, label, (label + 1) % 40)
    known = {"classes": [str(i) for i in range(40)], "groups": np.arange(count)}
    report, line = (
        report_of(np.arange(count), label, np.eye(40)[answer[0]], nearest=np.eye(40)[answer[0]], **known),
        line_of(np.arange(count), label, np.eye(40)[answer[1]], name="step0", **known),
    )
    tracemalloc.start()
    found = judge(report, {"step0": line}).differences["step0"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e8
    change = (report.tally(HEADLINE).contributions - line.tally(HEADLINE).contributions)[None]
    expected = norm.sf(change.sum() / np.linalg.norm(change))  # of 20,000 signs, by the central limit theorem
    assert found.p == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 1000) ** 0.5 + 1e-3)


@pytest.mark.parametrize("groups", [1, 3, 5, 6])
def test_below_six_groups_nothing_can_be_said(groups):
    found = say(known_report(features=5.0, groups=groups), lines(groups=groups))
    if groups < 6:
        assert f"cannot be judged with {groups} held-out group" in found[1] and "held-out groups" in found[1]
        assert not any(s.startswith("learned") for s in found)
    else:
        assert found[1].startswith("learned") and "p = 0.016" in found[1]  # 2 ** -6


def test_what_cannot_be_judged_says_why():
    found = say(known_report(features=None))
    assert begins(found) == ["loss", "cannot be judged", "note"] and "no training clip" in found[1]


def test_loss_before_and_after_warm_up():
    chance = known_report(skill=0.0)
    early = say(chance, step=5)[0]
    assert early.startswith("loss: ") and "still in warm-up" in early
    assert say(chance)[0].startswith("nothing learned: ")


def test_one_answer_to_everything_is_called_collapsed():
    label = np.repeat(np.arange(4), 10)
    answer = np.tile([0.1, 0.1, 0.7, 0.1], (40, 1))
    report = report_of(np.arange(40), label, answer, classes="abcd", groups=["g"] * 40, nearest=answer)
    found = verdict(report, step=10, warmup_steps=0)
    assert found[0].startswith("collapsed: 100% of the held-out clips are called 'c' (25% are)")
    assert begins(verdict(report, step=0, warmup_steps=0))[0] == "loss"
    few = report_of(np.arange(4), label[:4], answer[:4], classes="abcd", groups="ggh.", unreadable={"x.mp4": "why"})
    found = verdict(few, step=10, warmup_steps=0)
    assert any("3 of 4 classes: b, c, d" in s for s in found)
    assert any("1 held-out clips could not be read: x.mp4" in s for s in found)


def test_a_score_that_fell_is_said():
    report = known_report(features=2.0)
    now = report.score(HEADLINE)
    rows = [{"step": 10, f"heldout/{HEADLINE}": now + 0.1}, {"step": 20, "loss": 1.0}]
    [note] = [s for s in say(report, earlier=rows) if s.startswith("note: fell")]
    assert f"{now:.2f} at step 100 is below the {now + 0.1:.2f} at step 10" in note and "figures/accuracy.png" in note
    assert fallen([*rows, {"step": 100, f"heldout/{HEADLINE}": now}]) == [note]
    assert not [s for s in say(report, earlier=rows, step=10) if "fell" in s]  # the very row that is written anew
    assert fallen(rows) == [] and fallen([{"step": 1, "heldout/top1": 0.9}, {"step": 2, "heldout/top1": 0.1}]) == []
