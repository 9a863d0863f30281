"""Reading weights files without running anything in them, and finding the tensors inside."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from voco.errors import InputError
from voco.weights.caffe2 import read_caffe2
from voco.weights.contents import Contents, find_tensors
from voco.weights.refusals import damaged
from voco.weights.torchfile import TorchFile, is_torch_file, open_torch_file

_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file; its own reader has the same limit


def read_tensors(path: Path) -> Contents:
    """The tensors of a safetensors, torch or caffe2 file, still on disk (memory-mapped) where the format allows it.

    Raises:
        InputError: damaged file, a file that needs code execution, or one without tensors.
    """
    opened = _open(path)
    if isinstance(opened, TorchFile):
        return find_tensors(opened.load(), path, opened.verify)
    return find_tensors(opened, path)


def read_content(path: Path) -> object:
    """All that a weights file holds: tensors, containers, numbers and text; other things are left out or inert.

    For what stands beside the weights, such as a plan or a configuration; checksums are not compared.

    Raises:
        InputError: as ``read_tensors``.
    """
    opened = _open(path)
    return opened.load() if isinstance(opened, TorchFile) else opened


def _open(path: Path) -> TorchFile | dict:
    """A torch file, looked through but not loaded, or the content of one of the other formats."""
    if not path.is_file():  # also what stands for a device or a pipe, which could be read without end
        kind = "a folder" if path.is_dir() else "not a regular file" if path.exists() else "not there"
        raise InputError(f"{path} is {kind}; expected a weights file")
    try:
        if _is_safetensors(path):
            return _read_safetensors(path)
        return open_torch_file(path) if is_torch_file(path) else read_caffe2(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        _check_names(path)
        return load_file(path)  # checks its sizes against the file before it makes a tensor
    except InputError:
        raise
    except Exception as error:  # the reader's own, but also KeyError for a type that torch does not have
        raise damaged(path, error) from error


def _check_names(path: Path) -> None:
    """Refuse a header with one name twice: readers differ in which of the two they take."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(path.stat().st_size, _LONGEST_HEADER):
            raise ValueError(f"a header of {size:,} bytes")
        header = file.read(size)

    def no_twins(pairs: list[tuple[str, object]]) -> dict:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("its header has a name twice")
        return dict(pairs)

    json.loads(header, object_pairs_hook=no_twins)
