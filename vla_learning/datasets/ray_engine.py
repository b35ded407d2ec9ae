# SPDX-License-Identifier: Apache-2.0
"""The files of a data set written side by side as a Ray Data job: on this machine, or on the cluster that RAY_ADDRESS names.

On a cluster, every machine must see the folders of the episodes and of the data set under the same path. Which episode goes into
which file is decided before, so the bytes are those of the plain engine.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Generator, Sequence
from typing import Any

from vla_learning.datasets.writing import FileResult, FileTask, write_file
from vla_learning.errors import DataSetError, LearningError

_OBJECT_STORE_BYTES = 80 << 20
"""Tasks and results are small: frames go from the workers to the files."""


def write_with_ray(tasks: Sequence[FileTask]) -> Generator[FileResult, None, None]:
    """Write the files; results come in the tasks' sequence, once all are written.

    A Ray that runs already in this process is used and stays; one that is started here ends here.

    Raises:
        LearningError: as ``write_file``; DATASET_RAY: Ray cannot start, or lost a task; LEARNING_MISSING.
    """
    _prepare_environment()
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise DataSetError(
            "LEARNING_MISSING", "ray", "is not installed; pip install -r requirements/learning.txt"
        ) from e
    started = not ray.is_initialized()
    try:
        if started:
            _start(ray)
        yield from _run(ray, tasks)
    except ray.exceptions.RayError as e:
        raise DataSetError("DATASET_RAY", "ray", str(e).strip().splitlines()[-1]) from e
    except (ConnectionError, RuntimeError) as e:
        raise DataSetError("DATASET_RAY", "ray", " ".join(str(e).split())[:500]) from e
    finally:
        if started:
            ray.shutdown()


def _prepare_environment() -> None:
    """Say what Ray reads when it is imported; a Ray that somebody has imported already keeps its own ways."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one in the home folder


def _start(ray: Any) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    ray.init("local", _node_ip_address="127.0.0.1", **local, **quiet)


def _run(ray: Any, tasks: Sequence[FileTask]) -> Generator[FileResult, None, None]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    kept = [ray.put(task) for task in tasks]

    def write(row: dict[str, Any]) -> dict[str, Any]:
        """Write one file in a worker; a refusal comes back as data, since Ray would wrap it."""
        try:
            return {**row, "result": write_file(ray.get(kept[row["id"]])), "error": None}
        except LearningError as e:
            return {**row, "result": None, "error": [e.code, e.where, e.reason]}

    rows = ray.data.range(len(tasks), override_num_blocks=len(tasks)).map(write).take_all()
    for row in sorted(rows, key=lambda row: int(row["id"])):
        if row["error"] is not None:
            code, where, reason = row["error"]
            raise LearningError(code, where, reason)
        yield row["result"]
