"""What a file would do to an encoder: looked at as a whole, before anything is assigned."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from voco.encoders.base import Encoder
from voco.weights.contents import Contents
from voco.weights.families import find_family
from voco.weights.fit import Fit, Fitter
from voco.weights.match import Match, find_match
from voco.weights.refusals import sharded
from voco.weights.report import LoadReport

EXAMPLES = 10
# Share of the kernels' values that may be constant: a network may begin some of its last layers at zero.
_MOST_CONSTANT = 0.5


@dataclass(frozen=True)
class Examination:
    """Names (``match``), shapes (``fit``) and both in words (``report``).

    ``torn`` is a pair of the file's keys that claim one place with different values: two networks under one name.
    """

    match: Match
    fit: Fit
    report: LoadReport
    torn: tuple[str, str] | None = None


def examine(encoder: Encoder, contents: Contents, *, which: str = "auto", inflate: str = "repeat") -> Examination:
    """Find a place for every tensor of a file in an encoder, which may be on the meta device.

    Args:
        encoder: made by ``create_encoder``.
        contents: what the file holds.
        which, inflate: see ``voco.weights.load.load_weights``.

    Raises:
        InputError: the file does not hold the network that ``which`` asks for.
    """
    family, state = find_family(encoder.family), encoder.state_dict()
    match = find_match(state, family, contents, which, encoder.optional_parts)
    parameters = dict(encoder.named_parameters())
    read_values = not any(parameter.is_meta for parameter in parameters.values())
    fit = Fitter(state, parameters.keys(), encoder.stem_keys, family, inflate, read_values).fit(match)
    used = {key for keys in match.keys.values() for key in keys}
    report = LoadReport(
        file=contents.file,
        encoder=encoder.name or type(encoder).__name__,
        loaded=tuple(sorted(set(fit.values) - set(fit.adapted) | fit.kept)),
        adapted=fit.adapted,
        missing=tuple(sorted(fit.missing)),
        unexpected=tuple(sorted(set(match.tensors) - used - set(match.dropped))),
        coverage=fit.coverage,
        wrapper=contents.wrappers[match.wrapper],
        which=match.network,
        others=match.others,
        format=match.format.name,
        dropped=match.dropped,
    )
    torn = next((pair for pair in match.doubles if not _same(*(match.tensors[key] for key in pair))), None)
    return Examination(match, fit, report, torn)


def misfit(encoder: Encoder, found: Examination, exact: bool = False) -> str | None:
    """Why a file must not be loaded, the most telling reason first, or None where it fits.

    Args:
        exact: the file is ours, so that nothing may be missing or left over.
    """
    fit, match, report = found.fit, found.match, found.report
    lost_stems = [key for key in encoder.stem_keys if key in fit.missing]
    lost_statistics = [key for key in fit.missing if key.endswith(("running_mean", "running_var"))]
    minimum = encoder.minimum_coverage if match.format.minimum is None else match.format.minimum
    if torn_apart := sharded(match.tensors):
        return torn_apart
    if not report.loaded and not report.adapted and not fit.mismatched:
        return "no tensor has a name that the encoder knows (another architecture?)"
    if match.format.encoders and encoder.name not in (meant := match.format.encoders("\n".join(match.tensors))):
        return (
            f"files of {match.format.name} are for {' or '.join(meant) or 'other networks'}; {encoder.name} is another "
            f"network, even where its tensors have the same shapes"
        )
    if fit.mismatched:
        lines = [f"  {text}" for text in list(fit.mismatched.values())[:EXAMPLES]]
        return f"{_tensors(len(fit.mismatched))} of another shape or type:\n" + "\n".join(lines)
    if lost_stems:
        return f"the stem is missing: {', '.join(lost_stems)}"
    if absent := _absent_part(encoder, fit):
        return (
            f"the file has no {absent}, which {absent}=True asks for; leave that argument out, or name a file of a "
            f"whole network"
        )
    if fit.coverage < minimum:
        return f"it fills {_percent(fit.coverage)} of the parameters, {_percent(minimum)} are needed"
    if lost_statistics and match.format.minimum is None and not exact:
        return f"running statistics are missing: {', '.join(lost_statistics[:EXAMPLES])}"
    if match.strangers and not exact:
        return (
            f"the file's network has {_tensors(len(match.strangers))} more, inside what the encoder also has (a deeper "
            f"or otherwise different network?): {', '.join(match.strangers[:EXAMPLES])}"
        )
    if found.torn:
        return (
            f"it holds two networks of these names, of which {' and '.join(found.torn)} differ; "
            f"save the tensors of the one that you want in a file of their own"
        )
    if exact and (report.missing or report.unexpected or set(report.dropped.values()) - {"decoder"}):
        return "the folder's config.json and its weights do not belong together"
    if problem := _constant(fit, () if exact else encoder.stem_keys):
        others = f"; it also holds {', '.join(match.others)}: name one with which" if match.others else ""
        return problem + others
    if fit.not_finite:
        return f"it holds values that are not finite, for example in {fit.not_finite[0]}"
    return None


def _constant(fit: Fit, stems: Iterable[str]) -> str | None:
    """Kernels of one value only: what an interrupted copy or a file saved before training holds."""
    first = next((key for key in stems if key in fit.constant), None)
    if first is None and fit.constant_share <= _MOST_CONSTANT:
        return _zero_scales(fit)
    name = first or next(iter(fit.constant))
    return (
        f"{_percent(fit.constant_share)} of the values in its kernels are constant, for example {name} is "
        f"{fit.constant[name]:g} everywhere: nothing was trained, or the file is incomplete; fetch or save it again"
    )


def _zero_scales(fit: Fit) -> str | None:
    if not fit.zero_scales:
        return None
    return (
        f"most of its norms multiply by zero, for example {fit.zero_scales[0]}: nothing was trained, or the file is "
        "incomplete; fetch or save it again"
    )


def _absent_part(encoder: Encoder, fit: Fit) -> str | None:
    """The part that an argument added to the encoder and that the file has nothing of."""
    for part, pattern in encoder.optional_parts.items():
        if not any(re.match(pattern, key) for key in (*fit.values, *fit.kept)):
            return part
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    # 99.97 % must not be printed as 100 % in a message that says that 100 % are needed.
    return f"{int(share * 1000) / 10:.1f}%" if share < 1 else "100%"
