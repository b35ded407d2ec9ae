# SPDX-License-Identifier: Apache-2.0
"""What a check says, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum

from vla_doctor.catalog import RULES
from vla_ros.plain import plain

_WIDEST = 48
"""Column of the findings: longer names push theirs to the right [characters]."""


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    WARN = 1  # works not as well or as safely as it could, or waits for a person
    FAIL = 2  # does not work

    @property
    def word(self) -> str:
        """As printed: a failure must strike the eye."""
        return "FAIL" if self is Level.FAIL else self.name.lower()


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    code: str
    """Key of ``catalog.RULES``; empty if all is well."""
    what: str
    """What was looked at."""
    text: str
    """What was found."""
    remedy: str
    """What to do; empty if there is nothing to do."""

    def line(self, width: int = 0) -> str:
        """Return the finding as one line; ``width`` of the column ``what`` [characters]."""
        text = f"{self.code}: {self.text}" if self.code else self.text
        line = f"{self.level.word:<4}  {self.what:<{width}}  {text}"
        return " ".join([line, f" -> {self.remedy}"]) if self.remedy else line


def ok(what: str, text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, "", plain(what), plain(text), "")


def problem(code: str, what: str, text: str, **names: object) -> Finding:
    """Return a problem of the catalogue; ``names`` fill its remedy."""
    rule = RULES[code]
    return Finding(Level[rule.level], code, plain(what), plain(text), plain(rule.remedy.format(**names)))


def report(findings: Sequence[Finding]) -> str:
    """Return the report for people, a line a finding and a summary."""
    width = min(max((len(f.what) for f in findings), default=0), _WIDEST)
    counts = ", ".join(f"{sum(f.level is level for f in findings)} {level.word}" for level in reversed(Level))
    verdict = {
        Level.OK: "all is well",
        Level.WARN: "nothing failed; see the warnings",
        Level.FAIL: "something does not work",
    }[worst(findings)]
    return "\n".join([*(f.line(width) for f in findings), f"doctor: {counts}: {verdict}"])


def report_json(findings: Sequence[Finding]) -> str:
    """Return the report for programs."""
    rows = [{**asdict(f), "level": f.level.word} for f in findings]
    return json.dumps({"level": worst(findings).word, "exit_status": exit_status(findings), "findings": rows}, indent=1)


def worst(findings: Sequence[Finding]) -> Level:
    """Return the worst level."""
    return max((f.level for f in findings), default=Level.OK)


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 1 if anything failed, else 0."""
    return int(worst(findings) is Level.FAIL)
