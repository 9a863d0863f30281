"""What a pretraining method is: everything that the stage asks of it, with defaults, so that a method is one file.

A method for unlabeled scans derives from ``ScanMethod``, one for labeled clips from ``ClipMethod``. The stage knows no
method: it looks one up by name (``voco.methods``), and asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from voco.crops import cut, shift_intensity
from voco.errors import InputError
from voco.geometry import Geometry
from voco.short_repr import short_repr


@dataclass(frozen=True)
class ScanSample:
    """What of a prepared scan one training sample is; all sizes are (D, H, W) in voxels.

    Attributes:
        window: what is read: ``batch["hu"]`` is (B, *window).
        region: ``window``, a box at a random place, or ``whole``, the whole scan resized to ``window``.
        crop: what is cut from the window as one input of the encoder; None is the window itself.
        fed: the same as the encoder gets it, where crops are resized; None is ``crop``.
    """

    window: tuple[int, int, int]
    region: str = "window"
    crop: tuple[int, int, int] | None = None
    fed: tuple[int, int, int] | None = None

    def __post_init__(self):
        object.__setattr__(self, "crop", tuple(self.crop or self.window))
        object.__setattr__(self, "fed", tuple(self.fed or self.crop))


@short_repr
@dataclass(frozen=True)
class Inspection:
    """What the network thinks of some crops: B windows, N base crops, Q query crops.

    Attributes:
        features: (B, N+Q, F) encoder features, base crops first.
        cosine: (B, Q, N) student query against teacher base, not relu'd; None where the method compares no crops.
        base_cosine: (B, N, N) student bases against each other.
        embeddings: (B, N+Q, P) student projections.
        teacher_embeddings: (B, N+Q, P) teacher projections of the same crops; None without a teacher.
    """

    features: Tensor
    cosine: Tensor | None = None
    base_cosine: Tensor | None = None
    embeddings: Tensor | None = None
    teacher_embeddings: Tensor | None = None


def no_draws(generator: torch.Generator) -> dict[str, Tensor]:
    """The sampler of a method that draws nothing."""
    return {}


class Method(nn.Module):
    """An encoder, what trains it, and how the stage should treat it. Derive from ``ScanMethod`` or ``ClipMethod``.

    ``__init__`` sets ``self.encoder``. Nothing random happens in ``forward``: all randomness of a sample is drawn by
    ``sampler`` in the loader, so that a run is the same for any number of workers, processes and restarts.

    Attributes:
        encoder: the ``voco.encoders.base.Encoder`` that is trained and exported.
        Options: dataclass of the settings ``--method.*`` with a field ``name`` whose default is the registered name; a
            docstring below a field is its help. Nested dataclasses make ``--method.part.field``. With a field
            ``preset``, its attribute ``presets`` (preset -> nested values) holds what each preset changes.
        source: kind of data: ``scans`` or ``clips``.
        title: what sentences call it.
        citation: what the model card asks to cite.
        card_scores: held-out scores that travel with the weights, beside those that judge the run.
        watched: row of metrics.jsonl, lower is better, by which ``--train.patience`` and ``--train.plateau`` go; empty
            where the held-out loss does not say how good an encoder is.
        norm_scope: batch statistics are of all processes (``global``) or of each alone (``local``).
    """

    encoder: nn.Module
    Options: ClassVar[type]
    source: ClassVar[str]
    title: ClassVar[str] = "the method"
    citation: ClassVar[str] = ""
    card_scores: ClassVar[tuple[str, ...]] = ()
    watched: ClassVar[str] = ""
    norm_scope: str = "local"

    @classmethod
    def create(cls, encoder: nn.Module, settings: Any, data: Any = None) -> Method:
        """The method around an encoder, with fresh heads; torch is seeded before.

        Args:
            settings: an ``Options``.
            data: the cohort; ``data.classes`` of clips. None before data are read.

        Raises:
            InputError: an encoder or settings that cannot work together.
        """
        return cls(encoder, settings)

    @classmethod
    def check_encoder(cls, encoder: nn.Module, settings: Any) -> None:
        """Refuse an encoder that cannot be trained, before hours of preparing.

        Raises:
            InputError: why not.
        """
        cls.create(encoder, settings)

    @classmethod
    def notes(cls, settings: Any, *, samples: int, world: int, patients: int) -> list[str]:
        """What a user may not expect of settings that are not wrong.

        Args:
            samples: of one forward pass, over all processes.
            world: processes.
            patients: in training.
        """
        return []

    @classmethod
    def size_note(cls, parameters: int, scans: int, volumes: int) -> str:
        """One line for ``--plan`` on the size of the network; empty where nothing is known.

        Args:
            parameters: of the encoder.
            scans: of the training part.
            volumes: that the run will see.
        """
        return ""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts for one batch: 0-dim tensors, ``loss`` with its gradient, the others detached."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def after_step(self) -> None:
        """Called after every optimiser step, e.g. to move a teacher."""

    @property
    def sampler(self):
        """Picklable ``sampler(generator) -> {name: tensor}``: all randomness of one sample, drawn in the loader."""
        return no_draws

    def dataset(self, source):
        """Training samples by position: those of the source, with the draws of ``sampler``.

        Args:
            source: ``pretrain.scans.Scans`` or ``pretrain.clips.Clips``.
        """
        return source.dataset(self)

    def monitor(self, source):
        """The report on held-out data: a new monitor, or None. What the base classes give needs encoder features only.

        Args:
            source: as ``dataset``; ``source.heldout_settings()`` are the arguments of the shared monitor.
        """
        return None

    @property
    def find_unused(self) -> bool:
        """Whether some parameter may get no gradient, which DistributedDataParallel must be told."""
        return True

    def batch_facts(self, samples: int, world: int) -> dict[str, Any]:
        """What of a step depends on how its batch is cut, for ``run.json``, beside norms.

        Args:
            samples: of one forward pass on one process.
            world: processes.
        """
        return {}


class ScanMethod(Method):
    """A method on unlabeled scans; its batches have ``hu`` (B, D, H, W) int16 and ``case`` (B,) patient numbers."""

    source = "scans"
    card_scores = ("effective_rank", "feature_spread")

    @classmethod
    def sample(cls, settings: Any, spec) -> ScanSample:
        """What of a scan a training sample is; by default a box of the size that the encoder asks for.

        Args:
            settings: an ``Options``.
            spec: ``InputSpec`` of the encoder.
        """
        return ScanSample(spec.size)

    @cached_property
    def geometry(self) -> Geometry:
        """Crops that a report asks the place of: by default 3 x 3 of the size that the encoder was fed."""
        depth, height, width = self.encoder.input_spec.size
        return Geometry(crop=min(height, width), crop_depth=depth)

    def crops(self, hu: Tensor, starts: Tensor) -> Tensor:
        """Crops as the encoder gets them: ``encoder(method.crops(hu, starts))`` are their features.

        Args:
            hu: (B, D, H, W) windows in Hounsfield units.
            starts: (B, K, 3) corners (D, H, W).

        Returns:
            (B * K, 1, d, h, w) Hounsfield units.
        """
        return cut(hu, starts, self.geometry.size).flatten(0, 1).unsqueeze(1)

    def inspect(self, hu: Tensor, base_starts: Tensor, query_starts: Tensor, shift: Tensor | None = None) -> Inspection:
        """Features of given crops, without augmentation; a method that compares crops may add how.

        The caller chooses ``eval()`` and ``no_grad()``.

        Args:
            hu: (B, D, H, W) windows in Hounsfield units; may be larger than the training window.
            base_starts: (N, 3) corners (D, H, W) of the base crops.
            query_starts: (B, Q, 3) corners of the query crops.
            shift: (B, N+Q) intensity shift in units of the Hounsfield window, base crops first; None for none.
        """
        starts = torch.cat([base_starts.to(hu.device).expand(len(hu), -1, -1), query_starts.to(hu.device)], dim=1)
        x = self.encoder.prepare(self.crops(hu, starts))
        if shift is not None:
            x = shift_intensity(x, shift.flatten(0, 1), self.encoder.input_spec.std)
        features = torch.cat([self.encoder.pool(part) for part in x.split(_TOGETHER)])
        return Inspection(features.float().unflatten(0, starts.shape[:2]))

    def monitor(self, source):
        """Place in the body, effective rank and collapse, of encoder features."""
        from voco.health.monitor import HealthMonitor

        return HealthMonitor(self, **source.heldout_settings())


class ClipMethod(Method):
    """A method on labeled clips; its batches have ``frames`` (B, T, H, W, 3|1) uint8 and ``label`` (B,) int64.

    ``Options`` has a field ``clip``, a ``voco.data.clip_frames.ClipSettings``.

    Attributes:
        classes: names, in the order of the labels; set by ``create``.
        has_classifier: ``inspect`` gives logits of the classes, and the report judges them too.
    """

    source = "clips"
    classes: tuple[str, ...]
    has_classifier: ClassVar[bool] = False

    @classmethod
    def sample(cls, settings: Any, spec):
        """Frames and pixels of a training sample: a ``ClipSettings``."""
        return settings.clip

    @classmethod
    def create(cls, encoder: nn.Module, settings: Any, data: Any = None) -> ClipMethod:
        """The method, told the names of the classes."""
        method = cls(encoder, settings)
        method.classes = tuple(data.classes)
        return method

    @classmethod
    def check_encoder(cls, encoder: nn.Module, settings: Any) -> None:
        """Refuse clips that the encoder cannot take; the classes are not known yet."""
        from voco.video_input import check_clip_size, clip_colour

        clip_colour(encoder)
        check_clip_size(encoder, (settings.clip.frames, *settings.clip.size))

    @property
    def colour(self) -> str:
        """What clips should be decoded to: ``"gray"`` or ``"rgb"``."""
        from voco.video_input import clip_colour

        return clip_colour(self.encoder)

    def inspect(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a report looks at: features (B, F) of clips (B, T, H, W, 3|1) uint8 as they are, and logits or None."""
        from voco.video_input import frames_to_input

        return self.encoder.pool(frames_to_input(self.encoder, frames)), None

    def monitor(self, source):
        """The nearest class mean among encoder features, and the classifier of a method that has one."""
        from voco.health.video.monitor import VideoMonitor

        return VideoMonitor(classifier=self.has_classifier, **source.heldout_settings(self))


# Crops that a report passes together.
_TOGETHER = 16


def check_options(name: str, cls: type[Method]) -> None:
    """Refuse a method that the command line could not name.

    Raises:
        InputError: what is missing.
    """
    from dataclasses import fields, is_dataclass

    options = getattr(cls, "Options", None)
    if not (isinstance(options, type) and is_dataclass(options)):
        raise InputError(f"the method {name} needs Options, a dataclass of its settings; found {options!r}")
    if not any(item.name == "name" and item.default == name for item in fields(options)):
        raise InputError(f"the Options of the method {name} need a field name: Literal[{name!r}] = {name!r}")
    if not issubclass(cls, ScanMethod | ClipMethod):
        raise InputError(f"the method {name} must derive from ScanMethod or ClipMethod of voco.methods.base")
    if cls.source == "clips" and not any(item.name == "clip" for item in fields(options)):
        raise InputError(f"the Options of the method {name} need a field clip: ClipSettings")
