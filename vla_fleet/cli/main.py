# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet``: serve, publish, enrol robots, deploy, roll back, look."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_checkpoint import CheckpointError
from vla_fleet.cli import models, people, robots, train
from vla_fleet.cli.ab import ab_app
from vla_fleet.cli.adapters import adapters_app
from vla_fleet.cli.common import FAILED, err, out
from vla_fleet.cli.dataset import dataset_app
from vla_fleet.cli.episodes import episodes_app
from vla_fleet.cli.rollout import rollout_app
from vla_fleet.cli.simulate import simulate_app
from vla_fleet.errors import FleetError
from vla_fleet.storage.blobs import FilesBy
from vla_learning.errors import LearningError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Manage the policies of a fleet of robots."
)
for part in (models, robots, people, train):
    app.add_typer(part.app)
app.add_typer(rollout_app, name="rollout")
app.add_typer(ab_app, name="ab")
app.add_typer(adapters_app, name="adapters")
app.add_typer(simulate_app, name="simulate")
app.add_typer(episodes_app, name="episodes")
app.add_typer(dataset_app, name="dataset")


@app.command()
def serve(
    data: Annotated[Path, typer.Option(help="Folder of the database and the files; made if it is missing.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 = any free one.")] = 8080,
    public_url: Annotated[str, typer.Option(help="How robots reach this server; default: what it listens on.")] = "",
    heartbeat_s: Annotated[float, typer.Option(help="How often a robot says something [s].", min=0.1)] = 10.0,
    certificate: Annotated[
        Path | None, typer.Option(help="TLS certificate (PEM); without it, put a proxy in front.")
    ] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    open_files: Annotated[
        bool,
        typer.Option("--open-files", help="Let whoever reaches the server read models, so that a CDN can keep them."),
    ] = False,
    max_episodes_per_robot: Annotated[
        int, typer.Option(help="Episodes of one robot that are kept; failures and corrections longest.", min=1)
    ] = 10_000,
    database: Annotated[
        str,
        typer.Option(envvar="VLA_FLEET_DATABASE", help="postgresql://USER@HOST/NAME; default: SQLite in DATA."),
    ] = "",
    bus: Annotated[
        str, typer.Option(envvar="VLA_FLEET_BUS", help="nats://HOST:4222, if several servers share the database.")
    ] = "",
    blobs: Annotated[
        str, typer.Option(envvar="VLA_FLEET_BLOBS", help="s3://BUCKET/PREFIX for the files; default: in DATA.")
    ] = "",
    signing_keys: Annotated[
        Path | None,
        typer.Option(help="Folder of `vla-checkpoint trust init`: what is published is signed; docs/trust.md."),
    ] = None,
    files_by: Annotated[
        FilesBy, typer.Option(help="Who sends the files: links to the object store, x-accel by the nginx in front.")
    ] = FilesBy.SERVER,
) -> None:
    """Run the server. The first start writes an admin's key to DATA/admin.key."""
    if host in ("0.0.0.0", "::") and not public_url:
        raise typer.BadParameter(
            f"say how robots reach {host}, for example http://fleet.local:{port}", param_hint="--public-url"
        )
    from vla_fleet.server.run import run  # fastapi and sqlalchemy take a second that no other command needs

    run(
        data, host, port, public_url, heartbeat_s, certificate, certificate_key, open_files, max_episodes_per_robot,
        database, bus, blobs, signing_keys, files_by,
    )  # fmt: skip


@app.command()
def migrate(
    data: Annotated[Path, typer.Option(help="Folder of a server that does not run; it stays as it is.")],
    database: Annotated[
        str, typer.Option(envvar="VLA_FLEET_DATABASE", help="postgresql://USER@HOST/NAME, an empty database.")
    ],
    blobs: Annotated[
        str,
        typer.Option(envvar="VLA_FLEET_BLOBS", help="s3://BUCKET/PREFIX for the files; default: they stay in DATA."),
    ] = "",
) -> None:
    """Copy what a server has kept in its folder to PostgreSQL and an object store. After a failure, run it again."""
    from vla_fleet.server.migrate import migrate as copy

    done = asyncio.run(copy(data, database, blobs, lambda text: out.print(f"copying {text}", markup=False)))
    out.print(f"copied {sum(done.rows.values())} rows of {len(done.rows)} tables and {done.files} files", markup=False)


@app.command()
def mirror(
    origin: Annotated[str, typer.Option(help="The server's URL, as robots have it.")],
    data: Annotated[Path, typer.Option(help="Folder of the blobs; made if it is missing.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port; 0 = any free one.")] = 8090,
    max_gb: Annotated[float, typer.Option(help="Room for blobs [GB]; the least used go first.", min=0.001)] = 100.0,
) -> None:
    """Keep the blobs that a site's robots fetch: each crosses the line to the server once.

    Give each manager at the site the parameter mirror_url. A robot that cannot use the mirror fetches from the server.
    """
    from vla_fleet.mirror.run import run  # as above

    run(origin, data, host, port, round(max_gb * 1e9))


def main() -> None:
    """Entry point of ``vla-fleet``."""
    try:
        app()
    except (FleetError, CheckpointError, LearningError) as e:
        if "--json" in sys.argv:
            out.print_json(data={"error_code": e.code, "message": str(e).removeprefix(f"{e.code}: ")})
        else:
            err.print(f"vla-fleet: {e}", soft_wrap=True, markup=False)
        sys.exit(FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
