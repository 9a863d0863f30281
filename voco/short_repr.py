"""What objects with arrays print: shapes, not numbers. No library is imported for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

_SHOWN = 3


def short_repr(cls: type) -> type:
    """Decorator of a dataclass: it prints the type and shape of its arrays and tensors, and the start of long lists."""

    def __repr__(self) -> str:
        told = (f"{field.name}={shortened(getattr(self, field.name))}" for field in fields(self) if field.repr)
        return f"{type(self).__name__}({', '.join(told)})"

    cls.__repr__ = __repr__
    return cls


def shortened(value: object) -> str:
    """The repr of a value, with ``int16 (41, 512, 512)`` for an array or a tensor, wherever in it that is."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        told = [f"{key!r}: {shortened(item)}" for key, item in list(value.items())[: 2 * _SHOWN]]
        return "{" + _listed(told, len(value)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and type(value).__repr__ in _PLAIN:
        told = [shortened(item) for item in value[: 2 * _SHOWN if len(value) <= 2 * _SHOWN else _SHOWN]]
        left, right = "()" if isinstance(value, tuple) else "[]"
        return f"{left}{_listed(told, len(value))}{',' if left == '(' and len(value) == 1 else ''}{right}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def grid_text(shape: Sequence[int], spacing_mm: Sequence[float]) -> str:
    """``41 x 512 x 512 voxels of 5 x 0.797 x 0.797 mm``."""
    return f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:.4g}' for mm in spacing_mm)} mm"


_PLAIN = (list.__repr__, tuple.__repr__)


def _listed(told: list[str], count: int) -> str:
    return ", ".join(told) + (f", … {count} in all" if len(told) < count else "")
