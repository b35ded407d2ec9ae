# SPDX-License-Identifier: Apache-2.0
"""``vla-checkpoint``: the commands of ``vla_checkpoint.cli``, and ``golden``, ``check``, ``import --contract`` and ``fsck``.

Those need the robot contract, a worker or a robot's store, which ``vla_checkpoint`` knows nothing of.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vla_checkpoint import cli
from vla_checkpoint.bundle import Bundle, open_bundle
from vla_checkpoint.errors import ImportFolderError
from vla_checkpoint.importing.dataset import find_dataset
from vla_policy_node.desk.check import check
from vla_policy_node.desk.fit import read_robot
from vla_policy_node.desk.golden import make_golden, random_observations, read_observations
from vla_policy_node.desk.run import interpreter_versions, write_frames
from vla_policy_node.worker.api import WorkerConfig
from vla_ros.plain import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return cli.main(arguments, _extend)


def _extend(commands: cli.Commands) -> None:
    importer = commands.choices["import"]
    importer.add_argument(
        "--contract", default="", metavar="FILE", help="robot contract: says robot type, rate and channels"
    )
    importer.set_defaults(read_robot=read_robot)

    golden = commands.add_parser("golden", help="record what the policy answers, for a robot to repeat before it acts")
    source = golden.add_mutually_exclusive_group()
    source.add_argument(
        "--observations", type=Path, metavar="FILE", help="observations, a .npz with an array [N, …] a feature"
    )
    source.add_argument(
        "--dataset", metavar="DIR", help="LeRobot data set, a folder or org/name, read by the LeRobot of --python"
    )
    golden.add_argument("--instruction", default="", help="for every observation that has none")
    golden.add_argument("--frames", type=_count, default=8, metavar="N", help="observations, default 8")
    golden.add_argument("--seed", type=_seed, default=0, metavar="N", help="of observations and policy, default 0")
    golden.add_argument(
        "--tolerance", type=_tolerance, default=1e-3, metavar="X", help="largest difference, in a channel's unit; default 0.001"
    )  # fmt: skip
    golden.set_defaults(run=_golden)

    checker = commands.add_parser("check", help="hold a bundle against a robot contract and an interpreter")
    checker.add_argument("--contract", required=True, metavar="FILE", help="robot contract")
    checker.set_defaults(run=_check, text=_check_text, report=True)

    fsck = commands.add_parser("fsck", help="check and repair a robot's store while its manager does not run")
    fsck.add_argument("--blob-dir", type=Path, metavar="DIR", help="the manager's blob_dir, if it has one")
    fsck.set_defaults(run=_fsck, text=_fsck_text, report=True)

    for sub in (golden, checker):
        sub.add_argument(
            "--python", type=_program, default=sys.executable, metavar="FILE", help="the robot's worker_python; default: this one"
        )  # fmt: skip
        sub.add_argument("--device", default="cpu", help="as its device, default cpu")
        sub.add_argument(
            "--policy-module", action="append", type=_module, default=[], metavar="TYPE=MODULE", help="as its policy_modules"
        )  # fmt: skip
        sub.add_argument("--worker-path", action="append", default=[], metavar="DIR", help="as its worker_paths")


def _config(options: argparse.Namespace) -> WorkerConfig:
    return WorkerConfig(
        worker_python=options.python,
        paths=tuple(options.worker_path),
        policy_modules=dict(options.policy_module),
        device=options.device,
        imports=(),
        nice=0,
        spare=False,
    )


def _golden(options: argparse.Namespace) -> dict[str, Any]:
    bundle = open_bundle(options.dir)
    config = _config(options)
    versions = interpreter_versions(config, options.python)
    observations, instructions, origin = _observations(options, bundle, config)
    count = len(next(iter(observations.values())))
    proof = make_golden(
        bundle.path,
        config,
        observations,
        instructions or [options.instruction] * count,
        tolerance=options.tolerance,
        seed=options.seed,
    )
    return {
        "digest": proof.digest,
        "observations": f"{proof.count}, {origin}",
        "interpreter": versions,
        "tolerance": options.tolerance,
        "replay": f"a second worker differs by {proof.difference:.3g} at most",
        "difference": proof.difference,
    }


def _observations(
    options: argparse.Namespace, bundle: Bundle, config: WorkerConfig
) -> tuple[dict[str, npt.NDArray[Any]], list[str], str]:
    """Return observations, their instructions if they have any, and where they come from."""
    if options.observations is not None:
        return *read_observations(options.observations, options.frames), str(options.observations)
    if options.dataset is None:
        origin = f"random within the statistics, seed {options.seed}"
        return random_observations(bundle, options.frames, options.seed), [], origin
    folder = find_dataset(options.dataset)
    if folder is None:
        raise ImportFolderError(
            "IMPORT_DATASET", options.dataset, "no meta/info.json in it, nor in LeRobot's folder of that name"
        )
    features = list(bundle.config.input_features)
    with tempfile.TemporaryDirectory(prefix="vla_golden_") as aside:
        out = Path(aside, "frames.npz")
        write_frames(config, options.python, folder, options.frames, options.seed, out, features)
        return *read_observations(out, options.frames), f"of {folder}"


def _check(options: argparse.Namespace) -> dict[str, Any]:
    found = list(check(Path(options.dir), options.contract, _config(options), options.python))
    checks = [{"what": f.what, "ok": not f.code, "code": f.code, "text": f.text} for f in found]
    return {"ok": all(not f.code for f in found), "checks": checks}


def _check_text(report: dict[str, Any]) -> str:
    lines = []
    for item in report["checks"]:
        code = f"{item['code']}: " if item["code"] else ""
        lines.append(f"{'ok' if item['ok'] else 'FAILED':7}{item['what'] + ':':13}{printable(code + item['text'])}")
    failed = sum(not item["ok"] for item in report["checks"])
    return "\n".join([*lines, f"{failed} of {len(lines)} failed" if failed else "fit to be published for this robot"])


def _fsck(options: argparse.Namespace) -> dict[str, Any]:
    from vla_ota_manager.store import fsck

    return fsck.run(Path(options.dir), options.blob_dir)


def _fsck_text(report: dict[str, Any]) -> str:
    from vla_ota_manager.store import fsck

    return fsck.text_of(report)


def _program(text: str) -> str:
    """Absolute, for workers start in another folder; links stay, for a virtual environment is known by its own."""
    return str(Path(text).absolute()) if "/" in text else text


def _count(text: str) -> int:
    number = int(text)
    if not 0 < number <= 1000:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 to 1000")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 to 4294967295")
    return number


def _tolerance(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e30:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 0")
    return number


def _module(text: str) -> tuple[str, str]:
    kind, equals, module = text.partition("=")
    if not (kind and equals and module):
        raise argparse.ArgumentTypeError(f"{text!r} is not TYPE=MODULE")
    return kind, module


if __name__ == "__main__":
    sys.exit(main())
