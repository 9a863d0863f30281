"""Clips in batches for a report: decoded once where they fit into memory, and one that cannot be read stops nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Dataset, default_collate

from voco.errors import ScanError


class ClipBatches:
    """The same samples of a data set, in order, as often as they are asked for.

    Args:
        dataset: ``dataset[i] -> {"frames", "label", ...}``, the same each time. A sample that cannot be read raises, or
            says so in ``replaced``.
        indices: which samples.
        views: samples ``i * views`` and following are of clip ``i``.
        batch_clips: samples per batch.
        workers, timeout: processes that decode, and seconds after which a silent one is an error.
        room: asked before samples are read: bytes that may be kept. All are kept or none.

    Attributes:
        unreadable: clip number -> why it could not be read.
        kept_bytes: what is kept now.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int],
        *,
        views: int = 1,
        batch_clips: int,
        workers: int,
        timeout: float,
        room: Callable[[], int],
    ):
        self.dataset, self.indices, self.views, self.batch_clips = _Readable(dataset), indices, views, batch_clips
        self.workers, self.timeout, self.room = workers, timeout, room
        self.unreadable: dict[int, str] = {}
        self.kept_bytes = 0
        self._kept: list[dict[str, torch.Tensor]] | None = None

    def __len__(self) -> int:
        """Batches, if all can be read."""
        return -(-len(self.indices) // self.batch_clips)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """``frames``, ``label`` and ``case``, the number of the clip, of each batch."""
        if self._kept is not None:
            yield from self._kept
            return
        self.unreadable.clear()
        kept, size, room = [], 0, self.room()
        for batch in self._decoded():
            size += batch["frames"].numel()
            if size <= room:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        if size <= room:
            self._kept, self.kept_bytes = kept, size

    def read(self, indices: Sequence[int], workers: int) -> Iterator[tuple[int, dict | str]]:
        """(index, sample, or why it cannot be read) of some samples, in order."""
        from voco.data.dataset import batches_of, make_loader

        sampler = [[index] for index in indices]
        loader = make_loader(self.dataset, sampler, workers=workers, timeout=self.timeout, pin=False)
        with batches_of(loader) as rows:
            for index, sample in rows:
                found = {k: v[0] for k, v in sample.items()} if isinstance(sample, dict) else sample[0]
                yield int(index[0]), found

    def _decoded(self) -> Iterator[dict[str, torch.Tensor]]:
        rows = []
        for index, sample in self.read(self.indices, self.workers):
            if isinstance(sample, str):
                self.unreadable[index // self.views] = sample
                continue
            rows.append({**sample, "case": torch.tensor(index // self.views)})
            if len(rows) == self.batch_clips:
                yield default_collate(rows)
                rows = []
        if rows:
            yield default_collate(rows)


class _Readable(Dataset):
    """Samples of another data set with the reason in place of those that cannot be read: a report must not stop."""

    seed = 0  # the loader's own generator: a report takes nothing from the global one

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
