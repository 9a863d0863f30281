"""Hostile, odd and damaged files: each ends in a message, and none runs code or takes memory or time to speak of."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pathlib
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from voco.errors import InputError
from voco.weights.read import read_content, read_tensors

STATE = {"stem.weight": torch.arange(24.0).reshape(2, 3, 4), "stem.bias": torch.arange(300.0)}
TERA = 1 << 40


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


def refuse(path, match, megabytes=20, seconds=10):
    """Reading is refused, quickly and with little memory; the message is given back."""
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InputError, match=match) as caught:
        read_tensors(path)
    used = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < seconds
    assert peak < megabytes * 1e6
    assert len(str(caught.value)) < 1500
    return str(caught.value)


def held(path):
    contents = read_tensors(path)
    return contents.within(contents.largest())


def same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(content, **keywords):
    buffer = io.BytesIO()
    torch.save(content, buffer, **keywords)
    return buffer.getvalue()


def repack(data, change=lambda name, body: body, kind=zipfile.ZIP_STORED, extra=()):
    """The same archive with other records."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", kind) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
        for name, body in extra:
            new.writestr(name, body)
    return out.getvalue()


class Make:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


def test_all_formats_give_the_same(path):
    save_file(STATE, path)
    same(held(path), dict(sorted(STATE.items(), key=lambda item: list(held(path)).index(item[0]))))
    for data in (zipped(STATE), legacy(STATE), zipped(collections.OrderedDict(STATE))):
        path.write_bytes(data)
        same(held(path), STATE)


def test_views_and_shared_storages(path):
    base = torch.arange(100.0)
    odd = {
        "part": base[10:20],
        "columns": base.reshape(10, 10).t(),
        "twin": base,
        "nothing": torch.zeros(0, 3),
        "number": torch.tensor(3),
        "half": base.half(),
        "brain": base.bfloat16(),
        "eight": base.to(torch.float8_e4m3fn),
        "complex": torch.complex(base, base).conj(),
        "truth": base > 3,
        "unsigned": torch.arange(3).to(torch.uint16),
        "parameter": torch.nn.Parameter(base[:3]),
    }
    odd["parameter"].note = "kept beside"
    for data in (zipped(odd), legacy({k: v for k, v in odd.items() if k not in ("eight", "unsigned")})):
        path.write_bytes(data)
        found = held(path)
        for key, value in found.items():
            assert value.dtype == odd[key].dtype
            assert torch.equal(value.to(torch.complex128), odd[key].to(torch.complex128)), key


def test_what_published_checkpoints_carry_beside_their_weights(path, monkeypatch):
    """None of it is looked up: numpy's functions and the optimizer's class would fail here."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "model_state": STATE,
        "optimizer": optimizer,
        "best": np.float64(0.5),
        "history": np.arange(3),
        "args": argparse.Namespace(lr=1e-3),
        "folder": pathlib.PurePosixPath("/data"),
        "version": torch.torch_version.TorchVersion("2.0"),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "milestones": collections.Counter([3, 3, 4]),
        "plan": {"stem": "stem.weight", "sizes": (1, 2), "raw": b"\xff\x00", "set": {1}, "shape": torch.Size([3])},
    }
    for data in (zipped(content), legacy(content)):
        path.write_bytes(data)
        monkeypatch.setattr(torch.optim.AdamW, "__setstate__", lambda *_: pytest.fail("was run"))
        contents = read_tensors(path)
        assert contents.largest() == "model_state"
        same(contents.within("model_state"), STATE)
        beside = read_content(path)
        assert beside["plan"] == content["plan"]
        assert beside["milestones"] == {3: 2, 4: 1}
        assert not isinstance(beside["optimizer"], torch.optim.Optimizer)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "pickle0", "pickle4", "python2"])
def test_all_blocked_names_are_listed_and_none_runs(kind, path, tmp_path):
    marker = tmp_path / "ran"
    content = {"a": Make(os.system, f"touch {marker}"), "b": [Make(eval, "1"), {"c": Make(getattr, 1, "real")}]}
    if kind == "python2":
        path.write_bytes(
            b"(dS'a'\ncposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntRsS'b'\nc__builtin__\neval\ns."
        )
    elif kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(kind[6:] or 2)))
    else:
        path.write_bytes(zipped(content | STATE) if kind == "zip" else legacy(content | STATE))
    message = refuse(path, "would run code.*posix.system")
    assert "builtins.eval" in message
    assert kind == "python2" or "builtins.getattr" in message
    assert not marker.exists()


def with_pickle(body, stored=4):
    """A torch file whose pickle is replaced; its one storage holds ``stored`` floats."""
    data = zipped({"a": torch.zeros(stored)})
    return repack(data, lambda name, old: body if name.endswith("data.pkl") else old)


def craft(content):
    """A torch file around any content; ``("floats", n)`` stands for its storage with n declared floats."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if isinstance(value, tuple) and value[:1] == ("floats",):
                return ("storage", torch.FloatStorage, "0", "cpu", value[1])
            return None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(content)
    return with_pickle(buffer.getvalue())


def tensor(size, stride=(1,), declared=4, offset=0):
    return Make(torch._utils._rebuild_tensor_v2, ("floats", declared), offset, size, stride, False, {})


def test_crafted_archives_are_made_as_meant(path):
    path.write_bytes(craft({"a": tensor((4,)), "b": tensor((2, 3), (1, 0))}))
    same(held(path), {"a": torch.zeros(4), "b": torch.zeros(2, 3)})


NESTED = ()
for _ in range(80):
    NESTED = (NESTED, NESTED)
HOSTILE = {
    "storage_larger_than_its_record": ({"a": tensor((TERA,), declared=TERA)}, "has 16 bytes where"),
    "storage_smaller_than_its_record": ({"a": tensor((2,), declared=2)}, "has 16 bytes where 8"),
    "tensor_larger_than_its_storage": ({"a": tensor((TERA,))}, "arguments that a weights file"),
    "tensor_beside_its_storage": ({"a": tensor((2,), offset=3)}, "arguments that a weights file"),
    "tensor_before_its_storage": ({"a": tensor((2,), offset=-1)}, "arguments that a weights file"),
    "view_of_terabytes": ({"a": tensor((TERA,), (0,))}, "stands for 4,398,046,511,104"),
    "tensor_made_of_a_number": ({"a": tensor((4,)), "b": Make(torch.Tensor, TERA)}, "torch.Tensor with arguments"),
    "storage_made_of_a_number": ({"a": Make(torch.FloatStorage, TERA)}, "FloatStorage with arguments"),
    "bytes_made_of_a_number": ({"a": Make(bytearray, TERA)}, "bytearray with arguments"),
    "set_with_hash_without_end": ({"a": Make(set, [NESTED])}, "dict key of type tuple"),
    "other_codec": ({"a": Make(pickle.codecs.encode, b"x", "zlib")}, "encode with arguments"),
    "number_for_a_name": ({1: tensor((4,))}, "holds no weights"),
    "screen_codes_in_a_name": ({"a\x1b[2J": tensor((4,))}, "printable text"),
    "endless_name": ({"a" * 100_000: tensor((4,))}, "printable text"),
    "list_of_tensors": ([tensor((4,))], "found a list of 1 tensors without names"),
    "tensors_under_a_list": ({"layers": [tensor((4,))]}, "holds no weights"),
    "text": ("hello", "found str"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_crafted_archives_are_refused(kind, path):
    content, match = HOSTILE[kind]
    path.write_bytes(craft(content))
    refuse(path, match)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
@pytest.mark.parametrize("content", ["itself", "deep dicts", "deep lists"])
def test_content_without_end(kind, content, path):
    levels = 10_000
    body = {
        "itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
        "deep dicts": b"\x80\x02"
        + b"}X\x05\x00\x00\x00model" * levels
        + b"}X\x01\x00\x00\x00aK\x01s"
        + b"s" * levels
        + b".",
        "deep lists": b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * levels + b"a" * (levels - 1) + b"s.",
    }[content]
    path.write_bytes(body if kind == "pickle" else with_pickle(body))
    refuse(path, "holds no weights", megabytes=200)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_keys_whose_hash_has_no_end(kind, path):
    """Tuples of one tuple twice, 80 deep: 2 ** 80 steps, so they must not even be made a key."""
    body = b"\x80\x02})" + b"2\x86" * 80 + b"K\x01s."
    path.write_bytes(body if kind == "pickle" else with_pickle(body))
    refuse(path, "dict key of type tuple")


def test_calls_that_copy_one_argument_over_and_over(path):
    text = b"X" + struct.pack("<I", 1_000_000) + b"x" * 1_000_000
    call = b"c_codecs\nencode\nq\x02"
    body = (
        b"\x80\x02("
        + text
        + b"q\x00"
        + b"X\x06\x00\x00\x00latin1q\x01"
        + call
        + b"h\x02h\x00h\x01\x86R" * 100_000
        + b"t."
    )
    path.write_bytes(with_pickle(body))
    refuse(path, "copy more than the file holds")


def legacy_with(numel=None, cut=0, keys=None):
    """An old torch file of one tensor of 300 floats, whose pickle declares another number of them."""
    data = legacy({"a": torch.zeros(300)})
    if numel is not None:
        # The number of elements follows the location in the reference, as BININT2 (M).
        old = b"M" + struct.pack("<H", 300)
        assert data.count(old) == 2  # once for the storage, once for the shape
        data = data.replace(old, b"\x8a\x06" + numel.to_bytes(6, "little"))
    return data[: len(data) - cut]


def test_old_files_declare_no_more_than_they_hold(path):
    path.write_bytes(legacy_with())
    assert held(path)["a"].shape == (300,)
    path.write_bytes(legacy_with(numel=TERA))
    refuse(path, "should have 4398046511104 bytes")
    path.write_bytes(legacy_with(cut=1))
    refuse(path, "should have 1200 bytes")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
def test_every_cut_is_noticed(kind, path):
    data = {"zip": zipped, "legacy": legacy, "safetensors": save}.get(kind, lambda s: pickle.dumps({"blobs": {}}))(
        STATE
    )
    for length in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="damaged"):
            read_tensors(path)


def test_any_byte_of_a_tensor_that_changes_is_noticed(path):
    """torch itself reads such a file without a word."""
    data = bytearray(zipped({"state_dict": STATE, "optimizer": {"state": torch.full((50,), 7.0)}}))
    place = data.find(struct.pack("<3f", 7, 7, 7))
    data[place] ^= 1
    path.write_bytes(data)
    read_tensors(path).verify([f"state_dict.{name}" for name in STATE])  # the rest costs no time
    place = data.find(struct.pack("<3f", 100, 101, 102))
    data[place] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["state_dict"]["stem.bias"][100] != 100
    with pytest.raises(InputError, match="do not match their checksum"):
        read_tensors(path).verify(["state_dict.stem.bias"])
    read_tensors(path).verify(["state_dict.stem.weight"])


def test_files_saved_without_checksums_can_be_read(path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(before)
    same(held(path), STATE)


def test_archives_that_torch_does_not_write(path):
    data = zipped({"a": torch.zeros(1_000_000)})
    path.write_bytes(repack(data, kind=zipfile.ZIP_DEFLATED))
    refuse(path, "compressed")
    root = zipfile.ZipFile(io.BytesIO(data)).namelist()[0].split("/")[0]
    path.write_bytes(repack(zipped(STATE), extra=[(f"{root}/DATA.pkl", b"")]))
    refuse(path, "two records have one name")
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # torch compresses the code in such a file
        path.write_bytes(repack(zipped(STATE), extra=[(f"{root}/constants.pkl", b"")], kind=kind))
        refuse(path, "TorchScript")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/y.txt", "hello")
    refuse(path, r"data\.pkl")


TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_not_dense(kind, path):
    path.write_bytes(zipped(STATE | {"b": TENSORS[kind]()}))
    refuse(path, "not plain dense ones")


def safetensors_header(header, body=b""):
    text = header.encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (safetensors_header('{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}', b"1234"), "damaged"),
        (safetensors_header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4398046511104]}}', b"1234"), "damaged"),
        (safetensors_header('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"1234"), "damaged"),
        (safetensors_header('{"a":' * 100_000), "damaged"),
        (TERA.to_bytes(8, "little") + b"{}", "damaged"),
        (
            safetensors_header(
                '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
                b"12345678",
            ),
            "a name twice",
        ),
        (safetensors_header("{}"), "holds no weights"),
    ],
    ids=("shape", "offsets", "type", "nesting", "header_size", "twins", "nothing"),
)
def test_crafted_safetensors(data, match, tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    refuse(path, match)


def test_what_is_no_file(path, tmp_path):
    refuse(path, "is not there")
    refuse(tmp_path, "is a folder")
    refuse(pathlib.Path("/dev/zero"), "not a regular file")
    os.mkfifo(path)
    refuse(path, "not a regular file")
    (tmp_path / "link.pth").symlink_to(tmp_path / "nowhere")
    refuse(tmp_path / "link.pth", "is not there")
    (tmp_path / "empty.safetensors").touch()
    refuse(tmp_path / "empty.safetensors", "it is empty")


@pytest.mark.parametrize(
    ("head", "match"),
    [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "its end is missing"), (b"x" * 257 + b"ustar", "tar archive")],
)
def test_other_archives_are_named(head, match, path):
    path.write_bytes(head + b"\0" * 1000)
    refuse(path, match)


def test_a_damaged_directory_of_an_archive(path):
    """Python's zip reader raises five kinds of errors there; each byte of the directory is changed once."""
    data = zipped(STATE)
    start = data.find(b"PK\x01\x02")
    for place in range(start, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            found = held(path)
        except InputError:
            continue
        same(found, STATE)
