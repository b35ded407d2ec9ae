"""Policies on another machine act as they do here; whatever happens to it or to the line is a lost worker, or a coded refusal."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.refusals import refused
from support.remote_host import RemoteHost, make_ca
from support.scripted import adapter_bundle, base_bundle, scripted_bundle
from support.waits import wait_for
from support.worker_robot import STATE, WorkerRobot, gone

from vla_policy_node.generations.swapping import SwapRequest
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.api import Remote

IMAGE = "observation.images.front"
FEATURES = {STATE: FeatureSpec((2,), "float32"), IMAGE: FeatureSpec((48, 64, 3), "uint8")}


def remote_robot(remote: Remote, **config: Any) -> WorkerRobot:
    return WorkerRobot(spare=False, remote=remote, imports=("vla_policy_node.remote.robot",), **config)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[RemoteHost]:
    with RemoteHost(tmp_path) as started:
        yield started


def test_a_bundle_acts_over_the_line_exactly_as_it_acts_here(tmp_path: Path, host: RemoteHost) -> None:
    scripted_bundle(tmp_path / "a", from_state=True, images={IMAGE: (48, 64)})
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    answers = []
    for robot in (WorkerRobot(FEATURES, spare=False), remote_robot(host.remote, features=FEATURES)):
        with robot:
            generation = robot.pool.prepare(tmp_path / "a")
            assert generation.timings.inference_ms > 0.0 and generation.timings.golden_s > 0.0
            robot.observe(state=(0.25, -0.5), instruction="pick", episode=3, **{IMAGE: picture})
            written = robot.observation.read()
            answer = robot.answer(generation, robot.request(generation, reset=True))
            assert written is not None and answer is not None and answer["error"] == ""
            assert answer["observation_ns"] == written[1]["stamp_ns"] and answer["inference_ns"] > 0
            answers.append(answer["actions"])
    assert np.array_equal(*answers)
