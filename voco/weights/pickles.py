"""Pickles taken apart without running them: what they hold, which names they ask for, what they would call."""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, BinaryIO

# A million operations take about a second; the largest published checkpoint read so far has under half a million.
MAX_OPERATIONS = 20_000_000

_VALUES = re.compile(r"(BIN|SHORT_BIN)?(INT|LONG|FLOAT|STRING|BYTES|UNICODE)[1248]?|BYTEARRAY8")
_EMPTY: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_NO_EFFECT = frozenset(("PROTO", "FRAME", "STOP"))
_PLAIN_KEYS = (str, bytes, int, float, type(None))
# Python 2 wrote these under other module names; a reader of today maps them back before it looks them up.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Global:
    """A class or function that the pickle names; only its name is kept."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Call:
    """What the pickle would have called: ``function`` is a ``Global`` (or something made by another call)."""

    __slots__ = ("args", "function", "state")

    def __init__(self, function: object, args: object) -> None:
        self.function, self.args, self.state = function, args, None

    @property
    def name(self) -> str:
        return self.function.name if isinstance(self.function, Global) else "a computed function"


class Persistent:
    """A reference to something outside the pickle, such as a storage of a torch file."""

    __slots__ = ("id",)

    def __init__(self, id: object) -> None:
        self.id = id


class Pickle:
    """One pickle, read from a stream that is left behind its end.

    Plain containers and values come back as they are (sets as lists, ``OrderedDict`` as dict); everything else as
    ``Global``, ``Call`` or ``Persistent``. Nothing is imported or called, and no size written in the pickle is
    allocated: strings are cut from the stream, and memo numbers are keys of a dict.

    Args:
        stream: binary and seekable, with ``readline``; best in memory or memory-mapped.
        dicts: further names whose objects come back as a dict of their items.

    Attributes:
        content: the object.
        globals: names of all classes and functions that it asks for, used or not.
        calls: every call, in order.
        persistents: every reference to something outside, in order.

    Raises:
        UnpicklingError: no pickle, a damaged one, or one with dict keys that only a crafted file has.
    """

    def __init__(self, stream: BinaryIO, dicts: re.Pattern[str] | None = None) -> None:
        self._dicts = dicts
        self.globals: set[str] = set()
        self.calls: list[Call] = []
        self.persistents: list[Persistent] = []
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        start = stream.tell()
        stream.seek(0, 2)
        self._volume, self._limit = 0, 2 * (stream.tell() - start) + 1_000_000
        stream.seek(start)
        try:
            for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
                if count > MAX_OPERATIONS:
                    raise UnpicklingError(f"more than {MAX_OPERATIONS:,} operations")
                self._step(operation.name, argument)
            [self.content] = self._stack
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise UnpicklingError(str(error) or type(error).__name__) from error
        del self._stack, self._marks, self._memo

    def _step(self, name: str, argument: Any) -> None:
        if _VALUES.fullmatch(name):
            self._stack.append(argument)
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name not in _NO_EFFECT:
            if (method := getattr(self, f"_do_{name.lower()}", None)) is None:
                raise UnpicklingError(f"operation {name} has no place in a weights file")
            method(argument)

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise UnpicklingError("the stack is empty")
        return self._stack.pop()

    def _pop_to_mark(self) -> list:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _call(self, function: object, args: tuple) -> None:
        # One long argument handed to many calls would be copied by each of them.
        self._volume += len(args) + sum(len(a) for a in args if isinstance(a, (str, bytes, tuple, list, dict)))
        if self._volume > self._limit:
            raise UnpicklingError("its calls copy more than the file holds")
        if isinstance(function, Global):
            if function.name == "collections.OrderedDict":
                made: dict = {}
                for pair in (pair for pairs in args for pair in pairs):
                    key, value = _pair(pair)
                    self._put(made, key, value)
                self._stack.append(made)
                return
            if self._dicts and self._dicts.fullmatch(function.name):
                self._stack.append({})
                return
        call = Call(function, args)
        self.calls.append(call)
        self._stack.append(call)

    def _name(self, name: str) -> None:
        module, _, rest = name.partition(".")
        name = f"{_RENAMED.get(module, module)}.{rest}"
        self.globals.add(name)
        self._stack.append(Global(name))

    @staticmethod
    def _put(target: object, key: object, value: object) -> None:
        check_key(key)
        if isinstance(target, dict):
            target[key] = value
        elif not isinstance(target, Call):
            raise UnpicklingError(f"items for a {type(target).__name__}")

    # One method per remaining operation of pickletools, by its name.

    def _do_pop(self, _: Any) -> None:
        self._pop()

    def _do_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _do_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _do_tuple1(self, _: Any) -> None:
        self._stack.append((self._pop(),))

    def _do_tuple2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self._stack.append((first, second))

    def _do_tuple3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._stack.append((first, second, third))

    def _do_list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _do_dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._put_pairs(items)

    def _do_frozenset(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _do_append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _do_appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _do_additems(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Call):
            raise UnpicklingError(f"items for a {type(target).__name__}")

    def _do_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._put(self._stack[-1], key, value)

    def _do_setitems(self, _: Any) -> None:
        self._put_pairs(self._pop_to_mark())

    def _put_pairs(self, items: list) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(self._stack[-1], key, value)

    def _do_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _do_binget = _do_long_binget = _do_get

    def _do_global(self, argument: str) -> None:
        self._name(argument.replace(" ", ".", 1))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise UnpicklingError("a name that is no text")
        self._name(f"{module}.{name}")

    def _do_ext1(self, code: int) -> None:
        self._name(f"copyreg.extension {code}")

    _do_ext2 = _do_ext4 = _do_ext1

    def _do_reduce(self, _: Any) -> None:
        args, function = self._pop(), self._pop()
        self._call(function, args)

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        keywords, args, function = self._pop(), self._pop(), self._pop()
        self._call(function, (*args, keywords))

    def _do_obj(self, _: Any) -> None:
        function, *args = self._pop_to_mark()
        self._call(function, tuple(args))

    def _do_inst(self, argument: str) -> None:
        args = tuple(self._pop_to_mark())
        self._do_global(argument)
        self._call(self._pop(), args)

    def _do_build(self, _: Any) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, Call):
            target.state = state
        elif not isinstance(target, dict):  # a dict that was an OrderedDict may carry attributes: not needed
            raise UnpicklingError(f"state for a {type(target).__name__}")

    def _do_persid(self, id: object) -> None:
        self._stack.append(Persistent(id))
        self.persistents.append(self._stack[-1])

    def _do_binpersid(self, _: Any) -> None:
        self._do_persid(self._pop())


def _pair(value: object) -> tuple:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UnpicklingError("items that are not pairs")
    return tuple(value)


def check_key(key: object) -> None:
    """Refuse dict keys whose hash could take for ever (tuples of tuples of the same tuples …).

    Raises:
        UnpicklingError: a key of another kind than text, numbers, flat tuples of them, and tensors.
    """
    if isinstance(key, (*_PLAIN_KEYS, Call)):
        return
    if isinstance(key, tuple) and all(isinstance(part, _PLAIN_KEYS) for part in key):
        return
    raise UnpicklingError(f"a dict key of type {type(key).__name__}")
