"""JSON and names that anybody may have written."""

import io
import json
import sys

import pytest

from synthkd.system.text import one_line, parse_json, print_anything, printable


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null, "\\u00e4"]}', b'"\xc3\xa4"', "3"])
def test_json_is_parsed_as_the_standard_library_does(text: str | bytes) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 100_000, b"\xff"])
def test_text_that_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)


def test_constants_that_are_no_json_can_be_replaced() -> None:
    assert parse_json("[1, NaN, -Infinity]", parse_constant=lambda name: name) == [1, "NaN", "-Infinity"]


def test_escapes_replace_what_moves_or_hides_text() -> None:
    assert printable("a\x1b[31mb\u202ec\u2028d\udcff\x85") == "a\\x1b[31mb\\u202ec\\u2028d\\udcff\\x85"
    plain = "caf\u00e9 \u732b \U0001f431\ttab\nline"
    assert printable(plain) == plain
    assert one_line("a\tb\nc\r") == "a\\tb\\nc\\r"


def test_characters_that_an_encoding_lacks_are_printed_as_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii", errors="strict"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # has no encoding, and is left alone
    print_anything()
    print("caf\u00e9", end="", flush=True)
    assert data.getvalue() == b"caf?"
