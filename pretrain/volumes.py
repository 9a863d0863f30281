"""VoCo on unlabeled CT: the parts of a run that depend on scans and crops, for 3D VoCo and 2D-VoCo."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from voco.config import flatten
from voco.errors import InputError

if TYPE_CHECKING:
    from voco.data.fingerprint import Fingerprints

_CARD_SCORES = ("intra", "position_accuracy_balanced", "disjoint_accuracy_balanced", "mean_cosine")
_CITATIONS = {
    "voco3d": "Wu, Zhuang, Chen: VoCo (CVPR 2024, arXiv 2402.17300); Large-Scale 3D Medical Image Pre-training "
    "(arXiv 2410.09890)",
    "voco2d": "Chiu, Chen: 2D-VoCo (arXiv 2601.14593); Wu, Zhuang, Chen: VoCo (CVPR 2024, arXiv 2402.17300)",
}
# Of the voxels of a resized scan that are interpolated; thick slices alone stay below.
_MUCH_ENLARGED = 0.8


class VolumeJob:
    """What ``pretrain/run.py`` needs to know of VoCo.

    Args:
        config: resolved settings.
    """

    def __init__(self, config: dict):
        self.config = config

    def find_unused(self, method) -> bool:
        """Whether parameters of the encoder may get no gradient; in 2D all of them are on the way to the features."""
        if "decoder" in method.encoder.optional_parts:  # VoCo reads the encoder alone
            return True
        return self.config["method"].name == "voco3d" and self.config["method"].options.embedding != "pyramid"

    def check_encoder(self, encoder) -> None:
        """Refuse crops that the encoder cannot take; building the method looks at all of it."""
        self.build_method(encoder)

    def build_method(self, encoder, cohort=None):
        """The method around an encoder, with fresh heads."""
        import torch

        from voco.methods.voco2d import VoCo2D
        from voco.methods.voco3d import VoCo3D
        from voco.rng import derive_seed

        settings = self.config["method"]
        torch.manual_seed(derive_seed(self.config["seed"], "heads"))
        kind = {"voco3d": VoCo3D, "voco2d": VoCo2D}[settings.name]
        return kind(encoder, settings.geometry, settings.augmentation, settings.options)

    def prepare_data(self, spec, rank: int, world: int, say):
        """Prepared scans, split by patient."""
        from voco.data.cohort import load_cohort
        from voco.data.prepare import PrepareSettings

        data = self.config["data"]
        return load_cohort(
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

    def folds(self, cohort) -> list:
        """The scans once for each fold, with its patients held out; empty where no folds are asked for."""
        count = self.config["eval"].cross
        return cohort.folds(count, self.config["seed"]) if count else []

    def _spacing(self, spec) -> list:
        """Spacing of the prepared volumes: the user's, else the encoder's where a voxel has a fixed size."""
        native = self.config["method"].region == "whole" or spec.spacing_mm is None
        return self.config["data"].spacing or (["native"] if native else list(spec.spacing_mm))

    def as_fed(self, spec):
        """The encoder's input spec with the geometry that it is trained on, which its export must state."""
        from voco.data.resample import parse_spacing

        settings, numbers = self.config["method"], None
        geometry, prepared = settings.geometry, parse_spacing(self._spacing(spec))
        if settings.region != "whole" and None not in prepared:  # whole volumes are resized, whatever they measure
            shrunk = zip(prepared, geometry.size, geometry.network_shape)
            numbers = tuple(mm * cut / fed for mm, cut, fed in shrunk)
        return replace(spec, spacing_mm=numbers, size=geometry.network_shape)

    def dataset(self, cohort, method):
        """Windows of training scans by position."""
        from voco.data.dataset import WindowDataset
        from voco.health.evaluate import outer_window

        settings = self.config["method"]
        return WindowDataset(
            [[entry.path for entry in patient] for patient in cohort.train],
            size=settings.geometry.window,
            region=settings.region,
            clip=outer_window(method.encoder.input_spec.windows),
            draws=method.sampler,
            seed=self.config["seed"],
        )

    def start_monitor(self, cohort, method, build_untrained, accelerator, goes_on: bool):
        """The health report on held-out scans, its lines measured (once a run); None without held-out scans.

        Args:
            method: as it is before the first step.
            build_untrained: makes the method with fresh weights of a given number.
            goes_on: the lines may be taken from an earlier session of this run.
        """
        from voco.health.monitor import HealthMonitor
        from voco.reference import reference_lines

        entries = [entry for patient in cohort.heldout for entry in patient]
        if not entries:
            return None
        settings, scope = self.config["method"], self.config["eval"]
        monitor = HealthMonitor(
            Path(self.config["out"]),
            volumes=[e.path for e in entries],
            names=[e.case.id for e in entries],
            # patients who share a scan are one
            patients=[patient[0].case.patient for patient in cohort.heldout for _ in patient],
            geometry=settings.geometry,
            region=settings.region,
            hu_windows=method.encoder.input_spec.windows,
            references=reference_lines(
                settings.geometry,
                negative=settings.options.negative,
                positive_weight=settings.options.positive_weight,
            ),
            per_scan=scope.windows,
            queries=scope.queries,
            max_scans=scope.scans,
            seed=self.config["seed"],
            warmup=self.config["train"].warmup,
            is_fold=scope.cross > 0,
        )
        monitor.measure_lines(method, build_untrained, accelerator.device, reuse=goes_on)
        return monitor

    def start_probe(self, cohort, say):
        """The probe on labeled scans; None where none was asked for."""
        from pretrain.probe import start_probe

        method = self.config["method"]
        return start_probe(
            self.config["probe"],
            cohort,
            geometry=method.geometry,
            region=method.region,
            seed=self.config["seed"],
            say=say,
        )

    def fingerprints(self, cohort) -> Fingerprints:
        """What tells later evaluations which scans were seen; held-out ones are marked."""
        from voco.data.fingerprint import Fingerprints
        from voco.transfer.data_sets import named_in_path

        entries = [(entry, True) for found in cohort.train for entry in found]
        entries += [(entry, False) for found in cohort.heldout for entry in found]
        names = set(self.config["data"].sets) | named_in_path(str(Path(self.config["data"].root).resolve()))
        for entry, trained in entries:
            names |= named_in_path(entry.case.path) if trained else set()
        return Fingerprints.of_entries(
            [entry for entry, _ in entries], trained=[trained for _, trained in entries], data_sets=sorted(names)
        )

    def provenance(self, cohort, monitor=None) -> dict:
        """What the model card and later trainings should know, without what every method has."""
        from voco.health.report import HEADLINE, PARTS

        settings, learned = self.config["method"], {}
        if monitor is not None and monitor.latest is not None:
            scores = {name: monitor.latest.score(name) for name in (HEADLINE, *PARTS, *_CARD_SCORES)}
            learned = monitor.provenance({name: value for name, value in scores.items() if value is not None})
        return {
            "preset": settings.preset,
            "data": "unlabeled CT of the user",
            "cases": cohort.counts["train_scans"],
            "patients": cohort.counts["train_patients"],
            "settings": flatten(asdict(settings)),
            **learned,
            "citation": _CITATIONS[settings.name],
        }

    def disk(self, cohort) -> str:
        """What the prepared data take, for ``--plan``."""
        scans = (entry for patients in (cohort.train, cohort.heldout) for found in patients for entry in found)
        return f"{sum(entry.bytes for entry in scans) / 1e9:.2f} GB of prepared scans (already there)"

    def size_note(self, encoder, cohort) -> str:
        """Advice on the size of the network, for ``--plan``."""
        from pretrain.sizes import size_note

        train, parameters = self.config["train"], sum(p.numel() for p in encoder.parameters())
        return size_note(parameters, cohort.counts["train_scans"], train.steps * train.batch_size)

    def check(self) -> None:
        """Settings that cannot work, before any work."""
        for name in ("scans", "windows", "queries"):
            if getattr(self.config["eval"], name) < 1:
                raise InputError(f"--eval.{name} must be at least 1, found {getattr(self.config['eval'], name)}")

    def notes(self, world: int, cohort) -> list[str]:
        """What a user may not expect of settings that are not wrong."""
        train, options, found = self.config["train"], self.config["method"].options, []
        processes = world if options.inter_scope == "local" else 1
        together = train.batch_size // (train.accumulate * processes)
        if options.inter_weight > 0 and (together == 1 or cohort.counts["train_patients"] == 1):
            why = "one volume at a time" if together == 1 else "one patient"
            found.append(f"with {why} there are no pairs of volumes: the inter-volume loss is 0")
        about = (*self._about_heldout(cohort.counts), *self._padding(cohort), *self._enlarged(cohort))
        return [*cohort.notes, *found, *about]

    def _about_heldout(self, counts) -> list[str]:
        """Who is held out, and whether that is enough to say anything."""
        from voco.health.inference import LEAST_CLUSTERS

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

    def _padding(self, cohort) -> list[str]:
        """Whether windows are larger than the scans, from the shapes of the prepared scans alone."""
        from voco.data.windows import padded_share
        from voco.health.verdict import padding_note
        from voco.health.windows import PADDED_SHARE

        settings, found = self.config["method"], []
        if settings.region != "window":
            return []
        for part, patients in (("training scans", cohort.train), ("held-out scans", cohort.heldout)):
            entries = [entry for patient in patients for entry in patient]
            shares = {e.case.id: padded_share(e.shape, settings.geometry.window) for e in entries}
            if shares and (mean := sum(shares.values()) / len(shares)) > PADDED_SHARE:
                found.append(padding_note(mean, {k: v for k, v in shares.items() if v > PADDED_SHARE}, part))
        return found

    def _enlarged(self, cohort) -> list[str]:
        """Whether whole scans have far fewer voxels than what they are resized to."""
        from voco.data.windows import padded_share

        settings = self.config["method"]
        if settings.region != "whole":
            return []
        entries = [entry for patient in (*cohort.train, *cohort.heldout) for entry in patient]
        shares = [padded_share(entry.shape, settings.geometry.window) for entry in entries]
        if not shares or (mean := sum(shares) / len(shares)) <= _MUCH_ENLARGED:
            return []
        size = " x ".join(map(str, settings.geometry.window))
        return [
            f"whole scans are resized to {size} voxels and are smaller than that: {mean:.0%} of the voxels are made up "
            "between those that there are. Take a smaller --method.geometry.crop"
        ]

    def fallen(self, rows) -> list[str]:
        """Scores that were higher earlier in this run."""
        from voco.health.verdict import fallen

        return fallen(rows)
