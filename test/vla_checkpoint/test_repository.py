# SPDX-License-Identifier: Apache-2.0
"""Keys, roots and signed metadata: what is signed when, what is never signed, and what a person sees of it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from support.bundles import make_bundle
from support.refusals import refused

from vla_checkpoint.cli import main
from vla_checkpoint.repository import keys
from vla_checkpoint.repository.metadata import Repository, next_targets, sign_tree, target, utc_now

NOW = utc_now()
DAY = timedelta(days=1)
PATH = "pick/1.0.0/manifest.json"


def repository(folder: Path, files: dict[str, bytes] | None = None) -> Repository:
    return Repository(files or {}, keys.load_roots(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.init(tmp_path / "keys", NOW)
    return tmp_path / "keys"


def signed(folder: Path) -> Repository:
    made = repository(folder)
    assert made.sign(keys.load_signers(folder).values(), {PATH: target(PATH, b"1")}, NOW)
    return made


def versions(made: Repository) -> dict[str, int]:
    timestamp = json.loads(made.files["timestamp.json"])["signed"]["version"]
    newest = {role: max(int(n.split(".")[0]) for n in made.files if n.endswith(f"{role}.json") and n[0].isdigit())
              for role in ("snapshot", "targets")}  # fmt: skip
    return {"timestamp": timestamp, **newest}


def test_only_the_owner_reads_a_key_and_no_key_is_made_twice(folder: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.pem")} == {0o600}
    before = (folder / "root.pem").read_bytes()
    with refused("TRUST_KEYS"):
        keys.init(folder, NOW)
    assert (folder / "root.pem").read_bytes() == before


def test_a_key_that_lies_there_before_is_taken(tmp_path: Path) -> None:
    own = CryptoSigner.generate_ecdsa()
    (tmp_path / "targets.pem").write_bytes(own.private_bytes)
    assert keys.init(tmp_path, NOW).signed.roles["targets"].keyids == [own.public_key.keyid]
    assert list(signed(tmp_path).verified_targets()) == [PATH]


@pytest.mark.parametrize(("root_keys", "threshold"), [(1, 2), (1, 0), (0, 0)])
def test_a_threshold_that_nobody_can_meet_is_refused(tmp_path: Path, root_keys: int, threshold: int) -> None:
    with refused("TRUST_KEYS"):
        keys.init(tmp_path / "keys", NOW, root_keys, threshold)
    assert not (tmp_path / "keys").exists()


def test_what_is_up_to_date_is_not_signed_again_until_half_of_its_time_is_over(folder: Path) -> None:
    made, signers = signed(folder), list(keys.load_signers(folder).values())
    assert not made.sign(signers, None, NOW + 3 * DAY)
    assert made.sign(signers, None, NOW + 4 * DAY) and versions(made) == {"timestamp": 2, "snapshot": 1, "targets": 1}
    assert made.sign(signers, None, NOW + 16 * DAY) and versions(made) == {"timestamp": 3, "snapshot": 2, "targets": 1}
    assert made.sign(signers, None, NOW + 183 * DAY) and versions(made)["targets"] == 2
    assert list(made.verified_targets()) == [PATH]


def test_files_that_robots_may_still_ask_for_stay_and_older_ones_go(folder: Path) -> None:
    made, signers = signed(folder), list(keys.load_signers(folder).values())
    for number in range(2, 15):
        made.sign(signers, {PATH: target(PATH, str(number).encode())}, NOW)
    names = [name for name in made.files if name.endswith("targets.json")]
    assert sorted(int(name.split(".")[0]) for name in names) == list(range(6, 15))


def test_without_the_keys_of_a_role_nothing_is_signed_for_it(folder: Path) -> None:
    made, online = signed(folder), [keys.load_signers(folder)["online"]]
    assert made.sign(online, None, NOW + 5 * DAY), "renewing needs the online key only"
    with refused("TRUST_KEYS"):
        made.sign(online, {}, NOW)
    assert not made.can_sign("targets", online) and made.can_sign("timestamp", online)
    assert list(made.verified_targets()) == [PATH]


def test_a_publisher_adds_only_to_targets_that_the_keys_have_signed(folder: Path, tmp_path: Path) -> None:
    files = {name: data.decode() for name, data in signed(folder).files.items()}
    data = next_targets(files, folder, {"pick/1.1.0/manifest.json": b"2"}, [PATH], NOW)
    assert data is not None
    assert list(json.loads(data)["signed"]["targets"]) == ["pick/1.1.0/manifest.json"]
    assert next_targets(files, folder, {PATH: b"1"}, [], NOW) is None
    keys.init(tmp_path / "theirs", NOW)
    theirs = {name: data.decode() for name, data in signed(tmp_path / "theirs").files.items()}
    with refused("TRUST_TARGETS"):
        next_targets(theirs, folder, {}, [], NOW)


def test_targets_are_taken_in_sequence_and_from_their_keys_only(folder: Path) -> None:
    made = signed(folder)
    files = {name: data.decode() for name, data in made.files.items()}
    data = next_targets(files, folder, {"pick/1.1.0/manifest.json": b"2"}, [], NOW)
    assert data is not None
    for wrong in (
        b"",
        b"{}",
        made.files["timestamp.json"],
        made.files["1.targets.json"],
        data.replace(b"1.1.0", b"9.9.9"),
    ):
        with refused("TRUST_TARGETS"):
            made.take_targets(wrong)
    made.take_targets(data)
    with refused("TRUST_TARGETS"):
        made.take_targets(data)
    assert made.sign([keys.load_signers(folder)["online"]], None, NOW) and len(made.verified_targets()) == 2


def test_a_key_behind_an_address_signs_as_one_in_a_file_does(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes((folder / "online.pem").read_bytes())
    public = keys.load_signers(folder)["online"].public_key
    (folder / "online.pem").unlink()
    entry = {"uri": f"file2:{tmp_path / 'elsewhere'}", "keyid": public.keyid, "public": public.to_dict()}
    (folder / "online.key.json").write_text(json.dumps(entry))
    assert versions(signed(folder)) == {"timestamp": 1, "snapshot": 1, "targets": 1}
    keys.rotate(folder, NOW, "online")
    assert (folder / "online.key.json.old").exists() and "online.key.json" not in {p.name for p in folder.iterdir()}
    signed(folder)


@pytest.mark.parametrize("text", ["", "{}", '{"uri": "nix:", "keyid": "k", "public": {}}'])
@pytest.mark.parametrize("name", ["online.pem", "online.key.json"])
def test_a_file_that_is_no_key_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with refused("TRUST_KEYS") as caught:
        keys.load_signers(folder)
    assert name in str(caught.value)


def test_a_rotation_that_was_interrupted_has_lost_no_key(folder: Path) -> None:
    root = keys.rotate(folder, NOW, "online").signed
    (folder / "online.pem").replace(folder / "online.pem.new")  # as it is behind the root's writing
    (folder / "online.pem.old").replace(folder / "online.pem")
    made = signed(folder)
    used = [entry["keyid"] for entry in json.loads(made.files["timestamp.json"])["signatures"]]
    assert used == root.roles["timestamp"].keyids


def test_a_lost_key_is_replaced_but_not_a_lost_root_key(folder: Path) -> None:
    (folder / "targets.pem").unlink()
    assert keys.rotate(folder, NOW, "targets").signed.version == 2
    signed(folder)
    (folder / "root.pem").unlink()
    for name in ("root", "online", ""):
        with refused("TRUST_KEYS"):
            keys.rotate(folder, NOW, name)
    assert not (folder / "3.root.json").exists() and not list(folder.glob("*.new"))


def test_a_chain_of_roots_that_is_broken_is_named(folder: Path) -> None:
    keys.rotate(folder, NOW, "root")
    (folder / "2.root.json").write_bytes((folder / "1.root.json").read_bytes())
    with refused("TRUST_KEYS") as caught:
        keys.load_roots(folder)
    assert "2.root.json" in str(caught.value)


def test_the_commands_sign_a_folder_and_say_what_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tree = tmp_path / "keys", tmp_path / "registry"

    def run(*arguments: str) -> dict[str, object]:
        assert main(["trust", *arguments, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    made = run("init", str(folder), "--root-keys", "2", "--threshold", "2")
    assert made["trust_root"] == str(folder / "1.root.json")
    make_bundle(tree / "pick/1.0.0", name="pick", version="1.0.0")
    assert run("sign", str(folder), str(tree))["signed"] == [PATH]
    assert run("rotate", str(folder), "root-2")["root_version"] == 2
    assert run("sign", str(folder), str(tree))["signed"] == [PATH] and (tree / "trust/2.root.json").exists()
    shown = run("show", str(tree / "trust"))
    assert shown["signed"] == [PATH] and shown["root_version"] == 2
    assert set(shown["expires"]) == {"root", "targets", "snapshot", "timestamp"}  # type: ignore[call-overload]
    assert main(["trust", "rotate", str(folder), "nobody"]) == 1
    assert capsys.readouterr().err.startswith("TRUST_KEYS: ")


def test_a_published_file_that_is_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "tree/pick/1.0.0", name="pick", version="1.0.0")
    signers = list(keys.load_signers(folder).values())
    sign_tree(tmp_path / "tree", keys.load_roots(folder), signers, NOW)
    (tmp_path / "tree/trust/timestamp.json").write_bytes(b"{")
    with refused("TRUST_TARGETS") as caught:
        sign_tree(tmp_path / "tree", keys.load_roots(folder), signers, NOW)
    assert "timestamp.json" in str(caught.value)
