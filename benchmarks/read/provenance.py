"""What an encoder went through before a run, in words: its source, what that cost, and whether it learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

SCRATCH = "scratch"
ARROW = " -> "
_SUPERVISED = "finetune "
# How sentences of a verdict begin that speak against a training.
_AGAINST = ("not learned", "nothing learned", "collapsed", "broken")
# Learning scores of a pretraining run, in the order of the table, and what they are called.
HEALTH_SCORES = {
    "encoder_place_accuracy_balanced": "place accuracy of the features",
    "features_top1_balanced": "clip accuracy of the features",
    "position_accuracy_balanced": "position accuracy (balanced)",
    "disjoint_accuracy_balanced": "disjoint accuracy (balanced)",
    "intra": "held-out intra loss ↓",
    "mean_cosine": "mean cosine",
    "top1_balanced": "clip accuracy (balanced)",
}


def source_words(provenance: Sequence[Mapping[str, Any]]) -> str:
    """The trainings of an encoder as a chain: ``scratch``, ``kinetics400``, ``kinetics400 -> voco3d``."""
    return ARROW.join(map(entry_words, provenance)) or SCRATCH


def entry_words(entry: Mapping[str, Any]) -> str:
    """One training in a word or two: its method, the tag of published weights, or the file it came from."""
    if method := entry.get("method"):
        method = str(method)
        return f"supervised {method.removeprefix(_SUPERVISED)}" if method.startswith(_SUPERVISED) else method
    source = str(entry.get("source") or "unknown")
    if source == "file":
        return f"file {entry.get('file', 'unknown')}"
    names = [str(name) for name in entry.get("data", ())] if not isinstance(entry.get("data"), str) else []
    if names and all(name.startswith("ImageNet") for name in names):
        return names[-1].lower().replace("-", "")
    return source.partition(".")[2] or source


def training_id(entry: Mapping[str, Any]) -> str:
    """The same text for the same training: the name of published weights, or a digest of what a run noted."""
    if "method" not in entry:
        return str(entry.get("source") or entry.get("file") or "unknown")
    text = json.dumps(dict(entry), sort_keys=True, default=str)
    return f"{entry_words(entry)} {hashlib.sha256(text.encode()).hexdigest()[:10]}"


def pretraining_cost(provenance: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all trainings before a run took together.

    Returns:
        ``hours``, ``flops`` and ``volumes_seen``, each None where any training did not say and 0 from scratch only;
        operations that were counted by an older rule are not said;
        ``words``: how to print the hours. The cost of published weights is ``published`` or ``unknown``, never 0.
    """
    costs = [entry.get("cost") or {} for entry in provenance]
    seen = [cost.get("volumes_seen", cost.get("samples_seen")) for cost in costs]
    flops = [_product(flops_per_volume(cost), count) for cost, count in zip(costs, seen)]
    hours = _sum([_product(cost.get("seconds_training"), 1 / 3600) for cost in costs])
    unknown = [entry for entry, cost in zip(provenance, costs) if cost.get("seconds_training") is None]
    if not provenance:
        words = "none"
    elif not unknown:
        words = ""
    else:
        kinds = ["unknown" if "method" in entry or entry.get("source") == "file" else "published" for entry in unknown]
        words = "published (unknown)" if set(kinds) == {"published"} else "unknown"
    return {"hours": hours, "flops": _sum(flops), "volumes_seen": _sum(seen), "words": words}


def flops_per_volume(cost: Mapping[str, Any]) -> int | None:
    """The operations that a pretraining run counted; None where it did not, or by another rule than that of today."""
    from voco.engine.cost import FLOPS_RULE

    return cost.get("flops_per_volume") if cost.get("flops_rule", 1) == FLOPS_RULE else None


@dataclass(frozen=True)
class Training:
    """One pretraining run or published file that rows of the report start from.

    Attributes:
        words: what it is; ``chain`` what stood before it.
        results: learning scores by name, as the run noted them.
        verdict: sentences of its last evaluation, where its run folder is still there.
        synthetic: whether its data were.
    """

    id: str
    words: str
    chain: str
    data: str
    cases: int | None
    steps: int | None
    volumes_seen: int | None
    hours: float | None
    published: bool
    results: Mapping[str, float] = field(default_factory=dict)
    verdict: Sequence[str] = ()
    synthetic: bool = False

    @property
    def doubt(self) -> str:
        """What its own report on held-out data has against it; empty where nothing, or where there is no report."""
        if not any(sentence.startswith(_AGAINST) for sentence in self.verdict):
            unknown = any(sentence.startswith("cannot be judged") for sentence in self.verdict)
            return "could not be judged" if unknown else ""
        in_part = any(sentence.startswith("learned") for sentence in self.verdict)
        return "learned not all that was measured" if in_part else "did not learn"


def trainings(provenance: Sequence[Mapping[str, Any]], weights: str | None = None) -> list[Training]:
    """The trainings of one encoder.

    Args:
        provenance: its history, oldest first.
        weights: where it was loaded from; verdicts are read from the run folders there and before it.
    """
    found, verdicts = [], _verdicts(provenance, weights)
    for place, entry in enumerate(provenance):
        cost = entry.get("cost") or {}
        data = entry.get("data") or entry.get("dataset") or ""
        found.append(
            Training(
                id="/".join(map(training_id, provenance[: place + 1])),
                words=entry_words(entry),
                chain=source_words(provenance[:place]),
                data=", ".join(map(str, data)) if isinstance(data, list | tuple) else str(data),
                cases=entry.get("cases"),
                steps=entry.get("steps"),
                volumes_seen=entry.get("volumes_seen", cost.get("volumes_seen", cost.get("samples_seen"))),
                hours=_product(cost.get("seconds_training"), 1 / 3600),
                published="method" not in entry and entry.get("source") != "file",
                results={k: float(v) for k, v in (entry.get("results") or {}).items() if isinstance(v, int | float)},
                verdict=verdicts[place],
                synthetic=bool(entry.get("synthetic")),
            )
        )
    return found


def _verdicts(provenance: Sequence[Mapping[str, Any]], weights: str | None) -> list[tuple[str, ...]]:
    """Of each training the sentences of its last evaluation: its own, or where it carries none, those in its folder."""
    found = [tuple(map(str, entry.get("verdict") or ())) for entry in provenance]
    for place in reversed(range(len(provenance))):
        if "method" not in provenance[place] or not weights:
            break
        found[place] = found[place] or _verdict(weights)
        weights = _started_from(weights)
    return found


@cache
def _started_from(weights: str) -> str | None:
    """Where the run that wrote an encoder (``encoder``, ``milestones/STEP/encoder``) had its own weights from."""
    from benchmarks.read.files import read_settings

    path = Path(weights).absolute()
    folders = (path, *list(path.parents)[:3])
    run = next((one for one in folders if (one / "config.yaml").is_file() and (one / "run.json").is_file()), None)
    return read_settings(run).get("encoder.weights") if run else None


def _verdict(weights: str | None) -> tuple[str, ...]:
    """Sentences of the last evaluation of a pretraining run, where its folder is still there."""
    if not weights:
        return ()
    path = Path(weights)
    for folder in (path, path.parent):
        for name in ("health.json", "video.json"):
            if (folder / name).is_file():
                try:
                    return tuple(map(str, json.loads((folder / name).read_text()).get("verdict", ())))
                except (ValueError, AttributeError):
                    return (f"{name} cannot be read",)
    return ()


def _product(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def _sum(values: Sequence[float | None]) -> float | None:
    return None if any(value is None for value in values) else float(sum(values))
