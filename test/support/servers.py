# SPDX-License-Identifier: Apache-2.0
"""Real servers from PyPI for tests: PostgreSQL (the programs that ``pgserver`` brings), NATS, and moto's stand-in for S3.

Each is a process of its own that a test may kill with SIGKILL and start again. They keep their address when they do.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

import asyncpg
import httpx

from support.waits import TIMEOUT_S, wait_for

_NOBODY = 65534


class _Process:
    """A server as a process. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vla_servers_"))  # short: it holds a Unix socket
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = process = self._spawn(log.fileno())

        def answers() -> bool:
            assert process.poll() is None, (self._folder / "log").read_text()
            return self._answers()

        wait_for(answers, type(self).__name__)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


class Postgres(_Process):
    """PostgreSQL on a Unix socket. It does not run as root, so root runs it as nobody."""

    def __init__(self) -> None:
        super().__init__()
        self._programs = _programs(self._folder)
        self._user = _NOBODY if os.geteuid() == 0 else None
        self._data = self._folder / "data"
        if self._user is not None:
            os.chown(self._folder, self._user, self._user)
        options = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
        made = subprocess.run(
            [self._programs / "initdb", "-D", self._data, *options], user=self._user, cwd=self._folder, capture_output=True
        )  # fmt: skip
        assert made.returncode == 0, made.stderr.decode()

    def url(self, name: str) -> str:
        """Return the URL of a database, as ``vla-fleet serve --database`` takes it; make the database if it is missing."""

        async def make() -> None:
            connection = await asyncpg.connect(host=str(self._folder), user="postgres", database="postgres")
            with suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f'CREATE DATABASE "{name}"')
            await connection.close()

        asyncio.run(make())
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def query(self, name: str, statement: str) -> list[asyncpg.Record]:
        """Return what a statement finds in a database."""

        async def ask() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(host=str(self._folder), user="postgres", database=name)
            try:
                return list(await connection.fetch(statement))
            finally:
                await connection.close()

        return asyncio.run(ask())

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        options = {"listen_addresses": "", "fsync": "off", "unix_socket_directories": str(self._folder)}
        return subprocess.Popen(
            [self._programs / "postgres", "-D", self._data, *(f"--{name}={value}" for name, value in options.items())],
            user=self._user, cwd=self._folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def _answers(self) -> bool:
        async def connects() -> bool:
            with suppress(OSError, asyncpg.PostgresError):
                connection = await asyncpg.connect(host=str(self._folder), user="postgres", database="postgres")
                await connection.close()
                return True
            return False

        return asyncio.run(connects())


def _programs(folder: Path) -> Path:
    """Return the folder of PostgreSQL's programs; a copy, if only this user can reach the original."""
    found = importlib.util.find_spec("pgserver")
    assert found is not None and found.submodule_search_locations
    installed = Path(found.submodule_search_locations[0]).resolve() / "pginstall"
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in installed.parents):
        return installed / "bin"
    copied, libraries = folder / "pgserver" / "pginstall", installed.parent.with_name("pgserver.libs")
    shutil.copytree(installed, copied, symlinks=True)
    if libraries.is_dir():  # the programs look for them there
        shutil.copytree(libraries, folder / libraries.name)
    folder.chmod(0o755)
    return copied / "bin"


class Nats(_Process):
    """NATS on a port of this machine."""

    def __init__(self) -> None:
        super().__init__()
        self._port = _free_port()
        self.url = f"nats://127.0.0.1:{self._port}"

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).parent / "nats-server"
        return subprocess.Popen([program, "-a", "127.0.0.1", "-p", str(self._port)], stdout=log, stderr=log)

    def _answers(self) -> bool:
        return _listens(self._port)


class Moto(_Process):
    """Moto's server: it speaks S3, but is no object store that anybody would use for data."""

    def __init__(self, bucket: str = "fleet") -> None:
        super().__init__()
        self._port = _free_port()
        self.url = f"s3://{bucket}/robots"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }  # fmt: skip
        self._bucket = bucket

    def start(self) -> None:
        super().start()
        # its first answer takes long: it imports S3 then
        httpx.put(f"{self.environment['AWS_ENDPOINT_URL']}/{self._bucket}", timeout=TIMEOUT_S).raise_for_status()

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).parent / "moto_server"
        command = [program, "-H", "127.0.0.1", "-p", str(self._port)]
        return subprocess.Popen(command, stdout=log, stderr=log)

    def _answers(self) -> bool:
        return _listens(self._port)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
