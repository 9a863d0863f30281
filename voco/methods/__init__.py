"""Pretraining methods by name; a method's module (and torch with it) is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voco.registry import Registry

if TYPE_CHECKING:
    from voco.methods.base import Method


@dataclass(frozen=True)
class Entry:
    """A registered method, as ``module:name`` where it is imported late, so that ``--help`` need not load torch.

    Attributes:
        source: kind of data, ``scans`` or ``clips``.
        options: its ``Options``.
        method: its class.
    """

    source: str
    options: str | type
    method: str | type


METHODS: Registry[Entry] = Registry("pretraining method")
METHODS.register("voco3d")(Entry("scans", "voco.methods.options:VoCo3DConfig", "voco.methods.voco3d:VoCo3D"))
METHODS.register("voco2d")(Entry("scans", "voco.methods.options2d:VoCo2DConfig", "voco.methods.voco2d:VoCo2D"))
METHODS.register("video")(
    Entry("clips", "voco.methods.video_options:VideoConfig", "voco.methods.video:VideoClassification")
)


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Decorator that files a ``voco.methods.base.Method`` under the name that ``--method.name`` takes.

    Raises:
        InputError: a class without what the command line needs.
        ValueError: the name is taken.
    """

    def add(cls: type[Method]) -> type[Method]:
        from voco.methods.base import check_options

        check_options(name, cls)
        METHODS.register(name)(Entry(cls.source, cls.Options, cls))
        return cls

    return add


def method_class(name: str) -> type[Method]:
    """The class of a registered method.

    Raises:
        InputError: unknown name, with the closest known ones.
    """
    return _imported(METHODS[name].method)


def method_options(name: str) -> type:
    """The dataclass of a method's settings; torch is not imported for those of this package."""
    return _imported(METHODS[name].options)


def _imported(place: str | type) -> type:
    if isinstance(place, type):
        return place
    module, attribute = place.split(":")
    return getattr(importlib.import_module(module), attribute)
