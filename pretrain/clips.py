"""Labeled clips for pretraining: decoding, groups that are held out, samples, notes. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from voco.errors import InputError


class Clips:
    """What ``pretrain/run.py`` needs to know of clips.

    Args:
        config: resolved settings.
        sample: frames and pixels of a training sample (``voco.data.clip_frames.ClipSettings``).
        cohort: clips that can be decoded; None before ``prepare``.
    """

    takes_folds = False
    takes_probe = False

    def __init__(self, config: dict, sample, cohort=None):
        self.config, self.sample, self.cohort = config, sample, cohort

    @staticmethod
    def check(config: dict) -> None:
        """Settings that cannot work, before any work."""
        data = config["data"]
        if data.split is not None and data.split not in (1, 2, 3):
            raise InputError(f"--data.split is one of the official lists 1, 2 or 3, found {data.split}")

    def prepare(self, spec, rank: int, world: int, say) -> Clips:
        """The same with clips that can be decoded, split by group."""
        from voco.data.clip_cohort import load_clips

        data = self.config["data"]
        cohort = load_clips(
            data.root,
            Path(data.cache) if data.cache else Path(self.config["out"]).parent / "cache",
            heldout=data.heldout,
            seed=self.config["seed"],
            workers=data.workers,
            split=data.split,
            label_regex=data.label_regex,
            group_regex=data.group_regex,
            classes=data.classes or None,
            min_frames=data.min_frames,
            rank=rank,
            world=world,
            say=say,
        )

        return Clips(self.config, self.sample, cohort)

    def folds(self, configs: Sequence[dict]) -> list:
        """None: folds are for scans."""
        return []

    def as_fed(self, spec):
        """The encoder's input spec with the size of the clips; pixels of a video have no size in mm."""
        return replace(spec, spacing_mm=None, size=(self.sample.frames, *self.sample.size))

    def dataset(self, method):
        """Training clips by position, with the draws of the method."""
        return self._clips(self.cohort.train, method, train=True)

    def _clips(self, clips, method, train: bool):
        from voco.data.clips import ClipDataset

        return ClipDataset(
            self.cohort.root,
            clips,
            self.cohort.classes,
            settings=self.sample,
            colour=method.colour,
            draws=method.sampler if train else None,
            seed=self.config["seed"],
            train=train,
            keep_bytes=int(self.config["data"].keep_mb * 1e6),
        )

    def heldout_settings(self, method) -> dict:
        """What a report on held-out clips is of: arguments of ``voco.health.video.monitor.VideoMonitor``."""
        data, heldout = self.config["data"], self.cohort.heldout
        return {
            "out": Path(self.config["out"]),
            "heldout": self._clips(heldout, method, train=False),
            "train": self.dataset(method),
            "names": [clip.id for clip in heldout],
            "groups": [clip.group for clip in heldout],
            "classes": self.cohort.classes,
            "warmup": self.config["train"].warmup,
            "workers": data.workers,
            "timeout": data.timeout,
        }

    def start_probe(self, geometry, say):
        """None: probes are for scans."""
        return None

    def fingerprints(self):
        """None: clips are nobody's scans."""
        return None

    def provenance(self) -> dict:
        """What the model card should know of the data."""
        return {
            "data": "labeled clips of the user",
            "cases": self.cohort.counts["train_clips"],
            "classes": list(self.cohort.classes),
        }

    @property
    def size(self) -> tuple[int, int]:
        """How many clips, and groups, train."""
        return self.cohort.counts["train_clips"], len({clip.group for clip in self.cohort.train})

    def disk(self) -> str:
        """What prepared data take, for ``--plan``."""
        return "0 GB of prepared data: clips are decoded as they come"

    def fallen(self, rows) -> list[str]:
        """Scores that were higher earlier in this run."""
        from voco.health.video.verdict import fallen

        return fallen(rows)

    def notes(self, of_method: Sequence[str] = ()) -> list[str]:
        """What a user may not expect of data that are not wrong, with what the method says of its settings."""
        return [*of_method, *self._about_heldout()]

    def _about_heldout(self) -> list[str]:
        """Who is held out, and whether that is enough to say anything."""
        from voco.health.inference import LEAST_CLUSTERS

        groups = self.cohort.counts["heldout_groups"]
        if groups == 0:
            return ["no held-out clips (--data.heldout, or official lists): nothing will tell whether the run learns"]
        if groups < LEAST_CLUSTERS:
            many = "1 held-out group is" if groups == 1 else f"{groups} held-out groups are"
            return [
                f"{many} too few to say whether the run learns, at least {LEAST_CLUSTERS} are needed: raise "
                "--data.heldout, or name smaller groups (--data.group_regex, or a column group)"
            ]
        return []
