"""Networks that move without learning, and what a verdict says of them on many draws of held-out scans."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from voco.encoders import create_encoder
from voco.geometry import Augmentation, Geometry
from voco.health import (
    HealthReport,
    build_eval_windows,
    calibrate_batchnorm,
    evaluate,
    evaluate_histogram,
    outer_window,
)
from voco.health.monitor import NETWORKS
from voco.health.report import better_of, mean_of
from voco.health.scores import Tally
from voco.health.verdict import verdict
from voco.methods.voco3d import VoCo3D
from voco.reference import reference_lines
from voco.rng import generator

NULLS = ("running statistics", "permuted targets", "noise volumes")


class ArrayVolume:
    """A volume in memory with the interface of a prepared one."""

    def __init__(self, array):
        self.array, self.shape = np.asarray(array, np.int16), array.shape

    def read(self, start, size):
        out = np.full(size, -1024, np.int16)
        inside = [(max(0, s), min(n, s + w)) for s, w, n in zip(start, size, self.shape)]
        target = tuple(slice(a - s, b - s) for (a, b), s in zip(inside, start))
        out[target] = self.array[tuple(slice(a, b) for a, b in inside)]
        return out


def phantoms(count: int, seed: int, spacing_mm: float) -> list[ArrayVolume]:
    """Synthetic patients, body only up to the table."""
    from voco.phantom.anatomy.patient import make_patient

    return [ArrayVolume(make_patient(seed, i, spacing_mm=(spacing_mm,) * 3).hu) for i in range(count)]


def build(seed: int, geometry: Geometry) -> VoCo3D:
    """A method with fresh weights."""
    torch.manual_seed(seed)
    return VoCo3D(create_encoder("cnn3d_s"), geometry, Augmentation())


def train(method: VoCo3D, volumes, *, seed: int, steps: int, batch: int, lr: float, kind: str | None = None) -> VoCo3D:
    """Take some steps of the published loss, or steps in which there is nothing to learn.

    Args:
        kind: one of ``NULLS``; None trains as usual.
    """
    from voco.data.windows import read_window
    from voco.methods import voco3d

    geometry, honest = method.geometry, voco3d.overlap_labels
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr, weight_decay=0.01)
    draw = method.sampler
    permute = torch.Generator().manual_seed(seed)

    def permuted(starts, shape):
        labels = honest(starts, shape)
        flat = labels.flatten(0, 1)
        return flat[torch.randperm(len(flat), generator=permute)].view_as(labels)

    method.train()
    with mock.patch.object(voco3d, "overlap_labels", permuted if kind == "permuted targets" else honest):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 20) * 0.5 * (1 + np.cos(np.pi * step / steps))
            rows = []
            for place in range(batch):
                rng = generator(seed, step, place)
                case = int(torch.randint(len(volumes), (), generator=rng))
                hu = read_window(volumes[case], geometry.window, rng).hu
                if kind == "noise volumes":
                    hu = (torch.randn(hu.shape, generator=rng) * 400 - 300).to(torch.int16).numpy()
                rows.append({"hu": torch.from_numpy(hu), "case": torch.tensor(case), **draw(rng)})
            batch_of = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
            with torch.set_grad_enabled(kind != "running statistics"):
                loss = method(batch_of)["loss"]
            if kind != "running statistics":
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
                optimizer.step()
            method.after_step()
    return method.eval()


class Bench:
    """Scores of networks on a pool of held-out scans; what is said about any draw of these scans follows from them."""

    def __init__(self, volumes, geometry: Geometry, seed: int = 0):
        self.geometry, self.seed = geometry, seed
        self.windows = build_eval_windows(volumes, geometry, seed=seed, max_scans=None)
        self.references = vars(reference_lines(geometry))
        self.histogram = evaluate_histogram(self.windows, geometry, outer_window([(-1000, 500)]), seed=seed)

    def score(self, method: VoCo3D) -> HealthReport:
        return evaluate(method, self.windows, seed=self.seed, batch_volumes=4, positions_only=True)

    def both_states(self, method: VoCo3D) -> list[HealthReport]:
        """A network as it is, and with statistics of BatchNorm from some of the held-out windows."""
        states = [self.score(method)]
        calibrate_batchnorm(method, self.windows[:40], batch_volumes=4)
        return [*states, self.score(method)]

    def says(self, report, step0, untrained, scans) -> list[str]:
        """The verdict on some of the scans.

        Args:
            report: of the network that is judged.
            step0: its states before the first step.
            untrained: states of each of several random networks.
            scans: numbers of the scans that are held out.
        """
        networks = [better_of([among(state, scans) for state in states], "untrained") for states in untrained]
        lines = {
            "step0": better_of([among(state, scans) for state in step0], "step0"),
            "untrained": mean_of(networks, "untrained"),
            "histogram": among(self.histogram, scans),
        }
        return verdict(among(report, scans), self.references, step=300, warmup_steps=20, lines=lines)


def among(report: HealthReport, scans) -> HealthReport:
    """A report as it would be with these scans alone."""
    rows = np.asarray(scans)
    return replace(
        report,
        tallies={name: Tally(t.hits[rows], t.weight[rows], t.share) for name, t in report.tallies.items()},
        scans=len(rows),
        disjoint_scans=len(rows),
    )


def learned(sentences: list[str]) -> bool:
    return any(sentence.startswith("learned") for sentence in sentences)


def rates(bench: Bench, trained, random, sizes, draws: int, seed: int = 0) -> dict[int, np.ndarray]:
    """(networks, draws) whether each network was called learned on each draw of held-out scans, by size of the draw.

    Args:
        trained: reports of networks; network i started as ``random[i]``.
        random: states of random networks, more than ``NETWORKS``.
    """
    pool, found = len(bench.histogram.tallies["position_accuracy"].hits), {}
    for size in sizes:
        rng = np.random.default_rng((seed, size))
        order = [rng.permutation(pool) for _ in range(-(-draws * size // pool))]
        fresh = np.concatenate([o[: pool // size * size] for o in order])[: draws * size].reshape(draws, size)
        found[size] = np.array(
            [
                [
                    learned(bench.says(report, random[i], others(random, i), scans))
                    for scans in fresh
                ]
                for i, report in enumerate(trained)
            ]
        )  # fmt: skip
    return found


def others(random, i):
    """The random networks that a run which started as network ``i`` is compared with."""
    return [random[(i + k) % len(random)] for k in range(1, NETWORKS + 1)]


def clustered(called: np.ndarray) -> SimpleNamespace:
    """Mean of (networks, draws) and its standard error with networks as clusters."""
    each = called.mean(1)
    return SimpleNamespace(mean=float(each.mean()), error=float(each.std(ddof=1) / np.sqrt(len(each))))
