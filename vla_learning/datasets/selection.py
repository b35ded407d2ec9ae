# SPDX-License-Identifier: Apache-2.0
"""Which episodes go into a data set: all new ones, and of the old ones a replay buffer in which no task is forgotten.

The buffer is bounded in frames. It is drawn by strata, an instruction and an outcome each, that take turns: all get the same
number of frames, and what a small one does not need goes to the others. Within a stratum an episode's place depends on the seed
and its SHA-256 alone, so that more episodes in the store do not reshuffle those that were drawn before.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vla_learning.episodes.summary import EpisodeSummary
from vla_learning.errors import DataSetError


@dataclass(frozen=True)
class Source:
    """An episode that a data set may take."""

    episode: EpisodeSummary
    path: Path
    number: int
    """Its place in the sequence in which episodes were received."""
    new: bool
    """Whether it belongs to the new part; else it may be replayed."""

    @property
    def stratum(self) -> tuple[str, bool]:
        """Instruction and outcome: what it stands for in a replay buffer."""
        return self.episode.instructions[0], self.episode.success is True


@dataclass(frozen=True)
class BuildSettings:
    """How a data set is built."""

    seed: int = 0
    """Of the draw of the replay buffer."""
    replay_share: float = 0.7
    """Share of what is drawn in training that is old."""
    correction_weight: float = 10.0
    """How often a corrected step is drawn in the new part, for each time that another one is."""
    replay_frames: int = 100_000
    """Most frames of the replay buffer."""
    keep_failures: bool = False
    """Take failures that nobody corrected too: an imitating policy would learn them."""
    allow_no_corrections: bool = False
    """Build though no new step is a correction."""
    new_rule: str = "chosen by hand"
    """What is new, in words; for the record."""
    file_bytes: int = 100 << 20
    """Size of the episodes that share a file of the data set."""

    def __post_init__(self) -> None:
        for name, low, high in (("replay_share", 0.0, 0.99), ("correction_weight", 1.0, 1000.0)):
            if not low <= getattr(self, name) <= high:
                raise DataSetError(
                    "DATASET_SETTING", name, f"is {getattr(self, name)}; at least {low:g}, at most {high:g}"
                )
        if self.replay_frames < 0:
            raise DataSetError("DATASET_SETTING", "replay_frames", f"is {self.replay_frames}; at least 0")


@dataclass(frozen=True)
class Stratum:
    """Old episodes of one instruction and outcome."""

    instruction: str
    success: bool
    episodes: int
    frames: int
    chosen: tuple[Source, ...]

    @property
    def chosen_frames(self) -> int:
        """Frames that go into the replay buffer."""
        return sum(source.episode.steps for source in self.chosen)


@dataclass(frozen=True)
class Choice:
    """What goes into a data set."""

    new: tuple[Source, ...]
    strata: tuple[Stratum, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Why → how many episodes."""

    @property
    def replay(self) -> tuple[Source, ...]:
        """The replay buffer, in the sequence in which its episodes were received."""
        return _in_order(source for stratum in self.strata for source in stratum.chosen)


def choose(sources: Iterable[Source], settings: BuildSettings) -> Choice:
    """Return what goes into a data set.

    Raises:
        DataSetError: DATASET_NO_EPISODES, DATASET_NOTHING_NEW, DATASET_NO_CORRECTIONS or DATASET_MIXED.
    """
    everything = list(sources)
    if not everything:
        raise DataSetError("DATASET_NO_EPISODES", "the episodes", "there are none that match; see `vla-fleet episodes`")
    kept = [s for s in everything if s.episode.usable or settings.keep_failures]
    left_out = {"not a success, and not corrected": len(everything) - len(kept)} if len(kept) < len(everything) else {}
    new = _in_order(source for source in kept if source.new)
    _check_new(new, everything, settings)
    old = [source for source in kept if not source.new]
    strata = _strata(old, settings) if settings.replay_share else ()
    _check_interfaces([*new, *(source for stratum in strata for source in stratum.chosen)])
    return Choice(new, strata, left_out)


def _check_new(new: Sequence[Source], everything: Sequence[Source], settings: BuildSettings) -> None:
    if not new:
        unusable = sum(source.new for source in everything)
        failures = f"; {unusable} failed and nobody corrected them" if unusable else ""
        reason = f"no usable episode is new ({settings.new_rule}){failures}; choose another rule with --since or --new-version"
        raise DataSetError("DATASET_NOTHING_NEW", "the episodes", reason)
    if not settings.allow_no_corrections and not any(source.episode.corrections for source in new):
        reason = (
            f"none of the {len(new)} new episodes holds a correction, so the policy would learn from what it does already; "
            "let an operator correct failures, or give --allow-no-corrections"
        )
        raise DataSetError("DATASET_NO_CORRECTIONS", "the new part", reason)


def _check_interfaces(chosen: Sequence[Source]) -> None:
    counts = Counter(source.episode.interface for source in chosen)
    if len(counts) > 1:
        newest = {source.episode.interface: source for source in sorted(chosen, key=lambda source: source.number)}
        kinds = "; ".join(
            f"{interface} {count} of {newest[interface].episode.robot_type or 'an unnamed robot type'} at "
            f"{newest[interface].episode.rate_hz:g} Hz, the newest {newest[interface].episode.sha256[:12]} from "
            f"{newest[interface].episode.robot or 'nobody'}"
            for interface, count in counts.most_common()
        )
        reason = f"robot types, rates, actions or features differ ({kinds}); choose one with --interface or --robot"
        raise DataSetError("DATASET_MIXED", f"{len(chosen)} episodes", reason)


def _strata(old: Sequence[Source], settings: BuildSettings) -> tuple[Stratum, ...]:
    groups: dict[tuple[str, bool], list[Source]] = defaultdict(list)
    for source in old:
        groups[source.stratum].append(source)
    drawn = _draw(groups, settings)
    if old and settings.replay_frames and not any(drawn.values()):
        shortest = min(source.episode.steps for source in old)
        reason = f"is {settings.replay_frames}, and the shortest old episode has {shortest} frames; give more, or 0 for no replay"
        raise DataSetError("DATASET_SETTING", "replay_frames", reason)
    return tuple(
        Stratum(*key, len(group), sum(source.episode.steps for source in group), tuple(drawn[key]))
        for key, group in sorted(groups.items())
    )


def _draw(
    groups: Mapping[tuple[str, bool], Sequence[Source]], settings: BuildSettings
) -> dict[tuple[str, bool], list[Source]]:
    """Return the replay buffer: the stratum with the fewest frames so far is the next to give an episode, while it fits."""

    def place(text: object) -> bytes:
        return hashlib.sha256(f"{settings.seed}/{text}".encode()).digest()

    waiting = {key: sorted(group, key=lambda s: place(s.episode.sha256), reverse=True) for key, group in groups.items()}
    drawn: dict[tuple[str, bool], list[Source]] = {key: [] for key in groups}
    budget = settings.replay_frames
    heap = [(0, place(key), key) for key in groups]
    heapq.heapify(heap)
    while heap:
        frames, order, key = heapq.heappop(heap)
        if not waiting[key]:
            continue
        source = waiting[key].pop()
        if source.episode.steps <= budget:
            drawn[key].append(source)
            budget -= source.episode.steps
            frames += source.episode.steps
        heapq.heappush(heap, (frames, order, key))
    return drawn


def _in_order(sources: Iterable[Source]) -> tuple[Source, ...]:
    return tuple(sorted(sources, key=lambda source: (source.number, source.episode.sha256)))
