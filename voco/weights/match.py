"""Which tensor of a file is which tensor of an encoder: prefixes, formats, networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from voco.errors import InputError
from voco.short_repr import short_repr
from voco.weights.contents import Contents, below, is_under
from voco.weights.formats import OWN, Family, Format, Part
from voco.weights.networks import (
    chosen_roots,
    is_copy,
    network_names,
    network_roots,
    sole_words,
    suffixes,
)

# Wrappers of so many kinds may stand in the middle of names at once (sharded, checkpointed and compiled).
_MOST_WORDS = 3
_MOST_TRIED = 5


@short_repr
@dataclass
class Match:
    """How a file would fill an encoder, by names alone. Keys of the file are those within its ``wrapper``.

    Attributes:
        format: how the file names things.
        root: path that leads to the network: keys of dictionaries, then what its tensors' names begin with.
        wrapper: path of the dictionary that the network lies in.
        tensors: all tensors in that dictionary.
        network: name of the network, where the file holds several; ``others`` are the names of the other ones.
        keys: tensor of the encoder -> keys of the file, several where they are stacked.
        dropped: key of the file -> what it is, for what an encoder has no use for, other networks included.
        strangers: keys of the file that belong inside the encoder by their names and have no place in it.
        doubles: pairs of keys that claim one place, the first of which has it.
        fitting: how many of ``keys`` have as many dimensions as the encoder wants.
    """

    format: Format
    root: str = ""
    wrapper: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    network: str | None = None
    others: tuple[str, ...] = ()
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    doubles: list[tuple[str, str]] = field(default_factory=list)
    fitting: int = 0

    def paths(self) -> list[str]:
        """Whole paths of the tensors that are used."""
        start = f"{self.wrapper}." if self.wrapper else ""
        return [start + key for keys in self.keys.values() for key in keys]


def find_match(
    wanted: Mapping[str, Tensor],
    family: Family,
    contents: Contents,
    which: str = "auto",
    parts: Mapping[str, str] | None = None,
) -> Match:
    """The format and network that account for most tensors of an encoder.

    A network is found by its own names: the prefix behind which most tensors of the encoder are. Words that wrap
    modules in the middle of names are left out where more is found without them.

    Args:
        wanted: state dict of the encoder.
        family: its family.
        contents: of the file.
        which: network asked for, by its name, its path or a part of that; or ``auto``: the one that matches most, at a
            tie one that is not called a copy (ema, teacher, momentum …), then the first in the file.
        parts: optional parts that the encoder has, with what their tensors' names begin with.

    Raises:
        InputError: the file does not hold the network that was asked for.
    """
    search = partial(_search, (*family.formats, OWN), wanted, contents, parts or {})
    best, words = search(_short(contents, []), which), []
    counted = sum(not name.endswith("num_batches_tracked") for name in wanted)
    while best.fitting < counted and len(words) < _MOST_WORDS:
        names = [(contents.wrapper_of(short), short) for short in _short(contents, words)]
        above = best.root.split(".") if best.fitting else []  # a prefix that is known already
        alone = sole_words(((at, below(short, at)) for at, short in names), wanted, above)[:_MOST_TRIED]
        # Two wrappers around one module hide each other: then nothing is found until both are gone.
        trials = [
            (search(_short(contents, [*words, *more]), which), more)
            for more in dict.fromkeys([*combinations(alone, 1), *combinations(alone, 2), tuple(alone)] if alone else [])
        ]
        better, more = max(trials, key=lambda trial: trial[0].fitting, default=(best, ()))
        if better.fitting <= best.fitting:
            break
        best, words = better, [*words, *more]
    if which != "auto" and not best.keys:
        several = search(_short(contents, words), "auto")
        held = [several.network, *several.others] if several.others else ["one network only"]
        raise InputError(f"{contents.file} holds no {which} encoder; it holds {', '.join(held)}")
    return best


def _short(contents: Contents, words: Collection[str]) -> dict[str, str]:
    """Paths without some words in the tensors' own names -> paths; empty where two would become one."""
    found = {}
    for path, place in contents.places.items():
        name = ".".join(word for word in place[-1].split(".") if word not in words)
        found[path[: len(path) - len(place[-1])] + name] = path
    return found if len(found) == len(contents.places) else {}


def _search(
    formats: Sequence[Format],
    wanted: Mapping[str, Tensor],
    contents: Contents,
    parts: Mapping[str, str],
    names: Mapping[str, str],
    which: str,
) -> Match:
    """The best match among the networks of a file and the formats that each may be in."""
    matches = []
    for fmt in formats:
        rename = fmt.rename_for(wanted) if fmt.rename_for else fmt.rename
        held = network_names(network_roots(_counts(fmt, rename, wanted, contents, names)))
        for root in held if which == "auto" else chosen_roots(which, held):
            match = _match(fmt, rename, wanted, contents, parts, names, root)
            match.network = held[root] if len(held) > 1 else None
            matches.append((match, {other: name for other, name in held.items() if other != root}))

    def rank(found: tuple[Match, Mapping]) -> tuple:
        match, _ = found
        return match.fitting, len(match.keys), not is_copy(match.network or "")

    # Of equals the first: the home project's format, the network that stands first in the file.
    nothing = Match(OWN, wrapper=contents.largest(), tensors=contents.within(contents.largest()))
    best, others = max(matches, key=rank, default=(nothing, {}))
    _name_others(best, others, contents, names)
    return best


def _name_others(best: Match, others: Mapping[str, str], contents: Contents, names: Mapping[str, str]) -> None:
    """Say of the tensors of other networks whose they are; a copy with the same values is no other network."""
    inside = {below(short, best.root): path for short, path in names.items() if is_under(short, best.root)}
    used, different = set(best.paths()), []
    for root, name in others.items():
        theirs = {short: path for short, path in names.items() if is_under(short, root)}
        twins = [(inside.get(below(short, root)), path) for short, path in theirs.items()]
        same = all(torch.equal(contents.tensors[ours], contents.tensors[path]) for ours, path in twins if ours in used)
        different += [] if same else [name]
        for path in theirs.values():
            if path not in used and is_under(path, best.wrapper):
                best.dropped[below(path, best.wrapper)] = "repeated name" if same else name
    best.others = tuple(different)
    best.network = best.network if different else None


def _target(rename: Callable[[str], str | Part], name: str) -> tuple[str, Part | None]:
    target = rename(name)
    return (target.key, target) if isinstance(target, Part) else (target, None)


def _counts(
    fmt: Format,
    rename: Callable[[str], str | Part],
    wanted: Mapping[str, Tensor],
    contents: Contents,
    names: Mapping[str, str],
) -> dict[str, int]:
    """Tensors of the encoder behind each prefix of a file."""
    behind: dict[str, set[str]] = {}
    for short, path in names.items():
        for root, name in suffixes(short):
            ours, _ = _target(rename, name)
            if ours in wanted and _plausible(contents.tensors[path], wanted[ours], fmt):
                behind.setdefault(root, set()).add(path)
    # A format may know names with and without their beginning (``net.``): of two prefixes with the same tensors behind
    # them, the longer one leads to the network, and the shorter one to whatever lies beside it as well.
    return {
        root: len(paths)
        for root, paths in behind.items()
        if not any(other != root and is_under(other, root) and paths == behind[other] for other in behind)
    }


def _match(
    fmt: Format,
    rename: Callable[[str], str | Part],
    wanted: Mapping[str, Tensor],
    contents: Contents,
    parts: Mapping[str, str],
    names: Mapping[str, str],
    root: str,
) -> Match:
    """Everything about the network behind one prefix."""
    wrapper = contents.wrapper_of(root)
    match = Match(fmt, root, wrapper, contents.within(wrapper))
    modules = {name.partition(".")[0] for name in wanted if "." in name}
    beside = [pattern for pattern in (fmt.beside, *parts.values()) if pattern]
    pieces: dict[str, dict[int, tuple[str, Part]]] = {}
    outside = []
    for short, path in names.items():
        if not is_under(path, wrapper):
            continue
        key = below(path, wrapper)
        if not is_under(short, root):
            outside.append((short, key))
            continue
        name = below(short, root)
        ours, part = _target(rename, name)
        if ours in wanted:
            _take(match, pieces, key, ours, part)
        elif (reason := fmt.dropped(name)) and reason not in parts:
            match.dropped[key] = reason
        elif "." in ours and ours.partition(".")[0] in modules and contents.tensors[path].is_floating_point():
            match.strangers.append(key)
    for short, key in outside:
        for above, name in suffixes(short):
            ours, part = _target(rename, name)
            if ours in wanted and is_under(root, above) and any(re.match(p, name) or re.match(p, ours) for p in beside):
                _take(match, pieces, key, ours, part)
                break
            if reason := fmt.dropped(name):
                match.dropped[key] = reason
                break
    for ours, found in pieces.items():
        if all(index in found for index in range(next(iter(found.values()))[1].of)):
            match.keys.setdefault(ours, tuple(found[index][0] for index in sorted(found)))
    match.dropped |= {again: "repeated name" for _, again in match.doubles}
    match.fitting = sum(_plausible(match.tensors[keys[0]], wanted[ours], fmt) for ours, keys in match.keys.items())
    return match


def _take(match: Match, pieces: dict, key: str, ours: str, part: Part | None) -> None:
    """Give a tensor of the encoder to a key of the file; whoever comes first has it."""
    if part is None:
        [first] = match.keys.setdefault(ours, (key,))
    else:
        first, _ = pieces.setdefault(ours, {}).setdefault(part.index, (key, part))
    if first != key:
        match.doubles.append((first, key))


def _plausible(value: Tensor, wanted: Tensor, fmt: Format) -> bool:
    """Names alone do not tell a 2D network from the 3D one that was modelled on it; the kernels' dimensions do."""
    if fmt.inflate and wanted.ndim == 5:
        return value.ndim == 4
    return value.ndim == wanted.ndim or (value.ndim > wanted.ndim and value.shape[0] == 1)
