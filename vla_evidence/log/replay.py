# SPDX-License-Identifier: Apache-2.0
"""Compute every verdict and every assignment of a log again: the same numbers, or REPLAY_DIFFERS.

What that proves: the verdicts follow from the log's records, and the assignments from the experiment's name. What it does not:
that the records are what the robots did, or that none is missing: verdicts may have been cut out, outcomes that counted no more,
and whatever stood behind the last verdict. (Before it, an outcome that counted shows; in an A/B test also an assignment.)

A :class:`LoggedJudgement` judges and writes the log as it goes; opened again after a crash it is where the log ends, for it gets
there by replaying it. So the log is the judge's memory, and what anybody recomputes from it is what the judge saw.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_evidence.errors import EvidenceError, InputError, LogError
from vla_evidence.log.judgements import Judgement, judgement_of, take
from vla_evidence.log.records import HEADER, OUTCOME, VERDICT, LogWriter, Record, Warn, encode, read_log, to_json

_TOLERANCE = 1e-9
"""Relative: logarithms of different machines agree to about 1e-15 each."""


@dataclass(frozen=True)
class Step:
    """One verdict of a log, computed again."""

    line: int
    outcomes: int
    """Before it."""
    verdict: dict[str, Any]


@dataclass(frozen=True)
class Replay:
    """A whole log, computed again: it says what it said.

    Attributes:
        kind, experiment: of the judgement.
        outcomes, verdicts: how many.
        unchecked: outcomes behind the last verdict: no number in the log rests on them.
        drawn: the experiment's name gave every assignment; false: the header lists them.
        last: the last verdict.
    """

    kind: str
    experiment: str
    outcomes: int
    verdicts: int
    unchecked: int
    drawn: bool
    last: dict[str, Any] | None

    def __str__(self) -> str:
        counted = f"{self.outcomes:,} outcomes, {self.verdicts:,} verdicts of {self.kind} {self.experiment!r}"
        verdicts = "every verdict is what its data say" if self.verdicts else "nothing was checked: no verdict"
        if self.unchecked and self.verdicts:
            verdicts += f" ({self.unchecked:,} outcomes came after the last)"
        drawn = "assignments are as drawn" if self.drawn else "assignments were given, not drawn: unchecked"
        return f"{counted}: {verdicts}; {drawn}"


def replay_file(
    path: str | os.PathLike[str], *, show: Callable[[Step], None] | None = None, warn: Warn | None = None
) -> Replay:
    """Compute a log's verdicts and assignments again, in bounded memory.

    Args:
        path: the log.
        show: is given each verdict as recomputed.
        warn: is told of a torn last line.

    Raises:
        LogError: LOG_UNREADABLE: no such file; LOG_SYNTAX: a line that is no record; LOG_VALUE: a record that the judge refuses;
            REPLAY_DIFFERS: a verdict or an assignment is another one than the log says.
    """
    outcomes = verdicts = checked = 0
    last: dict[str, Any] | None = None
    judgement: Judgement | None = None
    try:
        with Path(path).open("rb") as stream:
            for number, record in read_log(stream, os.fspath(path), warn):
                place = f"{os.fspath(path)}:{number}"
                if judgement is None:
                    judgement = _judgement(record, place)
                elif record["record"] == VERDICT:
                    verdicts, checked = verdicts + 1, outcomes
                    last = _verdict(judgement, record, place)
                    if show is not None:
                        show(Step(number, outcomes, last))
                else:
                    outcomes += record["record"] == OUTCOME
                    _apply(judgement, record, place)
    except OSError as e:
        raise LogError("LOG_UNREADABLE", os.fspath(path), e.strerror or str(e)) from e
    assert judgement is not None  # read_log refuses a log without a header
    return Replay(judgement.kind, judgement.experiment, outcomes, verdicts, outcomes - checked, judgement.drawn, last)


class LoggedJudgement:
    """A judge whose every input and verdict is logged.

    Args:
        path: of the log; an existing one of the same judgement is replayed and continued.
        kind, experiment, settings: see :func:`vla_evidence.log.judgements.judgement_of`.
        warn: is told of a torn last line, which is cut off.

    Raises:
        InputError: settings that cannot be.
        LogError: as :func:`replay_file`; LOG_VALUE: the file is the log of another judgement; LOG_NOT_WRITTEN.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str,
        experiment: str,
        settings: Mapping[str, Any],
        *,
        warn: Warn | None = None,
    ) -> None:
        header = to_json({"kind": kind, "experiment": experiment, "settings": settings})
        self._judgement = judgement_of(header["kind"], header["experiment"], header["settings"])
        self._log = LogWriter(path, kind, experiment, settings, warn=warn)
        self._behind = False  # the judge knows what the log does not
        try:
            for number, record in self._log.records():
                place = f"{os.fspath(path)}:{number}"
                if record["record"] == VERDICT:
                    _verdict(self._judgement, record, place)
                elif record["record"] != HEADER:
                    _apply(self._judgement, record, place)
        except BaseException:
            self._log.close()
            raise

    @property
    def judge(self) -> Any:
        """The judge itself, for reading."""
        return self._judgement.judge

    def outcome(self, **fields: Any) -> None:
        """Judge one outcome, and log it.

        Raises:
            InputError: the judge refuses it; nothing is logged.
            LogError: LOG_VALUE: it cannot be written, and is not judged; LOG_NOT_WRITTEN: the judge knows what the log does not:
                open it again, and tell it again. Nothing else is possible then.
        """
        self._take({"record": OUTCOME, **to_json(fields)})

    def event(self, event: str, **fields: Any) -> None:
        """Judge something that is no outcome (a stage begins, time passes), and log it; raises as :meth:`outcome`."""
        self._take({"record": "event", "event": event, **to_json(fields)})

    def verdict(self, **fields: Any) -> Any:
        """Return the judge's verdict, logged; ``fields``: what it depends on beside the past (such as the time).

        Raises:
            InputError: the judge refuses them; LogError: LOG_VALUE; LOG_NOT_WRITTEN.
        """
        inputs = to_json(fields)
        self._refuse_if_behind()
        with self._behind_unless(InputError):  # time has passed for the judge
            verdict = self._judgement.verdict(inputs)
            line = encode({"record": VERDICT, "inputs": inputs, "verdict": verdict})
            self._log.write(line, sync=True)
        return verdict

    def _take(self, record: Record) -> None:
        line = encode(record)  # what cannot be written must not be judged
        self._refuse_if_behind()
        take(self._judgement, record)
        with self._behind_unless():
            self._log.write(line)

    @contextlib.contextmanager
    def _behind_unless(self, *refusals: type[Exception]) -> Iterator[None]:
        try:
            yield
        except refusals:
            raise
        except BaseException:
            self._behind = True
            raise

    def _refuse_if_behind(self) -> None:
        if self._behind:
            raise LogError("LOG_NOT_WRITTEN", "log", "the judge knows what the log does not: open it again")

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def __enter__(self) -> LoggedJudgement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def differences(logged: Any, computed: Any, name: str = "") -> Iterator[str]:
    """Yield where two JSON values differ, numbers by more than rounding."""
    if isinstance(logged, dict) and isinstance(computed, dict):
        for key in sorted({*logged, *computed}):
            of_key = f"{name}.{key}" if name else key
            if key in logged and key in computed:
                yield from differences(logged[key], computed[key], of_key)
            else:
                yield f"{of_key}: only the {'log' if key in logged else 'computed verdict'} has it"
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


def _judgement(header: Record, place: str) -> Judgement:
    try:
        return judgement_of(header["kind"], header["experiment"], header["settings"])
    except (EvidenceError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise LogError("LOG_VALUE", place, f"no such judgement: {e}") from e


def _apply(judgement: Judgement, record: Record, place: str) -> None:
    try:
        take(judgement, record)
    except LogError as e:
        raise LogError(e.code, f"{place}: {e.field}", e.reason) from e
    except EvidenceError as e:
        raise LogError("LOG_VALUE", place, f"the judge refuses it: {e}") from e


def _verdict(judgement: Judgement, record: Record, place: str) -> dict[str, Any]:
    try:
        logged, inputs = record["verdict"], record["inputs"]
        computed = to_json(judgement.verdict(inputs))
    except InputError as e:
        raise LogError("LOG_VALUE", place, f"the judge refuses it: {e}") from e
    except EvidenceError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise LogError("LOG_VALUE", place, f"the judge refuses it: {type(e).__name__}: {e}") from e
    found = list(differences(logged, computed))
    if found:
        raise LogError("REPLAY_DIFFERS", place, "; ".join(found[:5]))
    return dict(computed)
