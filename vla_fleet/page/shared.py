# SPDX-License-Identifier: Apache-2.0
"""What takes long to find out is found out once for everybody who looks, and a tenth of the time at most goes into it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

_T = TypeVar("_T")
_REST = 10.0
"""So many times as long as it took to find something out, it is not looked up again."""
_REMEMBERED = 256


class _Answer:
    """What was found, or is being looked for; good until ``until_s`` by the machine's clock."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task, self.until_s = task, math.inf


class Shared:
    """Answers that several people get. Their age is measured on the machine's clock: it is the machine's time that is spared."""

    def __init__(self) -> None:
        self._answers: dict[Any, _Answer] = {}

    async def get(self, key: Any, find: Callable[[], Coroutine[Any, Any, _T]], *, at_least_s: float = 0.0) -> _T:
        """Return what ``find`` returned lately, or call it.

        Args:
            key: of the question.
            find: answers it; what it raises, everybody gets who waits for it, and nobody later.
            at_least_s: so long an answer is good.
        """
        answer, now_s = self._answers.get(key), time.monotonic()
        if answer is None or answer.until_s <= now_s:
            if len(self._answers) >= _REMEMBERED:
                self._answers = {k: a for k, a in self._answers.items() if a.until_s > now_s}
            answer = self._answers[key] = _Answer(asyncio.create_task(find()))
            answer.task.add_done_callback(partial(self._found, key, answer, now_s, at_least_s))
        return cast(_T, await asyncio.shield(answer.task))  # others may wait for it when this one is gone

    def _found(self, key: Any, answer: _Answer, began_s: float, at_least_s: float, _: object) -> None:
        now_s = time.monotonic()
        answer.until_s = now_s + max(at_least_s, _REST * (now_s - began_s))
        if (answer.task.cancelled() or answer.task.exception()) and self._answers.get(key) is answer:
            del self._answers[key]

    def forget(self, *keys: Any) -> None:
        """Find these out again next time: somebody has just changed them."""
        for key in keys:
            self._answers.pop(key, None)
