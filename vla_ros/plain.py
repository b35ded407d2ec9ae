# SPDX-License-Identifier: Apache-2.0
"""Texts that others see, in logs, on topics and in files: printable, on one line, without what is secret in a URL.

Standard library only: every room may import it, and a worker under any interpreter can.
"""

from __future__ import annotations

import re

HIDDEN = "***"
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/+)?([^?#]*)([?#]?)")
_HOST = re.compile(r"(\[[^\]@]*\]|[^@:/]*)(:\d*)?(/.*)?", re.DOTALL)
_IN_TEXT = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+"
    r"|/[^\s'\"<>?]*\?[^\s'\"<>]+"  # a library that shows no more than path and query
)


def redacted(url: str) -> str:
    """Return a URL without user-info, query and fragment, which may hold a password or a token; also one that is malformed."""
    parts = _PARTS.match(url)
    assert parts is not None  # it matches every text
    scheme, place, mark = parts.groups(default="")
    if "@" in place:
        place = f"{HIDDEN}@{place.rpartition('@')[2]}"
    elif not _HOST.fullmatch(place):  # it may be part of a password
        place = HIDDEN
    return scheme + place + (mark + HIDDEN if mark else "")


def printable(text: str) -> str:
    """Return a name or path as one line that is safe for logs, terminals and ROS strings; nothing in it is redacted."""
    return "".join(c if c.isprintable() else " " if c.isspace() else _UNPRINTABLE for c in text)


def plain(text: str) -> str:
    """Return a text as one printable line; the URLs in it are redacted."""
    return " ".join(_without_secrets(text).split())


def plain_lines(text: str) -> str:
    """Return a text of several lines, such as a traceback, with each of them printable; the URLs in it are redacted."""
    return "\n".join(_without_secrets(line) for line in text.splitlines())


def _without_secrets(text: str) -> str:
    return _IN_TEXT.sub(_redacted_in_text, printable(text))


def _redacted_in_text(match: re.Match[str]) -> str:
    """Redact a URL that a text goes on after: ``http://host/x?token: the server answered 500``."""
    url = match[0].rstrip(":;,.!)]")
    return redacted(url) + match[0][len(url) :]
