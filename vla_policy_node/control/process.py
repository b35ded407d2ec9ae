# SPDX-License-Identifier: Apache-2.0
"""Main of the control process: ``python -m vla_policy_node.control.process <fd of its channel>``."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from vla_policy_node.contract.model import parse_contract
from vla_policy_node.control.realtime import (
    freeze_garbage_collector,
    lock_memory,
    parse_cpus,
    take_cpus,
    take_fifo_for_process,
)
from vla_policy_node.control.runner import Runner
from vla_policy_node.control.sinks import NOWHERE, CommandSink, open_sink
from vla_policy_node.errors import ControlError, PolicyNodeError
from vla_policy_node.ipc.arena import Arena, ArenaError, Layout
from vla_policy_node.ipc.channel import Channel, ChannelClosedError
from vla_policy_node.ipc.layouts import control_status_layout, operator_layout

_CONFIGURE_TIMEOUT_S = 30.0


def main(argv: list[str]) -> int:
    """Run until the node closes the channel. Returns 0 after a clean end, 1 if it could not start."""
    channel = Channel.from_fd(int(argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever sends it: the node decides what it means
    sink: CommandSink | None = None
    try:
        runner, sink, config, pinned = _configure(channel)
        signal.signal(signal.SIGTERM, lambda signum, frame: _stop(runner, signum, frame))
        freeze_garbage_collector()
        priority = config.get("fifo_priority")
        fifo = take_fifo_for_process(int(priority)) if priority else 0
        started = {"pid": os.getpid(), "fifo": fifo, "mlock": lock_memory(), "pinned": pinned}
        channel.send({"type": "STARTED", **started})
        runner.run()
    except ChannelClosedError:
        return 0  # the node has gone, however it went
    except (PolicyNodeError, ArenaError) as e:
        _say(channel, e.code, str(e))
        return 1
    except (KeyError, TypeError, ValueError, OSError) as e:
        _say(channel, "CONTROL_CONFIGURATION", f"{type(e).__name__}: {e}")
        return 1
    finally:
        if sink is not None:
            sink.close()
    return 0


def _configure(channel: Channel) -> tuple[Runner, CommandSink, dict[str, Any], bool]:
    received = channel.receive(_CONFIGURE_TIMEOUT_S)
    if received is None:
        raise ControlError("CONTROL_CONFIGURATION", "no configuration came")
    config, fds = received
    cpus = parse_cpus(config["cpus"])
    pinned = not cpus or take_cpus(cpus)  # before the sink: threads of DDS inherit it
    contract = parse_contract(config["contract"], config["contract_path"])
    if config["sink"]["kind"] == NOWHERE:
        contract = contract.in_shadow()
    layout = Layout.from_json(config["observation"]["layout"])
    observation = Arena.attach(layout, config["observation"]["slots"], fds[0])
    status = Arena.attach(control_status_layout(len(contract.channels)), config["status_slots"], fds[1])
    operator = Arena.attach(operator_layout(len(contract.channels)), config["operator_slots"], fds[2])
    sink = open_sink(config["sink"], contract)
    return Runner(contract, channel, observation, status, operator, sink), sink, config, pinned


def _stop(runner: Runner, signum: int, frame: FrameType | None) -> None:
    runner.stop()


def _say(channel: Channel, code: str, text: str) -> None:
    try:
        channel.send({"type": "START_FAILED", "error_code": code, "message": text}, block=False)
    except ConnectionError:
        print(f"{code}: {text}", file=sys.stderr)  # noqa: T201  (nobody else listens)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
