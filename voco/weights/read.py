"""Reading weights files without running anything in them, and finding the tensors inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from voco.errors import InputError
from voco.weights.caffe2 import read_caffe2
from voco.weights.refusals import damaged, not_dense
from voco.weights.torchfile import TorchFile, is_torch_file, open_torch_file

# In this order, at every level; a flat file has none of them as a mapping.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "network_weights",
    "net",
    "model",
    "student",
    "teacher",
    "ema",
    "model_ema",
    "ema_model",
    "blobs",
)
# Deeper than any published checkpoint; a dict that holds itself has no end.
_MOST_WRAPPERS = 12
_LONGEST_NAME = 500
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file; its own reader has the same limit
NETWORKS = {"student": ("student",), "teacher": ("teacher",), "ema": ("ema", "model_ema", "ema_model")}


def read_tensors(path: Path, which: str = "auto") -> tuple[dict[str, Tensor], tuple[str, ...], str | None]:
    """The tensors of a safetensors, torch or caffe2 file, still on disk (memory-mapped) where the format allows it.

    Args:
        path: the file.
        which: ``auto``, or the network to take where the file wraps several: ``student``, ``teacher``, ``ema``.

    Returns:
        Tensors by name, the keys that were unwrapped, and the network that was chosen by a wrapper (or None).

    Raises:
        InputError: damaged file, a file that needs code execution, or one without tensors.
    """
    opened = _open(path)
    content = opened.load() if isinstance(opened, TorchFile) else opened
    tensors, wrapper, chosen = unwrap(content, which, path.name)
    file_bytes = path.stat().st_size
    for key, tensor in tensors.items():
        if (wanted := tensor.numel() * tensor.element_size()) > file_bytes:
            raise InputError(
                f"{path.name} holds {file_bytes:,} bytes, but its tensor {key} {_shape(tensor)} stands for {wanted:,}; "
                f"expected every value to be in the file: save contiguous tensors"
            )
    if isinstance(opened, TorchFile):
        opened.verify(wrapper, tensors)
    return tensors, wrapper, chosen


def read_content(path: Path) -> object:
    """All that a weights file holds: tensors, containers, numbers and text; other things are left out or inert.

    For what stands beside the weights, such as a plan or a configuration; checksums are not compared.

    Raises:
        InputError: as ``read_tensors``.
    """
    opened = _open(path)
    return opened.load() if isinstance(opened, TorchFile) else opened


def unwrap(content: object, which: str, file: str) -> tuple[dict[str, Tensor], tuple[str, ...], str | None]:
    """Follow the wrapper keys down to a flat dict of tensors; see ``read_tensors``."""
    wrapper, chosen = [], None
    while isinstance(content, Mapping):
        inner = {key for key, value in content.items() if isinstance(value, Mapping) and value}
        network = next((key for key in NETWORKS.get(which, ()) if key in inner), None)
        key = network or next((key for key in WRAPPERS if key in inner), None)
        if key is None:
            break
        if len(wrapper) == _MOST_WRAPPERS:
            raise InputError(f"{file} holds no weights: its dicts lie inside each other without end ({wrapper[:4]} …)")
        wrapper.append(key)
        chosen = next((name for name, keys in NETWORKS.items() if key in keys), chosen)
        content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(
            f"{file} holds no weights: expected a dict of tensors, plain or under one of {', '.join(WRAPPERS)}; "
            f"found {_found(content)}"
        )
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not key.isprintable() or len(key) > _LONGEST_NAME:
            raise InputError(f"{file} has a tensor under {key!a:.80}; expected names of printable text")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise not_dense(Path(file), key)
    return tensors, tuple(wrapper), chosen


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


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _found(content: object) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return str(sorted(f"{key!s:.60}" for key in content)[:10])
