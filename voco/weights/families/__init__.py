"""One file per encoder family: the formats that its weights are published in."""

from __future__ import annotations

import importlib
import pkgutil

from voco.weights.formats import Family


def find_family(name: str) -> Family:
    """The family of a registered encoder; one without a file of its own uses its own names only."""
    return families().get(name, Family(name))


def families() -> dict[str, Family]:
    """All families by name: every module of this package defines one as ``FAMILY``, or several as ``FAMILIES``."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        several = getattr(module, "FAMILIES", None) or (module.FAMILY,)
        found |= {family.name: family for family in several}
    return found
