# SPDX-License-Identifier: Apache-2.0
"""Local adaptation without ROS: when to train, on what, and what becomes of the adapter.

A thread of its own looks ten times a second. What the policy node says is acted on in the caller's thread: an episode that begins
stops the training process there and then, and only the thread lets it go on, when the robot has been idle long enough.

::

    idle, enough corrections ──► job ──► training process ──► result ──► offer ──► ota_manager: trial ──► COMMITTED ──► upload
                                  ▲                                                                           │
                                  └───────────────── another base is committed: carry, or drop ◄──────────────┘
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_adaptation import facts, state
from vla_adaptation.errors import AdaptationError
from vla_adaptation.job import JOB, LOG, RESULT, Job, Result, read, write
from vla_adaptation.library import Library, Own, keep
from vla_adaptation.process import Throttle, TrainingProcess
from vla_adaptation.settings import AdaptationSettings
from vla_checkpoint import MANIFEST_NAME, CheckpointError, Manifest, limits
from vla_checkpoint.files import read_bytes

log = logging.getLogger("vla_adaptation")

POLICY_TYPE = "tiny_vla"
"""What there is a trainer for on the robot."""
_PERIOD_S = 0.1
_SILENT_S = 3.0
"""A node that says nothing for so long is not known to be idle [s]."""
_LOOK_S = 2.0  # between two looks at the episodes
_OFFER_AGAIN_S = 5.0
_MOST_OFFERS = 6
"""An offer that nothing is heard of for so long was taken once, and its end was missed: it gets another id."""
_PAUSE_KEPT_S = 120.0
"""A training process that stands still for longer gives its memory back; the next one goes on from its checkpoint [s]."""
_MOST_DEATHS = 3
_SPARE_BYTES = 2 << 30
"""Space that training leaves free: more than the recorder and ota_manager want."""
_BUSY = ("CHECKING", "FETCHING", "VERIFYING", "PREPARING", "SHADOW", "SWAPPING", "TRIAL", "ROLLING_BACK")
_ENDED = ("REJECTED", "CANCELLED", "FAILED", "ROLLED_BACK")


class Adaptation:
    """One policy's adaptation.

    Args:
        settings: see there.
        offer: hands an offer to ota_manager; the same one may come again until it is heard of.
        clock: monotonic [s].

    Raises:
        AdaptationError: ADAPTATION_DIR.
    """

    def __init__(
        self,
        settings: AdaptationSettings,
        offer: Callable[[facts.Offer], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._offer, self._clock = settings, offer, clock
        self._folder, self._job = settings.folder, settings.folder / "job"
        self._lock_file = _lock(self._folder)
        self._state = state.load(self._folder)
        self._unsaved = False
        self._library = Library(settings.episodes)
        self._hearing = threading.Lock()  # never held while a file is written
        self._policy: facts.Policy | None = None
        self._manager: facts.Manager | None = None
        self._policy_s = self._manager_s = self._busy_s = self._offered_s = self._looked_s = -math.inf
        self._process: TrainingProcess | None = None
        self._throttle = Throttle(settings.cpu_share)
        self._stopped_s: float | None = None
        self._unheard = 0  # offers
        self._last_s = clock()
        self._waits_for = "the policy node and ota_manager"
        self._base: tuple[str, Path, Manifest] | None = None  # committed digest, folder and manifest of the base
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adaptation", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """End; a job goes on at the next start."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._kill()
        if self._state.work is not None:
            self._state.save(self._folder)
        os.close(self._lock_file)

    # -- for the uploader ---------------------------------------------------------------------------------------------------

    def to_upload(self) -> state.Adapter | None:
        """Return the adapter that has proved itself and was not uploaded yet."""
        adapter = self._state.adapter
        if adapter is None or adapter.standing != state.COMMITTED or adapter.uploaded or adapter.upload_refused:
            return None
        return adapter

    def may_upload(self) -> bool:
        """Whether no episode runs, as far as is known."""
        policy = self._policy
        return policy is not None and not policy.episode_id

    def sent(self, adapter: state.Adapter, refusal: str = "") -> None:
        """Remember that the server has an adapter, or why it never will; the next look saves it."""
        adapter.uploaded, adapter.upload_refused = not refusal, refusal
        self._unsaved = True

    # -- what is heard ------------------------------------------------------------------------------------------------------

    def policy(self, heard: facts.Policy) -> None:
        """Take in what the policy node says. Returns when the training process, if it has to, stands still."""
        with self._hearing:
            self._policy, self._policy_s = heard, self._clock()
            if self._hindrance() and self._process is not None:
                self._process.stop(True)

    def manager(self, heard: facts.Manager) -> None:
        """Take in what ota_manager says."""
        with self._hearing:
            self._manager, self._manager_s = heard, self._clock()
            if self._hindrance() and self._process is not None:
                self._process.stop(True)

    def _hindrance(self) -> str:
        """Why nothing may be computed now; empty: the robot is idle."""
        now, policy, manager = self._clock(), self._policy, self._manager
        if policy is None or now - self._policy_s > _SILENT_S:
            return "policy_node, which is silent"
        if policy.episode_id or policy.operator:
            self._busy_s = now
            return f"the end of episode {policy.episode_id}" if policy.episode_id else "the operator"
        if manager is None or now - self._manager_s > _SILENT_S:
            return "ota_manager, which is silent"
        if manager.state_name in _BUSY:
            return f"the update under way ({manager.state_name})"
        if now - self._busy_s < self._settings.idle_s:
            return f"{self._settings.idle_s:g} s without an episode"
        return ""

    def status(self) -> facts.Status:
        """Return how things stand."""
        saved, adapter, base = self._state, self._state.adapter, self._base
        return facts.Status(
            state=self._state_name(),
            base_version=base[2].version if base else adapter.base_version if adapter else "",
            base_digest=base[2].digest if base else adapter.base_digest if adapter else "",
            adapter_version=adapter.version if adapter else "",
            adapter_digest=adapter.digest if adapter else "",
            adapter_standing=adapter.standing if adapter else "",
            episodes_used=adapter.episodes if adapter else 0,
            corrections_used=adapter.corrections if adapter else 0,
            episodes_refused=saved.refused,
            run_s=saved.work.run_s if saved.work else 0.0,
            waits_for=self._waits_for,
            validation=saved.validation,
            uploaded=adapter.uploaded if adapter else False,
            error_code=saved.code,
            message=saved.message,
        )

    def _state_name(self) -> facts.State:
        work, adapter = self._state.work, self._state.adapter
        if work is not None:
            if self._process is None or self._stopped_s is not None:
                return "PAUSED"
            return "VALIDATING" if work.kind == "carry" else "TRAINING"
        if adapter is not None and adapter.standing == state.OFFERED:
            return "OFFERED"
        return "TRIAL" if adapter is not None and adapter.standing == state.TRIAL else "WAITING"

    # -- the thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            try:
                self.tick()
            except (OSError, CheckpointError) as e:
                self._fail("ADAPTATION_DIR", f"{e}")
                self._closing.wait(_LOOK_S)
            except Exception as e:  # a defect; the robot works without it
                log.exception("adaptation failed")
                self._fail("INTERNAL_ERROR", f"{type(e).__name__}: {e}")
                self._closing.wait(_LOOK_S)
        self._kill()

    def tick(self) -> None:
        """Look once. Raises OSError, CheckpointError: the folder cannot be used."""
        now = self._clock()
        elapsed, self._last_s = now - self._last_s, now
        self._follow()
        self._find_base()
        if self._unsaved:
            self._unsaved = False
            self._state.save(self._folder)
        if self._state.work is not None:
            self._supervise(now, elapsed)
        elif now - self._looked_s >= _LOOK_S:
            self._looked_s = now
            self._waits_for = self._begin()
        self._make_offer(now)

    def _follow(self) -> None:
        """See what became of the adapter that was offered."""
        adapter, heard = self._state.adapter, self._manager
        if adapter is None or heard is None or adapter.standing not in state.IN_USE:
            return
        before = adapter.standing
        if heard.committed_digest == adapter.digest:
            adapter.standing = state.COMMITTED
        elif heard.trial_digest == adapter.digest:
            adapter.standing = state.TRIAL
        elif before == state.COMMITTED:
            if heard.committed_digest == adapter.base_digest:
                self._set_aside(adapter, state.ROLLED_BACK, "", "somebody has gone back to its base")
        elif heard.update_id != adapter.update_id:
            if before == state.TRIAL:  # its end was missed
                adapter.standing, adapter.asked = state.OFFERED, adapter.asked + 1
        elif heard.state_name in _ENDED and heard.error_code != "BASE_CHANGED":
            standing = state.ROLLED_BACK if heard.state_name == "ROLLED_BACK" else state.REJECTED
            self._set_aside(adapter, standing, heard.error_code, heard.message)
        elif heard.state_name in _ENDED and heard.committed_digest == adapter.base_digest:  # its base is back
            self._unsaved, adapter.asked = True, adapter.asked + 1
        if adapter.standing != before:
            log.info("adapter %s is %s", adapter.version, adapter.standing)
            self._state.save(self._folder)

    def _set_aside(self, adapter: state.Adapter, standing: str, code: str, message: str) -> None:
        adapter.standing = standing
        self._state.code, self._state.message = code, f"adapter {adapter.version}: {message}"

    def _drop(self, why: str) -> None:
        adapter = self._state.adapter
        if adapter is not None and adapter.standing in state.IN_USE:
            self._set_aside(adapter, state.DROPPED, "", why)
            self._state.save(self._folder)

    def _find_base(self) -> None:
        """Find the full bundle below what is committed; a job for another one is over."""
        heard = self._manager
        if heard is None or not heard.committed_digest or (self._base and self._base[0] == heard.committed_digest):
            return
        folder = Path(self._settings.store_dir, "current").resolve()
        manifest = _manifest(folder)
        if manifest is None or manifest.digest != heard.committed_digest:
            return  # it changes this moment
        if manifest.base is not None:
            adapter = self._state.adapter
            folder = folder.parent.parent / manifest.base.name / manifest.base.version
            below = _manifest(folder)
            own = adapter is not None and adapter.digest == manifest.digest
            manifest = below if own and below is not None else manifest
        self._base = (heard.committed_digest, folder, manifest)
        if (job := read(self._job / JOB, Job)) is not None and job.base_digest != manifest.digest:
            self._end_work()

    # -- jobs ---------------------------------------------------------------------------------------------------------------

    def _begin(self) -> str:
        """Begin a job if there is one to do and the robot is idle; else return what is waited for."""
        if self._base is None:
            return "a committed version"
        _, folder, manifest = self._base
        adapter = self._state.adapter
        if manifest.base is not None:
            self._drop(f"adapter {manifest.version} took its place")
            return f"a full base: {manifest.version}, which is committed, is an adapter that was not made here"
        if manifest.policy_type != POLICY_TYPE:
            self._drop(f"{manifest.version}, which is committed, is of another type")
            text = f"ADAPTATION_UNSUPPORTED: {manifest.version} is of type {manifest.policy_type}; adapters are trained on "
            self._fail("ADAPTATION_UNSUPPORTED", f"{text}the robot for {POLICY_TYPE} only")
            return f"a base of type {POLICY_TYPE}"
        if self._state.code == "ADAPTATION_UNSUPPORTED":
            self._state.code = self._state.message = ""
        carry = adapter is not None and adapter.standing in state.IN_USE and adapter.base_digest != manifest.digest
        if adapter is not None and not carry and adapter.standing in (state.OFFERED, state.TRIAL):
            return "ota_manager's verdict on the adapter"
        own = self._library.own()[-self._settings.max_episodes :]
        seen, least = set(self._state.seen), self._settings.min_corrections
        new = [episode for episode in own if episode.corrected and episode.path.name not in seen]
        plain = sum(not episode.corrected for episode in own)
        if not carry and (len(new) < least or plain < least):
            return f"{len(new)} of {least} new corrected episodes and {plain} of {least} successes are there"
        with self._hearing:
            hindrance = self._hindrance()
        if hindrance:
            return hindrance
        if lack := self._lack_of_space(own):
            return lack
        self._write_job(folder, manifest, carry)
        keep([episode.path for episode in own], self._job / "episodes")
        corrected = [episode.path.name for episode in own if episode.corrected]
        self._state.work = state.Work("carry", self._state.seen) if carry else state.Work("train", corrected)
        self._state.code = self._state.message = ""
        self._state.save(self._folder)
        return ""

    def _lack_of_space(self, episodes: Sequence[Own]) -> str:
        """What the disk lacks for a data set of these episodes; empty: nothing. What is taken here the recorder would free."""
        needed = 2 * sum(episode.size for episode in episodes) + _SPARE_BYTES
        free = shutil.disk_usage(self._folder).free
        return f"{needed / 1e9:.1f} GB of free disk space, {free / 1e9:.1f} GB are there" if free < needed else ""

    def _write_job(self, base: Path, manifest: Manifest, carry: bool) -> None:
        shutil.rmtree(self._job, ignore_errors=True)
        self._job.mkdir()
        settings, adapter = self._settings, self._state.adapter
        job = Job(
            kind="carry" if carry else "train",
            base=str(base),
            base_digest=manifest.digest,
            threads=settings.threads,
            nice=settings.nice,
            max_memory_bytes=settings.max_memory_bytes,
            rank=settings.rank,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            adapter=adapter.folder if carry and adapter else "",
            trained_on=adapter.trained_on if carry and adapter else [],
        )
        write(self._job / JOB, job)

    def _supervise(self, now: float, elapsed: float) -> None:
        """Start, stop and let on the training process; take its answer."""
        work = self._state.work
        assert work is not None
        with self._hearing:
            self._waits_for = self._hindrance()
            if self._process is None and not self._waits_for:
                (self._job / RESULT).unlink(missing_ok=True)  # of a process whose adapter was not kept before the end
                self._process = TrainingProcess(self._job, self._settings.python, self._settings.threads)
                self._throttle = Throttle(self._settings.cpu_share)
            process = self._process
            if process is not None:
                exceeded = self._throttle.exceeded(now, process.cpu_s())
                process.stop(bool(self._waits_for) or exceeded)
        if process is None:
            return
        if (end := process.ended()) is not None:
            self._process, self._stopped_s = None, None
            self._ended(work, end)
        elif self._waits_for:
            self._stopped_s = now if self._stopped_s is None else self._stopped_s
            if now - self._stopped_s > _PAUSE_KEPT_S:
                self._kill()
                self._state.save(self._folder)
        else:
            self._stopped_s = None
            work.run_s += elapsed
            if work.run_s > self._settings.max_run_s:
                text = f"ADAPTATION_TIME: not done within max_run_s ({self._settings.max_run_s:g} s); fewer steps, or more time"
                self._give_up("ADAPTATION_TIME", text)

    def _ended(self, work: state.Work, end: str) -> None:
        result = read(self._job / RESULT, Result)
        if result is not None:
            self._take(result)
            return
        work.deaths += 1
        self._state.save(self._folder)
        last = _last_line(self._job / LOG)
        log.warning("the training process %s: %s", end, last)
        if work.deaths >= _MOST_DEATHS:
            bound = f"it may take max_memory_bytes ({self._settings.max_memory_bytes})"
            text = f"ADAPTATION_FAILED: the training process {end}, the {work.deaths}rd time; {bound}; it said last: {last}"
            self._give_up("ADAPTATION_FAILED", text)

    def _take(self, result: Result) -> None:
        """Keep an adapter that passed; else say why there is none."""
        assert self._base is not None and self._state.work is not None
        self._state.refused, self._state.validation = len(result.refused), result.validation
        for reason in result.refused:
            log.warning("an episode is not learned from: %s", reason)
        if result.code:
            self._give_up(result.code, result.message)
            return
        base = self._base[2]
        folder = self._folder / "offers" / base.name / result.version
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        (self._job / "bundle").rename(folder)
        self._state.adapter = state.Adapter(
            name=base.name, version=result.version, digest=result.digest, base_version=base.version,
            base_digest=base.digest, folder=str(folder), trained_on=result.trained_on, episodes=result.episodes,
            corrections=result.corrections,
        )  # fmt: skip
        self._state.code, self._state.message = "", result.message
        self._state.seen = self._state.work.corrected
        self._end_work()
        for other in folder.parent.parent.glob("*/*"):  # the manager has its own copy of the one before
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def _give_up(self, code: str, message: str) -> None:
        """End the job without an adapter; one that could not be carried to its new base is dropped."""
        work, adapter = self._state.work, self._state.adapter
        assert work is not None
        self._state.seen = work.corrected
        if adapter is not None and work.kind == "carry":
            adapter.standing = state.DROPPED
            message = f"adapter {adapter.version} is dropped: it does not pass on the new base: {message}"
            shutil.rmtree(adapter.folder, ignore_errors=True)
        self._fail(code, message)
        self._end_work()

    def _end_work(self) -> None:
        """Forget the job. Its corrections are new for the next one, unless it had an answer."""
        self._kill()
        self._state.work = None
        self._state.save(self._folder)
        shutil.rmtree(self._job, ignore_errors=True)

    def _kill(self) -> None:
        with self._hearing:
            process, self._process, self._stopped_s = self._process, None, None
        if process is not None:
            process.kill()

    def _fail(self, code: str, message: str) -> None:
        if (code, message) != (self._state.code, self._state.message):
            log.warning("%s", message)
        self._state.code, self._state.message = code, message

    # -- offers -------------------------------------------------------------------------------------------------------------

    def _make_offer(self, now: float) -> None:
        adapter, heard = self._state.adapter, self._manager
        if adapter is None or adapter.standing != state.OFFERED or heard is None or now - self._manager_s > _SILENT_S:
            return
        if heard.update_id == adapter.update_id:
            self._unheard = 0
            return
        if self._state.work is not None or heard.state_name in _BUSY:
            return
        if self._base is None or self._base[2].digest != adapter.base_digest:
            return
        if heard.experiment:
            self._waits_for = f"the end of experiment {heard.experiment}"
            return
        if now - self._offered_s >= _OFFER_AGAIN_S:
            self._offered_s, self._unheard = now, self._unheard + 1
            if self._unheard > _MOST_OFFERS:
                self._unheard, self._unsaved, adapter.asked = 1, True, adapter.asked + 1
            url = Path(adapter.folder, MANIFEST_NAME).resolve().as_uri()
            self._offer(facts.Offer(adapter.update_id, adapter.name, adapter.version, url, adapter.digest))


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.parse(read_bytes(folder / MANIFEST_NAME, limits.MANIFEST_BYTES))
    except CheckpointError:
        return None


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else "it printed nothing"


def _lock(folder: Path) -> int:
    """Keep the folder for this process: two would train in it at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise AdaptationError("ADAPTATION_DIR", f"{folder}: {e.strerror}; name another adaptation_dir") from e
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        raise AdaptationError("ADAPTATION_DIR", f"{folder}: another adaptation works here; end it") from e
    return descriptor
