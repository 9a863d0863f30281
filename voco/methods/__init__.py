"""Pretraining methods by name; a method's module (and torch with it) is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from voco.registry import Registry

if TYPE_CHECKING:
    from torch import nn

METHODS: Registry[str] = Registry("pretraining method")
METHODS.register("voco3d")("voco.methods.voco3d:VoCo3D")
METHODS.register("voco2d")("voco.methods.voco2d:VoCo2D")
METHODS.register("video")("voco.methods.video:VideoClassification")


def method_class(name: str) -> type[nn.Module]:
    """The class of a registered method.

    Raises:
        InputError: unknown name, with the closest known ones.
    """
    module, attribute = METHODS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
