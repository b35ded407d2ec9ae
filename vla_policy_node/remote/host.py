# SPDX-License-Identifier: Apache-2.0
"""The program on the machine with the GPU: ``vla_ota_worker_host``, or ``python -m vla_policy_node.remote.host``.

A robot's bundle is loaded here as on the robot, by the same pool: spare worker, digests, golden replay, warm-up, hung and crashed
workers. Two generations are in memory at a time. A robot sends data and never code: policy types are named here.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import observation_layout
from vla_policy_node.remote.cache import Cache
from vla_policy_node.remote.line import CONNECT_TIMEOUT_S, Line, tls_context
from vla_policy_node.remote.session import LOG, Session
from vla_policy_node.worker.api import WorkerConfig, WorkerEvent
from vla_policy_node.worker.pool import WorkerPool
from vla_ros.start import REFUSED

_MAX_CONNECTIONS = 8
_ACCEPT_AGAIN_S = 0.1
_LOOK_UP_S = 0.5  # a signal that another thread took does not end this one's wait
_LOAD_TIMEOUT_S, _INFERENCE_TIMEOUT_S = 86400.0, 600.0  # the robot, which knows its own, ends its connection earlier


class Host:
    """Sessions on one pool of workers."""

    def __init__(self, config: WorkerConfig, cache: Cache, context: ssl.SSLContext) -> None:
        self._cache, self._context = cache, context
        nothing = Arena.create(observation_layout({}, 1), 2, "vla_ota_nothing")  # each session brings its own
        self._pool = WorkerPool(config, nothing, {}, self._on_event)
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def run(self, listener: socket.socket) -> None:
        """Serve until an exception comes; the workers end with it."""
        self._pool.start()
        listener.settimeout(_LOOK_UP_S)
        try:
            while True:
                try:
                    sock, address = listener.accept()
                except TimeoutError:
                    continue
                except OSError as e:  # whoever came has gone again
                    LOG.warning("%s", e)
                    time.sleep(_ACCEPT_AGAIN_S)
                    continue
                if self._free.acquire(blocking=False):
                    name = f"{address[0]}:{address[1]}"
                    threading.Thread(target=self._serve, args=(sock, name), name=name, daemon=True).start()
                else:
                    sock.close()
        finally:
            self._pool.close()

    def _serve(self, sock: socket.socket, name: str) -> None:
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            try:
                line = Line(self._context.wrap_socket(sock, server_side=True))
            except (OSError, ValueError) as e:
                LOG.warning("%s was not let in: %s", name, e)
                sock.close()
                return
            session = Session(line, self._pool, self._cache, name)
            with self._lock:
                self._sessions.add(session)
            try:
                session.run()
            finally:
                with self._lock:
                    self._sessions.remove(session)
                    session.close()
        finally:
            self._free.release()

    def _on_event(self, event: WorkerEvent) -> None:
        LOG.log(logging.WARNING if event.kind == "LOST" else logging.INFO, "%s %s", event.kind, event.message)
        with self._lock:
            for session in self._sessions:
                session.note(event)


def main() -> int:
    """Run until SIGTERM or Ctrl-C; 78 if the next start would be refused in the same way."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    config = WorkerConfig(
        paths=tuple(options.worker_path),
        policy_modules=dict(options.policy_module),
        device=options.device,
        threads=options.threads,
        load_timeout_s=_LOAD_TIMEOUT_S,
        inference_timeout_s=_INFERENCE_TIMEOUT_S,
    )
    try:
        context = tls_context(options.tls, server=True)
        cache = Cache(Path(options.cache), int(options.cache_gib * (1 << 30)))
        listener = socket.create_server((options.address, options.port))
    except PolicyNodeError as e:
        LOG.critical("%s: %s", e.code, e.message)
        return REFUSED
    except (OSError, OverflowError) as e:
        LOG.critical("%s:%d: %s", options.address, options.port, e)
        return 1
    LOG.info("listens on port %d", listener.getsockname()[1])
    with listener, contextlib.suppress(_Ended):
        Host(config, cache, context).run(listener)
    return 0


class _Ended(BaseException):
    """The program was asked to end."""


def _end(*_: Any) -> None:
    raise _Ended


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vla_ota_worker_host", description="Runs robots' policies on this machine.")
    parser.add_argument("--tls", required=True, metavar="DIR", help="folder with ca.pem, cert.pem and key.pem")
    parser.add_argument("--port", required=True, type=int, help="TCP port; 0 = any, which the log names")
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on; default: all of IPv4")
    parser.add_argument("--cache", required=True, metavar="DIR", help="folder for the files that robots send")
    parser.add_argument("--cache-gib", type=float, default=100.0, metavar="N", help="most of them; default: 100")
    parser.add_argument("--device", default="cpu", help="device of the policies as torch names it, for example cuda:0")
    parser.add_argument("--threads", type=int, default=1, help="threads of a policy's own computations; default: 1")
    parser.add_argument(
        "--policy-module",
        action="append",
        default=[],
        type=_pair,
        metavar="TYPE=MODULE",
        help="a policy type of your own",
    )
    parser.add_argument("--worker-path", action="append", default=[], metavar="DIR", help="folder for its module")
    return parser.parse_args()


def _pair(text: str) -> tuple[str, str]:
    name, separator, module = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not TYPE=MODULE")
    return name, module


if __name__ == "__main__":
    sys.exit(main())
