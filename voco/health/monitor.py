"""The health report of a run: lines measured once at the start, scores at intervals, words and pictures at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

import torch

from voco.health.evaluate import calibrate_batchnorm, evaluate, evaluate_histogram, outer_window
from voco.health.examples import similarity_examples
from voco.health.report import POSITION_SCORES, HealthReport, verdict
from voco.health.windows import EvalWindow, build_eval_windows

_LINES = "health_lines.json"
# A projector without running statistics normalises over the crops that pass together: with one number for all runs,
# scores of runs with other batch sizes or numbers of processes can be compared.
_BATCH_VOLUMES = 4


class HealthMonitor:
    """Evaluates one method on held-out scans and keeps what is needed to judge it.

    Args:
        out: run folder; lines go to ``health_lines.json``, the latest report and verdict to ``health.json``.
        volumes, names: held-out prepared files and their case ids.
        geometry, region: of the method.
        hu_windows: of the encoder, for the histogram line.
        references: from ``voco.reference.reference_lines``.
        per_scan, queries, max_scans: how much is looked at.
        seed: of the run.
        warmup: steps after which the loss is judged.
    """

    def __init__(
        self,
        out: Path,
        *,
        volumes: Sequence[Path],
        names: Sequence[str],
        geometry,
        region: str,
        hu_windows,
        references,
        per_scan: int,
        queries: int,
        max_scans: int,
        seed: int,
        warmup: int,
    ):
        self.out, self.geometry, self.hu_windows = Path(out), geometry, hu_windows
        self.references = asdict(references) if is_dataclass(references) else dict(references)
        self.queries, self.seed, self.warmup = queries, seed, warmup
        self.windows: list[EvalWindow] = build_eval_windows(
            volumes, geometry, per_scan=per_scan, seed=seed, region=region, names=names, max_scans=max_scans
        )
        self.lines: dict[str, HealthReport] = {}
        self.latest: HealthReport | None = None
        self.verdict: list[str] = []

    def measure_lines(self, build_untrained: Callable[[], torch.nn.Module], device, *, reuse: bool) -> None:
        """Score what has learned nothing: the HU histogram, and the same encoder untrained.

        Args:
            build_untrained: makes the method with fresh weights.
            reuse: take what an earlier session of this very run measured, with the same settings and scans.
        """
        path = self.out / _LINES
        if reuse and path.is_file():
            self.lines = {k: HealthReport.from_dict(v) for k, v in json.loads(path.read_text()).items()}
            return
        untrained = build_untrained().to(device)
        calibrate_batchnorm(untrained, self.windows, batch_volumes=_BATCH_VOLUMES, device=device)
        self.lines = {
            "untrained": self._evaluate(untrained, device, "untrained"),
            "histogram": evaluate_histogram(
                self.windows, self.geometry, outer_window(self.hu_windows), queries=self.queries, seed=self.seed
            ),
        }
        _write_json(path, {k: v.to_dict() for k, v in self.lines.items()})

    def report(self, method: torch.nn.Module, step: int, device, autocast_dtype=None) -> dict[str, float]:
        """Score ``method`` now; returns flat metrics and writes ``health.json``."""
        self.latest = self._evaluate(method, device, "trained", autocast_dtype)
        self.verdict = verdict(self.latest, self.references, step=step, warmup_steps=self.warmup, lines=self.lines)
        record = {"step": step, "verdict": self.verdict, "references": self.references, "report": self.latest.to_dict()}
        _write_json(self.out / "health.json", record)
        return self.latest.metrics("heldout")

    def constants(self) -> dict[str, float]:
        """Reference losses and the lines, for trackers that draw them beside the curves."""
        found = {f"lines/{name}": float(value) for name, value in self.references.items()}
        for name, line in self.lines.items():
            for score in (f"{s}{suffix}" for s in POSITION_SCORES for suffix in ("", "_balanced")):
                if line.score(score) is not None:
                    found[f"lines/{name}_{score}"] = line.score(score)
        return found

    def warnings(self) -> list[str]:
        """Sentences of the verdict that a person should not learn of only at the end."""
        return [s for s in self.verdict if s.startswith(("nothing learned", "collapsed", "broken"))]

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

        folder, outer = self.out / "figures", outer_window(self.hu_windows)
        folder.mkdir(exist_ok=True)
        made = [figures.loss_curves(rows, self.references, folder / "loss.png")]
        made.append(figures.position_scores(rows, self.lines, self.references, folder / "positions.png"))
        if self.latest is not None:
            made.append(figures.heldout_summary(self.latest, self.lines, self.references, folder / "summary.png"))
        for slabs, name in ((False, "similarity"), (True, "similarity_disjoint")):
            score = self.latest and self.latest.score(f"clean_{'disjoint' if slabs else 'position'}_accuracy")
            note = "" if score is None else f" Of all held-out crops {score:.0%} are right."
            cases = similarity_examples(
                method,
                self.windows,
                seed=self.seed,
                batch_volumes=_BATCH_VOLUMES,
                device=device,
                autocast_dtype=autocast_dtype,
                slabs=slabs,
            )
            if cases:
                where = ", from the slab above or below: no shared voxel" if slabs else ""
                note = f"First crop of each scan that lies mostly in one cell{where}.{note}"
                made.append(figures.similarity_map(cases, self.geometry, outer, folder / f"{name}.png", note=note))
        made.append(figures.crops_of_case(self.windows[0].hu, self.geometry, draws, outer, folder / "crops.png"))
        return made

    def _evaluate(self, method, device, name: str, autocast_dtype=None) -> HealthReport:
        return evaluate(
            method,
            self.windows,
            queries=self.queries,
            seed=self.seed,
            batch_volumes=_BATCH_VOLUMES,
            device=device,
            name=name,
            autocast_dtype=autocast_dtype,
        )


def _write_json(path: Path, values) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, default=float))
    part.replace(path)
