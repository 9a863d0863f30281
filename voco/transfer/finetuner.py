"""Supervised training of a study model, as the engine wants a method: a batch in, loss terms out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from voco.distributed import average_running_statistics, convert_batchnorm
from voco.encoders.timm_nets import batch_norms
from voco.errors import InputError
from voco.tasks.base import Task
from voco.transfer.augment import augment_windows
from voco.transfer.model import StudyModel


class FineTuner(nn.Module):
    """Augmentation on the device, the model, the task's loss.

    Args:
        model: what is trained.
        task: its loss.
        class_weights: per output a weight for each class; None for none.
        expected, label_smoothing: see ``Task.loss``.
        freeze_steps: steps during which only the head learns.
        batchnorm: ``all``, statistics over the windows of all processes; ``local``, of each process by itself;
            ``frozen``, the running statistics that the encoder came with, which are kept.
        ema: decay of the moving average of weights and running statistics that is scored in place of the last ones;
            0 for none. It begins as (1 + step) / (10 + step), so that the first steps are soon forgotten.

    Attributes:
        model: what the optimizer changes.
        scored: what answers on validation, test and new scans: the moving average, or ``model``.
    """

    def __init__(
        self,
        model: StudyModel,
        task: Task,
        *,
        class_weights: Mapping[str, list[float]] | None = None,
        expected: Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
        freeze_steps: int = 0,
        batchnorm: Literal["all", "local", "frozen"] = "all",
        ema: float = 0.0,
    ):
        super().__init__()
        if not 0 <= ema < 1:
            raise InputError(f"--train.ema {ema}: the decay of a moving average lies in [0, 1); 0 turns it off")
        self.model, self.task, self.label_smoothing, self.freeze_steps = model, task, label_smoothing, freeze_steps
        self.expected = dict(expected or {})
        self.ema, self.batchnorm = ema, batchnorm
        model.frozen_statistics = batchnorm == "frozen"
        if batchnorm != "local":
            convert_batchnorm(model)
        self.average: nn.Module | None = copy.deepcopy(model).eval().requires_grad_(False) if ema else None
        self.weighted = sorted(class_weights or {})
        for name in self.weighted:
            self.register_buffer(f"weight_{name}", torch.tensor(class_weights[name], dtype=torch.float32))
        # a buffer, so that a continued run knows when to unfreeze, and how far the average is
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))
        self._steps: int | None = None

    @property
    def encoder(self) -> nn.Module:
        return self.model.encoder

    @property
    def scored(self) -> StudyModel:
        return self.model if self.average is None else self.average

    def train(self, mode: bool = True) -> FineTuner:
        """Training or evaluation mode; the encoder stays in evaluation mode as long as it is frozen."""
        self._freeze()
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def _freeze(self) -> None:
        if self._steps is None:
            self._steps = int(self.steps_done)  # one read from the device, not one a step
        self.model.frozen = self._steps < self.freeze_steps

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One batch of ``StudySamples``; returns ``loss`` (mean over the outputs) and ``loss_<output>`` of each."""
        valid = batch["valid"]
        hu = batch["hu"][valid].float()
        if "plane" in batch and self.training:
            windows = valid.sum(1)  # all windows of a study are changed alike
            names = ("flips", "turns", "plane", "values", "noise_seed")
            hu = augment_windows(hu, *(batch[name].repeat_interleave(windows, 0) for name in names))
        logits = self._logits(hu, valid)
        targets = {output.name: batch["targets"][:, i] for i, output in enumerate(self.task.outputs)}
        weights = {name: getattr(self, f"weight_{name}") for name in self.weighted} or None
        terms = self.task.loss(
            logits, targets, class_weights=weights, expected=self.expected, label_smoothing=self.label_smoothing
        )
        loss = torch.stack(list(terms.values())).mean()
        return {"loss": loss, **({f"loss_{k}": v.detach() for k, v in terms.items()} if len(terms) > 1 else {})}

    def _logits(self, hu: Tensor, valid: Tensor) -> dict[str, Tensor]:
        try:
            return self.model(hu, valid)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            size = " ".join(map(str, hu.shape[2:]))
            raise InputError(
                f"a BatchNorm of this encoder cannot learn from one window of {size} voxels, of which it sees a single "
                "value per channel: take a larger --input.size, more windows at once (--input.chunk, "
                "--train.batch_size, --train.accumulate), or, with pretrained weights, --train.batchnorm frozen"
            ) from None

    def after_step(self) -> None:
        """Make ranks one model, count the step, move the average; after the last frozen step the encoder learns."""
        if self.batchnorm == "local" and not self.model.frozen:
            average_running_statistics(self.model)
        if self._steps is None:
            self._steps = int(self.steps_done)
        self._steps += 1
        self.steps_done.fill_(self._steps)
        if self.average is not None:
            self._update_average()
        if self.model.frozen and self._steps >= self.freeze_steps:
            self.train(self.training)

    @torch.no_grad()
    def _update_average(self) -> None:
        share = 1 - min(self.ema, (1 + self._steps) / (10 + self._steps))
        for old, new in zip(self.average.state_dict().values(), self.model.state_dict().values()):
            if old.is_floating_point():
                old.lerp_(new, share)
            else:
                old.copy_(new)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._steps = None


def batch_statistics(
    encoder: nn.Module, batchnorm: str, *, world: int, samples: int, windows: int, chunk: int
) -> dict[str, str | int]:
    """What BatchNorm normalises by: the part of a step that depends on how its batch is cut.

    Args:
        batchnorm: as ``FineTuner``.
        world: number of processes.
        samples: of a process in a micro-batch.
        windows: of a sample, at most.
        chunk: as ``StudyModel``.

    Returns:
        ``batchnorm``, and ``layers`` that take statistics of a batch; where there are any, over how many ``processes``,
        ``samples`` and ``windows_at_most``.
    """
    training = encoder.training
    layers = 0 if batchnorm == "frozen" else sum(norm.training for norm in batch_norms(encoder.train()))
    encoder.train(training)
    found = {"batchnorm": batchnorm, "layers": layers}
    if layers:
        processes = world if batchnorm == "all" else 1
        most = min(samples * windows, chunk or samples * windows)
        found |= {"processes": processes, "samples": samples * processes, "windows_at_most": most * processes}
    return found
