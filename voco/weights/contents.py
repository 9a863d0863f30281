"""What a weights file holds: every tensor that lies under a name, however deep, and the way to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from voco.errors import InputError
from voco.short_repr import short_repr
from voco.weights.refusals import not_dense

# Deeper than any published checkpoint; a dict that holds itself has no end.
_DEEPEST = 12
_LONGEST_NAME = 500
_CONTAINERS = (Mapping, list, tuple)


@short_repr
@dataclass(frozen=True)
class Contents:
    """Tensors of a file, found by looking for dictionaries of them, whatever those are called.

    Attributes:
        file: name for messages.
        tensors: by whole path, the keys of all containers joined by dots: ``state_dict.module.conv1.weight``.
        places: those keys one by one; the last one is the tensor's own name, the others are its wrappers.
        check: compares the checksums of the tensors at some places with their bytes, where the format has any.
    """

    file: str
    tensors: dict[str, Tensor]
    places: dict[str, tuple]
    check: Callable[[Iterable[Sequence[object]]], None] = field(default=lambda places: None, repr=False)

    @functools.cached_property
    def wrappers(self) -> dict[str, tuple[str, ...]]:
        """Every dictionary that tensors lie in: its path, and the keys that lead to it."""
        ways = {place[:length] for place in self.places.values() for length in range(len(place))}
        return {_joined(way): tuple(map(str, way)) for way in sorted(ways, key=lambda way: (len(way), _joined(way)))}

    def wrapper_of(self, path: str) -> str:
        """The path of the innermost dictionary that a path leads into or through; empty for the file itself."""
        while path not in self.wrappers:
            path = path.rpartition(".")[0]
        return path

    def within(self, wrapper: str) -> dict[str, Tensor]:
        """The tensors under the path of a dictionary, by what is left of their own paths."""
        return {below(path, wrapper): tensor for path, tensor in self.tensors.items() if is_under(path, wrapper)}

    def largest(self) -> str:
        """The path of the dictionary that most tensors lie in directly."""
        counts: dict[str, int] = {}
        for place in self.places.values():
            counts[_joined(place[:-1])] = counts.get(_joined(place[:-1]), 0) + 1
        return max(counts, key=counts.__getitem__)

    def verify(self, paths: Iterable[str]) -> None:
        """Compare the checksums of some tensors, which are otherwise not read as a whole.

        Raises:
            InputError: a byte has changed since the file was written.
        """
        self.check([self.places[path] for path in paths])


def is_under(path: str, root: str) -> bool:
    """Whether a dotted path is a root or lies below it; the empty root is above everything."""
    return not root or path == root or path.startswith(f"{root}.")


def below(path: str, root: str) -> str:
    """What a dotted path has behind a root that it lies under."""
    return path[len(root) + 1 :] if root else path


def find_tensors(content: object, file: Path, check: Callable | None = None) -> Contents:
    """All tensors under names in nested dictionaries, in the order of the file.

    Lists and numbers may lie between dictionaries (``optimizer_states.0``, folds by number). A dictionary that is held
    twice counts once.

    Args:
        content: of a file; a dict of tensors counts as well.
        file: for messages; its length bounds what its tensors may stand for, where it exists.
        check: see ``Contents``.

    Raises:
        InputError: no tensors, tensors that are not dense, larger than the file or without a printable name.
    """
    places: dict[str, tuple] = {}
    tensors: dict[str, Tensor] = {}
    for place, tensor in _walk(content):
        path = _joined(place)
        if any(not str(key).isprintable() or len(str(key)) > _LONGEST_NAME for key in place):
            raise InputError(f"{file.name} has a tensor under {path!a:.80}; expected names of printable text")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise not_dense(file, path)
        if path in places:
            raise InputError(f"{file.name} has two tensors under one name, {path:.80}; save them under different names")
        places[path], tensors[path] = place, tensor
    if not tensors:
        raise InputError(
            f"{file.name} holds no weights: expected a dictionary of tensors by name, at any depth; "
            f"found {_found(content)}"
        )
    file_bytes = file.stat().st_size if file.is_file() else None
    for path, tensor in tensors.items():
        if file_bytes is not None and (wanted := tensor.numel() * tensor.element_size()) > file_bytes:
            shape = "x".join(map(str, tensor.shape))
            raise InputError(
                f"{file.name} holds {file_bytes:,} bytes, but its tensor {path} {shape} stands for {wanted:,}; "
                f"expected every value to be in the file: save contiguous tensors"
            )
    return Contents(file.name, tensors, places, *([check] if check else []))


def _walk(content: object) -> Iterable[tuple[tuple, Tensor]]:
    waiting, seen = [((), content)] if isinstance(content, _CONTAINERS) else [], set()
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Tensor):
            if isinstance(place[-1], str):
                yield place, value
            continue
        if id(value) in seen or len(place) >= _DEEPEST:
            continue
        seen.add(id(value))
        if not isinstance(value, Mapping) and value and all(map(_is_pair, value)):
            value = dict(value)  # list(state_dict.items())
        if isinstance(value, Mapping):
            children = [(key, child) for key, child in value.items() if isinstance(key, (str, int))]
        else:
            children = [(index, child) for index, child in enumerate(value) if isinstance(child, Mapping)]
        children = [(key, child) for key, child in children if isinstance(child, (Tensor, *_CONTAINERS))]
        waiting += [((*place, key), child) for key, child in reversed(children)]


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Tensor)
    )


def _joined(place: Sequence[object]) -> str:
    return ".".join(map(str, place))


def _found(content: object, place: str = "the file", depth: int = 0) -> str:
    """What there is in place of named tensors."""
    if isinstance(content, (list, tuple)) and (unnamed := sum(isinstance(item, Tensor) for item in content)):
        kind = f"a {type(content).__name__} of {unnamed}"
        return f"{kind} tensors without names in {place:.80}; save them with the names of the network's state dict"
    if depth < _DEEPEST and isinstance(content, _CONTAINERS):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for name, value in items:
            if isinstance(value, _CONTAINERS) and "without names" in (text := _found(value, str(name), depth + 1)):
                return text
    if not isinstance(content, Mapping):
        return type(content).__name__
    kinds = sorted((f"{key!s:.60}", type(value).__name__) for key, value in content.items())[:10]
    return ", ".join(f"{key} ({kind})" for key, kind in kinds) or "an empty dictionary"
