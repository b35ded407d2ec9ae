# SPDX-License-Identifier: Apache-2.0
"""A fleet server that kills itself with SIGKILL at each step of a rollout, and is started again: for a test of restarts.

    python -m support.dying_fleet_server DATA PORT

Each life ends at a transaction that moves a rollout on, gives an order or takes outcomes in: one right after its first has been
committed, the next right before its second would be, in turn. So every step is lost once or has happened unseen. Each life is a
process of its own, forked from one that has imported everything; SIGTERM ends them all.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import event, inspect
from sqlalchemy.orm import Session

from vla_fleet.server.app import create_app
from vla_fleet.server.rooms import Rooms, Settings
from vla_fleet.storage.tables import CommandRow, JudgedOutcomeRow, RolloutRow


def die_at(number: int, *, before: bool) -> None:
    """Kill this process at its ``number``-th step."""
    steps = 0

    def flushed(session: Any, _: Any) -> None:
        if any(_is_step(row) for row in (*session.new, *session.dirty)):
            session.info["step"] = True

    def count(session: Any) -> None:
        nonlocal steps
        if session.info.pop("step", False):
            steps += 1
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def about_to_commit(session: Any) -> None:
        session.flush()  # so that it is known what would be committed
        count(session)

    event.listen(Session, "after_flush", flushed)
    event.listen(Session, "before_commit" if before else "after_commit", about_to_commit if before else count)


def _is_step(row: Any) -> bool:
    """Whether a change moves a rollout on; a verdict by itself does not, and comes too often to die of each."""
    if isinstance(row, RolloutRow):
        return any(inspect(row).attrs[name].history.has_changes() for name in ("state", "stage", "judged_stage"))
    return isinstance(row, JudgedOutcomeRow) or (
        isinstance(row, CommandRow) and row.state == "WAITING" and row.created_by.startswith("rollout")
    )


def live(data: Path, listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    rooms = Rooms(Settings(data=data, public_url=url, heartbeat_s=2.0, step_s=0.1))
    uvicorn.Server(uvicorn.Config(create_app(rooms), log_level="warning", ws="websockets-sansio")).run([listener])


def end(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os._exit(0)


def main() -> None:
    data, port = Path(sys.argv[1]), int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", port))
    life = 0
    while True:
        life += 1
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            die_at(1 + life % 2, before=life % 2 == 1)
            live(data, listener)
            os._exit(0)
        signal.signal(signal.SIGTERM, lambda *_, child=child: end(child))
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return
        (data / "lives").write_text(str(life))


if __name__ == "__main__":
    main()
