"""Unlabeled CT for training: which scan comes at which position, and the window that is cut from it."""

from __future__ import annotations

import contextlib
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from voco.data.windows import read_window
from voco.errors import InputError, ScanError
from voco.machine import cores
from voco.rng import generator

_OPEN_FILES = 64


class WindowDataset(Dataset):
    """Windows of prepared volumes, addressed by one integer that counts samples since the start of training.

    Position ``p`` maps to epoch ``p // patients`` and to a patient in that epoch's permutation: every patient is seen
    once an epoch whatever the number of series; the series is drawn uniformly among the patient's. Everything random
    comes from ``generator(seed, …, epoch, index)``, so a sample does not depend on workers, processes or restarts.

    Args:
        patients: files of prepared volumes, grouped by patient.
        size: (D, H, W) voxels of a window.
        region, clip: ``window`` or ``whole``, see ``read_window``.
        draws: the method's randomness for one sample, drawn here in the worker; picklable.
        seed: of the run.
        open_volume: opens one prepared volume; called in the worker.
    """

    def __init__(
        self,
        patients: Sequence[Sequence[Path]],
        *,
        size: tuple[int, int, int],
        region: str,
        draws: Callable[[torch.Generator], dict],
        seed: int,
        clip: tuple[float, float] | None = None,
        open_volume: Callable | None = None,
    ):
        if not patients:
            raise InputError("no patient is left to train on; check the data folder, --data.exclude and --data.heldout")
        self.patients = [list(files) for files in patients]
        self.size, self.region, self.clip, self.draws, self.seed = tuple(size), region, clip, draws, seed
        self._open_volume = open_volume
        self._handles: OrderedDict = OrderedDict()
        self._order: tuple[int, torch.Tensor] | None = None

    def __getstate__(self):
        # A handle must never travel to another process: blosc2 would share its threads and hang.
        return {**self.__dict__, "_handles": OrderedDict(), "_order": None}

    def _order_of(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.patients), generator=generator(self.seed, "order", epoch))
            self._order = (epoch, order)
        return self._order[1]

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """One sample: ``hu`` (D, H, W) int16, ``case`` (patient number), ``padded_share``, ``replaced``, and the draws.

        A file that cannot be read any more is replaced by the epoch's next patient and counted, so that one bad scan
        never stops a cohort; only when every patient fails is it an error.
        """
        reasons = []
        epoch, index = divmod(position, len(self.patients))
        for attempt in range(len(self.patients)):
            patient = int(self._order_of(epoch)[(index + attempt) % len(self.patients)])
            rng = generator(self.seed, "sample", epoch, index, attempt)
            files = self.patients[patient]
            path = files[int(torch.randint(len(files), (), generator=rng))]
            try:
                window = read_window(self._open(path), self.size, rng, self.region, self.clip)
            except (ScanError, OSError, RuntimeError) as error:
                self._handles.pop(path, None)
                reasons.append(f"{Path(path).name}: {error}")
                continue
            return {
                "hu": torch.from_numpy(np.ascontiguousarray(window.hu)),
                "case": torch.tensor(patient),
                "padded_share": torch.tensor(window.padded_share, dtype=torch.float32),
                "replaced": torch.tensor(float(attempt > 0)),
                **self.draws(rng),
            }
        raise ScanError("no prepared volume can be read any more; first reasons: " + "; ".join(reasons[:3]))

    def _open(self, path):
        if path in self._handles:
            self._handles.move_to_end(path)
            return self._handles[path]
        if self._open_volume is None:
            from voco.data.cache import PreparedVolume

            handle = PreparedVolume.open(path)
        else:
            handle = self._open_volume(path)
        self._handles[path] = handle
        if len(self._handles) > _OPEN_FILES:
            self._handles.popitem(last=False)
        return handle


class StepSampler(Sampler):
    """Positions for one process: step after step, without epoch ends, partial batches or any state of its own.

    Step ``s`` of a run with global batch ``B`` uses positions ``s*B … (s+1)*B - 1``. They are cut into ``accumulate``
    micro-batches and each of these into ``world`` equal runs, so that the processes together see what one would.

    Args:
        start, steps: first step and the step to stop before.
        batch_size: global batch, over all processes and micro-batches.
    """

    def __init__(self, start: int, steps: int, batch_size: int, accumulate: int = 1, rank: int = 0, world: int = 1):
        if batch_size < 1 or batch_size % (accumulate * world):
            raise InputError(
                f"train.batch_size is global and must be a multiple of processes x train.accumulate; found "
                f"{batch_size} for {world} x {accumulate}"
            )
        self.start, self.steps, self.batch_size = start, steps, batch_size
        self.accumulate, self.rank, self.world = accumulate, rank, world

    @property
    def micro_batch(self) -> int:
        """Samples per process and micro-batch."""
        return self.batch_size // (self.accumulate * self.world)

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        size = self.micro_batch
        for step in range(self.start, self.steps):
            for micro in range(self.accumulate):
                first = step * self.batch_size + (micro * self.world + self.rank) * size
                yield list(range(first, first + size))


def _worker_init(_worker: int) -> None:
    # Clusters and Ctrl-C signal the whole process group: the main process must stay able to finish its step and save.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


@contextlib.contextmanager
def batches_of(loader: DataLoader) -> Iterator[Iterator[dict[str, torch.Tensor]]]:
    """The batches of a loader, whose processes end with the block.

    After an error the traceback keeps the iterator alive, and with it the workers: they do not listen to the SIGTERM by
    which Python would end them, and the failed run would hang instead of handing its GPU back.
    """
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        if loader.num_workers:
            iterator._shutdown_workers()


def make_loader(dataset: Dataset, sampler: StepSampler, *, workers: int, timeout: float, pin: bool) -> DataLoader:
    """A loader whose batches are the same for any number of workers.

    Args:
        workers: processes; never more than this process has cores, since more would only wait for each other.
        timeout: seconds after which a silent worker is an error instead of a hang.
        pin: page-locked memory, for a GPU.
    """
    workers = min(workers, cores())
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        timeout=timeout if workers else 0,
        pin_memory=pin,
        persistent_workers=False,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_worker_init,
        generator=generator(dataset.seed, "loader") if hasattr(dataset, "seed") else None,
    )
