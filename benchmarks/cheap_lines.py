"""Models that need no pretraining of ours: class prior, metadata, place along z, frozen 2D slices along three axes.

Each learns from the training studies of a fold and scores others. What an encoder adds is what it reaches above these.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voco.errors import InputError
from voco.files import whole
from voco.tasks.base import Task

_BINS = 20
_BODY_HU = -900
_MOST_KERNELS = 20
AXES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))  # planes across, from front to back, from side to side


@dataclass
class Fitted:
    """What a line made of a fold.

    Attributes:
        columns: (n,) score columns of the studies that were scored.
        images: per study, scores of its images from the lowest to the highest, or None.
        facts: for ``results.json``.
    """

    columns: dict[str, np.ndarray]
    images: list[np.ndarray | None] | None = None
    facts: dict[str, Any] | None = None


class Line(Protocol):
    """A cheap line. ``encoder`` tells whether it uses the encoder of the settings; ``title`` is its name in tables."""

    title: str
    encoder: bool

    def fit(self, task: Task, train: Sequence, scored: Sequence) -> Fitted: ...


class Prior:
    """How common each class is among the training studies, for everybody."""

    title, encoder = "class prior", False

    def fit(self, task: Task, train: Sequence, scored: Sequence) -> Fitted:
        import pandas as pd

        rows = [{o.label_column: study.targets[o.name] for o in task.outputs} for study in train]
        constant = task.constant_scores(pd.DataFrame(rows))
        return Fitted({name: np.full(len(scored), constant[name]) for name in task.score_columns})


class Metadata:
    """Logistic (or ridge) regression on how a scan was made: slices, spacing, field of view, kernel, moments of HU.

    Args:
        root: of the data set, where the headers with the kernel are.
    """

    title, encoder = "metadata", False

    def __init__(self, root: Path):
        self.root = Path(root)
        self._known: dict[str, tuple[np.ndarray, str]] = {}

    def fit(self, task: Task, train: Sequence, scored: Sequence) -> Fitted:
        found = Counter(self._of(study)[1] for study in train)
        kernels = [name for name, count in found.most_common(_MOST_KERNELS) if count > 1 and name]

        def table(studies: Sequence) -> np.ndarray:
            each = [self._of(study) for study in studies]
            return np.array([[*numbers, *(float(kernel == name) for name in kernels)] for numbers, kernel in each])

        return _regression(task, table, train, scored, {"kernels": kernels})

    def _of(self, study) -> tuple[np.ndarray, str]:
        if study.id not in self._known:
            self._known[study.id] = scan_numbers(study.paths[0]), kernel_of(self.root, study.labeled.case)
        return self._known[study.id]


def scan_numbers(path: Path) -> np.ndarray:
    """What a prepared volume tells of how its scan was made.

    Returns:
        (11,) slices, spacing along D, H, W (mm), extent along D, H, W (mm), and mean, standard deviation, skewness and
        excess kurtosis of the HU of the body.
    """
    from voco.data.cache import PreparedVolume

    volume = PreparedVolume.open(path)
    source = volume.meta["source"]
    shape, spacing = np.array(source["shape"], float), np.array(source["spacing_mm"], float)
    hu = volume.read((0, 0, 0), volume.shape)
    hu = hu[hu > _BODY_HU].astype(np.float64)
    if not len(hu):
        hu = np.zeros(1)
    mean, std = hu.mean(), hu.std()
    z = (hu - mean) / (std or 1.0)
    return np.array([shape[0], *spacing, *shape * spacing, mean, std, (z**3).mean(), (z**4).mean() - 3])


def kernel_of(root: Path, case) -> str:
    """Convolution kernel from the header of a case's first DICOM file; empty where there is none."""
    if not case.files:
        return ""
    import pydicom

    header = pydicom.dcmread(root / case.files[0], stop_before_pixels=True, specific_tags=["ConvolutionKernel"])
    value = header.get("ConvolutionKernel", "")
    return value if isinstance(value, str) else "/".join(map(str, value or ()))


class Position:
    """How often an image is positive by its place between the lowest and the highest slice, from 20 equal bins.

    A study scores as the maximum over its images, or, where a task learns several outputs, as the class prior.
    """

    title, encoder = "place along z", False

    def fit(self, task: Task, train: Sequence, scored: Sequence) -> Fitted:
        if not task.slice_labels:
            raise InputError(f"the line position needs labels of slices, which task {task.name} does not have")
        positive, count = np.zeros(_BINS), np.zeros(_BINS)
        for study in train:
            index, labels = study.slices
            known = np.isfinite(labels)
            place = _bins(index[known], study.shape[0])
            positive += np.bincount(place, labels[known], _BINS)
            count += np.bincount(place, minlength=_BINS)
        if not count.any():
            raise InputError("the line position found no labeled slice among the training studies")
        rate = (positive + positive.sum() / count.sum()) / (count + 1)  # one image of average kind in every bin
        images = [self._score(study, rate) for study in scored]
        columns = Prior().fit(task, train, scored).columns
        if len(task.outputs) == 1:
            name = task.score_columns[0]
            columns[name] = np.array([own if s is None else s.max() for s, own in zip(images, columns[name])])
        return Fitted(columns, images, {"positive_share_by_place": rate.round(6).tolist()})

    def _score(self, study, rate: np.ndarray) -> np.ndarray | None:
        table = slice_table(study)
        return None if table is None else rate[_bins(table.index, study.shape[0])]


def slice_table(study):
    """``SliceTable`` of a study, None where its source has no slices."""
    from voco.data.cache import PreparedVolume
    from voco.tasks.slices import SliceTable

    return SliceTable.of(PreparedVolume.open(study.paths[0]).meta)


def _bins(index: np.ndarray, depth: int) -> np.ndarray:
    place = np.asarray(index, float) / max(1, depth - 1)
    return np.clip((place * _BINS).astype(int), 0, _BINS - 1)


class Slices:
    """Logistic (or ridge) regression on frozen 2D features of slices along three axes, randomly projected.

    Along each axis ``planes`` slices, evenly spaced, go through the encoder; the deepest maps are averaged over the
    slices, and the F channels of every place of the map are projected to ``width`` by a Gaussian matrix that is the
    same for all axes and studies. The idea is that of Raptor (ICML 2025), which uses DINOv2.

    Args:
        encoder: a 2D network over slices; it is not trained.
        cache: folder that keeps the averaged maps.
        planes: slices along each axis.
        side: pixels of a slice, high and wide; 0 is the encoder's own.
        width: of the projection.
        seed: of the projection.
        device: to compute on.
    """

    title, encoder = "frozen 2D slices", True

    def __init__(self, encoder, cache: Path, *, planes: int, side: int, width: int, seed: int, device: str = "cpu"):
        import torch

        if min(planes, width) < 1 or side < 0:
            raise InputError(
                f"planes and projection must be at least 1, side 0 or more; found {planes}, {width}, {side}"
            )
        self.net, self.planes, self.width, self.seed, self.device = encoder.eval(), planes, width, seed, device
        self.net.requires_grad_(False).to(device)
        self.side = side or encoder.input_spec.size[1]
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(encoder.state_dict().items()):
            digest.update(
                name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        settings = [encoder.name, encoder.arguments, asdict(encoder.input_spec), planes, self.side]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        self.folder = Path(cache) / "features" / f"axes-{digest.hexdigest()}"

    def fit(self, task: Task, train: Sequence, scored: Sequence) -> Fitted:
        facts = {"planes": self.planes, "side": self.side, "projection": self.width, "projection_seed": self.seed}
        return _regression(task, self._table, train, scored, facts)

    def _table(self, studies: Sequence) -> np.ndarray:
        from voco.rng import derive_seed

        rows = []
        for study in studies:
            maps = self._maps(study).astype(np.float64)  # (3, F, h, w)
            rng = np.random.default_rng(derive_seed(self.seed, "projection", maps.shape[1]))
            matrix = rng.normal(size=(self.width, maps.shape[1])) / np.sqrt(self.width)
            rows.append(np.einsum("kf,afhw->akhw", matrix, maps).ravel())
        return np.stack(rows)

    def _maps(self, study) -> np.ndarray:
        place = self.folder / f"{study.paths[0].stem}.npy"
        if not place.is_file():
            with whole(place) as beside, open(beside, "wb") as file:
                np.save(file, self._compute(study))
        return np.load(place)

    def _compute(self, study) -> np.ndarray:
        import torch
        from torch.nn import functional as F

        from voco.data.cache import PreparedVolume

        volume = PreparedVolume.open(study.paths[0])
        hu = torch.from_numpy(volume.read((0, 0, 0), volume.shape)).to(self.device, torch.float32)
        found = []
        with torch.no_grad():
            for axes in AXES:
                seen = F.interpolate(
                    hu.permute(axes)[None, None], (self.planes, self.side, self.side), mode="trilinear",
                    align_corners=False,
                )  # fmt: skip
                maps = self.net.forward_features(self.net.prepare(seen))
                found.append(maps.float().mean(2)[0].cpu().numpy())
        return np.stack(found).astype(np.float16)


def _regression(task: Task, table, train: Sequence, scored: Sequence, facts: dict) -> Fitted:
    """Regression on (n, F) tables of studies, the penalty chosen by cross-validation inside the training studies."""
    from voco.transfer.probes import linear_probe

    x, wanted = table(train), table(scored) if scored else None
    logits, chosen = {}, {}
    for output in task.outputs:
        y = np.array([study.targets[output.name] for study in train], float)
        probe = linear_probe(output, x, y, groups=[study.labeled.patient for study in train])
        chosen[output.name] = probe.C
        logits[output.name] = probe.logits(wanted) if wanted is not None else np.zeros((0, output.width))
    about = {"feature_width": int(x.shape[1]), "regularization": chosen, "chosen_among": 1}
    return Fitted(task.scores(logits), None, facts | about)
