# SPDX-License-Identifier: Apache-2.0
"""Both ways to check a weight file, whole and as it arrived, miss no byte and no value, agree, and need little memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import make_bundle
from support.safetensors_files import entry, write_raw

from vla_checkpoint import CancelledCheckError, CheckpointError, read_header, verify_bundle
from vla_checkpoint.arrival import ArrivalDigest, is_as_arrived
from vla_checkpoint.header import Header
from vla_checkpoint.scan import BLOCK_BYTES, FileScan, scan_file

WEIGHTS = "model.safetensors"
NOT_FINITE = {
    "F64": (0x7FF0 << 48, 0xFFF8 << 48), "F32": (0x7F800000, 0xFFC00001), "C64": (0x7F800001, 0xFF800000),
    "F16": (0x7C00, 0xFE00), "BF16": (0x7F80, 0xFFC0), "F8_E5M2": (0x7C, 0xFF), "F8_E4M3": (0x7F, 0xFF), "F8_E8M0": (0xFF,),
    "F8_E4M3FNUZ": (0x80,), "F8_E5M2FNUZ": (0x80,),
}  # fmt: skip
"""Bits of a positive and a negative NaN or infinity, of those that a type has."""
WIDTHS = {"F64": 8, "F32": 4, "C64": 4, "F16": 2, "BF16": 2}


def arrived(path: Path) -> ArrivalDigest:
    digest = ArrivalDigest()
    digest.update(path.read_bytes())
    return digest


def holds(path: Path, header: Header, known: FileScan, **settings: Any) -> bool:
    return is_as_arrived(path, header, arrived(path).header, known.tensors, **settings)


def refusals(bundle: Path, known: dict[str, str]) -> list[str]:
    """What each way says of a bundle that is not to be accepted."""
    said = []
    for heard in ({}, known):
        with pytest.raises(CheckpointError) as caught:
            verify_bundle(bundle, arrived=heard)
        said.append(str(caught.value))
    return said


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Its weights have padding behind an odd header, tensors at odd offsets, and an empty one."""
    header = {
        "mask": entry("U8", [3], [0, 3]),
        "none": entry("F32", [0, 4], [3, 3]),
        "w": entry("F32", [2, 2], [3, 19]),
        "h": entry("BF16", [3], [19, 25]),
    }
    data = b"abc" + np.arange(4, dtype="<f4").tobytes() + b"\x80\x3f" * 3
    weights = write_raw(tmp_path / WEIGHTS, json.dumps(header).encode() + b" " * 5, data).read_bytes()
    make_bundle(tmp_path / "b", files={WEIGHTS: weights})
    return tmp_path / "b"


def test_every_flipped_byte_of_header_padding_and_tensors_is_found_by_both_ways_and_named_alike(bundle: Path) -> None:
    path = bundle / WEIGHTS
    intact, stream = path.read_bytes(), arrived(path)
    known = {stream.hexdigest(): stream.header}
    verify_bundle(bundle, arrived=known)
    for place in range(len(intact)):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        whole, as_arrived = refusals(bundle, known)
        assert whole == as_arrived, place
        if place >= len(intact) - 25:
            assert whole.startswith("DIGEST_FILE"), place
    path.write_bytes(intact)
    verify_bundle(bundle, arrived=known)


def test_another_dtype_of_the_same_size_in_the_header_is_found(bundle: Path) -> None:
    """No tensor's byte is another one: only the header's digest tells."""
    path = bundle / WEIGHTS
    intact, stream = path.read_bytes(), arrived(path)
    path.write_bytes(intact.replace(b'"BF16"', b'"F16" '))
    whole, as_arrived = refusals(bundle, {stream.hexdigest(): stream.header})
    assert whole == as_arrived and whole.startswith("DIGEST_FILE")


@pytest.mark.parametrize("change", ["digest", "nan"])
def test_what_was_published_wrong_is_refused_with_its_own_code_though_it_arrived_whole(
    bundle: Path, change: str
) -> None:
    path, manifest = bundle / WEIGHTS, json.loads((bundle / "manifest.json").read_bytes())
    if change == "nan":
        path.write_bytes(path.read_bytes()[:-2] + b"\xc0\x7f")
    stream = arrived(path)
    own = next(file for file in manifest["files"] if file["path"] == WEIGHTS)
    own["sha256"] = stream.hexdigest()
    last = path.read_bytes()[-6:] if change == "nan" else b"others"
    manifest["tensors"][WEIGHTS]["h"] = hashlib.sha256(last).hexdigest()
    (bundle / "manifest.json").write_bytes(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    whole, as_arrived = refusals(bundle, {stream.hexdigest(): stream.header})
    assert whole == as_arrived
    assert whole.startswith("VALUES_NOT_FINITE" if change == "nan" else "DIGEST_TENSOR")


@pytest.mark.parametrize("dtype", NOT_FINITE)
def test_nan_and_infinity_at_the_ends_of_a_tensor_and_of_blocks_are_found_in_every_float_type(
    tmp_path: Path, dtype: str
) -> None:
    width = WIDTHS.get(dtype, 1)
    size = 2 * BLOCK_BYTES + 8 * 5
    count = size // (8 if dtype == "C64" else width)
    header = {"odd": entry("U8", [3], [0, 3]), "w": entry(dtype, [count], [3, 3 + size])}
    path = write_raw(tmp_path / WEIGHTS, header, b"abc" + bytes(size))
    parsed = read_header(path)
    clean = scan_file(path, parsed)
    assert not clean.not_finite and holds(path, parsed, clean)
    start = parsed.tensors["w"].start
    for offset in (0, BLOCK_BYTES - width, BLOCK_BYTES, size - width):
        for bits in NOT_FINITE[dtype]:
            write_at(path, start + offset, bits.to_bytes(width, "little"))
            found = scan_file(path, parsed)
            assert found.not_finite == {"w": 1}
            assert not holds(path, parsed, found) and holds(path, parsed, found, values=False)
        write_at(path, start + offset, bytes(width))
    assert scan_file(path, parsed) == clean


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_digests_are_those_of_hashlib_however_tensors_lie_on_blocks(tmp_path: Path) -> None:
    sizes = [1, 0, BLOCK_BYTES - 1, BLOCK_BYTES, 7, 2 * BLOCK_BYTES + 1, *[5] * 1000, BLOCK_BYTES + 3]
    ends = list(itertools.accumulate(sizes))
    header = {
        f"t{i}": entry("U8", [size], [end - size, end]) for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }
    data = np.random.default_rng(0).bytes(sum(sizes))
    path = write_raw(tmp_path / WEIGHTS, header, data)
    parsed, done = read_header(path), list[int]()
    scan = scan_file(path, parsed, progress=done.append)
    assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {
        f"t{i}": hashlib.sha256(data[e - s : e]).hexdigest() for i, (s, e) in enumerate(zip(sizes, ends, strict=True))
    }
    assert scan.tensors == expected
    assert sum(done) == path.stat().st_size
    done.clear()
    assert holds(path, parsed, scan, progress=done.append)
    assert sum(done) == path.stat().st_size
    for name in ("t1", "t3", "t5", "t1006"):
        assert not is_as_arrived(path, parsed, arrived(path).header, {**expected, name: "0" * 64})


def big(path: Path, size: int) -> Path:
    """A file of two large tensors that takes no space."""
    write_raw(path, {"a": entry("F32", [size // 4], [0, size]), "b": entry("F32", [size // 4], [size, 2 * size])}, b"")
    os.truncate(path, path.stat().st_size + 2 * size)
    return path


def both_ways(path: Path) -> list[Callable[..., Any]]:
    """Return the checks of a file as it is now, to be run later."""
    header = read_header(path)
    known, beginning = scan_file(path, header).tensors, arrived(path).header
    return [partial(scan_file, path, header), partial(is_as_arrived, path, header, beginning, known)]


def test_memory_stays_bounded_whatever_the_size(tmp_path: Path) -> None:
    for check in both_ways(big(tmp_path / WEIGHTS, 64 << 20)):
        tracemalloc.start()
        check()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20


def test_the_caller_hears_of_progress_in_its_own_thread_and_can_stop_at_every_block(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    for check in both_ways(big(tmp_path / WEIGHTS, 16 * BLOCK_BYTES)):
        heard: list[tuple[int, int]] = []

        def progress(count: int, heard: list[tuple[int, int]] = heard) -> None:
            heard.append((threading.get_ident(), count))

        with pytest.raises(CancelledCheckError):
            check(progress=progress, cancel=lambda heard=heard: len(heard) == 5)
        assert len(heard) == 5 and {ident for ident, _ in heard} == {threading.get_ident()}
        assert max(count for _, count in heard) <= BLOCK_BYTES
        assert set(threading.enumerate()) == threads


def test_a_file_that_is_cut_or_grows_while_it_is_read_is_refused_and_nothing_hangs(tmp_path: Path) -> None:
    size = 16 * BLOCK_BYTES
    for way in (0, 1):
        path = big(tmp_path / WEIGHTS, size)
        check = both_ways(path)[way]
        with pytest.raises(CheckpointError, match="FILE_UNREADABLE"):
            check(progress=lambda _count, path=path: os.truncate(path, size // 2))


def test_a_file_that_has_grown_since_its_header_was_read_is_hashed_as_it_is(tmp_path: Path) -> None:
    path = big(tmp_path / WEIGHTS, BLOCK_BYTES)
    size, done = path.stat().st_size, list[int]()
    scan, still_holds = both_ways(path)
    os.truncate(path, size + 3 * BLOCK_BYTES)
    assert scan(progress=done.append).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and sum(done) == size
    assert not still_holds()


@pytest.mark.parametrize("step", [1, 3, 7, 8, 9, 1000])
def test_a_stream_has_the_digest_of_its_header_however_it_is_cut(bundle: Path, step: int) -> None:
    data = (bundle / WEIGHTS).read_bytes()
    digest = ArrivalDigest()
    for start in range(0, len(data), step):
        digest.update(data[start : start + step])
    end = read_header(bundle / WEIGHTS).data_start
    assert digest.header == hashlib.sha256(data[:end]).hexdigest()
    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"type": "act"}', bytes(7), b"\xff" * 64, b"\x09" + bytes(7) + b"12345678"]
)
def test_a_stream_that_is_no_safetensors_file_has_no_header(data: bytes) -> None:
    digest = ArrivalDigest()
    digest.update(data)
    assert (digest.header, digest.hexdigest()) == ("", hashlib.sha256(data).hexdigest())
