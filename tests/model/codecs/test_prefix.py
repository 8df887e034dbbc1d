"""What goes out of a tool's input is at every piece what the official SDKs can parse."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jiter import from_json

from dbproxy.model.codecs.prefix import NoObject, ObjectPrefix

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=4)
spelled = st.builds(
    lambda value, ascii_, indent: json.dumps(value, ensure_ascii=ascii_, indent=indent),
    objects,
    st.booleans(),
    st.sampled_from([None, 1]),
)


def fed(text, size=0):
    """What comes out, piece by piece. Each beginning is checked by the parser of the Python SDK."""
    prefix, out = ObjectPrefix(), ""
    for at in range(0, len(text), size or len(text) or 1):
        out += prefix.feed(text[at : at + (size or len(text))])
        if out:
            from_json(out.encode(), partial_mode=True)
    return out


@given(spelled, st.integers(1, 9))
def test_every_object_passes_in_every_split(text, size):
    assert fed(text, size) == text.lstrip()


@given(spelled, st.data())
def test_a_cut_object_is_a_beginning(text, data):
    cut = text[: data.draw(st.integers(0, len(text)))]
    out = fed(cut, 3)
    assert cut.startswith(out)
    assert len(cut) - len(out) < 12


@given(spelled, st.data())
def test_whatever_passes_is_the_beginning_of_json_and_nothing_else_is_refused(text, data):
    at = data.draw(st.integers(0, len(text)))
    bad = text[:at] + data.draw(st.text(alphabet='{}[]:,"\\u0d8c\x00\n -+.eEtrfalsn', max_size=4)) + text[at:]
    try:
        out = fed(bad, 2)
    except NoObject:
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(bad, parse_constant=_refuse), dict)
    else:
        from_json(out.encode() or b"{", partial_mode=True)


def _refuse(word):
    raise ValueError(word)


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "1",
        '"a"',
        "x",
        "{,",
        "{]",
        "{1",
        "{'a'",
        '{"a" 1',
        '{"a",',
        '{"a":}',
        '{"a":,',
        '{"a":1,}',
        '{"a":1]',
        '{"a":[1}',
        '{"a":[1,]',
        '{"a":01',
        '{"a":1.}',
        '{"a":+1',
        '{"a":NaN',
        '{"a":tru}',
        '{"a":true false',
        '{"a":1 2',
        '{"a":"\n',
        '{"a":"\\x',
        '{"a":"\\u12g',
        '{"a":1}{',
        '{"a":1}x',
        '{"a":1}"',
        '{"a":' * 129,
        '{"a":' + "9" * 1001,
        '{"a"b',
        "{\u00a0",
    ],
)
def test_what_cannot_become_an_object_is_refused_at_once(text):
    for size in (1, 3, 0):
        with pytest.raises(NoObject):
            fed(text, size)


@pytest.mark.parametrize(
    ("text", "out"),
    [
        (" \n\t{}", "{}"),
        ("  ", ""),
        ("", ""),
        ('{"a":"\\ud83d"}', '{"a":"\ufffd"}'),
        ('{"a":"\\ude00x"}', '{"a":"\ufffdx"}'),
        ('{"a":"\\ud83d\\ud83d\\ude00"}', '{"a":"\ufffd\\ud83d\\ude00"}'),
        ('{"a":"\\ud83d\\n"}', '{"a":"\ufffd\\n"}'),
        ('{"\\uD83D":1}', '{"\ufffd":1}'),
        ('{"a": 1 } \n', '{"a": 1 } \n'),
        ('{"a":-1.5e+3,"b":[true,false,null,{}],"c":[]}', '{"a":-1.5e+3,"b":[true,false,null,{}],"c":[]}'),
    ],
)
def test_blanks_before_it_and_halves_of_characters(text, out):
    for size in (1, 2, 5, 0):
        assert fed(text, size) == out


def test_no_more_is_held_back_than_an_escape():
    prefix = ObjectPrefix()
    assert prefix.feed('{"a":"x\\') == '{"a":"x'
    assert prefix.feed("ud83") == ""
    assert prefix.feed("d\\ude0") == ""
    assert prefix.feed('0"') == '\\ud83d\\ude00"'


def test_time_grows_with_the_length():
    """A file of a megabyte, whole and in pieces of one token."""
    text = json.dumps({"content": "line of code = 'x';\n" * 50_000})
    began = time.perf_counter()
    assert ObjectPrefix().feed(text) == text
    assert time.perf_counter() - began < 1.0
    small = text[:200_000]
    began = time.perf_counter()
    prefix = ObjectPrefix()
    assert "".join(prefix.feed(small[at : at + 4]) for at in range(0, len(small), 4)) == small
    assert time.perf_counter() - began < 5.0
