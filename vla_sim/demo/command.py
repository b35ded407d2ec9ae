# SPDX-License-Identifier: Apache-2.0
"""A demonstration as a command: its one option, and how it ends when somebody stops it."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class StoppedError(Exception):
    """A signal asked the demonstration to end."""


def run_command(
    run: Callable[[Path], int], prog: str, description: str, out: str, arguments: Sequence[str] | None
) -> int:
    """Run a demonstration and return its exit status.

    Args:
        run: the demonstration; gets the folder for what it writes, and returns the exit status.
        prog, description: for ``--help``.
        out: folder, unless ``--out`` names another one.
        arguments: of the command line; None: the process's own.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for what it writes")
    folder = parser.parse_args(arguments).out.resolve()
    try:
        with _stoppable():
            return run(folder)
    except StoppedError as e:
        print(f"\nstopped by {e}; every process of the demonstration has been ended", flush=True)
        return 130


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into an exception; later ones do not disturb the clean-up."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise StoppedError(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
