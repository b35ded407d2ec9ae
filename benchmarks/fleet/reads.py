# SPDX-License-Identifier: Apache-2.0
"""A person who looks: status reads one after the other while the server works, and how long each takes."""

from __future__ import annotations

import http.client
import itertools
import time
from collections.abc import Sequence
from contextlib import closing
from urllib.parse import urlencode, urlsplit

from benchmarks.processes import Beside
from benchmarks.results import percentile

_EVERY_S = 0.02
_OVERVIEW_EVERY = 10


class Reads(Beside):
    """While ``with`` lasts: ``GET /v1/robots/NAME`` fifty times a second, and the page's overview five times a second."""

    def __init__(self, server: str, key: str, robots: Sequence[str]) -> None:
        super().__init__()
        self._server, self._key, self._robots = urlsplit(server).netloc, key, robots
        self._robot_s: list[float] = []
        self._overview_s: list[float] = []

    def p99_ms(self) -> dict[str, float]:
        """Return the 99th percentiles [ms]."""
        return {
            "robot_p99_ms": 1000 * percentile(self._robot_s, 0.99),
            "overview_p99_ms": 1000 * percentile(self._overview_s, 0.99),
        }

    def _work(self) -> None:
        with closing(http.client.HTTPConnection(self._server, timeout=60.0)) as line:
            self._read_on(line)

    def _read_on(self, line: http.client.HTTPConnection) -> None:
        form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
        line.request("POST", "/sign-in", urlencode({"key": self._key, "next": "/"}), form)
        answer = line.getresponse()
        answer.read()
        cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        began_s = time.monotonic()
        for number, robot in enumerate(itertools.cycle(self._robots)):
            if self._over.wait(max(0.0, began_s + number * _EVERY_S - time.monotonic())) and number:
                return  # something was read in any case
            self._get(line, f"/v1/robots/{robot}", {"Authorization": f"Bearer {self._key}"}, self._robot_s)
            if number % _OVERVIEW_EVERY == 0:
                self._get(line, "/", {"Cookie": cookie}, self._overview_s)

    def _get(self, line: http.client.HTTPConnection, path: str, headers: dict[str, str], times: list[float]) -> None:
        began_s = time.monotonic()
        line.request("GET", path, headers=headers)
        answer = line.getresponse()
        answer.read()
        times.append(time.monotonic() - began_s)
        if answer.status != 200:
            raise RuntimeError(f"GET {path} was answered with {answer.status}")
