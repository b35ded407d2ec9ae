# SPDX-License-Identifier: Apache-2.0
"""From where a robot may fetch: URLs compared part by part with the prefixes it was given."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from vla_ota_manager.errors import ConfigError, FetchError, RefusedFetchError
from vla_ros.plain import redacted

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_PLAIN = re.compile(r"[!#-;=?-\[\]_a-z~%]+", re.ASCII)  # printable ASCII without space " < > \ ^ ` { | }
_ENCODED_TRICK = re.compile(r"%(?![0-9a-f]{2})|%(?:2e|2f|5c|25|[01][0-9a-f]|7f|[89a-f][0-9a-f])", re.IGNORECASE)


@dataclass(frozen=True)
class Url:
    """A URL in its parts, checked to mean one thing only.

    ``segments`` are the decoded path's; ``text`` is what is sent.
    """

    text: str
    scheme: str
    host: str
    port: int
    segments: tuple[str, ...]

    @property
    def is_file(self) -> bool:
        """Whether it names a file on this machine."""
        return self.scheme == "file"

    @property
    def path(self) -> Path:
        """Path of a ``file`` URL."""
        return Path("/", *self.segments)


def parse_url(text: str) -> Url:
    """Take a URL apart.

    Raises:
        FetchError: URL_INVALID for anything unusual: another scheme, user-info, fragment, dot or empty segments, encoded
            slashes, dots, percents, control or non-ASCII characters.
    """
    if len(text) > 8192 or not text.isascii() or not _PLAIN.fullmatch(text.lower()):
        raise _invalid(text, "holds characters that a URL may not have, or is too long")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as e:
        raise _invalid(text, "the host or the port is malformed") from e  # not in e's words: they quote it
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https", "file"):
        raise _invalid(text, "the scheme must be http, https or file")
    if "@" in parts.netloc or "#" in text:
        raise _invalid(text, "user-info and fragments are refused")
    host = parts.netloc.lower() if scheme == "file" else _host_of(text, parts.hostname or "", parts.netloc)
    if scheme == "file" and (host not in ("", "localhost") or parts.query):
        raise _invalid(text, "a file URL has no host and no query")
    if _ENCODED_TRICK.search(parts.path):
        raise _invalid(text, "percent-encoded slash, dot, percent or control character in the path")
    segments = unquote(parts.path).split("/")[1:] if parts.path else [""]
    if any(segment in (".", "..") for segment in segments) or "" in segments[:-1]:
        raise _invalid(text, "dot segments and empty segments are refused")
    return Url(text, scheme, host, port or _DEFAULT_PORTS.get(scheme, 0), tuple(segments))


def _host_of(text: str, hostname: str, netloc: str) -> str:
    host = f"[{hostname.lower()}]" if "[" in netloc else hostname.lower()
    if not _HOST.fullmatch(host) or "%" in netloc:
        raise _invalid(text, "the host is not a plain name or address")
    return host


def join_url(base: Url, relative: str) -> Url:
    """Resolve a reference against a URL and check the result; ``..`` of the reference may not climb above the root."""
    if not _PLAIN.fullmatch(relative.lower()):  # urljoin drops tabs and line ends: "/\t/evil" would name another host
        raise _invalid(relative, "holds characters that a URL may not have")
    depth = len(base.segments) - 1
    if posixpath.normpath(relative).split("/").count("..") > depth:
        raise _invalid(relative, f"climbs above the root of {base.text}")
    try:
        target = urljoin(base.text, relative)
    except ValueError as e:
        raise _invalid(relative, "the host or the port is malformed") from e
    return parse_url(target)


def parse_mirror(text: str) -> str:
    """Return a mirror's URL without a slash at its end; raise ConfigError if it is no http or https URL without a query."""
    try:
        url = parse_url(text)
    except FetchError as e:
        raise ConfigError("PARAMETER_INVALID", e.reason, f"mirror_url: {redacted(text)}") from e
    if url.is_file or "?" in text:
        raise ConfigError(
            "PARAMETER_INVALID", "must be http or https, without a query", f"mirror_url: {redacted(text)}"
        )
    return text.rstrip("/")


class AllowedSources:
    """The URL prefixes from which this robot fetches. An empty list allows nothing.

    A prefix covers whole path segments: ``http://host/models`` covers ``http://host/models/a``, not ``http://host/models2``.

    Raises:
        ConfigError: a prefix is no proper URL, or has a query.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._prefixes: list[Url] = []
        for prefix in prefixes:
            try:
                url = parse_url(prefix)
            except FetchError as e:
                raise ConfigError("PARAMETER_INVALID", e.reason, f"allowed_sources: {redacted(prefix)}") from e
            if "?" in prefix:
                raise ConfigError("PARAMETER_INVALID", "a prefix has no query", f"allowed_sources: {redacted(prefix)}")
            self._prefixes.append(url)

    def check(self, url: Url) -> None:
        """Raise ``FetchError`` SOURCE_NOT_ALLOWED unless a prefix covers the URL; for files also where symlinks lead."""
        if not any(_covers(prefix, url) for prefix in self._prefixes):
            raise RefusedFetchError("SOURCE_NOT_ALLOWED", "not below any of allowed_sources", url.text)


def _covers(prefix: Url, url: Url) -> bool:
    if (prefix.scheme, prefix.port) != (url.scheme, url.port):
        return False
    if url.is_file:
        inside = _below(prefix.path.parts[1:], url.path.parts[1:])
        return inside and url.path.resolve().is_relative_to(prefix.path.resolve())
    return prefix.host == url.host and _below(prefix.segments, url.segments)


def _below(prefix: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    if prefix and not prefix[-1]:  # written with a slash at its end
        prefix = prefix[:-1]
    return segments[: len(prefix)] == prefix


def _invalid(text: str, reason: str) -> RefusedFetchError:
    return RefusedFetchError("URL_INVALID", reason, redacted(text)[:200])
