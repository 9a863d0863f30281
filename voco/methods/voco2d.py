"""2D-VoCo: VoCo with a network of slices. A crop is known by the mean of the vectors of some of its slices.

Source: arXiv 2601.14593 and its public code, tkz05/2D-VoCo-CT-Classifier. docs/voco2d.md lists what the default here
repairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voco.errors import InputError
from voco.geometry import Augmentation, Geometry
from voco.heads import Projector
from voco.methods.options2d import VoCo2DConfig, VoCo2DOptions
from voco.methods.voco3d import VoCo3D


class VoCo2D(VoCo3D):
    """Slice encoder, student projector, teacher and losses of 2D-VoCo.

    Crops, labels, augmentation and losses are those of VoCo 3D; every crop reaches the encoder as ``options.slices``
    of its slices.

    Args:
        encoder: an encoder that keeps every slice apart, e.g. ``create_encoder("slices/resnet18")``.
        geometry: grid and size of the crops.
        augmentation: what happens to every crop.
        options: slices, teacher and losses.

    Raises:
        InputError: an encoder that mixes slices, more slices than a crop has, or crops that the encoder cannot take.
    """

    Options = VoCo2DConfig
    citation = "Chiu, Chen: 2D-VoCo (arXiv 2601.14593); Wu, Zhuang, Chen: VoCo (CVPR 2024, arXiv 2402.17300)"

    def __init__(
        self,
        encoder: nn.Module,
        geometry: Geometry | None = None,
        augmentation: Augmentation | None = None,
        options: VoCo2DOptions | None = None,
    ):
        geometry, options = geometry or Geometry(), options or VoCo2DOptions()
        _check_slices(encoder, geometry, options.slices)
        super().__init__(encoder, geometry, augmentation, options)

    @property
    def find_unused(self) -> bool:
        """All parameters but a decoder's are on the way to the features."""
        return "decoder" in self.encoder.optional_parts

    @property
    def features(self) -> int:
        if self.options.embedding == "pyramid":
            return self.encoder.pyramid_features
        return self.encoder.num_features

    @property
    def _network_shape(self) -> tuple[int, int, int]:
        return (self.options.slices, *self.geometry.network_shape[1:])

    def crops(self, hu: Tensor, starts: Tensor) -> Tensor:
        crops = super().crops(hu, starts)
        # Before augmentation, on which most slices would be wasted; a flip along D then reverses the same slices.
        return crops.index_select(2, slice_places(crops.shape[2], self.options.slices, crops.device))

    def _embed(self, encoder: nn.Module, x: Tensor) -> Tensor:
        return encoder.pooled_pyramid(x) if self.options.embedding == "pyramid" else encoder.pool(x)

    def _make_teacher(self) -> nn.Module | None:
        teacher = super()._make_teacher()
        if self.options.teacher_projector == "trained":
            teacher["projector"] = Projector(self.features, self.options.projector_dim, self.options.projector_norm)
        return teacher

    def _followed(self) -> tuple[nn.Module, nn.Module]:
        if self.options.teacher_projector == "trained":
            return self.teacher["encoder"], self.encoder
        return super()._followed()

    def _followed_buffers(self, teacher: nn.Module, source: nn.Module) -> list[tuple[Tensor, Tensor]]:
        return super()._followed_buffers(teacher, source) if self.options.ema_buffers else []

    def _project_teacher(self, features: Tensor | None, crops: int | None = None) -> Tensor | None:
        if self.options.teacher_projector == "trained":
            return self._split(self.teacher["projector"](features), crops)
        return super()._project_teacher(features, crops)


def slice_places(depth: int, slices: int, device: torch.device | str = "cpu") -> Tensor:
    """Which of ``depth`` slices are taken: the first, the last and evenly between, rounded down as published; one slice
    alone is the middle one."""
    if slices == 1:
        return torch.tensor([depth // 2], device=device)
    return torch.arange(slices, device=device) * (depth - 1) // (slices - 1)


def _check_slices(encoder: nn.Module, geometry: Geometry, slices: int) -> None:
    if encoder.feature_info[-1]["reduction"][0] != 1:
        raise InputError(
            f"2D-VoCo takes slices out of a crop, but encoder {encoder.name or type(encoder).__name__} looks along the "
            "depth; choose a slice encoder such as slices/resnet18, or method voco3d"
        )
    if slices > geometry.network_shape[0]:
        raise InputError(
            f"{slices} slices cannot be taken from crops that are {geometry.network_shape[0]} deep; lower slices"
        )
