# SPDX-License-Identifier: Apache-2.0
"""Commands about people: keys and the log."""

from __future__ import annotations

from typing import Annotated

import typer

from vla_fleet.cli.common import LOCAL, JsonOption, KeyOption, ServerOption, show, table, utc
from vla_fleet.client import Client

app = typer.Typer()


@app.command("key")
def make_key(
    name: str, role: str, server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False
) -> None:
    """Make an API key for a person or a program: viewer, operator, publisher or admin."""
    with Client(server, key) as client:
        made = client.make_key(name, role)
    show({"key": made}, as_json, made)


@app.command()
def keys(
    revoke: Annotated[str, typer.Option(help="End the key of this name.")] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the API keys, or end one."""
    with Client(server, key) as client:
        if revoke:
            client.revoke_key(revoke)
        found = client.keys()
    rows = [
        (k["name"], k["role"], utc(k["created_s"]), k["created_by"], utc(k["revoked_s"]) if k["revoked_s"] else "")
        for k in found
    ]
    table(found, as_json, ("name", "role", "made", "by", "revoked"), rows)


@app.command()
def log(server: ServerOption = LOCAL, key: KeyOption = "", as_json: JsonOption = False) -> None:
    """Show who did what, newest first."""
    with Client(server, key) as client:
        found = client.log()
    rows = [(utc(e["time_s"]), e["who"], e["action"], e["subject"]) for e in found]
    table(found, as_json, ("time", "who", "did", "to"), rows)
