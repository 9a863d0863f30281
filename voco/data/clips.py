"""Labeled clips for training and evaluation: which clip comes at which position, and what is cut from it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from voco.data.clip_cohort import ClipCohort, load_clips, split_groups
from voco.data.clip_frames import ClipSettings, choose_frames, clip_range, crop_start, resized
from voco.data.layouts import Clip, ClipManifest, build_clip_manifest
from voco.data.video_frames import CHANNELS
from voco.errors import InputError, ScanError
from voco.rng import generator

__all__ = [
    "Clip",
    "ClipCohort",
    "ClipDataset",
    "ClipManifest",
    "ClipSettings",
    "build_clip_manifest",
    "load_clips",
    "split_groups",
]
_KNOWN_FILES = 1024
_SHARE_OF_ONE = 16  # no clip may take more than this part of the memory for decoded clips


class ClipDataset(Dataset):
    """Samples of labeled clips, addressed by one integer that counts samples since the start of training.

    Position ``p`` maps to epoch ``p // clips`` and to a clip in that epoch's permutation. Everything random comes from
    ``generator(seed, …, epoch, index)``, so a sample does not depend on workers, processes or restarts. Outside
    training, positions are the clips in order, spans lie in the middle and crops in the centre.

    Args:
        root: folder that the paths of the clips are relative to.
        clips: labeled clips.
        classes: names in the order of the labels.
        settings: frames and pixels of a sample.
        colour: ``"rgb"`` or ``"gray"``.
        draws: the method's randomness for one sample, drawn here in the worker; picklable. Where it draws ``start`` ()
            and ``crop`` (2,), both in [0, 1), they place the sample; else they are drawn here.
        seed: of the run.
        train: random order, span, size and crop.
        keep_bytes: memory of each process for decoded clips. The first that fit are kept for good: what is drawn anew
            in every epoch gains nothing from throwing out the oldest. 0 keeps none.
    """

    def __init__(
        self,
        root: str | Path,
        clips: Sequence[Clip],
        classes: Sequence[str],
        *,
        settings: ClipSettings,
        colour: str = "rgb",
        draws: Callable[[torch.Generator], dict] | None = None,
        seed: int = 0,
        train: bool = True,
        keep_bytes: int = 256 << 20,
    ):
        if not clips:
            raise InputError("no clip is left; check the data folder, the classes and --data.heldout")
        numbers = {name: number for number, name in enumerate(classes)}
        unknown = sorted({clip.label for clip in clips} - set(numbers))
        if unknown:
            raise InputError(f"clips of the class {unknown[0]!r}, which is not among the {len(numbers)} classes")
        self.root, self.clips = Path(root), list(clips)
        self.labels = [numbers[clip.label] for clip in self.clips]
        self.settings, self.colour, self.draws = settings, colour, draws
        self.seed, self.train, self.keep_bytes = seed, train, keep_bytes
        self._forget()

    def _forget(self) -> None:
        self._order: tuple[int, torch.Tensor] | None = None
        self._known: OrderedDict = OrderedDict()
        self._kept: dict[tuple, np.ndarray] = {}
        self._room = self.keep_bytes

    def __len__(self) -> int:
        """Clips; positions may be larger in training."""
        return len(self.clips)

    def __getstate__(self):
        # Pictures and indices are of no use to another process but would be copied to it.
        return {k: v for k, v in self.__dict__.items() if k not in ("_order", "_known", "_kept", "_room")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()

    def _clip_at(self, epoch: int, index: int) -> int:
        if not self.train:
            return index
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.clips), generator=generator(self.seed, "order", epoch))
            self._order = (epoch, order)
        return int(self._order[1][index])

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """One sample: ``frames`` (T, H, W, C) uint8, ``label``, ``case`` (clip number), ``replaced``, and the draws.

        A clip that cannot be decoded any more is replaced by the epoch's next one and counted in ``replaced``, so that
        one bad file never stops a run; only when every clip fails is it an error. Evaluation must leave such rows out.
        """
        reasons = []
        epoch, index = divmod(int(position), len(self.clips))
        for attempt in range(len(self.clips)):
            number = self._clip_at(epoch, (index + attempt) % len(self.clips))
            rng = generator(self.seed, "sample", epoch, index, attempt)
            draws = self.draws(rng) if self.draws is not None else {}
            try:
                frames = self._frames(self.clips[number], self._place(draws, rng))
            except (ScanError, OSError) as error:
                reasons.append(f"{self.clips[number].path}: {error}")
                continue
            return {
                "frames": torch.from_numpy(frames),
                "label": torch.tensor(self.labels[number]),
                "case": torch.tensor(number),
                "replaced": torch.tensor(float(attempt > 0)),
                **draws,
            }
        raise ScanError("no clip can be decoded any more; first reasons: " + "; ".join(reasons[:3]))

    def _place(self, draws: dict, rng: torch.Generator) -> tuple[float, float, float, float]:
        """(start, size, row, column), shares of the room there is."""
        own = torch.rand(4, generator=rng)
        if not self.train:
            return 0.5, 0.5, 0.5, 0.5
        row, column = draws.get("crop", own[2:])
        return float(draws.get("start", own[0])), float(own[1]), float(row), float(column)

    def _frames(self, clip: Clip, place: tuple[float, float, float, float]) -> np.ndarray:
        start, share, *shares = place
        known = self._known.get(clip.path)
        if known is None:
            known = self._look_at(clip)
        self._known.move_to_end(clip.path)
        index, shown = known
        first, stop = clip_range(index, clip.start_s, clip.end_s)
        numbers = choose_frames(index, first, stop, self.settings, start)
        size = resized(shown, self.settings, share)
        row, column = crop_start(size, self.settings, shares)
        height, width = self.settings.size
        frames = self._decoded(clip, index, (first, stop), size, numbers)
        return np.ascontiguousarray(frames[:, row : row + height, column : column + width])

    def _look_at(self, clip: Clip) -> tuple:
        """Frame times and shown size of a file, kept for a while: short to store, and they cost reading all of it."""
        from voco.data.video import VideoReader

        with VideoReader(self.root / clip.path) as reader:
            shown = reader.info().size
            self._known[clip.path] = reader.index, shown
        if len(self._known) > _KNOWN_FILES:
            self._known.popitem(last=False)
        return self._known[clip.path]

    def _decoded(self, clip: Clip, index, span: tuple[int, int], size: tuple[int, int], numbers) -> np.ndarray:
        """Frames ``numbers`` at a size; a clip that will be asked for at the same size again is kept whole if small."""
        from voco.data.video import VideoReader

        first, stop = span
        kept = self._kept.get((clip.id, size))
        if kept is not None:
            return kept[numbers - first]
        bytes_ = (stop - first) * size[0] * size[1] * CHANNELS[self.colour]
        keep = self.settings.scale[0] == self.settings.scale[1] or not self.train
        keep = keep and bytes_ <= self.keep_bytes // _SHARE_OF_ONE and bytes_ <= self._room
        with VideoReader(self.root / clip.path, index) as reader:
            frames = reader.read(np.arange(first, stop) if keep else numbers, size=size, colour=self.colour)
        if not keep:
            return frames
        self._room -= bytes_
        self._kept[clip.id, size] = frames
        return frames[numbers - first]
