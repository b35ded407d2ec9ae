# SPDX-License-Identifier: Apache-2.0
"""The records that cross process borders, in one place. Times are ``time.monotonic_ns``."""

from __future__ import annotations

from collections.abc import Mapping

from vla_policy_node.ipc.arena import Field, Layout
from vla_policy_node.policies.base import FeatureSpec

INSTRUCTION_BYTES = 1024

OBSERVATION_HZ = 50.0
"""The node hands observations over at the control rate, but not faster than this: a record holds whole pictures [Hz]."""
HISTORY = 6
"""Observations that a policy may look back on, at control rates up to ``OBSERVATION_HZ`` (LeRobot's VQ-BeT: 5, diffusion: 2)."""
OBSERVATION_SLOTS = HISTORY + 4
"""Of the observation arena: two for records between two periods (motion, episode), two while a reader copies."""

LATENESS_BOUNDS_MS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Upper bounds of the lateness histogram's bins; the last bin is open."""


def observation_layout(features: Mapping[str, FeatureSpec], channels: int) -> Layout:
    """Node → control and workers: the newest observation, at most as old as the contract allows.

    ``stamp_ns`` when the oldest part of it was received; ``written_ns`` when the record was made; ``valid`` 1 if every feature is
    there and fresh;
    ``measured`` float64 ``[channels]`` position per command channel (NaN = not known), ``measured_ns`` when it was
    received; ``motion_ns``: until when motion is permitted, renewed with every fresh ``motion_enabled`` (0 = nothing was said
    yet, -1 = false was said: see ``contract.Motion.permits``).
    """
    fixed = [
        Field("stamp_ns", "int64"),
        Field("written_ns", "int64"),
        Field("valid", "uint8"),
        Field("measured", "float64", (channels,)),
        Field("measured_ns", "int64"),
        Field("motion_ns", "int64"),
        Field("instruction", "uint8", (INSTRUCTION_BYTES,)),  # UTF-8, zero-padded
        Field("episode", "uint64"),  # changes with every start of an episode: the worker then resets its policy
    ]
    return Layout([*fixed, *(Field(f"feature:{k}", v.dtype, v.shape) for k, v in sorted(features.items()))])


def request_layout() -> Layout:
    """Control → worker: infer a chunk from the newest observation. Followed by a write to the worker's eventfd."""
    return Layout(
        [
            Field("request", "uint64"),  # counts up; the chunk carries it back
            Field("tick", "uint64"),  # plan tick (see control/queue.py) that action 0 is meant for
            Field("reset", "uint8"),  # 1: policy.reset() first
        ]
    )


def chunk_layout(horizon: int, action_dim: int) -> Layout:
    """Worker → control: one chunk in physical units."""
    return Layout(
        [
            Field("request", "uint64"),
            Field("tick", "uint64"),
            Field("generation", "uint64"),
            Field("observation_ns", "int64"),
            Field("inference_ns", "int64"),
            Field("error", "uint8"),  # 0 = actions are valid, else an index of CHUNK_ERRORS
            Field("actions", "float32", (horizon, action_dim)),
        ]
    )


CHUNK_ERRORS = ("", "OBSERVATION_STALE", "POLICY_FAILED", "WRONG_SHAPE", "NAN")


def control_status_layout(channels: int) -> Layout:
    """Control → node: what the loop is doing, every tick."""
    return Layout(
        [
            Field("tick", "uint64"),  # counts deadlines, skipped ones included
            Field("stamp_ns", "int64"),
            Field("mode", "uint8"),  # index of MODES
            Field("latched", "uint8"),
            Field("hold_reason", "uint8"),  # index of vla_policy_node.holds.HOLD_REASONS
            Field("generation", "uint64"),  # of the last action taken, 0 = none
            Field("ticks", "uint64"),
            Field("missed", "uint64"),
            Field("starved", "uint64"),
            Field("clamped", "uint64"),  # ticks on which a limit shortened the command
            Field("worst_late_ns", "int64"),
            Field("histogram", "uint64", (len(LATENESS_BOUNDS_MS) + 1,)),
            Field("command", "float64", (channels,)),  # last one published, NaN = none
            Field("chunks", "uint64"),  # chunks taken over from the acting generation since it became active
            Field("published", "uint8"),  # 1: `command` was published on this tick
            Field("policy_action", "float64", (channels,)),  # what the policy wanted on this tick, NaN = nothing
            Field("observation", "uint64"),  # sequence number of the observation that this tick looked at
            Field("episode", "uint64"),  # as that observation says
        ]
    )


def operator_layout(channels: int) -> Layout:
    """Node → control: the newest action of an operator, in the contract's units, and when it was received."""
    return Layout([Field("action", "float64", (channels,)), Field("received_ns", "int64")])


MODES = ("INACTIVE", "RUNNING", "HOLDING", "MOTION_DISABLED", "OPERATOR")
