# SPDX-License-Identifier: Apache-2.0
"""The environment of a worker: the node's, without what ROS put into it.

A worker may be another interpreter with other versions of the same libraries; a ROS path left in ``PYTHONPATH`` or
``LD_LIBRARY_PATH`` would mix the two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_PREFIXES = ("AMENT_", "ROS_", "RMW_", "COLCON_", "RCUTILS_", "RCL_", "FASTDDS_", "FASTRTPS_", "CYCLONEDDS_", "ROSIDL_")
_PATH_LISTS = ("LD_LIBRARY_PATH", "PATH", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH")
_WHEELS = ".libs"  # libraries of the ROS wheels: <site-packages>/ros_*.libs

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def worker_environment(base: Mapping[str, str], paths: Iterable[str] = (), threads: int = 1) -> dict[str, str]:
    """Return the variables of a worker.

    Args:
        base: the node's.
        paths: folders for PYTHONPATH after the one that holds this package.
        threads: of OpenMP, MKL and OpenBLAS.
    """
    prefixes = _ros_prefixes(base)
    result = {k: v for k, v in base.items() if not k.startswith(_PREFIXES) and k not in ("PYTHONPATH", "PYTHONHOME")}
    for name in _PATH_LISTS:
        if name in result:
            kept = [p for p in result[name].split(os.pathsep) if p and not _is_ros(p, prefixes)]
            result[name] = os.pathsep.join(kept)
            if not kept:
                del result[name]
    count = str(threads)
    result |= {
        "PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), *(str(Path(p).resolve()) for p in paths)]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a crash inside a library leaves a Python traceback in the node's log
        "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1",  # else the ROS wheels' start-up file executes the interpreter anew
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1",  # a load never waits for the network
        "TRANSFORMERS_OFFLINE": "1",
    }
    return result


def _ros_prefixes(base: Mapping[str, str]) -> tuple[str, ...]:
    listed = [base.get(name, "") for name in ("AMENT_PREFIX_PATH", "COLCON_PREFIX_PATH", "CMAKE_PREFIX_PATH")]
    found = {os.path.normpath(p) for value in listed for p in value.split(os.pathsep) if p}
    if "_ROS_WHEELS_BOOTSTRAP_COMPLETE" in base:
        found.add(str(Path(sys.prefix, "lib")))  # the ROS wheels put it into LD_LIBRARY_PATH
    return ("/opt/ros", *sorted(found - {"/", "/usr", "/usr/local"}))


def _is_ros(path: str, prefixes: tuple[str, ...]) -> bool:
    path = os.path.normpath(path)
    if path.endswith(_WHEELS) and Path(path).name.startswith("ros_"):
        return True
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)
