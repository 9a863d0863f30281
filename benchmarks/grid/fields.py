"""Reading a YAML file strictly: every value has a type, every wrong one is named by its path."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from voco.errors import InputError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand once only: the second one would silently win."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name = loader.construct_object(key, deep=True)
        if str(name) in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {name!r} stands twice", key.start_mark)
        seen.add(str(name))
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict:
    """A YAML mapping.

    Raises:
        InputError: not there, not YAML, a key twice, or no mapping.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {_kind(found)}")
    return found


@dataclass(frozen=True)
class Node:
    """A value of a YAML file with the path of keys that leads to it, such as ``tasks.pe.settings``."""

    value: Any
    path: str = ""

    def fail(self, text: str) -> InputError:
        return InputError(f"{self.path or 'the file'}: {text}")

    def keys(self, allowed: Sequence[str], required: Sequence[str] = ()) -> dict[str, Node]:
        """Entries of a mapping whose keys are known beforehand; None counts as an empty mapping.

        Raises:
            InputError: no mapping, unknown or missing keys.
        """
        found = self.items()
        for name in found:
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(allowed)}"
                raise InputError(f"{self._under(name)}: unknown key; {hint}")
        if missing := [name for name in required if name not in found]:
            raise self.fail(f"{', '.join(missing)} missing; expected {', '.join(required)}")
        return found

    def items(self) -> dict[str, Node]:
        """Entries of a mapping with any keys; None counts as an empty mapping."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.fail(f"expected a mapping, found {_kind(self.value)}")
        return {str(name): Node(value, self._under(str(name))) for name, value in self.value.items()}

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fail(f"expected text, found {_kind(self.value)}")
        return self.value.strip()

    def one_of(self, allowed: Sequence[str]) -> str:
        if self.value not in allowed:
            raise self.fail(f"expected one of {', '.join(allowed)}; found {self.value!r}")
        return str(self.value)

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A number from ``low`` to ``high``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise self.fail(f"expected a number, found {_kind(self.value)}{_float_hint(self.value)}")
        if not low <= self.value <= high:
            span = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise self.fail(f"expected a number {span}, found {self.value}")
        return float(self.value)

    def positive(self) -> float:
        if (value := self.number()) <= 0:
            raise self.fail(f"expected a number above 0, found {self.value}")
        return value

    def whole(self, low: int = 0) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < low:
            raise self.fail(f"expected a whole number of at least {low}, found {self.value!r}")
        return self.value

    def plain(self) -> dict[str, Any]:
        """A mapping of settings as it stands."""
        return {name: node.value for name, node in self.items().items()}

    def list(self, read: Callable[[Node], Any], least: int = 1) -> tuple:
        """Entries of a list without repeats.

        Args:
            read: turns one into a value.
            least: entries at least.
        """
        if not isinstance(self.value, list):
            raise self.fail(f"expected a list, found {_kind(self.value)}")
        found = tuple(read(Node(value, f"{self.path}[{i}]")) for i, value in enumerate(self.value))
        if len(found) < least:
            raise self.fail(f"expected at least {least} entr{'y' if least == 1 else 'ies'}, found {len(found)}")
        if repeated := [value for i, value in enumerate(found) if value in found[:i]]:
            raise self.fail(f"{repeated[0]!r} stands twice")
        return found

    def names(self, known: Sequence[str], what: str) -> tuple[str, ...]:
        """A list of names that are defined elsewhere in the file."""
        return self.list(lambda node: node.name(known, what))

    def name(self, known: Sequence[str], what: str) -> str:
        """A name that is defined elsewhere in the file."""
        if self.value not in known:
            near = difflib.get_close_matches(str(self.value), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
            raise self.fail(f"{self.value!r} is no entry of {what}; {hint}")
        return str(self.value)

    def _under(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)


def _float_hint(value: Any) -> str:
    """YAML 1.1 reads 1e-3 as text."""
    try:
        return f"; YAML reads that as text, write {float(value):.1e}" if isinstance(value, str) else ""
    except ValueError:
        return ""
