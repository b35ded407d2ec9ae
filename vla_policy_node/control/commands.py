# SPDX-License-Identifier: Apache-2.0
"""What the node may ask of the loop: one method a message, between ticks. A bad message is answered, never fatal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vla_policy_node.contract.model import Contract
from vla_policy_node.control.counters import Spans
from vla_policy_node.control.generation import Generation
from vla_policy_node.control.limits import Limiter
from vla_policy_node.control.loop import ControlLoop
from vla_policy_node.control.swap import UPDATE, PendingSwap
from vla_policy_node.control.vacancy import Vacancy
from vla_policy_node.errors import ControlError, PolicyNodeError
from vla_policy_node.ipc.arena import ArenaError
from vla_policy_node.ipc.generation import GenerationHandle

MAX_GENERATIONS = 16
_MAX_TIMEOUT_S = 24 * 3600.0


class Commands:
    """Applies messages to a loop."""

    def __init__(self, loop: ControlLoop, spans: Spans, check_sink: Callable[[], None]) -> None:
        """``check_sink`` raises PolicyNodeError if the command topic is not ours alone; it is called while inactive."""
        self._loop, self._spans, self._check_sink = loop, spans, check_sink
        self._contract: Contract = loop.contract
        self._generations: dict[int, Generation] = {}
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "remove_generation": self._remove,
            "activate": self._activate,
            "vacate": self._vacate,
            "loading_failed": lambda m: loop.give_up_loading(),
            "cancel_activation": self._cancel,
            "enable": self._enable,
            "episode_missing": self._episode_missing,
            "resume": self._resume,
            "take_over": lambda m: loop.take_over(on=bool(m["on"])),
            "begin_span": lambda m: self._spans.begin(_text(m, "span_id")),
            "end_span": self._end_span,
        }

    def apply(self, message: Any, fds: Sequence[int], now_ns: int) -> None:
        """Follow a message; answer REFUSED if that is impossible. Descriptors that are not used are closed."""
        self._loop.now_ns = now_ns
        kind = message.get("type") if isinstance(message, dict) else None
        try:
            if kind == "add_generation":
                fds = self._add(message, fds)
            elif kind in self._handlers:
                self._handlers[kind](message)
            else:
                raise ControlError("MESSAGE_UNKNOWN", f"message type {kind!r}")
        except PolicyNodeError as e:
            self._refuse(kind, e.code, e.message)
        except ArenaError as e:
            self._refuse(kind, e.code, str(e))
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as e:
            self._refuse(kind, "MESSAGE_INVALID", f"{type(e).__name__}: {e}")
        finally:
            for fd in fds:
                os.close(fd)

    def _refuse(self, kind: Any, code: str, text: str) -> None:
        self._loop.emit({"type": "REFUSED", "message_type": str(kind), "error_code": code, "message": text})

    # -- generations -----------------------------------------------------------------------------------------------

    def _add(self, message: dict[str, Any], fds: Sequence[int]) -> Sequence[int]:
        """Return the descriptors that were not taken."""
        contract = self._contract
        fields = message["handle"]
        if fields["id"] in self._generations or len(self._generations) >= MAX_GENERATIONS:
            raise ControlError(
                "GENERATION_REFUSED",
                f"generation {fields['id']} is known already, or there are {MAX_GENERATIONS} others",
            )
        if fields["action_dim"] != len(contract.channels) or not 1 <= fields["execute"] <= fields["horizon"] <= 10_000:
            raise ControlError("GENERATION_REFUSED", "its action dimension or horizon does not fit")
        limits = [c.limits for c in contract.channels]
        if message["limits"] is not None:
            limits = [own.tightened(theirs) for own, theirs in zip(limits, message["limits"], strict=True)]
        limiter = Limiter(limits, [c.name for c in contract.channels])
        relative = np.array([c.mode == "relative" for c in contract.channels])
        latency_s = min(max(float(message["latency_s"]), 0.0), 60.0)
        handle = GenerationHandle.from_message(fields, fds)
        self._generations[handle.id] = Generation(handle, limiter, relative, self._loop.period_ns, latency_s)
        return ()

    def _remove(self, message: dict[str, Any]) -> None:
        loop = self._loop
        generation = self._known(message)
        if loop.pending is not None and loop.pending.generation is generation:
            loop.fail_swap("GENERATION_LOST", "the worker of the new generation has ended")
        if loop.active is generation:
            loop.active, loop.lost = None, True
            loop.latch("WORKER_LOST")
            if loop.vacancy is not None:
                loop.vacate(loop.vacancy)  # nothing acts: there is no boundary to wait for
        del self._generations[generation.id]
        generation.close()

    def _known(self, message: dict[str, Any]) -> Generation:
        generation = self._generations.get(message["generation"])
        if generation is None:
            raise ControlError("GENERATION_UNKNOWN", f"generation {message['generation']!r} is not known")
        return generation

    # -- swaps -----------------------------------------------------------------------------------------------------

    def _activate(self, message: dict[str, Any]) -> None:
        loop, at, swap_id = self._loop, _text(message, "at"), _text(message, "swap_id")
        timeout_ns = int(min(float(message["timeout_s"]), _MAX_TIMEOUT_S) * 1e9)
        try:
            generation = self._known(message)
            cause = str(message.get("cause", UPDATE))
            self._check_swap(at, cause)
        except ControlError as e:
            failed = {"type": "SWAP_FAILED", "swap_id": swap_id, "generation": message["generation"]}
            loop.emit({**failed, "error_code": e.code, "message": e.message})
            return
        if loop.pending is not None:
            loop.fail_swap("SUPERSEDED", "another generation was activated at NOW")
        self._spans.begin(swap_id)
        asked_ns, now_ns = int(message["asked_ns"]), loop.now_ns
        episode = int(message.get("episode", loop.episode or 0))
        swap = PendingSwap(swap_id, generation, at, asked_ns, now_ns + timeout_ns, episode, cause)
        still = loop.motion_disabled or loop.reasons.blocked
        if loop.active is generation:
            loop.swapped = (swap, generation.id, None)  # it is the acting one already
        elif not loop.enabled or (still and (at == "NOW" or loop.active is None)):
            loop.swap_at_standstill(swap)
        else:
            generation.forget()
            loop.pending = swap

    def _check_swap(self, at: str, cause: str) -> None:
        loop = self._loop
        if at not in ("CHUNK", "EPISODE", "REST", "NOW"):
            raise ControlError("SWAP_BOUNDARY_UNKNOWN", f"at={at!r}")
        if at != "NOW" and loop.lost:
            raise ControlError("GENERATION_LOST", "the generation that acted is lost: only NOW can replace it")
        if at != "NOW" and loop.pending is not None:
            raise ControlError("SWAP_IN_PROGRESS", f"swap {loop.pending.swap_id} is pending")
        at_once = at == "NOW" or loop.active is None
        if loop.motion_disabled and not (at_once and loop.may_swap_without_motion(cause)):
            raise ControlError("MOTION_DISABLED", "no swap while motion is disabled")

    def _vacate(self, message: dict[str, Any]) -> None:
        """Let the acting generation leave at a boundary, so that another can be loaded in its place."""
        loop, at, swap_id = self._loop, _text(message, "at"), _text(message, "swap_id")
        timeout_ns = int(min(float(message["timeout_s"]), _MAX_TIMEOUT_S) * 1e9)
        episode, cause = int(message.get("episode", loop.episode or 0)), _text(message, "cause")
        vacancy = Vacancy(swap_id, at, loop.now_ns + timeout_ns, episode, cause)
        if at not in ("EPISODE", "REST", "NOW"):
            raise ValueError(f"at={at!r}")
        if loop.motion_disabled and not vacancy.is_way_back:
            loop.vacancy = vacancy
            loop.fail_vacancy("MOTION_DISABLED", "no swap while motion is disabled")
        elif at == "NOW" or loop.active is None or not loop.enabled or loop.motion_disabled:
            loop.vacate(vacancy)
        else:
            loop.vacancy = vacancy

    def _cancel(self, message: dict[str, Any]) -> None:
        vacancy = self._loop.vacancy
        if vacancy is not None and vacancy.swap_id == message["swap_id"]:
            self._loop.fail_vacancy("CANCELLED", "the swap was taken back")
        pending = self._loop.pending
        if pending is not None and pending.swap_id == message["swap_id"]:
            self._loop.fail_swap("CANCELLED", "the swap was taken back")

    def _end_span(self, message: dict[str, Any]) -> None:
        after_s = min(max(float(message["after_s"]), 0.0), _MAX_TIMEOUT_S)
        self._spans.end(_text(message, "span_id"), self._loop.now_ns + int(after_s * 1e9))

    # -- motion ----------------------------------------------------------------------------------------------------

    def _enable(self, message: dict[str, Any]) -> None:
        loop = self._loop
        if not message["enabled"]:
            loop.fail_swap("INACTIVE", "the node was deactivated")
            loop.stop_waiting_to_vacate("INACTIVE", "the node was deactivated")
            loop.stand_still()
            loop.enabled = loop.motion_disabled = False
            loop.emit({"type": "DISABLED"})
            return
        if loop.enabled:
            loop.emit({"type": "ENABLED"})
            return
        try:
            self._check_sink()  # may take a moment: nothing is commanded yet
        except PolicyNodeError as e:
            loop.emit({"type": "ENABLE_FAILED", "error_code": e.code, "message": e.message})
            return
        loop.begin()
        loop.emit({"type": "ENABLED"})

    def _episode_missing(self, message: dict[str, Any]) -> None:
        self._loop.reasons.episode_missing = bool(message["missing"])

    def _resume(self, message: dict[str, Any]) -> None:
        loop = self._loop
        if loop.motion_disabled:
            text = "motion is disabled; resume when it is enabled again"
            loop.emit({"type": "RESUME_REFUSED", "error_code": "MOTION_DISABLED", "message": text})
        elif not loop.enabled:
            text = "the node is not active"
            loop.emit({"type": "RESUME_REFUSED", "error_code": "INACTIVE", "message": text})
        else:
            loop.emit({"type": "RESUME_ACCEPTED", "reason": loop.reasons.resume()})


def _text(message: dict[str, Any], key: str) -> str:
    value = message[key]
    if not isinstance(value, str) or len(value) > 256:
        raise ValueError(f"{key} must be a text")
    return value
