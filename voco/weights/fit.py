"""Tensors of a file into the shapes of an encoder, all of them before anything is assigned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voco.short_repr import short_repr
from voco.weights import adapt
from voco.weights.formats import Family
from voco.weights.match import Match

# A stem with more input channels than this is not a stem; it also keeps a crafted shape from costing time.
_MAX_STEM_CHANNELS = 64
# A table of positions may be resized, within reason.
_MAX_RESIZE = 64


@short_repr
@dataclass
class Fit:
    """What would be assigned. Keys are the encoder's.

    Attributes:
        values: tensors of the right shape.
        kept: tensors of the file that equal what we compute ourselves.
        adapted: rule by which a tensor was made to fit.
        missing: not filled.
        mismatched: filled by nothing because shape or type differ, in words.
        not_finite: keys of the file with NaN or infinity.
        constant: kernels (of two dimensions or more) that hold one value only, with it.
        constant_share: their share of all values in kernels.
        zero_scales: norms that multiply by zero, where most of them do.
        coverage: share of the parameters, by volume, that is filled.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    constant: dict[str, float] = field(default_factory=dict)
    constant_share: float = 0.0
    zero_scales: list[str] = field(default_factory=list)
    coverage: float = 0.0


@short_repr
@dataclass(frozen=True)
class Fitter:
    """Makes tensors fit one encoder.

    Args:
        wanted: state dict of the encoder; only shapes and types are read, so it may be on the meta device.
        parameters: which of its entries are parameters.
        stem_keys: entries whose second dimension counts input channels.
        family: rules for tables of positions.
        inflate: rule for 2D kernels, ``repeat`` or ``centre``.
        read_values: whether values may be read to look for NaN; recognising a file does without.
    """

    wanted: Mapping[str, Tensor]
    parameters: Collection[str]
    stem_keys: Collection[str]
    family: Family
    inflate: str = "repeat"
    read_values: bool = True

    def fit(self, match: Match) -> Fit:
        """Fit every tensor that ``match`` found; nothing is assigned."""
        result, volume, filled = Fit(), 0, 0
        for name, wanted in self.wanted.items():
            volume += wanted.numel() if name in self.parameters else 0
            if name not in match.keys:
                if not name.endswith("num_batches_tracked"):  # a counter that older projects do not save
                    result.missing.append(name)
                continue
            keys = match.keys[name]
            if self._fit_one(result, name, [match.tensors[key] for key in keys], keys, match):
                filled += wanted.numel() if name in self.parameters else 0
        result.coverage = filled / volume if volume else 0.0
        kernels = {name: value for name, value in result.values.items() if value.ndim > 1 and value.is_floating_point()}
        result.constant = {name: float(value.flatten()[0]) for name, value in kernels.items() if _is_constant(value)}
        total = sum(value.numel() for value in kernels.values())
        result.constant_share = sum(kernels[name].numel() for name in result.constant) / total if total else 0.0
        scales = {name: value for name, value in result.values.items() if value.ndim == 1 and name.endswith("weight")}
        zero = [name for name, value in scales.items() if not value.is_meta and not value.any()]
        # Norms that end residual branches may begin at zero; where most are, nothing comes through.
        result.zero_scales = zero if 2 * len(zero) > len(scales) else []
        return result

    def _fit_one(self, result: Fit, name: str, values: list[Tensor], keys: tuple[str, ...], match: Match) -> bool:
        wanted = self.wanted[name]
        if name.endswith("relative_position_index"):
            # The table follows from the window; one that differs would read outside the bias table, so ours stays.
            if wanted.is_meta or (values[0].shape == wanted.shape and torch.equal(values[0], wanted)):
                result.kept.add(name)
            else:
                result.adapted[name] = "index recomputed"
            return False
        value, rules = self._shaped(name, values, wanted, match.format.inflate)
        if value is None or value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
            found = " + ".join(_describe(v) for v in values)
            result.mismatched[name] = f"{', '.join(keys)} {found}, wanted {_describe(wanted)}"
            return False
        if self.read_values and value.is_floating_point() and not torch.isfinite(value).all():
            result.not_finite.append(keys[0])
        result.values[name] = value
        if rules:
            result.adapted[name] = "; ".join(rules)
        return True

    def _shaped(
        self, name: str, values: list[Tensor], wanted: Tensor, inflate: bool
    ) -> tuple[Tensor | None, list[str]]:
        """A value of the wanted shape if a rule gives one, and the rules; the shapes are checked before any work."""
        value, rules = values[0], []
        if len(values) > 1:
            if len({(v.shape[1:], v.dtype) for v in values}) > 1 or sum(v.shape[0] for v in values) != wanted.shape[0]:
                return None, rules
            value = torch.cat(values)
        if value.shape == wanted.shape:
            return value, rules
        if (plain := adapt.without_leading_ones(value, wanted.shape)) is not None:
            return plain, rules
        if not value.is_floating_point() or value.numel() > _MAX_RESIZE * wanted.numel():
            return None, rules
        # A sum of half-precision values would be rounded to half precision once more.
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        flat = inflate and value.ndim == 4 and wanted.ndim == 5 and value.shape[2:] == wanted.shape[3:]
        if flat and value.shape[0] == wanted.shape[0] and self._channels_fit(name, value, wanted):
            value, rule = adapt.inflate(value, wanted.shape[2], self.inflate)
            rules.append(rule)
        kernels = value.ndim == wanted.ndim in (4, 5) and value.shape[2:] == wanted.shape[2:]
        if kernels and value.shape[0] == wanted.shape[0] and self._channels_fit(name, value, wanted):
            if value.shape[1] != wanted.shape[1]:
                value, rule = adapt.adapt_input_channels(value, wanted.shape[1])
                rules.append(rule)
        elif self.family.adapt is not None and (done := self.family.adapt(name, value, wanted)) is not None:
            value, rule = done
            rules.append(rule)
        return value, rules

    def _channels_fit(self, name: str, value: Tensor, wanted: Tensor) -> bool:
        if value.shape[1] == wanted.shape[1]:
            return True
        return name in self.stem_keys and 1 <= value.shape[1] <= _MAX_STEM_CHANNELS


def _is_constant(value: Tensor) -> bool:
    """Whether all values are one; the first few decide nearly always, so that files need not be read for it."""
    if value.numel() < 2:
        return False
    first = value[(0,) * value.ndim]
    corner = value[tuple(slice(2) for _ in value.shape)]
    return bool((corner == first).all()) and bool((value == first).all())


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
