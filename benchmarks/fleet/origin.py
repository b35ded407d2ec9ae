# SPDX-License-Identifier: Apache-2.0
"""What a publication costs the origin: a fine-tuned version to all robots, with and without a mirror, whole and as deltas.

The robots are the manager's own fetcher, delta and blob store, each on an empty folder. They reach the server through a relay,
which counts every byte that the server sends and cuts each tenth long answer in its middle: the robot goes on with ``Range``.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.fleet.server import Progress
from benchmarks.results import Table
from benchmarks.update.finetunes import BASE, FineTune, Size, make
from vla_checkpoint import Manifest
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.fetch.deltas import Deltas
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.source import join_url, parse_url
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem
from vla_sim.fleet.server import SERVE, FleetServer

FINE_TUNE = FineTune("lr1e-5", 1e-5, (300,))
_CUT_AFTER_BYTES, _CUT_EVERY = 300_000, 10
_AT_ONCE = 8


class Relay:
    """Passes TCP connections on to ``target`` and counts. Use as a context manager."""

    def __init__(self) -> None:
        self.target, self.sent, self.cut = 0, 0, 0
        self._long = itertools.count(1)
        self._passing: set[asyncio.Task[None] | None] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        self._ready.wait(30.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30.0)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self._ready.set()
            await self._over.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        async with asyncio.TaskGroup() as both:
            self._passing.add(task := asyncio.current_task())  # asyncio itself keeps no task
            both.create_task(self._pass_on(reader, to_server, counts=False))
            await self._pass_on(there, writer, counts=True)
            to_server.close()
        self._passing.discard(task)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, counts: bool) -> None:
        passed, cuts = 0, False
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
                passed, before = passed + len(data), passed
                if counts:
                    self.sent += len(data)
                    if before <= _CUT_AFTER_BYTES < passed:
                        cuts = next(self._long) % _CUT_EVERY == 0
                    if cuts:
                        self.cut += 1
                        target.transport.abort()
                        return
        except ConnectionError:
            return
        finally:
            target.close()


@dataclass(frozen=True)
class Site:
    """Where robots fetch from, and what they have already."""

    folder: Path
    origin: str
    mirror: str
    name: str
    version: str
    held: Path | None

    def robot(self, number: int) -> int:
        """Let one robot fetch the version; return the bytes of it that it received."""
        home = self.folder / f"robot-{number}"
        blobs = BlobStore(home / "blobs/sha256", home / "partial", Filesystem())
        blobs.blob_dir.mkdir(parents=True)
        blobs.partial_dir.mkdir()
        if self.held is not None:
            for file in self.held.iterdir():
                blobs.blob(file.name).hardlink_to(file)
        config = OtaConfig(store_dir="/unused", allowed_sources=(self.origin,), mirror_url=self.mirror, backoff_s=0.05)
        received = self._fetch(Fetcher(config, blobs), blobs)
        shutil.rmtree(home)
        return received.count

    def _fetch(self, fetcher: Fetcher, blobs: BlobStore) -> Received:
        received = Received()
        url = parse_url(f"{self.origin}/files/{self.name}/{self.version}/manifest.json")
        manifest = Manifest.parse(fetcher.manifest(url, received, _never))
        missing = {f.sha256: f.size for f in manifest.files if not blobs.blob(f.sha256).is_file()}
        deltas = Deltas(blobs, fetcher)
        chosen = deltas.choose(deltas.fetch(url, manifest.digest, received, _never), missing) if self.held else {}
        for sha256, size in missing.items():
            at = partial(join_url, url)
            offer = chosen.get(sha256)
            if offer is not None:
                why = deltas.use(offer, size, at(f"../../blobs/sha256/{offer.sha256}"), received, _ignore, _never)
                assert not why, why
            else:
                fetcher.blob([at(f"../../blobs/sha256/{sha256}")], sha256, size, received, _ignore, _never)
        assert all(blobs.blob(sha256).is_file() for sha256 in missing)
        return received


def measure(robots: int, size: Size, tell: Progress) -> Table:
    """Return what the server sends for one version to so many robots."""
    from support.bundles import make_bundle  # type: ignore[import-not-found]

    table = Table(
        f"A fine-tuned version to {robots} robots: what the server sends",
        [
            ("mb", "from the server [MB]", ".1f"),
            ("per_robot_kb", "each robot receives [kB]", ".0f"),
            ("share", "of all files to all [%]", ".2f"),
        ],
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (trained,) = make(folder / "trained", size, tell, [FINE_TUNE])
        for version, weights in (("1.0.0", BASE), ("1.1.0", trained)):
            data = (folder / "trained" / f"{weights}.bf16.safetensors").read_bytes()
            make_bundle(folder / version, version=version, files={"model.safetensors": data})
        relay = stack.enter_context(Relay())
        server = _server(folder / "server", relay)
        client = stack.enter_context(stack.enter_context(server).client())
        client.publish(folder / "1.0.0")
        published = client.publish(folder / "1.1.0", delta_from=["pick_place@1.0.0"])
        tell(f"bytes: the delta has {published['deltas'][0]['bytes']} of {published['deltas'][0]['instead_of']} bytes")
        held = folder / "held"
        held.mkdir()
        for entry in Manifest.parse((folder / "1.0.0" / "manifest.json").read_bytes()).files:
            (held / entry.sha256).hardlink_to(server.data / "blobs/sha256" / entry.sha256)
        whole = robots * Manifest.parse((folder / "1.1.0" / "manifest.json").read_bytes()).total_bytes
        for way, has in (("whole", None), ("deltas", held)):
            for mirrored in (False, True):
                with _mirror(relay.url, folder / f"mirror-{way}") if mirrored else _no_mirror() as mirror:
                    site = Site(folder, relay.url, mirror, "pick_place", "1.1.0", has)
                    before, cut = relay.sent, relay.cut
                    with ThreadPoolExecutor(_AT_ONCE) as at_once:
                        received = list(at_once.map(site.robot, range(robots)))
                sent = relay.sent - before
                label = f"{way}, {'a mirror' if mirrored else 'no mirror'}"
                tell(f"bytes, {label}: {sent} from the server, {relay.cut - cut} answers cut")
                table.row(label).add(mb=sent / 1e6, per_robot_kb=sum(received) / robots / 1e3, share=100 * sent / whole)
    return table


def _server(data: Path, relay: Relay) -> FleetServer:
    """Return a server, not started yet, that robots reach through the relay."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay.target = listener.getsockname()[1]
    server = FleetServer(data, options=("--public-url", relay.url, "--open-files"))
    server.port = relay.target
    return server


@contextmanager
def _mirror(origin: str, data: Path) -> Iterator[str]:
    command = [*SERVE[:-1], "mirror", "--origin", origin, "--data", str(data), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r" at (http\S+)", process.stdout.readline())
        assert found is not None, "the mirror does not start"
        yield found[1]
    finally:
        process.terminate()
        process.wait(30.0)
        process.stdout.close()


@contextmanager
def _no_mirror() -> Iterator[str]:
    yield ""


def _never() -> bool:
    return False


def _ignore(_: int) -> None:
    return None


def main() -> None:
    """Measure alone: ``python -m benchmarks.fleet.origin [ROBOTS]``."""
    print(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, SIZE, lambda text: print(text, flush=True)).text())


SIZE = Size(dim=192, layers=3, steps=60)

if __name__ == "__main__":
    main()
