# SPDX-License-Identifier: Apache-2.0
"""``vla-contract init | check``: a first robot contract, and what it still lacks.

Exit codes: 0 written, or complete; 1 refused (``CODE: reason`` on stderr), or something is missing; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_contract.checking import check
from vla_contract.dataset import read_dataset
from vla_contract.errors import DraftError
from vla_contract.joining import join
from vla_contract.seen import JointLimit, RobotSeen
from vla_contract.urdf import read_limits
from vla_contract.writing import write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is _init and not (options.from_topics or options.from_dataset):
        parser.error("init: say what to look at: --from-topics, --from-dataset DIR, or both")
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except DraftError as e:
        print(f"{e.code}: {e}", file=sys.stderr)
        return 1


def _init(options: argparse.Namespace) -> int:
    out = Path(options.out)
    if out.exists():
        raise DraftError("CONTRACT_EXISTS", f"{out}: is there already, and is not overwritten")
    dataset = read_dataset(options.from_dataset) if options.from_dataset else None
    limits: Mapping[str, JointLimit] = read_limits(options.from_urdf) if options.from_urdf else {}
    robot, sources = RobotSeen(), []
    if options.from_topics:
        from vla_contract.ros.looking import look_at_robot  # only where a robot is looked at, ROS is needed

        robot, described = look_at_robot(options.seconds, options.commands)
        limits = limits or described
        sources.append("the topics of a running robot")
    if options.from_dataset:
        sources.append(f"the dataset {Path(options.from_dataset).resolve().name}")
    if limits:
        sources.append("its robot description")
    text = write(join(robot, dataset, limits, options.namespace), " and ".join(sources))
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as e:
        raise DraftError("CONTRACT_NOT_WRITTEN", f"{out}: {e.strerror or e}") from e
    print(f"{out}: a first contract; {len(check(str(out)))} values are left to be filled in: vla-contract check {out}")
    return 0


def _check(options: argparse.Namespace) -> int:
    problems = check(options.file)
    for problem in problems:
        place = f"{options.file}:{problem.line}" if problem.line else options.file
        print(f"{place}: {problem.code}: {problem.text}")
    print(f"{options.file}: {len(problems)} to be filled in or corrected" if problems else f"{options.file}: complete")
    return 1 if problems else 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.5 <= seconds <= 600.0:
        raise argparse.ArgumentTypeError(f"{text} is not in 0.5 to 600")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla-contract", description="Draft a robot contract and see what it still lacks."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    init = commands.add_parser(
        "init", help="write a first contract; everything that keeps the robot safe is left to be filled in"
    )
    init.add_argument(
        "--from-topics", action="store_true", help="look at the running robot: topics, rates, joints, controllers"
    )
    init.add_argument("--from-dataset", metavar="DIR", help="LeRobot dataset: features, names, rate, robot type")
    init.add_argument(
        "--from-urdf",
        metavar="FILE",
        help="robot description: positions of the joints' stops (else: robot_description)",
    )
    init.add_argument(
        "--commands", metavar="TOPIC", action="append", default=[],
        help="with --from-topics: a command topic to use, where several controllers take the same joints; repeat it",
    )  # fmt: skip
    init.add_argument(
        "--namespace", default="/", metavar="NS", help="namespace of the policy; topics in it are named relative to it"
    )
    init.add_argument(
        "--seconds", type=_seconds, default=3.0, metavar="S", help="how long topics are listened to (default 3)"
    )
    init.add_argument("--out", required=True, metavar="FILE", help="contract to create")
    init.set_defaults(run=_init)

    checker = commands.add_parser("check", help="list what is missing or wrong, each with line and key")
    checker.add_argument("file", metavar="FILE", help="the contract")
    checker.set_defaults(run=_check)
    return parser


if __name__ == "__main__":
    sys.exit(main())
