# SPDX-License-Identifier: Apache-2.0
"""Nothing is fetched from outside the allowed sources, however the URL is written."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from vla_checkpoint.paths import path_fault
from vla_ota_manager.errors import ConfigError, FetchError
from vla_ota_manager.fetch.source import AllowedSources, join_url, parse_url

ALLOWED = ["http://models.example/robots", "https://cdn.example:8443/", "http://[::1]:8080/m"]


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example/robots/a/1.0.0/manifest.json",
        "http://models.example:80/robots/a",
        "HTTP://MODELS.example/robots/a",
        "http://models.example/robots/1.0.0+build.5/x",
        "http://models.example/robots/x?signature=abc%2F",
        "https://cdn.example:8443/anything",
        "http://[::1]:8080/m/x",
    ],
)
def test_what_lies_below_a_prefix_is_allowed(url: str) -> None:
    AllowedSources(ALLOWED).check(parse_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example/robots2/x",
        "http://models.example/robot",
        "http://models.example/",
        "http://models.example/Robots/x",
        "https://models.example/robots/x",
        "http://models.example:8080/robots/x",
        "http://models.example.evil.com/robots/x",
        "http://evil.com/robots/x",
        "https://cdn.example/x",
        "file:///robots/x",
        "http://[::2]:8080/m/x",
    ],
)
def test_what_does_not_is_refused(url: str) -> None:
    with pytest.raises(FetchError) as caught:
        AllowedSources(ALLOWED).check(parse_url(url))
    assert caught.value.code == "SOURCE_NOT_ALLOWED"


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example@evil.com/robots/x",
        "http://user:password@models.example/robots/x",
        "http://evil.com\\@models.example/robots/x",
        "http://models.example/robots/../secret",
        "http://models.example/robots/./x",
        "http://models.example/robots//x",
        "http://models.example/robots/%2e%2e/secret",
        "http://models.example/robots/%2E%2e/secret",
        "http://models.example/robots%2f..%2fsecret",
        "http://models.example/robots/%252e%252e/x",
        "http://models.example/robots/%5c..%5cx",
        "http://models.example/robots/%00",
        "http://models.example/robots/%zz",
        "http://models.example/robots/x#fragment",
        "http://models.example/robots/a b",
        "http://models.example/robots/\r\nHost: evil.com",
        "http://models.example/robots/ä",
        "http://mod\u212als.example/robots/x",
        "http://models%2eexample/robots/x",
        "http://models.example.:80/robots/x",
        "http:///robots/x",
        "http://models.example:99999/robots",
        "ftp://models.example/robots/x",
        "//models.example/robots/x",
        "robots/x",
        "",
        "file://evil.com/robots",
        "http://models.example/" + "a" * 9000,
    ],
)
def test_tricks_are_no_urls_at_all(url: str) -> None:
    with pytest.raises(FetchError) as caught:
        AllowedSources(ALLOWED).check(parse_url(url))
    assert caught.value.code == "URL_INVALID"


def test_an_empty_list_allows_nothing() -> None:
    for url in ("http://localhost/x", "file:///tmp/x"):
        with pytest.raises(FetchError, match="SOURCE_NOT_ALLOWED"):
            AllowedSources([]).check(parse_url(url))


@pytest.mark.parametrize("prefix", ["models.example", "http://a/b?c", "http://u@a/", "http://a/../b", "*"])
def test_a_prefix_that_means_several_things_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError):
        AllowedSources([prefix])


def test_references_are_resolved_against_the_manifest_and_cannot_climb_out() -> None:
    base = parse_url("http://models.example/robots/pick/1.0.0/manifest.json")
    joined = join_url(base, "../../blobs/sha256/abc")
    assert joined.text == "http://models.example/robots/blobs/sha256/abc"
    assert join_url(base, "weights/model.safetensors").text.endswith("/1.0.0/weights/model.safetensors")
    for reference in (
        "../../../../../etc/passwd",
        "http://u@evil.com/x",
        "%2e%2e/x",
        "http://[",
        "/\t/evil.com",
        "/\n/evil.com",
    ):
        with pytest.raises(FetchError):
            AllowedSources(ALLOWED).check(join_url(base, reference))


def test_a_file_source_may_not_be_left_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed/inside").write_text("x")
    (tmp_path / "allowed/link").symlink_to(tmp_path / "secret")
    allowed = AllowedSources([(tmp_path / "allowed").as_uri()])
    allowed.check(parse_url((tmp_path / "allowed/inside").as_uri()))
    for path in ("allowed/link/x", "secret/x", "allowed2/x"):
        with pytest.raises(FetchError, match="SOURCE_NOT_ALLOWED"):
            allowed.check(parse_url((tmp_path / path).as_uri()))


def test_every_file_that_a_manifest_may_list_can_be_asked_for_beside_it() -> None:
    base = parse_url("http://models.example/robots/pick/1.0.0/manifest.json")
    names = [name for name in (f"a{chr(i)}b" for i in range(0x250)) if path_fault(name) is None]
    assert len(names) > 90
    for name in names:
        assert join_url(base, quote(name)).segments == ("robots", "pick", "1.0.0", *name.split("/"))


def test_what_a_server_or_a_file_name_says_stays_on_one_line() -> None:
    error = FetchError("HTTP_STATUS", "500 \x1b[2J\nOK", "http://models.example/a\r\nb")
    assert str(error).isprintable() and error.message.isprintable()
