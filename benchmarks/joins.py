# SPDX-License-Identifier: Apache-2.0
"""How long a publisher of commands waits while other processes join and are killed, by shared memory and by UDP, in one run.

python -m benchmarks.joins --joins 300 --out build/bench
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.results import Table, finish
from benchmarks.ros.joining import RATE_HZ, WAYS
from vla_sim.dds import DEMO_DOMAINS, claim_domain
from vla_sim.witness import Late, Witness

_STAY_S = (1.0, 2.0)
"""How long a node that joined stays before it is killed [s]."""


def main() -> int:
    """Run both publishers beside the same joins and kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joins", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of joins.json")
    arguments = parser.parse_args()
    with claim_domain(DEMO_DOMAINS) as domain, Witness(RATE_HZ) as witness:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        publishers = {way: _start(environment, "publish", way) for way in WAYS}
        begin_s = time.monotonic()
        for i in range(arguments.joins):
            joined = _start(environment, "join")
            time.sleep(random.uniform(*_STAY_S))
            joined.kill()
            joined.communicate()
            if i % 25 == 24:
                print(f"{i + 1} of {arguments.joins} joined and killed", flush=True)
        found = {}
        for way, process in publishers.items():
            process.terminate()
            found[way] = json.loads(process.communicate(timeout=30.0)[0].splitlines()[-1])
        late = witness.late(begin_s)
    table = Table(
        f"publish() at {RATE_HZ:.0f} Hz while {arguments.joins} nodes join and are killed",
        (
            ("count", "calls", ".0f"),
            ("slow", "over a period", ".0f"),
            ("ours", "of them not the machine's", ".0f"),
            ("worst_ms", "worst of those [ms]", ".0f"),
        ),
    )
    for way, numbers in found.items():
        assert numbers["subscriptions"] > 0, f"{way}: nobody ever joined"
        ours = [e - b for b, e in numbers["slow"] if not _machines(b, e, late)]
        print(f"{way}: calls over a period [ms]: {', '.join(f'{1e3 * seconds:.0f}' for seconds in ours) or 'none'}")
        table.row(way).add(
            count=numbers["count"], slow=len(numbers["slow"]), ours=len(ours), worst_ms=1e3 * max(ours, default=0.0)
        )
    finish("joins", arguments.out, describe(), {"joins": arguments.joins}, [table])
    return 0


def _machines(begin_s: float, end_s: float, late: list[Late]) -> bool:
    """Whether the witness was late for most of a call."""
    inside = [w for w in late if w.woke_s > begin_s and w.awake_s < end_s]
    return sum(min(w.woke_s, end_s) - max(w.awake_s, begin_s) for w in inside) > 0.5 * (end_s - begin_s)


def _start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Start a process of ``benchmarks.ros.joining`` and wait until it says that it is ready."""
    command = [sys.executable, "-m", "benchmarks.ros.joining", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.wait()}")
    return process


if __name__ == "__main__":
    sys.exit(main())
