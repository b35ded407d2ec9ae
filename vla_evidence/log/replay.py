# SPDX-License-Identifier: Apache-2.0
"""Judge and log as it goes; compute every verdict and every draw of a log again.

After a crash a :class:`LoggedJudgement` is made again by replaying its log. The log *is* the judge's memory: there is no second
state that could disagree with it.

A replay compares decisions, codes and figures, not wording. It proves that the verdicts follow from the log's records, and
the draws from the experiment's name. It does not prove that the records are what the robots did, or that none is missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vla_evidence.episodes import Fate
from vla_evidence.errors import EvidenceError, InputError, LogError, check_time
from vla_evidence.log.judgements import Judge, judge_of, take
from vla_evidence.log.records import (
    EVENT,
    MAX_LINE_BYTES,
    OUTCOME,
    VERDICT,
    NewLines,
    Record,
    Warn,
    encode,
    read_lines,
    to_json,
)
from vla_evidence.tables import plural
from vla_evidence.verdict import Verdict

_TOLERANCE = 1e-9
"""Relative: logarithms of different machines agree to about 1e-15 each."""
_COMPARED = ("decision", "code", "figures")


@dataclass(frozen=True)
class Step:
    """One verdict of a log, computed again; ``outcomes``: how many came before it."""

    line: int
    outcomes: int
    verdict: dict[str, Any]


@dataclass(frozen=True)
class Replay:
    """A whole log, computed again: it says what it said.

    Attributes:
        kind, experiment: of the judgement.
        outcomes, verdicts: how many.
        unchecked: outcomes behind the last verdict: no number in the log rests on them.
        last: the last verdict.
    """

    kind: str
    experiment: str
    outcomes: int
    verdicts: int
    unchecked: int
    last: dict[str, Any] | None

    def __str__(self) -> str:
        counts = f"{plural(self.outcomes, 'outcome')}, {plural(self.verdicts, 'verdict')}"
        counted = f"{counts} of {self.kind} {self.experiment!r}"
        if not self.verdicts:
            return f"{counted}: nothing was checked"
        late = f" ({plural(self.unchecked, 'outcome')} came after the last)" if self.unchecked else ""
        return f"{counted}: every verdict is what its data say{late}; episodes ran the versions that were drawn"


def replay_file(
    path: str | os.PathLike[str], *, show: Callable[[Step], None] | None = None, warn: Warn | None = None
) -> Replay:
    """Compute a log's verdicts and draws again, reading line by line.

    ``show`` receives each verdict as recomputed, ``warn`` the warning of a torn last line.

    Raises:
        LogError: LOG_UNREADABLE: no such file; LOG_SYNTAX: a line that is no record; LOG_VALUE: a record that the judge refuses;
            REPLAY_DIFFERS: a verdict or a draw is another one than the log says.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as stream:
            lines = iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b"")
            return _replay(read_lines(lines, name, warn), name, show)[1]
    except OSError as e:
        raise LogError("LOG_UNREADABLE", name, e.strerror or str(e)) from e


def _replay(
    records: Iterator[tuple[int, Record]], name: str, show: Callable[[Step], None] | None = None
) -> tuple[Judge, Replay]:
    _, header = next(records)
    judge = _judge_of(header, f"{name}:1")
    outcomes = verdicts = checked = 0
    last: dict[str, Any] | None = None
    for number, record in records:
        place = f"{name}:{number}"
        try:
            if record["record"] == VERDICT:
                last = _verdict(judge, record)
                verdicts, checked = verdicts + 1, outcomes
                if show is not None:
                    show(Step(number, outcomes, last))
            else:
                take(judge, record)
                outcomes += record["record"] == OUTCOME
        except LogError as e:
            raise LogError(e.code, f"{place}: {e.field}", e.reason) from e
        except InputError as e:
            raise LogError("LOG_VALUE", place, f"the judge refuses it: {e}") from e
    return judge, Replay(header["kind"], header["experiment"], outcomes, verdicts, outcomes - checked, last)


def _judge_of(header: Record, place: str) -> Judge:
    try:
        return judge_of(header["kind"], header["experiment"], header["settings"])
    except (EvidenceError, KeyError, TypeError, AttributeError) as e:
        raise LogError("LOG_VALUE", place, f"no such judgement: {e}") from e


def _verdict(judge: Judge, record: Record) -> dict[str, Any]:
    logged = record.get("verdict")
    if not isinstance(logged, dict) or "now_s" not in record:
        raise InputError("INPUT_VALUE", "verdict", "lacks a verdict or its time")
    computed: dict[str, Any] = to_json(judge.verdict(check_time("now_s", record["now_s"])))
    found = [text for key in _COMPARED for text in differences(logged.get(key), computed[key], key)]
    if found:
        raise LogError("REPLAY_DIFFERS", "verdict", "; ".join(found[:5]))
    return computed


class LoggedJudgement:
    """A judge whose every input and verdict is logged. Made by :meth:`resume`."""

    def __init__(self, judge: Judge, log: NewLines) -> None:
        self.judge, self.log = judge, log

    @classmethod
    def resume(cls, lines: Iterable[bytes], log: NewLines, name: str = "log") -> Self:
        """Go on where a log ends; its first line is of :func:`~vla_evidence.log.records.header_line`.

        Args:
            lines: all of the log so far.
            log: receives new lines. Store them together with what was done because of them; if that fails, resume again.
            name: of the log, for error messages.

        Raises:
            LogError: as :func:`replay_file`.
        """
        return cls(_replay(read_lines(lines, name), name)[0], log)

    def choose(self, robot: str, episode: str, now_s: float) -> int:
        """Draw which version an episode runs, log and return it. The same again is answered without another record.

        Raises:
            InputError: the judge refuses it; nothing is logged.
            LogError: LOG_VALUE: it cannot be written, and is not judged.
        """
        fields = {"robot": robot, "episode": episode, "now_s": now_s, "version": None}
        return int(self._take({"record": EVENT, "event": "choose", **fields}, answer="version"))

    def outcome(
        self,
        episode: str,
        success: bool,
        now_s: float,
        latency_s: float | None = None,
        scores: Mapping[str, Any] | None = None,
    ) -> Fate:
        """Judge one outcome, log it, and return what became of it; raises as :meth:`choose`."""
        record = {"record": OUTCOME, "episode": episode, "success": success, "now_s": now_s}
        more = {"latency_s": latency_s, "scores": scores}
        return Fate(self._take({**record, **{key: value for key, value in more.items() if value is not None}}))

    def event(self, event: str, **fields: Any) -> Any:
        """Judge and log anything else that a rollout knows of; raises as :meth:`choose`."""
        return self._take({"record": EVENT, "event": event, **fields})

    def verdict(self, now_s: float) -> Verdict:
        """Return the judge's verdict, logged; raises as :meth:`choose`."""
        verdict = self.judge.verdict(check_time("now_s", now_s))
        self.log.write(encode({"record": VERDICT, "now_s": now_s, "verdict": verdict}))
        return verdict

    def _take(self, record: Record, answer: str = "") -> Any:
        record = to_json(record)
        line = encode(record)  # what cannot be written must not be judged
        if answer and self.judge.knows(record["episode"], record["robot"]):
            return take(self.judge, record)
        found = take(self.judge, record)
        self.log.write(encode({**record, answer: found}) if answer else line)
        return found


def differences(logged: Any, computed: Any, name: str = "") -> Iterator[str]:
    """Yield where two JSON values differ, numbers by more than rounding."""
    if isinstance(logged, dict) and isinstance(computed, dict):
        for key in sorted({*logged, *computed}):
            yield from differences(logged.get(key), computed.get(key), f"{name}.{key}" if name else key)
    elif isinstance(logged, list) and isinstance(computed, list) and len(logged) == len(computed):
        for index, pair in enumerate(zip(logged, computed, strict=True)):
            yield from differences(*pair, f"{name}[{index}]")
    elif isinstance(logged, float) or isinstance(computed, float):
        if not _close(logged, computed):
            yield f"{name}: the log says {logged!r}, its data say {computed!r}"
    elif type(logged) is not type(computed) or logged != computed:
        yield f"{name}: the log says {logged!r}, its data say {computed!r}"


def _close(logged: Any, computed: Any) -> bool:
    numbers = isinstance(logged, (int, float)) and isinstance(computed, (int, float))
    try:
        return numbers and math.isclose(logged, computed, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except OverflowError:  # an integer that no float holds
        return False
