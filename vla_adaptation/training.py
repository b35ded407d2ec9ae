# SPDX-License-Identifier: Apache-2.0
"""The training process: ``python -m vla_adaptation.training JOB PARENT``. torch is imported here only.

It takes its bounds upon itself before anything else is imported, does what ``job.json`` says, and writes ``result.json``. It can
be killed at any time; the next one goes on from the trainer's checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla_adaptation.job import JOB, RESULT, Job, Result, read, write
from vla_checkpoint import Bundle, CheckpointError, verify_bundle
from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME
from vla_checkpoint.files import write_atomically
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME
from vla_checkpoint.version import parse_version
from vla_learning.errors import LearningError

if TYPE_CHECKING:
    from vla_learning.datasets.reading import DataSet
    from vla_learning.datasets.selection import Source
    from vla_learning.episodes.format import EpisodeMeta
    from vla_learning.gate.gate import Verdict

_PR_SET_PDEATHSIG = 1
_OOM_FIRST = "1000"
_HELD_OUT_OF = 3
"""One episode of so many is not learned from."""
_CHECKPOINT_EVERY = 20
"""Steps that a kill costs at most."""
_GOLDEN_COUNT = 4
_SEED = 0


def take_bounds(parent: int, nice: int, max_memory_bytes: int) -> None:
    """Yield to the others: niced, of bounded memory, the first to go when memory is short, and dead when ``parent`` is."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it has died meanwhile
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    resource.setrlimit(resource.RLIMIT_DATA, (max_memory_bytes, max_memory_bytes))
    # A session is a scheduling group of its own where the kernel makes such groups: its niceness counts then.
    for name, text in (("autogroup", str(nice)), ("oom_score_adj", _OOM_FIRST)):
        with contextlib.suppress(OSError):
            Path("/proc/self", name).write_text(text)


def run(folder: Path, job: Job) -> Result:
    """Do a job.

    Raises:
        LearningError, CheckpointError: no adapter can be made of this base and these episodes.
    """
    from vla_learning.gate.checks import GateSettings
    from vla_learning.gate.gate import Held, Verdict, recorded_checks
    from vla_learning.running import load_policy

    base = verify_bundle(job.base, expected_digest=job.base_digest)
    usable, refused = _usable(folder / "episodes", base)
    seen = set(job.trained_on) if job.kind == "carry" else _to_learn(usable)
    held = _build([source for source in usable if source.path.name not in seen], folder / "held")
    learned = [source for source in usable if source.path.name in seen]
    corrections = sum(source.new for source in learned)
    made = _train(folder, job, base, learned, held) if job.kind == "train" else _carry(folder, job, base, held)
    old, new = _parts(held)
    policies = load_policy(base), load_policy(made, base)
    verdict = Verdict(tuple(recorded_checks(policies, base, Held(held, old, new, (), ()), GateSettings())))
    return Result(
        code=next(iter(verdict.codes), ""),
        message=verdict.lines()[0],
        version=made.manifest.version,
        digest=made.digest,
        validation=_words(verdict),
        episodes=len(seen),
        corrections=corrections,
        refused=refused,
        trained_on=sorted(seen),
    )


# -- episodes ---------------------------------------------------------------------------------------------------------------


def _usable(folder: Path, base: Bundle) -> tuple[list[Source], list[str]]:
    """Return the episodes that show how this robot's tasks are done, the newest kind of them only, and why others are refused."""
    from vla_learning.datasets.selection import Source
    from vla_learning.episodes.reading import read_episode
    from vla_learning.episodes.summary import summarize

    found: list[Source] = []
    refused = []
    for number, path in enumerate(sorted(folder.glob("*.mcap"))):
        try:
            episode = summarize(path)
            if reason := _misfit(read_episode(path).meta, base):
                refused.append(f"{path.name}: {reason}")
            elif episode.usable:
                found.append(Source(episode, path, number, new=episode.corrections > 0))
        except LearningError as e:
            refused.append(str(e))
    newest = found[-1].episode.interface if found else ""
    refused += [f"{s.path.name}: of another interface" for s in found if s.episode.interface != newest]
    return [source for source in found if source.episode.interface == newest], refused


def _misfit(meta: EpisodeMeta, base: Bundle) -> str:
    """Return why an episode is of another robot than the base; empty: it is not."""
    manifest = base.manifest
    if meta.robot_type and manifest.robot_type != meta.robot_type:
        return f"of robot type {meta.robot_type}, the base is for {manifest.robot_type}"
    if meta.rate_hz != manifest.action.rate_hz:
        return f"at {meta.rate_hz:g} Hz, the base acts at {manifest.action.rate_hz:g} Hz"
    wanted, have = ([(c.name, c.unit) for c in channels] for channels in (manifest.action.channels, meta.channels))
    if wanted != have:
        return f"has actions {have}, the base {wanted}"
    for name, feature in base.config.input_features.items():
        shape = tuple(feature.shape)
        shape = (*shape[1:], shape[0]) if feature.type == "VISUAL" else shape
        if name not in meta.features or tuple(meta.features[name].shape) != shape:
            return f"has no {name} of shape {shape}"
    return ""


def _to_learn(usable: Sequence[Source]) -> set[str]:
    """Choose by a hash of their names two thirds of the corrected episodes and of the successes; the others are held out."""
    chosen: set[str] = set()
    for new in (True, False):
        names = [source.path.name for source in usable if source.new is new]
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        chosen.update(names[-(-len(names) // _HELD_OUT_OF) :])
    return chosen


def _build(sources: Sequence[Source], out: Path) -> DataSet:
    """Make a data set, or take the one that an earlier process made: it appears as a whole."""
    from vla_learning.datasets.build import build_dataset
    from vla_learning.datasets.reading import open_dataset
    from vla_learning.datasets.selection import BuildSettings

    if not out.exists():
        build_dataset(sources, out, BuildSettings(seed=_SEED, new_rule="corrected on this robot"))
    return open_dataset(out)


def _parts(dataset: DataSet) -> tuple[list[int], list[int]]:
    from vla_learning.training.run import parts_of

    old, corrected, _ = parts_of(dataset)
    return old, corrected


# -- adapters ---------------------------------------------------------------------------------------------------------------


def _train(folder: Path, job: Job, base: Bundle, learned: Sequence[Source], held: DataSet) -> Bundle:
    from vla_learning.training.lora import LoRASettings
    from vla_learning.training.tiny_vla import Settings, TinyVLATrainer
    from vla_learning.training.trainer import Task

    dataset = _build(learned, folder / "set")
    settings = Settings(
        method="lora", steps=job.steps, learning_rate=job.learning_rate, checkpoint_every=_CHECKPOINT_EVERY,
        threads=job.threads, lora=LoRASettings(rank=job.rank, alpha=2.0 * job.rank),
    )  # fmt: skip
    out = _empty(folder / "bundle")
    episodes = tuple(range(len(dataset.episodes)))
    task = Task(dataset.folder, base, episodes, out, folder / "work", _SEED, quiet=True, plots=False)
    trainer = TinyVLATrainer(settings)
    figures = dict(trainer.train(task).figures)
    return _sealed(out, base, held, {"trainer": dict(trainer.describe()), "training": figures})


def _carry(folder: Path, job: Job, base: Bundle, held: DataSet) -> Bundle:
    """Put an adapter on another base: its matrices, and everything else of the base."""
    old = verify_bundle(job.adapter)
    out = _empty(folder / "bundle")
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME):
        write_atomically(out / name, (old.path / name).read_bytes())
    for name in ("config.json", "stats.json"):
        write_atomically(out / name, (base.path / name).read_bytes())
    training = old.manifest.lineage.get("training", {})
    return _sealed(out, base, held, {"training": training, "carried_from": old.digest})


def _sealed(out: Path, base: Bundle, held: DataSet, lineage: dict[str, object]) -> Bundle:
    """Write golden observations and manifest. The version lies below the next patch, and by its hash is no other's."""
    from vla_learning.training.run import golden_observations
    from vla_learning.training.sealing import add_golden, seal

    weights = hashlib.sha256(f"{base.digest} ".encode() + (out / ADAPTER_WEIGHTS_NAME).read_bytes()).hexdigest()
    version = f"{parse_version(base.manifest.version).next_version('patch')}-adapted.x{weights[:12]}"
    draft = seal(out, base, "adapter", lineage, version)
    add_golden(out, draft, base, *golden_observations(held, base, _SEED, _GOLDEN_COUNT))
    seal(out, base, "adapter", lineage, version)
    return verify_bundle(out)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _words(verdict: Verdict) -> str:
    return "; ".join(str(check) for check in verdict.checks)


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    folder, parent = Path(arguments[0]), int(arguments[1])
    job = read(folder / JOB, Job)
    if job is None:
        sys.stderr.write(f"{folder / JOB} cannot be read\n")
        return 1
    take_bounds(parent, job.nice, job.max_memory_bytes)
    try:
        result = run(folder, job)
    except (LearningError, CheckpointError, MemoryError, RuntimeError) as e:
        if _lacks_memory(e):
            text = f"the training process needs more than max_memory_bytes ({job.max_memory_bytes}); allow more"
            result = Result(code="ADAPTATION_FAILED", message=f"ADAPTATION_FAILED: {text}")
        elif isinstance(e, RuntimeError | MemoryError):
            raise
        else:
            result = Result(code=e.code, message=str(e))
    write(folder / RESULT, result)
    return 0


def _lacks_memory(error: BaseException) -> bool:
    """Whether an error is about the bound on memory: torch has no error of its own for that, nor has pyarrow for a thread."""
    cause, text = error.__cause__ or error, str(error.__cause__ or error)
    if isinstance(cause, RuntimeError) and "alloc" in text:
        return True
    return isinstance(cause, MemoryError) or "temporarily unavailable" in text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
