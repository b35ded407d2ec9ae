# SPDX-License-Identifier: Apache-2.0
"""Observations out of a LeRobot data set: ``PYTHON -m vla_policy_node.desk.frames FOLDER COUNT SEED OUT FEATURE…``.

Runs in the interpreter that has LeRobot, whose own class decodes tables and videos. ``OUT`` becomes a numpy archive as
``vla-checkpoint golden --observations`` takes it. The frames are drawn from the whole data set.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MODULE = "lerobot.datasets.lerobot_dataset"


def read_frames(
    folder: Path, count: int, seed: int, features: Sequence[str]
) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Return observations, feature → ``[N, …]``, and N instructions.

    Pictures are uint8 ``[N, H, W, C]``, all else float32. Raises whatever LeRobot does, KeyError for a feature that is not there.
    """
    dataset = importlib.import_module(MODULE).LeRobotDataset(f"local/{folder.name}", root=folder)
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset), min(count, len(dataset)), replace=False))
    items = [dataset[int(i)] for i in chosen]
    arrays = {key: np.stack([_plain(np.asarray(item[key])) for item in items]) for key in features}
    return arrays, [str(item.get("task", "")) for item in items]


def _plain(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if value.ndim == 3 and value.shape[0] in (1, 3, 4):  # LeRobot gives pictures as [C, H, W], 0 to 1 or bytes
        scaled = value if value.dtype == np.uint8 else np.rint(value * 255.0).astype(np.uint8)
        return np.ascontiguousarray(scaled.transpose(1, 2, 0))
    return value.astype(np.float32)


def main() -> None:
    """Write the archive."""
    folder, count, seed, out, *features = sys.argv[1:]
    arrays, instructions = read_frames(Path(folder), int(count), int(seed), features)
    named: dict[str, Any] = {"instruction": np.array(instructions), **arrays}
    np.savez(out, **named)


if __name__ == "__main__":
    main()
