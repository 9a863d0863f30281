"""What a converter is: how one project names the tensors of an encoder family, as data and small functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A tensor of a file that fills some rows of one of ours: part ``index`` of ``of``, stacked along dimension 0."""

    key: str
    index: int
    of: int


def unchanged(key: str) -> str:
    return key


@dataclass(frozen=True)
class Format:
    """How one project names the tensors of a family. Keys begin where the network does, without any prefix.

    Attributes:
        name: the project, as shown to people.
        marks: regular expressions; a file can be of this format only if each is found in some key.
        rename: key of the file to ours, or to a ``Part`` of ours; keys that it does not know are returned as they are.
        rename_for: the same, made from the names of an encoder, where it depends on how many blocks that has.
        drop: regular expression at the start of a key -> what it is, for what an encoder has no use for ("classifier").
        inflate: a 2D network, whose convolution kernels are inflated to 3D.
        beside: regular expression of what a file keeps beside the network, in its head, and an encoder wants.
        encoders: a listing of the file's names -> the encoders that it can be for, where the family has too many to try
            all, or has others of the same shapes that compute something else.
        minimum: share of our parameters that such a file must fill, where it cannot fill all.
    """

    name: str
    marks: tuple[str, ...] = ()
    rename: Callable[[str], str | Part] = unchanged
    rename_for: Callable[[Iterable[str]], Callable[[str], str | Part]] | None = None
    drop: Mapping[str, str] = field(default_factory=dict)
    inflate: bool = False
    beside: str | None = None
    encoders: Callable[[str], Sequence[str]] | None = None
    minimum: float | None = None

    def dropped(self, key: str) -> str | None:
        """What a key is that this format knows and an encoder does not want, else None."""
        return next((reason for pattern, reason in self.drop.items() if re.match(pattern, key)), None)

    def may_be(self, names: str, least: int | None = None) -> bool:
        """Whether each of the marks, or ``least`` of them, is found in a listing of names, one a line."""
        found = sum(re.search(mark, names, re.MULTILINE) is not None for mark in self.marks)
        return found >= (len(self.marks) if least is None else least)


@dataclass(frozen=True)
class Family:
    """Encoders that share their tensor names.

    Attributes:
        name: as given to ``register_encoder``.
        formats: the home project's first; names of our own are always understood too.
        adapt: ``adapt(our key, tensor of the file, tensor wanted) -> (tensor, rule) | None`` for shapes that differ and
            are neither input channels nor a 2D kernel: tables of positions. Must check shapes before it computes.
    """

    name: str
    formats: tuple[Format, ...] = ()
    adapt: Callable[[str, Tensor, Tensor], tuple[Tensor, str] | None] | None = None


OWN = Format("voco")
