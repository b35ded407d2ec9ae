# SPDX-License-Identifier: Apache-2.0
"""What a policy with a history of observations is shown: the newest one, and those one, two, … periods before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.ipc.arena import Arena

Array = npt.NDArray[Any]
_HEAD = ("written_ns", "valid", "episode")
_RECORD = (*_HEAD, "stamp_ns", "instruction")
_TRIES = 3


def repeated(observation: Mapping[str, Array], count: int) -> Mapping[str, Array]:
    """Return the first observation of an episode as a policy with a history of ``count`` sees it."""
    return {k: np.repeat(v[None], count, 0) for k, v in observation.items()} if count > 1 else observation


def look_back(
    arena: Arena, names: Sequence[str], count: int, period_s: float
) -> tuple[dict[str, Array], list[dict[str, Array]]] | None:
    """Return the newest record, and the fields ``names`` of ``count`` records, oldest first; the last of them is the newest.

    The others are those written nearest to whole periods before it. Records of another episode, and incomplete ones, do not
    count: where too few are left, the oldest is repeated, as LeRobot fills its queues at an episode's start. ``None``: there is
    no record, or the writer came round the ring meanwhile.
    """
    for _ in range(_TRIES):
        newest = arena.read([*_RECORD, *names])
        if newest is None:
            return None
        seq, record = newest
        now_ns = int(record["written_ns"])
        written = _written(arena, seq, record) if count > 1 else {}
        targets = [now_ns - k * period_s * 1e9 for k in reversed(range(1, count))]
        chosen = [min(written, key=lambda s: abs(written[s] - target)) for target in targets]
        frames = {s: record if s == seq else _fields(arena, names, s) for s in {*chosen, seq}}
        found = [frames[s] for s in (*chosen, seq)]
        if all(frame is not None for frame in found):
            return record, [frame for frame in found if frame is not None]
    return None


def _written(arena: Arena, seq: int, newest: Mapping[str, Array]) -> dict[int, int]:
    """Return sequence number → time written [ns] of what may be shown beside the newest record, newest first."""
    written = {seq: int(newest["written_ns"])}
    for older in range(seq - 1, max(0, seq - arena.slots), -1):
        read = arena.read(_HEAD, seq=older)
        if read is None or read[1]["episode"] != newest["episode"]:
            break
        if read[1]["valid"]:
            written[older] = int(read[1]["written_ns"])
    return written


def _fields(arena: Arena, names: Sequence[str], seq: int) -> dict[str, Array] | None:
    read = arena.read(names, seq=seq)
    return None if read is None else read[1]
