# SPDX-License-Identifier: Apache-2.0
"""The least that a control loop can be: wait for the deadline, take the next row of an array, put it out.

No limits, no hold, no blending, no counts: the peer that the cost of our tick is compared with.
``python -m benchmarks.bare_loop '{"rate_hz", "joints", "path"}'``, until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np

from benchmarks.robot import waves
from vla_policy_node.control.realtime import freeze_garbage_collector
from vla_policy_node.control.sinks import RecordSink


def main() -> None:
    """Run."""
    settings = json.loads(sys.argv[1])
    rate_hz = settings["rate_hz"]
    actions = waves(np.arange(round(60 * rate_hz)) / rate_hz, settings["joints"]).astype(np.float64)
    sink = RecordSink(settings["path"])
    over = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(over,), daemon=True).start()
    freeze_garbage_collector()
    period_ns = round(1e9 / rate_hz)
    due_ns = time.monotonic_ns() + period_ns
    print(json.dumps({"ready": True}), flush=True)
    for action in actions:
        if over.is_set():
            break
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        sink.publish(action)
        due_ns += period_ns


def _wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    main()
