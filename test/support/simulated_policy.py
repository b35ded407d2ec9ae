# SPDX-License-Identifier: Apache-2.0
"""A policy node in a file: it implements ``PolicyPort`` as the real one does, and outlives the manager that talks to it.

Generations, standby, idempotent swaps, the trial lease by the machine's monotonic clock, loss of a worker, restart from
``current``. What it lacks is a robot. The file is read and written under a lock, so that several processes see one policy node.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_checkpoint import CheckpointError, load_manifest, verify_bundle
from vla_ota_manager.port import Cancelled, OnProgress, PolicySnapshot, PrepareResult, SwapRequest, SwapResult
from vla_policy_node.errors import fault_of
from vla_ros.fault import Fault

Document = dict[str, Any]


class SimulatedPolicy:
    """See the module. Keys of the document (see ``boot``) make it misbehave; ``crashes_at_swap`` names a version on trial."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def boot(path: Path, current: Path | None = None) -> SimulatedPolicy:
        """Start a policy node, from the bundle that ``current`` names if there is one; lost is what an earlier one had loaded."""
        policy = SimulatedPolicy(path)
        document: Document = {
            "boot_id": uuid.uuid4().hex, "count": 0, "active": None, "standby": None, "prepared": None, "lease": None,
            "cause": "", "holding": "", "running": True, "absent": False, "log": [],
            "unconfigured": "", "error": ["", "", 0.0], "motion": True, "asked": 0,
            "refuse_prepare": "", "refuse_swap": "", "prepare_s": 0.0, "swap_s": 0.0,
            "crashed": {}, "crashes_at_swap": "", "episode": "", "fails_to_prepare": {}, "shadowed": [], "shows_shadow": False,
            "experiment": "", "load_in_place": False, "fails_to_load": {},
            "digests": [], "draw_error": ["", ""],
        }  # fmt: skip
        if not path.exists():
            path.write_text("{}")
        with policy.edit() as old:
            old.clear()
            old.update(document)
        if current is not None and current.exists():
            manifest = load_manifest(current)
            with policy.edit() as edited:
                policy._activate(edited, {"digest": manifest.digest, "version": manifest.version}, "UPDATE")
        return policy

    @contextmanager
    def edit(self) -> Iterator[Document]:
        """Change the document under its lock (also for tests, to make it misbehave)."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document: Document = json.loads(self.path.read_text())
            self._expire(document)
            yield document
            aside = self.path.with_suffix(".new")  # whoever writes may be killed
            aside.write_text(json.dumps(document))
            aside.replace(self.path)

    def look(self) -> Document:
        with self.edit() as document:
            return document

    # -- PolicyPort ---------------------------------------------------------------------------------------------------------

    def status(self) -> PolicySnapshot | None:
        document = self.look()
        active, lease = document["active"] or {}, document["lease"]
        return PolicySnapshot(
            age_s=60.0 if document["absent"] or document["unconfigured"] else 0.0,
            error_code=document["error"][0],
            error_text=document["error"][1],
            error_heard_s=document["error"][2],
            unconfigured=document["unconfigured"],
            boot_id=document["boot_id"],
            generation=active.get("generation", 0),
            active_digest=active.get("digest", ""),
            active_version=active.get("version", ""),
            standby_digest=(document["standby"] or {}).get("digest", ""),
            prepared_digest=(document["prepared"] or {}).get("digest", ""),
            load_in_place=document["load_in_place"],
            holding=bool(document["holding"]),
            hold_latched=bool(document["holding"]),
            hold_reason=document["holding"],
            on_trial=lease is not None,
            running=document["running"],
            motion_enabled=document["motion"],
            episode_id=document["episode"],
            experiment=document["experiment"],
            draw_error_code=document["draw_error"][0],
            draw_message=document["draw_error"][1],
            last_swap_cause=document["cause"],
            last_swap_stamp_s=document.get("stamp_s", active.get("since", math.inf)),
        )

    def prepare(
        self,
        bundle_path: Path,
        digest: str,
        on_progress: OnProgress,
        cancelled: Cancelled,
        timeout_s: float,
        *,
        skip_shadow: bool,
    ) -> PrepareResult:
        document = self.look()
        if document["absent"] or document["unconfigured"]:
            return _not_prepared("POLICY_ABSENT", "nobody answers")
        on_progress("LOADING", 0.1)
        if self._wait("prepare_s", timeout_s, cancelled):
            return _not_prepared("CANCELLED", "cancelled")
        if document["lease"] is not None and document["standby"] and not self._resident(document, digest):
            return _not_prepared("TRIAL_RUNNING", "the standby is what the running trial falls back to")
        if document["refuse_prepare"]:
            return _not_prepared(document["refuse_prepare"], "refused as told")
        with self.edit() as document:
            failures = document["fails_to_prepare"].get(bundle_path.name)
            if failures:
                return _not_prepared(failures.pop(0), "fails as told")
        if not self._resident(document, digest):
            try:
                verify_bundle(bundle_path, expected_digest=digest)
            except CheckpointError as e:
                return _not_prepared(e.code, str(e))
        manifest = load_manifest(bundle_path)
        with self.edit() as document:
            document["log"].append(f"prepare {manifest.version}")
            if not skip_shadow:
                document["shadowed"].append(manifest.version)
            if not self._resident(document, digest):
                document["prepared"] = {"digest": digest, "version": manifest.version}
            document["crashed"].pop(digest, None)
        if document["shows_shadow"] and not skip_shadow:
            on_progress("SHADOW", 0.5)
        on_progress("READY", 1.0)
        return PrepareResult(True)

    def swap(self, request: SwapRequest, cancelled: Cancelled) -> SwapResult:
        document = self.look()
        if document["absent"] or document["unconfigured"]:
            return _not_swapped("POLICY_ABSENT", "nobody answers")
        if self._resident(document, request.digest) is None:
            return self._missing(document, request.digest)
        with self.edit() as document:
            document["asked"] += 1
        if not document["motion"] and request.cause != "ROLLBACK":
            return _not_swapped("MOTION_DISABLED", "motion is disabled")
        if self._wait("swap_s", request.timeout_s, cancelled):
            return _not_swapped("CANCELLED", "cancelled")
        document = self.look()
        if document["swap_s"] > request.timeout_s:
            return _not_swapped("SWAP_TIMEOUT", "no boundary came")
        if not document["motion"] and request.cause != "ROLLBACK":
            return _not_swapped("MOTION_DISABLED", "motion is disabled")
        if document["refuse_swap"]:
            return _not_swapped(document["refuse_swap"], "refused as told")
        with self.edit() as document:
            if document.pop("forget_at_swap", False):
                document["standby"] = None
            refusal = self._refusal(document, request)
            return refusal or self._swap(document, request)

    def _refusal(self, document: Document, request: SwapRequest) -> SwapResult | None:
        if self._resident(document, request.digest) is None:
            return self._missing(document, request.digest)
        expected, active = request.expected_active_digest, document["active"] or {}
        if expected and active.get("digest") != expected:
            return _not_swapped("EXPECTATION_FAILED", "another one acts")
        failures = document["fails_to_load"].get((self._resident(document, request.digest) or {})["version"])
        if document["load_in_place"] and failures:
            return _not_swapped(failures.pop(0), "fails as told")
        return None

    def _swap(self, document: Document, request: SwapRequest) -> SwapResult:
        active, resident = document["active"], self._resident(document, request.digest)
        assert resident is not None
        already = active is not None and active["digest"] == request.digest
        fallback = document["lease"]["fallback"] if already and document["lease"] else active
        if not already:
            document["log"].append(f"swap {resident['version']} {request.cause} {request.at}")
            self._activate(document, resident, request.cause)
        document["absent"] = document.pop("silent_after_swap", document["absent"])
        document["lease"] = None
        if request.trial:
            document["lease"] = {
                "lease_s": request.lease_s, "until": time.monotonic() + request.lease_s, "fallback": fallback,
            }  # fmt: skip
        acting = document["active"]
        if request.trial and document["crashes_at_swap"] == acting["version"]:
            self._lose_active(document)
            if document.pop("loses_reply", False):
                return _not_swapped("SWAP_TIMEOUT", "no reply")
            return _not_swapped("WORKER_LOST", "lost as it took over")
        return SwapResult(
            True, "", "", acting["version"], acting["digest"], acting["generation"],
            0.0 if already else 0.01, True, acting["since"],
        )  # fmt: skip

    # -- what the world does to it ------------------------------------------------------------------------------------------

    def hear_manager(
        self, trial_digest: str, committed_digest: str, experiment: str = "", digests: tuple[str, ...] = ()
    ) -> None:
        """A ModelStatus has arrived: it renews the lease of what it names, and ends it at the commit or with the experiment."""
        with self.edit() as document:
            if [experiment if digests else "", list(digests)] != [document["experiment"], document["digests"]]:
                document["draw_error"] = ["", ""]
            document["experiment"], document["digests"] = experiment if digests else "", list(digests)
            lease, active = document["lease"], document["active"]
            if lease is None or active is None:
                return
            if lease.get("drawn") and active["digest"] not in digests:
                document["lease"] = None
                self._activate(document, lease["fallback"], "LEASE_EXPIRED")
            elif active["digest"] in (trial_digest, *digests[1:]):
                lease["until"] = time.monotonic() + lease["lease_s"]
            elif committed_digest == active["digest"]:
                document["lease"] = None

    def draw(self, version: str) -> None:
        """An episode begins for which this version was drawn."""
        with self.edit() as document:
            digest = next(
                d for d in document["digests"] if (self._resident(document, d) or {}).get("version") == version
            )
            resident, active = self._resident(document, digest), document["active"]
            assert resident is not None
            if active["digest"] != digest:
                self._activate(document, resident, "EXPERIMENT")
                until = time.monotonic() + 60.0
                lease = {"lease_s": 60.0, "until": until, "fallback": active, "drawn": True}
                document["lease"] = lease if digest == document["digests"][1] else None

    def go_wrong(self, code: str, text: str) -> None:
        """The status says that something has gone wrong."""
        with self.edit() as document:
            document["error"] = [code, text, time.monotonic()]

    def lose_worker(self) -> None:
        """The worker of the generation on trial dies: back to what acted before."""
        with self.edit() as document:
            self._lose_active(document)

    def lose_prepared(self) -> None:
        """The worker of what waits for its swap dies."""
        with self.edit() as document:
            document["crashed"][document["prepared"]["digest"]] = "GENERATION_LOST"
            document["prepared"] = None

    def let_lease_run_out(self) -> None:
        with self.edit() as document:
            document["lease"]["until"] = 0.0

    # -- inside -------------------------------------------------------------------------------------------------------------

    def _lose_active(self, document: Document) -> None:
        """Hold, and let the generation before act again, if there is one."""
        lost, fallback = document["active"], document["lease"]["fallback"]
        document["log"].append(f"lost {lost['version']}")
        document["crashed"][lost["digest"]] = "WORKER_LOST"
        document["lease"] = None
        if fallback is not None:
            self._activate(document, fallback, "WORKER_LOST")
            document["standby"] = None
        else:
            document["active"], document["standby"] = None, None

    def _activate(self, document: Document, resident: Document, cause: str) -> None:
        old = document["active"]
        document["count"] += 1
        document["active"] = {**resident, "generation": document["count"], "since": time.time()}
        document["standby"], document["prepared"], document["cause"] = old, None, cause
        document["holding"] = ""

    def _expire(self, document: Document) -> None:
        lease = document.get("lease")
        if lease is not None and time.monotonic() > lease["until"] and lease["fallback"] is not None:
            document["lease"] = None
            document["log"].append("lease expired")
            self._activate(document, lease["fallback"], "LEASE_EXPIRED")

    @staticmethod
    def _missing(document: Document, digest: str) -> SwapResult:
        return _not_swapped(document["crashed"].get(digest, "NOT_PREPARED"), "not in memory")

    @staticmethod
    def _resident(document: Document, digest: str) -> Document | None:
        for place in ("active", "standby", "prepared"):
            entry: Document | None = document[place]
            if entry is not None and entry["digest"] == digest:
                return {"digest": entry["digest"], "version": entry["version"]}
        return None

    def _wait(self, key: str, timeout_s: float, cancelled: Callable[[], bool]) -> bool:
        """Take as long as the document says, which may change meanwhile; true if cancelled."""
        begun = time.monotonic()
        while time.monotonic() - begun < min(json.loads(self.path.read_text())[key], timeout_s):
            if cancelled():
                return True
            time.sleep(0.01)
        return cancelled()


def _fault_of(code: str) -> Fault:
    return Fault.BUSY if code == "POLICY_ABSENT" else fault_of(code)


def _not_prepared(code: str, message: str) -> PrepareResult:
    return PrepareResult(False, code, message, _fault_of(code))


def _not_swapped(code: str, message: str) -> SwapResult:
    return SwapResult(False, code, message, fault=_fault_of(code))
