"""Views over request bodies: the clients' real shapes, and every shape that is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.exchange import Fields
from dbproxy.model.messages import Identity, MessagesRequest, texts

NONE = Fields.of([])
SESSION = "01234567-89ab-cdef-0123-456789abcdef"
INSTRUCTION = (
    "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.\n\nYour task is to create a detailed summary of the "
    "conversation so far. Wrap your analysis in <analysis> tags and the result in <summary> tags."
)


def request(**keys: Any) -> MessagesRequest:
    return MessagesRequest(json.dumps(keys).encode())


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]}


def typical() -> MessagesRequest:
    """The current client's main request (client facts 3.1), shortened."""
    return request(
        model="claude-opus-5-5",
        messages=[
            user("<system-reminder>context</system-reminder>", "please do it"),
            {"role": "system", "content": "agents and tools"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}]},
            user({"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok"}, "and then?"),
            {"role": "system", "content": [], "output_config": {}},
        ],
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329.7b2; cch=01234;"},
            {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}},
        ],
        tools=[{"name": "Bash"}, {"name": "Agent", "input_schema": {}}, {"type": "web_search_20250305"}],
        metadata={"user_id": json.dumps({"device_id": "d", "account_uuid": "a", "session_id": SESSION})},
        max_tokens=128000,
        thinking={"type": "adaptive"},
        stream=True,
    )


def test_a_main_request() -> None:
    view = typical()
    assert view.readable
    assert (view.model, view.max_tokens, view.stream) == ("claude-opus-5-5", 128000, True)
    assert view.message_count == 5
    assert view.tool_names == ("Bash", "Agent", "web_search_20250305")
    assert view.system == ("You are Claude Code.",)
    assert view.last_user_text == "and then?"
    assert view.identity == Identity("d", "a", SESSION)
    assert view.continues is None
    assert not view.is_compaction(NONE)


def test_spans_are_the_exact_bytes() -> None:
    first, second = b'{"role" :"user","content":"h\\u0069"}', b'{"role":"assistant","content": []}'
    body = b'{"x": [1], "messages" : [ ' + first + b" ," + second + b'], "model":"m"}'
    view = MessagesRequest(body)
    assert [bytes(span) for span in view.spans] == [first, second]
    assert view.message(0) == {"role": "user", "content": "hi"}
    assert view.last_user_text == "hi"
    with pytest.raises(IndexError):
        view.message(2)


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        (json.dumps({"device_id": "d", "account_uuid": "", "session_id": SESSION}), Identity("d", "", SESSION)),
        ("user_" + "0f" * 32 + f"_account__session_{SESSION}", Identity("0f" * 32, "", SESSION)),
        (f"user_ab_account_{SESSION}_session_{SESSION}", Identity("ab", SESSION, SESSION)),
        ("somebody", Identity()),
        ("", Identity()),
        ("[]", Identity()),
        (json.dumps({"device_id": 5, "session_id": ["x"]}), Identity()),
        (5, Identity()),
        (None, Identity()),
        ({"session_id": SESSION}, Identity()),
    ],
)
def test_identities(user_id: object, expected: Identity) -> None:
    assert request(metadata={"user_id": user_id}).identity == expected


def test_the_session_header_comes_first() -> None:
    named = Fields.of([(b"X-Claude-Code-Session-Id", b"from-header")])
    assert typical().session(named) == "from-header"
    assert typical().session(NONE) == SESSION
    assert request().session(NONE) == ""


@pytest.mark.parametrize(
    ("headers", "last", "expected"),
    [
        ({"x-claude-code-request-class": "compaction", "x-claude-code-compaction": "manual"}, "go on", "manual"),
        ({"x-claude-code-request-class": "compaction"}, "go on", "unknown"),
        ({"x-claude-code-compaction": "reactive"}, "go on", "reactive"),
        ({"x-cc-compaction-request": "auto"}, "go on", "auto"),
        ({"x-claude-code-request-class": "main"}, INSTRUCTION, ""),  # a person quoting the instruction
        ({"x-claude-code-request-class": "main", "x-claude-code-context-compacted": "auto"}, "go on", ""),
        ({}, INSTRUCTION, "unknown"),
        ({}, "please create a detailed summary of the conversation so far", ""),
        ({}, "go on", ""),
    ],
)
def test_compaction_requests(headers: dict[str, str], last: str, expected: str) -> None:
    fields = Fields.of([(name.encode(), value.encode()) for name, value in headers.items()])
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
    for messages in (
        [user("hi"), user(result, last)],
        [{"role": "user", "content": last}],
        [user(last), {"role": "system", "content": "n"}],
    ):
        view = request(messages=messages)
        assert view.compaction(fields) == expected
        assert view.is_compaction(fields) == bool(expected)


def test_an_earlier_compaction_does_not_count() -> None:
    view = request(messages=[user(INSTRUCTION), {"role": "assistant", "content": "<summary>"}, user("go on")])
    assert not view.is_compaction(NONE)
    assert not request(messages=[user(INSTRUCTION, "go on")]).is_compaction(NONE)


def test_threads() -> None:
    assert request(thread={"type": "continue", "previous_message_id": "msg_1"}).continues == "msg_1"
    assert request(thread={"type": "continue"}).continues == ""
    assert request(thread={"type": "create"}).continues is None
    assert request(thread="continue").continues is None


def test_texts() -> None:
    assert texts("plain") == ["plain"]
    assert texts([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": 5}, "b", None]) == ["a"]
    assert texts(None) == texts({}) == texts(5) == []


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=8),
        st.sampled_from(["user", "text", "continue", INSTRUCTION]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "user_id", "session_id"]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(
    st.sampled_from(["model", "messages", "system", "tools", "metadata", "stream", "max_tokens", "thread", "other"]),
    VALUES,
)


def look_at_everything(view: MessagesRequest) -> None:
    assert view.model is None or isinstance(view.model, str)
    assert view.max_tokens is None or type(view.max_tokens) is int
    assert isinstance(view.stream, bool)
    assert view.message_count == len(view.spans)
    for index in range(view.message_count):
        assert isinstance(view.message(index), dict)
    found = [
        *view.tool_names,
        *view.system,
        view.last_user_text,
        view.session(NONE),
        view.compaction(NONE),
        view.continues or "",
    ]
    found += [view.identity.device, view.identity.account, view.model or ""]
    assert all(isinstance(text, str) for text in found)
    "".join(found).encode()  # what is shown must be writable


@settings(max_examples=300)
@given(st.one_of(BODIES, VALUES))
def test_no_shape_raises(body: object) -> None:
    look_at_everything(MessagesRequest(json.dumps(body).encode()))


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=60), st.integers(0, 900).map(lambda end: typical().body[:end])))
def test_no_bytes_raise(body: bytes) -> None:
    look_at_everything(MessagesRequest(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"messages":' + b"[" * 100_000,
        b'{"messages":[' + b'{"content":[' * 5_000,
        b'{"model":"\\ud800","metadata":{"user_id":"\\udfff"},"messages":[{"role":"user","content":"\\ud83d"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":NaN}',
        b'\xef\xbb\xbf{"model":"m"}',
        b'{"model":"m"} trailing',
        b'{"max_tokens":1e3,"stream":1,"model":7}',
    ],
)
def test_odd_bodies(body: bytes) -> None:
    view = MessagesRequest(body)
    look_at_everything(view)
    assert view.max_tokens is None
    assert view.stream is False


def test_trailing_blanks_are_part_of_a_body() -> None:
    """The client pads some bodies with blanks (API facts 6.3)."""
    assert MessagesRequest(typical().body + b" \n" * 50).model == "claude-opus-5-5"
