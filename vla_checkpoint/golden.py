# SPDX-License-Identifier: Apache-2.0
"""``golden.safetensors``: observations and the chunks the policy must answer with, replayed on the robot before activation.

* one tensor ``[N, …]`` for each input feature, under its name: state float32 ``[N, S]``, pictures uint8 ``[N, H, W, C]``
* ``action`` float32 ``[N, H, A]`` in physical units
* metadata ``instructions`` (JSON list of N strings) and ``tolerance`` (JSON number or list of A numbers: the largest allowed
  absolute difference per channel, in the channel's unit)
* metadata ``seed`` (JSON integer, optional): what a policy that draws random numbers is seeded with before each observation

Each observation is the first one of an episode: a policy with a history of observations sees it repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from vla_checkpoint import limits
from vla_checkpoint.config import ACTION, PolicyConfig
from vla_checkpoint.errors import GoldenError, JsonError
from vla_checkpoint.files import PathLike, write_atomically
from vla_checkpoint.header import Header, read_header
from vla_checkpoint.strict_json import is_number, parse_json
from vla_checkpoint.tensors import numpy_dtype, read_array

GOLDEN_NAME = "golden.safetensors"
_MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Golden:
    """N observations and the expected answers."""

    observations: dict[str, npt.NDArray[np.generic]]
    """Feature → ``[N, …]``."""
    action: npt.NDArray[np.float32]
    """``[N, H, A]``, physical units."""
    instructions: tuple[str, ...]
    """N instructions."""
    tolerance: npt.NDArray[np.float32]
    """``[A]``: largest allowed absolute difference per channel, in its unit."""
    seed: int | None = None
    """What the policy's random numbers begin with at each observation; ``None``: it draws none."""

    def __len__(self) -> int:
        return len(self.instructions)


def read_golden(path: PathLike) -> Golden:
    """Read and check a golden file; whether it fits a policy is :func:`check_golden`'s question.

    Raises:
        FileError, HeaderError: it is unreadable, or no well-formed safetensors file.
        GoldenError: it is not the format above.
    """
    header = read_header(path)
    if header.file_size > limits.GOLDEN_BYTES:
        raise GoldenError("GOLDEN_FORMAT", path, f"{header.file_size} bytes, at most {limits.GOLDEN_BYTES} allowed")
    action = header.tensors.get(ACTION)
    if action is None or action.dtype != "F32" or len(action.shape) != 3 or not all(action.shape):
        raise GoldenError("GOLDEN_FORMAT", path, f"{ACTION!r} must be float32 [N, H, A], none of them 0")
    count, _, channels = action.shape
    observations = {}
    for name, info in header.tensors.items():
        if not info.shape or info.shape[0] != count:
            raise GoldenError("GOLDEN_SHAPE", path, f"{name!r} must have {count} entries like {ACTION!r}")
        if numpy_dtype(info.dtype) is None:
            raise GoldenError("GOLDEN_FORMAT", path, f"{name!r} is {info.dtype}, which numpy does not have")
        array = read_array(path, info)
        if not np.all(np.isfinite(array)):
            raise GoldenError("GOLDEN_FORMAT", path, f"NaN or infinity in {name!r}")
        observations[name] = array
    expected = observations.pop(ACTION).astype(np.float32, copy=False)
    if not observations:
        raise GoldenError("GOLDEN_FORMAT", path, "no observations")
    instructions, tolerance = _read_metadata(header, path, count, channels)
    return Golden(observations, expected, instructions, tolerance, _read_seed(header, path))


def check_golden(golden: Golden, config: PolicyConfig, path: PathLike = GOLDEN_NAME) -> None:
    """Check that golden observations and chunks have the shapes of a policy.

    Raises:
        GoldenError: ``GOLDEN_SHAPE``.
    """
    wrong = sorted(golden.observations.keys() ^ config.input_features.keys())
    if wrong:
        where = "the configuration" if wrong[0] in golden.observations else "the golden file"
        raise GoldenError("GOLDEN_SHAPE", path, f"feature {wrong[0]!r} is not in {where}")
    for name, feature in config.input_features.items():
        array = golden.observations[name]
        if array.shape[1:] != feature.array_shape:
            reason = f"{name!r} is {array.shape[1:]}, the policy takes {feature.array_shape}"
            raise GoldenError("GOLDEN_SHAPE", path, reason)
        if feature.type == "VISUAL" and array.dtype != np.uint8:
            raise GoldenError("GOLDEN_FORMAT", path, f"{name!r} must be uint8, it is {array.dtype}")
    chunk = (config.chunk_size, config.action_dim)
    if golden.action.shape[1:] != chunk:
        raise GoldenError("GOLDEN_SHAPE", path, f"chunks are {golden.action.shape[1:]}, the policy's are {chunk}")


def write_golden(
    path: PathLike,
    observations: Mapping[str, npt.NDArray[np.generic]],
    action: npt.NDArray[np.float32],
    instructions: list[str] | tuple[str, ...],
    tolerance: float | npt.NDArray[np.floating[Any]] | list[float],
    seed: int | None = None,
) -> None:
    """Write a golden file and read it back; the same arguments give the same bytes.

    Args:
        path: where to; replaced atomically.
        observations: feature → ``[N, …]``.
        action: ``[N, H, A]``, physical units.
        instructions: N strings.
        tolerance: one number, or A of them, in the channels' units.
        seed: with which the chunks were made, 0 to 2**32 - 1; ``None``: the policy draws no random numbers.

    Raises:
        FileError: it cannot be written.
        GoldenError: it would not be accepted when read; nothing is left at ``path``.
    """
    tensors = {name: np.ascontiguousarray(array) for name, array in observations.items()}
    tensors[ACTION] = np.ascontiguousarray(action, dtype=np.float32)
    listed = tolerance if isinstance(tolerance, (int, float)) else [float(t) for t in tolerance]
    metadata = {"instructions": json.dumps(list(instructions)), "tolerance": json.dumps(listed)}
    if seed is not None:
        metadata["seed"] = json.dumps(seed)
    write_atomically(Path(path), _with_sorted_header(safetensors.numpy.save(tensors, metadata)))
    try:
        read_golden(path)
    except GoldenError:
        Path(path).unlink()
        raise


def _read_metadata(
    header: Header, path: PathLike, count: int, channels: int
) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    values = {}
    for key in ("instructions", "tolerance"):
        if key not in header.metadata:
            raise GoldenError("GOLDEN_FORMAT", path, f"metadata lacks {key!r}")
        try:
            values[key] = parse_json(header.metadata[key].encode(), path)
        except JsonError as e:
            raise GoldenError("GOLDEN_FORMAT", path, f"metadata {key!r}: {e.reason}") from e
    instructions, tolerance = values["instructions"], values["tolerance"]
    if (
        not isinstance(instructions, list)
        or len(instructions) != count
        or not all(isinstance(i, str) for i in instructions)
    ):
        raise GoldenError("GOLDEN_FORMAT", path, f"instructions must be a list of {count} strings")
    if is_number(tolerance):
        tolerance = [tolerance] * channels
    listed = isinstance(tolerance, list) and len(tolerance) == channels
    if not listed or not all(is_number(t) and 0 <= t < 1e30 for t in tolerance):
        raise GoldenError("GOLDEN_FORMAT", path, f"tolerance must be a number >= 0, or {channels} of them")
    return tuple(instructions), np.asarray(tolerance, dtype=np.float32)


def _read_seed(header: Header, path: PathLike) -> int | None:
    text = header.metadata.get("seed")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > _MAX_SEED:
        raise GoldenError("GOLDEN_FORMAT", path, f"seed must be an integer from 0 to {_MAX_SEED}")
    return int(text)


def _with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with sorted keys: the library writes metadata in an order that changes from call to call."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))}
    text = json.dumps(metadata | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
