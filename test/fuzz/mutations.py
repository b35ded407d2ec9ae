# SPDX-License-Identifier: Apache-2.0
"""Inputs near valid ones, as hypothesis strategies: edited bytes, and JSON with any part of it replaced."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

_NUMBERS = [0, -1, 1, 255, 1 << 31, (1 << 32) - 1, 1 << 53, (1 << 63) - 1, 1 << 64, -(1 << 63), 10**400, 1e308, 5e-324]
_TEXTS = [
    "",
    ".",
    "..",
    "../../x",
    "/etc/x",
    "a/../../x",
    "a\\b",
    "a\0b",
    "%2e%2e/x",
    "\ud800",
    "é" * 300,
    "x" * 70_000,
    "0" * 64,
]
_BYTES = [
    b"",
    b"\0",
    b"\xff" * 8,
    b"\0" * 8,
    b"\x7f" + b"\xff" * 7,
    b"{",
    b"[" * 200,
    b'"',
    b"../",
    b"\r\n",
    b"1e999",
    b"NaN",
]


def near(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy of inputs near the seeds."""
    ways = [st.binary(max_size=200), st.sampled_from(seeds).flatmap(_edited)]
    documents = [document for document in map(_parsed, seeds) if document is not None]
    if documents:
        ways += [st.sampled_from(documents).flatmap(_rewritten)] * 3
    return st.one_of(ways)


def _parsed(seed: bytes) -> Any:
    try:
        return json.loads(seed)
    except ValueError:
        return None


def _edited(seed: bytes) -> st.SearchStrategy[bytes]:
    piece = st.one_of(st.binary(max_size=6), st.sampled_from(_BYTES))
    edit = st.tuples(st.integers(0, len(seed)), st.integers(0, 16), piece)

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = seed
        for position, removed, put in edits:
            data = data[:position] + put + data[position + removed :]
        return data

    several = st.lists(edit, min_size=1, max_size=4).map(apply)
    flips = st.lists(st.tuples(st.integers(0, max(0, len(seed) - 1)), st.integers(0, 255)), min_size=1, max_size=6)
    return st.one_of(
        several, flips.map(lambda found: _flipped(seed, found)), st.integers(0, len(seed)).map(lambda n: seed[:n])
    )


def _flipped(seed: bytes, flips: list[tuple[int, int]]) -> bytes:
    data = bytearray(seed)
    for position, value in flips:
        if data:
            data[position] = value
    return bytes(data)


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from(_NUMBERS) | st.sampled_from(_TEXTS) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_TEXTS) | st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _rewritten(document: Any) -> st.SearchStrategy[bytes]:
    """Replace, remove, rename or double parts of a document."""
    places = list(_places(document, ()))
    change = st.tuples(st.sampled_from(places), st.sampled_from(["value", "remove", "rename", "add"]), _VALUES)

    def apply(changes: list[tuple[tuple[Any, ...], str, Any]]) -> bytes:
        made = json.loads(json.dumps(document))
        for place, what, value in changes:
            made = _changed(made, place, what, value)
        return json.dumps(made).encode()

    return st.lists(change, min_size=1, max_size=3).map(apply)


def _places(value: Any, place: tuple[Any, ...]) -> Any:
    yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in entries:
        yield from _places(inside, (*place, key))


def _changed(document: Any, place: tuple[Any, ...], what: str, value: Any) -> Any:
    if not place:
        return value if what == "value" else document
    holder = document
    try:
        for key in place[:-1]:
            holder = holder[key]
        if what == "value":
            holder[place[-1]] = value
        elif what == "remove":
            del holder[place[-1]]
        elif what == "rename":
            holder[value if isinstance(value, str) else "x"] = holder.pop(place[-1])
        elif isinstance(holder, list):
            holder.append(value)
        else:
            holder[str(value)[:80]] = value
    except (AttributeError, KeyError, IndexError, TypeError):  # an earlier change took it away
        pass
    return document
