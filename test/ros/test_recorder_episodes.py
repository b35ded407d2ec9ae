# SPDX-License-Identifier: Apache-2.0
"""An episode of a simulated arm as a file that a policy can learn from, read back with the public packages alone."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from PIL import Image
from support.ros import NodeProcess, RosHarness
from support.scripted import POLICY_MODULES, TEST_FOLDER, scripted_bundle
from support.waits import wait_for
from vla_ota.msg import EpisodeOutcome, PolicyStatus

from vla_checkpoint import Channel
from vla_learning.episodes.reading import read_episode
from vla_ros import qos

TOP = Path(__file__).resolve().parents[2]
CONTRACT = TOP / "config" / "sim_arm.contract.yaml"
SPACE = "/learning"


def files(folder: Path, ends: str = ".mcap") -> list[Path]:
    return sorted(p for p in (folder / "recordings" / "episodes").glob(f"*{ends}"))


def large_part(folder: Path) -> Path | None:
    """Return an unfinished file with something in it."""
    with contextlib.suppress(FileNotFoundError):  # it was finished this moment
        return next((path for path in files(folder, ".mcap.part") if path.stat().st_size > 20_000), None)
    return None


class EpisodeFile:
    """A whole file, decoded by what the file itself says."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
            self.profile = reader.get_header().profile
            self.notes = {m.name: m.metadata for m in reader.iter_metadata()}
            self.steps: list[dict[str, Any]] = []
            self.pictures: list[tuple[int, Any]] = []
            self.topics: set[str] = set()
            for schema, channel, message in reader.iter_messages():
                self.topics.add(channel.topic)
                if channel.topic == "step":
                    assert schema.encoding == "jsonschema" and schema.name == "vla_ota.Step"
                    assert channel.message_encoding == "json" and json.loads(schema.data)["type"] == "object"
                    self.steps.append(json.loads(message.data))
                    assert message.log_time == message.publish_time == self.steps[-1]["time_ns"]
                elif channel.topic == "observation.images.top":
                    decode = DecoderFactory().decoder_for(channel.message_encoding, schema)
                    self.pictures.append((message.log_time, decode(message.data)))

    @property
    def meta(self) -> dict[str, str]:
        return self.notes["vla_ota.episode"]


@dataclass
class Recorded:
    """What lies in the folder of a robot whose policy never succeeds, and is corrected; its recorder was killed in an episode."""

    folder: Path
    corrected: Path
    cut: Path
    after: Path  # of the recorder that was started next
    outcome: EpisodeOutcome  # of the corrected one
    outcome_after: EpisodeOutcome


@pytest.fixture(scope="module")
def recorded(shared_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("robot")
    contract = folder / "contract.yaml"
    contract.write_text(re.sub(r"(tolerance_ms|max_age_ms): \d+", r"\1: 3000", CONTRACT.read_text()))  # a busy machine
    images = {"observation.images.top": (64, 64)}
    joints = tuple(Channel(name, "rad", "absolute") for name in ("j1", "j2", "j3"))
    scripted_bundle(
        folder / "1.0.0", channels=joints, amplitude=0.03, from_state=True, images=images, golden=False
    )  # it goes a little way from where it sees itself
    modules = [f"{kind}={module}" for kind, module in POLICY_MODULES.items()]
    policy = {"contract": str(contract), "model_path": str(folder / "1.0.0"), "spare_worker": False}
    policy |= {"policy_modules": modules, "worker_paths": [TEST_FOLDER], "worker_imports": [""]}
    recorder = {"contract": str(contract), "recording_dir": str(folder / "recordings"), "min_free_bytes": 0}

    def node(module: str, **parameters: Any) -> NodeProcess:
        return NodeProcess(module, shared_domain, folder / "logs", parameters=parameters, namespace=SPACE)

    def of(episode_id: str) -> Path | None:
        return next((path for path in files(folder) if episode_id in path.name), None)

    with (
        RosHarness(shared_domain, namespace=SPACE) as ros,
        node("vla_recorder.ros.recorder", **recorder) as first,
        node("vla_policy_node.ros.policy_node", **policy),
        node("vla_sim.ros.sim_robot", operator_after_s=1.0, task_timeout_s=20.0),
    ):
        outcomes = ros.subscribe(EpisodeOutcome, "episode_outcome")
        status = ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED_EACH)
        running = PolicyStatus.STATE_RUNNING
        status.wait(lambda m: m.state == running and m.episode_id, timeout_s=90.0, what="the policy to act")
        outcomes.wait(what="the end of the episode in which the policy came", timeout_s=60.0)
        outcomes.clear()
        outcome = outcomes.wait(what="the end of a corrected episode", timeout_s=60.0)
        corrected = wait_for(lambda: of(outcome.episode_id), "its file")
        part = wait_for(lambda: large_part(folder), "some of the next episode on disk")
        first.kill()
        with node("vla_recorder.ros.recorder", **recorder) as second:
            cut = part.with_suffix("")
            wait_for(cut.exists, "the episode that was cut off")
            after = wait_for(lambda: next((p for p in files(folder) if p > cut), None), "a whole episode", 90.0)
            outcome_after = outcomes.wait(lambda m: m.episode_id in after.name, what="its outcome")
            assert second.stop() == 0
        yield Recorded(folder, corrected, cut, after, outcome, outcome_after)
    assert "Traceback" not in first.log + second.log, first.log + second.log


def test_an_episode_is_a_file_of_steps_and_pictures_as_the_policy_had_them(recorded: Recorded) -> None:
    episode = EpisodeFile(recorded.corrected)
    assert episode.profile == "ros2" and episode.meta["policy"] == "pick_place" and episode.meta["version"] == "1.0.0"
    assert [c["name"] for c in json.loads(episode.meta["channels"])] == ["j1", "j2", "j3"]
    times_ns = np.array([step["time_ns"] for step in episode.steps])
    assert np.median(np.diff(times_ns)) == pytest.approx(20e6, rel=0.2)
    lasted_s = (times_ns[-1] - times_ns[0]) / 1e9
    assert len(times_ns) > 0.5 * 50 * lasted_s and lasted_s > 0.5 * float(episode.meta["duration_s"])
    for step in episode.steps:
        assert step["generation"] == 1 and step["instruction"] == episode.meta["instruction"]
        assert len(step["state"]["observation.state"]) == len(step["action"]) == 3
    picture_ns, picture = episode.pictures[0]
    assert picture_ns <= times_ns[0] and len(episode.pictures) > 3 * lasted_s
    pixels = np.asarray(Image.open(io.BytesIO(bytes(picture.data))))
    assert picture.format == "png" and pixels.shape == (64, 64, 3) and len(np.unique(pixels)) > 10
    assert f"{SPACE}/policy_node/status" in episode.topics
    assert read_episode(recorded.corrected).steps == len(episode.steps)  # the learning side leaves none out


def test_a_correction_keeps_what_the_operator_commanded_and_what_the_policy_wanted(recorded: Recorded) -> None:
    episode = EpisodeFile(recorded.corrected)
    assert recorded.outcome.intervention and recorded.outcome.success and recorded.outcome.known
    assert episode.meta["success"] == episode.meta["intervention"] == "true"
    marked = np.array([step["intervention"] for step in episode.steps])
    begin = int(np.flatnonzero(marked)[0])
    assert begin > 10 and marked[begin:].mean() > 0.5  # first the policy acted
    alone = [s for s in episode.steps[:begin] if s["policy_action"] is not None]
    assert len(alone) > 10 and all(s["policy_action"] == pytest.approx(s["action"]) for s in alone)
    both = [s for s in episode.steps if s["intervention"] and s["policy_action"] is not None]
    apart = np.array([np.subtract(s["policy_action"], s["action"]) for s in both])
    assert (
        len(both) > 0.3 * marked.sum() and np.abs(apart).max() > 0.03
    )  # it went on being asked, and wanted something else
    moved = np.ptp([s["action"] for s in episode.steps if s["intervention"]], axis=0)
    assert moved.max() > 0.2  # the robot was where the operator took it


def test_a_recorder_that_is_killed_loses_no_more_than_the_rest_of_the_episode(recorded: Recorded) -> None:
    cut = EpisodeFile(recorded.cut)
    assert cut.meta["success"] == "" and cut.meta["version"] == "1.0.0"
    times_ns = [step["time_ns"] for step in cut.steps]
    lasted_s = (times_ns[-1] - times_ns[0]) / 1e9
    assert len(times_ns) > 10 and float(cut.meta["duration_s"]) == pytest.approx(lasted_s, abs=0.01)
    assert read_episode(recorded.cut).steps > 10
    end = recorded.outcome_after  # the machine may be too slow for a success
    assert EpisodeFile(recorded.after).meta["success"] == (str(end.success).lower() if end.known else "")
    ids = [EpisodeFile(path).meta["episode_id"] for path in files(recorded.folder)]
    assert len(ids) == len(set(ids))  # the rest of the one that was cut off is no episode
