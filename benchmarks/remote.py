# SPDX-License-Identifier: Apache-2.0
"""What a worker host costs: ``PYTHONPATH=test scripts/run python -m benchmarks.remote --out build/bench``.

From a request to its chunk, by a worker here and by one over TLS on this machine's own network; the policy itself takes no time.
On a line of 1 Gb/s add 8 ns for each byte of an observation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.remote_host import RemoteHost  # type: ignore[import-not-found]
from support.scripted import scripted_bundle  # type: ignore[import-not-found]
from support.worker_robot import STATE, WorkerRobot  # type: ignore[import-not-found]

from benchmarks.machine import describe
from benchmarks.results import Table, finish, percentile
from vla_policy_node.policies.base import FeatureSpec

CAMERAS = {f"observation.images.{name}": (480, 640) for name in ("front", "left", "right")}
CONDITIONS: dict[str, dict[str, tuple[int, int]]] = {"state alone": {}, "and three cameras 640 × 480": CAMERAS}
COLUMNS = (("median_ms", "median, ms", ".2f"), ("p99_ms", "p99, ms", ".2f"), ("bytes", "bytes a request", ".0f"))
_PERIOD_S = 0.02


def round_trips(bundle: Path, cameras: dict[str, tuple[int, int]], count: int, **config: Any) -> list[float]:
    """Return the time from request to chunk of ``count`` requests [ms]."""
    features = {STATE: FeatureSpec((2,), "float32")}
    features |= {name: FeatureSpec((*size, 3), "uint8") for name, size in cameras.items()}
    pictures = {name: np.zeros((*size, 3), np.uint8) for name, size in cameras.items()}
    taken = []
    with WorkerRobot(features, spare=False, **config) as robot:
        generation = robot.pool.prepare(bundle)
        robot.chunk(generation)
        _, chunks = generation.handle.attached()
        for _ in range(count):
            robot.observe(**pictures)
            begin = time.monotonic()
            newest = chunks.newest
            robot.request(generation)
            while chunks.newest == newest:
                time.sleep(50e-6)
            taken.append((time.monotonic() - begin) * 1e3)
            time.sleep(_PERIOD_S)
    return taken


def main() -> None:
    """Measure both ways, one after the other, ``runs`` times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON file")
    parser.add_argument("--runs", type=int, default=5, help="runs of each way")
    parser.add_argument("--count", type=int, default=200, help="requests of a run")
    arguments = parser.parse_args()
    table = Table("From a request to its chunk", COLUMNS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RemoteHost(folder) as host:
            over = {"remote": host.remote, "imports": ("vla_policy_node.remote.robot",)}
            for run in range(arguments.runs):
                for number, (condition, cameras) in enumerate(CONDITIONS.items()):
                    bundle = folder / str(number)
                    if run == 0:
                        scripted_bundle(bundle, images=cameras)
                    size = sum(3 * height * width for height, width in cameras.values())
                    ways: dict[str, dict[str, Any]] = {"worker here": {}, "worker host": over}
                    for way, config in ways.items():
                        taken = round_trips(bundle, cameras, arguments.count, **config)
                        figures = {"median_ms": percentile(taken, 0.5), "p99_ms": percentile(taken, 0.99)}
                        table.row(way, condition).add(**figures, bytes=size)
    settings = {"runs": arguments.runs, "count": arguments.count}
    finish("remote", arguments.out, describe(), settings, [table])


if __name__ == "__main__":
    main()
