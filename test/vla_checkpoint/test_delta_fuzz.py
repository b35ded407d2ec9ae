# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a delta: a coded refusal, or exactly the target; never another exception, nor more bytes than promised."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_checkpoint import CheckpointError
from vla_checkpoint.delta import apply_delta, make_delta, parse_offers, read_delta
from vla_checkpoint.delta.blocks import BlockError, decode_difference, decode_numbers, decompress, encode_difference
from vla_checkpoint.delta.format import MAGIC, RECORD, FileRef, write_delta
from vla_checkpoint.delta.numbers import FLOAT_TYPES

BOUNDED = settings(max_examples=80, deadline=None, derandomize=True, database=None)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)
EXTREMES = [0, 1, 2, 3, 4, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 44, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


Pair = tuple[Path, bytes, bytes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a folder with a base, the target, and the delta: every codec is in it."""
    folder = tmp_path_factory.mktemp("delta")
    rng = np.random.default_rng(0)
    w = rng.normal(size=(48, 64)).astype(np.float32)
    step = (rng.normal(size=(48, 2)) @ rng.normal(size=(2, 64)) * 1e-3 + rng.laplace(size=w.shape) * 1e-5).astype(
        np.float32
    )
    still, counts = rng.normal(size=500).astype(np.float32), np.arange(3000)
    old = {"still": still, "w": w}
    new = {"still": still, "w": w + step, "new": rng.normal(size=900).astype(np.float32), "counts": counts}
    new["noise"] = rng.integers(0, 256, 500, np.uint8)
    safetensors.numpy.save_file(old, folder / "base")
    safetensors.numpy.save_file(new, folder / "target")
    make_delta([folder / "base"], folder / "target", folder / "delta")
    assert set(read_delta(folder / "delta").records["codec"]) == {0, 1, 2, 3, 4}
    return folder, (folder / "target").read_bytes(), (folder / "delta").read_bytes()


def edited(data: bytes, edits: list[tuple[float, int]]) -> bytes:
    content = bytearray(data)
    for position, value in edits:
        content[min(int(position * len(content)), len(content) - 1)] = value
    return bytes(content)


def hold_the_guarantee(pair: Pair, content: bytes) -> None:
    folder, target, _ = pair
    path = folder / "tried"
    path.write_bytes(content)
    made = bytearray()
    try:
        promised = read_delta(path).target.size
        apply_delta(path, [folder / "base"], made.extend, workers=1)
    except CheckpointError as e:
        assert e.code in ("DELTA_FORMAT", "DELTA_BASE", "DELTA_RESULT")
        if e.code != "DELTA_FORMAT":
            assert len(made) <= promised
    else:
        assert made == target


@BOUNDED
@given(edits=EDITS)
def test_bytes_changed_anywhere(pair: Pair, edits: list[tuple[float, int]]) -> None:
    hold_the_guarantee(pair, edited(pair[2], edits))


@BOUNDED
@given(edits=EDITS)
def test_bytes_changed_in_the_header(pair: Pair, edits: list[tuple[float, int]]) -> None:
    content = pair[2]
    head = 16 + int.from_bytes(content[8:16], "little") + 40
    hold_the_guarantee(pair, edited(content[:head], edits) + content[head:])


@BOUNDED
@given(keep=st.floats(0, 1), extra=st.binary(max_size=20))
def test_cut_short_or_longer(pair: Pair, keep: float, extra: bytes) -> None:
    content = pair[2]
    hold_the_guarantee(pair, content[: int(keep * len(content))] + extra)


@BOUNDED
@given(content=st.binary(max_size=300), magic=st.booleans())
def test_arbitrary_bytes(pair: Pair, content: bytes, magic: bool) -> None:
    hold_the_guarantee(pair, MAGIC * magic + content)


@BOUNDED
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(sorted(RECORD.names or ())), st.sampled_from(EXTREMES)),
        min_size=1,
        max_size=3,
    ),
    size=st.none() | st.sampled_from(EXTREMES[:-3]),
)
def test_records_that_say_anything(pair: Pair, changes: list[tuple[int, str, int]], size: int | None) -> None:
    """Well-formed as JSON and zstd, and made to reach behind the ends of files or of memory."""
    folder, _, _ = pair
    good = read_delta(folder / "delta")
    records = good.records.copy()
    for row, name, value in changes:
        records[name][row % len(records)] = value % (1 << 8 * RECORD[name].itemsize)
    streams = folder / "streams"
    streams.write_bytes((folder / "delta").read_bytes()[good.streams :])
    target = good.target if size is None else FileRef(good.target.sha256, size)
    write_delta(folder / "made", target, good.bases, records, streams)
    hold_the_guarantee(pair, (folder / "made").read_bytes())


@BOUNDED
@given(edits=EDITS, dtype=st.sampled_from(sorted(FLOAT_TYPES)), columns=st.sampled_from([0, 40]), cut=st.floats(0, 1))
def test_streams_of_numbers(edits: list[tuple[float, int]], dtype: str, columns: int, cut: float) -> None:
    """The inner layers by themselves, where a digest of the whole does not look after them."""
    kind = FLOAT_TYPES[dtype]
    rng = np.random.default_rng(1)
    old = rng.integers(0, 1 << 14, 1600).astype(kind.integer)
    steps = np.outer(rng.integers(-9, 9, 40), rng.integers(-9, 9, 40)).ravel()
    stream = encode_difference(old, (old + steps).astype(kind.integer), kind, columns)
    for content in (edited(stream, edits), stream[: int(cut * len(stream))]):
        for decode in (
            lambda data: decode_difference(old, memoryview(data), kind, columns),
            lambda data: decode_numbers(memoryview(data), kind, 1600),
        ):
            with contextlib.suppress(BlockError):
                assert len(decode(content)) == 1600


def test_a_compressed_bomb_is_refused_before_it_is_unpacked() -> None:
    import zstandard

    bomb = zstandard.compress(bytes(1 << 28))
    with pytest.raises(BlockError):
        decompress(bomb, 1000)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 24))
    with pytest.raises(BlockError):
        decompress(unsized, 1000)


WORDS = st.sampled_from(["schema", "deltas", "target", "bases", "sha256", "size"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner),
    max_leaves=8,
)


@BOUNDED
@given(data=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps({"schema": 1, "deltas": value}).encode()))
def test_a_page_of_offers_is_read_or_refused(data: bytes) -> None:
    try:
        parse_offers(data, "deltas.json")
    except CheckpointError as e:
        assert e.code == "DELTA_FORMAT"
