"""A small generic registry: decorator to fill it, an error for duplicates, "did you mean" for unknown names."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from voco.errors import InputError

T = TypeVar("T")
_filing: list[str] = []  # the plugin whose code is being run, innermost last


@contextlib.contextmanager
def filed_by(plugin: str) -> Iterator[None]:
    """What is registered inside belongs to a plugin."""
    _filing.append(plugin)
    try:
        yield
    finally:
        _filing.pop()


class Registry(Generic[T]):
    """Names to objects of one kind.

    Args:
        kind: what is registered, in words for error messages, e.g. ``"encoder"``.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._prefixes: dict[str, tuple[Callable[[str], T], Callable[[], list[str]], str]] = {}

    def register(self, name: str, *aliases: str) -> Callable[[T], T]:
        """Decorator that files an object under ``name``; ``aliases`` resolve to it and are not listed."""

        def add(item: T) -> T:
            for key in (name, *aliases):
                if key in self._items or key in self._aliases:
                    raise ValueError(f"{self.kind} {key!r} is registered twice")
            self._items[name] = item
            if _filing:
                self._owners[name] = _filing[-1]
            self._aliases.update(dict.fromkeys(aliases, name))
            return item

        return add

    def register_prefix(
        self, prefix: str, make: Callable[[str], T], names: Callable[[], list[str]], summary: str
    ) -> None:
        """File all names that begin with ``prefix`` at once, where there are too many to make beforehand.

        Args:
            prefix: such as ``"slices/"``.
            make: the object behind a whole name; raises ``InputError`` for one that does not exist.
            names: all whole names, listed only for a pattern that begins with the prefix and never iterated over.
            summary: one line for people.
        """
        self._prefixes[prefix] = (make, names, summary)

    @property
    def prefixes(self) -> dict[str, str]:
        """Beginnings of names that stand for many more than are iterated over, with a line for people."""
        return {prefix: summary for prefix, (_, _, summary) in sorted(self._prefixes.items())}

    def _maker(self, name: str) -> Callable[[str], T] | None:
        return next((make for prefix, (make, *_) in self._prefixes.items() if name.startswith(prefix)), None)

    def canonical(self, name: str) -> str:
        """The registered name behind ``name`` (aliases resolved).

        Raises:
            InputError: unknown name, with the closest known ones.
        """
        if make := self._maker(name):
            make(name)
            return name
        name = self._aliases.get(name, name)
        if name not in self._items:
            from voco.plugins import load_installed

            load_installed()
            name = self._aliases.get(name, name)
        if name not in self._items:
            close = difflib.get_close_matches(name, [*self._items, *self._aliases], n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            known = [*sorted(self._items), *(f"{prefix}NAME" for prefix in self.prefixes)]
            raise InputError(f"unknown {self.kind} {name!r}{hint} Known: {', '.join(known)}")
        return name

    def owner(self, name: str) -> str | None:
        """The plugin that filed a name; None for one of this package, or none."""
        return self._owners.get(self._aliases.get(name, name))

    def aliases(self, name: str) -> list[str]:
        """Other names of a registered one, in the order they were given; any of its names may be asked for.

        Raises:
            InputError: unknown name.
        """
        name = self.canonical(name)
        return [alias for alias, target in self._aliases.items() if target == name]

    def __getitem__(self, name: str) -> T:
        if make := self._maker(name):
            return make(name)
        return self._items[self.canonical(name)]

    def __contains__(self, name: str) -> bool:
        if make := self._maker(name):
            try:
                make(name)
            except InputError:
                return False
            return True
        return name in self._items or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def values(self) -> list[T]:
        """Registered objects in the order in which they were registered."""
        return list(self._items.values())

    def in_order(self) -> list[str]:
        """Registered names as they were filed: the first is the default of a command line."""
        return list(self._items)

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell pattern, sorted; those under a prefix if the pattern begins with it."""
        listings = [listing for prefix, (_, listing, _) in self._prefixes.items() if pattern.startswith(prefix)]
        under = [name for listing in listings for name in listing()]
        return sorted(name for name in [*self, *under] if fnmatch.fnmatch(name, pattern))
