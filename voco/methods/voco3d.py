"""VoCo in 3D: predict where a crop lies in a volume from its similarity to a grid of base crops.

Sources: CVPR 2024 (arXiv 2402.17300) and TPAMI 2026 (arXiv 2410.09890); public code Luffy03/VoCo (v1),
Luffy03/Large-Scale-Medical (v2), MIC-DKFZ/nnssl. docs/voco3d.md lists where they differ and what is repaired here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voco.crops import augment, overlap_labels, shift_intensity
from voco.distributed import convert_batchnorm, gather, gather_with_gradient, rank
from voco.errors import InputError
from voco.geometry import Augmentation, Geometry
from voco.heads import Projector
from voco.losses import base_regulariser, cosine, mean_pairwise_cosine, relu_cosine, voco_cross_entropy
from voco.methods.base import Inspection, ScanMethod, ScanSample
from voco.methods.options import VoCo3DConfig, VoCoOptions
from voco.methods.sizes import size_note

# 8 crops of 64^3, fewer than one volume brings to a training step
_INSPECTED_VOXELS = 8 * 64**3


@dataclass(frozen=True)
class VoCoDraws:
    """All randomness of one sample, drawn in the loader's worker; holds settings only, so it pickles cheaply.

    Args:
        geometry, augmentation: as for ``VoCo3D``.
        feature_dropout, dropout_rate: as in ``VoCoOptions``.
        features: width of the encoder features, for ``channel`` dropout.
    """

    geometry: Geometry
    augmentation: Augmentation
    feature_dropout: str = "none"
    dropout_rate: float = 0.2
    features: int = 0

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws for N base crops, then K random crops: ``starts`` (K, 3), ``flips`` (N+K, 3), ``turns`` (N+K,),
        ``shift`` (N+K,), and with dropout ``keep`` (N+K,) or (N+K, F) bool."""
        crops = self.geometry.bases + self.geometry.random_crops
        draws = {"starts": self.geometry.draw_starts(generator), **self.augmentation.draw(crops, generator)}
        if self.feature_dropout != "none":
            shape = (crops, self.features) if self.feature_dropout == "channel" else (crops,)
            draws["keep"] = torch.rand(shape, generator=generator) >= self.dropout_rate
        return draws


class VoCo3D(ScanMethod):
    """Encoder, student projector, frozen teacher and losses of VoCo 3D.

    With several processes and ``norm_scope="global"``, features are gathered with their gradient and every process
    computes the loss of the whole batch: averaging gradients over processes then gives what one process would get.

    Args:
        encoder: a ``voco.encoders.base.Encoder``.
        geometry: grid and size of the crops.
        augmentation: what happens to every crop.
        options: teacher and losses.

    Raises:
        InputError: crops that the encoder cannot take as they are.
    """

    Options = VoCo3DConfig
    title = "VoCo"
    citation = (
        "Wu, Zhuang, Chen: VoCo (CVPR 2024, arXiv 2402.17300); Large-Scale 3D Medical Image Pre-training "
        "(arXiv 2410.09890)"
    )
    card_scores = ("intra", "position_accuracy_balanced", "disjoint_accuracy_balanced", "mean_cosine")
    size_note = staticmethod(size_note)

    def __init__(
        self,
        encoder: nn.Module,
        geometry: Geometry | None = None,
        augmentation: Augmentation | None = None,
        options: VoCoOptions | None = None,
    ):
        super().__init__()
        self.geometry = geometry or Geometry()
        self.augmentation = augmentation or Augmentation()
        self.options = options or VoCoOptions()
        _check_crop(encoder, self._network_shape)
        self.encoder = convert_batchnorm(encoder) if self.options.norm_scope == "global" else encoder
        self.student = Projector(self.features, self.options.projector_dim, self.options.projector_norm)
        self.teacher = self._make_teacher()
        self.train()  # an encoder comes in evaluation mode

    @classmethod
    def create(cls, encoder: nn.Module, settings: VoCo3DConfig, data=None) -> VoCo3D:
        return cls(encoder, settings.geometry, settings.augmentation, settings.options)

    @classmethod
    def sample(cls, settings: VoCo3DConfig, spec) -> ScanSample:
        """The window that the grid of base crops fills, and the crops that are cut from it."""
        geometry = settings.geometry
        return ScanSample(geometry.window, settings.region, geometry.size, geometry.network_shape)

    @classmethod
    def notes(cls, settings: VoCo3DConfig, *, samples: int, world: int, patients: int) -> list[str]:
        """Whether there are pairs of volumes to compare."""
        together = samples // (world if settings.options.inter_scope == "local" else 1)
        if settings.options.inter_weight == 0 or (together > 1 and patients > 1):
            return []
        why = "one volume at a time" if together == 1 else "one patient"
        return [f"with {why} there are no pairs of volumes: the inter-volume loss is 0"]

    @property
    def norm_scope(self) -> str:
        return self.options.norm_scope

    @property
    def find_unused(self) -> bool:
        """VoCo reads no decoder; the deepest map leaves out norms of the others."""
        return "decoder" in self.encoder.optional_parts or self.options.embedding != "pyramid"

    def batch_facts(self, samples: int, world: int) -> dict[str, object]:
        options = self.options
        pairs = samples * (world if options.inter_scope == "global" else 1) if options.inter_weight > 0 else 0
        return {"projector_norm": options.projector_norm, "volumes_paired": pairs}

    def monitor(self, source):
        """The shared report, with the projector's answers, the loss beside predictors that know nothing, and more."""
        from voco.health.positions import PositionMonitor

        return PositionMonitor(self, **source.heldout_settings())

    @property
    def features(self) -> int:
        """Width F of the features that the projector takes."""
        if self.options.embedding == "pyramid":
            return self.encoder.pyramid_features
        return self.encoder.feature_info[-1]["num_chs"]

    @property
    def sampler(self) -> VoCoDraws:
        """What the data loader calls for every sample."""
        options = self.options
        return VoCoDraws(
            self.geometry, self.augmentation, options.feature_dropout, options.dropout_rate, features=self.features
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts for one batch; draws nothing at random.

        Args:
            batch: ``hu`` (B, D, H, W) int16 windows in Hounsfield units, ``case`` (B,) int64 volume numbers, and the
                stacked draws of ``sampler``.

        Returns:
            0-dim tensors, detached but for ``loss``: ``loss``, ``intra``, ``intra_positive``, ``intra_negative``,
            ``inter``, ``reg``, ``mean_cosine`` (over all pairs of student embeddings), ``logit_mean``.
        """
        options, spec = self.options, self.encoder.input_spec
        order, flipped = spec.axis_order
        draws = [batch[name].flatten(0, 1) for name in ("flips", "turns", "shift")]
        x = self._prepare(batch["hu"], self._starts(batch["starts"]))
        x = augment(x, *draws, axis_order=order, flipped=flipped, std=spec.std)
        features = self._embed(self.encoder, x)
        labels, case, keep = overlap_labels(batch["starts"], self.geometry), batch["case"], None
        if self.training and options.feature_dropout != "none":
            keep = batch["keep"].flatten(0, 1)
        if self.training and options.ema_timing == "before_step":
            self._update_teacher()
        teacher_features = self._teacher_features(x, features)
        del x
        if options.norm_scope == "global":
            shared = teacher_features is None or options.teacher == "projector"
            features = gather_with_gradient(features)
            teacher_features = features.detach() if shared else gather(teacher_features)
            labels, case = gather(labels), gather(case)
            keep = None if keep is None else gather(keep)
        student = self._split(self.student(self._drop(features, keep)))
        teacher = self._project_teacher(teacher_features)
        if self.training and options.ema_timing == "after_teacher":
            self._update_teacher()
        return self._losses(student, teacher, labels, case, volumes=len(batch["case"]))

    def after_step(self) -> None:
        """Move the teacher."""
        if self.options.ema_timing == "after_step":
            self._update_teacher()

    def inspect(self, hu: Tensor, base_starts: Tensor, query_starts: Tensor, shift: Tensor | None = None) -> Inspection:
        """Similarities and features of given crops, without augmentation or dropout, on this process alone.

        The caller chooses ``eval()`` and ``no_grad()``. Projector statistics are those of the crops passed together.

        Args:
            hu: (B, D, H, W) windows in Hounsfield units; may be larger than the training window.
            base_starts: (N, 3) corners (D, H, W) of the base crops.
            query_starts: (B, Q, 3) corners of the query crops.
            shift: (B, N+Q) intensity shift in units of the Hounsfield window, base crops first; None for none.
        """
        bases = base_starts.to(hu.device).expand(len(hu), -1, -1)
        starts = torch.cat([bases, query_starts.to(hu.device)], dim=1)
        x = self._prepare(hu, starts)
        if shift is not None:
            x = shift_intensity(x, shift.flatten(0, 1), self.encoder.input_spec.std)
        # Many more crops than a training volume has come together here; in parts they need less memory than training.
        parts = [x] if self.encoder.training else x.split(max(1, _INSPECTED_VOXELS // x[0, 0].numel()))
        features = torch.cat([self._embed(self.encoder, part) for part in parts])
        teacher_features = None
        if self.options.teacher != "none":
            pieces = zip(parts, features.split([len(part) for part in parts]))
            teacher_features = torch.cat([self._teacher_features(part, own) for part, own in pieces])
        student = self.student(features).unflatten(0, starts.shape[:2])
        teacher = self._project_teacher(teacher_features, crops=starts.shape[1])
        base, query = student.split([bases.shape[1], query_starts.shape[1]], dim=1)
        against = base if teacher is None else teacher[:, : bases.shape[1]]
        return Inspection(
            cosine=cosine(query, against),
            base_cosine=cosine(base, base),
            features=features.float().unflatten(0, starts.shape[:2]),
            embeddings=student,
            teacher_embeddings=teacher,
        )

    def loss_terms(self, cosine: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Intra-volume loss of raw cosines under the active options.

        Args:
            cosine: (B, Q, N) not relu'd.
            labels: (B, Q, N) overlaps.

        Returns:
            ``intra``, ``intra_positive``, ``intra_negative``, (B,) each.
        """
        positive, negative = self._cross_entropy(labels, cosine.relu())
        return {"intra": positive + negative, "intra_positive": positive, "intra_negative": negative}

    def _make_teacher(self) -> nn.Module | None:
        """A frozen copy of the student: the authors start it from other random weights, forgotten in 100 steps."""
        if self.options.teacher == "none":
            return None
        teacher = copy.deepcopy(self.student)
        if self.options.teacher == "model":
            teacher = nn.ModuleDict({"encoder": copy.deepcopy(self.encoder), "projector": teacher})
        return teacher.requires_grad_(False)

    def _followed(self) -> tuple[nn.Module, nn.Module]:
        """What of the teacher moves, and what of the student it moves towards."""
        if self.options.teacher == "projector":
            return self.teacher, self.student
        return self.teacher, nn.ModuleDict({"encoder": self.encoder, "projector": self.student})

    @torch.no_grad()
    def _update_teacher(self) -> None:
        """Moving average of all parameters and buffers; buffers that are counts are copied."""
        if self.teacher is None:
            return
        teacher, source = self._followed()
        old, new = list(teacher.parameters()), list(source.parameters())
        for mine, other in self._followed_buffers(teacher, source):
            if mine.is_floating_point():
                old.append(mine)
                new.append(other)
            else:
                mine.copy_(other)
        torch._foreach_lerp_(old, new, 1.0 - self.options.teacher_momentum)

    def _followed_buffers(self, teacher: nn.Module, source: nn.Module) -> list[tuple[Tensor, Tensor]]:
        return list(zip(teacher.buffers(), source.buffers(), strict=True))

    def _starts(self, random: Tensor) -> Tensor:
        """Corners (B, N+K, 3) of all crops, base crops first."""
        return torch.cat([self.geometry.base_starts(random.device).expand(len(random), -1, -1), random], dim=1)

    @property
    def _network_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of a crop as the encoder gets it."""
        return self.geometry.network_shape

    def _prepare(self, hu: Tensor, starts: Tensor) -> Tensor:
        """Cut crops (M = B * crops) out of windows and make them the network's input."""
        return self.encoder.prepare(self.crops(hu, starts))

    def crops(self, hu: Tensor, starts: Tensor) -> Tensor:
        crops = super().crops(hu, starts)
        if self.geometry.network_shape != self.geometry.size:
            # v1 windows the volume before it resizes crops (corners aligned), so bone and air must be clipped first
            windows = self.encoder.input_spec.windows
            crops = crops.float().clamp(min(low for low, _ in windows), max(high for _, high in windows))
            crops = F.interpolate(crops, self.geometry.network_shape, mode="trilinear", align_corners=True)
        return crops

    def _embed(self, encoder: nn.Module, x: Tensor) -> Tensor:
        """(M, F) features of prepared crops."""
        if self.options.embedding == "pyramid":
            return encoder.pooled_pyramid(x)
        return encoder.forward_features(x).mean((2, 3, 4), dtype=torch.promote_types(x.dtype, torch.float32))

    @torch.no_grad()
    def _teacher_features(self, x: Tensor, features: Tensor) -> Tensor | None:
        if self.options.teacher == "none":
            return None
        return self._embed(self.teacher["encoder"], x) if self.options.teacher == "model" else features.detach()

    @torch.no_grad()
    def _project_teacher(self, features: Tensor | None, crops: int | None = None) -> Tensor | None:
        if self.options.teacher == "none":
            return None
        projector = self.teacher["projector"] if self.options.teacher == "model" else self.teacher
        return self._split(projector(features), crops)

    def _drop(self, features: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            return features
        keep = keep.to(features) / (1.0 - self.options.dropout_rate)
        return features * (keep.unsqueeze(1) if keep.ndim == 1 else keep)

    def _split(self, rows: Tensor, crops: int | None = None) -> Tensor:
        """(M, P) rows back to (B, crops, P)."""
        return rows.unflatten(0, (-1, crops or self.geometry.bases + self.geometry.random_crops))

    def _cross_entropy(self, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        options = self.options
        return voco_cross_entropy(labels, logits, negative=options.negative, positive_weight=options.positive_weight)

    def _losses(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, case: Tensor, volumes: int
    ) -> dict[str, Tensor]:
        """All terms from embeddings (B, N+K, P), labels (B, K, N) and volume numbers (B,)."""
        options, bases = self.options, self.geometry.bases
        base, query = student[:, :bases], student[:, bases:]
        if options.intra == "detached":
            logits = relu_cosine(query, base.detach())
        else:
            logits = relu_cosine(query, teacher[:, :bases])
        if options.intra == "symmetric":
            logits = (logits + relu_cosine(teacher[:, bases:], base)) / 2
        positive, negative = (term.mean() for term in self._cross_entropy(labels, logits))
        reg = base_regulariser(base, power=options.reg_power, stop_gradient=options.reg_stop_gradient).mean()
        inter = torch.zeros_like(reg)
        if options.inter_weight > 0:
            inter = self._inter(*self._inter_scope(student, teacher, case, volumes))
        loss = positive + negative + options.inter_weight * inter + options.reg_weight * reg
        parts = {
            "intra": positive + negative,
            "intra_positive": positive,
            "intra_negative": negative,
            "inter": inter,
            "reg": reg,
            "mean_cosine": mean_pairwise_cosine(student.detach().flatten(0, 1)),
            "logit_mean": logits.mean(),
        }
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def _inter_scope(self, student: Tensor, teacher: Tensor, case: Tensor, volumes: int) -> tuple[Tensor, ...]:
        """The volumes among which pairs are formed, whatever the projector has seen."""
        options = self.options
        if options.norm_scope == options.inter_scope:
            return student, teacher, case
        if options.inter_scope == "global":
            return gather_with_gradient(student), gather(teacher), gather(case)
        own = slice(rank() * volumes, (rank() + 1) * volumes)
        return student[own], teacher[own], case[own]

    def _inter(self, student: Tensor, teacher: Tensor, case: Tensor) -> Tensor:
        """Random crops of volume i against the bases of volume i + 1, the teacher's view being the target.

        A volume is never compared with itself, which the published code does when a batch holds one volume: such
        pairs are left out, and 0 is returned when none remains.
        """
        bases = self.geometry.bases
        target = relu_cosine(teacher[:, bases:], teacher[:, :bases].roll(-1, 0)).detach()
        logits = relu_cosine(student[:, bases:], student[:, :bases].roll(-1, 0))
        valid = case != case.roll(-1, 0)
        positive, negative = self._cross_entropy(target, logits)
        return torch.where(valid, positive + negative, 0.0).sum() / valid.sum().clamp(min=1)


def _check_crop(encoder: nn.Module, shape: tuple[int, int, int]) -> None:
    spec = encoder.input_spec
    small = any(n < low for n, low in zip(shape, spec.min_size))
    if small or any(n % m for n, m in zip(shape, spec.size_multiple)):
        raise InputError(
            f"crops reach the encoder as {shape} voxels (D, H, W); it takes at least {tuple(spec.min_size)}, in "
            f"multiples of {tuple(spec.size_multiple)}: change crop, crop_depth or network_size"
        )
