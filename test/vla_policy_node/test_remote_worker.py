"""Policies on another machine act as they do here; whatever happens to it or to the line is a lost worker, or a coded refusal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_rig import EngineRig, contract_text
from support.refusals import refused
from support.remote_host import RemoteHost, make_ca
from support.scripted import TEST_FOLDER, adapter_bundle, base_bundle, scripted_bundle
from support.waits import TIMEOUT_S, wait_for
from support.worker_robot import STATE, WorkerRobot

from vla_checkpoint.digest import sha256_bytes
from vla_doctor.worker import check_worker_host
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import parse_contract
from vla_policy_node.engine import worker_config
from vla_policy_node.generations.swapping import SwapRequest
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.remote.line import VERSION, Frame, Kind, Line, connect, parse, tls_context
from vla_policy_node.worker.api import Remote
from vla_policy_node.worker.inference import WARM_UP_INFERENCES

IMAGE = "observation.images.front"
FEATURES = {STATE: FeatureSpec((2,), "float32"), IMAGE: FeatureSpec((48, 64, 3), "uint8")}


def torchless_host(folder: Path, *options: str, **settings: Any) -> RemoteHost:
    """A host that does not find torch, whose import takes longer than most tests: their policies do without."""
    return RemoteHost(folder, "--worker-path", str(Path(TEST_FOLDER) / "support" / "no_torch"), *options, **settings)


def remote_robot(remote: Remote, **config: Any) -> WorkerRobot:
    return WorkerRobot(spare=False, remote=remote, imports=("vla_policy_node.remote.robot",), **config)


def frame(kind: Kind, body: dict[str, Any] | bytes) -> bytes:
    """Return a frame's bytes, whatever is in it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return struct.pack(">4sHHI", b"VLAR", VERSION, kind, len(data)) + data


def failure(line: Line) -> dict[str, Any]:
    """Return what the host says at last, and close."""
    frames: list[Frame] = []
    while not frames:
        line.wait(1.0)
        frames = line.exchange()
    line.close()
    assert frames[-1][0] is Kind.FAILED
    return parse(frames[-1][1])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[RemoteHost]:
    with torchless_host(tmp_path) as started:
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


def test_the_episode_the_words_and_a_history_reach_the_host_and_a_second_load_sends_nothing(
    tmp_path: Path, host: RemoteHost
) -> None:
    scripted_bundle(
        tmp_path / "a", n_obs_steps=3, rate_hz=25.0, repeats=True, echo=True, print_resets=True, golden=False
    )
    with remote_robot(host.remote) as robot:
        for load in range(2):
            generation = robot.pool.prepare(tmp_path / "a")
            assert generation.spec.history == 3
            begin_ns = 1 + robot.observation.newest * 200_000_000
            for n in range(4):
                robot.observe(
                    state=(n, 0), written_ns=begin_ns + n * 40_000_000, episode=load, instruction=f"take {load}"
                )
            answer = robot.answer(generation, robot.request(generation))
            assert answer is not None and list(answer["actions"][:3, 0]) == [1.0, 2.0, 3.0]
            shown = f"'take {load}' [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]"
            wait_for(lambda shown=shown: shown in host.log, "what the policy was shown")
            resets = host.log.count(" reset ")
            assert robot.answer(generation, robot.request(generation, reset=True)) is not None
            wait_for(lambda resets=resets: host.log.count(" reset ") > resets, "the reset")
            robot.pool.release(generation)
    assert host.log.count(": receives model.safetensors") == 1


def test_two_generations_are_there_at_once_and_a_third_takes_the_place_of_one_that_was_released(
    tmp_path: Path, host: RemoteHost
) -> None:
    for name, offset in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        scripted_bundle(tmp_path / name, amplitude=0.0, offset=offset)
    with remote_robot(host.remote) as robot:
        a, b = robot.pool.prepare(tmp_path / "a"), robot.pool.prepare(tmp_path / "b")
        assert robot.pool.holds_two()
        robot.pool.release(a)
        c = robot.pool.prepare(tmp_path / "c")
        for generation, offset in ((b, 0.2), (c, 0.3)):
            assert np.allclose(robot.chunk(generation)["actions"], offset)
    with remote_robot(host.remote) as robot:  # what the first robot had is free again
        for name in ("a", "c"):
            robot.assert_works(robot.pool.prepare(tmp_path / name))


def test_a_policy_that_fails_over_there_is_told_here_and_goes_on(tmp_path: Path, host: RemoteHost) -> None:
    # The warm-up over the line comes after the host's own.
    scripted_bundle(tmp_path / "a", raise_at_call=WARM_UP_INFERENCES, nan_at_call=WARM_UP_INFERENCES + 1)
    with remote_robot(host.remote) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        assert robot.chunk(generation)["error"] == "POLICY_FAILED"
        event = robot.wait_for(lambda e: e.kind == "CHUNK_ERROR")
        assert event.code == "POLICY_FAILED" and "the script says so" in event.message
        assert robot.chunk(generation)["error"] == "NAN"
        robot.observe(age_s=60.0)
        answer = robot.answer(generation, robot.request(generation))
        assert answer is not None and answer["error"] == "OBSERVATION_STALE"
        robot.assert_works(generation)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [({"exit_at_call": WARM_UP_INFERENCES}, "exit code 7"), ({"crash_at_call": WARM_UP_INFERENCES}, "SIGSEGV")],
)
def test_a_worker_that_dies_over_there_is_a_lost_worker_here_with_its_cause(
    tmp_path: Path, host: RemoteHost, behaviour: dict[str, Any], words: str
) -> None:
    scripted_bundle(tmp_path / "bad", **behaviour)
    scripted_bundle(tmp_path / "good")
    with remote_robot(host.remote) as robot:
        good, bad = robot.pool.prepare(tmp_path / "good"), robot.pool.prepare(tmp_path / "bad")
        robot.observe()
        robot.request(bad)
        event = robot.wait_for(lambda e: e.kind == "LOST")
        assert (event.generation, event.code) == (bad, "WORKER_DIED") and words in event.message
        robot.assert_works(good)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_is_killed_or_silent_is_a_lost_worker_although_nothing_was_asked(tmp_path: Path, how: int) -> None:
    scripted_bundle(tmp_path / "a")
    silence_s = 3.0 if how == signal.SIGSTOP else 20.0
    with torchless_host(tmp_path, silence_s=silence_s) as host, remote_robot(host.remote) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        os.kill(host.process.pid, how)
        event = robot.wait_for(lambda e: e.kind == "LOST")
        assert (event.generation, event.code) == (generation, "WORKER_HOST_LOST")
        assert ("closed" if how == signal.SIGKILL else "nothing was heard") in event.message


def test_a_robot_that_vanishes_frees_its_generation(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with torchless_host(tmp_path, silence_s=3.0) as host, remote_robot(host.remote) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        os.kill(generation.pid, signal.SIGSTOP)
        wait_for(lambda: "nothing was heard for 3 s" in host.log, "the host to notice")
        for _ in range(2):
            robot.pool.release(generation)
            generation = robot.pool.prepare(tmp_path / "a")
        robot.assert_works(generation)


def test_an_adapter_acts_over_there_on_its_base_whose_weights_are_sent_once(tmp_path: Path, host: RemoteHost) -> None:
    base = base_bundle(tmp_path / "pick_place")
    expected = {f"1.0.{n}": adapter_bundle(tmp_path / "pick_place", f"1.0.{n}", base, n) for n in (1, 2)}
    with remote_robot(host.remote) as robot:
        loaded = [robot.pool.prepare(tmp_path / "pick_place" / version) for version in expected]
        for generation, offsets in zip(loaded, expected.values(), strict=True):
            assert np.allclose(robot.chunk(generation)["actions"], offsets, atol=1e-6)
        assert host.log.count(": receives model.safetensors") == 1
        robot.pool.release(loaded[0])
        adapter_bundle(tmp_path / "beside", base.version, base, 3)  # with the base's own name and version
        robot.pool.release(robot.pool.prepare(tmp_path / "beside" / base.version))
        robot.assert_works(robot.pool.prepare(tmp_path / "pick_place" / base.version))
    assert host.log.count(": receives model.safetensors") == 1


def test_what_the_host_refuses_reaches_the_robot_with_its_code(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "wrong", golden_error=1.0)
    scripted_bundle(tmp_path / "damaged", amplitude=0.4)
    scripted_bundle(tmp_path / "large", more_tensors={"ballast": np.zeros(600_000, np.float32)}, golden=False)
    scripted_bundle(tmp_path / "good", amplitude=0.5)
    with (tmp_path / "damaged" / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x01\x02\x03\x04")
    with torchless_host(tmp_path, "--cache-gib", "0.002") as host, remote_robot(host.remote) as robot:
        for name, code in (
            ("wrong", "GOLDEN_MISMATCH"),
            ("damaged", "DIGEST_FILE"),
            ("large", "WORKER_CACHE_FULL"),
        ):
            with refused(code):
                robot.pool.prepare(tmp_path / name)
        robot.assert_works(robot.pool.prepare(tmp_path / "good"))


def test_a_stranger_is_not_let_in_and_a_strange_host_is_not_believed(tmp_path: Path, host: RemoteHost) -> None:
    scripted_bundle(tmp_path / "a")
    make_ca(tmp_path / "other")
    stranger = tmp_path / "stranger"
    shutil.copytree(tmp_path / "other" / "robot", stranger)
    shutil.copy(host.tls / "ca.pem", stranger / "ca.pem")  # it believes the host, which does not know it
    robots = (
        (Remote(host.address, str(stranger)), "WORKER_HOST_REFUSED"),
        (Remote(host.address, str(tmp_path / "other" / "robot")), "WORKER_HOST_REFUSED"),
        (
            Remote(f"localhost:{host.port}", str(host.tls / "robot")),
            "WORKER_HOST_REFUSED",
        ),  # not its certificate's name
        (Remote(host.address, str(tmp_path)), "WORKER_TLS_INVALID"),
        (Remote("127.0.0.1:1", str(host.tls / "robot")), "WORKER_HOST_UNREACHABLE"),
        (Remote("nowhere", str(host.tls / "robot")), "WORKER_HOST_INVALID"),
    )
    for remote, code in robots:
        with remote_robot(remote) as robot, refused(code):
            robot.pool.prepare(tmp_path / "a")
        (finding,) = check_worker_host(remote.host, remote.tls)
        assert finding.code == "WORKER_HOST" and finding.text.startswith(code)
    assert "receives" not in host.log
    assert [finding.code for finding in check_worker_host(host.address, str(host.tls / "robot"))] == [""]
    assert [finding.code for finding in check_worker_host("", str(host.tls / "robot"))] == ["WORKER_HOST"]
    assert check_worker_host("", "") == []


def test_the_host_outlives_whatever_bytes_come_and_says_what_is_wrong(tmp_path: Path, host: RemoteHost) -> None:
    tls = str(host.tls / "robot")
    features = {STATE: ["float32", [2]]}
    for kind, body, code in (
        (Kind.HELLO, b"{", "REMOTE_PROTOCOL"),
        (Kind.HELLO, b"[]", "REMOTE_PROTOCOL"),
        (Kind.HELLO, b'{"features": {"a": ["float64", [2]]}}', "REMOTE_PROTOCOL"),
        (Kind.HELLO, b'{"features": {"a": ["uint8", [33554432, 2]]}}', "REMOTE_PROTOCOL"),
        (Kind.OBSERVATION, b"\0" * 64, "REMOTE_PROTOCOL"),
        (Kind.MANIFEST, b"\0" * 1_000_001, "REMOTE_PROTOCOL"),
        (Kind.DATA, b"", "REMOTE_PROTOCOL"),
    ):
        line = connect(host.address, tls)
        line.send(kind, body)
        assert failure(line)["code"] == code
    for digest, manifest, code in (("0" * 64, b"{}", "DIGEST_BUNDLE"), (sha256_bytes(b"{}"), b"{}", "MANIFEST_SCHEMA")):
        line = connect(host.address, tls)
        line.send_json(Kind.HELLO, {"digest": digest, "silence_s": 20.0, "features": features})
        line.send(Kind.MANIFEST, manifest)
        assert failure(line)["code"] == code
    with socket.create_connection(("127.0.0.1", host.port)) as bare:
        bare.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    scripted_bundle(tmp_path / "a")
    with remote_robot(host.remote) as robot:
        robot.assert_works(robot.pool.prepare(tmp_path / "a"))


def test_a_robot_moves_changes_its_policy_and_survives_its_host_over_the_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with RemoteHost(tmp_path) as host:
        settings = {
            "worker_host": host.address,
            "worker_tls": host.remote.tls,
            "worker_silence_s": 20.0,
            "policy_modules": (),
            "worker_paths": (),
            "shadow_chunks": 2,
        }
        with EngineRig(tmp_path, model_path=str(tmp_path / "a"), **settings) as rig:
            rig.wait_running("1.0.0")
            rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b")))
            rig.wait_running("1.1.0")
            rig.wait_for(lambda: len(rig.reports) == 2, "the report")
            host.kill()
            rig.wait_for(lambda: "hold: WORKER_LOST" in caplog.text, "the hold")
            rig.wait_for(lambda: rig.snapshot.active is None, "nothing to act")
            with host:
                rig.wait_running("1.1.0", 2 * TIMEOUT_S)


class Relay:
    """Forwards connections to a host; each can be cut, all silenced, and no new one let in: what a network does."""

    def __init__(self, port: int) -> None:
        self._to, self._lines = port, list[tuple[socket.socket, socket.socket]]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.lets_in, self.passes = True, threading.Event()
        self.passes.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, number: int) -> None:
        """End the connection that was made as the n-th."""
        for end in self._lines[number]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let nobody in any more."""
        self.passes.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait in accept
        self._listener.close()
        for ends in self._lines:
            for end in ends:
                end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                if not self.lets_in:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                self._lines.append((near, far))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.passes.wait()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("on_trial", [False, True])
def test_a_line_that_is_lost_in_two_steps_and_comes_back_leaves_the_robot_with_its_proven_policy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, on_trial: bool
) -> None:
    # what stands by is still there for a while when what acts is lost: its line is found dead a little later
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with torchless_host(tmp_path) as host, contextlib.closing(Relay(host.port)) as relay:
        settings = {"worker_host": relay.address, "worker_tls": host.remote.tls, "worker_silence_s": 5.0}
        with EngineRig(tmp_path, model_path=str(tmp_path / "a"), **settings) as rig:
            rig.wait_running("1.0.0")
            rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b"), trial=on_trial, trial_lease_s=3600.0))
            rig.wait_running("1.1.0")
            relay.lets_in = False
            relay.passes.clear()
            relay.cut(1)
            rig.wait_for(lambda: caplog.text.count("exit code 3: WORKER_HOST_LOST") == 2, "the end of both")
            relay.lets_in = True
            relay.passes.set()
            rig.wait_running("1.0.0" if on_trial else "1.1.0")
    assert "POLICY_LOST" not in caplog.text


def test_a_host_that_is_killed_in_a_trial_and_comes_back_leaves_the_robot_with_what_acted_before(
    tmp_path: Path,
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with torchless_host(tmp_path) as host:
        settings = {"worker_host": host.address, "worker_tls": host.remote.tls, "worker_silence_s": 20.0}
        with EngineRig(tmp_path, model_path=str(tmp_path / "a"), **settings) as rig:
            rig.wait_running("1.0.0")
            rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "b"), trial=True, trial_lease_s=3600.0))
            rig.wait_running("1.1.0")
            host.kill()
            with host:
                rig.wait_running("1.0.0")


def test_a_line_that_drops_more_often_than_a_policy_may_be_reloaded_leaves_the_robot_with_it(
    tmp_path: Path, host: RemoteHost
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with contextlib.closing(Relay(host.port)) as relay:
        settings = {"worker_host": relay.address, "worker_tls": host.remote.tls, "worker_silence_s": 20.0}
        with EngineRig(tmp_path, model_path=str(tmp_path / "a"), reload_attempts=1, **settings) as rig:
            for number in range(3):
                rig.wait_running("1.0.0")
                former = rig.snapshot.active
                relay.cut(number)
                rig.wait_for(lambda former=former: rig.snapshot.active is not former, "the loss")
            rig.wait_running("1.0.0")


def test_a_line_that_is_lost_in_shadow_is_not_the_new_versions_fault(tmp_path: Path, host: RemoteHost) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    scripted_bundle(tmp_path / "b", "1.1.0")
    with contextlib.closing(Relay(host.port)) as relay:
        settings = {"worker_host": relay.address, "worker_tls": host.remote.tls, "worker_silence_s": 20.0}
        settings |= {"shadow_chunks": 10000, "load_timeout_s": 600.0}
        with EngineRig(tmp_path, model_path=str(tmp_path / "a"), **settings) as rig:
            rig.wait_running("1.0.0")

            def lose(state: str, fraction: float) -> None:
                if state == "SHADOW":
                    relay.cut(1)

            with refused("WORKER_HOST_LOST"):
                rig.engine.prepare(str(tmp_path / "b"), "", lose, lambda: False)
            rig.wait_running("1.0.0")


def test_a_robot_whose_host_loads_for_another_one_waits_its_turn(tmp_path: Path, host: RemoteHost) -> None:
    scripted_bundle(tmp_path / "slow", load_sleep_s=18.0)
    scripted_bundle(tmp_path / "a")
    with remote_robot(host.remote) as first, remote_robot(host.remote) as second:
        thread = threading.Thread(target=first.pool.prepare, args=(tmp_path / "slow",))
        thread.start()
        wait_for(lambda: host.log.count("receives model.safetensors") == 1, "the upload")
        second.assert_works(second.pool.prepare(tmp_path / "a"))
        thread.join(TIMEOUT_S)
        assert len(first.pool.generations()) == 1


def test_a_file_that_went_bad_on_the_hosts_disk_is_sent_again_and_not_the_bundles_fault(
    tmp_path: Path, host: RemoteHost
) -> None:
    scripted_bundle(tmp_path / "a")
    with remote_robot(host.remote) as robot:
        robot.pool.release(robot.pool.prepare(tmp_path / "a"))
        for blob in (tmp_path / "cache" / "blobs").iterdir():  # as after a power loss
            blob.write_bytes(bytes(blob.stat().st_size))
        robot.assert_works(robot.pool.prepare(tmp_path / "a"))
        for blob in (tmp_path / "cache" / "blobs").iterdir():
            blob.write_bytes(b"")
        robot.assert_works(robot.pool.prepare(tmp_path / "a"))


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"worker_host": "nowhere"}, "WORKER_HOST_INVALID"),
        ({"worker_host": "10.0.0.7:"}, "WORKER_HOST_INVALID"),
        ({"worker_host": ":7447"}, "WORKER_HOST_INVALID"),
        ({"worker_host": "10.0.0.7:99999"}, "WORKER_HOST_INVALID"),
        ({"worker_host": "https://10.0.0.7:7447"}, "WORKER_HOST_INVALID"),
        ({"worker_host": ""}, "WORKER_HOST_INVALID"),
        ({"worker_tls": ""}, "WORKER_TLS_INVALID"),
        ({"worker_tls": "{}/none"}, "WORKER_TLS_INVALID"),
        ({"worker_tls": "{}/no_key"}, "WORKER_TLS_INVALID"),
        ({"worker_tls": "{}/other_key"}, "WORKER_TLS_INVALID"),
        ({"worker_tls": "{}/no_pem"}, "WORKER_TLS_INVALID"),
        ({}, ""),
        ({"worker_host": "[::1]:7447"}, ""),
    ],
)
def test_a_mistyped_host_or_folder_is_refused_before_anything_is_loaded(
    tmp_path: Path, settings: dict[str, str], code: str
) -> None:
    make_ca(tmp_path / "tls")
    for name in ("no_key", "other_key", "no_pem"):
        shutil.copytree(tmp_path / "tls" / "robot", tmp_path / name)
    (tmp_path / "no_key" / "key.pem").unlink()
    shutil.copy(tmp_path / "tls" / "host" / "key.pem", tmp_path / "other_key")
    (tmp_path / "no_pem" / "ca.pem").write_text("hello\n")
    given = {"worker_host": "10.0.0.7:7447", "worker_tls": "{}/tls/robot"} | settings
    config = PolicyNodeConfig(**{key: value.format(tmp_path) for key, value in given.items()})
    with refused(code) if code else contextlib.nullcontext():
        assert worker_config(config, parse_contract(contract_text())).remote is not None


def test_a_connection_that_is_accepted_and_closed_is_a_host_that_is_away(tmp_path: Path, host: RemoteHost) -> None:
    scripted_bundle(tmp_path / "a")
    with contextlib.closing(Relay(host.port)) as relay:
        relay.lets_in = False
        with remote_robot(Remote(relay.address, host.remote.tls)) as robot, refused("WORKER_HOST_UNREACHABLE"):
            robot.pool.prepare(tmp_path / "a")


def test_what_was_used_least_recently_makes_room_and_what_is_loaded_stays(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        ballast = random.standard_normal(300_000).astype(np.float32)
        scripted_bundle(tmp_path / name, more_tensors={"ballast": ballast})
    with torchless_host(tmp_path, "--cache-gib", "0.003") as host, remote_robot(host.remote) as robot:  # two of them
        kept = robot.pool.prepare(tmp_path / "a")
        for number, name in enumerate(("b", "c", "b"), 2):
            robot.pool.release(robot.pool.prepare(tmp_path / name))
            assert host.log.count(": receives model.safetensors") == number
        robot.pool.release(kept)
        robot.assert_works(robot.pool.prepare(tmp_path / "a"))
        assert host.log.count(": receives model.safetensors") == 4


HONEST = {
    "features": {STATE: ["float32", [2]]}, "horizon": 100, "execute": 8, "action_dim": 2, "uses_instruction": True,
    "history": 1, "golden_difference": 0.0, "seconds": {"load": 0, "digest": 0, "golden": 0, "warm_up": 0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "REMOTE_PROTOCOL"),
        (b"VLAR\0\2\0\6\xff\xff\xff\xff", "REMOTE_PROTOCOL"),  # 4 GiB of READY
        (frame(Kind.READY, b"[" * 60000), "REMOTE_PROTOCOL"),
        (frame(Kind.READY, {}), "REMOTE_PROTOCOL"),
        (frame(Kind.READY, {**HONEST, "horizon": 1 << 20, "action_dim": 1 << 20}), "REMOTE_PROTOCOL"),
        (frame(Kind.READY, {**HONEST, "seconds": {"load": "long"}}), "REMOTE_PROTOCOL"),
        (frame(Kind.READY, {**HONEST, "horizon": 50}), "SPEC_MISMATCH"),
        (frame(Kind.READY, {**HONEST, "features": {"x": ["uint8", [1]]}}), "OBSERVATION_MISMATCH"),
        (frame(Kind.WANT, {"sha256": "../../etc/passwd"}), "REMOTE_PROTOCOL"),
        (frame(Kind.FAILED, {"code": "not a code", "message": ""}), "REMOTE_PROTOCOL"),
        (frame(Kind.CHUNK, b"\0" * 64), "REMOTE_PROTOCOL"),
        (
            frame(Kind.READY, HONEST) + frame(Kind.NO_CHUNK, {"request": 7, "error": "NAN", "text": ""}),
            "WORKER_HOST_LOST",  # that was never asked, and what was asked is never answered
        ),
        (b"", "WORKER_HOST_LOST"),
    ],
)
def test_whatever_a_host_says_the_node_goes_on_with_a_coded_refusal(tmp_path: Path, answer: bytes, code: str) -> None:
    scripted_bundle(tmp_path / "a")
    make_ca(tmp_path / "tls")
    context = tls_context(str(tmp_path / "tls" / "host"), server=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
                sock.sendall(frame(Kind.HEARTBEAT, b""))
                sock.recv(1)  # it has begun to speak
                sock.sendall(answer)
                with contextlib.suppress(OSError):
                    while answer and sock.recv(1 << 16):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        remote = Remote(f"127.0.0.1:{listener.getsockname()[1]}", str(tmp_path / "tls" / "robot"), 5.0)
        with remote_robot(remote) as robot:
            with refused(code):
                robot.pool.prepare(tmp_path / "a")
            assert not robot.pool.generations()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_a_host_that_never_ends_its_first_frame_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ca(tmp_path / "tls")
    context = tls_context(str(tmp_path / "tls" / "host"), server=True)
    monkeypatch.setattr("vla_policy_node.remote.line.CONNECT_TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as sock, contextlib.suppress(OSError):
                sock.sendall(frame(Kind.DATA, bytes(1 << 18))[:100])
                for _ in range(round(10 * TIMEOUT_S)):
                    sock.sendall(b"\0")
                    time.sleep(0.1)

        thread = threading.Thread(target=trickle)
        thread.start()
        (finding,) = check_worker_host(f"127.0.0.1:{listener.getsockname()[1]}", str(tmp_path / "tls" / "robot"))
        assert finding.code == "WORKER_HOST" and finding.text.startswith("WORKER_HOST_LOST")
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
