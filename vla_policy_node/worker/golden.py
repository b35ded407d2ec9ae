# SPDX-License-Identifier: Apache-2.0
"""Golden replay: a policy must answer known observations as it did where it was made, within a tolerance in physical units."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.errors import WorkerError
from vla_policy_node.policies.base import FloatArray, Policy
from vla_policy_node.worker.history import repeated
from vla_policy_node.worker.inference import ChunkError, infer, reset

Array = npt.NDArray[Any]


def replay(
    policy: Policy,
    observations: Mapping[str, Array],
    action: FloatArray,
    instructions: Sequence[str],
    tolerance: Sequence[float],
    seed: int | None,
    times_s: list[float],
) -> float:
    """Infer every golden observation and compare; return the largest absolute difference, of whatever channel, in its unit.

    Args:
        policy: reset before each observation, so that each is the first of an episode.
        observations: feature → ``[N, …]``.
        action: expected, ``[N, H, A]``, physical units.
        instructions: N texts.
        tolerance: ``[A]``, largest allowed absolute difference per channel, in its unit.
        seed: given to the policy before each observation.
        times_s: gets what each inference took [s].

    Raises :class:`WorkerError` ``GOLDEN_MISMATCH`` that names observation, step and channel.
    """
    allowed, largest = np.asarray(tolerance, dtype=np.float64), 0.0
    for n, instruction in enumerate(instructions):
        try:
            chunk = _answer(policy, observations, n, instruction, seed, times_s)
        except ChunkError as e:
            raise WorkerError("GOLDEN_MISMATCH", f"golden observation {n}: {e.error}: {e.reason}") from e
        largest = max(largest, _compare(n, chunk, action[n], allowed))
    return largest


def record(
    policy: Policy,
    observations: Mapping[str, Array],
    action: FloatArray,
    instructions: Sequence[str],
    seed: int | None,
    times_s: list[float],
) -> None:
    """Infer every observation as :func:`replay` does, and write the chunks into ``action``.

    Raises :class:`WorkerError` with the error of a chunk.
    """
    for n, instruction in enumerate(instructions):
        try:
            action[n] = _answer(policy, observations, n, instruction, seed, times_s)
        except ChunkError as e:
            raise WorkerError(e.error, f"observation {n}: {e.reason}") from e


def _answer(
    policy: Policy,
    observations: Mapping[str, Array],
    n: int,
    instruction: str,
    seed: int | None,
    times_s: list[float],
) -> FloatArray:
    reset(policy, seed)
    shown = repeated({name: array[n] for name, array in observations.items()}, policy.spec.history)
    begin_s = time.monotonic()
    chunk = infer(policy, shown, instruction)
    times_s.append(time.monotonic() - begin_s)
    return chunk


def _compare(n: int, chunk: FloatArray, expected: FloatArray, allowed: npt.NDArray[np.float64]) -> float:
    if chunk.shape != expected.shape:
        raise WorkerError("GOLDEN_MISMATCH", f"golden observation {n}: chunk {chunk.shape}, expected {expected.shape}")
    difference = np.abs(chunk.astype(np.float64) - expected)
    excess = difference - allowed
    if not np.all(excess <= 0):  # written so that NaN fails
        step, channel = np.unravel_index(int(np.argmax(excess)), excess.shape)
        raise WorkerError(
            "GOLDEN_MISMATCH",
            f"golden observation {n}, step {step}, channel {channel}: differs by {difference[step, channel]:.6g}, "
            f"allowed {allowed[channel]:.6g}",
        )
    return float(difference.max())
