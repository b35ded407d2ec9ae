# SPDX-License-Identifier: Apache-2.0
"""From a bundle's files to a policy, inside the worker; ``plan.py`` decided what to read and what it must hash to.

Every tensor is read straight to its place in the weights' arena, and hashed there: the bytes that were checked are the bytes
that are used, whatever happens to the files meanwhile.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import operator
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from vla_policy_node.errors import WorkerError
from vla_policy_node.policies.base import Policy, PolicySpec, TensorView

READ_BYTES = 1 << 20  # hashed while the processor's cache still holds them
LEROBOT_TYPES = ("act", "diffusion", "vqbet", "smolvla", "pi0", "pi05")
"""Policy types of ``vla_policy_node.policies.lerobot``, where LeRobot is installed."""
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{2,63}")
_RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip

Fraction = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


def find_policy_module(policy_type: str, modules: Mapping[str, str]) -> str:
    """Return the name of a policy type's module: configured, installed as entry point, or built in.

    Raises :class:`WorkerError` ``POLICY_TYPE_UNKNOWN``.
    """
    if policy_type in modules:
        return modules[policy_type]
    for entry in importlib.metadata.entry_points(group="vla_ota.policies"):
        if entry.name == policy_type:
            return entry.module
    builtin = f"vla_policy_node.policies.{policy_type}"
    # The type comes from a file: only a plain name may become part of a module's name.
    if _TYPE.fullmatch(policy_type) and importlib.util.find_spec(builtin) is not None:
        return builtin
    needs = ""
    if policy_type in LEROBOT_TYPES:
        if installed_version("lerobot") is not None:  # find_spec would take any folder of that name
            return "vla_policy_node.policies.lerobot"
        needs = ", which has no lerobot"
    raise WorkerError(
        "POLICY_TYPE_UNKNOWN",
        f"no module for policy type {policy_type!r} in the workers' interpreter, {sys.executable}{needs}: name the module "
        f"in policy_modules ({policy_type}=MODULE), or the interpreter that has it in worker_python",
    )


def check_requirements(requires: Mapping[str, str]) -> None:
    """Compare the versions that a bundle asks for with what this interpreter has.

    Raises :class:`WorkerError` ``REQUIREMENT_UNMET``.
    """
    for name, wanted in requires.items():
        found = installed_version(name)
        if found is None or not version_fits(found, wanted):
            raise WorkerError(
                "REQUIREMENT_UNMET",
                f"the bundle needs {name} {wanted}; the workers' interpreter, {sys.executable}, has {found or 'none'}",
            )


def import_ahead(begin: Mapping[str, Any]) -> None:
    """Import what the next policy probably needs; what cannot be imported is logged, and fails the load if it is needed.

    Args:
        begin: ``imports`` (modules), ``policy_type`` (empty: none), ``policy_modules``, ``device``.
    """
    for name in begin["imports"]:
        try:
            importlib.import_module(name)
        except Exception as e:
            sys.stderr.write(f"not imported ahead: {name}: {type(e).__name__}: {e}\n")
    if not begin["policy_type"]:
        return
    try:
        module = importlib.import_module(find_policy_module(begin["policy_type"], begin["policy_modules"]))
        if hasattr(module, "preload"):
            module.preload(begin["device"])
    except Exception as e:
        sys.stderr.write(f"policy type {begin['policy_type']} not imported ahead: {type(e).__name__}: {e}\n")


def versions() -> dict[str, str]:
    """Return what a reader of the log wants to know of this interpreter: its own version, and those of torch and LeRobot."""
    found = {name: installed_version(name) for name in ("torch", "lerobot")}
    return {"python": platform.python_version()} | {name: v for name, v in found.items() if v is not None}


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_fits(version: str, wanted: str) -> bool:
    """Whether ``version`` meets every clause of ``wanted``, such as ``>=0.4,<0.5``; only the leading numbers count."""
    for clause in wanted.split(","):
        compare = _COMPARE[clause.rstrip("0123456789.")]
        number = clause.lstrip("<>=!")
        pairs = itertools.zip_longest(_release(version), _release(number), fillvalue=0)
        have, want = zip(*pairs, strict=True)
        if not compare(have, want):
            return False
    return True


def is_code(code: object) -> bool:
    """Whether something has the form of an error's code."""
    return isinstance(code, str) and _CODE.fullmatch(code) is not None


def _release(version: str) -> list[int]:
    """``2.10.0+cu128`` → [2, 10, 0]."""
    match = _RELEASE.match(version)
    return [int(n) for n in match[0].split(".")] if match else [0]


def read_weights(bundle_dir: Path, files: list[dict[str, Any]], arena: memoryview, fraction: Fraction) -> None:
    """Read every tensor to its offset in ``arena`` and compare its SHA-256, taken there, with the manifest's.

    As many tensors at a time as the process may use processors, four at most: their threads inherit this one's nice level.

    Raises :class:`WorkerError` ``LOAD_FAILED`` when a file is missing or too short, ``DIGEST_TENSOR``.
    """
    total = sum(t["nbytes"] for f in files for t in f["tensors"]) or 1
    done, lock = 0, threading.Lock()

    def read(fd: int, path: Path, tensor: dict[str, Any]) -> None:
        nonlocal done
        view = arena[tensor["offset"] : tensor["offset"] + tensor["nbytes"]]
        digest, filled = hashlib.sha256(), 0
        while filled < len(view):
            count = os.preadv(fd, [view[filled : filled + READ_BYTES]], tensor["start"] + filled)
            if count == 0:
                raise WorkerError("LOAD_FAILED", f"{path}: ended inside tensor {tensor['name']!r}")
            digest.update(view[filled : filled + count])
            filled += count
            with lock:
                done += count
                fraction(done / total)
        if digest.hexdigest() != tensor["sha256"]:
            raise WorkerError("DIGEST_TENSOR", f"{path}: tensor {tensor['name']!r} is not the one the manifest lists")

    threads = min(4, len(os.sched_getaffinity(0)))
    for file in files:
        path = bundle_dir / file["path"]
        with _opened(path) as fd, ThreadPoolExecutor(threads, "reader") as executor:
            list(executor.map(partial(read, fd, path), file["tensors"]))  # the first of what they raise


def view_weights(entries: list[dict[str, Any]], arena: memoryview) -> dict[str, TensorView]:
    """Return the tensors that lie in ``arena``, by name."""
    return {
        t["name"]: TensorView(t["dtype"], tuple(t["shape"]), arena[t["offset"] : t["offset"] + t["nbytes"]])
        for t in entries
    }


def add_aliases(files: list[dict[str, Any]], tensors: dict[str, TensorView]) -> None:
    """Give tied tensors their other names."""
    for file in files:
        tensors.update({alias: tensors[name] for alias, name in file["aliases"].items()})


def check_files(bundle_dir: Path, files: list[dict[str, Any]]) -> None:
    """Compare the SHA-256 of the bundle's other files (configuration, statistics, golden) with the manifest's.

    Raises :class:`WorkerError` ``DIGEST_FILE`` or ``LOAD_FAILED``.
    """
    for file in files:
        digest = hashlib.sha256()
        with _opened(bundle_dir / file["path"]) as fd:
            while data := os.read(fd, 1 << 20):
                digest.update(data)
        if digest.hexdigest() != file["sha256"]:
            raise WorkerError("DIGEST_FILE", f"{bundle_dir / file['path']}: its SHA-256 is not the manifest's")


def build_policy(module_name: str, bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Policy:
    """Import the policy's module and let it build the policy.

    Raises :class:`WorkerError` with the ``code`` of the policy's own error, else ``OUT_OF_MEMORY`` or ``LOAD_FAILED``.
    """
    with _policy_errors(f"policy module {module_name}"):
        module: ModuleType = importlib.import_module(module_name)
        policy: Policy = module.load(bundle_dir, tensors, device)
        return policy


def check_spec(
    spec: PolicySpec, expected: Mapping[str, Any], features: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Compare what the policy says of itself with its configuration and with the robot's observation.

    Args:
        spec: of the built policy.
        expected: ``horizon``, ``execute``, ``action_dim`` and ``history`` as the bundle's files have them.
        features: the node's observation, feature → (dtype, shape).

    Raises :class:`WorkerError` ``SPEC_MISMATCH`` (configuration) or ``OBSERVATION_MISMATCH`` (robot).
    """
    for key, value in expected.items():
        found = getattr(spec, key)
        if found != value:
            raise WorkerError("SPEC_MISMATCH", f"{key}: the policy has {found}, the bundle's files say {value}")
    if not 1 <= spec.execute <= spec.horizon:
        raise WorkerError("SPEC_MISMATCH", f"execute: {spec.execute} is not within 1 and the horizon, {spec.horizon}")
    for name, feature in spec.observation.items():
        if name not in features:
            raise WorkerError(
                "OBSERVATION_MISMATCH",
                f"the policy needs {name!r}, the robot contract has {sorted(features)}: add it, or call an observation of the "
                "contract so",
            )
        wanted = (feature.dtype, tuple(feature.shape))
        if features[name] != wanted:
            found = features[name]
            raise WorkerError(
                "OBSERVATION_MISMATCH", f"observation {name!r}: the policy needs {wanted}, the robot gives {found}"
            )


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open for reading; a file system's error becomes ``LOAD_FAILED``."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise WorkerError("LOAD_FAILED", f"{path}: {e.strerror}") from e
    try:
        yield fd
    except OSError as e:
        raise WorkerError("LOAD_FAILED", f"{path}: {e.strerror}") from e
    finally:
        os.close(fd)


@contextmanager
def _policy_errors(what: str) -> Iterator[None]:
    """Give whatever a policy raises a code; its own, if it has one."""
    try:
        yield
    except WorkerError:
        raise
    except (Exception, SystemExit) as e:
        code = getattr(e, "code", None)
        if isinstance(e, MemoryError) or "can't allocate memory" in str(e) or "out of memory" in str(e):
            code = "OUT_OF_MEMORY"  # torch's are RuntimeErrors, on the CPU and on a GPU
        elif not is_code(code):
            code = "LOAD_FAILED"
        raise WorkerError(str(code), f"{what}: {type(e).__name__}: {e}") from e


class Stopwatch:
    """Seconds spent in each part of a preparation; a part may come more than once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time inside the ``with`` towards ``part``."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begin
