# SPDX-License-Identifier: Apache-2.0
"""A header is accepted only if it describes its file exactly."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from support.refusals import refused
from support.safetensors_files import entry, write_raw

from vla_checkpoint import limits, read_header
from vla_checkpoint.errors import HeaderError
from vla_checkpoint.header import DTYPE_BITS


def refusal_of(path: Path) -> str:
    """Return code and reason."""
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert caught.value.path == str(path)
    assert caught.value.reason
    return f"{caught.value.code}: {caught.value.reason}"


OTHER = b'{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},'
PLAIN = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'

# What the safetensors library (0.8) opens without complaint and a robot should not.
LIBRARY_ACCEPTS: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "tensor named twice, the later one wins": (OTHER + PLAIN[1:], "occurs twice"),
    "metadata key twice": (b'{"__metadata__":{"k":"1","k":"2"},' + PLAIN[1:], "occurs twice"),
    "unknown field": ({"a": entry(strides=[1])}, "must have exactly"),
    "entry as a list": ({"a": ["U8", [4], [0, 4]]}, "must have exactly"),
    "leading space": (b" " + PLAIN, "does not begin"),
    "padding that is not spaces": (PLAIN + b"\n\t", "does not end"),
    "metadata null": ({"__metadata__": None, "a": entry()}, "__metadata__"),
    "empty name": ({"": entry()}, "tensor name"),
    "terminal escape in a name": ({"a\x1b[31m": entry()}, "tensor name"),
    "seventeen dimensions": ({"a": entry(shape=[1] * 16 + [4])}, ": shape "),
    "empty tensor whose other dimensions overflow": (
        {"a": entry(), "z": entry(shape=[0, 2**62, 2**62], offsets=[4, 4])},
        ": shape ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LIBRARY_ACCEPTS)
def test_refuses_what_the_library_lets_through(tmp_path: Path, case: str) -> None:
    header, reason = LIBRARY_ACCEPTS[case]
    path = write_raw(tmp_path / "x.safetensors", header, bytes(4))
    with safetensors.safe_open(path, "np") as file:
        assert list(file.keys())
    assert reason in refusal_of(path)


REFUSED: dict[str, tuple[bytes | dict[str, Any], bytes, str]] = {
    "not an object": (b"[1]", b"", "does not begin"),
    "no JSON": (b"{]}", b"", "header: "),
    "two documents": (PLAIN + PLAIN, bytes(4), "header: "),
    "not UTF-8": (b'{"\xff":{}}', b"", "header: "),
    "lone surrogate": (PLAIN.replace(b'"a"', b'"\\ud800"'), bytes(4), "header: "),
    "NaN": (PLAIN.replace(b"[4]", b"[NaN]"), bytes(4), "header: "),
    "nested to exhaust the stack": (b"{" + b'"a":[' * 1 + b"[" * 100_000 + b"]" * 100_000 + b"]}", b"", "header: "),
    "a number of a megabyte": (PLAIN.replace(b"[4]", b"[" + b"1" * 1_000_000 + b"]"), bytes(4), "header: "),
    "field missing": ({"a": {"dtype": "U8", "shape": [4]}}, bytes(4), "must have exactly"),
    "entry null": ({"a": None}, b"", "must have exactly"),
    "metadata not strings": ({"__metadata__": {"k": 1}, "a": entry()}, bytes(4), "__metadata__"),
    "unknown dtype": ({"a": entry("F128", [1], [0, 16])}, bytes(16), "unknown dtype"),
    "dtype in lower case": ({"a": entry("u8")}, bytes(4), "unknown dtype"),
    "dtype unhashable": ({"a": {**entry(), "dtype": ["U8"]}}, bytes(4), "unknown dtype"),
    "shape with a boolean": ({"a": entry(shape=[True, 4])}, bytes(4), ": shape "),
    "shape with a float": ({"a": entry(shape=[4.0])}, bytes(4), ": shape "),
    "shape negative twice": ({"a": entry(shape=[-2, -2])}, bytes(4), ": shape "),
    "shape with minus zero": (PLAIN.replace(b"[4]", b"[-0]").replace(b"[0,4]", b"[0,0]"), b"", ": shape "),
    "shape wraps around 2**64": ({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}, b"", ": shape "),
    "fewer bytes than the shape": ({"a": entry("F32", [2], [0, 4])}, bytes(4), ": shape "),
    "half a byte": ({"a": entry("F4", [3], [0, 1])}, bytes(1), ": shape "),
    "offsets backwards": ({"a": entry(offsets=[4, 0])}, bytes(4), ": data_offsets "),
    "offsets boolean": ({"a": entry(shape=[1], offsets=[False, True])}, bytes(1), ": data_offsets "),
    "three offsets": ({"a": entry(offsets=[0, 4, 4])}, bytes(4), ": data_offsets "),
    "gap at the front": ({"a": entry(offsets=[4, 8])}, bytes(8), ": data_offsets "),
    "gap between": ({"a": entry(), "b": entry(offsets=[5, 9])}, bytes(9), ": data_offsets "),
    "overlap": ({"a": entry(), "b": entry(offsets=[3, 7])}, bytes(7), ": data_offsets "),
    "two tensors in one place": ({"a": entry(), "b": entry()}, bytes(4), ": data_offsets "),
    "trailing bytes": ({"a": entry()}, bytes(5), "HEADER_FILE_SIZE"),
    "data cut short": ({"a": entry()}, bytes(3), "HEADER_FILE_SIZE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tmp_path: Path, case: str) -> None:
    header, data, reason = REFUSED[case]
    assert reason in refusal_of(write_raw(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "HEADER_FILE_SIZE"),
        (b"\x02\0\0\0\0\0\0", "HEADER_FILE_SIZE"),
        ((3).to_bytes(8, "little") + b"{}", "HEADER_FILE_SIZE"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "HEADER_LIMIT"),
        (b"\xff" * 8, "HEADER_LIMIT"),
    ],
)
def test_refuses_a_length_prefix_that_lies(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert code in refusal_of(path)


@pytest.mark.parametrize(
    ("limit", "value", "refusal"),
    [
        ("TENSORS", 1, "HEADER_LIMIT: 2 tensors"),
        ("HEADER_BYTES", 20, "HEADER_LIMIT: header of"),
        ("JSON_VALUES", 3, "header: "),
        ("NAME_CHARS", 2, "tensor name"),
    ],
)
def test_limits_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, refusal: str) -> None:
    path = write_raw(tmp_path / "two.safetensors", {"abc": entry(), "b": entry(offsets=[4, 8])}, bytes(8))
    assert list(read_header(path).tensors) == ["abc", "b"]
    monkeypatch.setattr(limits, limit, value)
    assert refusal in refusal_of(path)


def test_files_that_are_not_regular_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.safetensors")
    for path, code in (
        (tmp_path / "fifo.safetensors", "FILE_NOT_REGULAR"),
        (tmp_path, "FILE_NOT_REGULAR"),
        (tmp_path / "nothing", "FILE_MISSING"),
    ):
        with refused(code):
            read_header(path)


def test_tensors_come_in_file_order_with_absolute_offsets(tmp_path: Path) -> None:
    header = {
        "second": entry(offsets=[4, 8]),
        "__metadata__": {"k": "v"},
        "first": entry(),
        "empty": entry(shape=[0], offsets=[4, 4]),
    }
    path = write_raw(tmp_path / "x.safetensors", header, b"AAAABBBB")
    read = read_header(path)
    assert list(read.tensors) == ["first", "empty", "second"]
    content = path.read_bytes()
    assert content[read.tensors["first"].start : read.tensors["first"].end] == b"AAAA"
    assert content[read.tensors["second"].start : read.tensors["second"].end] == b"BBBB"
    assert (read.metadata, read.file_size, read.total_size) == ({"k": "v"}, len(content), 8)


def test_every_dtype_of_the_library_is_known_and_no_other(tmp_path: Path) -> None:
    """The library itself is the list: it opens each type that we know, and names all it knows when it refuses one."""
    for dtype, bits in DTYPE_BITS.items():
        path = write_raw(tmp_path / f"{dtype}.safetensors", {"a": entry(dtype, [8], [0, bits])}, bytes(bits))
        with safetensors.safe_open(path, "np") as file:
            assert file.get_slice("a").get_dtype() == dtype
        assert read_header(path).tensors["a"].nbytes == bits
    unknown = write_raw(tmp_path / "unknown.safetensors", {"a": entry("X")}, bytes(4))
    with pytest.raises(safetensors.SafetensorError, match="unknown variant") as caught:
        safetensors.safe_open(unknown, "np").__enter__()
    named = str(caught.value).partition("expected one of")[2]
    assert set(re.findall("`([A-Z0-9_]+)`", named)) == set(DTYPE_BITS)


def test_files_that_the_library_writes_are_accepted(tmp_path: Path) -> None:
    tensors = {"w": np.ones((3, 5), np.float32), "b": np.zeros(0, np.float16), "i": np.arange(7), "s": np.array(1.5)}
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "np"})
    header = read_header(path)
    assert {name: info.shape for name, info in header.tensors.items()} == {k: v.shape for k, v in tensors.items()}
    assert header.metadata == {"format": "np"}


@pytest.mark.parametrize("gigabytes", [3, 5, 11])
def test_offsets_beyond_2_4_and_10_gib(tmp_path: Path, gigabytes: int) -> None:
    """Sparse files: nothing is written but the header and the last bytes."""
    size = gigabytes << 30
    path = write_raw(
        tmp_path / "big.safetensors",
        {"big": entry("BF16", [size // 2], [0, size]), "tail": entry("U8", [4], [size, size + 4])},
        b"",
    )
    start = path.stat().st_size
    os.truncate(path, start + size + 4)
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"tail")
    tail = read_header(path).tensors["tail"]
    assert (tail.start, tail.end) == (start + size, start + size + 4)
    with path.open("rb") as file:
        file.seek(tail.start)
        assert file.read() == b"tail"
    os.truncate(path, start + size + 3)
    assert "HEADER_FILE_SIZE" in refusal_of(path)
