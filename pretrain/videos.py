"""Supervised training on labeled clips: the parts of a run that depend on videos."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from voco.config import flatten
from voco.errors import InputError

_CITATION = (
    "Ke et al.: Video Pretraining Advances 3D Deep Learning on Chest CT Tasks (arXiv 2304.00546); Zunair et al.: "
    "ViPTT-Net (arXiv 2105.12810)"
)


class VideoJob:
    """What ``pretrain/run.py`` needs to know of videos.

    Args:
        config: resolved settings.
    """

    def __init__(self, config: dict):
        self.config = config

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """(T, H, W) of a sample."""
        clip = self.config["method"].clip
        return (clip.frames, *clip.size)

    def find_unused(self, method) -> bool:
        """Whether parameters of the encoder may get no gradient."""
        return method.find_unused

    def check(self) -> None:
        """Settings that cannot work, before any work."""
        data = self.config["data"]
        if data.split is not None and data.split not in (1, 2, 3):
            raise InputError(f"--data.split is one of the official lists 1, 2 or 3, found {data.split}")

    def check_encoder(self, encoder) -> None:
        """Refuse clips that the encoder cannot take."""
        from voco.video_input import check_clip_size, clip_colour

        clip_colour(encoder)
        check_clip_size(encoder, self.clip_size)

    def build_method(self, encoder, cohort):
        """The method around an encoder, with a fresh head for the classes of the data."""
        import torch

        from voco.methods.video import VideoClassification
        from voco.rng import derive_seed

        torch.manual_seed(derive_seed(self.config["seed"], "heads"))
        return VideoClassification(encoder, cohort.classes, self.config["method"].options, self.clip_size)

    def prepare_data(self, spec, rank: int, world: int, say):
        """Clips that can be decoded, split by group."""
        from voco.data.clip_cohort import load_clips

        data = self.config["data"]
        return load_clips(
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

    def folds(self, cohort) -> list:
        """None: folds are for scans."""
        return []

    def as_fed(self, spec):
        """The encoder's input spec with the size of the clips; pixels of a video have no size in mm."""
        return replace(spec, spacing_mm=None, size=self.clip_size)

    def dataset(self, cohort, method):
        """Training clips by position."""
        return self._clips(cohort, cohort.train, method, train=True)

    def _clips(self, cohort, clips, method, train: bool):
        from voco.data.clips import ClipDataset

        return ClipDataset(
            cohort.root,
            clips,
            cohort.classes,
            settings=self.config["method"].clip,
            colour=method.colour,
            draws=method.sampler if train else None,
            seed=self.config["seed"],
            train=train,
            keep_bytes=int(self.config["data"].keep_mb * 1e6),
        )

    def start_monitor(self, cohort, method, build_untrained, accelerator, goes_on: bool):
        """The report on held-out clips, its lines measured (once a run); None without held-out clips.

        Args:
            method: as it is before the first step.
            build_untrained: makes the method with fresh weights of a given number.
            goes_on: the lines may be taken from an earlier session of this run.
        """
        from voco.health.video.monitor import VideoMonitor

        if not cohort.heldout:
            return None
        data = self.config["data"]
        monitor = VideoMonitor(
            Path(self.config["out"]),
            heldout=self._clips(cohort, cohort.heldout, method, train=False),
            train=self.dataset(cohort, method),
            names=[clip.id for clip in cohort.heldout],
            groups=[clip.group for clip in cohort.heldout],
            classes=cohort.classes,
            warmup=self.config["train"].warmup,
            workers=data.workers,
            timeout=data.timeout,
        )
        monitor.measure_lines(method, build_untrained, accelerator.device, reuse=goes_on)
        return monitor

    def start_probe(self, cohort, say):
        """None: probes are for scans."""
        return None

    def fingerprints(self, cohort):
        """None: clips are nobody's scans."""
        return None

    def provenance(self, cohort, monitor=None) -> dict:
        """What the model card and later trainings should know, without what every method has."""
        learned = monitor.provenance() if monitor is not None and monitor.latest is not None else {}
        return {
            "data": "labeled clips of the user",
            "cases": cohort.counts["train_clips"],
            "classes": list(cohort.classes),
            "settings": flatten(asdict(self.config["method"])),
            **learned,
            "citation": _CITATION,
        }

    def disk(self, cohort) -> str:
        """What prepared data take, for ``--plan``."""
        return "0 GB of prepared data: clips are decoded as they come"

    def size_note(self, encoder, cohort) -> str:
        """Empty: no study of sizes is known for clips."""
        return ""

    def fallen(self, rows) -> list[str]:
        """Scores that were higher earlier in this run."""
        from voco.health.video.verdict import fallen

        return fallen(rows)

    def notes(self, world: int, cohort) -> list[str]:
        """What a user may not expect of settings that are not wrong."""
        from voco.health.inference import LEAST_CLUSTERS

        groups = cohort.counts["heldout_groups"]
        if groups == 0:
            return ["no held-out clips (--data.heldout, or official lists): nothing will tell whether the run learns"]
        if groups < LEAST_CLUSTERS:
            many = "1 held-out group is" if groups == 1 else f"{groups} held-out groups are"
            return [
                f"{many} too few to say whether the run learns, at least {LEAST_CLUSTERS} are needed: raise "
                "--data.heldout, or name smaller groups (--data.group_regex, or a column group)"
            ]
        return []
