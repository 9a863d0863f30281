"""Plain pickles of arrays, as the SlowFast model zoo publishes its caffe2 weights: read without numpy's own code."""

from __future__ import annotations

import math
import mmap
import re
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor

from voco.errors import InputError
from voco.weights.pickles import Call, Global, Pickle
from voco.weights.refusals import damaged, needs_code

_DTYPE = "numpy.dtype"
# How Python 3 writes bytes for Python 2; no bytes at all are a call of their own.
_ENCODE, _NO_BYTES = "_codecs.encode", "builtins.bytes"
_ARRAY = re.compile(r"numpy\._?core\.multiarray\._reconstruct")
_NUMBER = re.compile(r"numpy\._?core\.multiarray\.scalar")
_BUFFER = re.compile(r"numpy\._?core\.numeric\._frombuffer")  # pickle protocol 5
_ALLOWED = re.compile(
    rf"numpy\.ndarray|collections\.OrderedDict|{_DTYPE}|{_ENCODE}|{_NO_BYTES}"
    rf"|{_ARRAY.pattern}|{_NUMBER.pattern}|{_BUFFER.pattern}"
)
_ELEMENT = re.compile(r"b1|[iu][1248]|f[248]")


def read_caffe2(path: Path) -> dict:
    """What a plain pickle of arrays, numbers, text and plain containers holds, arrays as tensors.

    A caffe2 file is a dict whose ``blobs`` are arrays by name. Python 2 wrote it; its strings are read as latin-1.

    Args:
        path: the file.

    Returns:
        The dict of the file, with tensors for the arrays in it and in dicts inside it.

    Raises:
        InputError: no pickle, a damaged one, or one that asks for anything else, with all of the names it asks for.
    """
    file_bytes = path.stat().st_size
    if not file_bytes:
        raise damaged(path, "0 bytes")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            pickle = Pickle(mapped)
            if unknown := {name for name in pickle.globals if not _ALLOWED.fullmatch(name)}:
                raise needs_code(path, unknown)
            if mapped.tell() != file_bytes:
                raise UnpicklingError("the file goes on behind the pickle")
        if pickle.persistents or not isinstance(pickle.content, dict):
            raise UnpicklingError(f"a pickle of a {type(pickle.content).__name__}, not of a dict of arrays")
        arrays = {id(call): _array(call) for call in pickle.calls if call.name not in (_DTYPE, _ENCODE, _NO_BYTES)}
        return _with_arrays(pickle.content, arrays)
    except InputError:
        raise
    except (UnpicklingError, ValueError, TypeError, IndexError) as error:
        raise damaged(path, error) from error


def _with_arrays(content: dict, arrays: dict[int, Tensor]) -> dict:
    """A copy of dicts in dicts (each once, however often it is held) with tensors in place of calls."""
    copies: dict[int, dict] = {id(content): {}}
    waiting = [content]
    while waiting:
        source = waiting.pop()
        copy = copies[id(source)]
        for key, value in source.items():
            if isinstance(value, dict):
                if id(value) not in copies:
                    copies[id(value)] = {}
                    waiting.append(value)
                copy[key] = copies[id(value)]
            else:
                copy[key] = arrays.get(id(value), value)
    return copies[id(content)]


def _array(call: Call) -> Tensor:
    """The array that a call of numpy's would have made, from the bytes that the file holds for it."""
    match call.args, call.state:
        case (Global(), tuple(), _), (*_, tuple() as shape, dtype, bool() | int() as by_columns, raw) if (
            _ARRAY.fullmatch(call.name)
        ):
            order = "F" if by_columns else "C"
        case (dtype, raw), None if _NUMBER.fullmatch(call.name):
            shape, order = (), "C"
        case (raw, dtype, tuple() as shape, "C" | "F" as order), None if _BUFFER.fullmatch(call.name):
            pass
        case _:
            raise UnpicklingError(f"{call.name[:80]} where an array was expected")
    kind, data = _dtype(dtype), _bytes(raw)
    if len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise UnpicklingError(f"an array of shape {str(shape)[:80]}")
    if len(data) != math.prod(shape) * kind.itemsize:
        raise UnpicklingError(f"an array of shape {shape} and type {kind} with {len(data)} bytes")
    values = np.frombuffer(data, kind).reshape(shape, order=order)
    # A copy: the bytes are read-only, and torch knows only this machine's byte order.
    return torch.from_numpy(values.astype(kind.newbyteorder("="), order="C", copy=True))


def _dtype(value: object) -> np.dtype:
    """A plain number type; text, objects and records are refused."""
    match value:
        case Call(name="numpy.dtype", args=(str() as code, *_), state=state) if _ELEMENT.fullmatch(code):
            pass
        case _:
            found = value.args[0] if isinstance(value, Call) and value.args else value
            raise UnpicklingError(f"an array of type {str(found)[:40]}, which is not a plain number type")
    match state:
        case None:
            order = "|"
        case (int(), "<" | ">" | "=" | "|" as order, None, *_):
            pass
        case _:
            raise UnpicklingError("an array of records")
    return np.dtype(code).newbyteorder(order)


def _bytes(value: object) -> bytes:
    if isinstance(value, Call) and value.name == _ENCODE and value.args[1:] == ("latin1",):
        value = value.args[0]
    elif isinstance(value, Call) and value.name == _NO_BYTES and not value.args:
        value = b""
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise UnpicklingError(f"an array whose bytes are a {type(value).__name__}")
