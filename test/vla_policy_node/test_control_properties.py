# SPDX-License-Identifier: Apache-2.0
"""Whatever chunks, flags, messages and stalls come in whatever order: what leaves the loop is safe."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.control_rig import HIGH, LOW, PERIOD_NS, RATE, START_TOLERANCE, Rig, ramp

EPS = 1e-9
EXAMPLES = int(os.environ.get("VLA_OTA_PROPERTY_EXAMPLES", "120"))


def broken_chunk(kind: str, at: int) -> Any:
    chunk = np.zeros((20, 2))
    chunk[at % 20, at % 2] = {
        "nan": np.nan,
        "inf": np.inf,
        "minus inf": -np.inf,
        "huge": 3e38,
        "far": 1.4,
        "jump": 0.9,
    }[kind]
    return chunk


policies = st.one_of(
    st.tuples(st.floats(-1.05, 1.05), st.floats(-1.05, 1.05)),
    st.builds(lambda v: ramp((v, -v)), st.floats(-0.1, 0.1)),
    st.builds(broken_chunk, st.sampled_from(["nan", "inf", "minus inf", "huge", "far", "jump"]), st.integers(0, 19)),
    st.sampled_from(["NAN", "POLICY_FAILED", "WRONG_SHAPE", "OBSERVATION_STALE", None]),
)
generations = st.integers(1, 3)
good = st.builds(lambda a, b: (a, b), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
far = st.one_of(st.floats(-1.5, 1.5), st.just(float("nan")), st.just(float("inf")))
ticks = st.tuples(st.just("tick"), st.integers(1, 25), st.just(PERIOD_NS))
swap = st.tuples(st.just("activate"), generations, st.sampled_from(["CHUNK", "EPISODE", "REST", "NOW"]))
operations = st.one_of(
    ticks,
    ticks,
    ticks,
    swap,
    swap,
    st.tuples(st.just("policy"), generations, good),
    st.tuples(st.just("motion"), st.just(True)),
    st.tuples(st.just("fresh"), st.just(True)),
    st.tuples(st.just("enable"), st.just(True)),
    st.tuples(st.just("blind"), st.just(False)),
    st.tuples(st.just("resume")),
    st.tuples(st.just("tick"), st.integers(1, 3), st.integers(1, 40 * PERIOD_NS)),
    st.tuples(st.just("policy"), st.integers(0, 3), policies),  # 0: of the one that acts
    st.tuples(st.just("policy"), st.just(0), policies),
    st.tuples(st.just("latency"), st.integers(1, 25)),
    st.tuples(st.just("garbage"), generations, st.integers(0, 40), st.integers(0, 40)),
    st.tuples(st.just("add"), generations),
    st.tuples(st.just("remove"), generations),
    st.tuples(st.just("hold"), st.sampled_from(["COMMAND_TOPIC_TAKEN", "WORKER_LOST"])),
    st.tuples(st.just("episode_missing"), st.booleans()),
    st.tuples(st.just("resume")),
    st.tuples(st.just("enable"), st.booleans()),
    st.tuples(st.just("motion"), st.booleans()),
    st.tuples(st.just("fresh"), st.booleans()),
    st.tuples(st.just("episode")),
    st.tuples(st.just("push"), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5)),
    st.tuples(st.just("blind"), st.booleans()),
    st.tuples(st.just("frozen"), st.booleans()),
    st.tuples(st.just("vacate"), st.sampled_from(["EPISODE", "REST", "NOW"]), st.sampled_from(["UPDATE", "ROLLBACK"])),
    st.tuples(st.just("loading_failed")),
    st.tuples(st.just("take_over"), st.booleans()),
    st.tuples(st.just("operate"), st.floats(-0.25, 0.25), st.floats(-0.25, 0.25)),
    st.tuples(st.just("operate"), st.floats(-0.25, 0.25), st.floats(-0.25, 0.25)),
    st.tuples(st.just("operator"), st.one_of(st.none(), good, st.tuples(far, far))),
)


class Watcher:
    """Follows a rig and knows, without asking the loop, what must not happen."""

    def __init__(self, rig: Rig, auto: bool) -> None:
        self.rig, self.auto = rig, auto
        self.last: Any = None  # command of the last tick
        self.latched = False  # somebody has to say resume
        self.people = False  # not even a contract with auto_resume may do so
        self.blind = False
        self.enabled = True
        self.operated = False
        self.wanted: Any = None  # action of the last tick, if the policy acted

    def apply(self, operation: tuple[Any, ...]) -> None:  # noqa: C901  (one branch an operation)
        kind, *args = operation
        rig = self.rig
        if kind == "tick":
            for _ in range(args[0]):
                self.tick(args[1])
        elif kind == "policy":
            acting = rig.loop.active.id if rig.loop.active is not None else 1
            rig.policies[args[0] or acting] = args[1] if callable(args[1]) else lambda plan, made=args[1]: made
        elif kind == "latency":
            rig.latency = args[0]
        elif kind == "garbage" and args[0] in rig.workers:
            request = {"request": args[1], "tick": args[2]}
            rig.workers[args[0]].answer((0.9, -0.9), request=request, generation=args[2] % 4)
        elif kind == "add" and args[0] not in rig.workers:
            rig.add(args[0], rig.policies.get(args[0], (0.0, 0.0)))
        elif kind == "remove" and args[0] in rig.workers:
            acting = rig.loop.active is not None and rig.loop.active.id == args[0]
            rig.send("remove_generation", generation=args[0])
            self.latched |= acting
            rig._due = [d for d in rig._due if d[1] != args[0]]
            rig.workers.pop(args[0]).close()
        elif kind == "activate":
            rig.activate(args[0], args[1], swap_id=f"{len(rig.events)}")
        elif kind == "vacate":
            rig.send("vacate", at=args[0], cause=args[1], swap_id="v", timeout_s=0.5, episode=rig.episode)
        elif kind == "loading_failed":
            rig.send("loading_failed")
        elif kind == "hold":
            rig.hold(args[0])
            self.latched = True
            self.people |= args[0] == "COMMAND_TOPIC_TAKEN"
        elif kind == "episode_missing":
            rig.send("episode_missing", missing=args[0])
        elif kind == "resume":
            rig.send("resume")
            if rig.events[-1]["type"] == "RESUME_ACCEPTED":
                self.latched = self.people = False
        elif kind == "enable":
            rig.send("enable", enabled=args[0])
            self.latched |= args[0] and not self.enabled
            self.enabled = args[0]
        elif kind == "motion":
            rig.motion_ns = rig.now_ns + 10**14 if args[0] else 0
        elif kind == "fresh":
            rig.fresh = args[0]
        elif kind == "episode":
            rig.episode += 1
        elif kind == "push":
            rig.measured = np.array(args)
        elif kind == "blind":
            self.blind = args[0]
        elif kind == "frozen":
            rig.frozen = args[0]
        elif kind == "take_over":
            self.operated = args[0]
            rig.send("take_over", on=args[0])
        elif kind == "operate":  # as a person does: from where the robot is, and somewhere
            self.apply(("take_over", True))
            self.apply(("operator", tuple(rig.measured)))
            self.apply(("tick", 2, PERIOD_NS))
            self.apply(("operator", tuple(rig.measured + np.array(args))))
            self.apply(("tick", 2, PERIOD_NS))
        elif kind == "operator":
            rig.operator = None if args[0] is None else np.array(args[0])

    def tick(self, step_ns: int) -> None:
        rig = self.rig
        if self.blind:
            rig.measured = np.full(2, np.nan)
        elif not np.isfinite(rig.measured).all():
            rig.measured = np.zeros(2)
        measured, plan, events = rig.measured.copy(), rig.loop.queue.plan, len(rig.events)
        permitted = rig.motion_ns >= rig.now_ns + step_ns
        command = rig.tick(step_ns=step_ns)
        acted = rig.loop.queue.plan != plan
        if self.enabled and not permitted:
            self.latched = self.people = True  # motion was disabled: it needs a resume
        if not self.enabled or not permitted:
            assert command is None
        if command is None:
            assert not acted
        else:
            assert np.isfinite(command).all()
            assert (command >= LOW - EPS).all() and (command <= HIGH + EPS).all()
            if self.last is None:
                assert np.abs(command - measured).max() <= START_TOLERANCE + RATE * PERIOD_NS / 1e9 + EPS
            else:
                reach = RATE * min(step_ns, PERIOD_NS) / 1e9
                assert np.abs(command - self.last).max() <= reach + EPS
        assert rig.loop.mode != ("RUNNING" if self.operated else "OPERATOR")
        if acted:
            assert rig.loop.active is not None and rig.loop.generation == rig.loop.active.id
        if acted or rig.loop.mode == "OPERATOR":
            assert rig.loop.running
            assert rig.fresh
            assert not self.people
            if not self.auto:
                assert not self.latched
        self.compare(command, measured, min(step_ns, PERIOD_NS) / 1e9)
        if rig.loop.mode == "OPERATOR":  # the command goes towards what the operator sent, and nowhere else
            assert rig.operator is not None and np.isfinite(rig.operator).all()
            before = measured if self.last is None else self.last
            between = np.sort([before, np.clip(rig.operator, LOW, HIGH)], axis=0)
            assert (command >= between[0] - EPS).all() and (command <= between[1] + EPS).all()
        new = rig.events[events:]
        if any(e["type"] == "HOLD" and e["latched"] for e in new):
            self.latched = True
            assert not acted
        self.last = command

    def compare(self, command: Any, measured: Any, dt_s: float) -> None:
        """Judge a policy's action anew, with nothing but the acting generation's limits, and bound it; whatever the loop did."""
        wanted_before, self.wanted = self.wanted, None
        limiter, wanted = self.rig.loop.limiter_in_use, self.rig.loop.policy_action
        if self.rig.loop.mode != "RUNNING" or wanted is None:
            return
        self.wanted = wanted
        assert np.isfinite(wanted).all()
        if wanted_before is not None:
            assert (np.abs(wanted - wanted_before) <= limiter.step + 2e-6).all()
        before = np.clip(measured, LOW, HIGH) if self.last is None else self.last
        reach = limiter.rate * dt_s
        bounded = before + np.clip(np.clip(wanted, limiter.low, limiter.high) - before, -reach, reach)
        assert np.allclose(command, bounded, rtol=0.0, atol=EPS)
        assert self.rig.loop.clamped == (np.abs(bounded - wanted) > EPS).any()


@settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize="VLA_OTA_PROPERTY_EXAMPLES" not in os.environ
)
@given(
    st.lists(operations, min_size=20, max_size=60),
    st.booleans(),
    st.sampled_from(["last_command", "measured"]),
    st.sampled_from([0, 1, 5]),
    st.sampled_from([0.1, 2.0]),
)
def test_no_sequence_of_inputs_makes_an_unsafe_command(
    sequence: list[tuple[Any, ...]], auto: bool, hold: str, blend: int, timeout_s: float
) -> None:
    rig = Rig(motion=True, auto=auto, hold=hold, blend=blend, timeout_s=timeout_s)
    try:
        watcher = Watcher(rig, auto)
        rig.motion_ns = rig.now_ns + 10**14
        for generation in (1, 2, 3):
            rig.add(generation)
        rig.activate(1, "NOW")
        rig.begin()
        for operation in [("tick", 8, PERIOD_NS), *sequence, ("tick", 30, PERIOD_NS)]:
            watcher.apply(operation)
    finally:
        rig.close()


def wandering(seed: int, amplitude: float) -> Any:
    """A policy whose chunks fit together or not, cross limits or not, and now and then hold what no robot may be sent."""

    def chunk(plan: int) -> Any:
        noise = np.random.default_rng([seed, plan])
        actions = 0.3 * np.sin(0.05 * (plan + np.arange(20)))[:, None] + noise.uniform(-amplitude, amplitude, (20, 2))
        if noise.random() < 0.1:
            actions[noise.integers(20), noise.integers(2)] = noise.choice([np.nan, 1.08, 3e38, -0.9])
        return actions

    return chunk


wanderings = st.builds(wandering, st.integers(0, 99), st.sampled_from([0.0, 0.01, 0.02, 0.05, 0.15]))
motions = st.one_of(
    ticks,
    st.tuples(st.just("tick"), st.integers(1, 5), st.sampled_from([PERIOD_NS // 3, PERIOD_NS - 7, 3 * PERIOD_NS])),
    swap,
    st.tuples(st.just("policy"), generations, wanderings),
    st.tuples(st.just("latency"), st.integers(1, 25)),
    st.tuples(st.just("hold"), st.just("WORKER_LOST")),
    st.tuples(st.just("operate"), st.floats(-0.25, 0.25), st.floats(-0.25, 0.25)),
    st.tuples(st.just("vacate"), st.sampled_from(["REST", "NOW"]), st.just("UPDATE")),
    st.tuples(st.just("episode")),
)


@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)
@given(
    st.lists(motions, min_size=10, max_size=40),
    st.lists(wanderings, min_size=3, max_size=3),
    generations,
    st.integers(0, 5),
)
def test_each_action_that_is_commanded_keeps_every_limit_of_the_generation_that_acts(
    sequence: list[tuple[Any, ...]], policies: list[Any], first: int, blend: int
) -> None:
    rig = Rig(motion=True, blend=blend)
    try:
        watcher = Watcher(rig, auto=False)
        rig.motion_ns = rig.now_ns + 10**14
        bounds = (None, [{"high": 0.2}, {"low": -0.2}], [{"step": 0.012}, {"rate": 1.5}])
        for generation, limits in enumerate(bounds, 1):
            rig.add(generation, policies[generation - 1], limits=limits)
        rig.activate(first, "NOW")
        rig.begin()
        for operation in sequence:
            for each in (("tick", 8, PERIOD_NS), operation, ("take_over", False), ("resume",)):
                watcher.apply(each)
    finally:
        rig.close()


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(st.lists(operations, max_size=40))
def test_after_anything_the_loop_runs_again_once_all_is_well(sequence: list[tuple[Any, ...]]) -> None:
    """A hold that cannot be left would be safe and useless."""
    rig = Rig(motion=True)
    try:
        watcher = Watcher(rig, auto=False)
        rig.motion_ns = rig.now_ns + 10**14
        rig.add(1)
        for operation in sequence:
            watcher.apply(operation)
        for operation in [
            ("motion", True),
            ("fresh", True),
            ("blind", False),
            ("frozen", False),
            ("push", 0.1, 0.1),
            ("latency", 1),
            ("add", 3),
            ("policy", 1, (0.1, 0.1)),
            ("policy", 2, (0.1, 0.1)),
            ("policy", 3, (0.1, 0.1)),
            ("take_over", False),
            ("enable", True),
            ("tick", 2, PERIOD_NS),
            ("activate", 3, "NOW"),
            ("episode_missing", False),
            ("resume",),
            ("tick", 300, PERIOD_NS),
        ]:
            watcher.apply(operation)
        assert rig.loop.running, (rig.loop.reasons.reason, rig.events[-5:])
        assert rig.loop.generation == 3
    finally:
        rig.close()
