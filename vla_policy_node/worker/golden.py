# SPDX-License-Identifier: Apache-2.0
"""Golden replay: a policy must answer known observations as it did where it was made, within a tolerance in physical units."""

from __future__ import annotations

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
    seed: int | None = None,
) -> None:
    """Infer every golden observation and compare.

    Args:
        policy: reset before each observation, so that each is the first of an episode.
        observations: feature → ``[N, …]``.
        action: expected, ``[N, H, A]``, physical units.
        instructions: N texts.
        tolerance: ``[A]``, largest allowed absolute difference per channel, in its unit.
        seed: given to the policy before each observation.

    Raises :class:`WorkerError` ``GOLDEN_MISMATCH`` that names observation, step and channel.
    """
    allowed = np.asarray(tolerance, dtype=np.float64)
    for n, instruction in enumerate(instructions):
        try:
            reset(policy, seed)
            shown = repeated({name: array[n] for name, array in observations.items()}, policy.spec.history)
            chunk = infer(policy, shown, instruction)
        except ChunkError as e:
            raise WorkerError("GOLDEN_MISMATCH", f"golden observation {n}: {e.error}: {e.reason}") from e
        if chunk.shape != action[n].shape:
            raise WorkerError(
                "GOLDEN_MISMATCH", f"golden observation {n}: chunk {chunk.shape}, expected {action[n].shape}"
            )
        difference = np.abs(chunk.astype(np.float64) - action[n])
        excess = difference - allowed
        if not np.all(excess <= 0):  # written so that NaN fails
            step, channel = np.unravel_index(int(np.argmax(excess)), excess.shape)
            raise WorkerError(
                "GOLDEN_MISMATCH",
                f"golden observation {n}, step {step}, channel {channel}: differs by {difference[step, channel]:.6g}, "
                f"allowed {allowed[channel]:.6g}",
            )
