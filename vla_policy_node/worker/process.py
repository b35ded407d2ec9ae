# SPDX-License-Identifier: Apache-2.0
"""A worker process: forked by ``server.py``, or ``python -m vla_policy_node.worker.process FD``.

FD is its end of the channel to the node.

Threads, because Linux keeps a nice level for each thread and takes privilege to lower one again:

* main: at the node's own level; waits until everything is loaded, warms the policy up, then infers, for ever;
* loader: at a raised level; imports, reads, checks, builds the policy and replays the golden observations, then ends;
* shadow: at a raised level; infers in place of main as long as the bundle is in shadow;
* channel: ends the process the moment the node's end closes. Should the policy hold the interpreter's lock just then, the
  kernel does it (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vla_policy_node.errors import WorkerError
from vla_policy_node.ipc.arena import Arena, Layout
from vla_policy_node.ipc.channel import Channel, ChannelClosedError, ChannelFullError
from vla_policy_node.ipc.generation import GenerationHandle
from vla_policy_node.policies.base import FeatureSpec, Policy
from vla_policy_node.worker import loading
from vla_policy_node.worker.golden import record, replay
from vla_policy_node.worker.history import repeated
from vla_policy_node.worker.inference import FEATURE, WARM_UP_INFERENCES, ChunkError, InferenceLoop, infer, reset

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_REPORT_PERIOD_S = 1.0
_PROGRESS_STEP = 0.01
# Where each state begins and ends in the progress of the whole.
_SPAN = {"LOADING": (0.0, 0.4), "DIGEST": (0.4, 0.6), "BUILD": (0.6, 0.8), "GOLDEN": (0.8, 0.9), "WARM_UP": (0.9, 1.0)}

Message = tuple[dict[str, Any], list[int]]


class Worker:
    """What the three threads share."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._reported_s = 0.0
        self._unreported = 0
        self._progress = ("", -1.0)
        self._nice = 0
        self._acts = threading.Event()  # the shadow is over
        self.watch = loading.Stopwatch()

    def run(self) -> NoReturn:
        """Load one bundle, then serve it."""
        threading.Thread(target=self._listen, name="channel", daemon=True).start()
        loaded: Future[Loaded] = Future()
        threading.Thread(target=self._load, args=(loaded,), name="loader", daemon=True).start()
        try:
            generation = loaded.result()
            inference_ms = self._warm_up(generation)
        except WorkerError as e:
            if e.__cause__ is not None:
                traceback.print_exception(e.__cause__)
            self._send({"type": "failed", "code": e.code, "message": e.message[:4000]}, block=True)
            sys.stderr.flush()
            os._exit(1)
        gc.collect()
        gc.freeze()  # what was loaded is never looked at again by a collection in the middle of an inference
        handle = generation.handle
        loop = InferenceLoop(
            generation.policy,
            handle.id,
            observation=generation.observation,
            requests=handle.attach_requests(),
            chunks=handle.attach_chunks(),
            eventfd=handle.eventfd,
            max_age_s=generation.plan["observation"]["max_age_s"],
            period_s=generation.plan["observation"]["period_s"],
            report=self._report_fault,
            shadow=generation.shadow,
        )
        spec = generation.policy.spec
        features = {name: [feature.dtype, list(feature.shape)] for name, feature in spec.observation.items()}
        ready = {"features": features, "uses_instruction": bool(spec.uses_instruction), "inference_ms": inference_ms}
        ready |= {"golden_difference": generation.golden_difference, "weights_are_free": generation.weights_are_free}
        self._send({"type": "ready", **ready, "seconds": self.watch.seconds}, block=True)
        if generation.shadow is not None:
            thread = threading.Thread(target=self._shadow, args=(loop,), name="shadow", daemon=True)
            thread.start()
            thread.join()
            self._send({"type": "acting"}, block=True)
        loop.run()
        raise AssertionError("the inference loop does not end")

    def _shadow(self, loop: InferenceLoop) -> None:
        """Answer what is asked in shadow, behind whatever acts."""
        raise_nice_level(self._nice)
        loop.run_in_shadow(self._acts.is_set)

    def _listen(self) -> None:
        try:
            while True:
                message = self._channel.receive(None)
                if message is not None and message[0].get("type") == "act":
                    self._acts.set()
                elif message is not None:
                    self._inbox.put(message)
        except ChannelClosedError:
            pass
        os._exit(0)

    def _load(self, loaded: Future[Loaded]) -> None:
        try:
            begin, _ = self._inbox.get()
            self._nice = begin["nice"]
            raise_nice_level(self._nice)
            loading.import_ahead(begin)
            self._send({"type": "imported", "versions": loading.versions()}, block=True)
            loaded.set_result(Loaded(self, *self._inbox.get()))
        except WorkerError as e:
            loaded.set_exception(e)
        except MemoryError as e:
            loaded.set_exception(_caused(WorkerError("OUT_OF_MEMORY", "no memory left while loading"), e))
        except BaseException as e:
            loaded.set_exception(_caused(WorkerError("LOAD_FAILED", f"{type(e).__name__}: {e}"), e))

    def _warm_up(self, generation: Loaded) -> float:
        """Infer in the thread that will do so from now on; return the shortest time, of golden observations too [ms]."""
        policy, times_s = generation.policy, generation.golden_times_s
        count = 1 if len(times_s) > 1 else WARM_UP_INFERENCES
        with self.watch("warm_up"):
            try:
                for i in range(count):
                    self.progress("WARM_UP", i / count)
                    begin = time.monotonic()
                    infer(policy, *generation.example())
                    times_s.append(time.monotonic() - begin)
                reset(policy)
            except ChunkError as e:
                raise WorkerError("WARM_UP_FAILED", f"{e.error}: {e.reason}") from e
        return min(times_s) * 1e3

    def progress(self, state: str, fraction: float) -> None:
        """Tell the node how far the preparation is, in small steps only."""
        low, high = _SPAN[state]
        self.show("LOADING" if state == "BUILD" else state, low + (high - low) * fraction)

    def show(self, shown: str, whole: float) -> None:
        """The same, with the share of the whole."""
        if shown != self._progress[0] or whole - self._progress[1] >= _PROGRESS_STEP:
            self._progress = (shown, whole)
            self._send({"type": "progress", "state": shown, "fraction": whole})

    def _report_fault(self, error: str, text: str) -> None:
        """At most one a second, with the number of those left out."""
        now = time.monotonic()
        if now - self._reported_s < _REPORT_PERIOD_S:
            self._unreported += 1
            return
        self._send({"type": "chunk_error", "error": error, "text": text[-4000:], "unreported": self._unreported})
        self._reported_s, self._unreported = now, 0

    def _send(self, message: dict[str, Any], *, block: bool = False) -> None:
        try:
            self._channel.send(message, block=block)
        except ChannelFullError:
            pass  # only of what is repeated or can be missed
        except ChannelClosedError:
            os._exit(0)


class Loaded:
    """A loaded and replayed policy; built in the loader thread."""

    def __init__(self, worker: Worker, message: dict[str, Any], fds: list[int]) -> None:
        shadow_fd = fds.pop() if message["shadow"] else None
        plan_fd, weights_fd, observation_fd, *others = fds
        handle_fds, golden_fd, changed_fds = others[:3], others[3], others[4:]
        with os.fdopen(plan_fd, "rb") as file:
            file.seek(0)
            self.plan: dict[str, Any] = json.load(file)
        plan, bundle_dir = self.plan, Path(self.plan["bundle_dir"])
        self.handle = GenerationHandle.from_message(message["handle"], handle_fds)
        view = plan["observation"]
        layout = Layout.from_json(view["layout"])
        self.observation = Arena.attach(layout, view["slots"], observation_fd)
        self.shadow = None if shadow_fd is None else Arena.attach(layout, message["shadow"], shadow_fd)
        self._golden, self._instructions = _map_golden(plan["golden"], golden_fd), [""]

        fields = [f for f in self.observation.layout.fields if f.name.startswith(FEATURE)]
        features = {f.name.removeprefix(FEATURE): FeatureSpec(f.shape, f.dtype) for f in fields}
        self.golden_difference = 0.0
        self.golden_times_s: list[float] = []
        self.weights_are_free = False
        if plan["remote"] is None:
            self.policy = self._load(worker, bundle_dir, weights_fd, changed_fds)
        else:
            os.close(weights_fd)
            self.policy = self._load_there(worker, bundle_dir, features)
        loading.check_spec(self.policy.spec, plan["spec"], {k: (v.dtype, v.shape) for k, v in features.items()})
        if plan["golden"] is not None:
            self._replay(worker)

    def _load(self, worker: Worker, bundle_dir: Path, weights_fd: int, changed_fds: list[int]) -> Policy:
        """Read the bundle and build its policy."""
        plan, watch, progress = self.plan, worker.watch, worker.progress
        with watch("load"):
            progress("LOADING", 0.0)
            module = loading.find_policy_module(plan["policy_type"], plan["policy_modules"])
            loading.check_requirements(plan["requires"])
            entries = [t for file in plan["weights"] for t in file["tensors"]]
            there = plan["weights_are_there"]  # an adapter's base, which others read
            if not there:
                shared = memoryview(_map(weights_fd, plan["weights_bytes"]))
                folder = Path(plan["weights_dir"])
                loading.read_weights(folder, plan["weights"], shared, lambda f: progress("LOADING", f))
                shared.release()
            # What a policy writes to its weights stays its own: others act on them too, now or later.
            maps = [_map_own(weights_fd, plan["weights_bytes"])]
            tensors = loading.view_weights(entries, memoryview(maps[0]))
        with watch("digest"):
            progress("DIGEST", 0.0)
            loading.check_files(bundle_dir, plan["files"])
        for fd in changed_fds:
            maps.append(_map_own(fd, plan["changed_bytes"]))
            tensors.update(loading.view_weights(plan["changed"], memoryview(maps[-1])))
        loading.add_aliases(plan["weights"], tensors)
        with watch("load"):
            progress("BUILD", 0.0)
            policy = loading.build_policy(module, bundle_dir, tensors, plan["device"])
        del tensors
        self.weights_are_free = getattr(policy, "lets_tensors_go", False) and all(map(_unmapped, maps))
        return policy

    def _load_there(self, worker: Worker, bundle_dir: Path, features: Mapping[str, FeatureSpec]) -> Policy:
        """Let a host do so."""
        from vla_policy_node.remote.robot import open_policy

        begin_s = time.monotonic()
        policy = open_policy(self.plan["remote"], bundle_dir, features, worker.show)
        there, seconds = policy.seconds, worker.watch.seconds
        seconds.update(there, load=time.monotonic() - begin_s - sum(there.values()) + there["load"])
        self.golden_difference = policy.golden_difference
        return policy

    def example(self) -> tuple[dict[str, npt.NDArray[Any]], str]:
        """An observation to warm up with: a golden one, else the robot's newest, else zeros."""
        features, instruction = self.policy.spec.observation, ""
        newest = self.observation.read(["valid", *(FEATURE + name for name in features)])
        if self._golden:
            shown, instruction = {name: self._golden[name][0] for name in features}, self._instructions[0]
        elif newest is not None and newest[1]["valid"]:
            shown = {name: newest[1][FEATURE + name] for name in features}
        else:
            shown = {name: np.zeros(feature.shape, feature.dtype) for name, feature in features.items()}
        return dict(repeated(shown, self.policy.spec.history)), instruction

    def _replay(self, worker: Worker) -> None:
        golden = self.plan["golden"]
        self._instructions = golden["instructions"]
        missing = self.policy.spec.observation.keys() - self._golden.keys()
        if missing:
            raise WorkerError("GOLDEN_MISMATCH", f"the golden observations lack {sorted(missing)}")
        with worker.watch("golden"):
            worker.progress("GOLDEN", 0.0)
            observations = {name: self._golden[name] for name in self.policy.spec.observation}
            arguments = (self.policy, observations, self._golden["action"], self._instructions)
            if golden["record"]:
                record(*arguments, golden["seed"], self.golden_times_s)
            else:
                self.golden_difference = replay(*arguments, golden["tolerance"], golden["seed"], self.golden_times_s)


def _map(fd: int, size: int) -> mmap.mmap:
    """Map shared memory with its pages in place."""
    return mmap.mmap(fd, size, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def _map_own(fd: int, size: int) -> mmap.mmap:
    """Map shared memory so that a page is copied when it is written to, and close the descriptor (the mapping stays)."""
    try:
        return mmap.mmap(fd, size, mmap.MAP_PRIVATE)  # MAP_POPULATE would copy all of it at once
    finally:
        os.close(fd)


def _unmapped(memory: mmap.mmap) -> bool:
    """Unmap memory, unless something still refers to it."""
    try:
        memory.close()
    except BufferError:
        return False
    return True


def _map_golden(golden: dict[str, Any] | None, fd: int) -> dict[str, npt.NDArray[Any]]:
    if golden is None:
        os.close(fd)
        return {}
    layout = Layout.from_json(golden["layout"])
    views = layout.views(memoryview(_map(fd, layout.size)))
    os.close(fd)
    return views


def _caused(error: WorkerError, cause: BaseException) -> WorkerError:
    error.__cause__ = cause
    return error


def raise_nice_level(by: int) -> None:
    """Let the calling thread, and no other, stand back behind whatever acts."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + by))


def die_with_parent() -> None:
    """Let the kernel end this process with its parent."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_worker(channel_fd: int) -> NoReturn:
    """Be a worker: a child of the node's, at its own end of a channel."""
    die_with_parent()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, b"policy_worker")
    with contextlib.suppress(OSError):  # when memory runs out, a worker goes before the control loop
        Path("/proc/self/oom_score_adj").write_text("500")
    channel = Channel.from_fd(channel_fd)
    channel.send({"type": "started", "pid": os.getpid()})
    Worker(channel).run()


if __name__ == "__main__":
    run_worker(int(sys.argv[1]))
