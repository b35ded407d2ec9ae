# SPDX-License-Identifier: Apache-2.0
"""One tick: look at the observation, decide whether the policy may act, return the command or nothing.

Pure: time and observation come in, a command goes out, and nothing here waits. What always holds, whatever chunks, flags and
messages arrive (``test_control_properties.py``): every command is within the contract's position and velocity; nothing is
commanded while inactive or while motion is disabled; a latched hold ends by resume only; the first command after a stop
starts from the measured state; an action has one generation; while an operator has taken over the policy commands nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract
from vla_policy_node.control.announcer import Announcer
from vla_policy_node.control.commanded import Commanded
from vla_policy_node.control.generation import Answer, Generation
from vla_policy_node.control.hold import Stop
from vla_policy_node.control.limits import OK, Limiter, Violation
from vla_policy_node.control.operator import Operator
from vla_policy_node.control.queue import Action, Chunk, ChunkQueue
from vla_policy_node.control.reasons import Reasons
from vla_policy_node.control.swap import WAYS_BACK, PendingSwap
from vla_policy_node.control.vacancy import Vacancy
from vla_policy_node.holds import HOLDS, Latch

Floats = npt.NDArray[np.float64]

_RETRY_TICKS = 5  # before a worker that had no fresh observation is asked again


class Look(NamedTuple):
    """What the loop needs of the newest observation record (``observation_layout``)."""

    stamp_ns: int
    valid: bool
    measured: Floats
    measured_ns: int
    motion_ns: int
    episode: int
    observation: int = 0  # its sequence number
    operator: Floats | None = None  # newest action of an operator who has taken over
    operator_ns: int = 0  # when it was received


class ControlLoop:
    """State between ticks. ``emit`` takes events (see ``events.py``); requests come through ``Commands`` (commands.py)."""

    def __init__(self, contract: Contract, emit: Callable[[dict[str, Any]], None]) -> None:
        self.contract, self.emit = contract, emit
        self.period_ns = round(1e9 / contract.rate_hz)
        names = [c.name for c in contract.channels]
        self.limiter = Limiter([c.limits for c in contract.channels], names)
        self.queue = ChunkQueue(contract.blend_ticks)
        self.reasons = Reasons(auto_resume=contract.auto_resume)
        self.commanded = Commanded(contract.channels, self.period_ns, round(contract.rate_hz), contract.rest_ticks)
        self.enabled = self.running = self.motion_disabled = False
        self.active: Generation | None = None
        self.lost = False  # the generation that acted has gone: only a swap at NOW is taken
        self.pending: PendingSwap | None = None
        self.vacancy: Vacancy | None = None  # asked for, not due yet
        self.loading = False  # another generation is loaded in place of the one that acted
        # Not reported yet: the swap, the generation and the command before it.
        self.swapped: tuple[PendingSwap, int, Floats | None] | None = None
        self.generation = 0  # of the last action taken
        self.policy_action: Floats | None = None  # what the policy wanted on this tick, before limits
        self.chunks = 0  # taken over from the acting generation
        self.starved = self.clamped = False  # on this tick
        self.tick_number = 0
        self.now_ns = 0
        self.episode: int | None = None

        self._max_age_ns = int(contract.observation_max_age_s * 1e9)
        self.operator = Operator(self.limiter, self._max_age_ns)
        self._measured = np.full(len(contract.channels), np.nan)  # newest, NaN = not known
        self._hold_timeout_ns = int(min(c.hold_timeout_s for c in contract.channels) * 1e9)
        self._last_target: Floats | None = None  # of the policy's stream; None = it starts anew
        self._stop: Stop | None = None
        self._converging = False
        self._hold_ns = 0
        self._waiting_ns: int | None = None  # since when it holds for something that may pass
        self._announcer = Announcer(names, self.reasons, emit)
        self._reset = True  # the next request resets the policy
        self._not_before_ns = 0
        self._worker_is_blind = False

    # -- one tick --------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int, tick: int, look: Look) -> Floats | None:
        """Return the command to publish, float64 ``[C]``; ``None`` = publish nothing."""
        self.now_ns, self.tick_number = now_ns, tick
        self.starved = self.clamped = False
        self.policy_action = None
        self._measured = look.measured
        if not self.enabled:
            return None
        if not self.contract.motion.permits(look.motion_ns, now_ns):
            self._disable_motion()
            return None
        if self.motion_disabled:
            self.motion_disabled = False
            self.emit({"type": "MOTION_ENABLED", "tick": tick})
        self.reasons.resume_by_itself(now_ns)
        if look.episode != self.episode:
            self._follow_episode(look.episode)
        answer = None if self.active is None else self.active.poll(now_ns)
        if answer is not None:
            self._take_in(answer)
        self.queue.not_before = 0
        if self.pending is not None:
            self._watch_swap(self.pending, look)
        if self.vacancy is not None:
            self._watch_vacancy(self.vacancy, look)
        plan, cause = self.queue.plan, self._cause(look)
        command = self._act(look, cause)
        if not cause and not self.reasons.blocked:
            self._ask(look, plan)
        if not self.running:
            self._give_up_waiting()
            self._announcer.hold(self._where())
        return command

    @property
    def mode(self) -> str:
        """One of MODES."""
        if not self.enabled:
            return "INACTIVE"
        if self.motion_disabled:
            return "MOTION_DISABLED"
        if not self.running:
            return "HOLDING"
        return "OPERATOR" if self.operator.on else "RUNNING"

    def _act(self, look: Look, cause: str) -> Floats | None:
        if cause or self.reasons.blocked:
            before = "" if self.reasons.cause == "NO_POLICY" else self.reasons.cause  # there is one now
            self.hold(cause or before or "STARTUP")
        elif self.operator.on:
            command = self._follow_operator(look)
            if command is not None:
                return command
        elif self.running:
            if self.pending is not None:
                self._swap_if_due(self.pending, look)
            command = self._take()
            if command is not None:
                return command
        elif self._start(look):
            command = self._take()
            if command is not None:
                return command
        return self._hold_on()

    def _cause(self, look: Look) -> str:
        """Return why the policy cannot act whatever its chunks are."""
        if self.active is None and self.pending is None and not self.operator.on:
            return "LOADING_IN_PLACE" if self.loading else "NO_POLICY"
        if not look.valid or abs(self.now_ns - look.stamp_ns) > self._max_age_ns:
            return "OBSERVATION_STALE"
        return ""

    # -- the policy acts -------------------------------------------------------------------------------------------

    def _take(self) -> Floats | None:
        """Take the action that is due; hold if there is none or it breaks a limit."""
        action = self.queue.peek()
        if action is None:
            self.hold("OBSERVATION_STALE" if self._worker_is_blind else "STARVED")
            return None
        before, since_s = self.command, self.commanded.since_s(self.now_ns)
        assert before is not None
        if action.takes_s_after(before) <= since_s:
            command = action.values  # the usual tick: its chunk was judged, and there is time for this step of it
        else:
            violation = self._violates(action)
            if violation is not None:
                self.latch(violation.reason, violation)
                return None
            command, self.clamped = self.limiter_in_use.shorten(action.values, before, since_s)
        self._last_target = self.policy_action = action.values
        self.generation = action.chunk.generation
        self.chunks += int(action.takes_over)
        self.queue.advance()
        self.commanded.put(command, self.now_ns)
        return command

    # -- an operator acts ------------------------------------------------------------------------------------------

    def take_over(self, *, on: bool) -> None:
        """An operator's actions are commanded from now on; or again the policy's, which plans anew from the measured state."""
        if on != self.operator.on:
            self.operator.on = on
            self.hold("NO_OPERATOR_ACTION" if on else "STARTUP")
        self.emit({"type": "TAKEN_OVER" if on else "GIVEN_BACK", "tick": self.tick_number})

    def _follow_operator(self, look: Look) -> Floats | None:
        """Take the operator's action; hold if there is none that may be commanded."""
        action, operator = look.operator, self.operator
        if action is None or not operator.usable(action, look.operator_ns, self.now_ns):
            self.hold("NO_OPERATOR_ACTION")
            return None
        if not self.running:
            if not operator.may_begin(action, look.measured, self.commanded):
                self.hold("NO_OPERATOR_ACTION")
                return None
            if not self._is_near(look):
                return None
            self._begin_to_act()
        assert self.command is not None
        command, self.clamped = operator.shorten(action, self.command, self.commanded.since_s(self.now_ns))
        self._pass_over()
        self.commanded.put(command, self.now_ns)
        return command

    def _pass_over(self) -> None:
        """Note what the policy wanted on this tick; it is not commanded, and so not judged."""
        wanted = self.queue.peek()
        if wanted is not None:
            self.policy_action, self.generation = wanted.values, wanted.chunk.generation
            self.queue.advance()

    def _violates(self, action: Action) -> Violation | None:
        limiter, chunk, row = self.limiter_in_use, action.chunk, action.row
        if chunk.verdicts[row] != OK:
            return limiter.explain(chunk.rows[row], chunk.rows[row - 1] if row else None)
        if self._last_target is not None and limiter.too_far(action.values, self._last_target):
            return limiter.explain(action.values, self._last_target)
        return None

    @property
    def limiter_in_use(self) -> Limiter:
        """Limits of the acting generation."""
        return self.limiter if self.active is None else self.active.limiter

    @property
    def command(self) -> Floats | None:
        """Last command; ``None`` = not commanding."""
        return self.commanded.value

    @property
    def at_rest(self) -> bool:
        """Whether the command has been at rest for ``rest_ticks``, or the policy does not act."""
        return not self.running or self.commanded.has_rested(self.contract.rest_ticks)

    # -- start: from the measured state ----------------------------------------------------------------------------

    def _start(self, look: Look) -> bool:
        """Let the policy act if its chunk is there and the command lies near the measured state."""
        swap = self.pending
        chunk = self.queue.waiting
        if swap is not None and swap.chunk is not None and swap.is_due(look.episode, at_rest=True, at_boundary=True):
            chunk = swap.chunk
        else:
            swap = None
        if chunk is None or self._is_outdated(chunk):
            return False
        if swap is not None and not self._is_good(swap, chunk):
            return False
        if swap is None and self._refuses_first(chunk):
            return False
        if not self._is_near(look):
            return False
        if swap is not None:
            self._move_pointer(swap)
        self.queue.take_over(chunk)
        self._begin_to_act()
        return True

    def _begin_to_act(self) -> None:
        self._last_target = self._waiting_ns = None
        self.running, self._converging, self._stop = True, False, None
        self.reasons.cause = ""
        self._announcer.resumed((self.now_ns - self._hold_ns) / 1e9, self._where())

    def _is_near(self, look: Look) -> bool:
        """Bring the command to the measured state; ``False`` while it is not there or cannot get there."""
        measured = look.measured
        known = self.commanded.all_known(measured)
        if abs(self.now_ns - look.measured_ns) > self._max_age_ns or not known:
            self._wait("OBSERVATION_STALE")
            return False
        if self.command is None:
            inside = self.commanded.start_from(measured, self.limiter, self.now_ns)
            if not inside:
                self._wait("OUTSIDE_LIMITS")
            return inside
        if self._converging:
            return self._stop is None or self._stop.arrived
        if self.commanded.is_far(self.command, measured) and self._stop is not None:
            self._stop.go_to(measured)  # once: a joint that sags under its load would be chased down otherwise
            self._converging = True
            return False
        return True

    def _wait(self, cause: str) -> None:
        self.hold(cause)
        self._not_before_ns = self._retry_ns

    @property
    def _retry_ns(self) -> int:
        return self.now_ns + _RETRY_TICKS * self.period_ns

    def _is_outdated(self, chunk: Chunk) -> bool:
        """Drop a chunk whose time has passed, on the plan clock or on the wall."""
        if chunk.has(self.queue.plan) and self.now_ns - chunk.asked_ns <= len(chunk.actions) * self.period_ns:
            return False
        if self.queue.waiting is chunk:
            self.queue.waiting = None
        elif self.pending is not None:
            self.pending.chunk = None
        return True

    def _refuses_first(self, chunk: Chunk) -> bool:
        """Latch if the chunk's first action breaks a limit: before anything is commanded."""
        index = self.queue.plan - chunk.start
        if chunk.verdicts[index] == OK:
            return False
        violation = self.limiter_in_use.explain(chunk.actions[index], chunk.actions[index - 1] if index else None)
        self.latch(violation.reason, violation)
        return True

    # -- hold ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The node was activated: nothing moves until a resume, by a person or by the contract."""
        self.enabled = True
        self._hold_ns = self.now_ns
        self.latch("STARTUP")

    def latch(self, reason: str, violation: Violation | None = None, *, text: str = "") -> None:
        """Hold until resume. ``text``: the message, if no violation has one."""
        self._note_latch(reason, violation, text)
        self.hold(self.reasons.cause or "STARTUP")

    def _note_latch(self, reason: str, violation: Violation | None = None, text: str = "") -> None:
        if self.reasons.latch(reason, self.now_ns):
            self._announcer.violation, self._announcer.text = violation, text

    def hold(self, cause: str) -> None:
        """Stop taking actions: what was planned is forgotten, except while a late chunk is all that is missing."""
        if self.running:
            self.running, self._hold_ns = False, self.now_ns
            self.operator.interrupt()
            self._begin_stop()
        elif self._converging and (cause != self.reasons.cause or self.reasons.blocked):
            self._begin_stop()
        self.reasons.cause = cause
        if cause != "STARVED" or self.reasons.blocked:
            self.forget_plans()

    def forget_plans(self) -> None:
        """Flush the queue and refuse what is being computed: the next chunk comes from a new observation."""
        self.queue.flush()
        self._refuse_answers()

    def _refuse_answers(self) -> None:
        self._reset = True
        if self.active is not None:
            self.active.forget()
        if self.pending is not None:
            self.pending.generation.forget()
            self.pending.chunk = None

    def _begin_stop(self) -> None:
        self._converging = False
        self._stop = None
        if self.command is not None:
            self._stop = Stop(self.contract.channels, self.command, self.commanded.velocity, self._measured)

    def _hold_on(self) -> Floats | None:
        self.starved = self.reasons.reason == "STARVED"
        if self.command is None or self._stop is None:
            return None
        if self.now_ns - self._hold_ns > self._hold_timeout_ns:
            self.stop_commanding()
            return None
        command = self._stop.step(self.commanded.since_s(self.now_ns))
        self.commanded.put(command, self.now_ns)
        return command

    def _give_up_waiting(self) -> None:
        """Latch a hold that lasts longer than ``hold_timeout_s``: people do not expect the robot to move by itself after that."""
        reason = self.reasons.reason
        may_pass = not self.reasons.blocked and HOLDS[reason].latch is Latch.IF_IT_LASTS
        if not may_pass or self.contract.auto_resume:
            self._waiting_ns = None
        elif self._waiting_ns is None:
            self._waiting_ns = self.now_ns
        elif self.now_ns - self._waiting_ns > self._hold_timeout_ns:
            self.latch(reason)

    def stop_commanding(self) -> None:
        """Publish nothing from now on; the next start is from the measured state."""
        self.commanded.clear()
        self._last_target = self._stop = None
        self._converging = False

    def stand_still(self) -> None:
        """Nothing is planned, nothing commanded."""
        if self.running:
            self.running, self._hold_ns = False, self.now_ns
            self.operator.interrupt()
            self.reasons.cause = "STARTUP"
        self.forget_plans()
        self.stop_commanding()

    def _disable_motion(self) -> None:
        if self.motion_disabled:
            return
        self.motion_disabled = True
        self.stand_still()
        self._note_latch("MOTION_REENABLED")
        self.emit({"type": "MOTION_DISABLED", "tick": self.tick_number})
        if self.pending is not None and self.pending.at == "NOW" and self.may_swap_without_motion(self.pending.cause):
            self.swap_at_standstill(self.pending)
        else:
            self.fail_swap("MOTION_DISABLED", "motion was disabled before the swap")
        self.stop_waiting_to_vacate("MOTION_DISABLED", "motion was disabled before the swap")

    def _where(self) -> dict[str, Any]:
        return {"tick": self.tick_number, "generation": 0 if self.active is None else self.active.id}

    # -- asking ----------------------------------------------------------------------------------------------------

    def _follow_episode(self, episode: int) -> None:
        first, self.episode = self.episode is None, episode
        self.emit({"type": "EPISODE", "episode": episode, "tick": self.tick_number})
        if first:
            return
        self.queue.waiting = None
        self._refuse_answers()
        # The old plan serves until the first chunk of the new episode is there, which is the new generation's if one waits.
        self.queue.at_once = self.pending is None or self.pending.at != "EPISODE"

    def _take_in(self, answer: Answer) -> None:
        """Let the acting generation's chunk wait for its turn, or see to its failure."""
        if answer.chunk is not None:
            self._worker_is_blind = False
            self.queue.offer(answer.chunk)
        elif answer.error == "OBSERVATION_STALE":
            self._worker_is_blind = True
            self._not_before_ns = self._retry_ns
        elif self.operator.on:  # who corrects a policy must not be stopped by its faults: they count when it is to act
            self._not_before_ns = self._retry_ns
        else:
            self.latch("NAN" if answer.error == "NAN" else "POLICY_FAILED", answer.violation)

    def _ask(self, look: Look, plan: int) -> None:
        """Ask for the next chunk when it is time; while a swap is pending both generations."""
        if self.operator.on and not self.running:
            return
        queue, margin, reset = self.queue, self.contract.latency_margin_ticks, self._reset
        if self.active is not None and queue.waiting is None and self.now_ns >= self._not_before_ns:
            early = self.active.latency_ticks + margin
            wanted = not self.running or queue.at_once or plan >= queue.boundary - early
            if wanted and self.active.can_ask(self.now_ns):
                self.active.ask(plan, self.now_ns, look.measured, reset=reset)
                self._reset = False
        swap = self.pending
        if swap is None or not swap.is_open(look.episode, at_rest=self.at_rest):
            return
        early = swap.generation.latency_ticks + margin
        if self.running and swap.at == "CHUNK" and plan < queue.boundary - early:
            swap.chunk = None  # came too late for the last boundary; there is time for a fresh one before the next
        elif swap.chunk is None and swap.generation.can_ask(self.now_ns) and self.now_ns >= swap.not_before_ns:
            swap.generation.ask(plan, self.now_ns, look.measured, reset=True)

    # -- swaps -----------------------------------------------------------------------------------------------------

    def _watch_swap(self, swap: PendingSwap, look: Look) -> None:
        """Take in the new generation's answer; give up when it fails or time is over."""
        chunk_before = swap.chunk
        stands = swap.at == "NOW" and (self.reasons.blocked or self._cause(look) or self._is_stuck)
        if stands or (self.operator.on and swap.is_open(look.episode, at_rest=self.at_rest)):
            self.swap_at_standstill(swap)
            return
        if fault := swap.collect(self.now_ns, self.queue.plan, self._retry_ns):
            self.fail_swap(*fault)
        elif self.now_ns > swap.deadline_ns:
            state = f"holding: {self.reasons.reason}" if not self.running else "no boundary with its chunk ready"
            self.fail_swap("SWAP_TIMEOUT", f"the new generation did not act in time ({state})")
        elif self.running and swap.may_choose and swap.chunk is not None:
            if swap.chunk is not chunk_before:
                in_time = (swap.deadline_ns - self.now_ns) // self.period_ns
                swap.choose(self.queue, self.contract.latency_margin_ticks, in_time)
            self.queue.not_before = swap.not_before

    @property
    def _is_stuck(self) -> bool:
        """Whether it holds for what no chunk can change."""
        return not self.running and self.reasons.cause in ("OBSERVATION_STALE", "OUTSIDE_LIMITS")

    def _swap_if_due(self, swap: PendingSwap, look: Look) -> None:
        if swap.chunk is None:
            return
        if not swap.is_due(look.episode, at_rest=self.at_rest, at_boundary=self.queue.at_boundary):
            return
        chunk = swap.chunk
        if not self._is_good(swap, chunk):
            return
        first, limiter = self.queue.preview(chunk), swap.generation.limiter
        if self._last_target is not None and limiter.too_far(first, self._last_target):
            jump = limiter.explain_jump(first, self._last_target)
            self.fail_swap("SEAM_JUMP", f"from the last command to the new generation's first: {jump.message}")
            return
        self._move_pointer(swap)
        self.queue.take_over(chunk)

    def _is_good(self, swap: PendingSwap, chunk: Chunk) -> bool:
        """Check the whole part that would be executed before the swap, or it fails."""
        if fault := swap.fault(chunk, self.queue.plan - chunk.start):
            self.fail_swap(*fault)
        return not fault

    def _move_pointer(self, swap: PendingSwap) -> None:
        """From here on the new generation is the acting one."""
        previous = 0 if self.active is None else self.active.id
        if self.active is not None:
            self.active.forget()
        self.active, self.lost, self.loading, self.pending = swap.generation, False, False, None
        self.chunks, self._reset, self._worker_is_blind = 0, False, False
        self.swapped = (swap, previous, self.command)
        self.queue.waiting = None

    def may_swap_without_motion(self, cause: str) -> bool:
        """While motion is disabled a robot goes back at most, or gets its first policy."""
        return cause in WAYS_BACK or (self.active is None and not self.lost)

    def swap_at_standstill(self, swap: PendingSwap) -> None:
        """Move the pointer while nothing acts: the next start is with the new generation."""
        self._move_pointer(swap)
        if self.reasons.cause == "LOADING_IN_PLACE":
            self.reasons.cause = "STARTUP"
        self.forget_plans()

    def fail_swap(self, code: str, text: str) -> None:
        """Give the pending swap up, if there is one; the acting generation goes on."""
        swap, self.pending = self.pending, None
        if swap is None:
            return
        if swap.generation is not self.active:
            swap.generation.forget()
        if swap.at == "EPISODE" and swap.episode != self.episode:
            self.queue.at_once = True  # the new episode still goes by the plan of the one before
        event = {"type": "SWAP_FAILED", "swap_id": swap.swap_id, "generation": swap.generation.id}
        self.emit({**event, "error_code": code, "message": text})

    # -- another generation is loaded in place of the one that acts ------------------------------------------------

    def _watch_vacancy(self, vacancy: Vacancy, look: Look) -> None:
        # A hold for one late chunk is no rest: it may be in the middle of a motion.
        at_rest = self.command is None or self.commanded.has_rested(self.contract.rest_ticks)
        if vacancy.is_due(look.episode, at_rest=at_rest):
            self.vacate(vacancy)
        elif self.now_ns > vacancy.deadline_ns:
            self.fail_vacancy("SWAP_TIMEOUT", f"no boundary ({vacancy.at}) came in time; nothing was loaded")

    def vacate(self, vacancy: Vacancy) -> None:
        """Nothing acts from now on: the loop holds LOADING_IN_PLACE until a generation is activated, or none can be."""
        previous = 0 if self.active is None else self.active.id
        self.forget_plans()  # else what has left would go on, while an operator acts or a swap is pending
        self.vacancy, self.active, self.lost, self.loading = None, None, True, True
        self.emit({"type": "VACATED", "swap_id": vacancy.swap_id, "generation": previous, "tick": self.tick_number})

    def stop_waiting_to_vacate(self, code: str, text: str) -> None:
        """The robot stands from now on: a way back need not wait any longer, an update does not come."""
        if self.vacancy is not None and self.vacancy.is_way_back:
            self.vacate(self.vacancy)
        else:
            self.fail_vacancy(code, text)

    def fail_vacancy(self, code: str, text: str) -> None:
        """Give up what waits to be loaded in place, if anything does; the acting generation goes on."""
        vacancy, self.vacancy = self.vacancy, None
        if vacancy is not None:
            failed = {"type": "SWAP_FAILED", "swap_id": vacancy.swap_id, **self._where()}
            self.emit({**failed, "error_code": code, "message": text})

    def give_up_loading(self) -> None:
        """Neither another generation nor the one that acted could be loaded: hold, and act again after a resume only."""
        self.loading = False
        self.latch("STARTUP")
