"""Reading weights files without running anything in them, and finding the tensors inside."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from voco.errors import InputError

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
)
NETWORKS = {"student": ("student",), "teacher": ("teacher",), "ema": ("ema", "model_ema", "ema_model")}


def read_tensors(path: Path, which: str = "auto") -> tuple[dict[str, Tensor], tuple[str, ...], str | None]:
    """The tensors of a safetensors or torch file, still on disk (memory-mapped) where the format allows it.

    Args:
        path: the file.
        which: ``auto``, or the network to take where the file wraps several: ``student``, ``teacher``, ``ema``.

    Returns:
        Tensors by name, the keys that were unwrapped, and the network that was chosen by a wrapper (or None).

    Raises:
        InputError: damaged file, a file that needs code execution, or one without tensors.
    """
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    return unwrap(content, which, path.name)


def unwrap(content: object, which: str, file: str) -> tuple[dict[str, Tensor], tuple[str, ...], str | None]:
    """Follow the wrapper keys down to a flat dict of tensors; see ``read_tensors``."""
    wrapper, chosen = [], None
    while isinstance(content, Mapping):
        inner = {key for key, value in content.items() if isinstance(value, Mapping) and value}
        network = next((key for key in NETWORKS.get(which, ()) if key in inner), None)
        key = network or next((key for key in WRAPPERS if key in inner), None)
        if key is None:
            break
        wrapper.append(key)
        chosen = next((name for name, keys in NETWORKS.items() if key in keys), chosen)
        content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor) and v.layout is torch.strided}
    if not tensors:
        found = sorted(map(str, content))[:10] if isinstance(content, Mapping) else type(content).__name__
        raise InputError(
            f"{file} holds no weights: expected a dict of tensors, plain or under one of {', '.join(WRAPPERS)}; "
            f"found {found}"
        )
    return tensors, tuple(wrapper), chosen


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path.name} is damaged or not a safetensors file ({error}){_looks_like(path)}") from error


def _read_torch(path: Path) -> object:
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if blocked := _blocked_globals(path, str(error), zipped):
            raise InputError(
                f"{path.name} would run code when it is read: it asks for {', '.join(blocked)}. It was not loaded. "
                f"If you trust its source, read it on a machine that you can afford to lose with "
                f"torch.load(..., weights_only=False) and save its state dict alone, best as safetensors"
            ) from None
        raise InputError(_damaged(path, error)) from error
    except Exception as error:  # a damaged archive raises whatever its parser met first
        raise InputError(_damaged(path, error)) from error


def _blocked_globals(path: Path, message: str, zipped: bool) -> list[str]:
    if zipped:
        try:
            if blocked := torch.serialization.get_unsafe_globals_in_checkpoint(path):
                return sorted(blocked)
        except Exception:  # an archive made to confuse the listing is still refused, by the message below
            pass
    return sorted(set(re.findall(r"GLOBAL ([\w.]+)", message)))


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return f"{path.name} is damaged, cut short or not a weights file ({reason}){_looks_like(path)}"


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "; it is a Git LFS pointer, fetch the file itself"
    if head.lstrip()[:1] == b"<":
        return "; it is a web page, fetch the file itself"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "; its end is missing, fetch it again"
    return "; fetch it again and compare its checksum"
