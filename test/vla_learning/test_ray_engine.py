# SPDX-License-Identifier: Apache-2.0
"""With Ray a data set is the same, byte for byte, and no process stays behind."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.episodes import make_episode

from vla_learning.datasets.build import build_dataset
from vla_learning.datasets.ray_engine import write_with_ray
from vla_learning.datasets.selection import BuildSettings, Source
from vla_learning.datasets.writing import FileResult, FileTask
from vla_learning.episodes.summary import summarize
from vla_learning.errors import LearningError


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def with_a_damaged_one(tasks: Sequence[FileTask]) -> Generator[FileResult, None, None]:
    """Write the files and one more whose episode is cut short: its refusal comes through Ray as it is."""
    placed = tasks[0].episodes[0]
    cut = Path("cut.mcap").absolute()
    cut.write_bytes(placed.source.path.read_bytes()[:-50])
    damaged = replace(placed, source=replace(placed.source, path=cut))
    results = write_with_ray([*tasks, replace(tasks[0], path=Path("x.parquet").absolute(), episodes=(damaged,))])
    yield from itertools.islice(results, len(tasks))
    with pytest.raises(LearningError, match=r"EPISODE_TRUNCATED: cut\.mcap"):
        next(results)


@pytest.mark.filterwarnings("ignore")  # Ray uses what Python and Ray call out of date
def test_ray_builds_the_same_bytes_and_reports_a_damaged_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # back to what it was, afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    sources = []
    for number in range(6):
        path = Path("e") / f"{number}.mcap"
        make_episode(path, number, corrected=2)
        sources.append(Source(summarize(path), path, number, new=number >= 3))
    settings = BuildSettings(file_bytes=15_000)
    build_dataset(sources, tmp_path / "plain", settings)
    build_dataset(sources, "ray", settings, engine=with_a_damaged_one)
    plain = digests(tmp_path / "plain")
    assert len([name for name in plain if name.startswith("data/")]) == 3
    assert digests(tmp_path / "ray") == plain
    assert not (tmp_path / "home").exists(), "nothing stays, nor in the home folder"
