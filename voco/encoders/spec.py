"""What an encoder wants to be fed. Torch only, so that data code and training code can share it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from types import MappingProxyType

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
        rgb_mean, rgb_std: statistics of the three colours that the weights saw, where they differ; they replace mean
            and std when three windows are chosen.
    """

    axes: str = CANONICAL_AXES
    spacing_mm: tuple[float, float, float] | None = None
    windows: tuple[tuple[float, float], ...] = ((-1000.0, 500.0),)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int, int] = (64, 64, 64)
    min_size: tuple[int, int, int] = (1, 1, 1)
    size_multiple: tuple[int, int, int] = (1, 1, 1)
    rgb_mean: tuple[float, float, float] | None = None
    rgb_std: tuple[float, float, float] | None = None

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


PE_WINDOW = (-100.0, 900.0)  # centre 400, width 1000, the published choice for pulmonary embolism transfer
# Statistics of ImageNet's colours, for ``kinetics_spec``.
IMAGENET = MappingProxyType({"rgb_mean": (0.485, 0.456, 0.406), "rgb_std": (0.229, 0.224, 0.225)})


def kinetics_spec(
    size: tuple[int, int, int],
    min_size: tuple[int, int, int],
    rgb_mean: tuple[float, float, float] = (0.45, 0.45, 0.45),
    rgb_std: tuple[float, float, float] = (0.225, 0.225, 0.225),
    **more,
) -> InputSpec:
    """Input of a network that was trained on colour video: frames are slices, one Hounsfield window stands for gray.

    One channel takes the average of the three means and stds. The stem summed over the colours is then exact for a
    repeated slice, borders included: zero padding means "mean" only if all channels share their statistics. Where the
    three differ they are kept for input with three windows.

    Args:
        size: (frames, height, width) of the clips that the weights saw.
        min_size: smallest (D, H, W).
        rgb_mean, rgb_std: statistics of colours in [0, 1].
        more: further fields of ``InputSpec``.
    """
    differ = len(set(rgb_mean)) > 1 or len(set(rgb_std)) > 1
    return InputSpec(
        windows=(PE_WINDOW,),
        mean=(sum(rgb_mean) / 3 if differ else rgb_mean[0],),
        std=(sum(rgb_std) / 3 if differ else rgb_std[0],),
        size=size,
        min_size=min_size,
        rgb_mean=tuple(rgb_mean) if differ else None,
        rgb_std=tuple(rgb_std) if differ else None,
        **more,
    )


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
