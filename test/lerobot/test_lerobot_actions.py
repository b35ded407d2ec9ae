"""A checkpoint that LeRobot saved acts in a worker as it does in LeRobot: the same actions for the same observations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from support.worker_robot import WorkerRobot

from vla_checkpoint import Channel, build_manifest, import_folder, load_manifest, write_golden, write_manifest
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.api import PrepareError
from vla_policy_node.worker.environment import worker_environment
from vla_policy_node.worker.inference import WARM_UP_INFERENCES

pytestmark = pytest.mark.timeout(900)

TOP = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("VLA_OTA_LEROBOT_PYTHON", str(TOP / ".venv-lerobot/bin/python"))
SEED = 7
RATE_HZ = 30.0
TASK = "put the block into the box"
CHANNELS = [Channel(f"j{i}", "deg", "absolute") for i in range(6)]
CAMERAS = ("observation.images.top", "observation.images.wrist_left")
FEATURES = {"observation.state": FeatureSpec((6,), "float32")} | {c: FeatureSpec((48, 64, 3), "uint8") for c in CAMERAS}


@dataclass(frozen=True)
class Made:
    """A checkpoint and what LeRobot did with it."""

    folder: Path
    executed: int
    actions: npt.NDArray[np.float32]
    golden: npt.NDArray[np.float32]
    observed: dict[str, npt.NDArray[Any]]

    @classmethod
    def read(cls, folder: Path) -> Made:
        run = dict(np.load(folder / "run.npz"))
        return cls(folder / "pretrained_model", int(run.pop("executed")), run.pop("actions"), run.pop("golden"), run)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Each case's checkpoint, made by LeRobot in its own interpreter."""
    assert Path(PYTHON).exists(), f"{PYTHON} is not there: run `make test-lerobot`, or set VLA_OTA_LEROBOT_PYTHON"
    out = tmp_path_factory.mktemp("lerobot")
    subprocess.run(
        [PYTHON, Path(__file__).with_name("made_by_lerobot.py"), out, str(WARM_UP_INFERENCES)],
        env=worker_environment(os.environ, threads=1),
        check=True,
        timeout=600,
    )
    return {case.name: Made.read(case) for case in out.iterdir()}


@pytest.fixture
def robot() -> Iterator[WorkerRobot]:
    with WorkerRobot(FEATURES, worker_python=PYTHON, spare=False, load_timeout_s=300.0) as robot:
        yield robot


def import_made(made: Made, out: Path) -> Path:
    """Import a checkpoint with its first chunk as golden, random numbers and all."""
    first = {k: v[:1] for k, v in made.observed.items()}
    write_golden(made.folder / "golden.safetensors", first, made.golden[None], [TASK], 1e-4, seed=SEED)
    import_folder(
        made.folder, out, name="pick", version="1.0.0", robot_type="arm", channels=CHANNELS, rate_hz=RATE_HZ
    )  # fmt: skip
    return out


def largest_difference(robot: WorkerRobot, bundle: Path, made: Made) -> float:
    """Run LeRobot's episode in a worker, chunk by chunk; return how far its actions are from LeRobot's [deg]."""
    generation = robot.pool.prepare(bundle)
    period_ns = int(1e9 / RATE_HZ)
    begin_ns = time.monotonic_ns()
    worst = 0.0
    for step in range(len(made.actions)):
        frame = {k.replace("observation.state", "state"): v[step] for k, v in made.observed.items()}
        robot.observe(**frame, instruction=TASK, episode=1, written_ns=begin_ns + step * period_ns)
        if step % made.executed == 0:
            answer = robot.answer(generation, robot.request(generation))
            assert answer is not None and answer["error"] == "", answer
            expected = made.actions[step : step + made.executed]
            worst = max(worst, float(np.abs(answer["actions"][: made.executed] - expected).max()))
    return worst


def shard(folder: Path) -> None:
    """Spread the weights over two files, as LeRobot's larger policies come."""
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(shards.values()):
        safetensors.numpy.save_file({k: v for k, v in weights.items() if shards[k] == file}, folder / file)
    total = sum(array.nbytes for array in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def sign(bundle: Path, requires: dict[str, str] | None = None) -> None:
    """Make the manifest fit what was changed in a bundle."""
    old = load_manifest(bundle)
    manifest = build_manifest(
        bundle, name=old.name, version=old.version, policy_type=old.policy_type, robot_type=old.robot_type,
        channels=old.action.channels, rate_hz=old.action.rate_hz, requires=requires,
    )  # fmt: skip
    write_manifest(bundle, manifest)


def shared_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssShmem")).split()[1])


@pytest.mark.parametrize("case", ["act", "act_bf16", "act_old", "diffusion", "vqbet", "smolvla"])
def test_a_worker_gives_lerobots_own_actions(
    made: dict[str, Made], case: str, robot: WorkerRobot, tmp_path: Path
) -> None:
    """To the last bit: both use one thread, the same kernels and the same random numbers."""
    difference = largest_difference(robot, import_made(made[case], tmp_path / "b"), made[case])
    print(f"{case}: largest difference {difference:g} deg over {len(made[case].actions)} actions")
    assert np.ptp(made[case].actions) > 1.0  # they move, so that equality means something
    assert difference == 0.0


def test_shards_are_read_where_lerobot_reads_one_file_and_float32_weights_are_not_copied(
    made: dict[str, Made], robot: WorkerRobot, tmp_path: Path
) -> None:
    case = replace(made["act"], folder=shutil.copytree(made["act"].folder, tmp_path / "a"))
    size = (case.folder / "model.safetensors").stat().st_size
    shard(case.folder)
    assert largest_difference(robot, import_made(case, tmp_path / "b"), case) == 0.0
    # The arena is let go of when no tensor lies in it.
    assert shared_bytes(robot.pool.generations()[0].pid) > 0.95 * size


def drop_a_tensor(bundle: Path) -> None:
    weights = safetensors.numpy.load_file(bundle / "model.safetensors")
    del weights["model.action_head.bias"]
    safetensors.numpy.save_file(weights, bundle / "model.safetensors")


def add_a_key_of_a_later_release(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"pretrained_revision": "main"}))


@pytest.mark.parametrize(
    ("case", "damage", "requires", "code", "named"),
    [
        ("act", drop_a_tensor, {}, "POLICY_WEIGHTS_MISMATCH", "model.action_head.bias"),
        ("act", add_a_key_of_a_later_release, {}, "POLICY_CONFIG_INVALID", "pretrained_revision"),
        ("act", lambda bundle: None, {"lerobot": ">=0.6"}, "REQUIREMENT_UNMET", "has 0.4.4"),
        ("smolvla", lambda bundle: shutil.rmtree(bundle / "tiny"), {}, "POLICY_ASSET_MISSING", "tiny/smolvlm"),
    ],
)
def test_what_cannot_act_as_in_lerobot_is_refused_by_name(
    made: dict[str, Made],
    robot: WorkerRobot,
    tmp_path: Path,
    case: str,
    damage: Callable[[Path], object],
    requires: dict[str, str],
    code: str,
    named: str,
) -> None:
    bundle = import_made(made[case], tmp_path / "b")
    damage(bundle)
    sign(bundle, requires)
    with pytest.raises(PrepareError) as caught:
        robot.pool.prepare(bundle)
    assert caught.value.code == code
    assert named in caught.value.message
