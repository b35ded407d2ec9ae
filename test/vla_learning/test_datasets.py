# SPDX-License-Identifier: Apache-2.0
"""A data set holds exactly the episodes that were chosen, mixes them as asked, and is the same bytes each time it is built."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.episodes import CAMERA, FEATURES, STATE, make_episode, meta

from vla_learning.datasets.build import build_dataset, rebuild_dataset
from vla_learning.datasets.mix import mix
from vla_learning.datasets.reading import open_dataset
from vla_learning.datasets.selection import BuildSettings, Source, choose
from vla_learning.episodes.format import Feature
from vla_learning.episodes.summary import summarize
from vla_learning.episodes.writing import write_episode
from vla_learning.errors import DataSetError, LearningError


def source(folder: Path, number: int, new: bool, **options: Any) -> Source:
    path = folder / f"{number}.mcap"
    make_episode(path, number, **options)
    return Source(summarize(path), path, number, new)


def week(folder: Path) -> list[Source]:
    """Five old episodes of two tasks, one of them a failure, and three new ones, one of them corrected."""
    return [
        source(folder, 1, False, steps=20),
        source(folder, 2, False, steps=10, instruction="pick the blue block"),
        source(folder, 3, False, steps=20),
        source(folder, 4, False, steps=10, success=False),
        source(folder, 5, False, steps=20),
        source(folder, 6, True, steps=12, corrected=4, success=False),
        source(folder, 7, True, steps=12),
        source(folder, 8, True, steps=12, success=None),
    ]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_data_set_holds_the_chosen_episodes_frame_by_frame(tmp_path: Path) -> None:
    sources = week(tmp_path / "e")
    lineage = build_dataset(sources, tmp_path / "d", BuildSettings())
    dataset = open_dataset(tmp_path / "d")
    assert [entry["number"] for entry in lineage["episodes"]] == [1, 2, 3, 5, 6, 7]
    assert lineage["left_out"] == {"not a success, and not corrected": 2}
    assert dataset.fps == 10.0 and dataset.robot_type == "sim_arm" and dataset.frames == 94
    assert dataset.tasks == ["pick the red block", "pick the blue block"]
    found = dataset.columns(STATE, "action", "policy_action", "intervention", "timestamp", "index", "task_index")
    np.testing.assert_array_equal(found["index"], np.arange(94))
    for place, entry in enumerate(lineage["episodes"]):
        made = make_episode(
            tmp_path / "again.mcap", entry["number"], steps=entry["steps"], corrected=entry["corrections"]
        )
        frames = list(dataset.episodes[place])
        np.testing.assert_array_equal(found[STATE][frames], made["features"][STATE])
        np.testing.assert_array_equal(found["action"][frames], made["actions"])
        np.testing.assert_array_equal(found["policy_action"][frames], made["policy_actions"])
        np.testing.assert_array_equal(found["intervention"][frames], made["intervention"])
        np.testing.assert_array_equal(dataset.pictures(CAMERA, frames), made["features"][CAMERA])
        np.testing.assert_allclose(found["timestamp"][frames], np.arange(len(frames)) / 10.0)
        assert dataset.task_of_episode[place] == dataset.tasks[found["task_index"][frames[0]]]


def test_the_weights_make_the_mix_that_was_asked_for(tmp_path: Path) -> None:
    lineage = build_dataset(week(tmp_path / "e"), tmp_path / "d", BuildSettings())
    found = open_dataset(tmp_path / "d").columns("sampling_weight", "intervention", "episode_index")
    weights = found["sampling_weight"].astype(np.float64)
    parts = np.array([entry["part"] for entry in lineage["episodes"]])[found["episode_index"]]
    assert weights.sum() == pytest.approx(94, rel=1e-6)
    assert weights[parts == "replay"].sum() / weights.sum() == pytest.approx(0.7)
    new, corrected = weights[parts == "new"], found["intervention"][parts == "new"]
    assert new[corrected].mean() / new[~corrected].mean() == pytest.approx(10.0)
    share = corrected.mean()
    expected = 10 * share / (1 + 9 * share)
    assert new[corrected].sum() / new.sum() == pytest.approx(expected)
    assert lineage["mix"]["corrections_of_new"] == pytest.approx(expected)
    assert lineage["mix"]["effective_frames"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-6)


def test_the_facts_example_comes_out(tmp_path: Path) -> None:
    """Corrections are 5 % of the new frames: 34 % of the new part, and 10 % of a batch."""
    found = mix(7000, 3000, 150, 0.7, 10.0)
    assert found.corrections_of_new == pytest.approx(0.345, abs=0.001)
    assert 0.3 * found.corrections_of_new == pytest.approx(0.103, abs=0.001)


def test_without_old_episodes_everything_drawn_is_new() -> None:
    found = mix(0, 100, 10, 0.7, 10.0)
    assert found.replay_share == 0.0 and found.replay_weight == 0.0
    assert 90 * found.new_weight + 10 * found.correction_weight == pytest.approx(100)


def test_equal_episodes_and_settings_give_equal_bytes_and_another_seed_others(tmp_path: Path) -> None:
    sources = week(tmp_path / "e")
    small = {"replay_frames": 40, "file_bytes": 20_000}
    for name, order, seed in (("a", sources, 0), ("b", sources[::-1], 0), ("c", sources, 1)):
        build_dataset(order, tmp_path / name, BuildSettings(seed=seed, **small))
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b and a != c
    assert sum(name.startswith("data/") for name in a) > 1, "several files"
    folder = open_dataset(tmp_path / "a")
    assert len(folder.columns("action")["action"]) == folder.frames


def test_a_data_set_is_built_again_from_its_lineage_alone(tmp_path: Path) -> None:
    sources = week(tmp_path / "e")
    build_dataset(sources, tmp_path / "d", BuildSettings(seed=3, replay_frames=40, file_bytes=20_000))
    for one in sources:
        one.path.rename(one.path.with_name(f"{one.episode.sha256}.mcap"))
    lineage = json.loads((tmp_path / "d" / "meta" / "vla_ota.json").read_text())
    rebuild_dataset(lineage, tmp_path / "e", tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "d")

    for wrong in ({}, {**lineage, "episodes": []}, {**lineage, "asked": {}} | {"strata": None}, {**lineage, "mix": {}}):
        with pytest.raises(DataSetError, match="DATASET_LINEAGE"):
            rebuild_dataset(wrong, tmp_path / "e", tmp_path / "x")
    (tmp_path / "e" / f"{lineage['episodes'][0]['sha256']}.mcap").unlink()
    with pytest.raises(LearningError, match="EPISODE_UNREADABLE"):
        rebuild_dataset(lineage, tmp_path / "e", tmp_path / "x")
    assert not list(tmp_path.glob("*x*"))


def test_no_task_is_forgotten_however_rare(tmp_path: Path) -> None:
    """A thousand frames of one task do not drive twenty frames of another out of a buffer of a hundred."""
    common = [source(tmp_path, n, False, steps=20) for n in range(20)]
    rare = [source(tmp_path, 50, False, steps=20, instruction="open the drawer")]
    new = [source(tmp_path, 99, True, steps=10, corrected=5)]
    choice = choose([*common, *rare, *new], BuildSettings(replay_frames=100))
    frames = {stratum.instruction: stratum.chosen_frames for stratum in choice.strata}
    assert frames == {"open the drawer": 20, "pick the red block": 80}
    each = [source(tmp_path, 100 + n, False, steps=20, instruction=f"pick block {n}") for n in range(12)]
    many = choose([*common, *each, *new], BuildSettings(replay_frames=130))
    assert len(many.replay) == 6, "a stratum's share is less than an episode, and the buffer is full all the same"
    assert max(len(stratum.chosen) for stratum in many.strata) == 1
    more = choose([*common, *rare, *new, source(tmp_path, 30, False, steps=20)], BuildSettings(replay_frames=100))
    assert len(set(choice.replay) & set(more.replay)) >= 4, "one more old episode does not reshuffle the buffer"


def test_a_buffer_in_which_no_old_episode_fits_is_refused(tmp_path: Path) -> None:
    sources = [source(tmp_path, 1, False, steps=20), source(tmp_path, 2, True, steps=10, corrected=5)]
    error = refusal(sources, tmp_path / "d", replay_frames=19)
    assert error.code == "DATASET_SETTING" and "20 frames" in str(error)
    assert choose(sources, BuildSettings(replay_frames=0)).replay == (), "unless no replay is asked for"


def test_lerobots_own_reader_of_tasks_finds_them_by_instruction(tmp_path: Path) -> None:
    """LeRobot reads tasks with pandas and looks an instruction up in the index."""
    import pandas as pd  # a second that no other test needs

    build_dataset(week(tmp_path / "e"), tmp_path / "d", BuildSettings())
    tasks = pd.read_parquet(tmp_path / "d" / "meta" / "tasks.parquet")
    assert int(tasks.loc["pick the blue block"].task_index) == 1 and tasks.iloc[0].name == "pick the red block"


def test_a_picture_that_stays_is_stored_once(tmp_path: Path) -> None:
    """A camera of 2 Hz under a policy of 50 Hz does not make the data set 25 times as large as the recording."""
    path = tmp_path / "slow.mcap"
    picture = np.random.default_rng(0).integers(0, 256, (120, 80, 80, 3), np.uint8)  # noise, which nothing compresses
    features = {STATE: FEATURES[STATE], CAMERA: Feature("image", (80, 80, 3))}
    pictures, numbers = picture[np.arange(3000) // 25], np.zeros((3000, 2), np.float32)
    write_episode(path, meta(features=features), {STATE: numbers, CAMERA: pictures}, numbers)
    settings = BuildSettings(allow_no_corrections=True)
    build_dataset([Source(summarize(path), path, 1, True)], tmp_path / "d", settings)
    size = sum(file.stat().st_size for file in (tmp_path / "d" / "data").rglob("*.parquet"))
    assert size < 1.2 * path.stat().st_size
    np.testing.assert_array_equal(open_dataset(tmp_path / "d").pictures(CAMERA, range(0, 3000, 25)), picture)


def test_an_episode_larger_than_a_row_group_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_learning.datasets.writing._GROUP_BYTES", 1000)
    lineage = build_dataset(week(tmp_path / "e"), tmp_path / "d", BuildSettings())
    groups = pq.ParquetFile(tmp_path / "d" / "data" / "chunk-000" / "file-000.parquet").num_row_groups
    assert groups > len(lineage["episodes"])
    dataset = open_dataset(tmp_path / "d")
    np.testing.assert_array_equal(dataset.columns("index")["index"], np.arange(94))
    made = make_episode(tmp_path / "again.mcap", 1, steps=20)
    np.testing.assert_array_equal(dataset.pictures(CAMERA, range(20)), made["features"][CAMERA])


def test_the_statistics_are_those_of_the_frames(tmp_path: Path) -> None:
    build_dataset(week(tmp_path / "e"), tmp_path / "d", BuildSettings())
    stats = json.loads((tmp_path / "d" / "meta" / "stats.json").read_text())
    dataset = open_dataset(tmp_path / "d")
    actions = dataset.columns("action")["action"].astype(np.float64)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0))
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    pictures = dataset.pictures(CAMERA, range(94)) / 255.0  # shorter than the sample, so all of them
    for name, of in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        np.testing.assert_allclose(np.ravel(stats[CAMERA][name]), of(pictures, axis=(0, 1, 2)), atol=1e-9)
    median = np.quantile(pictures, 0.5, axis=(0, 1, 2), method="inverted_cdf")
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["q50"]), median)


# -- what cannot be ---------------------------------------------------------------------------------------------------------


def refusal(sources: list[Source], out: Path, **settings: Any) -> LearningError:
    with pytest.raises(LearningError) as found:
        build_dataset(sources, out, BuildSettings(**settings))
    assert "\n" not in str(found.value)
    assert not list(out.parent.glob(f"*{out.name}*")), "nothing is left behind"
    return found.value


def test_a_data_set_without_corrections_is_built_only_knowingly(tmp_path: Path) -> None:
    sources = [source(tmp_path, 1, False), source(tmp_path, 2, True)]
    error = refusal(sources, tmp_path / "d")
    assert error.code == "DATASET_NO_CORRECTIONS" and "--allow-no-corrections" in str(error)
    lineage = build_dataset(sources, tmp_path / "d", BuildSettings(allow_no_corrections=True))
    assert lineage["mix"]["corrections_of_new"] == 0.0


def test_nothing_new_and_nothing_at_all_are_told_apart(tmp_path: Path) -> None:
    assert refusal([], tmp_path / "d").code == "DATASET_NO_EPISODES"
    assert refusal([source(tmp_path, 1, False)], tmp_path / "d").code == "DATASET_NOTHING_NEW"
    failed = source(tmp_path, 2, True, success=False)
    assert "nobody corrected" in str(refusal([failed], tmp_path / "d"))


@pytest.mark.parametrize(
    "other", [{"rate_hz": 20.0}, {"robot_type": "so101"}, {"features": "names"}], ids=["rate", "robot type", "features"]
)
def test_episodes_that_no_policy_can_share_are_refused_and_named(tmp_path: Path, other: dict[str, Any]) -> None:
    if "features" in other:
        other = {"features": {**FEATURES, STATE: Feature("float32", (2,), ("j2", "j1"))}}
    sources = [source(tmp_path, 1, False), source(tmp_path, 2, True, corrected=2, **other)]
    error = refusal(sources, tmp_path / "d")
    assert error.code == "DATASET_MIXED" and all(s.episode.interface in str(error) for s in sources)


def test_an_episode_that_changed_after_it_was_chosen_stops_the_build(tmp_path: Path) -> None:
    chosen = source(tmp_path, 1, True, corrected=2)
    make_episode(chosen.path, 1, steps=5)
    assert refusal([chosen], tmp_path / "d").code == "DATASET_EPISODE_CHANGED"
    chosen.path.write_bytes(chosen.path.read_bytes()[:-100])
    assert refusal([chosen], tmp_path / "d").code == "EPISODE_TRUNCATED"


def test_a_data_set_is_never_written_over(tmp_path: Path) -> None:
    sources = week(tmp_path / "e")
    build_dataset(sources, tmp_path / "d", BuildSettings())
    before = digests(tmp_path / "d")
    with pytest.raises(DataSetError, match="DATASET_EXISTS"):
        build_dataset(sources, tmp_path / "d", BuildSettings(seed=5))
    assert digests(tmp_path / "d") == before


@pytest.mark.parametrize("wrong", [{"replay_share": 1.0}, {"correction_weight": 0.5}, {"replay_frames": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataSetError, match="DATASET_SETTING"):
        BuildSettings(**wrong)


@pytest.mark.parametrize("damage", ["meta/info.json", "meta/tasks.parquet", "data/chunk-000/file-000.parquet"])
def test_a_damaged_data_set_is_unreadable(tmp_path: Path, damage: str) -> None:
    build_dataset(week(tmp_path / "e"), tmp_path / "d", BuildSettings())
    (tmp_path / "d" / damage).write_bytes(b"{}")
    with pytest.raises(DataSetError, match="DATASET_UNREADABLE"):
        open_dataset(tmp_path / "d").columns("action")
