# SPDX-License-Identifier: Apache-2.0
"""A tensor delta makes its target byte for byte, costs what has changed, and says when it cannot be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.safetensors_files import entry, write_raw

from vla_checkpoint import CheckpointError, sha256_file
from vla_checkpoint.cli import main
from vla_checkpoint.delta import Codec, apply_delta, apply_to_file, make_delta, read_delta
from vla_checkpoint.header import DTYPE_BITS

WIDTHS = {name: bits // 8 for name, bits in DTYPE_BITS.items() if bits >= 8}


def write_tensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """Write tensors of any dtype, given as their bytes."""
    header: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    return write_raw(path, header, b"".join(data for _, _, data in tensors.values()))


def as_bf16(array: np.ndarray) -> bytes:
    return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def trained(seed: int, shape: tuple[int, int], rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights before and after steps that differ by row and column and have no common direction."""
    rng = np.random.default_rng(seed)
    old = rng.normal(size=shape) * 0.03
    scale = 2.0 ** (rng.normal(size=(shape[0], 1)) + rng.normal(size=(1, shape[1])))
    return old, old + rng.laplace(size=shape) * rate * scale


def round_trip(folder: Path, base: Path | list[Path], target: Path) -> Path:
    """Make and apply a delta, hold the guarantee, and return the delta."""
    bases = base if isinstance(base, list) else [base]
    make_delta(bases, target, folder / "delta", workers=2)
    made = bytearray()
    apply_delta(folder / "delta", bases, made.extend)
    assert made == target.read_bytes()
    return folder / "delta"


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), data=st.data())
def test_any_tensors_come_out_byte_for_byte(tmp_path: Path, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    old: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    new: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for i in range(data.draw(st.integers(0, 2))):
        dtype = data.draw(st.sampled_from(sorted(WIDTHS)))
        shape = tuple(data.draw(st.lists(st.sampled_from([0, 1, 2, 17]), max_size=3)))
        before = rng.integers(
            0, 256, int(np.prod(shape)) * WIDTHS[dtype], np.uint8
        )  # every bit pattern: NaN, -0, denormal
        change = data.draw(st.sampled_from(["none", "few", "all", "gone", "renamed"]))
        after = before.copy()
        if change == "few":
            after[:: data.draw(st.integers(1, 9))] ^= 1
        elif change == "all":
            after = rng.integers(0, 256, len(before), np.uint8)
        old[f"t{i}"] = dtype, shape, before.tobytes()
        if change != "gone":
            new[f"t{i}" + "x" * (change == "renamed")] = dtype, shape, after.tobytes()
    base = write_tensors(tmp_path / "base.safetensors", old)
    round_trip(tmp_path, base, write_tensors(tmp_path / "target.safetensors", new))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_weights_of_every_size_come_out_byte_for_byte(tmp_path: Path, dtype: str) -> None:
    old, new = {}, {}
    for i, shape in enumerate([(3000,), (1, 5000), (700, 31), (31, 700), (2, 3, 5, 7), (1500, 1600)]):
        matrix = (shape[0], int(np.prod(shape[1:])))
        one, other = trained(i, matrix, 1e-4)
        other[0, 0], one[0, -1] = np.nan, np.inf
        to_bytes = as_bf16 if dtype == "BF16" else lambda a: a.astype("<f2" if dtype == "F16" else "<f4").tobytes()
        old[f"t{i}"], new[f"t{i}"] = (dtype, shape, to_bytes(one)), (dtype, shape, to_bytes(other))
    base = write_tensors(tmp_path / "base.safetensors", old)
    delta = round_trip(tmp_path, base, write_tensors(tmp_path / "target.safetensors", new))
    assert set(read_delta(delta).records["codec"]) <= {Codec.COPY, Codec.DIFFERENCE, Codec.ZSTD}


def test_what_has_not_changed_costs_nothing_wherever_it_is_now(tmp_path: Path) -> None:
    """Not when tensors change their order, their names, or their shard, nor when a frozen part is the larger one."""
    rng = np.random.default_rng(1)
    tensors = {f"layer.{i}": rng.normal(size=(256, 100 + i)).astype(np.float32) for i in range(8)}
    names = list(tensors)
    shards = [names[:3], names[3:]]
    bases = [tmp_path / f"model-{i}.safetensors" for i in range(2)]
    for path, part in zip(bases, shards, strict=True):
        safetensors.numpy.save_file({name: tensors[name] for name in part}, path)
    whole = tmp_path / "whole.safetensors"
    safetensors.numpy.save_file({f"policy.{name}": tensors[name] for name in reversed(names)}, whole)
    delta = round_trip(tmp_path, bases, whole)
    assert delta.stat().st_size < 1500 and whole.stat().st_size > 800_000
    again = tmp_path / "again.safetensors"
    safetensors.numpy.save_file({name: tensors[name] for name in names[2:5]}, again)
    assert round_trip(tmp_path, whole, again).stat().st_size < 1500


def test_a_small_step_costs_less_than_the_plain_difference(tmp_path: Path) -> None:
    """The coder expects larger steps in rows and columns that move more, and of weights with a finer resolution."""
    import zstandard

    old, new = trained(5, (1024, 1024), 3e-5)
    one, other = as_bf16(old), as_bf16(new)
    base = write_tensors(tmp_path / "base.safetensors", {"w": ("BF16", (1024, 1024), one)})
    target = write_tensors(tmp_path / "target.safetensors", {"w": ("BF16", (1024, 1024), other)})
    size = round_trip(tmp_path, base, target).stat().st_size
    plain = np.frombuffer(other, "<i2") - np.frombuffer(one, "<i2")
    zigzag = ((plain << 1) ^ (plain >> 15)).view("<u2")
    planes = zigzag.astype(np.uint8).tobytes() + (zigzag >> 8).astype(np.uint8).tobytes()
    assert size < 0.8 * len(zstandard.compress(planes, 3))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_merged_adapter_costs_its_factors_and_the_rounding(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(3)
    old = (rng.normal(size=(1024, 768)) * 0.03).astype(np.float32)
    new = old + (rng.normal(size=(1024, 8)) @ rng.normal(size=(8, 768))).astype(np.float32) * 1e-3
    to_bytes = as_bf16 if dtype == "BF16" else lambda a: a.tobytes()
    base = write_tensors(tmp_path / "base.safetensors", {"w": (dtype, old.shape, to_bytes(old))})
    target = write_tensors(tmp_path / "target.safetensors", {"w": (dtype, old.shape, to_bytes(new))})
    delta = round_trip(tmp_path, base, target)
    flat_base = write_tensors(tmp_path / "flat-base.safetensors", {"w": (dtype, (old.size,), to_bytes(old))})
    flat = write_tensors(tmp_path / "flat.safetensors", {"w": (dtype, (old.size,), to_bytes(new))})
    size = delta.stat().st_size
    assert size < 0.85 * round_trip(tmp_path, flat_base, flat).stat().st_size


def test_a_delta_is_the_same_whatever_the_number_of_threads(tmp_path: Path) -> None:
    old, new = trained(7, (2048, 1100), 1e-4)
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    safetensors.numpy.save_file({"w": old.astype(np.float32)}, base)
    safetensors.numpy.save_file({"w": new.astype(np.float32)}, target)
    made = []
    for workers in (1, 3):
        make_delta([base], target, tmp_path / "delta", workers=workers)
        made.append((tmp_path / "delta").read_bytes())
    assert made[0] == made[1]


def small_pair(folder: Path) -> tuple[Path, Path, Path]:
    """Return base, target and delta."""
    old, new = trained(9, (64, 80), 1e-4)
    base, target, delta = folder / "base.safetensors", folder / "target.safetensors", folder / "delta"
    safetensors.numpy.save_file({"w": old.astype(np.float32)}, base)
    safetensors.numpy.save_file({"w": new.astype(np.float32)}, target)
    make_delta([base], target, delta)
    return base, target, delta


def refusal(delta: Path, bases: list[Path], out: Path) -> str:
    out.write_bytes(b"what was there")
    with pytest.raises(CheckpointError) as caught:
        apply_to_file(delta, bases, out)
    assert out.read_bytes() == b"what was there", "a failed application must not touch its output"
    assert not list(out.parent.glob("*.partial"))
    return caught.value.code


def test_a_base_that_is_another_file_is_refused_as_such(tmp_path: Path) -> None:
    base, target, delta = small_pair(tmp_path)
    out = tmp_path / "out"
    assert refusal(delta, [], out) == "DELTA_BASE"
    assert refusal(delta, [tmp_path / "missing"], out) == "FILE_MISSING"
    assert refusal(delta, [target], out) == "DELTA_BASE"  # of the same size
    changed = bytearray(base.read_bytes())
    changed[-1] ^= 0xFF
    base.write_bytes(changed)
    assert refusal(delta, [base], out) == "DELTA_BASE"
    base.write_bytes(changed[:-4])
    assert refusal(delta, [base], out) == "DELTA_BASE"


def test_a_result_that_is_not_the_target_is_refused(tmp_path: Path) -> None:
    base, target, delta = small_pair(tmp_path)
    other = "0" * 64
    delta.write_bytes(delta.read_bytes().replace(sha256_file(target).encode(), other.encode()))
    assert refusal(delta, [base], tmp_path / "out") == "DELTA_RESULT"


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    base, target, _ = small_pair(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        make_delta([base], target, tmp_path / "missing" / "delta")
    assert caught.value.code == "FILE_NOT_WRITTEN"


def test_the_command_makes_applies_and_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, target, _ = small_pair(tmp_path)
    delta, out = str(tmp_path / "made.delta"), str(tmp_path / "out")
    assert main(["delta", "make", str(base), str(target), delta, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == sha256_file(target) and report["delta_bytes"] == Path(delta).stat().st_size
    assert main(["delta", "info", delta]) == 0
    assert "difference: 20480 bytes" in capsys.readouterr().out
    assert main(["delta", "apply", str(tmp_path), delta, out]) == 0  # a folder of which one file is the base
    assert Path(out).read_bytes() == target.read_bytes()
    capsys.readouterr()
    assert main(["delta", "apply", str(target), delta, out]) == 1
    assert capsys.readouterr().err.startswith("DELTA_BASE: ")


MEASURE = """
import sys
from pathlib import Path
from vla_checkpoint.delta import apply_to_file, make_delta
what, base, target, delta, out = sys.argv[1], *map(Path, sys.argv[2:])
make_delta([base], target, delta, workers=2) if what == "make" else apply_to_file(delta, [base], out)
print(1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """The whole process, interpreter and libraries included. Of 432 MB, 16 have changed."""
    old, new = (array.astype(np.float32).tobytes() for array in trained(11, (2048, 2048), 1e-4))
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    entries = {"t": entry("F32", [2048, 2048], [0, 1 << 24]), "z": entry("U8", [400 << 20], [1 << 24, 416 << 20])}
    for path, array in ((base, old), (target, new)):
        write_raw(path, entries, array)
        os.truncate(path, path.stat().st_size - len(array) + (416 << 20))
    for what in ("make", "apply"):
        arguments = [what, str(base), str(target), str(tmp_path / "delta"), str(tmp_path / "out")]
        found = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, timeout=110
        )
        assert int(found.stdout) < 200_000_000 + 150_000_000 * (what == "make"), what
    assert sha256_file(tmp_path / "out") == sha256_file(target)
