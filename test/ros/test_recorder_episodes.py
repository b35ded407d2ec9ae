# SPDX-License-Identifier: Apache-2.0
"""An episode of a simulated arm as a file that a policy can learn from, read back with the public packages alone."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
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
from vla_ota.msg import EpisodeOutcome

from vla_checkpoint import Channel
from vla_learning.episodes.reading import read_episode

TOP = Path(__file__).resolve().parents[2]
CONTRACT = TOP / "config" / "sim_arm.contract.yaml"
SPACE = "/learning"


def files(folder: Path, ends: str = ".mcap") -> list[Path]:
    return sorted(p for p in (folder / "recordings" / "episodes").glob(f"*{ends}"))


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


@pytest.fixture(scope="module")
def recorded(shared_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("robot")
    contract = folder / "contract.yaml"
    contract.write_text(re.sub(r"(tolerance_ms|max_age_ms): \d+", r"\1: 3000", CONTRACT.read_text()))  # a busy machine
    images = {"observation.images.top": (64, 64)}
    joints = tuple(Channel(name, "rad", "absolute") for name in ("j1", "j2", "j3"))
    scripted_bundle(
        folder / "1.0.0", channels=joints, amplitude=0.03, from_state=True, images=images, golden=False
    )  # it goes a little way from where it sees itself, and never reaches a block
    modules = [f"{kind}={module}" for kind, module in POLICY_MODULES.items()]
    policy = {"contract": str(contract), "model_path": str(folder / "1.0.0"), "spare_worker": False}
    policy |= {"policy_modules": modules, "worker_paths": [TEST_FOLDER], "worker_imports": [""]}
    recorder = {"contract": str(contract), "recording_dir": str(folder / "recordings"), "min_free_bytes": 0}

    def node(module: str, **parameters: Any) -> NodeProcess:
        return NodeProcess(module, shared_domain, folder / "logs", parameters=parameters, namespace=SPACE)

    with (
        RosHarness(shared_domain, namespace=SPACE) as ros,
        node("vla_recorder.ros.recorder", **recorder) as box,
        node("vla_policy_node.ros.policy_node", **policy),
        node("vla_sim.ros.sim_robot", task_timeout_s=3.0),
    ):
        outcomes = ros.subscribe(EpisodeOutcome, "episode_outcome")
        wait_for(lambda: len(outcomes.messages) >= 2, "two episodes", 90.0)
        wait_for(lambda: len(files(folder)) >= 2, "a file of each")
        assert box.stop() == 0
        yield folder
    assert "Traceback" not in box.log, box.log


def test_an_episode_is_a_file_of_steps_and_pictures_as_the_policy_had_them(recorded: Path) -> None:
    path = files(recorded)[1]
    episode = EpisodeFile(path)
    assert episode.profile == "ros2" and episode.meta["success"] == "false" and episode.meta["intervention"] == "false"
    assert episode.meta["policy"] == "pick_place" and episode.meta["version"] == "1.0.0"
    assert [c["name"] for c in json.loads(episode.meta["channels"])] == ["j1", "j2", "j3"]
    times_ns = np.array([step["time_ns"] for step in episode.steps])
    assert np.median(np.diff(times_ns)) == pytest.approx(20e6, rel=0.2)
    lasted_s = (times_ns[-1] - times_ns[0]) / 1e9
    assert len(times_ns) > 0.5 * 50 * lasted_s and lasted_s > 0.5 * float(episode.meta["duration_s"])
    for step in episode.steps:
        assert step["generation"] == 1 and step["instruction"] == episode.meta["instruction"]
        assert len(step["state"]["observation.state"]) == len(step["action"]) == 3
        if step["policy_action"] is not None:  # nothing limits this one
            assert step["policy_action"] == pytest.approx(step["action"]) and not step["intervention"]
    picture_ns, picture = episode.pictures[0]
    assert picture_ns <= times_ns[0] and len(episode.pictures) > 3 * lasted_s
    assert read_episode(path).steps == len(episode.steps)  # the learning side leaves none out
    pixels = np.asarray(Image.open(io.BytesIO(bytes(picture.data))))
    assert picture.format == "png" and pixels.shape == (64, 64, 3) and len(np.unique(pixels)) > 10
    assert f"{SPACE}/policy_node/status" in episode.topics
