# SPDX-License-Identifier: Apache-2.0
"""A weight file that is scanned, afterwards or while it arrives: no byte and no value is missed, and little memory is needed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.bundles import make_bundle
from support.safetensors_files import entry, write_raw

from vla_checkpoint import CancelledCheckError, CheckpointError, read_header, verify_bundle
from vla_checkpoint.arrival import Arrival, Arrived
from vla_checkpoint.scan import BLOCK_BYTES, FileScan, scan_file

WEIGHTS = "model.safetensors"
NOT_FINITE = {
    "F64": (0x7FF0 << 48, 0xFFF8 << 48), "F32": (0x7F800000, 0xFFC00001), "C64": (0x7F800001, 0xFF800000),
    "F16": (0x7C00, 0xFE00), "BF16": (0x7F80, 0xFFC0), "F8_E5M2": (0x7C, 0xFF), "F8_E4M3": (0x7F, 0xFF), "F8_E8M0": (0xFF,),
    "F8_E4M3FNUZ": (0x80,), "F8_E5M2FNUZ": (0x80,),
}  # fmt: skip
"""Bits of a positive and a negative NaN or infinity, of those that a type has."""
WIDTHS = {"F64": 8, "F32": 4, "C64": 4, "F16": 2, "BF16": 2}


def arrived(path: Path) -> Arrived:
    with arriving(path) as arrival:
        return arrival.finish(lambda: False)


@contextmanager
def arriving(path: Path) -> Iterator[Arrival]:
    """A file that is all there."""
    with closing(Arrival(path, path.stat().st_size)) as arrival:
        arrival.reached(path.stat().st_size)
        yield arrival


def change(path: Path, data: bytes) -> None:
    """Write to a file, at another time than before by its clock, which may be a coarse one."""
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        path.write_bytes(data)


def refusals(bundle: Path, known: dict[str, Arrived]) -> list[str]:
    """What is said of a bundle that is not to be accepted, without and with what was found while it arrived."""
    said = []
    for heard in ({}, known):
        with pytest.raises(CheckpointError) as caught:
            verify_bundle(bundle, arrived=heard)
        said.append(str(caught.value))
    return said


def bytes_read() -> int:
    """Return how much this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


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


def test_every_flipped_byte_of_header_padding_and_tensors_is_found_and_named_alike_whatever_was_found_before(
    bundle: Path,
) -> None:
    path = bundle / WEIGHTS
    intact, found = path.read_bytes(), arrived(path)
    known = {found.scan.sha256: found}
    verify_bundle(bundle, arrived=known)
    for place in range(len(intact)):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << place % 8
        change(path, damaged)
        whole, as_arrived = refusals(bundle, known)
        assert whole == as_arrived, place
        if place >= len(intact) - 25:
            assert whole.startswith("DIGEST_FILE"), place
    change(path, intact)
    verify_bundle(bundle, arrived=known)


def test_another_dtype_of_the_same_size_in_the_header_is_found(bundle: Path) -> None:
    """No tensor's byte is another one: only the file's digest tells."""
    path = bundle / WEIGHTS
    intact, found = path.read_bytes(), arrived(path)
    change(path, intact.replace(b'"BF16"', b'"F16" '))
    whole, as_arrived = refusals(bundle, {found.scan.sha256: found})
    assert whole == as_arrived and whole.startswith("DIGEST_FILE")


@pytest.mark.parametrize("wrong", ["digest", "nan"])
def test_what_was_published_wrong_is_refused_with_its_own_code_though_it_arrived_whole(
    bundle: Path, wrong: str
) -> None:
    path, manifest = bundle / WEIGHTS, json.loads((bundle / "manifest.json").read_bytes())
    if wrong == "nan":
        path.write_bytes(path.read_bytes()[:-2] + b"\xc0\x7f")
    found = arrived(path)
    own = next(file for file in manifest["files"] if file["path"] == WEIGHTS)
    own["sha256"] = found.scan.sha256
    last = path.read_bytes()[-6:] if wrong == "nan" else b"others"
    manifest["tensors"][WEIGHTS]["h"] = hashlib.sha256(last).hexdigest()
    (bundle / "manifest.json").write_bytes(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    whole, as_arrived = refusals(bundle, {found.scan.sha256: found})
    assert whole == as_arrived
    assert whole.startswith("VALUES_NOT_FINITE" if wrong == "nan" else "DIGEST_TENSOR")
    if wrong == "nan":
        verify_bundle(bundle, arrived={found.scan.sha256: found}, scan_values=False)


def test_a_file_that_arrived_is_not_read_again_under_any_name_and_mode_and_read_again_if_it_is_another_or_was_written_to(
    tmp_path: Path,
) -> None:
    size = 4 * BLOCK_BYTES
    weights = write_raw(tmp_path / WEIGHTS, {"w": entry("U8", [size], [0, size])}, bytes(size))
    make_bundle(tmp_path / "b", files={WEIGHTS: weights.read_bytes()})
    path, done = tmp_path / "b" / WEIGHTS, list[int]()
    found = arrived(path)
    known = {found.scan.sha256: found}
    path.rename(tmp_path / "blob")
    path.hardlink_to(tmp_path / "blob")
    path.chmod(0o444)

    def is_read() -> bool:
        done.clear()
        before = bytes_read()
        manifest = verify_bundle(tmp_path / "b", arrived=known, progress=done.append).manifest
        assert sum(done) == manifest.total_bytes
        return bytes_read() - before > size

    assert not is_read()
    os.utime(path)
    assert is_read()
    found = arrived(path)
    known = {found.scan.sha256: found}
    assert not is_read()
    path.unlink()
    path.write_bytes((tmp_path / "blob").read_bytes())
    os.utime(path, ns=(found.stamp[-1], found.stamp[-1]))
    assert is_read()


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
    assert not clean.not_finite
    start = parsed.tensors["w"].start
    for offset in (0, BLOCK_BYTES - width, BLOCK_BYTES, size - width):
        for bits in NOT_FINITE[dtype]:
            write_at(path, start + offset, bits.to_bytes(width, "little"))
            assert scan_file(path, parsed).not_finite == {"w": 1}
            assert not scan_file(path, parsed, values=False).not_finite
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
    assert arrived(path).scan == scan


def big(path: Path, size: int) -> Path:
    """A file of two large tensors that takes no space."""
    write_raw(path, {"a": entry("F32", [size // 4], [0, size]), "b": entry("F32", [size // 4], [size, 2 * size])}, b"")
    os.truncate(path, path.stat().st_size + 2 * size)
    return path


def scanned(path: Path) -> None:
    scan_file(path, read_header(path))


@pytest.mark.parametrize("check", [scanned, arrived])
def test_memory_stays_bounded_whatever_the_size(tmp_path: Path, check: Callable[[Path], object]) -> None:
    path = big(tmp_path / WEIGHTS, 64 << 20)
    tracemalloc.start()
    check(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_the_caller_hears_of_progress_in_its_own_thread_and_can_stop_at_every_block(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    heard: list[tuple[int, int]] = []
    path = big(tmp_path / WEIGHTS, 16 * BLOCK_BYTES)

    def progress(count: int) -> None:
        heard.append((threading.get_ident(), count))

    with pytest.raises(CancelledCheckError):
        scan_file(path, read_header(path), progress=progress, cancel=lambda: len(heard) == 5)
    assert len(heard) == 5 and {ident for ident, _ in heard} == {threading.get_ident()}
    assert max(count for _, count in heard) <= BLOCK_BYTES
    assert set(threading.enumerate()) == threads


def test_a_file_that_is_cut_while_it_is_read_is_refused_and_nothing_hangs(tmp_path: Path) -> None:
    size = 16 * BLOCK_BYTES
    path = big(tmp_path / WEIGHTS, size)
    with pytest.raises(CheckpointError, match="FILE_UNREADABLE"):
        scan_file(path, read_header(path), progress=lambda _: os.truncate(path, size // 2))
    path = big(tmp_path / "another", size)
    with closing(Arrival(path, path.stat().st_size)) as arrival:
        arrival.reached(size // 2)
        os.truncate(path, size // 4)
        arrival.reached(2 * size)
        with pytest.raises(CheckpointError, match="FILE_UNREADABLE"):
            arrival.finish(lambda: False)


def test_a_file_that_has_grown_since_its_header_was_read_is_hashed_as_it_is(tmp_path: Path) -> None:
    path = big(tmp_path / WEIGHTS, BLOCK_BYTES)
    header, size, done = read_header(path), path.stat().st_size, list[int]()
    os.truncate(path, size + 3 * BLOCK_BYTES)
    scan = scan_file(path, header, progress=done.append)
    assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and sum(done) == size


@pytest.mark.parametrize("step", [1, 3, 7, 8, 9, 1000])
def test_what_is_found_while_a_file_grows_is_what_is_found_afterwards_however_it_grows(
    bundle: Path, tmp_path: Path, step: int
) -> None:
    data, path = (bundle / WEIGHTS).read_bytes(), tmp_path / "growing"
    with path.open("wb", buffering=0) as file, closing(Arrival(path, len(data))) as arrival:
        for start in range(0, len(data), step):
            arrival.reached(start)
            file.write(data[start : start + step])
        arrival.reached(len(data))
        found = arrival.finish(lambda: False)
    assert found.scan == scan_file(path, read_header(path)) and found.scan.tensors.keys() == {"mask", "none", "w", "h"}


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"type": "act"}', bytes(7), b"\xff" * 64, b"\x09" + bytes(7) + b"12345678"]
)
def test_what_is_no_safetensors_file_is_hashed_alone(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert arrived(tmp_path / "file").scan == FileScan(hashlib.sha256(data).hexdigest(), {}, {})


def test_a_scan_whose_file_stops_growing_can_be_given_up_at_any_moment_and_leaves_no_thread(bundle: Path) -> None:
    threads, path = set(threading.enumerate()), bundle / WEIGHTS
    for there in (0, 5, 20, path.stat().st_size - 1):
        with closing(Arrival(path, path.stat().st_size)) as arrival:
            arrival.reached(there)
            with pytest.raises(CancelledCheckError):
                arrival.finish(iter([False, True]).__next__)
        assert set(threading.enumerate()) == threads
