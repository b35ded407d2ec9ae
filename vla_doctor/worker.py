# SPDX-License-Identifier: Apache-2.0
"""Whether the workers' interpreter can import what a policy needs: it is started, niced, and asked. And the worker host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_doctor.findings import Finding, ok, problem
from vla_doctor.seen import with_defaults
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.remote.line import LineError, connect
from vla_policy_node.worker.environment import worker_environment

MODULES = ("numpy", "safetensors", "torch")
TIMEOUT_S = 30.0

_PROBE = """
import importlib, json, os, resource, sys
os.nice(19)
missing, versions = {}, {}
for name in sys.argv[2:]:
    try:
        versions[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
    except Exception as e:
        missing[name] = f"{type(e).__name__}: {e}"
device = ""
if sys.argv[1] != "cpu" and "torch" not in missing:
    try:
        importlib.import_module("torch").zeros(1, device=sys.argv[1])
    except Exception as e:
        device = f"{type(e).__name__}: {e}"
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"python": sys.version.split()[0], "versions": versions, "missing": missing, "device": device, "peak": peak}))
"""


@dataclass(frozen=True)
class WorkerProbe:
    """What an interpreter said; ``error`` if it could not."""

    python: str
    answer: Mapping[str, Any] | None = None
    error: str = ""
    timed_out: bool = False

    @property
    def peak_bytes(self) -> int:
        """Memory of an interpreter with its imports done [bytes]; 0 = not known."""
        return int(self.answer["peak"]) if self.answer else 0


def probe_worker(
    parameters: Mapping[str, Any] | None, modules: Sequence[str] = MODULES, timeout_s: float = TIMEOUT_S
) -> WorkerProbe:
    """Start the interpreter that ``parameters`` of the policy node name, in a worker's environment, and let it import."""
    settings = with_defaults(PolicyNodeConfig, parameters)
    python = settings["worker_python"] or sys.executable
    device = settings["device"]
    if settings["worker_host"]:  # which has the policies' modules and device
        device, modules = "cpu", ("numpy",)
    command = [python, "-c", _PROBE, device, *modules]
    try:
        done = subprocess.run(
            command,
            env=worker_environment(os.environ, settings["worker_paths"], settings["worker_threads"]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            return WorkerProbe(python, error=lines[-1])
        return WorkerProbe(python, json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return WorkerProbe(python, error=f"not done after {timeout_s:.0f} s", timed_out=True)
    except OSError as e:
        return WorkerProbe(python, error=e.strerror or repr(e))
    except (ValueError, IndexError) as e:
        return WorkerProbe(python, error=f"it does not answer as Python does: {e}")


def check_worker(probe: WorkerProbe, parameters: Mapping[str, Any] | None) -> list[Finding]:
    """Judge what the interpreter said."""
    settings = with_defaults(PolicyNodeConfig, parameters)
    what = "workers' interpreter"
    found = [
        problem("WORKER_PATH_MISSING", what, f"{path} of worker_paths is not a folder")
        for path in settings["worker_paths"]
        if not Path(path).is_dir()
    ]
    if probe.answer is None:
        code = "WORKER_SLOW" if probe.timed_out else "WORKER_PYTHON_MISSING"
        return [*found, problem(code, what, f"{probe.python}: {probe.error}", python=probe.python)]
    missing, device = probe.answer["missing"], probe.answer["device"]
    if missing:
        text = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        names = {"python": probe.python, "modules": " ".join(missing)}
        found.append(problem("WORKER_IMPORT", what, f"{probe.python} cannot import {text}", **names))
    elif device:
        found.append(problem("WORKER_DEVICE", what, f"{settings['device']}: {device}"))
    versions = ", ".join(f"{name} {version}" for name, version in probe.answer["versions"].items())
    return found or [ok(what, f"{probe.python}: Python {probe.answer['python']}, {versions}")]


def check_worker_host(address: str, tls: str) -> list[Finding]:
    """Connect to the host on which the robot's policies run, ``name:port``, with the folder ``tls``; neither = they run here."""
    if not address and not tls:
        return []
    try:
        connect(address, tls).close()
    except LineError as e:
        return [problem("WORKER_HOST", "worker host", f"{e.code}: {e.message}", cause=e.code)]
    return [ok("worker host", f"{address} lets this robot in")]
