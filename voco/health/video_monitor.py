"""The held-out report of a video run: lines measured once, answers at intervals, words and pictures at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from voco.errors import ScanError
from voco.health.video import VideoReport, constant_lines, evaluate_clips, nearest_centroid, report_of, verdict
from voco.video_input import LUMA

_LINES = "video_lines.json"
_KEPT_BYTES = 1 << 30
_THUMBNAIL = 16
_SHOWN_CLIPS = 6


class VideoMonitor:
    """Asks one method for the classes of held-out clips and keeps what is needed to judge it.

    Args:
        out: run folder; the latest answers and verdict go to ``video.json``, lines to ``video_lines.json``.
        heldout: samples of the held-out clips, ``heldout[i] -> {"frames", "label", ...}`` and ``len(heldout)``, the
            same each time. One that cannot be read raises, or says so in ``replaced``. With several views per clip
            those of one clip follow each other: clip ``i // views``.
        names, groups: of the held-out clips, in order.
        classes: names, in the order of the labels.
        seed: of the run.
        warmup: steps after which the loss is judged.
        batch_clips: samples per forward pass.
        workers, timeout: processes that decode, and seconds after which a silent one is an error.
        keep_bytes: decoded clips are kept in memory when all of them need no more, and decoded each time otherwise.
    """

    def __init__(
        self,
        out: Path,
        *,
        heldout: Dataset,
        names: Sequence[str],
        groups: Sequence[str],
        classes: Sequence[str],
        seed: int,
        warmup: int,
        batch_clips: int = 8,
        workers: int = 0,
        timeout: float = 600.0,
        keep_bytes: int = _KEPT_BYTES,
    ):
        self.out, self.heldout, self.names, self.groups = Path(out), heldout, list(names), list(groups)
        self.classes, self.seed, self.warmup = tuple(classes), seed, warmup
        self.batch_clips, self.workers, self.timeout, self.keep_bytes = batch_clips, workers, timeout, keep_bytes
        self.views = max(1, len(heldout) // max(1, len(self.names)))
        self.unreadable: dict[str, str] = {}
        self.lines: dict[str, VideoReport] = {}
        self.latest: VideoReport | None = None
        self.verdict: list[str] = []
        self._kept: list[dict[str, torch.Tensor]] | None = None

    def measure_lines(self, train: Dataset | None, *, reuse: bool, samples: int = 400) -> None:
        """Score what sees no motion: the middle frame, 16x16 pixels in gray, against the mean of each class.

        Args:
            train: training samples by position, ``train[p] -> {"frames", "label", ...}``; None measures nothing.
            reuse: take what an earlier session of this very run measured, with the same settings and clips.
            samples: training samples that the means are taken of, at most 20 times the number of classes.
        """
        path = self.out / _LINES
        if reuse and path.is_file():
            self.lines = {k: VideoReport.from_dict(v) for k, v in json.loads(path.read_text()).items()}
            return
        if train is None:
            return
        samples = self._read(train, range(min(samples, 20 * len(self.classes))))
        known = [(_thumbnails(s["frames"][None])[0], int(s["label"])) for _, s in samples if isinstance(s, dict)]
        asked = [(_thumbnails(b["frames"]), b["case"].numpy(), b["label"].numpy()) for b in self._batches()]
        if not known or not asked:
            return
        seen, labels = (np.stack(part) for part in zip(*known))
        pictures, case, label = (np.concatenate(part) for part in zip(*asked))
        self.lines = {
            "single_frame": report_of(
                case,
                label,
                nearest_centroid(seen, labels, pictures, len(self.classes)),
                classes=self.classes,
                groups=self.groups,
                name="single_frame",
                seed=self.seed,
                unreadable=self.unreadable,
            )
        }
        _write_json(path, {k: v.to_dict() for k, v in self.lines.items()})

    def report(
        self, method: torch.nn.Module, step: int, device, autocast_dtype=None, earlier: Sequence[Mapping] = ()
    ) -> dict[str, float]:
        """Score ``method`` now; returns flat metrics and writes ``video.json``.

        Raises:
            InputError: no held-out clip can be read.
        """
        self.latest = evaluate_clips(
            method,
            self._batches(),
            self.groups,
            device=device,
            autocast_dtype=autocast_dtype,
            seed=self.seed,
            unreadable=self.unreadable,
        )
        self.verdict = verdict(self.latest, self._comparable(), step=step, warmup_steps=self.warmup)
        record = {"step": step, "verdict": self.verdict, "lines": self.constants(), "report": self.latest.to_dict()}
        record["clips"] = [self.names[c] for c in self.latest.case]
        _write_json(self.out / "video.json", record)
        return self.latest.metrics("heldout")

    def constants(self) -> dict[str, float]:
        """The lines, for trackers that draw them beside the curves."""
        known = self.latest or next(iter(self.lines.values()), None)
        if known is None:
            return {}
        found = {f"lines/constant_{name}": value for name, value in constant_lines(known).items()}
        for line, report in self._comparable().items():
            found |= {f"lines/{line}_{name}": report.score(name) for name in report.score_names if name != "loss"}
        return found

    def warnings(self) -> list[str]:
        """Sentences of the verdict that a person should not learn of only at the end."""
        return [s for s in self.verdict if s.startswith(("nothing learned", "collapsed", "broken"))]

    def draw(
        self, method: torch.nn.Module, rows: Sequence[Mapping], draws: dict, device, autocast_dtype=None
    ) -> list[Path]:
        """Write every picture of ``figures/``: curves, confusion, and the first clips with their answers.

        Args:
            method, draws, device, autocast_dtype: not needed here; as for the monitor of CT methods.
            rows: of ``metrics.jsonl``.
        """
        from voco.figures.confusion import confusion
        from voco.figures.video import accuracy_curves, clip_strips

        folder = self.out / "figures"
        folder.mkdir(exist_ok=True)
        made = [accuracy_curves(rows, self.constants(), folder / "accuracy.png")]
        if self.latest is None:
            return made
        made.append(confusion(self.latest.confusion(), self.classes, folder / "confusion.png"))
        clips = self._examples()
        if clips:
            made.append(clip_strips(clips, folder / "clips.png"))
        return made

    def _comparable(self) -> dict[str, VideoReport]:
        """Lines on the clips of the latest report; a file that vanished since leaves the line without its pair."""
        if self.latest is None:
            return self.lines
        return {k: line for k, line in self.lines.items() if np.array_equal(line.case, self.latest.case)}

    def _examples(self) -> list[tuple[np.ndarray, str, str]]:
        """The first clip of each of the first classes that have one: frames, true class, answer."""
        found = []
        for label in np.unique(self.latest.label)[:_SHOWN_CLIPS]:
            at = int(np.flatnonzero(self.latest.label == label)[0])
            [(_, sample)] = self._read(self.heldout, [int(self.latest.case[at]) * self.views], workers=0)
            if isinstance(sample, dict):
                answer = int(self.latest.predicted[at])
                words = self.classes[answer] if answer >= 0 else "not finite"
                found.append((sample["frames"].numpy(), self.classes[label], words))
        return found

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Held-out samples, ``case`` being the number of the clip; keeps them where they fit into memory."""
        if self._kept is not None:
            yield from self._kept
            return
        self.unreadable.clear()
        kept, size = [], 0
        for batch in self._decoded():
            size += batch["frames"].numel()
            if size <= self.keep_bytes:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        self._kept = kept if size <= self.keep_bytes else None

    def _decoded(self) -> Iterator[dict[str, torch.Tensor]]:
        rows = []
        for index, sample in self._read(self.heldout, range(len(self.heldout))):
            if isinstance(sample, str):
                self.unreadable[self.names[index // self.views]] = sample
                continue
            rows.append({**sample, "case": torch.tensor(index // self.views)})
            if len(rows) == self.batch_clips:
                yield default_collate(rows)
                rows = []
        if rows:
            yield default_collate(rows)

    def _read(self, dataset: Dataset, indices: Sequence[int], workers: int | None = None) -> Iterator[tuple]:
        """(index, sample, or why it cannot be read) of some samples, in order."""
        from voco.data.dataset import batches_of, make_loader

        loader = make_loader(
            _Readable(dataset),
            [[index] for index in indices],
            workers=self.workers if workers is None else workers,
            timeout=self.timeout,
            pin=False,
        )
        with batches_of(loader) as rows:
            for index, sample in rows:
                found = {k: v[0] for k, v in sample.items()} if isinstance(sample, dict) else sample[0]
                yield int(index[0]), found


class _Readable(Dataset):
    """Samples of another data set with the reason in place of those that cannot be read: a report must not stop."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple:
        try:
            sample = self.dataset[index]
        except (ScanError, OSError, RuntimeError) as error:
            return index, str(error) or type(error).__name__
        if float(sample.get("replaced", 0)) > 0:  # training takes the next clip instead; its answer is another's
            return index, "cannot be decoded"
        return index, {"frames": sample["frames"], "label": torch.as_tensor(sample["label"])}


def _thumbnails(frames: torch.Tensor) -> np.ndarray:
    """(B, 256) gray levels of the middle frame, 16x16."""
    middle = frames[:, frames.shape[1] // 2].float() / 255
    gray = middle[..., 0] if middle.shape[-1] == 1 else middle @ torch.tensor(LUMA)
    return F.adaptive_avg_pool2d(gray.unsqueeze(1), _THUMBNAIL).flatten(1).double().numpy()


def _write_json(path: Path, values) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, default=float))
    part.replace(path)
