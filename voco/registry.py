"""A small generic registry: decorator to fill it, an error for duplicates, "did you mean" for unknown names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from voco.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects of one kind.

    Args:
        kind: what is registered, in words for error messages, e.g. ``"encoder"``.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """Decorator that files an object under ``name``; ``aliases`` resolve to it and are not listed."""

        def add(item: T) -> T:
            for key in (name, *aliases):
                if key in self._items or key in self._aliases:
                    raise ValueError(f"{self.kind} {key!r} is registered twice")
            self._items[name] = item
            self._aliases.update(dict.fromkeys(aliases, name))
            return item

        return add

    def canonical(self, name: str) -> str:
        """The registered name behind ``name`` (aliases resolved).

        Raises:
            InputError: unknown name, with the closest known ones.
        """
        name = self._aliases.get(name, name)
        if name not in self._items:
            close = difflib.get_close_matches(name, [*self._items, *self._aliases], n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InputError(f"unknown {self.kind} {name!r}{hint} Known: {', '.join(sorted(self._items))}")
        return name

    def aliases(self, name: str) -> list[str]:
        """Other names of a registered one, in the order they were given; any of its names may be asked for.

        Raises:
            InputError: unknown name.
        """
        name = self.canonical(name)
        return [alias for alias, target in self._aliases.items() if target == name]

    def __getitem__(self, name: str) -> T:
        return self._items[self.canonical(name)]

    def __contains__(self, name: str) -> bool:
        return name in self._items or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell pattern, sorted."""
        return [name for name in self if fnmatch.fnmatch(name, pattern)]
