"""What is said of scores that are known: words, order, lines, few scans, padding, falls; reports through JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.health.nulls import ArrayVolume
from voco.errors import InputError
from voco.geometry import Geometry
from voco.health import HealthReport, build_eval_windows, evaluate_histogram, judge, judgements, verdict
from voco.health.judged import Judged
from voco.health.report import HEADLINE, PARTS, better_of, joined, mean_of
from voco.health.scores import Tally, place_tally
from voco.health.verdict import fallen
from voco.reference import reference_lines

REFERENCES = asdict(reference_lines(Geometry()))
POSITION, DISJOINT = PARTS


def spread(mean, scans=12, width=0.02):
    return mean + np.linspace(-width, width, scans)


def scores(position, disjoint, intra=0.4, cosine=0.1, prefix="encoder_", **more):
    """A report with given scores of each scan, all of one query per scan."""
    given = {
        "intra": np.full(len(position), intra),
        "mean_cosine": np.full(len(position), cosine),
        f"{prefix}position_accuracy_balanced": position,
        f"{prefix}disjoint_accuracy_balanced": disjoint,
    }
    tallies = {k: Tally(np.array(v)[:, None], np.ones((len(v), 1)), "accuracy" in k) for k, v in given.items()}
    kinds = [tallies[f"{prefix}{kind}_accuracy_balanced"] for kind in ("position", "disjoint")]
    tallies[f"{prefix}place_accuracy_balanced"] = place_tally(*kinds)
    return HealthReport("trained", tallies, scans=len(position), disjoint_scans=len(position), **more)


def lines(scans=12, untrained=(0.33, 0.34, 0.35, 0.35, 0.36, 0.37)):
    return {
        "step0": scores(spread(0.34, scans), spread(0.21, scans)),
        "untrained": mean_of([scores(spread(v, scans), spread(v - 0.15, scans)) for v in untrained], "untrained"),
        "histogram": scores(spread(0.26, scans), spread(0.20, scans), prefix=""),
    }


def say(report, step=100, held=None, earlier=()):
    held = lines(report.scans) if held is None else held
    return verdict(report, REFERENCES, step=step, warmup_steps=20, lines=held, earlier=earlier)


def test_verdict_of_a_run_that_learned():
    found = say(scores(spread(0.55), spread(0.30)))
    assert [s.split(":")[0] for s in found] == ["loss", "learned", "note"]
    assert "place accuracy of the encoder 0.42 [0.4" in found[1] and "p < 0.001" in found[1]
    assert "constant guess 0.11, own step 0 0.28, 6 untrained networks 0.27 ± 0.01, HU histogram 0.23" in found[1]
    assert "position accuracy 0.55 [0.5" in found[2] and "disjoint accuracy 0.30 [0.2" in found[2]
    assert found[2].count(" above every line") == 2 and "not surely" not in found[2]


def test_verdict_of_a_run_below_a_line_or_not_surely_above():
    below = say(scores(spread(0.30), spread(0.21)))[1]
    assert below.startswith("not learned") and "not above the own step 0 and the untrained networks" in below
    unsure = say(scores(spread(0.36, width=0.3), spread(0.24, width=0.3)))[1]
    assert unsure.startswith("not learned") and "but not surely (p = 0." in unsure and "HU histogram" in unsure
    assert "held-out scans show a difference of this size" in unsure


def test_a_score_that_fell_below_its_own_step_0_is_not_learned():
    held = lines() | {"step0": scores(spread(0.6), spread(0.32))}
    found = say(scores(spread(0.55), spread(0.30)), held=held)
    assert found[1].startswith("not learned") and "not above the own step 0" in found[1]
    assert not any(s.startswith("learned") for s in found)


def test_a_lucky_draw_of_the_network_is_not_learning():
    held = lines(untrained=(0.2, 0.3, 0.35, 0.4, 0.45, 0.5))
    found = say(scores(spread(0.55), spread(0.30)), held=held)[1]
    assert found.startswith("not learned") and "untrained networks reach up to 0.5" in found


def test_the_parts_say_which_of_them_is_above():
    found = say(scores(spread(0.60), spread(0.21)))
    assert found[1].startswith("learned")
    assert "position accuracy 0.60" in found[2] and "disjoint accuracy 0.21" in found[2]
    assert found[2].count("not surely above every line") == 1


def test_without_a_neighbouring_slab_position_alone_is_judged():
    def shallow(report):
        tallies = {k: v for k, v in report.tallies.items() if "disjoint" not in k}
        for name in [name for name in tallies if "position" in name]:
            tallies[name.replace("position", "place")] = place_tally(tallies[name], None)
        return replace(report, tallies=tallies)

    held = {name: shallow(line) for name, line in lines().items() if name != "untrained"}
    networks = [scores(spread(v), spread(v)) for v in (0.33, 0.35, 0.36)]
    held["untrained"] = mean_of([shallow(one) for one in networks], "untrained")
    found = say(shallow(scores(spread(0.55), spread(0.3))), held=held)
    assert found[1].startswith("learned: place accuracy of the encoder 0.55")
    assert found[2].startswith("note: it is position accuracy 0.55")


@pytest.mark.parametrize("scans", [1, 2, 3, 5])
def test_few_scans_cannot_be_judged(scans):
    found = say(scores(spread(0.9, scans), spread(0.9, scans)))[1]
    words = f"cannot be judged with {scans} held-out scan{'s' if scans > 1 else ''}: place accuracy"
    assert found.startswith(words) and not any(
        s.startswith("learned") for s in say(scores(spread(0.9, scans), spread(0.9, scans)))
    )
    assert ("about 6 held-out scans show" in found) == (scans > 1)


def test_without_a_line_nothing_is_said():
    found = say(scores(spread(0.55), spread(0.30)), held={"histogram": lines()["histogram"]})
    assert found[1].startswith("cannot be judged without the line of the own step 0 and the untrained networks")


def test_the_projector_is_a_second_line():
    report = scores(spread(0.55), spread(0.30))
    both = replace(report, tallies=report.tallies | scores(spread(0.7), spread(0.5), prefix="").tallies)
    note = say(both)[3]
    assert note.startswith("note: through the projector") and "position accuracy 0.70" in note
    assert "(best line: HU histogram 0.26)" in note


def test_verdict_of_loss_collapse_and_breakage():
    good = spread(0.5), spread(0.3)
    assert say(scores(*good, intra=0.61))[0].startswith("nothing learned: held-out intra 0.610")
    assert "too early" in say(scores(*good, intra=0.61), step=10)[0]
    assert say(scores(*good, cosine=0.97))[0].startswith("collapsed")
    broken = say(scores(*good, intra=float("nan")))
    assert len(broken) == 1 and broken[0].startswith("broken")


def test_padding_is_said_with_the_scans_that_cause_it():
    report = scores(spread(0.55), spread(0.30), values={"padded_share": 0.31}, padded={"thin": 0.7, "short": 0.9})
    note = next(s for s in say(report) if "outside the scan" in s)
    assert "31% of the voxels" in note and "short 90%, thin 70%" in note
    nameless = next(s for s in say(replace(report, padded={})) if "outside the scan" in s)
    assert "31% of the voxels" in nameless and "short" not in nameless
    calm = replace(report, values={"padded_share": 0.1})
    assert not any("outside the scan" in s for s in say(calm))


def test_what_travels_with_an_encoder_names_no_scan(tmp_path):
    judged = Judged(tmp_path, REFERENCES, warmup=20)
    judged.lines = lines()
    judged.latest = scores(spread(0.55), spread(0.30), values={"padded_share": 0.31}, padded={"scan-of-jane": 0.7})
    judged.judge(step=100)
    judged.write(step=100)
    assert "scan-of-jane" in (tmp_path / "health.json").read_text()
    shared = judged.provenance({})
    assert "scan-of-jane" not in json.dumps(shared) and any("31% of the voxels" in s for s in shared["verdict"])


def test_falls_are_said_with_step_and_value():
    rows = [{"step": s, f"heldout/{HEADLINE}": v} for s, v in ((0, 0.3), (50, 0.58), (100, 0.57), (150, 0.9))]
    found = say(scores(spread(0.55), spread(0.30)), step=100, earlier=rows)
    [note] = [s for s in found if s.startswith("note: fell")]
    assert "0.42 at step 100 is below the 0.58 at step 50" in note  # what came later does not count
    [note] = fallen(rows[:3])
    assert "0.57 at step 100 is below the 0.58 at step 50" in note
    assert fallen(rows) == [] and fallen([]) == [] and fallen([{"step": 5, "loss": 1.0}]) == []


def test_judgements_hold_the_numbers_of_the_sentence():
    report = scores(spread(0.55), spread(0.30))
    place, position, disjoint = judgements(report, lines(), REFERENCES)
    assert place.value == pytest.approx((position.value + disjoint.value) / 2)
    assert position.above and disjoint.above and position.clusters == 12
    assert position.lines["constant"] == pytest.approx(1 / 9)
    assert position.differences["step0"].value == pytest.approx(0.21)
    assert judge(report, lines(), REFERENCES, "clean_position_accuracy") is None


def test_the_better_state_counts_and_the_mean_keeps_its_networks():
    low, high = scores(spread(0.2), spread(0.3)), scores(spread(0.4), spread(0.1))
    better = better_of([low, high], "one")
    assert (better.score(POSITION), better.score(DISJOINT)) == pytest.approx((0.4, 0.3))
    mean = mean_of([low, high], "two")
    assert mean.score(POSITION) == pytest.approx(0.3) and mean.of_networks(POSITION) == pytest.approx([0.2, 0.4])


def test_folds_joined_are_one_report_of_all_patients():
    parts = [lines(scans)["untrained"] for scans in (3, 5)]
    whole = joined(parts)
    assert whole.scans == 8 and whole.tallies[POSITION].clusters == 8
    assert len(whole.networks) == 6 and whole.networks[2][POSITION].clusters == 8
    assert whole.score(POSITION) == pytest.approx(0.35)


def test_metrics_are_flat_and_the_report_survives_json():
    report = lines()["untrained"]
    flat = report.metrics()
    assert {f"heldout/{POSITION}", f"heldout/{POSITION}_low", "heldout/intra"} <= set(flat)
    assert all(isinstance(v, float | int) for v in flat.values())
    again = HealthReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.metrics() == flat and again.of_networks(POSITION) == report.of_networks(POSITION)
    old = json.loads(json.dumps(report.to_dict()))  # as version 0.1 wrote it
    del old["networks"], old["padded"]
    for tally in old["tallies"].values():
        del tally["share"]
    assert HealthReport.from_dict(old).score(POSITION) == report.score(POSITION)


def test_lines_of_other_windows_are_refused():
    rng = np.random.default_rng(0)
    volumes = [ArrayVolume(rng.integers(-1000, 500, (20, 30, 28))) for _ in range(3)]
    geometry = Geometry(crop=8)
    report, other = (
        evaluate_histogram(build_eval_windows(volumes[:n], geometry, seed=0), geometry, (-1000, 500), seed=0)
        for n in (3, 2)
    )
    found = judge(report, {"histogram": report}, REFERENCES, "position_accuracy")
    assert found.differences["histogram"].p == 1.0
    with pytest.raises(InputError, match="same windows"):
        judge(report, {"histogram": other}, REFERENCES, "position_accuracy")


def test_scans_of_one_patient_are_one_voice():
    rng = np.random.default_rng(1)
    volumes = [ArrayVolume(rng.integers(-1000, 500, (20, 30, 28))) for _ in range(6)]
    geometry = Geometry(crop=8)
    windows = build_eval_windows(volumes, geometry, seed=0, patients=["a", "a", "b", "b", "c", "c"])
    report = evaluate_histogram(windows, geometry, (-1000, 500), seed=0)
    assert report.scans == 6 and report.tallies["position_accuracy"].clusters == 3
    alone = evaluate_histogram(build_eval_windows(volumes, geometry, seed=0), geometry, (-1000, 500), seed=0)
    assert alone.tallies["position_accuracy"].clusters == 6
    assert alone.score("position_accuracy") == pytest.approx(report.score("position_accuracy"))
    network = replace(lines()["step0"], scans=24)  # two scans of each of twelve patients
    assert "12 held-out patients" in say(network, held=lines())[1]
