# SPDX-License-Identifier: Apache-2.0
"""LeRobotDataset v3.0 as LeRobot 0.4.4 writes and reads it: names, columns and their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from vla_learning.episodes.format import EpisodeMeta

VERSION = "v3.0"
INFO, STATS, TASKS, LINEAGE = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/vla_ota.json"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA_PATTERN = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_IN_CHUNK = 1000

ACTION, POLICY_ACTION = "action", "policy_action"
INTERVENTION, WEIGHT = "intervention", "sampling_weight"

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_TYPES = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}


def data_path(file: int) -> str:
    """Return the path of a file of frames."""
    return DATA_PATTERN.format(chunk_index=file // FILES_IN_CHUNK, file_index=file % FILES_IN_CHUNK)


def columns(meta: EpisodeMeta) -> dict[str, dict[str, Any]]:
    """Return LeRobot's ``features``: column → dtype, shape, names. ``policy_action`` and what follows it are ours."""
    actions = [channel.name for channel in meta.channels]
    found: dict[str, dict[str, Any]] = {}
    for name, feature in sorted(meta.features.items()):
        names = ["height", "width", "channels"] if feature.is_picture else list(feature.names) or None
        found[name] = {"dtype": feature.dtype, "shape": list(feature.shape), "names": names}
    found[ACTION] = {"dtype": "float32", "shape": [len(actions)], "names": actions}
    found[POLICY_ACTION] = {"dtype": "float32", "shape": [len(actions)], "names": actions}
    found[INTERVENTION] = {"dtype": "bool", "shape": [1], "names": None}
    found[WEIGHT] = {"dtype": "float32", "shape": [1], "names": None}
    found["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        found[name] = {"dtype": "int64", "shape": [1], "names": None}
    return found


def schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Return the columns' types in Parquet, as LeRobot declares them to ``datasets``."""
    return pa.schema([(name, _type(feature["dtype"], feature["shape"])) for name, feature in features.items()])


def _type(dtype: str, shape: list[int]) -> pa.DataType:
    if dtype == "image":
        return _IMAGE
    return _TYPES[dtype] if shape == [1] else pa.list_(_TYPES[dtype], shape[0])


def info(
    features: Mapping[str, Any], meta: EpisodeMeta, *, episodes: int, frames: int, tasks: int, file_mb: int
) -> dict[str, Any]:
    """Return ``meta/info.json``."""
    rate = meta.rate_hz
    return {
        "codebase_version": VERSION,
        "robot_type": meta.robot_type or None,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_IN_CHUNK,
        "data_files_size_in_mb": file_mb,
        "video_files_size_in_mb": 200,
        "fps": int(rate) if rate.is_integer() else rate,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATTERN,
        "video_path": None,
        "features": features,
    }


def tasks_table(tasks: list[str]) -> pa.Table:
    """Return ``meta/tasks.parquet``: pandas reads it with the instruction as index, which is how LeRobot finds a task."""
    index = "__index_level_0__"
    pandas = {
        "index_columns": [index],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json_text(pandas)})


def json_text(value: Any) -> str:
    """Return JSON as it is written into a data set: the same text for the same value."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
