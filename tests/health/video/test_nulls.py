"""Networks that learned nothing are called "learned" at the stated rate, whatever the number of held-out groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from voco.encoders import create_encoder
from voco.health.monitor import NETWORKS
from voco.health.video import HEADLINE, better_of, evaluate_clips, judge, line_of, mean_of, nearest_centroid, report_of
from voco.health.video.evaluate import Seen, estimate_batchnorm, look_at
from voco.methods.video import VideoClassification
from voco.methods.video_options import VideoOptions

SIZES = (6, 10, 20)
NETWORKS_OF_A_KIND, DRAWS = 20, 20
# Beyond 2.5 %: two standard errors of the mean over 20 networks, each right or wrong on all draws alike.
MOST = 0.025 + 2 * (0.025 * 0.975 / NETWORKS_OF_A_KIND) ** 0.5


def among(clips, groups):
    """A report or line as it would be with these groups alone."""
    held = np.isin(clips.group, groups)
    names = [name for name in ("case", "label", "predicted", "loss", "features_place") if hasattr(clips, name)]
    rows = {name: getattr(clips, name)[held] for name in names} | {"place": clips.place[..., held]}
    return replace(clips, group=tuple(np.array(clips.group)[held]), **rows)


def learned(report, step0, random, single, groups) -> bool:
    """Whether a run is called learned on some of the groups; ``step0`` and ``random`` are states of networks."""
    lines = {
        "step0": better_of([among(state, groups) for state in step0]),
        "untrained": mean_of([better_of([among(s, groups) for s in states]) for states in random], "untrained"),
        "single_frame": among(single, groups),
    }
    return judge(among(report, groups), lines).above


# ---- answers that are drawn


class World:
    """Answers of networks whose skill varies, by groups that are easier or harder, 8 clips of as many classes each."""

    def __init__(self, groups: int, seed: int, spread: float):
        self.rng, self.spread, self.groups = np.random.default_rng(seed), spread, groups
        self.label, self.group = np.tile(np.arange(8), groups), np.repeat(np.arange(groups), 8)
        self.ease = self.rng.normal(0, 0.5, (groups, 8)) + self.rng.normal(0, 0.5, (groups, 1))

    def answer(self, skill: float = 0.8) -> np.ndarray:
        skill = self.rng.normal(skill, self.spread) + self.ease[self.group, self.label]
        logits = self.rng.normal(size=(len(self.label), 8))
        logits[np.arange(len(self.label)), self.label] += skill
        answer = np.exp(logits)
        return answer / answer.sum(1, keepdims=True)

    def line(self, name: str, skill: float = 0.8):
        case, names = np.arange(len(self.label)), [f"g{g}" for g in self.group]
        return line_of(case, self.label, self.answer(skill), classes="abcdefgh", groups=names, name=name)

    def report(self):
        case, names, answer = np.arange(len(self.label)), [f"g{g}" for g in self.group], self.answer()
        return report_of(case, self.label, answer, classes="abcdefgh", groups=names, nearest=answer)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("groups", [3, 5, *SIZES])
def test_answers_of_equal_networks_are_called_learned_at_the_stated_rate(groups, spread):
    trials, said = 400, 0
    for seed in range(trials):
        world = World(groups, seed, spread)
        random = [[world.line("untrained")] for _ in range(NETWORKS)]
        everyone = [f"g{g}" for g in range(groups)]
        # the other lines are low, so that all depends on the untrained networks, of which the judged one is another
        step0, single = world.line("step0", 0.0), world.line("single_frame", 0.0)
        said += learned(world.report(), [step0], random, single, everyone)
    print(f"{groups} groups, spread {spread}: {said} of {trials} called learned")
    assert said == 0 if groups < 6 else said / trials <= 0.025 + 2 * (0.025 * 0.975 / trials) ** 0.5


# ---- networks that move without learning


def synthetic(seed: int, count: int) -> dict[str, torch.Tensor]:
    """Clips of 16 gray frames of 32x32: frames, labels, and groups of 8 by number."""
    from voco.phantom.video import CLASSES, make_clip

    frames, labels = [], []
    for index in range(count):
        clip = make_clip(seed, index)
        chosen = clip.frames[np.linspace(0, len(clip.frames) - 1, 16).round().astype(int)]
        gray = torch.from_numpy(chosen).float().mean(-1)
        frames.append(F.adaptive_avg_pool2d(gray, 32).round().to(torch.uint8)[..., None])
        labels.append(list(CLASSES).index(clip.label))
    return {"frames": torch.stack(frames), "label": torch.tensor(labels), "case": torch.arange(count)}


def in_batches(clips: dict[str, torch.Tensor], size: int = 32) -> list[dict[str, torch.Tensor]]:
    return [{k: v[i : i + size] for k, v in clips.items()} for i in range(0, len(clips["label"]), size)]


def build(seed: int) -> VideoClassification:
    torch.manual_seed(seed)
    return VideoClassification(create_encoder("cnn3d_s"), [f"class{i}" for i in range(8)], VideoOptions(jitter=0))


def move(method, clips, kind: str, seed: int, steps: int = 25) -> VideoClassification:
    """Steps without learning: running statistics alone, or labels that were shuffled."""
    rng = np.random.default_rng(seed)
    label = clips["label"][torch.from_numpy(rng.permutation(len(clips["label"])))]
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    method.train()
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(label), 16, replace=False))
        with torch.set_grad_enabled(kind == "permuted labels"):
            loss = method({"frames": clips["frames"][rows], "label": label[rows]})["loss"]
        if kind == "permuted labels":
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return method.eval()


@pytest.mark.slow
def test_networks_that_move_without_learning_are_called_learned_at_the_stated_rate():
    torch.manual_seed(0)
    train, held = synthetic(100, 128), [synthetic(seed, 200) for seed in (101, 102)]
    held = {k: torch.cat([part[k] for part in held]) for k in held[0]} | {"case": torch.arange(400)}
    seen, asked = in_batches(train), in_batches(held)
    groups = [f"g{i // 8}" for i in range(400)]
    kind = {"classes": tuple(f"class{i}" for i in range(8)), "groups": groups}

    def states(seed):
        """A network as it is, and with statistics from training clips."""
        network, found = build(seed), []
        for _ in range(2):
            known, now = (look_at([network], batches) for batches in (seen, asked))
            nearest = nearest_centroid(known.features[0], known.label, now.features[0], 8)
            found.append(line_of(now.case, now.label, nearest, **kind, name="state"))
            estimate_batchnorm(network, lambda: look_at([network], seen[:2]))
        return found

    pixels = [
        Seen(b["case"], b["label"], [b["frames"][:, 8, ::2, ::2, 0].flatten(1).double().numpy()], []) for b in seen
    ]
    shown = [b["frames"][:, 8, ::2, ::2, 0].flatten(1).double().numpy() for b in asked]
    means = np.concatenate([p.features[0] for p in pixels]), train["label"].numpy()
    nearest = nearest_centroid(*means, np.concatenate(shown), 8)
    single = line_of(held["case"].numpy(), held["label"].numpy(), nearest, **kind, name="single_frame")

    random = [states(1000 + number) for number in range(NETWORKS)]
    rng, called = np.random.default_rng(0), {}
    for number in range(NETWORKS_OF_A_KIND):
        step0 = states(number)
        for what in ("running statistics", "permuted labels"):
            method = move(build(number), train, what, number)
            report = evaluate_clips(method, asked, groups, train=seen)
            print(
                f"{what} {number}: {report.score(HEADLINE):.3f} beside {[round(s.score(HEADLINE), 3) for s in step0]}"
            )
            for size in SIZES:
                for _ in range(DRAWS):
                    chosen = rng.choice(sorted(set(groups)), size, replace=False)
                    called.setdefault((what, size), []).append(learned(report, step0, random, single, chosen))
    print({key: float(np.mean(hits)) for key, hits in called.items()})
    assert all(np.mean(hits) <= MOST for hits in called.values())
