# SPDX-License-Identifier: Apache-2.0
"""The log of a judgement: everything that a verdict rests on, one JSON object a line, so that anybody can compute it again.

::

    {"record": "header", "schema": 2, "kind": "canary", "experiment": "pick-1.2.0", "settings": {…}}
    {"record": "event", "event": "begin_stage", "stage": 0, "robots": ["arm-01", …], "now_s": 0.0}
    {"record": "event", "event": "choose", "robot": "arm-07", "episode": "…", "now_s": 60.0, "version": 1}
    {"record": "outcome", "episode": "…", "success": true, "now_s": 90.0, "latency_s": 2.9}
    {"record": "verdict", "now_s": 90.0, "verdict": {"decision": "HOLD", …}}

The header comes first and holds every setting, with the salt of the assignment; then outcomes and verdicts in the order in which
the judge saw and gave them. Each record is written and flushed as a whole line. A crash or a full disk can tear the last line
only: readers leave it out with a warning, and :class:`LogWriter` cuts it off before it goes on. Anything else that is no such
record is an error with its line number. Nothing but the current line is kept in memory.

The lines need no file: a server keeps them in its database (:class:`NewLines`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vla_evidence.errors import LogError, shown

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
    try:
        return _plain(value)
    except RecursionError as e:
        raise LogError("LOG_VALUE", "record", "lists in lists without end cannot be written") from e


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # of NumPy
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise LogError("LOG_VALUE", "record", f"{value} cannot be written")
        return value
    raise LogError("LOG_VALUE", "record", f"a {type(value).__name__} cannot be written")


def encode(record: Record) -> bytes:
    """Return a record as a line.

    Raises:
        LogError: LOG_VALUE: something in it cannot be written, or it is too long.
    """
    try:
        line = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as e:
        raise LogError("LOG_VALUE", "record", f"{e.object[e.start : e.end]!r} is not valid Unicode") from e
    except LogError:
        raise
    except ValueError as e:  # an integer of more digits than Python writes
        raise LogError("LOG_VALUE", "record", f"cannot be written: {e}") from e
    if len(line) > MAX_LINE_BYTES:
        raise LogError("LOG_VALUE", "record", f"is longer than {MAX_LINE_BYTES} bytes")
    return line


class LogWriter:
    """Writes one log; goes on with one that is there if its header is the same.

    Args:
        path: the file; made if missing.
        kind, experiment, settings: of the judge (:mod:`vla_evidence.log.judgements`).
        warn: receives the warning of a torn last line, which is cut off; None: ``warnings.warn``.

    Raises:
        LogError: LOG_VALUE: the file is there with another header, or a setting cannot be written; LOG_SYNTAX: it is no log;
            LOG_NOT_WRITTEN: it cannot be opened or written.
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
        self._path = Path(path)
        first_line = header_line(kind, experiment, settings)
        header = _parse(first_line, "header")
        try:
            self._file = self._path.open("a+b", buffering=0)
        except OSError as e:
            raise self._not_written(e) from e
        try:
            self._lock()
            self._size = self._cut_torn_line(warn or _warn)
            if self._size == 0:
                self.write(first_line, sync=True)
            elif next(self.records())[1] != header:
                raise LogError("LOG_VALUE", f"{self._path}:1", _other_settings(next(self.records())[1], header))
        except BaseException:
            self._file.close()
            raise

    def write(self, line: bytes, *, sync: bool = False) -> None:
        """Append a line of :func:`encode`, whole or not at all; ``sync``: and bring the file onto the disk.

        Raises:
            LogError: LOG_NOT_WRITTEN.
        """
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            if sync:
                os.fsync(self._file.fileno())
        except OSError as e:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise self._not_written(e) from e
        self._size += len(line)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield (line number, record) of what is there, header first."""
        with self._path.open("rb") as stream:
            yield from read_log(stream, str(self._path))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise self._not_written(e) from e

    def _not_written(self, e: OSError) -> LogError:
        reason = "another process writes it" if isinstance(e, BlockingIOError) else e.strerror or str(e)
        return LogError("LOG_NOT_WRITTEN", str(self._path), reason)

    def _cut_torn_line(self, warn: Warn) -> int:
        """Return the size without the torn line."""
        size = whole = self._file.seek(0, os.SEEK_END)
        while whole > 0:
            begin = max(0, whole - MAX_LINE_BYTES)
            self._file.seek(begin)
            newline = self._file.read(whole - begin).rfind(b"\n")
            whole = begin + newline + 1
            if newline >= 0:
                break
        if whole < size:
            warn(f"{self._path}: its last line was torn; {size - whole} bytes are cut off")
            self._file.truncate(whole)
        return whole


class NewLines:
    """What a judgement adds to a log whose lines somebody else keeps, for example a database."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def write(self, line: bytes, *, sync: bool = False) -> None:
        """Add a line of :func:`encode`."""
        self._lines.append(line)

    def take(self) -> list[bytes]:
        """Return the lines since the last call; whoever keeps the log appends them."""
        lines, self._lines = self._lines, []
        return lines

    def close(self) -> None:
        """Nothing is open."""


def header_line(kind: str, experiment: str, settings: Mapping[str, Any]) -> bytes:
    """Return the first line of a log; raises as :func:`encode`."""
    header = {"record": HEADER, "schema": SCHEMA, "kind": kind, "experiment": experiment, "settings": settings}
    return encode(header)


def read_log(stream: Any, name: str = "log", warn: Warn | None = None) -> Iterator[tuple[int, Record]]:
    """Return an iterator of (line number, record) of a binary stream; the header is checked and comes first.

    Args:
        stream: open for reading in binary mode, at its beginning.
        name: for error messages.
        warn: receives the warning of a torn last line; None: ``warnings.warn``.

    Raises:
        LogError: LOG_SYNTAX: a line that is no record (its number is in ``field``), or no header at the beginning.
    """
    return read_lines(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), name, warn)


def read_lines(
    lines: Iterable[bytes], name: str = "log", warn: Warn | None = None
) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record) of a log's lines, as :func:`read_log`."""
    number = 0
    for number, line in enumerate(lines, start=1):
        place = f"{name}:{number}"
        if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES and number > 1:
            (warn or _warn)(f"{place}: the last line is torn and left out")
            return
        record = _parse(line, place)
        if (record["record"] == HEADER) != (number == 1):
            raise LogError("LOG_SYNTAX", place, "a log begins with its header, and has one")
        if number == 1 and record.get("schema") != SCHEMA:
            reason = f"has schema {record.get('schema')!r}, and this release reads {SCHEMA}: use the release that wrote it"
            raise LogError("LOG_SYNTAX", place, reason)
        yield number, record
    if number == 0:
        raise LogError("LOG_SYNTAX", name, "is empty: not even a header")


def _other_settings(written: Any, wanted: Any, name: str = "") -> str:
    """Return in what one header differs from another."""
    if isinstance(written, dict) and isinstance(wanted, dict):
        for key in sorted({*written, *wanted}):
            if written.get(key) != wanted.get(key):
                return _other_settings(written.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    return f"was written with other settings: {name} {shown(written)}, now {shown(wanted)}"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


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
