# SPDX-License-Identifier: Apache-2.0
"""What must survive a restart of the bridge and hours without a network: messages that were not sent, and orders not yet done."""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vla_fleet import protocol

log = logging.getLogger("vla_fleet_bridge")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS kept (seq INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, body TEXT NOT NULL, begun TEXT NOT NULL, final INTEGER NOT NULL);
"""
_DROPPED_FIRST = ("event", "ack", "active", "outcome")
_ORDERS_REMEMBERED = 1000


@dataclass(frozen=True)
class OpenOrder:
    """An order that is not done. ``begun`` is empty before it was begun, else what is needed to go on with it.

    Of an order that is done, the file keeps the final answer in its place.
    """

    command: protocol.Command
    begun: str


class Outbox:
    """A SQLite file, used by one thread.

    Args:
        path: the file; its folder is made. A damaged one is put aside, because without an outbox a robot has no line.
        limit: messages that are kept; beyond it events are dropped first, then acks, then outcomes, the oldest first.
    """

    def __init__(self, path: Path, limit: int = 100_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._limit = limit
        self._db = _open(path)
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('outbox_id', ?)", (secrets.token_hex(8),))
        self.id: str = self._db.execute("SELECT value FROM meta WHERE key = 'outbox_id'").fetchone()[0]
        self.size: int = self._db.execute("SELECT COUNT(*) FROM kept").fetchone()[0]
        self.dropped = 0
        """Messages that were dropped because the outbox was full, since the start."""
        self.robot = self._meta("robot")
        """This robot's name at the server, which draws are salted with; empty: it has not been welcomed yet."""

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- messages -----------------------------------------------------------------------------------------------------------

    def put(self, message: protocol.Event | protocol.Outcome | protocol.Ack) -> None:
        """Keep a message until the server has stored it."""
        active = isinstance(message, protocol.Event) and message.to_state == protocol.ACTIVE
        kind = "active" if active else message.type
        self._db.execute("INSERT INTO kept (type, body) VALUES (?, ?)", (kind, message.model_dump_json()))
        self.size += 1
        if self.size > self._limit:
            self._drop()

    def after(self, seq: int, limit: int = 64) -> list[protocol.Event | protocol.Outcome | protocol.Ack]:
        """Return the oldest messages above ``seq``, with their numbers."""
        rows = self._db.execute("SELECT seq, body FROM kept WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))
        return [protocol.KEPT.validate_json(body).model_copy(update={"seq": number}) for number, body in rows]

    def stored(self, seq: int) -> None:
        """Let go of everything up to ``seq``: the server has it."""
        self.size -= self._db.execute("DELETE FROM kept WHERE seq <= ?", (seq,)).rowcount

    def _drop(self) -> None:
        """Make room for a tenth, so that not every message after this one has to."""
        room = max(1, self._limit // 10)
        for kind in _DROPPED_FIRST:
            chosen = "SELECT seq FROM kept WHERE type = ? ORDER BY seq LIMIT ?"
            gone = self._db.execute(f"DELETE FROM kept WHERE seq IN ({chosen})", (kind, room)).rowcount
            self.size, self.dropped, room = self.size - gone, self.dropped + gone, room - gone
            if room <= 0:
                return

    # -- who this is --------------------------------------------------------------------------------------------------------

    def keep_robot(self, name: str) -> None:
        """Keep this robot's name: an order may be carried out when there is no line."""
        if name != self.robot:
            self.robot = name
            try:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('robot', ?)", (name,))
            except sqlite3.Error as e:  # the line stays: the server says the name again at the next one
                log.error("STATE_DIR: this robot's name is not kept: %s", e)

    def _meta(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row is not None else ""

    # -- what acts ----------------------------------------------------------------------------------------------------------

    @property
    def active(self) -> tuple[str, str] | None:
        """Version and digest of the last event ``ACTIVE``; None: there was none."""
        found = self._meta("active")
        version, space, digest = found.partition(" ")
        return (version, digest) if space else None

    def put_active(self, event: protocol.Event) -> None:
        """Keep an event ``ACTIVE``, and that it was the last one."""
        with self._together():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('active', ?)", (f"{event.version} {event.digest}",))
            self.put(event)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Write all of a block, or nothing."""
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # -- orders -------------------------------------------------------------------------------------------------------------

    def add_order(self, command: protocol.Command) -> bool:
        """Note an order; false if it was known already. The pass in an open order's URL is the newest one.

        The server repeats an order of which it has no final answer. If the answer was dropped, it is put again.
        """
        row = (command.id, command.model_dump_json())
        if self._db.execute("INSERT OR IGNORE INTO orders VALUES (?, ?, '', 0)", row).rowcount:
            return True
        self._db.execute("UPDATE orders SET body = ? WHERE id = ? AND final = 0", row[::-1])
        final = self._db.execute("SELECT begun FROM orders WHERE id = ? AND final = 1", row[:1]).fetchone()
        if final and not self._db.execute("SELECT 1 FROM kept WHERE body = ?", final).fetchone():
            self.put(protocol.Ack.model_validate_json(final[0]))
        return False

    def open_orders(self) -> list[OpenOrder]:
        """Return the orders that are not done, oldest first."""
        rows = self._db.execute("SELECT body, begun FROM orders WHERE final = 0 ORDER BY rowid")
        return [OpenOrder(protocol.Command.model_validate_json(body), begun) for body, begun in rows]

    def begin_order(self, command_id: str, begun: str) -> None:
        """Note, before it is begun, what is needed to go on with an order."""
        self._db.execute("UPDATE orders SET begun = ? WHERE id = ?", (begun, command_id))

    def answer(self, ack: protocol.Ack) -> None:
        """Keep a word about an order; a final one closes it."""
        with self._together():
            if ack.state.final:
                done = ack.model_dump_json(), ack.command_id
                self._db.execute("UPDATE orders SET final = 1, begun = ? WHERE id = ?", done)
                old = "SELECT rowid FROM orders WHERE final = 1 ORDER BY rowid DESC LIMIT -1 OFFSET ?"
                self._db.execute(f"DELETE FROM orders WHERE rowid IN ({old})", (_ORDERS_REMEMBERED,))
            self.put(ack)


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as e:
        log.error("STATE_DIR: %s: %s; it is put aside, what it held is not sent", path, e)
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        path.replace(path.with_name(path.name + ".damaged"))
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_SCHEMA)
        if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
    except sqlite3.Error:
        database.close()
        raise
    return database
