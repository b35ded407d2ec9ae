# SPDX-License-Identifier: Apache-2.0
"""Logs of judgements, kept in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from vla_evidence.log.records import NewLines, header_line
from vla_evidence.log.replay import LoggedJudgement

_Kind = TypeVar("_Kind", bound=LoggedJudgement)


def begin(of: type[_Kind], path: Path, kind: str, experiment: str, settings: dict[str, Any]) -> _Kind:
    """Begin a log in a file, or go on where it ends."""
    if not path.exists():
        path.write_bytes(header_line(kind, experiment, settings))
    with path.open("rb") as lines:
        return of.resume(lines, NewLines(), path.name)


def keep(judgement: LoggedJudgement, path: Path) -> None:
    """Append what is new."""
    with path.open("ab") as file:
        file.writelines(judgement.log.take())
