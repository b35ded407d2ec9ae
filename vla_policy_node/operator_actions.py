# SPDX-License-Identifier: Apache-2.0
"""What an operator sends, as one action: the messages that the robot's drivers take, one topic an output of the contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract, Output
from vla_policy_node.decoding import CommandDecoder
from vla_policy_node.errors import ObservationError

Floats = npt.NDArray[np.float64]


def operator_topic(output: Output) -> str:
    """Return the topic, relative to the node's namespace, on which an operator sends what goes to an output."""
    return f"operator/{output.topic.lstrip('~/')}"


class OperatorActions:
    """Puts the newest message of each output together. Thread-safe.

    Args:
        contract: of the robot.
        hand_over: called with the action ``[C]``, in the contract's units, and when its oldest part was received (monotonic).
    """

    def __init__(self, contract: Contract, hand_over: Callable[[Floats, int], None]) -> None:
        self._outputs = [(output, CommandDecoder(output)) for output in contract.outputs]
        self._hand_over, self._lock = hand_over, threading.Lock()
        self._action = np.full(len(contract.channels), np.nan)
        self._received_ns = [0] * len(contract.outputs)

    def receive(self, index: int, message: Any, now_ns: int | None = None) -> None:
        """Take in a message for ``contract.outputs[index]``. Raises ObservationError; the message before stays, and ages."""
        output, decoder = self._outputs[index]
        values = decoder.read(message)
        if len(values) != output.stop - output.start:
            raise ObservationError(
                "OBSERVATION_FIELD_MISSING", f"{operator_topic(output)}: a trajectory without a point"
            )
        with self._lock:
            self._action[output.start : output.stop] = values
            self._received_ns[index] = time.monotonic_ns() if now_ns is None else now_ns
            if all(self._received_ns):
                self._hand_over(self._action.copy(), min(self._received_ns))
