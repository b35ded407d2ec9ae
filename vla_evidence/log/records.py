# SPDX-License-Identifier: Apache-2.0
"""The log of a judgement: everything that a verdict rests on, one JSON object a line, so that anybody can compute it again.

::

    {"record": "header", "schema": 2, "kind": "canary", "experiment": "pick-1.2.0", "settings": {…}}
    {"record": "event", "event": "begin_stage", "stage": 0, "robots": ["arm-01", …], "now_s": 0.0}
    {"record": "event", "event": "choose", "robot": "arm-07", "episode": "…", "now_s": 60.0, "version": 1}
    {"record": "outcome", "episode": "…", "success": true, "now_s": 90.0, "latency_s": 2.9}
    {"record": "verdict", "now_s": 90.0, "verdict": {"decision": "HOLD", …}}

The header comes first and holds every setting, with the salt of the assignment; then outcomes and verdicts in the order in which
the judge saw and gave them. The caller keeps the lines, in a database or a file, and appends what :class:`NewLines` hands over.
A crash can tear the last line of a file: readers leave it out with a warning. Any other line that is not such a record is an error
with its line number. Nothing but the current line is kept in memory.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any

from vla_evidence.errors import LogError

SCHEMA = 2
HEADER, OUTCOME, EVENT, VERDICT = "header", "outcome", "event", "verdict"
_RECORDS = (HEADER, OUTCOME, EVENT, VERDICT)
MAX_LINE_BYTES = 1 << 20
"""A longer line is no record of ours."""

Record = dict[str, Any]
Warn = Callable[[str], None]


def to_json(value: Any) -> Any:
    """Return dataclasses, enums, mappings, sequences and NumPy's values as JSON values.

    Raises:
        LogError: LOG_VALUE: a number that is not finite, or something JSON has no word for.
    """
    return json.loads(_dumps(value))


def _dumps(value: Any, **how: Any) -> str:
    try:
        return json.dumps(value, default=_plain, allow_nan=False, **how)
    except (TypeError, ValueError, RecursionError) as e:
        raise LogError("LOG_VALUE", "record", f"cannot be written: {e}") from e


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # of NumPy
        return value.tolist()
    raise TypeError(f"JSON has no word for a {type(value).__name__}")


def encode(record: Record) -> bytes:
    """Return a record as a line.

    Raises:
        LogError: LOG_VALUE: something in it cannot be written, or it is too long.
    """
    try:
        line = _dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as e:
        raise LogError("LOG_VALUE", "record", f"{e.object[e.start : e.end]!r} is not valid Unicode") from e
    if len(line) > MAX_LINE_BYTES:
        raise LogError("LOG_VALUE", "record", f"is longer than {MAX_LINE_BYTES} bytes")
    return line


class NewLines:
    """Lines that a judgement adds to its log; the caller takes and stores them."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        """Add a line of :func:`encode`."""
        self._lines.append(line)

    def take(self) -> list[bytes]:
        """Return the lines since the last call."""
        lines, self._lines = self._lines, []
        return lines


def header_line(kind: str, experiment: str, settings: Mapping[str, Any]) -> bytes:
    """Return the first line of a log; raises as :func:`encode`."""
    header = {"record": HEADER, "schema": SCHEMA, "kind": kind, "experiment": experiment, "settings": settings}
    return encode(header)


def read_lines(lines: Iterable[bytes], name: str = "log", warn: Warn | None = None) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record) of a log's lines; the header is checked and comes first.

    Args:
        lines: each with its line feed.
        name: for error messages.
        warn: receives the warning of a torn last line; None: ``warnings.warn``.

    Raises:
        LogError: LOG_SYNTAX: a line that is no record (its number is in ``field``), or no header at the beginning.
    """
    number = 0
    for number, line in enumerate(lines, start=1):
        place = f"{name}:{number}"
        if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES and number > 1:
            (warn or warnings.warn)(f"{place}: the last line is torn and left out")
            return
        record = _parse(line, place)
        if (record["record"] == HEADER) != (number == 1):
            raise LogError("LOG_SYNTAX", place, "a log begins with its header, and has one")
        if number == 1 and record.get("schema") != SCHEMA:
            reason = f"has schema {record.get('schema')!r}, this release reads {SCHEMA}: use the release that wrote it"
            raise LogError("LOG_SYNTAX", place, reason)
        yield number, record
    if number == 0:
        raise LogError("LOG_SYNTAX", name, "is empty: not even a header")


def _parse(line: bytes, place: str) -> Record:
    if len(line) > MAX_LINE_BYTES:
        raise LogError("LOG_SYNTAX", place, f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        text = line.decode("utf-8")
        record = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as e:
        raise LogError("LOG_SYNTAX", place, f"is not JSON: {e}") from e
    if not isinstance(record, dict) or record.get("record") not in _RECORDS:
        raise LogError("LOG_SYNTAX", place, f'has no "record" of {", ".join(_RECORDS)}')
    return record


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word} must be a finite number")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is there twice")
    return record
