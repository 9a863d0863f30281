"""A report beside the lines that need no learning, and all that follows from the two: verdict, files, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from voco.files import write_json
from voco.health.judgement import for_card, in_numbers
from voco.health.report import HEADLINE, PARTS, POSITION_SCORES, HealthReport, better_of, mean_of
from voco.health.verdict import RULE, judgements, nameless, verdict

REPORT_FILE, LINES_FILE = "health.json", "health_lines.json"


class Judged:
    """What is known of how well a run learns.

    Args:
        out: run folder; the latest report and verdict go to ``health.json``.
        references: fields of ``voco.reference.reference_lines``.
        warmup: steps after which the loss is judged.
    """

    def __init__(self, out: Path, references: Mapping[str, float], warmup: int):
        self.out, self.references, self.warmup = Path(out), dict(references), warmup
        self.lines: dict[str, HealthReport] = {}
        self.latest: HealthReport | None = None
        self.verdict: list[str] = []

    def judge(self, step: int, earlier: Sequence[Mapping] = ()) -> None:
        """Put the latest report beside the lines, in words.

        Args:
            earlier: rows of metrics.jsonl so far, for what was better before.
        """
        self.verdict = verdict(
            self.latest, self.references, step=step, warmup_steps=self.warmup, lines=self.lines, earlier=earlier
        )

    def write(self, step: int, **facts) -> None:
        """Leave report and verdict in ``health.json``."""
        record = {
            "step": step,
            **facts,
            "verdict": self.verdict,
            "rule": RULE,
            "judged": self.judged(),
            "references": self.references,
            "report": self.latest.to_dict(),
        }
        write_json(self.out / REPORT_FILE, record, default=float)

    def write_lines(self) -> None:
        """Leave the lines in ``health_lines.json``."""
        write_json(self.out / LINES_FILE, {name: line.to_dict() for name, line in self.lines.items()}, default=float)

    def judged(self) -> list[dict]:
        """What the verdict rests on, in numbers: value, lines, differences and limit of each score that decides."""
        return in_numbers(judgements(self.latest, self.lines, self.references))

    def provenance(self, results: dict[str, float]) -> dict:
        """What travels with the weights: scores, the lines that they stand beside, and the verdict in words."""
        found = judgements(self.latest, self.lines, self.references)
        return for_card(found, results, nameless(self.verdict, self.latest))

    def card(self, scores: Sequence[str]) -> dict:
        """``provenance`` with the scores that judge a run and those of its method, as far as they were measured."""
        results = {name: self.latest.score(name) for name in (HEADLINE, *PARTS, *scores)}
        return self.provenance({name: value for name, value in results.items() if value is not None})

    def constants(self) -> dict[str, float]:
        """Reference losses and the lines, for trackers that draw them beside the curves."""
        found = {f"lines/{name}": float(value) for name, value in self.references.items()}
        for name, line in self.lines.items():
            for score in (HEADLINE, *PARTS, *(f"{s}{suffix}" for s in POSITION_SCORES for suffix in ("", "_balanced"))):
                if line.score(score) is not None:
                    found[f"lines/{name}_{score}"] = line.score(score)
        return found


def lines_of(states: Mapping[str, Sequence[HealthReport]]) -> dict[str, HealthReport]:
    """The lines from what was measured for them.

    Args:
        states: ``step0``, ``untrained 0``, ``untrained 1`` …, ``histogram``, each in the states of its BatchNorm
            statistics, on the same windows.
    """
    networks = [better_of(found, name) for name, found in states.items() if name.startswith("untrained ")]
    return {
        "step0": better_of(states["step0"], "step0"),
        "untrained": mean_of(networks, "untrained"),
        "histogram": states["histogram"][0],
    }
