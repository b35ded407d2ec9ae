# SPDX-License-Identifier: Apache-2.0
"""``vla-checkpoint trust init | sign | rotate | show``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # cryptography takes a while that no other command needs
    from tuf.api.metadata import Root


def add_command(commands: Any, text: Callable[[dict[str, Any]], str]) -> None:
    """Add ``trust`` to a command line.

    Args:
        commands: what ``add_subparsers`` returned.
        text: turns a report into lines.
    """
    trust = commands.add_parser("trust", help="sign what robots may install, and manage the keys that do")
    actions = trust.add_subparsers(dest="action", required=True)
    init = actions.add_parser("init", help="make keys and the first root, which robots get as trust_root")
    init.add_argument("--root-keys", type=int, default=1, metavar="N", help="keys that sign roots; default 1")
    init.add_argument("--threshold", type=int, default=1, metavar="N", help="how many of them must sign; default 1")
    init.set_defaults(run=_init)
    sign = actions.add_parser(
        "sign", help="sign every version of a folder that a static server serves; again every few days"
    )
    sign.set_defaults(run=_sign)
    rotate = actions.add_parser("rotate", help="replace a key, or with none only sign the root for a longer time")
    rotate.set_defaults(run=_rotate)
    show = actions.add_parser("show", help="say which keys may sign what, and until when that holds")
    show.set_defaults(run=_show)
    for action in (init, sign, rotate, show):
        action.add_argument("keys", type=Path, metavar="KEYS", help="folder of keys and roots")
        action.add_argument("--json", action="store_true", help="print one JSON object")
        action.set_defaults(text=text, report=False)
    sign.add_argument("tree", type=Path, metavar="REGISTRY", help="holds <name>/<version>/manifest.json; gets trust/")
    rotate.add_argument("name", nargs="?", default="", metavar="NAME", help="root, targets, online, root-2, …")


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _init(options: argparse.Namespace) -> dict[str, Any]:
    from vla_checkpoint.repository import keys

    root = keys.init(options.keys, _now(), options.root_keys, options.threshold).signed
    return {"trust_root": str(options.keys / keys.root_name(1)), **_described(root)}


def _sign(options: argparse.Namespace) -> dict[str, Any]:
    from vla_checkpoint.repository import keys, metadata

    roots, signers = keys.load_roots(options.keys), keys.load_signers(options.keys).values()
    repository = metadata.sign_tree(options.tree, roots, signers, _now())
    expires = {role: time.isoformat() for role, time in repository.expiry().items()}
    return {"signed": sorted(repository.verified_targets()), "expires": expires}


def _rotate(options: argparse.Namespace) -> dict[str, Any]:
    from vla_checkpoint.repository import keys

    return _described(keys.rotate(options.keys, _now(), options.name).signed)


def _show(options: argparse.Namespace) -> dict[str, Any]:
    from vla_checkpoint.repository import keys, metadata

    roots = keys.load_roots(options.keys)
    report = _described(metadata.Repository({}, roots).root)
    if any(options.keys.glob("*.targets.json")):  # a repository, not the keys
        repository = metadata.read_folder(options.keys, roots)
        report["expires"] = {role: time.isoformat() for role, time in repository.expiry().items()}
        report["signed"] = sorted(repository.verified_targets())
    return report


def _described(root: Root) -> dict[str, Any]:
    from vla_checkpoint.repository.keys import names_of

    names = names_of(root)
    roles = {
        role: f"{entry.threshold} of {', '.join(names[keyid] for keyid in entry.keyids)}"
        for role, entry in sorted(root.roles.items())
    }
    return {"root_version": root.version, "root_expires": root.expires.isoformat(), "must_sign": roles}
