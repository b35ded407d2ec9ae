# SPDX-License-Identifier: Apache-2.0
"""Turns what the policy node says into one file an episode. Messages are read by attribute: no ROS here."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

from vla_learning.episodes.format import METADATA, EpisodeMeta
from vla_policy_node.contract.model import Contract
from vla_recorder.episodes.format import BEGUN, STEP, StepMaker, meta_of
from vla_recorder.episodes.shelf import EpisodeShelf
from vla_recorder.errors import RecorderError
from vla_recorder.mcap_file import Item
from vla_recorder.records import Note, Record
from vla_recorder.writer import FileWriter

LOG = logging.getLogger("vla_recorder")

_LATE_S = 0.5
"""Steps and outcome are different topics: what was published before the outcome may come so much later [s]."""
_SILENT_S = 5.0
"""A policy node that says nothing for so long has died with its episode [s]."""
_STALE_S = 1.5
"""The first status heard may be older than the episode that runs: what is new so soon may have begun before [s]."""
_CLOSE_S = 10.0
_KNOWN = 64


class Episodes:
    """Records one episode at a time. One thread calls it, with monotonic times.

    Args:
        shelf: where the files go.
        contract: of the robot.
        robot: its name, for people.
        max_waiting_bytes: of what the disk was too slow for [bytes].
        max_file_bytes: a larger episode is not kept [bytes].
    """

    def __init__(
        self, shelf: EpisodeShelf, contract: Contract, robot: str, *, max_waiting_bytes: int, max_file_bytes: int
    ) -> None:
        self._shelf, self._maker, self._meta = shelf, StepMaker(contract), meta_of(contract, robot)
        self._limits = {"max_waiting_bytes": max_waiting_bytes, "max_file_bytes": max_file_bytes}
        self._open: _Episode | None = None
        self._before: _Episode | None = None  # the one before it, whose outcome is still to come
        self._known: deque[str] = deque(maxlen=_KNOWN)  # episodes that were begun, or whose beginning was missed
        self._heard_s: float | None = None  # when the policy node was heard first
        self._finishing: list[FileWriter] = []
        self.kept = 0
        """Episodes since the start that became whole files."""
        self.dropped = 0
        """Messages and episodes that could not be written, since the start."""
        self.error = ""
        """Why the last episode was not written, as ``CODE: text``; empty = it was."""

    @property
    def running(self) -> bool:
        """Whether an episode is open."""
        return self._open is not None

    @property
    def writing(self) -> Path | None:
        """The file of the open episode."""
        return self._open.writer.path if self._open is not None else None

    # -- what comes ---------------------------------------------------------------------------------------------------------

    def status(self, message: Any, now_s: float) -> None:
        """Take in a PolicyStatus."""
        self._follow(message.episode_id, now_s)
        episode = self._open
        if episode is None:
            return
        if message.episode_id == episode.id:
            episode.heard_s = now_s
            episode.experiment = message.experiment
        elif episode.closes_s is None:  # it has ended; how, comes with the outcome, unless its policy node has died
            episode.closes_s = now_s + _SILENT_S

    def steps(self, message: Any, now_s: float) -> None:
        """Take in a PolicySteps."""
        self._follow(message.episode_id, now_s)
        episode = self._find(message.episode_id)
        if episode is None:
            return
        episode.heard_s = now_s
        known = message.generation in episode.generations
        who = {"policy": message.name, "version": message.version, "digest": message.digest}
        episode.generations[message.generation] = {**who, "generation": message.generation}
        for index, at_ns in enumerate(message.times_ns):
            try:
                data = self._maker.step(message, index)
            except ValueError as e:
                self.dropped += 1
                LOG.error("a step is dropped: it does not fit the contract: %s", e)
                return
            self._put(episode, Record(STEP, at_ns, at_ns, data))
            episode.step(message, index)
        if not known and episode.first_ns is not None:  # what the next recorder knows if this one dies
            self._put(episode, Note(BEGUN, episode.summary().as_record()))

    def outcome(self, message: Any, now_s: float) -> None:
        """Take in an EpisodeOutcome."""
        episode = self._find(message.episode_id)
        if episode is not None and episode.outcome is None:
            episode.closes_s, episode.outcome = now_s + _LATE_S, message

    def add(self, record: Record) -> None:
        """Write a record into the open episode: a picture, or what happened."""
        if self._open is not None:
            self._put(self._open, record)

    def tick(self, now_s: float) -> None:
        """Close what has ended; call it a few times a second."""
        for episode in self._unfinished():
            if not episode.writer.is_alive() and not episode.writer.error:
                episode.writer.error = f"RECORDING_IO: {episode.writer.path}: its thread has ended"
            silent = now_s - episode.heard_s > _SILENT_S
            if silent or episode.writer.error or (episode.closes_s is not None and now_s >= episode.closes_s):
                self._close(episode)
        for ended in [w for w in self._finishing if not w.is_alive()]:
            self._finishing.remove(ended)
            self.error = ended.error
            if ended.error:
                self.dropped += 1
            else:
                self.kept += 1

    def close(self) -> None:
        """Finish what is being written: the episode goes on without a recorder, and counts as interrupted."""
        for episode in self._unfinished():
            self._close(episode)
        for writer in self._finishing:
            writer.join(_CLOSE_S)
        self.tick(time.monotonic())

    # -- inside -------------------------------------------------------------------------------------------------------------

    def _follow(self, episode_id: str, now_s: float) -> None:
        """Begin a file if this episode is a new one."""
        new = episode_id not in self._known
        if new:
            self._known.append(episode_id)
        if self._heard_s is None:
            self._heard_s = now_s
        missed = now_s - self._heard_s < _STALE_S
        if not episode_id or not new or missed:
            return
        if self._before is not None:
            self._close(self._before)
        if (
            self._open is not None
        ):  # its outcome is on a topic of its own, and may be read later than the next one's status
            self._before, self._open = self._open, None
            if self._before.closes_s is None:
                self._before.closes_s = now_s + _LATE_S
        meta = dataclasses.replace(self._meta, episode_id=episode_id, started_ns=time.time_ns())
        try:
            path = self._shelf.new_path(episode_id.replace(":", "_"))
        except RecorderError as e:
            self.dropped, self.error = self.dropped + 1, str(e)
            LOG.error("episode %s is not recorded: %s", episode_id, e)
            return
        writer = FileWriter(self._shelf, path, [Note(BEGUN, meta.as_record())], whole=True, **self._limits)
        writer.start()
        self._open = _Episode(meta, writer, now_s)

    def _put(self, episode: _Episode, item: Item) -> None:
        if not episode.writer.put(item):
            self.dropped += 1

    def _unfinished(self) -> list[_Episode]:
        return [episode for episode in (self._before, self._open) if episode is not None]

    def _find(self, episode_id: str) -> _Episode | None:
        return next((episode for episode in self._unfinished() if episode.id == episode_id), None)

    def _close(self, episode: _Episode) -> None:
        if episode is self._open:
            self._open = None
        else:
            self._before = None
        if episode.first_ns is None and not episode.writer.error:
            LOG.info("episode %s is not kept: it has no step", episode.id)
            episode.writer.drop()
            return
        if episode.first_ns is not None:
            episode.writer.put(Note(METADATA, episode.summary().as_record()))
        episode.writer.end()
        self._finishing.append(episode.writer)


class _Episode:
    """The open episode."""

    def __init__(self, meta: EpisodeMeta, writer: FileWriter, now_s: float) -> None:
        self.id, self._meta, self.writer, self.heard_s = meta.episode_id, meta, writer, now_s
        self.closes_s: float | None = None
        self.outcome: Any = None  # the EpisodeOutcome
        self.experiment = ""
        self.generations: dict[int, dict[str, Any]] = {}  # who they are
        self.first_ns: int | None = None
        self._last_ns, self._generation, self._instruction, self._intervention = 0, 0, "", False

    def step(self, message: Any, index: int) -> None:
        """Note a step."""
        self._last_ns, self._generation = message.times_ns[index], message.generation
        self._instruction = message.instruction
        self.first_ns = self._last_ns if self.first_ns is None else self.first_ns
        self._intervention |= bool(message.interventions[index])

    def summary(self) -> EpisodeMeta:
        """Return all that is known of the episode as a whole: without an outcome nobody knows how it ended."""
        ended = self.outcome
        known = dataclasses.replace(
            self._meta,
            instruction=self._instruction,
            intervention=self._intervention,
            experiment=self.experiment,
            duration_s=(self._last_ns - (self.first_ns or 0)) / 1e9,
            **self.generations[self._generation],
        )
        if ended is None:
            return known
        who = self.generations.get(ended.generation, {})
        success = bool(ended.success) if ended.known else None
        return dataclasses.replace(known, **who, arm=ended.arm, success=success, duration_s=ended.duration_s)
