# SPDX-License-Identifier: Apache-2.0
"""Events of the control process to the node: JSON objects, sent without ever waiting.

| ``type`` | fields |
|---|---|
| ``STARTED`` | ``pid, fifo`` (priority, 0 = not allowed), ``mlock``, ``pinned`` (to ``control_cpus``) |
| ``START_FAILED`` | ``error_code, message``; the process ends |
| ``ENABLED``, ``DISABLED`` | |
| ``ENABLE_FAILED`` | ``error_code`` (COMMAND_TOPIC_TAKEN), ``message`` |
| ``SWAPPED`` | ``swap_id, generation, previous, at, tick, latency_s, acted, seam_jump, seam_channel, typical_step``, counts |
| ``SWAP_FAILED`` | ``swap_id, generation, error_code, message``: the old generation goes on |
| ``VACATED`` | ``swap_id, generation, tick``: that generation has left; the loop holds LOADING_IN_PLACE |
| ``SPAN`` | ``span_id`` and the counts: of a swap one second after it, of others when they end |
| ``HOLD`` | ``reason`` (never NO_POLICY), ``latched, tick, generation, message``; if known ``channel, value, limit`` |
| ``RESUMED`` | ``reason, held_s, tick, generation``: the first action after a hold went out |
| ``RESUME_ACCEPTED``, ``RESUME_REFUSED`` | ``reason``; ``error_code, message`` |
| ``TAKEN_OVER``, ``GIVEN_BACK`` | ``tick``: an operator's actions are commanded from now on, or the policy's |
| ``MOTION_DISABLED``, ``MOTION_ENABLED`` | ``tick`` |
| ``EPISODE`` | ``episode, tick``: the loop has seen the new episode |
| ``REFUSED`` | ``message_type, error_code, message``: a message that could not be followed |

Counts: ``ticks, missed, starved, clamped, worst_late_ms, histogram`` since ``begin_span(swap_id)`` (or the swap's request).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from vla_policy_node.ipc.channel import Channel, ChannelFullError

MAX_WAITING = 256


class EventQueue:
    """Sends at once if the node reads; else keeps the newest ``MAX_WAITING``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)

    def put(self, event: dict[str, Any]) -> None:
        """Queue an event; :meth:`flush` sends it."""
        self._waiting.append(event)

    def flush(self) -> None:
        """Send what can be sent without waiting. Raises ChannelClosedError when the node has gone."""
        while self._waiting:
            try:
                self._channel.send(self._waiting[0], block=False)
            except ChannelFullError:
                return
            self._waiting.popleft()
