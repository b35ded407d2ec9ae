# SPDX-License-Identifier: Apache-2.0
"""A LeRobotDataset v3.0 with pictures in Parquet, read with pyarrow alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vla_learning.datasets import layout
from vla_learning.episodes.pictures import decode
from vla_learning.errors import DataSetError


@dataclass(frozen=True)
class DataSet:
    """A data set of N frames. Columns are read when they are asked for."""

    folder: Path
    fps: float
    """Frames a second."""
    robot_type: str
    features: Mapping[str, Mapping[str, Any]]
    """Column → dtype, shape and names, as in ``meta/info.json``."""
    frames: int
    """N."""
    episodes: Sequence[range]
    """Frames of each episode."""
    task_of_episode: Sequence[str]
    """The first instruction of each episode."""
    tasks: Sequence[str]
    """What ``task_index`` counts."""
    _encoded: dict[str, pa.ChunkedArray] = field(default_factory=dict, repr=False)

    def columns(self, *names: str) -> dict[str, npt.NDArray[Any]]:
        """Return columns that are no pictures, ``[N]`` or ``[N, D]``.

        Raises:
            DataSetError: DATASET_UNREADABLE.
        """
        tables = [_table(path, list(names)) for path in self._files()]
        return {name: self._array(name, pa.concat_tables(tables).column(name)) for name in names}

    def pictures(self, feature: str, index: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Return the pictures of some frames, ``[n, H, W, 3]``. A camera's files, PNG or JPEG, stay in memory from then on.

        Raises:
            LearningError: DATASET_UNREADABLE, or EPISODE_FORMAT of a damaged picture.
        """
        if feature not in self._encoded:
            tables = [_table(path, [f"{feature}.bytes"]) for path in self._files()]
            self._encoded[feature] = pa.chunked_array(
                [chunk.field("bytes") for table in tables for chunk in table.column(feature).chunks], pa.binary()
            )
        wanted = np.atleast_1d(np.asarray(index, np.int64))
        shape = tuple(self.features[feature]["shape"])
        files = self._encoded[feature].take(pa.array(wanted)).to_pylist()
        pictures = [decode(file, shape, f"{self.folder}: {feature}") for file in files]
        return np.stack(pictures) if pictures else np.zeros((0, *shape), np.uint8)

    def _files(self) -> list[Path]:
        return sorted((self.folder / "data").glob("chunk-*/file-*.parquet"))

    def _array(self, name: str, column: pa.ChunkedArray) -> npt.NDArray[Any]:
        shape = self.features[name]["shape"]
        if shape == [1]:
            return np.asarray(column.to_numpy())
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return np.concatenate(flat).reshape(-1, *shape)


def open_dataset(folder: str | Path) -> DataSet:
    """Open a data set.

    Raises:
        DataSetError: DATASET_UNREADABLE: it is none, is damaged, or has videos.
    """
    folder = Path(folder)
    try:
        info = json.loads((folder / layout.INFO).read_text(encoding="utf-8"))
        if info["codebase_version"] != layout.VERSION:
            raise DataSetError("DATASET_UNREADABLE", folder, f"is {info['codebase_version']}, not {layout.VERSION}")
        rows = [row for path in sorted(folder.glob("meta/episodes/*/*.parquet")) for row in _table(path).to_pylist()]
        tasks = sorted(_table(folder / layout.TASKS).to_pylist(), key=lambda row: int(row["task_index"]))
        return DataSet(
            folder=folder,
            fps=float(info["fps"]),
            robot_type=info["robot_type"] or "",
            features=info["features"],
            frames=info["total_frames"],
            episodes=[range(row["dataset_from_index"], row["dataset_to_index"]) for row in rows],
            task_of_episode=[row["tasks"][0] for row in rows],
            tasks=[next(value for name, value in row.items() if name != "task_index") for row in tasks],
        )
    except OSError as e:
        raise DataSetError("DATASET_UNREADABLE", folder, f"no LeRobotDataset: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise DataSetError("DATASET_UNREADABLE", folder, f"no LeRobotDataset: {type(e).__name__} {e}") from e


def _table(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(path).read(columns=columns)
    except (OSError, pa.ArrowException) as e:
        raise DataSetError("DATASET_UNREADABLE", path, " ".join(str(e).split())) from e
