# SPDX-License-Identifier: Apache-2.0
"""A data set from chosen episodes. It appears under its name when it is whole; equal episodes and settings give equal bytes.

::

    choose ──► place episodes in files ──► write each file ──► statistics, tables, lineage ──► rename
                                           (engine: here, or Ray)
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_learning.datasets import layout, statistics
from vla_learning.datasets import lineage as from_lineage
from vla_learning.datasets.mix import Mix, mix
from vla_learning.datasets.reading import open_dataset
from vla_learning.datasets.selection import BuildSettings, Choice, Source, choose
from vla_learning.datasets.writing import FileResult, FileTask, Placed, write_file
from vla_learning.episodes.format import EpisodeMeta
from vla_learning.episodes.reading import read_episode
from vla_learning.errors import DataSetError

Engine = Callable[[Sequence[FileTask]], Generator[FileResult, None, None]]
"""Writes the files and yields their results in the tasks' sequence; closed early if the build fails."""
Fetch = Callable[[Mapping[Path, str]], None]
"""Brings episodes, by their SHA-256, to where they are read."""
Progress = Callable[[int, int], None]
"""Called with frames done and frames in all."""


def write_here(tasks: Sequence[FileTask]) -> Generator[FileResult, None, None]:
    """Write the files one after the other, in this process."""
    yield from map(write_file, tasks)


def build_dataset(
    sources: Iterable[Source],
    out: str | Path,
    settings: BuildSettings,
    *,
    fetch: Fetch = lambda files: None,
    engine: Engine = write_here,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Build a data set and return its lineage, which is also its ``meta/vla_ota.json``.

    Args:
        sources: the episodes that there are.
        out: the folder to make; it must not exist.
        settings: which episodes, and how often each frame is drawn.
        fetch: called with the chosen episodes before they are read.
        engine: writes the files.
        progress: shows how far it is.

    Raises:
        LearningError: nothing, or no whole episode, can be taken; ``out`` exists or cannot be written. No folder is left then.
    """
    out = _free(out)
    choice = choose(sources, settings)
    fetch({source.path: source.episode.sha256 for source in (*choice.replay, *choice.new)})
    return _build(choice, out, settings, engine, progress)


def rebuild_dataset(
    lineage: Mapping[str, Any],
    episodes: Path,
    out: str | Path,
    *,
    fetch: Fetch = lambda files: None,
    engine: Engine = write_here,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Build a data set again, byte for byte, from its lineage and its episodes.

    Args:
        lineage: its ``meta/vla_ota.json``.
        episodes: folder of its episodes, ``<sha256>.mcap``.
        out, fetch, engine, progress: as in ``build_dataset``.

    Raises:
        LearningError: as there; DATASET_LINEAGE: the lineage is none of this release's, or these episodes do not give it.
    """
    out = _free(out)
    settings, files = from_lineage.settings_of(lineage), from_lineage.files_of(lineage, episodes)
    fetch(files)
    again = _build(from_lineage.choice_of(lineage, episodes), out, settings, engine, progress)
    if again != lineage:
        shutil.rmtree(out)
        raise DataSetError(
            "DATASET_LINEAGE", out, "what was built differs from the lineage; use the release that made it"
        )
    return again


def _free(out: str | Path) -> Path:
    out = Path(out)
    if out.exists():
        raise DataSetError("DATASET_EXISTS", out, "is there already; a data set is never changed, choose another name")
    return out


def _build(choice: Choice, out: Path, settings: BuildSettings, engine: Engine, progress: Progress) -> dict[str, Any]:
    part = out.with_name(f".{out.name}.building")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a build that was killed
        part.mkdir(parents=True)
        lineage = _write(choice, part, settings, engine, progress)
        part.rename(out)
    except OSError as e:
        raise DataSetError("DATASET_NOT_WRITTEN", out, e.strerror or str(e)) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return lineage


def _write(choice: Choice, folder: Path, settings: BuildSettings, engine: Engine, progress: Progress) -> dict[str, Any]:
    replay = choice.replay
    chosen = [*replay, *choice.new]
    meta = read_episode(chosen[0].path).meta
    tasks = list(dict.fromkeys(text for source in chosen for text in source.episode.instructions))
    weights = mix(
        replay_frames=sum(source.episode.steps for source in replay),
        new_frames=sum(source.episode.steps for source in choice.new),
        corrections=sum(source.episode.corrections for source in choice.new),
        replay_share=settings.replay_share,
        correction_weight=settings.correction_weight,
    )
    files = list(_files(chosen, settings.file_bytes))
    work = [
        FileTask((folder / layout.data_path(number)).absolute(), tuple(placed), meta.interface, tuple(tasks), weights)
        for number, placed in enumerate(files)
    ]
    results: list[FileResult] = []
    done = 0
    with contextlib.closing(engine(work)) as written:
        for task, result in zip(work, written, strict=True):
            results.append(result)
            done += sum(placed.source.episode.steps for placed in task.episodes)
            progress(done, weights.frames)
    _write_tables(folder, files, tasks)
    _write_json(folder / layout.INFO, _info(meta, weights, len(chosen), len(tasks), settings))
    _write_json(folder / layout.STATS, _statistics(folder, meta, results))
    lineage = from_lineage.lineage_of(choice, settings, weights, meta.interface)
    _write_json(folder / layout.LINEAGE, lineage)
    return lineage


def _files(chosen: Sequence[Source], file_bytes: int) -> Iterator[list[Placed]]:
    """Yield the episodes of each file: as many as have ``file_bytes`` together, and at least one."""
    first, size, placed = 0, 0, list[Placed]()
    for index, source in enumerate(chosen):
        if placed and size + source.episode.size_bytes > file_bytes:
            yield placed
            size, placed = 0, []
        placed.append(Placed(replace(source, path=source.path.absolute()), index, first))  # others may work elsewhere
        size += source.episode.size_bytes
        first += source.episode.steps
    yield placed


def _write_tables(folder: Path, files: Sequence[Sequence[Placed]], tasks: list[str]) -> None:
    rows = [
        {
            "episode_index": placed.index,
            "tasks": list(placed.source.episode.instructions),
            "length": placed.source.episode.steps,
            "data/chunk_index": number // layout.FILES_IN_CHUNK,
            "data/file_index": number % layout.FILES_IN_CHUNK,
            "dataset_from_index": placed.first,
            "dataset_to_index": placed.first + placed.source.episode.steps,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for number, episodes in enumerate(files)
        for placed in episodes
    ]
    path = folder / layout.EPISODES
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    pq.write_table(layout.tasks_table(tasks), folder / layout.TASKS)


def _info(meta: EpisodeMeta, weights: Mix, episodes: int, tasks: int, settings: BuildSettings) -> dict[str, Any]:
    megabytes = max(1, settings.file_bytes >> 20)
    features = layout.columns(meta)
    return layout.info(features, meta, episodes=episodes, frames=weights.frames, tasks=tasks, file_mb=megabytes)


def _statistics(folder: Path, meta: EpisodeMeta, results: Sequence[FileResult]) -> dict[str, Any]:
    dataset = open_dataset(folder)
    found: dict[str, Any] = {}
    for name, feature in layout.columns(meta).items():
        if feature["dtype"] == "image":
            counts = sum((result.histograms[name] for result in results[1:]), results[0].histograms[name])
            found[name] = statistics.of_pictures(counts, sum(result.sampled for result in results))
        elif (of_column := statistics.of_vectors(dataset.columns(name)[name])) is not None:
            found[name] = of_column
    return found


def _write_json(path: Path, value: Any) -> None:
    path.write_text(layout.json_text(value) + "\n", encoding="utf-8")
