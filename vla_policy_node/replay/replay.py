# SPDX-License-Identifier: Apache-2.0
"""A recording through bundles: the observations that policy_node would have built, a chunk at every boundary.

Time is the recording's: a message counts from when it was received there. At every period of the contract's rate an observation
is written as the node does (:class:`ObservationBuffer`: decoding, alignment, freshness); where a chunk is due and the observation
is complete and fresh, every bundle is asked. No ROS here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.manifest import Manifest
from vla_policy_node.contract.model import Contract, Output
from vla_policy_node.decoding import CommandDecoder
from vla_policy_node.errors import ObservationError
from vla_policy_node.observation import ObservationBuffer
from vla_policy_node.replay.workers import Bundles
from vla_policy_node.worker.api import WorkerConfig

Floats = npt.NDArray[np.float64]

STATUS = "policy_node/status"
"""Key of the policy node's status among the messages: it names the instruction and the episodes."""
_RUNNING = 2  # ``vla_ota/PolicyStatus``: STATE_RUNNING
_OTHER_CLOCK_NS = 60_000_000_000
_ANY_AGE_S = 1e9
_LONG_S = 60.0
"""Nothing is fresh any more after so long without a message: a clock was set, or two recordings lie in one folder."""
_REASONS = 16  # that are counted apart


@dataclass(frozen=True)
class Message:
    """A message of the recording. ``topic`` as the contract has it, or :data:`STATUS`."""

    topic: str
    received_ns: int
    value: Any


@dataclass
class Replayed:
    """What came out. N boundaries, n actions that each bundle executes at least, C channels."""

    begin_ns: int
    period_s: float
    manifests: list[Manifest]
    times_s: Floats  # [N] of the boundaries, since the recording's begin
    actions: list[Floats]  # of each bundle [N, n, C], in the contract's units; relative ones from the measured position
    command_times_s: list[Floats]  # of each channel [M], while a policy acted
    commands: list[Floats]  # of each channel [M]
    postponed: int  # periods on which a chunk was due and the observation was missing or too old
    unusable: dict[str, int]  # why a message could not become an observation -> how often


@dataclass
class _Run:
    times_ns: list[int] = field(default_factory=list)
    chunks: list[list[Floats]] = field(default_factory=list)
    postponed: int = 0


class Recorded:
    """The robot as the recording shows it: its newest observation, its commands."""

    def __init__(self, contract: Contract, instruction: str | None) -> None:
        self.contract, self._instruction = contract, instruction
        self.observations = ObservationBuffer(contract)
        self.unusable: dict[str, int] = {}
        self.commands: list[list[tuple[int, float]]] = [[] for _ in contract.channels]
        self._sources: dict[str, list[tuple[str, int]]] = {}
        for observation in contract.observations:
            for i, source in enumerate(observation.sources):
                self._sources.setdefault(source.topic, []).append((observation.key, i))
        self._outputs = {output.topic: (output, CommandDecoder(output)) for output in contract.outputs}
        self._clock_ns: int | None = None  # ROS time minus time of reception
        self._task = "" if contract.instruction is None else contract.instruction.topic
        self._episode = ""
        self._acts = True  # as the last status says; a recording without one shows a robot that always acts
        if instruction is not None:
            self.observations.set_instruction(instruction)

    def receive(self, message: Message) -> None:
        """Take in a message; what cannot be used is counted, and the one before stays, as on the robot."""
        if message.topic == STATUS:
            with self._counted():
                self._status(message.value)
        if message.topic == self._task and self._instruction is None and not self._episode:
            with self._counted():
                self.observations.set_instruction(message.value.data)
        if message.topic in self._outputs and self._acts:  # what a hold commands is nobody's policy
            output, decoder = self._outputs[message.topic]
            with self._counted():
                self._command(output, decoder, message)
        for key, index in self._sources.get(message.topic, ()):
            ros_now_ns = message.received_ns + self._clock(message)
            with self._counted():
                self.observations.receive(key, index, message.value, ros_now_ns=ros_now_ns, now_ns=message.received_ns)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except ObservationError as e:
            reason = f"{e.code}: {e}"
            if reason not in self.unusable and len(self.unusable) >= _REASONS:
                reason = f"{e.code}: for other reasons"
            self.unusable[reason] = self.unusable.get(reason, 0) + 1

    def _clock(self, message: Message) -> int:
        """A robot on simulated time stamps its messages by another clock than the one they were received by."""
        stamp = getattr(getattr(message.value, "header", None), "stamp", None)
        if self._clock_ns is None and stamp is not None and (stamp.sec or stamp.nanosec):
            offset_ns = stamp.sec * 1_000_000_000 + stamp.nanosec - message.received_ns
            self._clock_ns = offset_ns if abs(offset_ns) > _OTHER_CLOCK_NS else 0
        return self._clock_ns or 0

    def _status(self, status: Any) -> None:
        self._acts = status.state == _RUNNING
        if self._instruction is not None:
            return
        if status.episode_id and status.episode_id != self._episode:
            self.observations.start_episode(status.instruction)
        else:
            self.observations.set_instruction(status.instruction)
        self._episode = status.episode_id

    def _command(self, output: Output, decoder: CommandDecoder, message: Message) -> None:
        for channel, number in enumerate(decoder.read(message.value), output.start):
            self.commands[channel].append((message.received_ns, float(number)))


def replay(
    contract: Contract,
    messages: Iterable[Message],
    paths: list[Path],
    config: WorkerConfig,
    instruction: str | None = None,
) -> Replayed:
    """Ask every bundle wherever the first one would have been asked.

    Args:
        contract: of the robot that was recorded.
        messages: in the order of their reception.
        paths: bundle folders.
        config: of the workers.
        instruction: task in words; None = as recorded.

    Raises ObservationError BAG_EMPTY, WorkerError, PrepareError, ContractError.
    """
    recorded = Recorded(contract, instruction)
    # The worker compares an observation's time with its own clock, which is not the recording's.
    config = WorkerConfig(**{**config.__dict__, "observation_max_age_s": _ANY_AGE_S})
    with Bundles(paths, contract, recorded.observations.arena, config) as bundles:
        run, begin_ns = _run(recorded, messages, bundles, round(contract.period_s * 1e9))
        manifests = [g.manifest for g in bundles.generations]
    recorded.observations.close()
    if not run.times_ns:
        why = "; ".join(f"{reason} ({count} times)" for reason, count in recorded.unusable.items())
        raise ObservationError("BAG_EMPTY", why or "no moment of the recording has all observations, and fresh")
    stacked = [np.stack([chunks[i] for chunks in run.chunks]) for i in range(len(paths))]
    shortest = min(chunk.shape[1] for chunk in stacked)
    commands = [np.array(channel, dtype=np.float64).reshape(-1, 2) for channel in recorded.commands]
    since = [[(at - begin_ns) / 1e9 for at, _ in channel] for channel in recorded.commands]
    return Replayed(
        begin_ns,
        contract.period_s,
        manifests,
        (np.array(run.times_ns) - begin_ns) / 1e9,
        [chunk[:, :shortest] for chunk in stacked],
        [np.array(times) for times in since],
        [channel[:, 1] for channel in commands],
        run.postponed,
        recorded.unusable,
    )


def _run(recorded: Recorded, messages: Iterable[Message], bundles: Bundles, period_ns: int) -> tuple[_Run, int]:
    run, begin_ns, tick_ns, due_ns = _Run(), 0, 0, 0
    relative = np.array([c.mode == "relative" for c in recorded.contract.channels])
    execute = [g.spec.execute for g in bundles.generations]
    for message in messages:
        begin_ns = begin_ns or message.received_ns
        tick_ns = tick_ns or message.received_ns
        if message.received_ns - tick_ns > _LONG_S * 1e9:
            skipped = (message.received_ns - tick_ns) // period_ns
            run.postponed += skipped if run.times_ns else 0
            tick_ns += skipped * period_ns
        while tick_ns <= message.received_ns:
            fresh = recorded.observations.publish(tick_ns)
            if tick_ns >= due_ns and fresh:
                base = np.where(relative, _measured(recorded), 0.0)
                chunks = zip(bundles.ask(), execute, strict=True)
                run.chunks.append([chunk[:n].astype(np.float64) + base for chunk, n in chunks])
                run.times_ns.append(tick_ns)
                due_ns = tick_ns + execute[0] * period_ns
            elif run.times_ns and tick_ns >= due_ns:
                run.postponed += 1
            tick_ns += period_ns
        recorded.receive(message)
    return run, begin_ns


def _measured(recorded: Recorded) -> Floats:
    record = recorded.observations.arena.read(["measured"])
    assert record is not None  # it has just been written
    measured: Floats = record[1]["measured"]
    return measured


def describe(manifest: Manifest) -> Mapping[str, str]:
    """Return what names a bundle."""
    return {"name": manifest.name, "version": manifest.version, "digest": manifest.digest}
