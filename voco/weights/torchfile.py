"""Torch files, new (zip) and old: looked through first, so that reading them can neither run code nor fill memory."""

from __future__ import annotations

import io
import mmap
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError

import torch

from voco.errors import InputError
from voco.weights.pickles import Call, Global, Persistent, Pickle, check_key
from voco.weights.refusals import damaged, needs_code, not_dense

_ZIP_MAGIC = b"PK\x03\x04"
_MAGIC_NUMBER, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of an old torch file
_OLD_HEAD = re.compile(rb"\x80.\x8a\x0a" + re.escape(_MAGIC_NUMBER.to_bytes(10, "little")), re.DOTALL)

_ELEMENT_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1}
_ELEMENT_BYTES |= {"Byte": 1, "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1}
_REBUILD = {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")}
_REBUILD_PARAMETER = {f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state")}
_REBUILD_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_OTHER_TENSORS = re.compile(r"torch\.(_utils\._rebuild|per)_\w+|torch\.\w*(sparse|Q)\w*(\.\w*Tensor|Storage)")

# Names that a state dict may hold; what may be called among them, and with which arguments, is in _check_call.
_KNOWN = re.compile(
    r"torch\.(Size|device|Tensor|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|torch\.(u?int|b?float|complex|bool|half|double|long|short|bits)\w*"
    r"|torch\.(cuda\.|storage\.)?[A-Z]\w*(Storage|Tensor)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|collections\.(OrderedDict|Counter)|builtins\.(set|complex|bytearray)|_codecs\.encode"
)
# Names that published checkpoints carry beside their weights. They are never looked up: a stand-in that does nothing
# takes their place, and what they would have held is not used.
_IGNORED = re.compile(
    r"torch\.optim\.[\w.]+|torch\.(cuda\.)?amp\.grad_scaler\.GradScaler|torch\.torch_version\.TorchVersion"
    r"|numpy\.(ndarray|dtype)|numpy\._?core\.multiarray\.(scalar|_reconstruct)|numpy\.dtypes\.\w+DType"
    r"|builtins\.(dict|list|tuple|int|float|bool|str|bytes)|argparse\.Namespace"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|datetime\.(datetime|date|timedelta)"
    r"|mmengine\.logging\.history_buffer\.HistoryBuffer"
)
# Likewise, but dicts, so that their items have somewhere to go.
_IGNORED_DICTS = re.compile(
    r"collections\.defaultdict|(fvcore\.common|yacs)\.config\.CfgNode|mmengine\.config\.config\.ConfigDict"
    r"|(addict\.)?addict\.Dict|easydict\.EasyDict"
)


class _Ignored:
    """In place of a class or function that is not needed; it can be made with anything and does nothing."""

    def __new__(cls, *args: object, **keywords: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: object, **keywords: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _IgnoredDict:
    """In place of a kind of dict; torch fills only plain and ordered ones."""

    def __new__(cls, *args: object, **keywords: object) -> OrderedDict:
        return OrderedDict()


@dataclass
class TorchFile:
    """A torch file that was looked through and may be loaded.

    Attributes:
        path: the file.
        zipped: the format since torch 1.6; its tensors are memory-mapped.
        content: what it holds, as ``voco.weights.pickles`` describes it, tensors as calls.
        ignored: names that get a stand-in.
        records: storage key to first byte, last byte + 1 and CRC-32 (0: not recorded), of a zipped file.
    """

    path: Path
    zipped: bool
    content: object
    ignored: dict[str, type] = field(default_factory=dict)
    records: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def load(self) -> object:
        """The content, with tensors.

        Raises:
            InputError: torch cannot read it.
        """
        safe = [(stand_in, name) for name, stand_in in self.ignored.items()]
        try:
            with torch.serialization.safe_globals(safe):
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=self.zipped)
        except Exception as error:  # a damaged archive raises whatever its parser met first
            if blocked := re.findall(r"GLOBAL ([\w.]+)", str(error)):
                raise needs_code(self.path, blocked) from None
            raise damaged(self.path, error) from error

    def verify(self, places: Iterable[Sequence[object]]) -> None:
        """Compare the checksums of some tensors with their bytes; torch itself does not (about 3 GB/s).

        Args:
            places: keys, from the outermost container inwards, that lead to each tensor.

        Raises:
            InputError: a byte has changed since the file was written.
        """
        found = (reduce(_item, place, self.content) for place in places)
        keys = {storage.id[2] for value in found if (storage := _storage_of(value))}
        if not self.zipped or not keys:
            return
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for start, stop, expected in (self.records[key] for key in sorted(keys)):
                with memoryview(mapped) as view, view[start:stop] as record:
                    if expected and zlib.crc32(record) != expected:
                        raise damaged(self.path, f"bytes {start} to {stop} do not match their checksum")


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as torch files do, new or old."""
    with path.open("rb") as file:
        head = file.read(16)
    return head.startswith(_ZIP_MAGIC) or _OLD_HEAD.match(head) is not None


def open_torch_file(path: Path) -> TorchFile:
    """Look through a torch file without running anything in it or allocating what it asks for.

    Args:
        path: an existing file for which ``is_torch_file`` holds.

    Raises:
        InputError: damaged or cut short, sizes that do not agree with each other or the file, or code in it.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            found, pickle = (_look_into_zip if mapped[:4] == _ZIP_MAGIC else _look_into_old)(path, mapped)
        for call in pickle.calls:
            _check_call(call)
    except (InputError, OSError):
        raise
    except Exception as error:  # a damaged directory makes the zip reader raise whatever it met first
        raise damaged(path, error) from error
    found.ignored = {name: kind for name in pickle.globals if (kind := _stand_in(name))}
    return found


def _look_into_zip(path: Path, mapped: mmap.mmap) -> tuple[TorchFile, Pickle]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = {entry.filename.casefold() for entry in entries}  # torch's reader takes A and a for the same record
    if len(names) < len(entries):
        raise UnpicklingError("two records have one name")
    root = entries[0].filename.partition("/")[0]
    if f"{root}/constants.pkl".casefold() in names:
        raise UnpicklingError("a TorchScript program, not weights: save its state_dict()")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise UnpicklingError("its records are compressed, which torch never does; pack them again without")
    places = {entry.filename: (*_place(mapped, entry), entry.CRC) for entry in entries}
    start, stop, crc = places[f"{root}/data.pkl"]
    data = mapped[start:stop]
    if crc and zlib.crc32(data) != crc:
        raise UnpicklingError("data.pkl does not match its checksum")
    pickle = Pickle(io.BytesIO(data), _IGNORED_DICTS)
    _check_names(path, pickle)

    records = {}
    for key, (_, declared) in _storages(pickle).items():
        records[key] = places[f"{root}/data/{key}"]
        held = records[key][1] - records[key][0]
        if held != declared:
            raise UnpicklingError(f"storage {key[:40]} has {held} bytes where {declared} are declared")
    return TorchFile(path, zipped=True, content=pickle.content, records=records), pickle


def _place(mapped: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and last byte + 1 of a record, whose own header may be longer than the directory says."""
    header = mapped[entry.header_offset : entry.header_offset + 30]
    if len(header) < 30 or header[:4] != _ZIP_MAGIC:
        raise zipfile.BadZipFile("a record does not begin where the directory says")
    start = entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if start + entry.file_size > len(mapped):
        raise zipfile.BadZipFile("a record ends behind the end of the file")
    return start, start + entry.file_size


def _look_into_old(path: Path, mapped: mmap.mmap) -> tuple[TorchFile, Pickle]:
    magic, protocol, system = (Pickle(mapped) for _ in range(3))
    if magic.content != _MAGIC_NUMBER or protocol.content != _PROTOCOL:
        raise UnpicklingError(f"written by another version of this format ({str(protocol.content)[:20]})")
    pickle = Pickle(mapped, _IGNORED_DICTS)
    order = Pickle(mapped)
    for part in (magic, protocol, system, order):
        pickle.globals |= part.globals
        pickle.calls += part.calls
    _check_names(path, pickle)

    storages, keys = _storages(pickle), order.content
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(map(str, storages)):
        raise UnpicklingError("the list of its storages is not the list of those in use")
    place = mapped.tell()
    for key in keys:
        elements, declared = storages[key]
        found = int.from_bytes(mapped[place : place + 8], "little", signed=True)
        place += 8 + declared
        if found != elements or place > len(mapped):
            raise UnpicklingError(f"storage {key!s:.40} should have {declared} bytes, which the file does not hold")
    return TorchFile(path, zipped=False, content=pickle.content), pickle


def _stand_in(name: str) -> type | None:
    if _IGNORED.fullmatch(name):
        return _Ignored
    return _IgnoredDict if _IGNORED_DICTS.fullmatch(name) else None


def _check_names(path: Path, pickle: Pickle) -> None:
    """Refuse names that are not needed for dense tensors in plain containers."""
    unknown = [name for name in pickle.globals if not (_KNOWN.fullmatch(name) or _stand_in(name))]
    other = [name for name in unknown if _OTHER_TENSORS.fullmatch(name)]
    if len(other) < len(unknown):
        raise needs_code(path, set(unknown) - set(other))
    if other:
        raise not_dense(path, ", ".join(sorted(other)))


def _storages(pickle: Pickle) -> dict:
    """Elements and bytes of every storage that a torch file refers to, by key."""
    found: dict = {}
    for reference in pickle.persistents:
        match reference.id:
            case ("storage", Global() as kind, str() | int() as key, str(), int() as elements, *view):
                size = elements, elements * _element_bytes(kind)
            case _:
                raise UnpicklingError("a reference to something that is not a storage")
        if elements < 0 or found.setdefault(key, size) != size:
            raise UnpicklingError(f"storage {key!s:.40} is declared with two sizes")
        if view and view != [None]:
            match view:
                case [(_, int() as start, int() as length)] if 0 <= start <= start + length <= elements:
                    pass
                case _:
                    raise UnpicklingError(f"a part of storage {key!s:.40} lies outside it")
    return found


def _element_bytes(kind: Global) -> int:
    module, _, name = kind.name.rpartition(".")
    size = _ELEMENT_BYTES.get(name.removesuffix("Storage"))
    if size is None or module not in ("torch", "torch.cuda", "torch.storage"):
        raise UnpicklingError(f"a storage of {kind.name[:80]}")
    return size


def _check_call(call: Call) -> None:
    """Refuse calls that torch allows but that could take memory or time out of proportion to the file.

    Raises:
        UnpicklingError: with the call.
    """
    name, args = call.name, call.args
    if _stand_in(name):
        return
    if name == _REBUILD_ATTRIBUTES and len(args) == 4 and isinstance(args[0], Global):
        name, args = args[0].name, args[2]
    match args:
        case (Persistent() as storage, int() as offset, size, stride, *rest) if name in _REBUILD:
            fine = _fits(storage, offset, _integers(size), _integers(stride), rest if name.endswith("v3") else ())
        case (Call(), *_):
            fine = name in _REBUILD_PARAMETER or (name == "torch.Size" and not call.args)
        case (str(), "latin1"):
            fine = name == "_codecs.encode"
        case (tuple() as sizes,):
            fine = name == "torch.Size" and _integers(sizes) is not None
        case (list() as items,) if name == "builtins.set":
            for item in items:
                check_key(item)
            fine = True
        case () | (dict(),):
            fine = name in ("collections.Counter", "builtins.set")
        case _:
            plain = all(isinstance(arg, (str, int, float)) for arg in args)
            fine = plain and name in ("torch.device", "builtins.complex", "torch.serialization._get_layout")
    if not fine:
        raise UnpicklingError(f"{name[:80]} with arguments that a weights file has no use for")


def _integers(value: object) -> tuple[int, ...] | None:
    if isinstance(value, Call) and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, tuple) and all(isinstance(part, int) and part >= 0 for part in value):
        return value
    return None


def _fits(storage: Persistent, offset: int, size: object, stride: object, rest: Iterable[object]) -> bool:
    """Whether a tensor lies inside its storage; torch would enlarge the storage instead."""
    if size is None or stride is None or len(size) != len(stride) or len(size) > 64 or offset < 0:
        return False
    _, kind, _, _, elements, *view = storage.id
    if view and view[0] is not None:
        elements = view[0][2]
    if len(rest) > 2 and isinstance(rest[2], Global):  # v3: bytes, and the type beside them
        dtype = getattr(torch, rest[2].name.removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            return False
        elements = elements * _element_bytes(kind) // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return 0 in size or last < elements


def _item(value: object, key: object) -> object:
    """What lies under a key; of a list of pairs, under a name."""
    return dict(value)[key] if isinstance(key, str) and isinstance(value, (list, tuple)) else value[key]


def _storage_of(value: object) -> Persistent | None:
    """The storage behind a tensor, a parameter, or a tensor with attributes of its own."""
    while isinstance(value, Call) and isinstance(value.args, tuple) and value.args:
        value = value.args[2] if value.name == _REBUILD_ATTRIBUTES else value.args[0]
        value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, Persistent) else None
