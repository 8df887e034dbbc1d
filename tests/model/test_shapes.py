"""Reading JSON of any shape: strict syntax, lenient shapes, strings that any encoder takes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model import shapes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b"NaN",
        b"[Infinity]",
        b"\xff",
        b"[1] x",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000 + b"x",
    ],
)
def test_what_is_no_json_is_none(data: bytes) -> None:
    assert shapes.parse(data) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (rb'"a\ud83d\ude00"', "a😀"),
        (rb'"a\ud83d"', "a\ufffd"),
        (rb'["\ude00x", {"k\ud83d": 1}]', ["\ufffdx", {"k\ufffd": 1}]),
    ],
)
def test_parsed_strings_can_be_written(data: bytes, expected: object) -> None:
    assert shapes.parse(data) == expected


def test_halves_are_left_to_whoever_joins_them() -> None:
    first, halves = shapes.parse_halves(rb'"\ud83d"')
    assert halves
    assert shapes.mend(first + shapes.parse_halves(rb'"\ude00"')[0]) == "😀"


@given(st.text(st.characters()))
def test_mend_leaves_good_text_alone_and_makes_the_rest_good(text: str) -> None:
    mended = shapes.mend(text)
    mended.encode()
    assert shapes.mend(mended) == mended
    assert mended == text or "\ufffd" in mended or len(mended) < len(text)


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.text(st.characters())),
        lambda s: st.lists(s, max_size=3),
    )
)
def test_json_that_python_writes_is_read(value: object) -> None:
    assert shapes.parse(json.dumps(value).encode()) == shapes.mend_all(value)


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 5), (0, 0), (-1, 0), (True, 0), (1.5, 0), ("5", 0), (None, 0), ([], 0)]
)
def test_counts(value: object, expected: int) -> None:
    assert shapes.count(value) == expected
