# SPDX-License-Identifier: Apache-2.0
"""The outbox keeps what was not sent over restarts, in sequence; full, it drops what matters least, and counts."""

from __future__ import annotations

from pathlib import Path

from vla_fleet import protocol
from vla_fleet_bridge.outbox import Outbox


def event(number: int) -> protocol.Event:
    return protocol.Event(time_s=float(number), from_state="IDLE", to_state=f"S{number}")


def outcome(number: int) -> protocol.Outcome:
    return protocol.Outcome(time_s=float(number), episode_id=f"e{number}", success=True)


def test_messages_survive_a_restart_with_their_numbers(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.db")
    for i in range(3):
        box.put(event(i))
    first, name = box.after(0), box.id
    box.close()
    box = Outbox(tmp_path / "box.db")
    assert box.id == name and box.after(0) == first and box.size == 3
    box.stored(first[1].seq)
    assert box.after(0) == first[2:] and box.size == 1
    box.keep_robot("arm_1")
    box.put(event(9))
    assert box.after(0)[-1].seq > first[2].seq, "a number is never used twice"
    box.close()
    box = Outbox(tmp_path / "box.db")
    assert box.robot == "arm_1"
    box.close()


def test_a_full_outbox_drops_events_before_outcomes_and_counts(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.db", limit=100)
    for i in range(90):
        box.put(outcome(i))
    for i in range(90):
        box.put(event(i))
    kept = box.after(0, limit=1000)
    assert sum(isinstance(m, protocol.Outcome) for m in kept) == 90
    assert box.size == len(kept) <= 100 and box.dropped == 180 - len(kept)
    for i in range(90, 200):
        box.put(outcome(i))
    kept = box.after(0, limit=1000)
    assert box.size == len(kept) <= 100 and kept[-1].time_s == 199.0
    box.close()


def test_an_order_is_known_from_its_first_coming_to_long_after_its_end(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.db")
    command = protocol.Command(id="c-1", order=protocol.Rollback(version="1.0.0"))
    assert box.add_order(command) and not box.add_order(command)
    box.begin_order("c-1", "begun 1.0.0")
    box.close()
    box = Outbox(tmp_path / "box.db")
    assert [(o.command, o.begun) for o in box.open_orders()] == [(command, "begun 1.0.0")]
    box.answer(protocol.Ack(time_s=1.0, command_id="c-1", state=protocol.AckState.DONE))
    assert box.open_orders() == [] and not box.add_order(command)
    box.close()
