# SPDX-License-Identifier: Apache-2.0
"""What is shown to people is one printable line, and shows no secret of a URL, proper or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_ros.plain import plain, plain_lines, printable, redacted

URLS = {
    "http://user:secret@host:80/a/b?X-Signature=secret#secret": "http://***@host:80/a/b?***",
    "https://host/a?secret": "https://host/a?***",
    "https://host/a#secret": "https://host/a#***",
    "http://user:sec ret@host/": "http://***@host/",
    "http://user:sec/ret@host/": "http://***@host/",
    "http://user:secret?secret@host/": "http://***?***",
    "https:/user:secret@host": "https:/***@host",
    "http://user:secret/": "http://***",
    "user:secret@host/a": "***@host/a",
    "http://[::1]:8765/a?x=b@c": "http://[::1]:8765/a?***",
    "file:///a/b.json": "file:///a/b.json",
    "http://127.0.0.1:8765/a/b.json": "http://127.0.0.1:8765/a/b.json",
    "": "",
}


@pytest.mark.parametrize(("url", "shown"), URLS.items())
def test_a_url_is_shown_without_user_info_query_and_fragment(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_urls_in_a_text_are_redacted_and_the_rest_stays() -> None:
    text = "a http://u:secret@h/x?s=secret: not below, see 'https://h/y?secret' (/z.json?s=secret) what? yes/no?"
    assert plain(text) == "a http://***@h/x?***: not below, see 'https://h/y?***' (/z.json?***) what? yes/no?"


def test_a_path_is_shown_whole_even_where_it_looks_like_a_url() -> None:
    assert printable("/data/which?one/a\nb\x07") == "/data/which?one/a b�"


def test_control_sequences_and_line_breaks_are_gone() -> None:
    assert plain("\x1b[31mred\x1b[0m\r\nnext\tone \u202etfel \x00\ud800") == "�[31mred�[0m next one �tfel ��"
    assert plain_lines('Traceback\n  File "a"\x1b\n    b') == 'Traceback\n  File "a"�\n    b'


@given(st.text())
def test_every_text_becomes_one_printable_line_that_stays_as_it_is(text: str) -> None:
    line = plain(text)
    assert line.isprintable() and "\n" not in line and plain(line) == line


@given(st.text(alphabet="ab:/@%. [", max_size=30), st.text(alphabet="ab:/@", max_size=10))
def test_no_password_or_token_is_ever_shown(before: str, path: str) -> None:
    for url in (f"http://{before}SECRET@{path}", f"{before}SECRET@{path}", f"http://host/{path}?{before}SECRET"):
        assert "SECRET" not in redacted(url)
