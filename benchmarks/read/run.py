"""A finetune run read back from its folder alone: predictions, task, source, cost, verdicts, looks at the test set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.read.files import read_entry, read_history, read_json, read_settings
from benchmarks.read.flops import training_flops
from benchmarks.read.provenance import (
    Training,
    entry_words,
    pretraining_cost,
    source_words,
    training_id,
    trainings,
)
from voco import plugins
from voco.errors import InputError
from voco.tasks import TASKS
from voco.tasks.base import Task
from voco.transfer.prediction_files import PREDICTIONS
from voco.transfer.results import rebuild_task

if TYPE_CHECKING:
    import pandas as pd

CELL = "cell.json"
SYNTHETIC = "synthetic patients"  # how the mark of the finetune stage begins

# Settings that say where things lie, how often numbers are written, or what is told apart in other ways: by source,
# seed, the test set itself and the patients trained on.
_PLACES = (
    *(
        "out",
        "plugins",
        "seed",
        "eval",
        "fold",
        "allow_seen",
        "fraction",
        "encoder.name",
        "encoder.weights",
        "split.file",
    ),
    *("encoder.activation_checkpointing", "input.chunk"),
    *("train.threads", "train.save_every", "train.keep", "train.resume", "train.max_skipped"),
)
_PLACES_UNDER = ("data.", "log.", "score.")
# Settings that runs from before they existed do not name, where they change nothing.
_LATER = {"train.extend": "", "task.unknown": None}
# Chosen for each source by the same search; everything else must be equal for a difference to be one of sources.
SEARCHED = ("train.lr", "train.head_lr", "train.weight_decay")


@dataclass
class Run:
    """One finished run.

    Attributes:
        folder: where it lies; ``name`` is for people.
        task: built from what ``results.json`` says.
        results, record, settings: ``results.json``, ``run.json``, and ``config.yaml`` flattened to dotted names.
        provenance: what the encoder went through before this run, oldest first; empty from scratch.
        input_spec: intensity and axes that the encoder was fed.
        network: what rebuilds the encoder: ``arch``, ``arguments``, ``input_spec``; empty where it is not known.
        cell: what a grid wrote beside it (``cell.json``), e.g. ``source`` and ``search``; empty without one.
    """

    folder: Path
    task: Task
    results: dict[str, Any]
    record: dict[str, Any]
    settings: dict[str, Any]
    provenance: list[dict[str, Any]]
    input_spec: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    cell: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.results["facts"]

    @property
    def split(self) -> str:
        """Part that the figures are of: ``test`` or ``validation``."""
        return self.results["split"]

    @property
    def seed(self) -> int:
        return int(self.facts.get("seed", self.settings.get("seed", 0)))

    @property
    def fraction(self) -> float:
        """Share of the labeled training patients that was used."""
        return float(self.facts.get("fraction", 1.0))

    @property
    def mode(self) -> str:
        return str(self.facts.get("mode", ""))

    @property
    def view(self) -> str:
        """How a study reached the encoder, in words."""
        return str(self.facts.get("view", ""))

    @property
    def encoder(self) -> str:
        return str(self.facts.get("encoder", ""))

    @property
    def parameters(self) -> int | None:
        """Of the encoder; None where there is none."""
        return self.facts.get("parameters_encoder")

    @property
    def split_rule(self) -> str:
        """How patients were split; a grid gives its runs files, and says by what rule those were drawn."""
        return str(self.cell.get("split_rule") or self.results.get("rule") or "")

    @property
    def cheap(self) -> bool:
        """Whether this is a line that needs no encoder."""
        return bool(self.cell.get("cheap")) or self.mode == "cheap"

    @cached_property
    def source(self) -> str:
        """What the encoder went through, in words: ``scratch``, ``kinetics400 -> voco3d``; a grid may name it."""
        return str(self.cell.get("source") or source_words(self.provenance))

    @cached_property
    def pretraining(self) -> str:
        """Which trainings it went through: the same text for the same weights; empty from scratch."""
        return "/".join(training_id(entry) for entry in self.provenance)

    @property
    def marks(self) -> list[str]:
        return list(self.results.get("marks", []))

    @property
    def synthetic(self) -> bool:
        return any(mark.startswith(SYNTHETIC) for mark in self.marks)

    @cached_property
    def trainings(self) -> list[Training]:
        """What the encoder went through, oldest first, with the verdicts of those whose run folders are there."""
        return trainings(self.provenance, self.settings.get("encoder.weights"))

    @property
    def synthetic_pretraining(self) -> list[str]:
        """Trainings of the encoder whose data were synthetic, in words; the patients of this run may be real."""
        return [entry_words(entry) for entry in self.provenance if entry.get("synthetic")]

    @property
    def trained(self) -> bool | None:
        """Whether it is surely better than a constant predictor on validation; None where that was not judged."""
        return self.results["verdict"]["trained"]

    @property
    def verdict_rule(self) -> str:
        """Name and version of the rule behind ``trained``; empty where the run is older than such names."""
        rule = self.results["verdict"].get("rule") or ""
        return " ".join(map(str, rule.values())) if isinstance(rule, Mapping) else str(rule)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Rows of ``predictions.csv``."""
        from voco.transfer.prediction_files import read_predictions

        return read_predictions(self.folder)

    @cached_property
    def units(self) -> pd.DataFrame:
        """Units of the scored part, fold by fold: what every figure is computed from."""
        return self.units_of(self.split)

    def units_of(self, split: str) -> pd.DataFrame:
        """Units of one part; no rows where the run did not score it."""
        import pandas as pd

        rows = self.predictions[self.predictions["split"] == split]
        parts = [self.task.to_units(own) for _, own in rows.groupby("fold")]
        return pd.concat(parts, ignore_index=True) if parts else rows

    @cached_property
    def digest(self) -> str:
        """Of the predictions, the part and the metric: equal digests give equal figures."""
        head = json.dumps([self.split, *metric_of(self), self.results["options"]], sort_keys=True).encode()
        return hashlib.sha256(head + (self.folder / PREDICTIONS).read_bytes()).hexdigest()[:24]

    @cached_property
    def test_key(self) -> str:
        """Which patients, labels and metric the figures are of; figures with different keys must not be compared."""
        columns = ["fold", "unit", "patient", *self.task.label_columns]
        rows = self.units[columns].astype(str).sort_values(["fold", "unit"])
        text = json.dumps([self.split, *metric_of(self)]) + rows.to_csv(index=False)
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    @cached_property
    def split_digest(self) -> str:
        """Of ``splits.csv``: who was trained on with which budget; empty where it is missing."""
        path = self.folder / "splits.csv"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""

    @cached_property
    def shared_settings(self) -> dict[str, Any]:
        """What must be equal for a difference to be one of sources: settings as resolved, without places and search."""
        kept = {
            name: value
            for name, value in self.settings.items()
            if name not in (*_PLACES, *SEARCHED) and not name.startswith(_PLACES_UNDER)
            if name not in _LATER or value != _LATER[name]
        }
        resolved = {"encoder": self.encoder, "view (resolved)": self.view, "task version": self.task.version}
        return kept | resolved | {f"input {name} (resolved)": value for name, value in self.input_spec.items()}

    @cached_property
    def leaks(self) -> str:
        """How many of the scored cases have which verdict of the leak guard, worst first."""
        import pandas as pd

        from voco.transfer.leaks import FILE, summary

        path = self.folder / FILE
        if not path.is_file():
            return "no encoder that could have seen them" if self.cheap else "not known (leaks.csv is missing)"
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        own = set(self.predictions.loc[self.predictions["split"] == self.split, "case"])
        return summary(rows[rows["case"].isin(own)])

    @cached_property
    def looks(self) -> int | None:
        """How often this test set was opened; None where validation was scored, or nobody counted.

        Never less than the run itself counted, and what the ledger beside the split says by now.
        """
        if self.split != "test":
            return None
        from voco.transfer.ledger import looks, test_set_hash

        counted = self.results.get("looks_at_test")
        file = Path(self.facts.get("split_file") or self.folder / "splits.csv")
        rows = self.predictions[self.predictions["split"] == "test"]
        now = max(looks(file, test_set_hash(own["case"])) for _, own in rows.groupby("fold"))
        return max(counted or 0, now) or None

    @cached_property
    def first_look(self) -> str:
        """ISO time of the oldest entry of the ledger about this test set; empty where nobody looked."""
        from voco.transfer.ledger import ledger_path, test_set_hash

        path = ledger_path(Path(self.facts.get("split_file") or self.folder / "splits.csv"))
        if self.split != "test" or not path.is_file():
            return ""
        rows = self.predictions[self.predictions["split"] == "test"]
        own = {test_set_hash(part["case"]) for _, part in rows.groupby("fold")} | {""}
        lines = [read_entry(line) for line in path.read_text().splitlines()]
        return min((e["time"] for e in lines if e.get("time") and e.get("test_set", "") in own), default="")

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What it took: parameters, samples seen, hours, peak memory, device; ``pretraining`` apart; None = unknown."""
        training = [fold.get("cost") or {} for fold in (self.facts.get("training") or {}).values()]
        sessions = self.record.get("sessions") or [{}]
        device = sessions[-1].get("gpu") or sessions[-1].get("device")
        measured = [one["seconds_training"] for one in training if one.get("seconds_training") is not None]
        wall = self.record.get("wall_seconds")
        seconds = sum(measured) if measured else wall
        peaks = [one["peak_memory_bytes"] for one in training if one.get("peak_memory_bytes")]
        seen = [one["samples_seen"] for one in training if one.get("samples_seen") is not None]
        return {
            "parameters": self.parameters,
            "samples_seen": sum(seen) if seen else None,
            "hours": None if seconds is None else seconds / 3600,
            "hours_of": "training" if measured else "whole run",
            "peak_memory_bytes": max(peaks) if peaks else None,
            "flops": training_flops(self.facts, self.settings, self.network),
            "device": device,
            "pretraining": pretraining_cost(self.provenance),
        }

    @property
    def commit(self) -> str | None:
        sessions = self.record.get("sessions") or [{}]
        return sessions[-1].get("git_commit")

    def stored_value_differs(self) -> bool:
        """Whether the main metric of the predictions is not what ``results.json`` says."""
        stored = self.results["main"]["value"]
        values = [self.task.main_value(own) for _, own in self.units.groupby("fold")]
        fine = [value for value in values if value == value]
        if stored is None or not fine:
            return (stored is None) != (not fine)
        return abs(sum(fine) / len(fine) - stored) > 1e-9


def metric_of(run: Run) -> list[Any]:
    """What the main metric of a run is: task, version, name, direction, outputs."""
    task = run.task
    outputs = [[o.name, o.kind, list(o.classes)] for o in task.outputs]
    return [task.name, task.version, task.main_metric, task.higher_is_better, outputs]


def read_run(folder: str | Path) -> Run:
    """Read one finished run.

    Args:
        folder: as ``finetune/run.py`` left it.

    Raises:
        InputError: a folder that is no run, one that has not finished, or whose results are of another version of the
            task than this code computes.
    """
    from voco.transfer.results import read_results

    folder = Path(folder)
    lost = [name for name in ("run.json", "config.yaml") if not (folder / name).is_file()]
    if lost:
        raise InputError(
            f"{folder} is no run folder: {' and '.join(lost)} missing; expected what finetune/run.py left there"
        )
    record = read_json(folder / "run.json")
    if record.get("state") != "finished":
        raise InputError(
            f"{folder} has not finished (state {record.get('state')!r}); run its command again, it goes on where it "
            "stopped"
        )
    results = read_results(folder)
    if results["task"] not in TASKS:
        plugins.check(folder, record.get("plugins"))
    if not (folder / PREDICTIONS).is_file():
        raise InputError(f"{folder} has no {PREDICTIONS}, which every figure is computed from; run its command again")
    history, spec, network = read_history(folder, results)
    cell = read_json(folder / CELL) if (folder / CELL).is_file() else {}
    task = rebuild_task(results, f"the results of {folder}")
    return Run(folder, task, results, record, read_settings(folder), history, spec, network, cell)


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Run folders among what was given: each itself, or those directly in it.

    Returns:
        The folders, and (path, reason) of what holds none.

    Raises:
        InputError: a path that does not exist.
    """
    found: dict[Path, None] = {}
    without = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"{path} is no folder; give run folders of finetune/run.py, or a folder that holds them")
        inside = [path] if _is_run(path) else sorted(child for child in path.iterdir() if _is_run(child))
        found |= dict.fromkeys(inside)
        if not inside:
            without.append((path, "neither a run folder nor a folder of runs (no run.json with config.yaml)"))
    return list(found), without


def why_not_comparable(a: Run, b: Run) -> str:
    """Why figures of two runs must not be subtracted from each other; empty where they may."""
    if a.test_key == b.test_key:
        return ""
    if a.task.name != b.task.name:
        return f"other tasks ({a.task.name}, {b.task.name})"
    if metric_of(a) != metric_of(b):
        return f"other metric, version or outputs ({_metric_words(a)}; {_metric_words(b)})"
    if a.split != b.split:
        return f"figures of other parts ({a.split}, {b.split})"
    mine, other = (set(zip(run.units["fold"], run.units["unit"])) for run in (a, b))
    if mine != other:
        return f"other {a.split} {plural(a.task.noun)} ({len(mine)} and {len(other)}, {len(mine & other)} in common)"
    return f"the same {a.split} {plural(a.task.noun)} have other labels"


def setting_differences(a: Run, b: Run) -> list[str]:
    """Settings in which two runs differ besides source, seed and what is searched, as ``name: x / y``."""
    mine, other = a.shared_settings, b.shared_settings
    names = sorted({*mine, *other})
    found = [f"{name}: {mine.get(name)} / {other.get(name)}" for name in names if mine.get(name) != other.get(name)]
    if a.seed == b.seed and a.fraction == b.fraction and a.split_digest != b.split_digest:
        found.append("training or validation patients (splits.csv)")
    return found


def _metric_words(run: Run) -> str:
    return f"{run.task.main_metric} of {run.task.name} v{run.task.version}"


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() and (path / "config.yaml").is_file()


def plural(unit: str) -> str:
    """Several of what a task scores: scans, studies, patients."""
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
