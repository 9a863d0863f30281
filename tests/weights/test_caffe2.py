"""Plain pickles of arrays: what numpy wrote is read without numpy's code, everything else is refused."""

from __future__ import annotations

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from voco.errors import InputError
from voco.weights.caffe2 import read_caffe2
from voco.weights.read import read_tensors

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "conv1_w": RANDOM.normal(size=(4, 3, 1, 2, 2)).astype(np.float32),
    "columns": np.asfortranarray(RANDOM.normal(size=(3, 5))),
    "big_endian": RANDOM.normal(size=7).astype(">f4"),
    "half": RANDOM.normal(size=3).astype(np.float16),
    "bytes": np.arange(256, dtype=np.uint8),
    "truth": np.array([True, False]),
    "large": np.array([-(2**62)]),
    "one": np.float32(0.5),
    "number": np.array(3.0),
    "nothing": np.zeros((0, 4), np.float32),
    "view": np.arange(20.0)[::2],
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pkl"


def python2(arrays, module="numpy.core"):
    """As Python 2 and numpy 1 write ``{"blobs": arrays}`` at protocol 2: all text and bytes as 8-bit strings."""

    def text(value):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def array(value):
        shape = b"(" + b"".join(b"M" + struct.pack("<H", n) for n in value.shape) + b"t"
        code = f"{value.dtype.kind}{value.dtype.itemsize}".encode()
        order = {"=": b"<", "|": b"|", "<": b"<", ">": b">"}[value.dtype.byteorder]
        dtype = (
            b"cnumpy\ndtype\n"
            + text(code)
            + b"K\x00K\x01\x87R(K\x03"
            + text(order)
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        make = b"c" + module.encode() + b".multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        return make + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"

    items = b"".join(text(name.encode()) + array(value) for name, value in arrays.items())
    return b"\x80\x02}" + text(b"blobs") + b"}(" + items + b"us."


def assert_same(found, arrays):
    assert list(found) == list(arrays)
    for name, value in arrays.items():
        expected = torch.from_numpy(np.array(value).astype(np.asarray(value).dtype.newbyteorder("=")))
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name


def test_files_of_python_2(path):
    """The bytes are what Python itself reads as these arrays, so the sample is a true one."""
    arrays = {k: v for k, v in ARRAYS.items() if isinstance(v, np.ndarray) and k not in ("columns", "view")}
    data = python2(arrays)
    for name, value in pickle.loads(data, encoding="latin1")["blobs"].items():
        np.testing.assert_array_equal(value, arrays[name])
    for module in ("numpy.core", "numpy._core"):
        path.write_bytes(python2(arrays, module))
        contents = read_tensors(path)
        assert contents.largest() == "blobs"
        assert_same(contents.within("blobs"), arrays)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_files_of_python_3(protocol, path):
    path.write_bytes(pickle.dumps({"blobs": ARRAYS, "note": "é", "steps": [1, 2.5, None, True]}, protocol))
    content = read_caffe2(path)
    assert_same(content["blobs"], ARRAYS)
    assert content["note"] == "é"
    assert content["steps"] == [1, 2.5, None, True]


def test_one_array_under_two_names_is_one_tensor(path):
    path.write_bytes(pickle.dumps({"a": ARRAYS["conv1_w"], "b": ARRAYS["conv1_w"]}, 2))
    content = read_caffe2(path)
    assert content["a"] is content["b"]


def test_no_array_is_larger_than_its_bytes(path):
    """A shape of terabytes must fail before memory is asked for."""
    good = python2({"a": np.zeros(300, np.float32)})
    shape = b"M" + struct.pack("<H", 300)
    assert good.count(shape) == 1
    for huge in (
        b"\x8a\x06" + (1 << 40).to_bytes(6, "little"),
        b"M" + struct.pack("<H", 299),
        b"K\x02" * 40,
        b"J\xff\xff\xff\xff",
    ):
        path.write_bytes(good.replace(shape, huge))
        tracemalloc.start()
        with pytest.raises(InputError, match="an array of shape"):
            read_caffe2(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()


@pytest.mark.parametrize(
    "value",
    [
        np.array([None, 1], dtype=object),
        np.array(["text"]),
        np.array([b"text"]),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, np.complex64),
    ],
    ids=["objects", "text", "bytes", "records", "dates", "complex"],
)
def test_only_plain_numbers(value, path):
    path.write_bytes(pickle.dumps({"blobs": {"a": ARRAYS["half"], "b": value}}, 2))
    with pytest.raises(InputError, match="not a plain number type"):
        read_caffe2(path)


class Make:
    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Make(print, "x"), r"builtins\.print"),
        (Make(np.fromfile, "/etc/hostname"), r"numpy.*fromfile"),
        (Make(np.memmap, "/etc/hostname"), r"numpy.*memmap"),
        (torch.ones(2), r"torch.*_load_from_bytes"),
    ],
    ids=["print", "fromfile", "memmap", "tensor"],
)
def test_other_names_are_refused(value, name, path):
    path.write_bytes(pickle.dumps({"blobs": {"a": ARRAYS["half"], "b": value}}, 2))
    with pytest.raises(InputError, match=f"would run code.*{name}"):
        read_caffe2(path)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (python2(ARRAYS | {"one": np.ones(1)})[:-1], "damaged"),
        (python2({"a": np.ones(3)}) + b"more", "goes on behind"),
        (pickle.dumps([np.ones(3)], 2), "pickle of a list"),
        (b"\x80\x02cnumpy\nndarray\n(M\xff\xffM\xff\xfftR.", "not of a dict"),
        (b"\x80\x02}U\x01acnumpy\nndarray\n(M\xff\xffM\xff\xfft\x81s.", "where an array was expected"),
        (b"\x80\x02}U\x01aU\x01bQs.", "not of a dict|persist"),
    ],
    ids=["cut", "longer", "list", "array_made", "array_made_2", "outside"],
)
def test_damaged_pickles(data, match, path):
    path.write_bytes(data)
    with pytest.raises(InputError, match=match):
        read_caffe2(path)
