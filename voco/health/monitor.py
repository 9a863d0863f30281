"""The health report of a run: lines measured once at the start, scores at intervals, words and pictures at the end."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from voco.health.evaluate import calibrate_batchnorm, evaluate, evaluate_histogram, outer_window
from voco.health.judged import LINES_FILE, Judged, lines_of
from voco.health.recipe import write_states
from voco.health.report import HealthReport
from voco.health.verdict import LINES
from voco.health.windows import EvalWindow, build_eval_windows
from voco.reference import reference_lines

# A projector without running statistics normalises over the crops that pass together: with one number for all runs,
# scores of runs with other batch sizes or numbers of processes can be compared.
BATCH_VOLUMES = 4
# Random networks that the untrained line is made of: with eight, one must lie 2.5 standard deviations above their mean
# to be more than a lucky draw; five would ask for 3.0, ten for 2.4.
NETWORKS = 8


class HealthMonitor(Judged):
    """Evaluates one method on held-out scans and keeps what is needed to judge it, by encoder features alone.

    Args:
        method: a ``voco.methods.base.ScanMethod``, before the first step.
        out: run folder; lines go to ``health_lines.json``, the latest report and verdict to ``health.json``.
        volumes, names, patients: held-out prepared files, their case ids and whose they are.
        region: of the method's samples.
        per_scan, queries, max_scans: how much is looked at.
        seed: of the run.
        warmup: steps after which the loss is judged.
        is_fold: keep what a verdict on several folds needs.
    """

    def __init__(
        self,
        method,
        out: Path,
        *,
        volumes: Sequence[Path],
        names: Sequence[str],
        patients: Sequence[str],
        region: str,
        per_scan: int,
        queries: int,
        max_scans: int,
        seed: int,
        warmup: int,
        is_fold: bool = False,
    ):
        super().__init__(out, self.known_values(method), warmup)
        self.geometry, self.hu_windows = method.geometry, method.encoder.input_spec.windows
        self.queries, self.seed, self.is_fold = queries, seed, is_fold
        self.windows: list[EvalWindow] = build_eval_windows(
            volumes,
            self.geometry,
            per_scan=per_scan,
            seed=seed,
            region=region,
            clip=outer_window(self.hu_windows),
            names=names,
            patients=patients,
            max_scans=max_scans,
        )

    def known_values(self, method) -> dict[str, float]:
        """Scores of the best constant guess; fields of ``voco.reference.reference_lines``."""
        known = reference_lines(method.geometry)
        return {"position_chance": known.position_chance, "balanced_chance": known.balanced_chance}

    def measure_lines(
        self, method: torch.nn.Module, build_untrained: Callable[[int], torch.nn.Module], device, *, reuse: bool
    ) -> None:
        """Score what this run has not learned: where it starts, networks with random weights, the HU histogram.

        A network counts with the better of two states of its BatchNorm statistics, as they are and estimated from the
        held-out windows: untrained ones have none worth the name, and one state or the other alone makes a low line.

        Args:
            method: as it is before the first step.
            build_untrained: makes the method with fresh weights of a given number.
            reuse: take what an earlier session of this very run measured, with the same settings and scans.
        """
        path = self.out / LINES_FILE
        if reuse and path.is_file():
            saved = {k: HealthReport.from_dict(v) for k, v in json.loads(path.read_text()).items()}
            if set(LINES) <= set(saved):  # version 0.1 knew no step 0
                self.lines = saved
                return
        from voco.data.progress import Progress

        bar = Progress("lines that need no learning", NETWORKS + 2, unit="lines")
        states = {"step0": self._in_both_states(method, device, "step0", positions_only=False)}
        bar.step()
        for number in range(NETWORKS):
            name = f"untrained {number}"
            states[name] = self._in_both_states(build_untrained(number).to(device), device, name)
            bar.step()
        outer = outer_window(self.hu_windows)
        states["histogram"] = [
            evaluate_histogram(self.windows, self.geometry, outer, queries=self.queries, seed=self.seed)
        ]
        bar.step()
        bar.close()
        self.lines = lines_of(states)
        if self.is_fold:
            write_states(self.out, states)
        self.write_lines()

    def _in_both_states(self, method, device, name: str, *, positions_only: bool = True) -> list[HealthReport]:
        states = [self._evaluate(method, device, name, positions_only=positions_only)]
        calibrated = copy.deepcopy(method)
        if calibrate_batchnorm(calibrated, self.windows, batch_volumes=BATCH_VOLUMES, device=device):
            states.append(self._evaluate(calibrated, device, name, positions_only=positions_only))
        return states

    def report(
        self, method: torch.nn.Module, step: int, device, autocast_dtype=None, earlier: Sequence[Mapping] = ()
    ) -> dict[str, float]:
        """Score ``method`` now; returns flat metrics and writes ``health.json``.

        Args:
            earlier: rows of metrics.jsonl so far, for what was better before.
        """
        self.latest = self._evaluate(method, device, "trained", autocast_dtype)
        self.judge(step, earlier)
        self.write(step)
        return self.latest.metrics("heldout")

    def warnings(self) -> list[str]:
        """Sentences of the verdict that a person should not learn of only at the end."""
        heard = ("nothing learned", "collapsed", "broken") + (() if self.is_fold else ("note: fell",))  # of two scans
        return [s for s in self.verdict if s.startswith(heard)]

    def draw(
        self, method: torch.nn.Module, rows: Sequence[dict], draws: dict, device, autocast_dtype=None
    ) -> list[Path]:
        """Write every picture of ``figures/``.

        Args:
            method: the ``nn.Module`` as it is now.
            rows: of ``metrics.jsonl``.
            draws: one sample of the method's randomness, for the picture of the crops.
        """
        from voco import figures

        return figures.save_all(self.pictures(method, rows, draws, device, autocast_dtype), self.out / "figures")

    def pictures(self, method, rows: Sequence[dict], draws: dict, device, autocast_dtype=None) -> dict:
        """Figures by name; arguments as ``draw``. A report that measures more adds its own."""
        from voco import figures

        drawn = {
            "loss": self.loss_picture(rows),
            "positions": figures.position_scores(rows, self.lines, self.references),
        }
        if self.latest is not None:
            drawn["summary"] = figures.heldout_summary(self.latest, self.lines, self.references)
        return drawn

    def loss_picture(self, rows: Sequence[Mapping]):
        """The training loss over steps."""
        from voco.figures.curves import training_loss

        return training_loss(rows)

    def _evaluate(self, method, device, name: str, autocast_dtype=None, positions_only: bool = False) -> HealthReport:
        return evaluate(
            method,
            self.windows,
            queries=self.queries,
            seed=self.seed,
            batch_volumes=BATCH_VOLUMES,
            device=device,
            name=name,
            autocast_dtype=autocast_dtype,
            positions_only=positions_only,
        )
