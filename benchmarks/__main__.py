# SPDX-License-Identifier: Apache-2.0
"""All benchmarks, one after the other, each in a process of its own: ``python -m benchmarks --out build/bench``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import describe, sentence

BENCHMARKS = ("control_loop", "swap", "store")
_TIMEOUT_S = 300.0


def main() -> int:
    """Run them; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON files")
    parser.add_argument("--runs", type=int, default=3, help="at most so many runs of each way")
    arguments = parser.parse_args()
    print(sentence(describe()), flush=True)
    failed = []
    for name in BENCHMARKS:
        begin = time.monotonic()
        print(f"\n=== {name}\n", flush=True)
        options = ["--out", str(arguments.out), "--runs", str(arguments.runs)]
        try:
            code = subprocess.run(
                [sys.executable, "-m", f"benchmarks.{name}", *options], timeout=_TIMEOUT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:  # its programs end with it
            code = -1
        if code:
            failed.append(name)
        print(f"[{name}: {time.monotonic() - begin:.0f} s]", flush=True)
    print(f"\nfigures of every run: {arguments.out}/*.json" if not failed else f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
