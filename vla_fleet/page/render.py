# SPDX-License-Identifier: Apache-2.0
"""Templates into answers. Everything is escaped; nothing but this server's own files may run or load in the browser."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vla_fleet.server.keys import Person

LIVE = "x-live"
"""Header of a request by which an open page keeps itself up to date."""
HERE = Path(__file__).parent
STATIC = HERE / "static"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86400.0


def page(request: Request, template: str, status: int = 200, /, **context: Any) -> Response:
    """Return a page; nothing but 304 if the browser shows it already."""
    person: Person | None = getattr(request.state, "person", None)
    text = _templates.get_template(template).render(person=person, path=request.url.path, **context)
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    if status == 200 and request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return HTMLResponse(text, status, headers)


def _time(time_s: float | None) -> str:
    """Return a time in UTC, in which only the date and the time of day may be torn apart."""
    if not time_s:
        return "never"
    try:
        moment = datetime.datetime.fromtimestamp(time_s, datetime.UTC)
    except (ValueError, OverflowError, OSError):  # no calendar has it; a wrong clock may send it
        return f"{time_s:.0f} s"
    date, clock = moment.strftime("%Y-%m-%d"), moment.strftime("%H:%M:%S")
    return Markup('<time datetime="{0}T{1}Z"><span>{0}</span> <span>{1}</span></time>').format(date, clock)


def lasting(seconds: float) -> str:
    """Return a length of time in words, in its largest unit: "3 min"."""
    for unit_s, name in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds >= unit_s:
            return f"{int(seconds / unit_s):,} {name}"
    return f"{max(0, int(seconds))} s"


def ago(time_s: float, now_s: float) -> str:
    """Return how long ago something was, in steps that do not change with every look."""
    if not time_s:
        return "never"
    return "just now" if now_s - time_s < _MINUTE_S else f"{lasting(now_s - time_s)} ago"


def size(number: float) -> str:
    """Return a number of bytes in its largest decimal unit."""
    for unit in "B kB MB GB".split():  # noqa: SIM905 - single words of capitals are codes
        if number < 1000.0:
            return f"{number:.3g} {unit}"
        number /= 1000.0
    return f"{number:,.3g} TB"


def share(value: float | None) -> str:
    """Return a share in percent."""
    return "–" if value is None else f"{value:.1%}"


_TONES = {
    "good": "COMMITTED DONE INSTALLED WIN_A WIN_B online RUNNING ADVANCE",
    "busy": "OFFERED CHECKING FETCHING VERIFYING PREPARING SWAPPING TRIAL INSTALLING JUDGING ORDERED WAITING ACCEPTED"
    " JOINING LEAVING HOLD CONTINUE QUEUED",
    "warn": "ASKING ASK SILENT ROLLING_BACK INCONCLUSIVE paused holding retired",
    "bad": "FAILED REFUSED REJECTED ROLLED_BACK ROLLBACK ABORTED revoked",
}
_TONE_OF = {word: tone for tone, words in _TONES.items() for word in words.split()}


def _tone(word: str) -> str:
    return _TONE_OF.get(word, "calm")


def _query(values: Mapping[str, Any], **changes: Any) -> str:
    """Return a query string: these values with some changed; empty and missing ones are left out."""
    merged = {key: value for key, value in {**values, **changes}.items() if value not in (None, "", False)}
    return f"?{urlencode(merged)}" if merged else "?"


def _asset(name: str) -> str:
    """Return a file's address; it changes with the file, so that browsers may keep it."""
    return f"/page/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "time": _time, "ago": ago, "lasting": lasting, "size": size, "share": share, "tone": _tone,
        "count": lambda number: f"{number:,}",
    }  # fmt: skip
    made.globals |= {"query": _query, "css": _asset("page.css"), "js": _asset("page.js"), "icon": _asset("icon.svg")}
    return made


_templates = _environment()
