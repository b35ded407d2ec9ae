# SPDX-License-Identifier: Apache-2.0
"""A manifest is accepted only if it is canonical, closed, and safe to turn into paths."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import make_bundle

from vla_checkpoint import CheckpointError, Manifest, limits, load_manifest, write_manifest
from vla_checkpoint.errors import ManifestError, VersionError
from vla_checkpoint.paths import fold_path, path_fault

HEX = hashlib.sha256(b"").hexdigest()


def document() -> dict[str, Any]:
    return {
        "schema": 1, "name": "pick_place", "version": "1.1.0", "kind": "full", "base": None, "policy_type": "tiny_vla",
        "robot_type": "sim_arm",
        "action": {"channels": [{"name": "j1", "unit": "rad", "mode": "absolute"}], "rate_hz": 20},
        "created": "2026-11-20T08:00:00Z", "lineage": {"parents": ["a"], "loss": 0.25},
        "files": [{"path": "a/b.txt", "size": 3, "sha256": HEX}, {"path": "model.safetensors", "size": 9, "sha256": HEX}],
        "tensors": {"model.safetensors": {"head.weight": HEX}},
    }  # fmt: skip


def refused(data: bytes) -> CheckpointError:
    with pytest.raises((ManifestError, VersionError)) as caught:
        Manifest.parse(data)
    return caught.value


def changed(where: str, value: Any) -> bytes:
    """Return the canonical manifest with the value at a dotted place replaced; ``...`` removes it."""
    result = document()
    *folders, last = where.split(".")
    target: Any = result
    for key in folders:
        target = target[int(key) if isinstance(target, list) else key]
    if value is ...:
        del target[last]
    else:
        target[int(last) if isinstance(target, list) else last] = value
    return rfc8785.dumps(result)


def with_paths(*paths: str) -> bytes:
    result = document()
    result["files"] = [{"path": path, "size": 1, "sha256": HEX} for path in sorted(paths)]
    result["tensors"] = {}
    return rfc8785.dumps(result)


def test_round_trip_gives_the_same_bytes_and_the_digest_of_them() -> None:
    data = rfc8785.dumps(document())
    manifest = Manifest.parse(data)
    assert manifest.canonical() == data
    assert manifest.digest == hashlib.sha256(data).hexdigest()
    assert manifest.total_bytes == 12
    assert manifest.action.rate_hz == 20.0
    assert manifest.tensors["model.safetensors"]["head.weight"] == HEX
    assert manifest.lineage["loss"] == 0.25


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b'"rate_hz":20', b'"rate_hz":20.0'),
        lambda data: data.replace(b'"rate_hz":20', b'"rate_hz": 20'),
        lambda data: data.replace(b"pick_place", b"pick\\u005fplace"),
        lambda data: data.replace(b'"schema":1,', b"")[:-1] + b',"schema":1}',
        lambda data: data.replace(b'"size":9', b'"size":9e0'),
    ],
)
def test_other_bytes_with_the_same_meaning_are_refused(change: Any) -> None:
    data = rfc8785.dumps(document())
    assert change(data) != data
    assert refused(change(data)).code in ("MANIFEST_NOT_CANONICAL", "MANIFEST_FIELD")


def test_files_in_another_order_are_refused() -> None:
    value = document()
    value["files"].reverse()
    assert refused(rfc8785.dumps(value)).code == "MANIFEST_NOT_CANONICAL"


def test_duplicate_keys_are_refused_even_with_equal_values() -> None:
    data = rfc8785.dumps(document())
    assert refused(data.replace(b'"schema":1', b'"schema":1,"schema":1')).code == "MANIFEST_FIELD"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000, b'{"schema":NaN}'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    assert refused(data).code in ("MANIFEST_SCHEMA", "MANIFEST_FIELD")


def test_what_a_bundle_needs_is_kept_and_nothing_needed_is_not_written() -> None:
    needs = {"lerobot": ">=0.4,<0.5", "torch": ">=2.2"}
    assert Manifest.parse(changed("requires", needs)).requires == needs
    assert "requires" not in document()
    assert refused(changed("requires", {})).code == "MANIFEST_NOT_CANONICAL"


def test_an_unknown_schema_is_refused_by_its_own_code() -> None:
    for value in (2, 0, True, "1", 1.5):
        assert refused(changed("schema", value)).code == "MANIFEST_SCHEMA"


@pytest.mark.parametrize("key", [key for key in document() if key != "schema"])
def test_every_key_is_required_and_no_other_is_known(key: str) -> None:
    assert refused(changed(key, ...)).code == "MANIFEST_FIELD"
    assert "extra" in refused(changed("extra", 1)).reason


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("name", ""), ("name", "../x"), ("name", "a..b"), ("name", "A"), ("name", "a/b"), ("name", ".a"),
        ("name", "a" * 65), ("name", 1),
        ("kind", "lora"), ("kind", ["full"]), ("base", {}), ("kind", "adapter"),
        ("base", {"name": "a", "version": "1.0.0", "digest": HEX}),
        ("policy_type", ""), ("policy_type", "a b"), ("robot_type", "a\n"), ("robot_type", None),
        ("action", []), ("action.channels", []), ("action.channels", {}), ("action.channels.0", "j1"),
        ("action.channels.0.mode", "delta"),
        ("action.channels.0.unit", ""), ("action.channels.0.unit", "rad "), ("action.channels.0.name", "a\x00"),
        ("action.channels.0.name", "x" * 65), ("action.channels.0.extra", 1),
        ("action.channels", [{"name": "j", "unit": "rad", "mode": "absolute"}] * 2),
        ("action.rate_hz", 0), ("action.rate_hz", -1), ("action.rate_hz", "20"), ("action.rate_hz", True),
        ("action.rate_hz", 1e300),
        ("created", "2026-11-20"), ("created", "2026-02-30T08:00:00Z"), ("created", "2026-11-20T08:00:00+00:00"),
        ("created", "२०२६-11-20T08:00:00Z"), ("lineage", []), ("lineage", None),
        ("files", {}), ("files.0", "x"), ("files.0.size", -1), ("files.0.size", 1.5), ("files.0.size", True),
        ("files.0.size", 1 << 50),
        ("files.0.sha256", HEX.upper()), ("files.0.sha256", HEX[:-1]), ("files.0.sha256", None),
        ("files.0.path", 1), ("files.0.mode", 1),
        ("tensors", []),
        ("requires", []), ("requires", {"lerobot": ""}), ("requires", {"lerobot": "0.4"}), ("requires", {"": ">=1"}),
        ("requires", {"lerobot": ">=0.4,"}), ("requires", {"lerobot": ">=0.4 <0.5"}), ("requires", {"a/b": ">=1"}),
        ("requires", {f"p{i}": ">=1" for i in range(17)}),
    ],
)  # fmt: skip
def test_a_field_out_of_its_domain_is_refused_by_name(where: str, value: Any) -> None:
    error = refused(changed(where, value))
    assert error.code == "MANIFEST_FIELD"
    assert where.split(".")[0] in error.reason or error.reason.startswith("base")


@pytest.mark.parametrize(
    "version", ["1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "", " 1.0.0", "1.0.0/..", 1, None, "1.0.0-" + "a" * 99]
)
def test_versions_that_are_not_semantic_are_refused(version: Any) -> None:
    assert refused(changed("version", version)).code == "VERSION_INVALID"


@pytest.mark.parametrize(
    "value",
    [{"other.safetensors": {}}, {"a/b.txt": {}}, {"model.safetensors": []}, {"model.safetensors": {"x": "y"}}],
)
def test_tensor_digests_of_anything_but_listed_safetensors_are_refused(value: Any) -> None:
    assert refused(changed("tensors", value)).code == "MANIFEST_FIELD"


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../x", "a/../b", "a/./b", "./a", ".", "..", "a//b", "a/", "a\\b", "..\\x", "a\0b",
        "a\nb", "a\x7f", "a\u202eb",
        " a", "a ", "a/ b", "x" * 256, "/".join("abcdefghi"), "manifest.json", "MANIFEST.JSON", "manifest.json/x",
    ],
)  # fmt: skip
def test_paths_that_are_not_plain_and_relative_are_refused(path: str) -> None:
    assert refused(with_paths(path)).code == "MANIFEST_PATH"


@pytest.mark.parametrize(
    "path", ["vocab-é.json", "straße", "ﬁle", "\u2024\u2024/x", "．．/x", "a／..／x", "100%", "a%2fb", "%2e%2e/x"]
)
def test_names_that_a_server_might_take_for_another_file_are_refused_by_name(path: str) -> None:
    error = refused(with_paths(path))
    assert (error.code, path in error.reason) == ("MANIFEST_PATH", True)


@pytest.mark.parametrize(
    "paths",
    [
        ("a.txt", "A.TXT"),
        ("a", "a"),
        ("a", "a/b"),
        ("A", "a/b"),
        ("a/b", "a/b/c/d"),
    ],
)
def test_paths_that_meet_on_some_file_system_are_refused(paths: tuple[str, str]) -> None:
    refusal = refused(with_paths(*paths))
    assert refusal.code == "MANIFEST_PATH"
    assert "the same file" in refusal.reason or "is a file and the folder of" in refusal.reason


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text(alphabet="ab./\\A \n~é", max_size=8), min_size=1, max_size=4))
def test_an_accepted_path_stays_below_the_bundle(paths: list[str]) -> None:
    root = Path("/bundle")
    accepted = [path for path in paths if path_fault(path) is None]
    for path in accepted:
        joined = root / path
        assert str(joined) == f"/bundle/{path}"
        assert ".." not in joined.parts
    if len(accepted) == len(paths) and len({fold_path(path) for path in paths}) < len(paths):
        assert refused(with_paths(*paths)).code == "MANIFEST_PATH"


@pytest.mark.parametrize(
    ("limit", "value", "code"),
    [
        ("MANIFEST_BYTES", 500, "MANIFEST_LIMIT"),
        ("FILES", 1, "MANIFEST_FIELD"),
        ("TENSORS", 0, "MANIFEST_FIELD"),
        ("CHANNELS", 0, "MANIFEST_FIELD"),
        ("JSON_VALUES", 5, "MANIFEST_FIELD"),
    ],
)
def test_limits_are_held(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, code: str) -> None:
    monkeypatch.setattr(limits, limit, value)
    assert refused(rfc8785.dumps(document())).code == code


def test_a_manifest_too_large_too_long_or_too_deep_is_refused() -> None:
    assert refused(changed("lineage", {f"{i:06}": 0 for i in range(900_000)})).code == "MANIFEST_LIMIT"
    assert refused(changed("lineage", {"x": [0] * 400_000})).code == "MANIFEST_FIELD"
    deep = document()
    for _ in range(100):
        deep["lineage"] = {"x": deep["lineage"]}
    assert refused(rfc8785.dumps(deep)).code == "MANIFEST_FIELD"


def test_numbers_that_json_cannot_carry_exactly_are_refused() -> None:
    data = rfc8785.dumps(document()).replace(b"0.25", b"9007199254740993")
    assert refused(data).code == "MANIFEST_NOT_CANONICAL"
    assert refused(rfc8785.dumps(document()).replace(b"0.25", b"1e999")).code == "MANIFEST_FIELD"


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53) + 1, 2**53 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(document())), JSON)
def test_any_value_anywhere_is_refused_by_code_or_kept_exactly(key: str, value: Any) -> None:
    candidate = copy.deepcopy(document())
    candidate[key] = value
    data = rfc8785.dumps(candidate)
    try:
        manifest = Manifest.parse(data)
    except CheckpointError as e:
        assert e.code.isupper()
    else:
        assert manifest.canonical() == data


def test_writing_refuses_what_reading_would_and_leaves_the_old_one(tmp_path: Path) -> None:
    good = make_bundle(tmp_path / "b")
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(ManifestError):
        write_manifest(tmp_path / "b", Manifest(**{**good.__dict__, "name": "../up"}))
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    assert load_manifest(tmp_path / "b") == good
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "stats.json",
    ]
