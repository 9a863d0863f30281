"""Unlabeled CT scans for pretraining: preparing, patients that are held out, samples, notes. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from voco.errors import InputError

if TYPE_CHECKING:
    from voco.data.fingerprint import Fingerprints

# Of the voxels of a resized scan that are interpolated; thick slices alone stay below.
_MUCH_ENLARGED = 0.8


class Scans:
    """What ``pretrain/run.py`` needs to know of scans.

    Args:
        config: resolved settings.
        sample: what of a scan a training sample is (``voco.methods.base.ScanSample``).
        cohort: prepared scans; None before ``prepare``.
    """

    takes_folds = True
    takes_probe = True

    def __init__(self, config: dict, sample, cohort=None):
        self.config, self.sample, self.cohort = config, sample, cohort

    @staticmethod
    def check(config: dict) -> None:
        """Settings that cannot work, before any work."""
        for name in ("scans", "windows", "queries"):
            if getattr(config["eval"], name) < 1:
                raise InputError(f"--eval.{name} must be at least 1, found {getattr(config['eval'], name)}")

    def prepare(self, spec, rank: int, world: int, say) -> Scans:
        """The same with prepared scans, split by patient."""
        from voco.data.cohort import load_cohort
        from voco.data.prepare import PrepareSettings

        data = self.config["data"]
        cohort = load_cohort(
            data.root,
            Path(data.cache) if data.cache else Path(self.config["out"]).parent / "cache",
            PrepareSettings(self._spacing(spec), data.crop_body, offset=data.offset),
            select=data.select,
            exclude=data.exclude,
            patient_regex=data.patient_regex,
            heldout=0.0 if self.config["eval"].cross else data.heldout,  # folds hold out in its place
            seed=self.config["seed"],
            workers=data.workers,
            allow_seen=data.allow_seen,
            rank=rank,
            world=world,
            say=say,
        )
        return Scans(self.config, self.sample, cohort)

    def folds(self, configs: Sequence[dict]) -> list[Scans]:
        """The scans once for each fold, with its patients held out.

        Args:
            configs: settings of each fold; empty where no folds are asked for.
        """
        cohorts = self.cohort.folds(len(configs), self.config["seed"]) if configs else []
        return [Scans(config, self.sample, cohort) for config, cohort in zip(configs, cohorts)]

    def _spacing(self, spec) -> list:
        """Spacing of the prepared volumes: the user's, else the encoder's where a voxel has a fixed size."""
        native = self.sample.region == "whole" or spec.spacing_mm is None
        return self.config["data"].spacing or (["native"] if native else list(spec.spacing_mm))

    def as_fed(self, spec):
        """The encoder's input spec with the geometry that it is trained on, which its export must state."""
        from voco.data.resample import parse_spacing

        sample, numbers = self.sample, None
        prepared = parse_spacing(self._spacing(spec))
        if sample.region != "whole" and None not in prepared:  # whole volumes are resized, whatever they measure
            numbers = tuple(mm * cut / fed for mm, cut, fed in zip(prepared, sample.crop, sample.fed))
        return replace(spec, spacing_mm=numbers, size=sample.fed)

    def dataset(self, method):
        """Windows of training scans by position, with the draws of the method."""
        from voco.data.dataset import WindowDataset
        from voco.health.evaluate import outer_window

        return WindowDataset(
            [[entry.path for entry in patient] for patient in self.cohort.train],
            size=self.sample.window,
            region=self.sample.region,
            clip=outer_window(method.encoder.input_spec.windows),
            draws=method.sampler,
            seed=self.config["seed"],
        )

    def heldout_settings(self) -> dict:
        """What a report on held-out scans is of: arguments of ``voco.health.monitor.HealthMonitor``."""
        entries = [entry for patient in self.cohort.heldout for entry in patient]
        scope = self.config["eval"]
        return {
            "out": Path(self.config["out"]),
            "volumes": [e.path for e in entries],
            "names": [e.case.id for e in entries],
            # patients who share a scan are one
            "patients": [patient[0].case.patient for patient in self.cohort.heldout for _ in patient],
            "region": self.sample.region,
            "per_scan": scope.windows,
            "queries": scope.queries,
            "max_scans": scope.scans,
            "seed": self.config["seed"],
            "warmup": self.config["train"].warmup,
            "is_fold": scope.cross > 0,
        }

    def start_probe(self, geometry, say):
        """The probe on labeled scans; None where none was asked for.

        Args:
            geometry: of the crops that it is shown.
        """
        from pretrain.probe import start_probe

        return start_probe(
            self.config["probe"],
            self.cohort,
            geometry=geometry,
            region=self.sample.region,
            seed=self.config["seed"],
            say=say,
        )

    def fingerprints(self) -> Fingerprints:
        """What tells later evaluations which scans were seen; held-out ones are marked."""
        from voco.data.fingerprint import Fingerprints
        from voco.transfer.data_sets import named_in_path

        entries = [(entry, True) for found in self.cohort.train for entry in found]
        entries += [(entry, False) for found in self.cohort.heldout for entry in found]
        names = set(self.config["data"].sets) | named_in_path(str(Path(self.config["data"].root).resolve()))
        for entry, trained in entries:
            names |= named_in_path(entry.case.path) if trained else set()
        return Fingerprints.of_entries(
            [entry for entry, _ in entries], trained=[trained for _, trained in entries], data_sets=sorted(names)
        )

    def provenance(self) -> dict:
        """What the model card should know of the data."""
        counts = self.cohort.counts
        return {
            "data": "unlabeled CT of the user",
            "cases": counts["train_scans"],
            "patients": counts["train_patients"],
        }

    @property
    def size(self) -> tuple[int, int]:
        """How many scans, and patients, train."""
        return self.cohort.counts["train_scans"], self.cohort.counts["train_patients"]

    def disk(self) -> str:
        """What the prepared data take, for ``--plan``."""
        scans = (entry for found in (*self.cohort.train, *self.cohort.heldout) for entry in found)
        return f"{sum(entry.bytes for entry in scans) / 1e9:.2f} GB of prepared scans (already there)"

    def notes(self, of_method: Sequence[str] = ()) -> list[str]:
        """What a user may not expect of data that are not wrong, with what the method says of its settings."""
        return [*self.cohort.notes, *of_method, *self._about_heldout(), *self._padding(), *self._enlarged()]

    def _about_heldout(self) -> list[str]:
        """Who is held out, and whether that is enough to say anything."""
        from voco.health.inference import LEAST_CLUSTERS

        counts = self.cohort.counts
        cross, steps, heldout = self.config["eval"].cross, self.config["train"].steps, counts["heldout_patients"]
        if cross:
            found = [
                f"--eval.cross {cross}: {cross} pretrainings of {steps} steps, each judged on the patients that it "
                f"does not see, then one on all {counts['train_scans']} scans, which makes the encoder; --data.heldout "
                f"{self.config['data'].heldout:g} is not used"
            ]
            if counts["train_patients"] < LEAST_CLUSTERS:
                found.append(
                    f"{counts['train_patients']} patients are too few to say whether the recipe learns, at least "
                    f"{LEAST_CLUSTERS} are needed"
                )
            return found
        if heldout + counts["train_patients"] == 1:
            return [
                f"one patient with {counts['train_scans']} scan(s): nobody can be held out, nothing will tell whether "
                "the run learns, and what it learns is of this patient alone; if there are several, name them (a CSV "
                "with a column patient, --data.patient_regex)"
            ]
        if heldout == 0:
            return ["no held-out scans (--data.heldout): nothing will tell whether the run learns"]
        if heldout < LEAST_CLUSTERS:
            all_patients = heldout + counts["train_patients"]
            return [
                f"{heldout} held-out patients are too few to say whether the run learns, at least {LEAST_CLUSTERS} are "
                "needed: "
                + (
                    "raise --data.heldout, or judge the recipe on every scan with --eval.cross 5"
                    if all_patients >= LEAST_CLUSTERS
                    else f"all {all_patients} patients together are too few"
                )
            ]
        return []

    def _padding(self) -> list[str]:
        """Whether windows are larger than the scans, from the shapes of the prepared scans alone."""
        from voco.data.windows import padded_share
        from voco.health.verdict import padding_note
        from voco.health.windows import PADDED_SHARE

        found = []
        if self.sample.region != "window":
            return []
        for part, patients in (("training scans", self.cohort.train), ("held-out scans", self.cohort.heldout)):
            entries = [entry for patient in patients for entry in patient]
            shares = {e.case.id: padded_share(e.shape, self.sample.window) for e in entries}
            if shares and (mean := sum(shares.values()) / len(shares)) > PADDED_SHARE:
                found.append(padding_note(mean, {k: v for k, v in shares.items() if v > PADDED_SHARE}, part))
        return found

    def _enlarged(self) -> list[str]:
        """Whether whole scans have far fewer voxels than what they are resized to."""
        from voco.data.windows import padded_share

        if self.sample.region != "whole":
            return []
        entries = [entry for patient in (*self.cohort.train, *self.cohort.heldout) for entry in patient]
        shares = [padded_share(entry.shape, self.sample.window) for entry in entries]
        if not shares or (mean := sum(shares) / len(shares)) <= _MUCH_ENLARGED:
            return []
        size = " x ".join(map(str, self.sample.window))
        return [
            f"whole scans are resized to {size} voxels and are smaller than that: {mean:.0%} of the voxels are made up "
            "between those that there are. Take a smaller --method.geometry.crop"
        ]

    def fallen(self, rows) -> list[str]:
        """Scores that were higher earlier in this run."""
        from voco.health.verdict import fallen

        return fallen(rows)
