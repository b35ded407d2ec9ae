# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a valid file: a coded refusal, or exactly the tensors that the library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.safetensors_files import write_raw

from vla_checkpoint import CheckpointError, read_header

BOUNDED = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUMPY_TYPES = ["float32", "float16", "float64", "int8", "uint8", "int64", "bool"]


def valid_file(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    tensors = {}
    for i in range(rng.integers(1, 5)):
        shape = rng.integers(0, 4, rng.integers(0, 4))
        tensors[f"layer.{i}"] = rng.integers(0, 2, shape).astype(NUMPY_TYPES[rng.integers(len(NUMPY_TYPES))])
    return bytes(safetensors.numpy.save(tensors, {"k": "v"}))


def hold_the_guarantee(path: Path) -> bool:
    """Return whether the file was accepted."""
    try:
        header = read_header(path)
    except CheckpointError as e:
        assert e.code.isupper()
        return False
    content = path.read_bytes()
    with safetensors.safe_open(path, "np") as file:  # what we accept, the library must accept
        assert set(file.keys()) == set(header.tensors)
        for name, info in header.tensors.items():
            part = file.get_slice(name)
            assert (part.get_dtype(), tuple(part.get_shape())) == (info.dtype, info.shape)
    for name, array in safetensors.deserialize(content):
        info = header.tensors[name]
        assert bytes(array["data"]) == content[info.start : info.end]
    return True


@BOUNDED
@given(seed=st.integers(0, 10_000), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3))
def test_bytes_changed(tmp_path: Path, seed: int, edits: list[tuple[float, int]]) -> None:
    content = bytearray(valid_file(seed))
    for position, value in edits:
        content[min(int(position * len(content)), len(content) - 1)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    accepted = hold_the_guarantee(path)
    assert accepted or edits


@BOUNDED
@given(seed=st.integers(0, 10_000), cut=st.floats(0, 1), more=st.binary(max_size=4))
def test_cut_or_extended(tmp_path: Path, seed: int, cut: float, more: bytes) -> None:
    content = valid_file(seed)
    changed = content[: int(cut * len(content))] + more
    path = tmp_path / "x.safetensors"
    path.write_bytes(changed)
    accepted = hold_the_guarantee(path)
    assert not (accepted and len(changed) != len(content))


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 1 << 65)
    | st.floats()
    | st.sampled_from(["U8", "F32", "BF16", "F4", "", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@BOUNDED
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_field_replaced(tmp_path: Path, seed: int, data: st.DataObject) -> None:
    content = valid_file(seed)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = data.draw(st.sampled_from([*sorted(header), "__metadata__", "new"]))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra", None]))
    value = data.draw(JSON_VALUES)
    if field is None or not isinstance(header.get(name), dict):
        header[name] = value
    else:
        header[name][field] = value
    hold_the_guarantee(write_raw(tmp_path / "x.safetensors", header, content[8 + length :]))


@BOUNDED
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    moves=st.lists(st.integers(-2, 2), min_size=8, max_size=8),
    total=st.integers(0, 20),
)
def test_offsets_moved(tmp_path: Path, sizes: list[int], moves: list[int], total: int) -> None:
    header, position = {}, 0
    for i, size in enumerate(sizes):
        offsets = [position + moves[2 * i] // 2, position + size + moves[2 * i + 1] // 2]
        header[f"t{i}"] = {"dtype": "U8", "shape": [max(0, offsets[1] - offsets[0])], "data_offsets": offsets}
        position += size
    hold_the_guarantee(write_raw(tmp_path / "x.safetensors", header, bytes(total)))


@pytest.mark.parametrize("seed", range(20))
def test_untouched_files_are_accepted(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(valid_file(seed))
    assert hold_the_guarantee(path)
