# SPDX-License-Identifier: Apache-2.0
"""Fuzzing with a budget of time: ``make fuzz FUZZ_SECONDS=600``, one target: ``FUZZ_TARGETS=header``.

Each target runs in a process of its own, with bounded memory, where a write outside its own folder, a hang and any exception
that is not a coded error are findings. Coverage-guided (atheris) where that is installed, else and besides with hypothesis. A
finding's input is written to ``build/fuzz/``; it becomes a test beside the code that it broke.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

MEMORY_BYTES = 1 << 30
"""What a target may take beyond what its imports do [bytes]."""
INPUT_S = 30
"""One input may take so long on a busy machine [s]."""
START_S = 120
_WRITES = {
    "os.mkdir": [(0, 2)], "os.remove": [(0, 1)], "os.rmdir": [(0, 1)], "os.rename": [(0, 2), (1, 3)], "os.link": [(1, 3)],
    "os.symlink": [(1, 2)], "os.truncate": [(0, 0)], "os.chmod": [(0, 2)],
}  # fmt: skip
"""Audit events of changes: which arguments are the paths, and the descriptors that those are relative to."""
_OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Turns a write outside a folder into a finding, while a target runs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._active = folder.resolve(), False
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        places = _WRITES.get(event, [])
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _OPEN_TO_WRITE:
            places = [(0, 0)]
        for path, folder in places:
            if isinstance(arguments[path], (str, bytes, os.PathLike)):
                self._check(event, os.fsdecode(arguments[path]), arguments[folder])

    def _check(self, event: str, path: str, folder: Any) -> None:
        below = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
        place = Path(below or Path.cwd(), path)
        if not (place.parent.resolve() / place.name).is_relative_to(self._folder):
            raise AssertionError(f"{event} outside the target's folder: {path!r}")

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self._active = True
        signal.alarm(INPUT_S)
        try:
            yield
        finally:
            signal.alarm(0)
            self._active = False


def fuzz(name: str, engine: str, seconds: float, begin: int, scratch: Path, findings: Path) -> None:
    """Run one target in this process, beginning with seed ``begin``; a finding leaves it as an exception."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(
            include=["vla_checkpoint", "vla_ota_manager", "vla_learning", "vla_ros", "tuf"]
        ):
            from fuzz.targets import CODED, make_target
    else:
        from fuzz.targets import CODED, make_target
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    target = make_target(name, scratch / "target")
    watch, runs = Watch(scratch), 0
    signal.signal(signal.SIGALRM, _hang)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))

    def one(data: bytes) -> None:
        nonlocal runs
        runs += 1
        try:
            with watch(), contextlib.suppress(*CODED):
                target.run(data)
        except BaseException:
            (findings / name).write_bytes(data)
            raise

    for seed in target.seeds:
        with watch():
            target.run(seed)
    if engine == "atheris":
        corpus = scratch / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        options = [f"-max_total_time={max(1, round(seconds))}", f"-artifact_prefix={findings}/{name}-"]
        options += [f"-seed={begin}", "-verbosity=0", "-print_final_stats=1", "-max_len=20000"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()  # ends the process
    else:
        _hypothesis(target.seeds, one, seconds, begin)
    print(f"inputs: {runs}", flush=True)


def _hypothesis(seeds: list[bytes], one: Any, seconds: float, number: int) -> None:
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from fuzz.mutations import near

    end = time.monotonic() + seconds
    print(f"hypothesis begins with seed {number}")
    given_inputs = given(near(seeds))
    while time.monotonic() < end:
        number += 1
        quiet = settings(
            max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        seed(number)(quiet(given_inputs(one)))()


def _hang(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"one input takes longer than {INPUT_S} s")


def main() -> int:
    """Run the targets, some side by side; 1 if there was a finding."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of all targets together [s]")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) % 2**31, help="of what is drawn; default: the clock"
    )
    parser.add_argument("--targets", nargs="*", default=[], help="only these")
    parser.add_argument(
        "--findings", type=Path, default=Path("build/fuzz"), help="folder for inputs that broke something"
    )
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    if options.engine:
        scratch, findings = options.scratch.resolve(), options.findings.resolve()
        fuzz(options.targets[0], options.engine, options.seconds, options.seed, scratch, findings)
        return 0
    from fuzz.targets import TARGETS

    engines = ["hypothesis", *(["atheris"] if importlib.util.find_spec("atheris") else [])]
    if len(engines) == 1:
        print("atheris is not installed: hypothesis alone, not guided by coverage", flush=True)
    work = [(name, engine) for name in options.targets or TARGETS for engine in engines]
    cores = os.cpu_count() or 1
    each_s = options.seconds * min(cores, len(work)) / len(work)
    with ThreadPoolExecutor(cores) as pool:
        broken = [
            name
            for name, failed in pool.map(lambda item: _apart(*item, each_s, options.seed, options.findings), work)
            if failed
        ]
    if broken:
        print(f"findings in {', '.join(dict.fromkeys(broken))}: inputs in {options.findings}/", flush=True)
    return 1 if broken else 0


def _apart(name: str, engine: str, seconds: float, begin: int, findings: Path) -> tuple[str, bool]:
    """Run one target in a process of its own; return its name and whether that ended with a finding."""
    with tempfile.TemporaryDirectory(prefix="vla_fuzz_") as scratch:
        options = ["--engine", engine, "--targets", name, "--seconds", f"{seconds:.1f}"]
        options += ["--seed", str(begin), "--findings", str(findings)]
        command = [sys.executable, "-m", "fuzz", *options, "--scratch", scratch]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, env=environment, timeout=seconds + START_S, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired as e:
            print(f"{name} ({engine}) hangs:\n{(e.stderr or b'')[-4000:]!r}", flush=True)
            return name, True
    found = re.search(r"^(?:stat::number_of_executed_units|inputs): +(\d+)", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode or found is None:
        print(name, engine, done.stdout[-2000:], done.stderr[-6000:], sep="\n", flush=True)
        return name, True
    print(f"{name:14} {engine:10} {found[1]:>8} inputs", flush=True)
    return name, False


if __name__ == "__main__":
    sys.exit(main())
