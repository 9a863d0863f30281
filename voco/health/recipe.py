"""The verdict on a recipe: what each of several pretrainings found on the patients that it did not see, as one report.

All folds of a run start from the same weights, and the untrained network of a number is the same one in every fold. So
the pooled reports are those of one run, of one step 0 and of the same untrained networks, on all patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from voco.errors import InputError
from voco.files import write_json
from voco.health.judged import REPORT_FILE, Judged, lines_of
from voco.health.report import HealthReport, joined
from voco.health.verdict import fallen, judgements

STATES_FILE = "health_states.json"


class Recipe(Judged):
    """Reads what folds left behind and judges it by the rule for one run.

    Args:
        out: folder of the run on all scans; gets ``health.json`` and ``health_lines.json`` of all folds together.
        folds: run folder of each fold, with its rows of ``metrics.jsonl``.
        warmup: steps after which the loss is judged.

    Raises:
        InputError: folds that are not of one run.
    """

    def __init__(self, out: Path, folds: Mapping[Path, Sequence[Mapping]], warmup: int):
        records = [json.loads((folder / REPORT_FILE).read_text()) for folder in folds]
        reports = [HealthReport.from_dict(record["report"]) for record in records]
        _check_alike(list(folds), [(record["step"], report.seed) for record, report in zip(records, reports)])
        super().__init__(out, records[0]["references"], warmup)
        self.count, self.step = len(records), records[0]["step"]
        self.latest = joined(reports)
        self.lines = lines_of(_joined_states([_read_states(folder) for folder in folds]))
        self.judge(self.step)
        self.verdict = [self._concerns(), *self.verdict, *_fallen(folds)]
        self.write_lines()
        self.write(self.step, concerns="recipe", folds=self.count)

    def _concerns(self) -> str:
        return (
            f"note: this verdict concerns the recipe: {self.count} pretrainings, each judged on the patients that it "
            "did not see; the encoder of this run was trained on all scans and was not judged itself."
        )

    def provenance(self, results: dict[str, float]) -> dict:
        """As of one run, with what it concerns."""
        return {"concerns": "recipe"} | super().provenance(results)

    def draw(self, rows: Sequence[Mapping]) -> list[Path]:
        """Write ``loss.png`` of the run on all scans and ``summary.png`` of the folds.

        Args:
            rows: of ``metrics.jsonl`` of the run on all scans.
        """
        from voco import figures

        summary = figures.heldout_summary(self.latest, self.lines, self.references, title=self._finding())
        drawn = {"loss": figures.loss_curves(rows, self.references), "summary": summary}
        return figures.save_all(drawn, self.out / "figures")

    def _finding(self) -> str:
        """The verdict in a line, for a picture."""
        one = judgements(self.latest, self.lines, self.references)[0]
        if not one.judgeable:
            return f"The recipe in {self.count} folds: cannot be judged with {one.clusters} patients"
        how = f"{'' if one.above else 'not '}surely above every line"
        return f"The recipe in {self.count} folds: place accuracy of the encoders {one.value:.2f}, {how}"


def write_states(out: Path, states: Mapping[str, Sequence[HealthReport]]) -> None:
    """Keep what the lines of a fold were made of, see ``lines_of``: which state is better is asked of all folds."""
    values = {name: [state.to_dict() for state in found] for name, found in states.items()}
    write_json(out / STATES_FILE, values, default=float)


def _read_states(folder: Path) -> dict[str, list[HealthReport]]:
    saved = json.loads((folder / STATES_FILE).read_text())
    return {name: [HealthReport.from_dict(state) for state in found] for name, found in saved.items()}


def _joined_states(folds: Sequence[Mapping[str, Sequence[HealthReport]]]) -> dict[str, list[HealthReport]]:
    return {name: [joined(parts) for parts in zip(*(fold[name] for fold in folds), strict=True)] for name in folds[0]}


def _check_alike(folders: Sequence[Path], found: Sequence[tuple[int, int]]) -> None:
    if len(set(found)) > 1:
        listed = ", ".join(f"{folder.name} step {step}, seed {seed}" for folder, (step, seed) in zip(folders, found))
        raise InputError(f"folds of different runs cannot be judged together: {listed}; expected one step and one seed")


def _fallen(folds: Mapping[Path, Sequence[Mapping]]) -> list[str]:
    """A sentence on folds whose score was higher earlier."""
    names = [folder.name for folder, rows in folds.items() if fallen(rows)]
    if not names:
        return []
    return [
        f"note: fell: in {len(names)} of {len(folds)} folds a score of the encoder at the end is below an earlier "
        f"one of the same fold ({', '.join(names)}); look at figures/positions.png of these folds."
    ]
