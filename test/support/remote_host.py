"""A worker host as a program of its own, with certificates made here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from support.scripted import POLICY_MODULES, TEST_FOLDER
from support.waits import TIMEOUT_S, wait_for
from vla_policy_node.worker.api import Remote
from vla_policy_node.worker.environment import PACKAGE_ROOT, worker_environment


def make_ca(folder: Path) -> None:
    """Make a CA, and a folder ``robot`` and one ``host`` with what each needs."""
    folder.mkdir(parents=True)
    _openssl(
        folder, "req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=room", "-days", "2"
    )
    for name in ("robot", "host"):
        place = folder / name
        place.mkdir()
        (place / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
        _openssl(place, "req", *_NEW_KEY, "-keyout", "key.pem", "-out", "request.pem", "-subj", f"/CN={name}")
        (place / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        _openssl(
            place, "x509", "-req", "-in", "request.pem", "-CA", "../ca.pem", "-CAkey", "../ca.key", "-CAcreateserial",
            "-out", "cert.pem", "-days", "2", "-extfile", "names",
        )  # fmt: skip


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=TIMEOUT_S)


class RemoteHost:
    """``with`` starts the program and ends it; what it logs is in a file. Started again, it has the same port."""

    def __init__(self, folder: Path, *options: str, silence_s: float = 20.0) -> None:
        """``silence_s``: longer than a machine stalls, unless the test is about silence."""
        self._folder, self._options = folder, options
        self.tls = folder / "tls"
        if not self.tls.exists():
            make_ca(self.tls)
        self.log_file = folder / "host.log"
        self.silence_s = silence_s
        self.port = 0

    def __enter__(self) -> RemoteHost:
        modules = [f"--policy-module={name}={module}" for name, module in POLICY_MODULES.items()]
        command = [
            sys.executable, "-m", "vla_policy_node.remote.host", "--tls", str(self.tls / "host"), "--port", str(self.port),
            "--address", "127.0.0.1", "--cache", str(self._folder / "cache"), "--worker-path", TEST_FOLDER,
            *modules, *self._options,
        ]  # fmt: skip
        environment = worker_environment(os.environ)
        begin = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=PACKAGE_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_for(lambda: "listens on port" in self.log[begin:] or self.process.poll() is not None, "the host")
            assert self.process.poll() is None, self.log
            self.port = int(self.log.rpartition("listens on port ")[2].split()[0])
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    @property
    def log(self) -> str:
        """All that was logged so far."""
        return self.log_file.read_text(errors="replace")

    @property
    def address(self) -> str:
        """What a robot calls it."""
        return f"127.0.0.1:{self.port}"

    @property
    def remote(self) -> Remote:
        """What a robot's pool needs."""
        return Remote(self.address, str(self.tls / "robot"), self.silence_s)
