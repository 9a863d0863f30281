"""Are the values of a scan Hounsfield units? Its histogram and its headers together: fine, doubtful, or surely not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voco.data.tissue import Histogram, likelihood
from voco.errors import ScanError

# What readers and writers forget, or do twice.
_RESCALES = (1000, 1024)
_NEAR = range(976, 1049, 8)  # with scanners whose air is not quite -1000
# value = this - HU: inverted with its sign, or 12 bits inverted before the intercept of -1024.
_INVERTED = (-1, 2047)
# Inverted by the largest value of a slice or of the scan.
_MIRRORS = range(-960, 4097, 96)
_OTHER = tuple(shift for shift in range(-4096, 4097, 96) if abs(shift) >= 600)
# Fewer voxels tell nothing.
_MIN_VOXELS = 500
# Gain in mean log-likelihood of a voxel over "they are Hounsfield units" (figures: docs/reading.md). No
# real scan, and no crop or window of one, reaches it together with the shares that are asked for beside it.
_SURE, _SLIGHT, _TWICE, _INVERTED_DOUBT, _OTHER_DOUBT, _OTHER_SURE = 0.5, 0.05, 0.5, 0.25, 0.6, 1.5
_WELL, _NO_TISSUE = -7.2, -8.0  # explained well enough to try no other offset; not explained at all
# One slice against the next: so many HU apart at every voxel, give or take the spread, is no anatomy.
_JUMP, _SPREAD, _CONTRAST = 60, 150, 250


@dataclass(frozen=True)
class Judgement:
    """What the values are.

    Attributes:
        wrong: surely not Hounsfield units.
        found: the sentence about it; empty where nothing is to be said.
        offsets: HU to add, where that would mend the values: the one, or those that the histogram cannot tell apart.
    """

    wrong: bool = False
    found: str = ""
    offsets: tuple[int, ...] = ()

    def sentence(self) -> str:
        """With what to do about it."""
        if not self.offsets:
            return self.found
        choice = " or ".join(map(str, self.offsets))
        return (
            f"{self.found}. If that is so, --data.offset {choice} (voco prepare: --offset) adds what is missing; if"
            " not, --data.offset 0 takes the values as they are"
        )


def judge(values: np.ndarray, rescale: tuple[float, float] | None = None) -> Judgement:
    """Judge the values of one scan.

    The distribution without padding is explained as a mixture of air, lung, fat, soft tissue and bone: as it is,
    shifted by what a rescale intercept is worth (forgotten, or applied twice), inverted, and shifted by anything.

    Args:
        values: (D, H, W) real numbers that should be Hounsfield units, padding included.
        rescale: slope and intercept of the header that are in the values already, None where there is none.
    """
    histogram = Histogram.of(values)
    if histogram.voxels < _MIN_VOXELS:
        return Judgement()
    plain = likelihood(histogram)

    def best(shifts: Sequence[float], mirrored: bool = False) -> tuple[float, int]:
        return max((likelihood(histogram, shift, mirrored) - plain, shift) for shift in shifts)

    kinds = (
        (best(_NEAR), _forgotten),
        (best([-shift for shift in _NEAR]), _twice),
        (best(_INVERTED, mirrored=True), _inverted),
        (best(_OTHER) if plain < _WELL else (-np.inf, 0), _other),
        (best(_MIRRORS, mirrored=True) if plain < _WELL else (-np.inf, 0), _mirrored),
    )
    # What explains the values best is named; anything at all must do so clearly better than what is known to happen.
    ranked = sorted(kinds, key=lambda kind: kind[0][0] - 0.3 * (kind[1] in (_other, _mirrored)), reverse=True)
    for (gain, shift), kind in ranked:
        if (found := kind(histogram, gain, shift, rescale)) is not None:
            return found
    return _no_tissue(histogram, plain)


def _word(sure: bool) -> str:
    return "not Hounsfield units" if sure else "suspicious values, perhaps not Hounsfield units"


def _forgotten(histogram: Histogram, gain: float, shift: int, rescale) -> Judgement | None:
    """Stored values: nothing like fat or air below zero, and soft tissue near 1064."""
    tissue = histogram.between(850, 1250)
    # Soft tissue is a peak, where dense bone, which lies there too, is broad.
    peaked = histogram.between(980, 1160) / 180 >= 3 * histogram.between(1250, 1600) / 350
    likely = gain >= _SURE or (gain >= _SLIGHT and histogram.low >= -60)
    sure = tissue >= 0.03 and peaked and likely
    if not sure and (tissue < 0.01 or not likely):
        return None
    apart = [value for value in histogram.padding if value < -100]
    aside = f" (padding of {apart[0]} apart)" if apart else ""
    return Judgement(
        sure,
        f"{_word(sure)}: shifted by about +{shift}{aside}, {tissue:.0%} of the voxels lie around"
        f" {histogram.peak(850, 1250):.0f}, where stored values have soft tissue before the rescale intercept is added",
        _intercepts(histogram),
    )


def _intercepts(histogram: Histogram) -> tuple[int, ...]:
    """-1024 or -1000, or both where neither the floor of the values nor the air tells them apart."""
    if histogram.low < -3:  # air of -1000 to -1024 HU, which with +1024 has no negative value
        return (-1000,)
    surely = likelihood(histogram, 1024) - likelihood(histogram, 1000) > 0.1
    return (-1024,) if surely else (-1024, -1000)


def _twice(histogram: Histogram, gain: float, shift: int, rescale) -> Judgement | None:
    """The intercept applied twice: tissue near -984, and much that is no padding below the air."""
    below, tissue = histogram.between(-1e9, -1150), histogram.between(-300, 1e9)
    # Where air was cut off at -1024 afterwards, what is left of a body is a peak just above it.
    floor = -1024 in histogram.padding and histogram.share < 0.5  # and fat and lung went with the air
    cut = tissue < 0.05 and histogram.between(-1010, -940) >= (0.4 if floor else 0.5)
    if not cut and (gain < _TWICE or below < 0.01):
        return None
    header = rescale is not None and abs(rescale[1] - shift) <= 100
    sure = gain >= _TWICE and below >= (0.01 if header else 0.05)
    told = f" (the header adds {rescale[1]:g} to them)" if header else ""
    return Judgement(
        sure,
        f"{_word(sure)}: shifted by about {shift}{told}, {below:.0%} of the voxels without padding are below -1150,"
        f" where no tissue is, and {tissue:.0%} above -300: the rescale intercept applied twice"
        + ("" if sure else ", or nothing but air"),
        (-round(rescale[1]),) if header else _RESCALES[::-1],
    )


def _inverted(
    histogram: Histogram, gain: float, shift: int, rescale, doubt: float = _INVERTED_DOUBT, sure: float = _SURE
) -> Judgement | None:
    bright = histogram.between(800, 1e9)
    if gain < doubt or bright < 0.05:
        return None
    return Judgement(
        gain >= sure,
        f"{_word(gain >= sure)}: inverted, {bright:.0%} of the voxels are above 800, as if air were the brightest"
        f" (value = about {shift} - HU); convert the scan again without inverting MONOCHROME1",
    )


def _mirrored(histogram: Histogram, gain: float, shift: int, rescale) -> Judgement | None:
    return _inverted(histogram, gain, shift, rescale, _OTHER_DOUBT, _OTHER_SURE)


def _other(histogram: Histogram, gain: float, shift: int, rescale) -> Judgement | None:
    """Ranges that no CT has, and offsets that nobody is known to use."""
    below, above = histogram.between(-1e9, -1500), histogram.between(5000, 1e9)
    if below > 0.05 or above > 0.3:
        return Judgement(
            True,
            f"not Hounsfield units: values without padding run from {histogram.low:g} to {histogram.high:g},"
            f" {below:.0%} of them below -1500 and {above:.0%} above 5000, as no CT has them; wrapped 16-bit"
            " values, another scale, or another modality",
        )
    if gain < _OTHER_DOUBT:
        return None
    sure = gain >= _OTHER_SURE and histogram.between(1300, 1e9) >= 0.5
    found = f"{_word(sure)}: shifted, tissue would fit if all were about {abs(shift)} "
    # Bright air is as common as tissue, and the histogram cannot tell them apart.
    found += "lower (look at a slice first: where air is bright, it is inverted)" if shift > 0 else "higher"
    return Judgement(sure, found, (-shift,))


def _no_tissue(histogram: Histogram, plain: float) -> Judgement:
    ends = histogram.padding[:1] + histogram.padding[-1:]
    if len(ends) == 2 and ends[0] in (-128, -127) and ends[1] in (126, 127):
        return Judgement(
            False,
            f"{_word(False)}: cut off at {ends[0]} and {ends[1]}, the range of 8-bit pictures; if it is one, convert"
            " the scan again without a window",
        )
    if plain >= _NO_TISSUE:
        return Judgement()
    return Judgement(
        False,
        f"{_word(False)}: from {histogram.low:g} to {histogram.high:g} there is no peak of air, lung, fat or soft"
        " tissue where it should be",
    )


def check_values(
    values: np.ndarray, name: str, *, rescale: tuple[float, float] | None = None, taken: bool = False
) -> tuple[str, ...]:
    """Refuse values that are surely not Hounsfield units.

    Args:
        values, rescale: see ``judge``.
        name: how to call the scan in an error.
        taken: the user says that they are Hounsfield units; then nothing is refused here.

    Returns:
        Sentences about what is doubtful.

    Raises:
        ScanError: see above; it offers the offset that would mend them.
    """
    found = judge(values, rescale)
    if found.wrong and not taken:
        raise ScanError(f"{name}: {found.sentence()}")
    return (found.sentence(),) if found.found else ()


def check_planes(planes: np.ndarray, name: str, rescales: Sequence[tuple[float, float] | None] = ()) -> None:
    """Refuse a stack in which some slices lie a rescale intercept above or below their neighbours.

    Args:
        planes: (N, H, W) values in the order of the stack.
        name: how to call the scan in an error.
        rescales: slope and intercept of each slice in its header, where they are known.

    Raises:
        ScanError: such slices, or slices without rescale values among slices with them.
    """
    given = [r for r in rescales if r is not None]
    if given and len(given) < len(rescales) and any(r != (1.0, 0.0) for r in given):
        raise ScanError(
            f"{name}: {len(rescales) - len(given)} of {len(rescales)} slices have no RescaleSlope and RescaleIntercept"
            f" (others: {given[0][0]:g} and {given[0][1]:g}), so what their values mean is not known: set them in these"
            " slices, or remove the slices"
        )
    shifted = _shifted_planes(planes)
    if not shifted:
        return
    first, by = shifted[0]
    headers = f" (RescaleIntercept there {rescales[first][1]:g})" if len(set(given)) > 1 else ""
    raise ScanError(
        f"{name}: not Hounsfield units in {len(shifted)} of {len(planes)} slices: slice {first + 1} lies about"
        f" {by:+d} beside its neighbours at every voxel{headers}, its rescale intercept is wrong, missing or applied"
        " twice; mend these slices, or remove them"
    )


def _shifted_planes(planes: np.ndarray) -> list[tuple[int, int]]:
    """(slice, by how much) of the slices that are not at the level of most."""
    step = [max(1, n // 64) for n in planes.shape[1:]]
    thin = planes[:, :: step[0], :: step[1]].reshape(len(planes), -1).astype(np.float32)
    # A slice of air alone beside one of tissue alone would be such a jump, too.
    spread = np.subtract(*np.percentile(thin, [95, 5], axis=1))
    low, half, high = np.percentile(np.diff(thin, axis=0), [25, 50, 75], axis=1)
    textured = np.minimum(spread[1:], spread[:-1]) > _CONTRAST
    nearest = np.array([*_RESCALES, *(-shift for shift in _RESCALES)])[None]
    jump = (np.abs(half[:, None] - nearest).min(1) <= _JUMP) & textured
    jump &= (high - half <= _SPREAD) & (half - low <= _SPREAD)
    level = np.concatenate([[0], np.cumsum(np.where(jump, np.sign(half), 0))]).astype(int)
    usual = np.bincount(level - level.min()).argmax() + level.min()
    size = np.abs(half[jump]).mean() if jump.any() else 0
    return [(int(i), round(float(size * (level[i] - usual)))) for i in np.flatnonzero(level != usual)]
