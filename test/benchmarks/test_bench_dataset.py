# SPDX-License-Identifier: Apache-2.0
"""The benchmark of data sets: both ways build the same frames, and what is printed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import dataset
from vla_learning.episodes.summary import summarize


def test_both_ways_build_the_same_frames_and_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "DISTINCT", 2)
    dataset.make_episodes(tmp_path)
    files = sorted(tmp_path.glob("*.mcap"))
    known = {path: summarize(path) for path in files}
    for name, build in dataset.BUILDS.items():
        build([*files, files[0]], tmp_path / name, known)
    names = ["action", dataset.STATE, dataset.CAMERA, "intervention", "frame_index", "episode_index"]
    paths = ("vla_learning/data/chunk-000/file-000.parquet", "pandas/data.parquet")
    ours, pandas = (pq.read_table(tmp_path / path, columns=names) for path in paths)
    for name in names:
        assert _plain(ours[name].to_pylist()) == _plain(pandas[name].to_pylist()), name

    assert dataset.main(["--sizes", "3", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert all(found["builds"][name]["3"]["seconds"] > 0 for name in dataset.BUILDS)
    assert f"{3 / found['builds']['pandas']['3']['seconds']:.1f}" in capsys.readouterr().out


def _plain(values: list[object]) -> list[object]:
    return [[round(v, 5) for v in value] if isinstance(value, list) else value for value in values]
