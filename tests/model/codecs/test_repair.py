"""What is nearly a JSON object becomes one, what is none stays none, and neither takes long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model import shapes
from dbproxy.model.codecs.repair import arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        (" \n", {}),
        ('{"a": 1}', {"a": 1}),
        ("{'x':1}", {"x": 1}),
        (
            "{'path': 'x', 'all': True, 'none': None, 'no': false}",
            {"path": "x", "all": True, "none": None, "no": False},
        ),
        ('{"a": [1, 2,], "b": {"c": 1,},\n}', {"a": [1, 2], "b": {"c": 1}}),
        # A comma inside of a string is nobody's trailing one.
        ('{"a": "x,}", "b": "\\",]",}', {"a": "x,}", "b": '",]'}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('```{"a": 1}```', {"a": 1}),
        ("```\n{'a': -1}\n```", {"a": -1}),
        ("{'pattern': '\\d+'}", {"pattern": "\\d+"}),
        ("{'a': (1, 2)}", {"a": [1, 2]}),
    ],
)
def test_what_is_nearly_json_is_read_as_it_was_meant(text, value):
    assert arguments(text) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1',
        '{"a": ',
        "[1]",
        "7",
        "null",
        '"text"',
        "path=x",
        "{'a': open('x')}",
        "{'a': b'x'}",
        "{1: 2}",
        "{**{}}",
        "{'a': 1j}",
        "{'a'}",
        '``` {"a": ```',
        "{'a': 1e999}",
        "\ud83d",
    ],
)
def test_what_cannot_be_read_as_an_object_is_none(text):
    assert arguments(text) is None


@given(
    st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2), max_size=3
    )
)
def test_json_is_left_as_it_is_and_python_is_read_as_json(value):
    assert arguments(shapes.written(value).decode()) == shapes.parse(shapes.written(value))
    assert arguments(repr(value)) in (value, None)


@given(st.text() | st.text("{}[]'\",: 1a\\`-\n"))
def test_nothing_raises(text):
    assert isinstance(arguments(text), dict | None)


@pytest.mark.parametrize(
    "text",
    [
        "```" + "\n" * 500_000 + "x",
        '"\\"' * 300_000,
        "-" * 1_000_000 + "1",
        "[" * 1_000_000,
        "{'a':" * 200_000,
        "," + " " * 900_000 + "x",
        ("," + " " * 100) * 9_000,
        "1+" * 300_000 + "1",
        "{" * 3_000_000,
    ],
)
def test_no_text_takes_long(text):
    began = time.perf_counter()
    assert arguments(text) is None
    assert time.perf_counter() - began < 5
