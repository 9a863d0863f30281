"""The held-out report of a video run: lines measured once, answers at intervals, words and pictures at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from voco.files import write_json
from voco.health.judgement import Judgement, for_card, in_numbers
from voco.health.monitor import NETWORKS
from voco.health.video.batches import ClipBatches
from voco.health.video.evaluate import evaluate_clips, nearest_centroid, network_lines
from voco.health.video.report import HEADLINE, ClipLine, VideoReport, line_of, mean_of
from voco.health.video.verdict import LINES, RULE, constant_lines, judge, verdict
from voco.video_input import LUMA

_LINES_FILE = "video_lines.json"
_KEPT_BYTES = 1 << 30
_THUMBNAIL = 16
_SHOWN_CLIPS = 6
# Training samples that the class means are taken of: enough for a mean, few enough to be kept and asked each time.
_SAMPLES, _SAMPLES_OF_CLASS = 400, 20


class VideoMonitor:
    """Asks one method for the classes of held-out clips and keeps what is needed to judge it.

    Args:
        out: run folder; the latest answers and verdict go to ``video.json``, lines to ``video_lines.json``.
        heldout: samples of the held-out clips, ``heldout[i] -> {"frames", "label", ...}`` and ``len(heldout)``, the
            same each time. One that cannot be read raises, or says so in ``replaced``. With several views per clip
            those of one clip follow each other: clip ``i // views``.
        train: training samples by position, ``train[p]`` as above, of which class means are taken; at most 400, and 20
            times the number of classes.
        names, groups: of the held-out clips, in order.
        classes: names, in the order of the labels.
        classifier: the method has one, which is judged too; else the nearest class mean of its features answers.
        warmup: steps after which the loss is judged.
        batch_clips: samples per forward pass.
        workers, timeout: processes that decode, and seconds after which a silent one is an error.
        keep_bytes: decoded held-out clips and training samples are kept in memory when they need no more, and decoded
            each time otherwise.
    """

    def __init__(
        self,
        out: Path,
        *,
        heldout: Dataset,
        train: Dataset,
        names: Sequence[str],
        groups: Sequence[str],
        classes: Sequence[str],
        warmup: int,
        classifier: bool = True,
        batch_clips: int = 8,
        workers: int = 0,
        timeout: float = 600.0,
        keep_bytes: int = _KEPT_BYTES,
    ):
        self.out, self.names, self.groups = Path(out), list(names), list(groups)
        self.classes, self.warmup, self.classifier = tuple(classes), warmup, classifier
        samples = range(min(_SAMPLES, _SAMPLES_OF_CLASS * len(self.classes)))
        settings = {"batch_clips": batch_clips, "workers": workers, "timeout": timeout}
        self.train = ClipBatches(train, samples, **settings, room=lambda: keep_bytes - self.heldout.kept_bytes)
        self.heldout = ClipBatches(
            heldout,
            range(len(heldout)),
            views=max(1, len(heldout) // max(1, len(self.names))),
            **settings,
            room=lambda: keep_bytes - self.train.kept_bytes,
        )
        self.lines: dict[str, ClipLine] = {}
        self.latest: VideoReport | None = None
        self.verdict: list[str] = []

    def measure_lines(
        self, method: torch.nn.Module, build_untrained: Callable[[int], torch.nn.Module], device, *, reuse: bool
    ) -> None:
        """Score what this run has not learned: where it starts, networks with random weights, a single frame.

        All of them are read by the nearest class mean, as the trained network is. The single frame is the middle one,
        16x16 pixels in gray. Random state is left as it was.

        Args:
            method: as it is before the first step.
            build_untrained: makes the method with fresh weights of a given number.
            reuse: take what an earlier session of this very run measured, with the same settings and clips.
        """
        path = self.out / _LINES_FILE
        if reuse and path.is_file():
            saved = json.loads(path.read_text())
            if set(LINES) <= set(saved):  # version 0.1 knew no step 0
                self.lines = {name: ClipLine.from_dict(line) for name, line in saved.items()}
                return
        from voco.data.progress import Progress

        device = torch.device(device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            networks = [method, *(build_untrained(number).to(device) for number in range(NETWORKS))]
        bar = Progress("lines that need no learning", 2 * len(self.train) + len(self.heldout), unit="batches")
        train, heldout = (_Counted(batches, bar) for batches in (self.train, self.heldout))
        found = network_lines(networks, heldout, self.groups, train=train, device=device)
        bar.close()
        single = self._single_frame()
        if found and single is not None:
            step0, *untrained = found
            untrained = mean_of(untrained, "untrained")
            self.lines = {"step0": replace(step0, name="step0"), "untrained": untrained, "single_frame": single}
            write_json(path, {name: line.to_dict() for name, line in self.lines.items()}, default=float)

    def _single_frame(self) -> ClipLine | None:
        known = [(_thumbnails(batch["frames"]), batch["label"].numpy()) for batch in self.train]
        asked = [(_thumbnails(b["frames"]), b["case"].numpy(), b["label"].numpy()) for b in self.heldout]
        if not known or not asked:
            return None
        seen, labels = (np.concatenate(part) for part in zip(*known))
        pictures, case, label = (np.concatenate(part) for part in zip(*asked))
        nearest = nearest_centroid(seen, labels, pictures, len(self.classes))
        return line_of(case, label, nearest, classes=self.classes, groups=self.groups, name="single_frame")

    def report(
        self, method: torch.nn.Module, step: int, device, autocast_dtype=None, earlier: Sequence[Mapping] = ()
    ) -> dict[str, float]:
        """Score ``method`` now; returns flat metrics and writes ``video.json``.

        Args:
            earlier: rows of metrics.jsonl so far, for what was better before.

        Raises:
            InputError: no held-out clip can be read.
        """
        unreadable: dict[str, str] = {}
        self.latest = evaluate_clips(
            method,
            self._named(unreadable),
            self.groups,
            train=self.train,
            device=device,
            autocast_dtype=autocast_dtype,
            unreadable=unreadable,
        )
        lines = self._comparable()
        self.verdict = verdict(
            self.latest, lines, step=step, warmup_steps=self.warmup, earlier=earlier, classifier=self.classifier
        )
        record = {
            "step": step,
            "verdict": self.verdict,
            "rule": RULE,
            "judged": in_numbers(self._judgements()),
            "lines": self.constants(),
            "report": self.latest.to_dict(),
            "clips": [self.names[c] for c in self.latest.case],
        }
        write_json(self.out / "video.json", record, default=float)
        return self.latest.metrics("heldout")

    def _named(self, unreadable: dict[str, str]):
        """Held-out batches; afterwards ``unreadable`` holds the names of the clips that are not in them."""
        yield from self.heldout
        unreadable |= {self.names[clip]: why for clip, why in self.heldout.unreadable.items()}

    def _judgements(self) -> list[Judgement]:
        found = judge(self.latest, self._comparable())
        return [] if found is None else [found]

    def provenance(self) -> dict:
        """What travels with the weights: scores, the lines that they stand beside, and the verdict in words."""
        results = {name: self.latest.score(name) for name in (HEADLINE, *self.latest.score_names)}
        known = {name: value for name, value in results.items() if value is not None}
        return for_card(self._judgements(), known, self.verdict)

    def card(self, scores: Sequence[str]) -> dict:
        """``provenance``: all scores of clips travel with the weights."""
        return self.provenance()

    def constants(self) -> dict[str, float]:
        """The lines, for trackers that draw them beside the curves."""
        known = self.latest or next(iter(self.lines.values()), None)
        if known is None:
            return {}
        found = {f"lines/constant_{name}": value for name, value in constant_lines(known).items()}
        for name, line in self._comparable().items():
            found |= {f"lines/{name}_{score}": line.score(score) for score in line.score_names}
        return found

    def warnings(self) -> list[str]:
        """Sentences of the verdict that a person should not learn of only at the end."""
        return [s for s in self.verdict if s.startswith(("nothing learned", "collapsed", "broken", "note: fell"))]

    def draw(
        self, method: torch.nn.Module, rows: Sequence[Mapping], draws: dict, device, autocast_dtype=None
    ) -> list[Path]:
        """Write every picture of ``figures/``: curves, confusion, and the first clips with their answers.

        Args:
            method, draws, device, autocast_dtype: not needed here; as for the monitor of CT methods.
            rows: of ``metrics.jsonl``.
        """
        from voco.figures import save_all
        from voco.figures.confusion import confusion
        from voco.figures.video import accuracy_curves, clip_strips

        found = judge(self.latest, self._comparable()) if self.latest is not None else None
        drawn = {"accuracy": accuracy_curves(rows, self.constants(), limit=found and found.limit)}
        if self.latest is not None:
            drawn["confusion"] = confusion(self.latest.confusion(), self.classes)
            if clips := self._examples():
                drawn["clips"] = clip_strips(clips)
        return save_all(drawn, self.out / "figures")

    def _comparable(self) -> dict[str, ClipLine]:
        """Lines on the clips of the latest report; a file that vanished since leaves the line without its pair."""
        if self.latest is None:
            return self.lines
        return {k: line for k, line in self.lines.items() if np.array_equal(line.case, self.latest.case)}

    def _examples(self) -> list[tuple[np.ndarray, str, str]]:
        """The first clip of each of the first classes that have one: frames, true class, answer."""
        found = []
        for label in np.unique(self.latest.label)[:_SHOWN_CLIPS]:
            at = int(np.flatnonzero(self.latest.label == label)[0])
            first = int(self.latest.case[at]) * self.heldout.views
            [(_, sample)] = self.heldout.read([first], workers=0)
            if isinstance(sample, dict):
                answer = int(self.latest.predicted[at])
                words = self.classes[answer] if answer >= 0 else "not finite"
                found.append((sample["frames"].numpy(), self.classes[label], words))
        return found


class _Counted:
    """Batches that move a progress bar."""

    def __init__(self, batches: ClipBatches, bar):
        self.batches, self.bar = batches, bar

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.batches:
            yield batch
            self.bar.step()


def _thumbnails(frames: torch.Tensor) -> np.ndarray:
    """(B, 256) gray levels of the middle frame, 16x16."""
    middle = frames[:, frames.shape[1] // 2].float() / 255
    gray = middle[..., 0] if middle.shape[-1] == 1 else middle @ torch.tensor(LUMA)
    return F.adaptive_avg_pool2d(gray.unsqueeze(1), _THUMBNAIL).flatten(1).double().numpy()
