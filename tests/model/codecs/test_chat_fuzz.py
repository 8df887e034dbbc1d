"""Whatever a server sends in the name of Chat, the client gets a grammatical stream or one error event."""

from __future__ import annotations

import json

import pytest
from chattalk import DONE, a_translation, call, calls, chunk, heard
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model import shapes
from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.chat.answer import ChatReader
from dbproxy.model.codecs.chat.chunks import quick, tolerant
from dbproxy.model.codecs.writer import MessageWriter
from dbproxy.testing.origin.grammar import Reader, StreamError, check_stream

TEXTS = st.one_of(
    st.text(max_size=6), st.sampled_from(["<think>", "</think>", "<th", "END", "E", "\ud83d", "\ude00", "{}"])
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def _record(**fields):
    """An object with some of these keys."""
    return st.fixed_dictionaries({}, optional=fields)


def _odd(strategy):
    """Nearly always what is expected."""
    return st.one_of(strategy, strategy, strategy, JSON)


FUNCTION = _record(
    name=_odd(st.sampled_from(["Read", "Re", "ad", ""])),
    arguments=_odd(st.sampled_from(["{", "}", "{}", '"a":1', "null", ""])),
)
CALL = _record(
    index=_odd(st.integers(0, 2)),
    id=_odd(st.sampled_from(["c1", "c2", "", "c:3"])),
    function=_odd(FUNCTION),
    extra_content=JSON,
)
CITATION = _record(type=st.just("url_citation"), url_citation=_odd(_record(url=_odd(TEXTS), title=_odd(TEXTS))))
PART = _record(type=_odd(st.sampled_from(["text", "thinking"])), text=_odd(TEXTS), thinking=JSON)
DELTA = _record(
    role=JSON,
    content=_odd(TEXTS | st.lists(_odd(PART), max_size=2)),
    reasoning_content=_odd(TEXTS),
    reasoning=_odd(TEXTS),
    reasoning_details=JSON,
    refusal=_odd(TEXTS),
    tool_calls=_odd(st.lists(_odd(CALL), max_size=3)),
    function_call=_odd(FUNCTION),
    annotations=_odd(st.lists(_odd(CITATION), max_size=2)),
)
USAGE = _record(
    prompt_tokens=_odd(st.integers()),
    completion_tokens=_odd(st.integers()),
    total_tokens=JSON,
    cached_tokens=_odd(st.integers()),
    prompt_tokens_details=_odd(_record(cached_tokens=_odd(st.integers()))),
    completion_tokens_details=JSON,
)
CHOICE = _record(
    delta=_odd(DELTA),
    message=_odd(DELTA),
    finish_reason=_odd(st.sampled_from([None, "stop", "length", "tool_calls", "content_filter", "error"])),
    usage=_odd(USAGE),
)
CHUNK = _record(
    id=_odd(TEXTS), choices=_odd(st.lists(_odd(CHOICE), max_size=2)), usage=_odd(USAGE), error=_odd(st.none())
)
EVENT = st.one_of(
    CHUNK.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda delta, finish: chunk(delta, finish), DELTA, st.sampled_from([None, "stop", "tool_calls"])),
    st.binary(max_size=20),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.just(DONE),
)
CAN = st.fixed_dictionaries(
    {
        "reasoning": st.sampled_from(["", "think"]),
        "echo": st.booleans(),
        "reliable_json": st.booleans(),
        "web_search": st.booleans(),
    }
)


def _translation(can, stops, single, scale):
    translation = a_translation(**can)
    translation.stops, translation.single, translation.scale = stops, single, scale
    return translation


TRANSLATIONS = st.builds(
    _translation, CAN, st.sampled_from([(), ("END",)]), st.booleans(), st.sampled_from([1.0, 0.3, 7.5])
)


def _check(out: bytes, writer: MessageWriter) -> None:
    assert writer.done
    if writer.failure is None:
        assert check_stream(out)["stop_reason"] == writer.stop_reason
    elif out:
        with pytest.raises(StreamError) as caught:
            Reader().feed(out)
        assert caught.value.error["type"] == writer.failure.kind
        # Nothing stands behind the error.
        assert out.rstrip().rpartition(b"\n\n")[2].startswith(b"event: error")


@given(st.lists(st.tuples(st.sampled_from([b"", b"", b"message", b"error"]), EVENT), max_size=8), TRANSLATIONS)
def test_case_95_any_events_become_a_grammatical_stream_or_one_error(events, translation):
    writer = MessageWriter(translation)
    reader = CHAT.stream(translation, writer)
    out = b""
    for name, data in events:
        reader.feed(name, data)
        out += writer.take()
    reader.end()
    reader.end()
    _check(out + writer.take(), writer)


@given(st.one_of(EVENT, st.binary()), TRANSLATIONS)
def test_case_95_any_document_becomes_a_grammatical_stream_or_one_error(body, translation):
    writer = MessageWriter(translation)
    CHAT.document(body, translation, writer)
    _check(writer.take(), writer)


@given(CHUNK)
def test_what_is_read_quickly_is_read_the_same_as_what_is_read_with_tolerance(value):
    data = json.dumps(value).encode()
    found = quick(data)
    if found is None:
        return
    other = tolerant(shapes.parse(data))
    assert other is not None
    translation, twin = a_translation(), a_translation()
    assert _heard_of(found, translation) == _heard_of(other, twin)


def _heard_of(found, translation):
    """What becomes of a chunk that was read already."""
    writer = MessageWriter(translation)
    reader = ChatReader(translation, writer)
    if found.choices:
        reader._choice(found, found.choices[0])
    reader.end()
    return writer.take(), writer.failure


TOOLS = st.lists(
    st.tuples(
        st.sampled_from(["Read", "Write"]),
        st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(), max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@given(TOOLS, st.randoms(use_true_random=False))
def test_case_48_calls_are_whole_however_their_pieces_are_mixed(tools, random):
    pieces = []
    for index, (name, arguments) in enumerate(tools):
        text = shapes.written(arguments).decode()
        cut = random.randint(0, len(text))
        first = call(index, id=f"c{index}", name=name, arguments=text[:cut])
        pieces.append([first, call(index, arguments=text[cut:])])
    events = []
    while any(pieces):
        events.append(random.choice([left for left in pieces if left]).pop(0))
    answer = heard(*(calls(event) for event in events), chunk({}, "tool_calls"))
    expected = {
        f"c{index}": (name, json.loads(shapes.written(arguments))) for index, (name, arguments) in enumerate(tools)
    }
    assert {block["id"]: (block["name"], block["input"]) for block in answer.content} == expected
