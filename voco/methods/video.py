"""Supervised classification of video clips: a network for moving pictures becomes an encoder for stacks of slices.

Sources: Ke et al. (PMLR 227, 2023), who move Kinetics networks to chest CT; ViPTT-Net (Zunair et al., ImageCLEF 2021),
which pretrains on ten classes of UCF50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voco.distributed import convert_batchnorm
from voco.errors import InputError
from voco.methods.base import ClipMethod
from voco.methods.video_options import VideoConfig, VideoOptions
from voco.video_input import check_clip_size, clip_colour, frames_to_input


@dataclass(frozen=True)
class VideoDraws:
    """All randomness of one clip, drawn in the loader's worker; holds settings only, so it pickles cheaply.

    Args:
        flip_prob, jitter, dropout: as in ``VideoOptions``.
        features: width of the features that the last layer takes, for dropout.
    """

    flip_prob: float = 0.0
    jitter: float = 0.0
    dropout: float = 0.0
    features: int = 0

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws for one clip.

        Returns:
            For the data stage: ``start`` (), where in the video the span begins, and ``crop`` (2,), where in height and
            width the crop lies, as shares in [0, 1) of the room there is. For the method: ``flip`` () bool,
            ``brightness`` (), ``contrast`` (), and with dropout ``keep`` (F,) bool.
        """
        # The same numbers are drawn whatever the settings, so that turning one off leaves the others as they were.
        unit = torch.rand(6, generator=generator)
        draws = {
            "start": unit[0],
            "crop": unit[1:3],
            "flip": unit[3] < self.flip_prob,
            "brightness": self.jitter * (2 * unit[4] - 1),
            "contrast": 1 + self.jitter * (2 * unit[5] - 1),
        }
        if self.dropout > 0:
            draws["keep"] = torch.rand(self.features, generator=generator) >= self.dropout
        return draws


class VideoClassification(ClipMethod):
    """Encoder, head and cross-entropy of supervised training on clips.

    Args:
        encoder: a ``voco.encoders.base.Encoder`` with one input channel (gray) or three (colours).
        classes: names of the classes, in the order of the labels.
        options: head, loss and augmentation.
        clip_size: (T, H, W) of the clips, to refuse those that the encoder cannot take before any is decoded.

    Attributes:
        head: ``Linear`` to the classes; with a sequence head in front of it, that is ``temporal``.
        top_k: of the second accuracy: 5, or one less than there are classes.

    Raises:
        InputError: fewer than two classes, repeated names, or clips that the encoder cannot take.
    """

    Options = VideoConfig
    citation = (
        "Ke et al.: Video Pretraining Advances 3D Deep Learning on Chest CT Tasks (arXiv 2304.00546); Zunair et al.: "
        "ViPTT-Net (arXiv 2105.12810)"
    )
    watched = "heldout/loss"
    has_classifier = True

    def __init__(
        self,
        encoder: nn.Module,
        classes: Sequence[str],
        options: VideoOptions | None = None,
        clip_size: tuple[int, int, int] | None = None,
    ):
        super().__init__()
        self.options, self.classes = options or VideoOptions(), tuple(classes)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"clips need at least two different classes, found {list(self.classes)}")
        clip_colour(encoder)
        if clip_size is not None:
            check_clip_size(encoder, clip_size)
        self.top_k = min(5, len(self.classes) - 1)
        self.temporal, features = None, encoder.num_features
        if self.options.head != "linear":
            from voco.sequence import make_sequence_head

            self.temporal = make_sequence_head(self.options.head, encoder.sequence_features)
            features = self.temporal.out_features
        self.encoder = encoder
        self.head = nn.Linear(features, len(self.classes))
        if self.options.norm_scope == "global":
            convert_batchnorm(self)
        self.train()  # an encoder comes in evaluation mode

    @classmethod
    def create(cls, encoder: nn.Module, settings: VideoConfig, data=None) -> VideoClassification:
        """With a head for the classes of the data."""
        return cls(encoder, data.classes, settings.options, (settings.clip.frames, *settings.clip.size))

    @property
    def norm_scope(self) -> str:
        return self.options.norm_scope

    @property
    def find_unused(self) -> bool:
        """Whether some parameter may get no gradient, which DistributedDataParallel must be told.

        Networks that pool every map use all their parameters; others may have norms of maps that are not read, and a
        sequence head leaves out what only the encoder's own pooling needs; no method here reads a decoder.
        """
        unread = "decoder" in self.encoder.optional_parts
        return unread or self.temporal is not None or self.encoder.pooling != "pyramid"

    @property
    def sampler(self) -> VideoDraws:
        """What the data loader calls for every clip."""
        options = self.options
        return VideoDraws(options.flip_prob, options.jitter, options.dropout, self.head.in_features)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and accuracies of one batch; draws nothing at random.

        Args:
            batch: ``frames`` (B, T, H, W, 3) or (B, T, H, W, 1) uint8, ``label`` (B,) int64, and the stacked draws of
                ``sampler`` (``start`` and ``crop`` have done their work in the data stage).

        Returns:
            0-dim tensors, detached but for ``loss``: ``loss``, ``top1``, and with more than two classes ``top5``
            (``top2``, ``top3``, ``top4`` where there are three, four or five classes).
        """
        frames = batch["frames"]
        if "flip" in batch:
            frames = torch.where(batch["flip"].view(-1, 1, 1, 1, 1), frames.flip(3), frames)
        x = frames_to_input(self.encoder, frames, brightness=batch.get("brightness"), contrast=batch.get("contrast"))
        features = self._features(x)
        if self.training and self.options.dropout > 0:
            features = features * batch["keep"].to(features) / (1 - self.options.dropout)
        logits = self._classify(features)
        label = batch["label"]
        loss = F.cross_entropy(logits, label, label_smoothing=self.options.label_smoothing)
        order = logits.detach().topk(self.top_k, dim=1).indices == label[:, None]
        terms = {"loss": loss, "top1": order[:, 0].to(logits).mean()}
        if self.top_k > 1:
            terms[f"top{self.top_k}"] = order.any(1).to(logits).mean()
        return terms

    def logits(self, frames: Tensor) -> Tensor:
        """Classes of clips as they are: (B, T, H, W, 3|1) uint8 -> (B, classes), at least float32."""
        return self.inspect(frames)[1]

    def inspect(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What a report looks at: the encoder's pooled features (B, F) of clips as they are, and their ``logits``.

        With a sequence head, which is no part of the encoder, the features are the mean of those that it reads.
        """
        x = frames_to_input(self.encoder, frames)
        if self.temporal is None:
            features = self.encoder.pool(x)
            return features, self._classify(features)
        sequence = self.encoder.sequence(x)
        return sequence.float().mean(1), self._classify(self.temporal(sequence))

    def _features(self, x: Tensor) -> Tensor:
        return self.encoder.pool(x) if self.temporal is None else self.temporal(self.encoder.sequence(x))

    def _classify(self, features: Tensor) -> Tensor:
        logits = self.head(features)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
