"""What an encoder wants to be fed. Torch only, so that data code and training code can share it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from voco.errors import InputError

CANONICAL_AXES = "SPL"
_OPPOSITE = {"S": "I", "I": "S", "P": "A", "A": "P", "L": "R", "R": "L"}


@dataclass(frozen=True)
class InputSpec:
    """Geometry (applied when data are prepared) and intensity and axes (applied by ``Encoder.prepare``).

    Sizes, spacings and multiples are in canonical order (D, H, W), whatever order the network itself uses.

    Attributes:
        axes: anatomical direction of increasing index for the three spatial tensor axes of the network;
            the canonical volume is ``SPL``, published VoCo weights saw ``RAS``.
        spacing_mm: (D, H, W) voxel spacing that the network was trained at; None where any will do.
        windows: Hounsfield window per input channel; each is clipped and scaled to [0, 1].
        mean, std: per channel, applied after windowing.
        size: (D, H, W) usual crop in voxels.
        min_size: (D, H, W) smallest crop that the network can take.
        size_multiple: (D, H, W) multiples that ``prepare`` pads to.
    """

    axes: str = CANONICAL_AXES
    spacing_mm: tuple[float, float, float] | None = None
    windows: tuple[tuple[float, float], ...] = ((-1000.0, 500.0),)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int, int] = (64, 64, 64)
    min_size: tuple[int, int, int] = (1, 1, 1)
    size_multiple: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self):
        if len(self.axes) != 3 or {frozenset((a, _OPPOSITE.get(a, a))) for a in self.axes} != {
            frozenset("SI"),
            frozenset("PA"),
            frozenset("LR"),
        }:
            raise InputError(f"axes must name one of S/I, P/A and L/R each, e.g. 'SPL' or 'RAS'; found {self.axes!r}")
        for low, high in self.windows:
            if not low < high:
                raise InputError(f"a Hounsfield window needs low < high, found [{low}, {high}]")
        if not len(self.windows) == len(self.mean) == len(self.std):
            raise InputError(
                f"windows, mean and std need one entry per channel; found {len(self.windows)}, "
                f"{len(self.mean)} and {len(self.std)}"
            )

    @property
    def channels(self) -> int:
        return len(self.windows)

    @property
    def axis_order(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Permutation of the canonical (D, H, W) axes, then which network axes run against the canonical direction."""
        order, flipped = [], []
        for position, code in enumerate(self.axes):
            axis = next(i for i, c in enumerate(CANONICAL_AXES) if code in (c, _OPPOSITE[c]))
            order.append(axis)
            if code != CANONICAL_AXES[axis]:
                flipped.append(position)
        return tuple(order), tuple(flipped)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> InputSpec:
        """Inverse of ``to_dict``, also after a trip through JSON.

        Raises:
            InputError: unknown keys.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InputError(f"unknown input spec keys {unknown}; known: {sorted(known)}")
        return cls(**{k: _tuples(v) for k, v in values.items()})


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
