# SPDX-License-Identifier: Apache-2.0
"""Frames of a data set: one Parquet file from its episodes. Every engine's unit of work; in memory is one episode at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vla_learning.datasets import layout, statistics
from vla_learning.datasets.mix import Mix
from vla_learning.datasets.selection import Source
from vla_learning.episodes.pictures import Pictures
from vla_learning.episodes.reading import Episode, read_episode
from vla_learning.errors import DataSetError

_GROUP_BYTES = 256 << 20
"""Pictures of a row group, counted for each frame; an episode is one group, unless it is larger."""
_SAMPLED_PICTURES = 32
"""Of each camera and episode, evenly spread, for the statistics."""


@dataclass(frozen=True)
class Placed:
    """An episode and its place in the data set."""

    source: Source
    index: int
    """Number of the episode."""
    first: int
    """Number of its first frame."""


@dataclass(frozen=True)
class FileTask:
    """A file of frames to write."""

    path: Path
    episodes: tuple[Placed, ...]
    interface: str
    """Of every episode."""
    tasks: tuple[str, ...]
    """Every instruction of the data set; a frame names its own by number."""
    mix: Mix


@dataclass(frozen=True)
class FileResult:
    """What the data set's statistics need of a file."""

    histograms: dict[str, statistics.Histogram]
    """Camera → values of its sampled pictures."""
    sampled: int
    """Pictures of each camera."""


def write_file(task: FileTask) -> FileResult:
    """Write a file of frames; equal tasks give equal bytes.

    Raises:
        LearningError: an episode is not there, damaged, or not what its summary says.
    """
    histograms: dict[str, statistics.Histogram] = {}
    sampled = 0
    writer: pq.ParquetWriter | None = None
    try:
        task.path.parent.mkdir(parents=True, exist_ok=True)
        for placed in task.episodes:
            episode = _read(placed.source, task.interface)
            features = layout.columns(episode.meta)
            if writer is None:
                limit = {"dictionary_pagesize_limit": _GROUP_BYTES}  # a picture that stays is stored once
                writer = pq.ParquetWriter(task.path, layout.schema(features), compression="snappy", **limit)
            for frames in _groups(episode):
                writer.write_table(_frames(episode, frames, placed, task, features))
            steps = np.unique(np.linspace(0, episode.steps - 1, _SAMPLED_PICTURES).round().astype(np.int64))
            sampled += len(steps)
            for name, pictures in episode.pictures.items():
                counts = _count(pictures, steps)
                histograms[name] = histograms[name] + counts if name in histograms else counts
    except OSError as e:
        raise DataSetError("DATASET_NOT_WRITTEN", task.path, e.strerror or str(e)) from e
    finally:
        if writer is not None:
            writer.close()
    return FileResult(histograms, sampled)


def _read(source: Source, interface: str) -> Episode:
    episode, summary = read_episode(source.path), source.episode
    with source.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    have = digest, episode.meta.interface, episode.steps, episode.corrections
    if have != (summary.sha256, interface, summary.steps, summary.corrections):
        raise DataSetError(
            "DATASET_EPISODE_CHANGED", source.path, "the episode is not the one that was chosen; fetch it again"
        )
    return episode


def _groups(episode: Episode) -> list[npt.NDArray[np.int64]]:
    """Return the steps of each row group."""
    sizes = np.zeros(episode.steps, np.int64)
    for pictures in episode.pictures.values():
        sizes += np.array([len(file) for file in pictures.encoded], np.int64)[pictures.which]
    return np.array_split(np.arange(episode.steps), 1 + int(sizes.sum()) // _GROUP_BYTES)


def _frames(
    episode: Episode, steps: npt.NDArray[np.int64], placed: Placed, task: FileTask, features: dict[str, dict[str, Any]]
) -> pa.Table:
    number = {instruction: index for index, instruction in enumerate(task.tasks)}
    intervention = episode.intervention[steps]
    values: dict[str, npt.NDArray[Any]] = {
        **{name: column[steps] for name, column in episode.states.items()},
        layout.ACTION: episode.actions[steps],
        layout.POLICY_ACTION: episode.policy_actions[steps],
        layout.INTERVENTION: intervention,
        layout.WEIGHT: task.mix.weights(intervention, new=placed.source.new),
        "timestamp": (steps / episode.meta.rate_hz).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(len(steps), placed.index),
        "index": steps + placed.first,
        "task_index": np.array([number[episode.instructions[step]] for step in steps]),
    }
    arrays = {name: _images(pictures, steps) for name, pictures in episode.pictures.items()}
    types = layout.schema(features)
    for name, column in values.items():
        arrays[name] = _array(column, types.field(name).type)
    return pa.table([arrays[name] for name in types.names], schema=types)


def _images(pictures: Pictures, steps: npt.NDArray[np.int64]) -> pa.Array:
    encoded = pa.array([pictures.encoded[index] for index in pictures.which[steps]], pa.binary())
    return pa.StructArray.from_arrays([encoded, pa.nulls(len(encoded), pa.string())], names=["bytes", "path"])


def _array(column: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    flat = pa.array(column.ravel(), kind.value_type if pa.types.is_fixed_size_list(kind) else kind)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size) if pa.types.is_fixed_size_list(kind) else flat


def _count(pictures: Pictures, steps: npt.NDArray[np.int64]) -> statistics.Histogram:
    which, times = np.unique(pictures.which[steps], return_counts=True)
    counts = [statistics.histogram(pictures.decoded(index)) * n for index, n in zip(which, times, strict=True)]
    total: statistics.Histogram = np.sum(np.stack(counts), axis=0)
    return total
