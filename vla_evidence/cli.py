# SPDX-License-Identifier: Apache-2.0
"""``vla-evidence plan | interval | replay | simulate``: how much evidence is enough, and what a log proves.

Exit codes: 0 done, 1 refused or different (``CODE: what: reason`` on stderr, with ``--json`` an object on stdout), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_evidence.analysis import Bar, no_bar, tqdm_bar
from vla_evidence.canary.config import DEFAULT_STAGES, HALF_STAGES, ROBOT_STAGES, CanaryConfig
from vla_evidence.errors import EvidenceError, check_counts, check_probability
from vla_evidence.log.replay import Step, replay_file
from vla_evidence.planning import plan
from vla_evidence.planning.feasible import feasible
from vla_evidence.sequential import intervals
from vla_evidence.simulate.report import Report, finite
from vla_evidence.tables import table

DONE, REFUSED = 0, 1
_STAGES = {"all": DEFAULT_STAGES, "stage": HALF_STAGES, "one": ROBOT_STAGES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        text, result = options.run(options)
    except EvidenceError as e:
        if options.json:
            print(json.dumps({"ok": False, "code": e.code, "field": e.field, "reason": e.reason}))
        else:
            print(f"{e.code}: {e}", file=sys.stderr)
        return REFUSED
    try:
        print(json.dumps({"ok": True, **finite(result)}, indent=1) if options.json else text, flush=True)
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


Result = tuple[str, dict[str, Any]]
"""For people, and for machines."""


def _plan(options: argparse.Namespace) -> Result:
    fleet = plan.Fleet(options.robots, options.per_day, options.unit, options.icc)
    asked = (fleet, options.alpha, options.power, options.within_days, options.runs, options.seed, _bar(options))
    question = plan.Question(*asked)
    if options.question == "ab":
        found = plan.plan_ab(options.rate_a, options.rate_b, question)
    elif options.question == "noninferiority":
        found = plan.plan_noninferiority(options.rate, options.margin, question, options.share)
    else:
        found = plan.plan_detect(options.incumbent, options.canary, question, options.share)
    return str(found), asdict(found)


def _plan_rollout(options: argparse.Namespace) -> Result:
    history = None if options.history is None else tuple(options.history)
    advance = "same_shift" if options.same_shift else "ask"
    config = CanaryConfig(stages=_STAGES[options.holds], history=history, advance=advance)
    config.check()
    found = feasible(
        config, options.robots, options.per_hour, drop=options.drop, icc=options.icc, runs=options.runs, seed=options.seed,
        bar=_bar(options),
    )  # fmt: skip
    return str(found), asdict(found)


def _interval(options: argparse.Namespace) -> Result:
    counts, confidence = (options.successes, options.episodes), options.confidence
    check_counts("successes", *counts)
    check_probability("confidence", confidence)
    low, high = (float(end) for end in intervals.confidence_sequence(*counts, confidence))
    found = {
        "wilson": intervals.wilson_interval(*counts, confidence),
        "clopper_pearson": intervals.clopper_pearson_interval(*counts, confidence),
        "confidence_sequence": (low, high),
    }
    holds = ("one look, approximately", "one look, at least", "every look, at least")
    names = ("Wilson", "Clopper-Pearson", "confidence sequence")
    rows = [
        [name, when, f"{low:.2%}", f"{high:.2%}"]
        for name, when, (low, high) in zip(names, holds, found.values(), strict=True)
    ]
    rate = f": {options.successes / options.episodes:.1%}" if options.episodes else ""
    title = f"{options.successes} of {options.episodes} episodes succeeded{rate}. The rate lies, at {confidence:g} confidence:"
    return f"{title}\n\n{table('', ['interval', 'holds at', 'from', 'to'], rows)}", found


def _replay(options: argparse.Namespace) -> Result:
    last: tuple[str, str] | None = None

    def show(step: Step) -> None:
        nonlocal last
        verdict = step.verdict
        found = verdict["decision"], verdict["code"]
        if not options.json and (options.all or found != last):
            code = f" {verdict['code']}" if verdict["code"] else ""
            print(
                f"line {step.line}, after {step.outcomes:,} outcomes: {verdict['decision']}{code}: {verdict['message']}"
            )
        last = found

    replay = replay_file(options.file, show=show, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    return str(replay), asdict(replay)


def _simulate(options: argparse.Namespace) -> Result:
    from vla_evidence.simulate import ab, canary

    exercise: Any = {"ab": ab, "canary": canary}[options.exercise]
    chosen = {name: getattr(options, name) for name in exercise.Settings.__dataclass_fields__}
    report: Report = exercise.run(exercise.Settings(**chosen), _bar(options))
    names = [str(path) for path in report.write(options.out)]
    figures = {"sentence": report.sentence, **report.figures, "files": names}
    return f"{report.text}\n\nwritten: {', '.join(names)}", figures


def _bar(options: argparse.Namespace) -> Bar:
    return no_bar if options.json or options.quiet else tqdm_bar


def _parser() -> argparse.ArgumentParser:
    text = "Better, worse or unproven? Plan, look, recompute, simulate."
    parser = argparse.ArgumentParser(prog="vla-evidence", description=text)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_plan(commands.add_parser("plan", help="how many episodes, days and robots a decision needs"))
    _add_simulate(commands.add_parser("simulate", help="an A/B test or a bad update in a simulated fleet, with plots"))

    interval = commands.add_parser("interval", help="where a success rate lies, at one look and at every look")
    interval.add_argument("successes", type=int)
    interval.add_argument("episodes", type=int)
    _number(interval, "--confidence", 0.95, "of the intervals")
    interval.set_defaults(run=_interval)

    replay = commands.add_parser("replay", help="compute every verdict and draw of a log again")
    replay.add_argument("file", metavar="FILE", help="the log (JSON lines)")
    replay.add_argument("--all", action="store_true", help="print every verdict, not only changes")
    replay.set_defaults(run=_replay)
    for command in (interval, replay):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _number(parser: argparse.ArgumentParser, name: str, default: float | None, text: str) -> None:
    """Add an option that takes a number; without a default it is required."""
    kind = int if isinstance(default, int) else float
    text = text if default is None else f"{text}; default: {default:g}"
    parser.add_argument(
        name, type=kind, default=default, required=default is None, metavar="N" if kind is int else "X", help=text
    )


def _add_plan(parser: argparse.ArgumentParser) -> None:
    questions = parser.add_subparsers(dest="question", required=True)
    ab = questions.add_parser("ab", help="does B differ from A? (two-sided)")
    _number(ab, "--rate-a", None, "success rate of A")
    _number(ab, "--rate-b", None, "success rate of B")
    noninferiority = questions.add_parser("noninferiority", help="is the new version at most so much worse?")
    _number(noninferiority, "--rate", None, "success rate of both")
    _number(noninferiority, "--margin", None, "drop to be excluded")
    detect = questions.add_parser("detect", help="how soon is a worse canary found?")
    _number(detect, "--incumbent", None, "success rate before")
    _number(detect, "--canary", None, "success rate after")
    for command, share in ((noninferiority, 0.5), (detect, 0.05)):
        _number(command, "--share", share, "of episodes (or robots)")
    for command in (ab, noninferiority, detect):
        _number(command, "--alpha", 0.05, "P(claim that is wrong)")
        _number(command, "--power", 0.8, "P(finding what is there)")
        _number(command, "--robots", 50, "of the fleet, both versions")
        _number(command, "--per-day", 40.0, "episodes of a robot a day")
        command.add_argument(
            "--unit", choices=("episode", "robot"), default="episode", help="what is drawn; default: episode"
        )
        _number(command, "--icc", 0.0, "intraclass correlation within a robot")
        command.add_argument("--within-days", type=float, metavar="X", help="also say how many robots end by then")
        _number(command, "--runs", 500, "simulated; 0: fixed designs only; A/B at least 4,000")
        _add_common(command)
        command.set_defaults(run=_plan)
    rollout = questions.add_parser("rollout", help="will a rollout decide anything in this fleet?")
    _number(rollout, "--robots", 50, "of the fleet")
    _number(rollout, "--per-hour", 6.0, "episodes of a robot an hour")
    holds = "who holds both versions: all robots, a stage's robots, or one version on each robot; default: all"
    rollout.add_argument("--holds", choices=tuple(_STAGES), default="all", help=holds)
    history = "K successes in N episodes of the incumbent, from the registry"
    rollout.add_argument("--history", type=int, nargs=2, metavar=("K", "N"), help=history)
    rollout.add_argument(
        "--same-shift", action="store_true", help="one version on each robot: advance without a person"
    )
    _number(rollout, "--drop", 0.12, "that makes an update bad")
    _number(rollout, "--icc", 0.05, "intraclass correlation within a robot")
    _number(rollout, "--runs", 200, "simulated, good and bad")
    _add_common(rollout)
    rollout.set_defaults(run=_plan_rollout)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    exercises = parser.add_subparsers(dest="exercise", required=True)
    ab = exercises.add_parser("ab", help="episodes per robot until a fleet knows that B is better")
    _number(ab, "--rate-a", 0.85, "success rate of A")
    _number(ab, "--rate-b", 0.88, "success rate of B")
    _number(ab, "--confidence", 0.95, "two-sided")
    _number(ab, "--power", 0.8, "P(finding the difference)")
    _number(ab, "--per-day", 40.0, "episodes of a robot a day")
    canary = exercises.add_parser("canary", help="how soon a bad update is found and undone")
    _number(canary, "--incumbent", 0.87, "success rate before")
    _number(canary, "--canary", 0.75, "success rate after")
    _number(canary, "--per-hour", 6.0, "episodes of a robot an hour")
    _number(canary, "--alpha", 0.05, "P(a good one is rolled back)")
    _number(canary, "--rollback-s", 60.0, "from verdict to old version")
    for command, runs in ((ab, 2000), (canary, 20_000)):
        _number(command, "--robots", 50, "of the fleet")
        _number(command, "--icc", 0.05, "intraclass correlation within a robot")
        _number(command, "--runs", runs, "simulated")
        folder = Path("build/evidence")
        command.add_argument("--out", type=Path, default=folder, metavar="DIR", help=f"default: {folder}")
        _add_common(command)
        command.set_defaults(run=_simulate)


def _add_common(command: argparse.ArgumentParser) -> None:
    _number(command, "--seed", 0, "of the simulation")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.add_argument("--json", action="store_true", help="print one JSON object")


if __name__ == "__main__":
    sys.exit(main())
