"""Weights of a file into an encoder: all of them checked first, then assigned, and a report of what was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from voco.encoders.base import Encoder
from voco.errors import InputError
from voco.weights.adapt import adapt_input_channels
from voco.weights.convert import converter
from voco.weights.folder import WEIGHTS_FILE, find_encoder_folder, read_config
from voco.weights.read import NETWORKS, read_tensors
from voco.weights.report import LoadReport

WHICH = ("auto", *NETWORKS)
_PREFIXES = ("module", "_orig_mod", "backbone", "model", "encoder")
_NETWORK_OF_PREFIX = {prefix: name for name, prefixes in NETWORKS.items() for prefix in prefixes}
# A stem with more input channels than this is not a stem; it also keeps a crafted shape from costing time.
_MAX_STEM_CHANNELS = 64
_EXAMPLES = 10


def load_weights(encoder: Encoder, path: str | Path, *, which: str = "auto") -> LoadReport:
    """Fill an encoder from a weights file, or leave it untouched and say why.

    Reads safetensors and torch files (never running code in them), finds the state dict in the usual wrappers, strips
    ``module. _orig_mod. backbone. model. encoder.`` in any nesting, converts the names of the encoder's family and
    adapts the stem to its number of input channels.

    Args:
        encoder: from ``create_encoder``; its parameters are overwritten in place.
        path: weights file, encoder folder (``config.json`` and ``model.safetensors``) or run folder that holds one.
        which: the network to take from a checkpoint of several. ``auto`` takes the one that matches most tensors,
            at a tie the plain one, then student, teacher, ema.

    Returns:
        The report, also kept as ``encoder.load_report``.

    Raises:
        InputError: unreadable file, or one that does not fit (too little filled, a stem or any shape that differs,
            values that are not finite); the encoder is then as it was.
    """
    if which not in WHICH:
        raise InputError(f"which must be one of {', '.join(WHICH)}; found {which!r}")
    file, config = _locate(encoder, path)
    tensors, wrapper, chosen = read_tensors(file, which)
    label, matches = _match(encoder, tensors, which, chosen, file.name)
    plan = _plan(encoder, tensors, matches)
    report = LoadReport(
        file=file.name,
        encoder=encoder.name or type(encoder).__name__,
        loaded=tuple(sorted(set(plan.values) - set(plan.adapted) | plan.kept)),
        adapted=plan.adapted,
        missing=tuple(sorted(plan.missing)),
        unexpected=tuple(sorted(set(tensors) - set(matches.values()))),
        coverage=plan.coverage,
        wrapper=wrapper,
        which=label or chosen,
    )
    _validate(encoder, report, plan, tensors, exact=config is not None)

    target = encoder.state_dict()
    with torch.no_grad():
        for key, value in plan.values.items():
            target[key].copy_(value)
    encoder.load_report = report
    if config is not None:
        encoder.provenance = list(config["provenance"])
    elif not encoder.provenance:
        encoder.provenance = [{"source": "file", "file": file.name}]
    return report


@dataclass
class _Plan:
    """What would be assigned, before anything is."""

    values: dict[str, Tensor] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    coverage: float = 0.0


def _locate(encoder: Encoder, path: str | Path) -> tuple[Path, dict | None]:
    """The file to read and, where it is one of our folders, its config."""
    path = Path(path).expanduser()
    folder = find_encoder_folder(path)
    config = read_config(path) if folder else None
    if config is not None:
        if encoder.name and config["arch"] != encoder.name:
            raise InputError(f"{path} holds a {config['arch']}, which does not fit a {encoder.name}")
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise InputError(f"{folder} has no {WEIGHTS_FILE} beside its config.json; export or copy it again")
    elif path.is_dir():
        raise InputError(
            f"{path} is not an encoder folder (config.json, model.safetensors) nor a run folder with one in encoder/; "
            f"name a weights file, or wait until the run has exported its encoder"
        )
    elif not path.is_file():
        from voco.weights.sources import SOURCES

        tags = [s for s in SOURCES.values() if str(path) in (s.name, s.tag) and encoder.name in ("", s.arch)]
        raise InputError(tags[0].how_to_get() if tags else f"no weights at {path}: expected a file or a folder")
    return path, config


def _match(
    encoder: Encoder, tensors: Mapping[str, Tensor], which: str, chosen: str | None, file: str
) -> tuple[str | None, dict[str, str]]:
    """Encoder tensors to file keys, for the network asked for; the label is None for keys that name no network."""
    target, convert = encoder.state_dict().keys(), converter(encoder.family)
    found: dict[str | None, dict[str, str]] = {}
    for key in tensors:
        name, label = _target_name(key, target, convert)
        if name is not None:
            found.setdefault(label, {}).setdefault(name, key)
    if which != "auto" and chosen != which:
        if which not in found:
            networks = sorted({label for label in found if label} | ({chosen} if chosen else set()))
            raise InputError(
                f"{file} holds no {which} encoder; it holds {', '.join(networks) if networks else 'one network only'}"
            )
        return which, found[which]
    order = (None, *NETWORKS)
    best = max(order, key=lambda label: (len(found.get(label, {})), -order.index(label)))
    return best, found.get(best, {})


def _target_name(key: str, target, convert) -> tuple[str | None, str | None]:
    """The encoder tensor that a file key means, with as few prefixes stripped as possible, and its network label."""
    label, rest = None, key
    while True:
        if (name := convert(rest)) in target:
            return name, label
        prefix, dot, remainder = rest.partition(".")
        if not dot or prefix not in (*_PREFIXES, *_NETWORK_OF_PREFIX):
            return None, label
        label = _NETWORK_OF_PREFIX.get(prefix, label)
        rest = remainder


def _plan(encoder: Encoder, tensors: Mapping[str, Tensor], matches: dict[str, str]) -> _Plan:
    plan, volume, filled = _Plan(), 0, 0
    parameters = {name for name, _ in encoder.named_parameters()}
    for name, wanted in encoder.state_dict().items():
        volume += wanted.numel() if name in parameters else 0
        if name not in matches:
            plan.missing.append(name)
            continue
        value, rule = tensors[matches[name]], None
        if name in encoder.stem_keys and _other_channels(value, wanted):
            value, rule = adapt_input_channels(value, wanted.shape[1])
        if value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
            plan.mismatched[name] = f"{matches[name]} {_describe(value)}, wanted {_describe(wanted)}"
            continue
        if name.endswith("relative_position_index"):
            # The table follows from the window; one that differs would read outside the bias table, so ours stays.
            if torch.equal(value, wanted):
                plan.kept.add(name)
            else:
                plan.adapted[name] = "index recomputed"
            continue
        if value.is_floating_point() and not torch.isfinite(value).all():
            plan.not_finite.append(matches[name])
        plan.values[name] = value
        if rule:
            plan.adapted[name] = rule
        filled += wanted.numel() if name in parameters else 0
    plan.coverage = filled / volume
    return plan


def _other_channels(value: Tensor, wanted: Tensor) -> bool:
    return (
        value.ndim == wanted.ndim == 5
        and value.is_floating_point()
        and value.shape[1] != wanted.shape[1]
        and 1 <= value.shape[1] <= _MAX_STEM_CHANNELS
        and value.shape[:1] + value.shape[2:] == wanted.shape[:1] + wanted.shape[2:]
    )


def _validate(encoder: Encoder, report: LoadReport, plan: _Plan, tensors: Mapping[str, Tensor], exact: bool) -> None:
    """Refuse anything but a fit; the order is from the most telling reason to the least."""
    label = f"{report.file} does not fit encoder {report.encoder}"
    lost_stems = [key for key in encoder.stem_keys if key in plan.missing]
    reason = None
    if not report.loaded and not report.adapted and not plan.mismatched:
        reason = "no tensor has a name that the encoder knows (another architecture?)"
    elif plan.mismatched:
        lines = [f"  {text}" for text in list(plan.mismatched.values())[:_EXAMPLES]]
        reason = f"{len(plan.mismatched)} tensors have another shape or type:\n" + "\n".join(lines)
    elif lost_stems:
        reason = f"the stem is missing: {', '.join(lost_stems)}"
    elif plan.coverage < encoder.minimum_coverage:
        reason = f"it fills {plan.coverage:.1%} of the parameters, {encoder.minimum_coverage:.0%} are needed"
    elif exact and (report.missing or report.unexpected):
        reason = "the folder's config.json and its weights do not belong together"
    elif plan.not_finite:
        raise InputError(
            f"{report.file} holds values that are not finite, for example in {plan.not_finite[0]}; nothing was loaded"
        )
    if reason is None:
        return
    state = encoder.state_dict()
    raise InputError(
        f"{label}: {reason}\n"
        f"the encoder still wants {_examples([f'{k} {tuple(state[k].shape)}' for k in report.missing])}\n"
        f"the file has, not used, {_examples([f'{k} {tuple(tensors[k].shape)}' for k in report.unexpected])}\n"
        f"nothing was loaded"
    )


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _examples(keys: list[str]) -> str:
    if not keys:
        return "nothing"
    more = f", … ({len(keys)} in all)" if len(keys) > _EXAMPLES else ""
    return ", ".join(keys[:_EXAMPLES]) + more
