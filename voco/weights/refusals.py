"""Why a weights file is refused before it is loaded: damaged, would run code, or tensors of another kind."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from voco.errors import InputError

_SHOWN = 20
_ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}


def damaged(path: Path, reason: object) -> InputError:
    """An error for a file that is no weights file, with a guess at what it is instead.

    Args:
        path: the file; its first bytes are looked at.
        reason: an exception or text; its first line is shown.
    """
    text = str(reason).splitlines()[0][:160] if str(reason) else type(reason).__name__
    return InputError(f"{path.name} is damaged, cut short or not a weights file ({text}){_looks_like(path)}")


def needs_code(path: Path, names: Iterable[str]) -> InputError:
    """An error for a file that asks for classes or functions that are not allowed, with their names."""
    names = sorted(name if name.isprintable() else ascii(name) for name in {name[:120] for name in names})
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return InputError(
        f"{path.name} would run code when it is read: it asks for {', '.join(names[:_SHOWN])}{more}. "
        f"It was not loaded. If you trust its source, read it on a machine that you can afford to lose with "
        f"torch.load(..., weights_only=False) and save its state dict alone, best as safetensors"
    )


def not_dense(path: Path, what: str) -> InputError:
    """An error for sparse, quantised, nested and empty-shell tensors, which no encoder takes."""
    return InputError(
        f"{path.name} holds tensors that are not plain dense ones ({what[:200]}); "
        f"save their dense values (to_dense, dequantize) in its place"
    )


def sharded(tensors: Mapping[str, Tensor]) -> str | None:
    """What to do with the share that one process of many keeps of a network, or None where tensors are whole."""
    if flat := next((name for name in tensors if name.endswith(("_flat_param", "flat_param_0"))), None):
        return f"it holds one process's share of a network ({flat}); save the full state dict of all processes (FSDP)"
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    if floats and sum(tensor.numel() == 0 for tensor in floats) > len(floats) / 2:
        return (
            "most of its tensors are empty: the values are in the files of other processes (DeepSpeed ZeRO stage 3); "
            "put them together, as with zero_to_fp32.py, and name that file"
        )
    return None


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "; it is empty, fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "; it is a Git LFS pointer, fetch the file itself"
    if head.lstrip()[:1] == b"<":
        return "; it is a web page, fetch the file itself"
    if archive := next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None):
        return f"; it is a {archive} archive, unpack it first"
    if head[257:262] == b"ustar":
        return "; it is a tar archive: unpack it, or save it again with a newer torch if torch wrote it"
    if head.startswith(b"PK") and not _has_directory(path):
        return "; its end is missing, fetch it again"
    return "; fetch it again and compare its checksum"


def _has_directory(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True
