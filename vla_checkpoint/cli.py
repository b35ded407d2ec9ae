# SPDX-License-Identifier: Apache-2.0
"""``vla-checkpoint inspect | verify | manifest | import | delta``: bundles, for people and scripts.

The executable also has what needs a robot contract or a worker (``vla_policy_node.desk``).

Exit codes: 0 accepted, 1 rejected (``CODE: file: reason`` on stderr, or an object on stdout with ``--json``), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from vla_checkpoint.build import build_manifest
from vla_checkpoint.bundle import Bundle, open_bundle, verify_bundle
from vla_checkpoint.config import load_config
from vla_checkpoint.delta.command import add_command
from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.files import Progress
from vla_checkpoint.importing import command
from vla_checkpoint.manifest import MODES, Channel, Mode, load_manifest, write_manifest
from vla_checkpoint.stats import constant_channels
from vla_ros.plain import printable

ACCEPTED, REJECTED = 0, 1
NO_GOLDEN = (
    "golden: none, so nothing proves that a robot acts as the policy did where it was trained: vla-checkpoint golden"
)

Commands = Any
"""What ``argparse`` returns from ``add_subparsers``; ``choices`` has the parsers."""


def main(arguments: Sequence[str] | None = None, extend: Callable[[Commands], None] = lambda commands: None) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: as ``sys.argv[1:]``, the default.
        extend: adds commands. Their ``run(options)`` returns the report as JSON values; ``"ok": False`` in it is a rejection.
            Their ``text(report)`` turns it into lines.
    """
    options = _parser(extend).parse_args(arguments)
    status, text = _outcome(options)
    stream = sys.stderr if status == REJECTED and not (options.json or options.report) else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def _outcome(options: argparse.Namespace) -> tuple[int, str]:
    try:
        result = options.run(options)
    except CheckpointError as e:
        report = {"ok": False, "code": e.code, "path": e.path, "reason": e.reason}
        return REJECTED, json.dumps(report) if options.json else str(e)
    status = ACCEPTED if result.setdefault("ok", True) else REJECTED
    if options.json:
        return status, json.dumps(result, indent=1)
    result.pop("ok")
    return status, options.text(result)


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return what a person wants to know of a bundle, as JSON values."""
    manifest, config = bundle.manifest, bundle.config
    constant = constant_channels(bundle.stats, config, [c.name for c in manifest.action.channels])
    infos = [info for file in bundle.weight_files for info in bundle.headers[file].tensors.values()]
    parameters = sum(math.prod(info.shape) for info in infos)
    base = manifest.base
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": bundle.digest,
        "kind": manifest.kind,
        "base": None if base is None else f"{base.name} {base.version} {base.digest}",
        "policy_type": manifest.policy_type,
        "robot_type": manifest.robot_type,
        "created": manifest.created,
        "rate_hz": manifest.action.rate_hz,
        "channels": [f"{c.name} [{c.unit}] {c.mode}" for c in manifest.action.channels],
        "chunk": f"{config.chunk_size} actions, {config.n_action_steps} executed, from {_count(config.n_obs_steps)}",
        "inputs": [f"{key} {feature.type} {list(feature.shape)}" for key, feature in config.input_features.items()],
        "normalized": [f"{key} {mode}" for key, (_, mode) in config.normalized_features().items()],
        "weight_files": list(bundle.weight_files),
        "tensors": len(infos),
        "parameters": parameters,
        "dtypes": dict(Counter(info.dtype for info in infos)),
        "bytes": manifest.total_bytes,
        "files": len(manifest.files),
        "golden": bundle.has_golden,
        "requires": dict(manifest.requires),
        "notes": [
            *(f"action channel {name} never moves: its statistics have no spread" for name in constant),
            *([] if bundle.has_golden else [NO_GOLDEN]),
        ],
        "lineage": dict(manifest.lineage),
    }


def _count(observations: int) -> str:
    return f"{observations} observation{'s' * (observations > 1)}"


def _inspect(options: argparse.Namespace) -> dict[str, Any]:
    return describe_bundle(open_bundle(options.dir))


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    total = load_manifest(options.dir).total_bytes
    bundle = verify_bundle(
        options.dir,
        expected_digest=options.digest,
        scan_values=not options.no_values,
        progress=_progress(total),
    )
    return describe_bundle(bundle)


def _manifest(options: argparse.Namespace) -> dict[str, Any]:
    manifest = build_manifest(
        options.dir,
        name=options.name,
        version=options.version,
        policy_type=load_config(options.dir).type,
        robot_type=options.robot_type,
        channels=options.channel,
        rate_hz=options.rate_hz,
        kind="full" if options.base is None else "adapter",
        base=command.base_ref(options.base),
        lineage=options.lineage,
        created=options.created,
        progress=_progress(None),
    )
    write_manifest(options.dir, manifest)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "bytes": manifest.total_bytes,
    }


def _import(options: argparse.Namespace) -> dict[str, Any]:
    made = command.run(options, _progress(None))
    described = describe_bundle(made.pop("bundle"))
    return {**described, **made, "notes": [*made["notes"], *described["notes"]]}


def _progress(total: int | None) -> Progress | None:
    if not sys.stderr.isatty():
        return None
    done = 0

    def show(count: int) -> None:
        nonlocal done
        done += count
        of = f" of {total / 1e6:.0f}" if total else ""
        end = "\n" if done == total else ""
        print(f"\r{done / 1e6:.0f}{of} MB checked", end=end, file=sys.stderr, flush=True)

    return show


def text_of(result: dict[str, Any]) -> str:
    """Return a report as lines, ``key: value``."""
    lines = []
    for key, value in result.items():
        if isinstance(value, list):
            value = "\n                 ".join(map(printable, value)) or "none"
        elif isinstance(value, dict):
            value = ", ".join(printable(f"{k}: {v}") for k, v in value.items()) or "none"
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif value is None:
            continue
        lines.append(f"{key + ':':16} {value}")
    return "\n".join(lines)


def _channel(text: str) -> Channel:
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or parts[2] not in MODES:
        raise argparse.ArgumentTypeError(f"{text!r} is not name:unit:mode with a mode of {', '.join(MODES)}")
    mode: Mode = next(mode for mode in MODES if mode == parts[2])
    return Channel(parts[0], parts[1], mode)


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: the rate must be a number above 0 [Hz]")
    return rate


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def _parser(extend: Callable[[Commands], None]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vla-checkpoint", description="Make, inspect and prove policy bundles.")
    commands = parser.add_subparsers(dest="command", required=True)

    inspect = commands.add_parser("inspect", help="parse a bundle and say what it is (reads no weights)")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="check everything: digests, tensors, statistics, NaN and infinity")
    verify.add_argument("--digest", metavar="HEX", help="SHA-256 that the manifest must have")
    verify.add_argument("--no-values", action="store_true", help="do not look for NaN and infinity")
    verify.set_defaults(run=_verify)

    manifest = commands.add_parser("manifest", help="check a folder and write its manifest.json")
    manifest.set_defaults(run=_manifest)

    importer = commands.add_parser(
        "import", help="make a bundle of a LeRobot checkpoint or a local Hugging Face snapshot"
    )
    command.add_arguments(importer)
    importer.set_defaults(run=_import)

    for sub, required in ((manifest, True), (importer, False)):
        sub.add_argument("--name", required=required, default="", help="model name, lower case")
        sub.add_argument("--version", required=required, default="", help="Semantic Versioning 2.0.0")
        sub.add_argument("--robot-type", required=required, default="", help="robot type of the robot contract")
        sub.add_argument("--rate-hz", required=required, type=_rate, metavar="HZ", help="actions per second")
        sub.add_argument(
            "--channel", required=required, action="append", type=_channel, metavar="NAME:UNIT:MODE",
            help=f"one number of an action, in order; mode: {', '.join(MODES)}; repeat it",
        )  # fmt: skip
        sub.add_argument("--base", metavar="DIR", help="bundle that this adapter belongs on")
        sub.add_argument("--lineage", type=_json_object, metavar="JSON", help="where it comes from, any JSON object")
        sub.add_argument("--created", metavar="UTC", help="YYYY-MM-DDTHH:MM:SSZ; default: now")
    extend(commands)
    for sub in commands.choices.values():
        sub.add_argument("dir", metavar="DIR", help="the folder")
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        if sub.get_default("text") is None:
            sub.set_defaults(text=text_of, report=False)
    add_command(commands, text_of, _progress)
    return parser


if __name__ == "__main__":
    sys.exit(main())
