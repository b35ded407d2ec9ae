# SPDX-License-Identifier: Apache-2.0
"""``vla-replay``: what would this policy have done? A recording through one bundle or two.

Exit codes: 0 done, 1 refused (``CODE: reason`` on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_checkpoint.errors import CheckpointError
from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.replay.compare import Comparison, between, table, with_commands
from vla_policy_node.replay.plot import draw
from vla_policy_node.replay.replay import Replayed, describe, replay
from vla_policy_node.replay.ros.bag import Bag
from vla_policy_node.worker.api import WorkerConfig
from vla_ros.interfaces import UnknownTypeError
from vla_ros.plain import plain

DONE, REFUSED = 0, 1
_INFERENCE_S = 600.0
_EPILOG = """\
With --a alone the policy is compared with the recorded commands: do that before you let it act. The recording may come from
this package's recorder or from `ros2 bag record -s mcap`; it needs the contract's observations. Where its pictures are JPEG, the
policies see them without what JPEG has lost. Nothing is commanded.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        text = _run(options)
    except (PolicyNodeError, CheckpointError, UnknownTypeError) as e:
        reason = plain(str(e))
        sys.stderr.write(f"{reason if reason.startswith(e.code) else f'{e.code}: {reason}'}\n")
        return REFUSED
    except OSError as e:
        sys.stderr.write(f"FILE_NOT_WRITTEN: {e.filename}: {e.strerror}\n")
        return REFUSED
    sys.stdout.write(f"{text}\n")
    return DONE


def _run(options: argparse.Namespace) -> str:
    contract = load_contract(options.contract)
    messages = Bag(options.bag).messages(contract, options.namespace)
    modules = dict(item.split("=", 1) for item in options.policy_module)
    config = WorkerConfig(
        worker_python=options.python,
        paths=tuple(options.worker_path),
        policy_modules=modules,
        device=options.device,
        imports=(),  # each policy imports what it needs
        spare=False,
        inference_timeout_s=_INFERENCE_S,
    )
    replayed = replay(contract, messages, [p for p in (options.a, options.b) if p], config, options.instruction)
    comparisons = _comparisons(replayed, contract, commands=options.against == "commands" or options.b is None)
    parts = [_summary(replayed, contract), *(table(c) for c in comparisons)]
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "replay.json").write_text(json.dumps(_document(options, replayed, comparisons), indent=1) + "\n")
        draw(replayed, contract.channels, comparisons[0], options.out / "replay.png")
        parts.append(f"{options.out / 'replay.png'}\n{options.out / 'replay.json'}")
    return "\n\n".join(parts)


def _comparisons(replayed: Replayed, contract: Contract, *, commands: bool) -> list[Comparison]:
    names = [f"{m.name} {m.version}" for m in replayed.manifests]
    found = []
    if len(names) == 2:
        found.append(between(replayed, contract.channels, f"A, {names[0]}, and B, {names[1]}", 0, 1))
    if commands:
        for i, name in enumerate(names):
            found.append(with_commands(replayed, contract.channels, f"{'AB'[i]}, {name}, and the recorded commands", i))
    return found


def _summary(replayed: Replayed, contract: Contract) -> str:
    chunks, actions = replayed.actions[0].shape[:2]
    first_s, last_s = replayed.times_s[0], replayed.times_s[-1]
    lines = [
        f"{contract.name}: {chunks} chunks of {actions} actions, from {first_s:.2f} to {last_s:.2f} s of the recording"
    ]
    if replayed.postponed:
        seconds = replayed.postponed * replayed.period_s
        lines.append(
            f"for {seconds:.1f} s a chunk was due and an observation was missing or too old: nothing was asked then"
        )
    lines += [f"{count} messages could not be used: {reason}" for reason, count in replayed.unusable.items()]
    return "\n".join(lines)


def _document(options: argparse.Namespace, replayed: Replayed, comparisons: list[Comparison]) -> dict[str, Any]:
    return {
        "bag": str(options.bag),
        "contract": str(options.contract),
        "begin_ns": replayed.begin_ns,
        "bundles": [dict(describe(m)) for m in replayed.manifests],
        "chunks": int(replayed.actions[0].shape[0]),
        "actions_a_chunk": int(replayed.actions[0].shape[1]),
        "postponed_s": replayed.postponed * replayed.period_s,
        "unusable": replayed.unusable,
        "comparisons": [
            {"title": c.title, "actions": c.compared, "channels": [_numbers(vars(d)) for d in c.differences]}
            for c in comparisons
        ],
    }


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _module(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not TYPE=MODULE")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla-replay",
        description="Show what a policy would have done in a recording, and where two policies differ.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bag", type=Path, help="MCAP file, or folder of a rosbag2 recording")
    parser.add_argument("--contract", type=Path, required=True, help="robot contract (YAML)")
    parser.add_argument(
        "--a", type=Path, required=True, metavar="DIR", help="bundle; chunks are asked for where it asks"
    )
    parser.add_argument("--b", type=Path, metavar="DIR", help="another bundle to compare with")
    parser.add_argument(
        "--against", choices=("commands",), help="compare with the recorded commands too; always so without --b"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write replay.png and replay.json there")
    parser.add_argument("--instruction", help="task in words; default: as recorded")
    parser.add_argument("--namespace", help="of the robot in the recording; default: the only one that fits")
    parser.add_argument("--python", default="", help="interpreter of the policies, as worker_python of policy_node")
    parser.add_argument("--device", default="cpu", help="device of the policies (default cpu)")
    parser.add_argument(
        "--policy-module", action="append", default=[], type=_module, metavar="TYPE=MODULE", help="as policy_modules"
    )
    parser.add_argument("--worker-path", action="append", default=[], metavar="DIR", help="as worker_paths")
    return parser


if __name__ == "__main__":
    sys.exit(main())
