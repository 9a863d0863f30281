"""Which tensor of a file is which tensor of an encoder: prefixes, formats, networks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from voco.errors import InputError
from voco.weights.formats import OWN, Family, Format, Part
from voco.weights.read import NETWORKS

_PREFIXES = ("module", "_orig_mod", "backbone", "model", "encoder")
_NETWORK_OF_PREFIX = {prefix: name for name, prefixes in NETWORKS.items() for prefix in prefixes}


@dataclass
class Match:
    """How a file would fill an encoder, by names alone.

    Attributes:
        format: how the file names things.
        network: student, teacher or ema where the file's keys say so, else None.
        keys: tensor of the encoder -> keys of the file, several where they are stacked.
        dropped: key of the file -> what it is, for what an encoder has no use for, other networks included.
        strangers: keys of the file that belong inside the encoder by their names and have no place in it.
        doubles: pairs of keys that claim one place, the first of which has it.
    """

    format: Format
    network: str | None = None
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()
    doubles: list[tuple[str, str]] = field(default_factory=list)


def stripped(key: str) -> Iterator[tuple[str, str | None]]:
    """A key with none, one, two … of its wrapping prefixes taken off, and the network that those name."""
    network, rest = None, key
    while True:
        yield rest, network
        prefix, dot, remainder = rest.partition(".")
        if not dot or prefix not in (*_PREFIXES, *_NETWORK_OF_PREFIX):
            return
        network = _NETWORK_OF_PREFIX.get(prefix, network)
        rest = remainder


def find_match(
    wanted: Mapping[str, Tensor],
    family: Family,
    tensors: Mapping[str, Tensor],
    which: str,
    chosen: str | None,
    file: str,
    parts: Collection[str] = (),
) -> Match:
    """The format and network that account for most tensors of an encoder.

    Args:
        wanted: state dict of the encoder.
        family: its family.
        tensors: of the file.
        which: network asked for, or ``auto``: the one that matches most, at a tie the plain one, student, teacher, ema.
        chosen: network that a wrapper key has already named.
        file: name for error messages.
        parts: optional parts that the encoder has, so that a tensor of one that finds no place is not just left out.

    Raises:
        InputError: the file does not hold the network that was asked for.
    """
    candidates = [_matches(fmt, wanted, tensors, parts) for fmt in (*family.formats, OWN)]
    matches = [match for several in candidates for match in several]
    if which != "auto" and chosen != which:
        networks = sorted({m.network for m in matches if m.network and m.keys} | ({chosen} if chosen else set()))
        matches = [m for m in matches if m.network == which]
        if not any(m.keys for m in matches):
            raise InputError(
                f"{file} holds no {which} encoder; it holds {', '.join(networks) if networks else 'one network only'}"
            )
    order = (None, *NETWORKS)

    def rank(match: Match) -> tuple:
        fitting = sum(_plausible(tensors[keys[0]], wanted[name], match.format) for name, keys in match.keys.items())
        return fitting, len(match.keys), -order.index(match.network)

    best = max(matches, key=rank)  # of equals the first: the home project's format
    for other in next(several for several in candidates if any(match is best for match in several)):
        if other is not best:
            label = other.network or "network without a name"
            best.dropped |= {key: label for keys in other.keys.values() for key in keys}
    return best


def _matches(
    fmt: Format, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], optional: Collection[str]
) -> list[Match]:
    """One match per network that the file's keys name."""
    found: dict[str | None, Match] = {None: Match(fmt)}
    parts: dict[tuple[str | None, str], dict[int, tuple[str, int]]] = {}
    dropped: dict[str, str] = {}
    strangers: dict[str | None, list[str]] = {}
    modules = {name.partition(".")[0] for name in wanted if "." in name}
    for key in tensors:
        targets, network = [], None
        for name, network in stripped(key):
            target = fmt.rename(name)
            ours = target.key if isinstance(target, Part) else target
            if ours in wanted:
                match = found.setdefault(network, Match(fmt, network))
                if isinstance(target, Part):
                    first, _ = parts.setdefault((network, ours), {}).setdefault(target.index, (key, target.of))
                else:
                    [first] = match.keys.setdefault(ours, (key,))
                if first != key:
                    match.doubles.append((first, key))
                break
            if (reason := fmt.dropped(name)) and reason not in optional:
                dropped[key] = reason
                break
            targets.append(ours)
        else:
            owners = {target.partition(".")[0] for target in targets if "." in target}
            if owners & modules and tensors[key].is_floating_point():
                strangers.setdefault(network, []).append(key)
    for (network, target), pieces in parts.items():
        if all(index in pieces for index in range(next(iter(pieces.values()))[1])):
            found[network].keys.setdefault(target, tuple(pieces[index][0] for index in sorted(pieces)))
    for match in found.values():
        match.dropped = dropped | {again: "repeated name" for _, again in match.doubles}
        of_network = strangers.get(match.network, []) if match.network else []
        match.strangers = (*strangers.get(None, ()), *of_network)
    return list(found.values())


def _plausible(value: Tensor, wanted: Tensor, fmt: Format) -> bool:
    """Names alone do not tell a 2D network from the 3D one that was modelled on it; the kernels' dimensions do."""
    if fmt.inflate and wanted.ndim == 5:
        return value.ndim == 4
    return value.ndim == wanted.ndim or (value.ndim > wanted.ndim and value.shape[0] == 1)
