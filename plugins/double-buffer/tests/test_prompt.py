"""The checkpoint's request: every byte of the live one, and the instruction."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dbproxy_double_buffer.prompt import (
    OWN_INSTRUCTION,
    InstructionBook,
    checkpoint_body,
    checkpoint_head,
    tool_followup,
    without_member,
)
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.api import Fields, RequestHead

SYSTEM = [{"type": "text", "text": "x-anthropic-billing-header: cch=abc12;"}, {"type": "text", "text": "Be good."}]
TEXT = st.text(max_size=40)
BLOCKS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
        st.fixed_dictionaries({"type": st.just("tool_result"), "tool_use_id": TEXT, "content": TEXT}),
        st.fixed_dictionaries({"type": st.just("text"), "text": TEXT, "cache_control": st.just({"type": "ephemeral"})}),
    ),
    max_size=4,
)


def encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def body(content: Any, **more: Any) -> bytes:
    messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "yes"}]
    return encode(
        {"model": "m", "system": SYSTEM, "messages": [*messages, {"role": "user", "content": content}], **more}
    )


@given(st.one_of(TEXT, BLOCKS), st.sampled_from([None, 2]))
def test_only_the_instruction_is_added(content, indent):
    live = body(content)
    if indent:
        live = json.dumps(json.loads(live), indent=indent).encode()
    made = checkpoint_body(live, "Sum it up: $' </summary>")
    assert made is not None
    before, after = json.loads(live), json.loads(made)
    last = after["messages"][-1]["content"]
    was = before["messages"][-1]["content"]
    kept = [{"type": "text", "text": was}] if isinstance(was, str) else was
    assert last == [*kept, {"type": "text", "text": "Sum it up: $' </summary>"}]
    after["messages"][-1]["content"] = was
    assert after == before
    prefix = live[: live.rindex(b'"role"')]
    assert made.startswith(prefix)  # what the prompt cache looks at is the same bytes


def test_a_trailing_system_message_gets_one_behind_it():
    live = encode({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "note"}]})
    made = json.loads(checkpoint_body(live, "sum"))
    assert [m["role"] for m in made["messages"]] == ["user", "system", "system"]
    assert made["messages"][-1]["content"] == "sum"


def test_a_thread_is_left_out_and_a_continued_one_is_no_base():
    live = body("x", thread={"type": "create"}, stream=True)
    made = json.loads(checkpoint_body(live, "sum"))
    assert "thread" not in made
    assert made["stream"] is True
    assert checkpoint_body(body("x", thread={"type": "continue", "previous_message_id": "msg_1"}), "sum") is None


@pytest.mark.parametrize(
    "live",
    [
        b"", b"[]", b"null", b"{}", b'{"messages":[]}', b'{"messages":null}', b'{"messages":"x"}', b'{"messages":[1]}',
        b'{"messages":[{"role":"assistant","content":"prefill"}]}', b'{"messages":[{"role":"user"}]}',
        b'{"messages":[{"role":"user","content":5}]}', b'{"messages":[{"role":"user","content":"x"}]',
    ],
)  # fmt: skip
def test_what_cannot_be_a_base_is_none(live):
    assert checkpoint_body(live, "sum") is None


def test_a_member_goes_and_every_other_byte_stays():
    assert without_member(b'{"a": 1, "b": 2,"c":3}', b"b") == b'{"a": 1, "c":3}'
    assert without_member(b'{"a": 1, "b": 2}', b"b") == b'{"a": 1}'
    assert without_member(b'{ "b":2 , "a": 1}', b"b") == b'{ "a": 1}'
    assert without_member(b'{"a":1}', b"b") == b'{"a":1}'
    assert without_member(b"[1]", b"b") is None


def head(*more: tuple[bytes, bytes]) -> RequestHead:
    fields = [(b"X-Api-Key", b"k"), (b"anthropic-beta", b"one,two"), (b"User-Agent", b"claude-cli/2.1.329"), *more]
    return RequestHead(b"POST", b"/v1/messages?beta=true", b"HTTP/1.1", Fields.of(fields))


def test_the_head_keeps_who_speaks_and_drops_what_was_of_that_request():
    given = head(
        (b"X-Claude-Code-Session-Id", b"s"),
        (b"x-claude-code-prompt-id", b"p"),
        (b"x-claude-code-prev-tool-durations", b"Bash=1"),
        (b"x-claude-code-context-compacted", b"auto"),
        (b"x-claude-code-request-class", b"main"),
        (b"x-client-request-id", b"old"),
        (b"Content-Length", b"12"),
    )
    made = checkpoint_head(given).fields
    assert (made.get(b"x-api-key"), made.get(b"anthropic-beta")) == (b"k", b"one,two")
    assert made.get(b"x-claude-code-session-id") == b"s"
    assert made.get(b"x-claude-code-request-class") == b"compaction"
    assert made.get(b"x-claude-code-compaction") == b"auto"
    assert made.get(b"x-client-request-id") not in (None, b"old")
    for name in (b"x-claude-code-prompt-id", b"x-claude-code-prev-tool-durations", b"x-claude-code-context-compacted"):
        assert made.get(name) is None
    assert checkpoint_head(head()).fields.get(b"x-claude-code-request-class") is None


def test_a_called_tool_is_answered_and_the_question_asked_again():
    message = {"content": [{"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}]}
    made = json.loads(tool_followup(checkpoint_body(body("x"), "sum"), message, "sum"))
    assert made["messages"][-2] == {"role": "assistant", "content": message["content"]}
    refused, asked = made["messages"][-1]["content"]
    assert (refused["tool_use_id"], refused["is_error"], asked["text"]) == ("toolu_1", True, "sum")


def test_the_clients_own_instruction_is_learned_per_version():
    book = InstructionBook()
    assert book.text((2, 1, 329)) == OWN_INSTRUCTION
    book.learn((2, 1, 329), "their words")
    assert book.text((2, 1, 329)) == "their words"
    assert book.text((2, 1, 112)) == OWN_INSTRUCTION
    assert book.changed
    again = InstructionBook()
    again.restore(json.loads(json.dumps(book.to_json())))
    assert again.text((2, 1, 329)) == "their words"
    assert not again.changed
    again.learn((2, 1, 329), "their words")
    assert not again.changed  # nothing new
    for number in range(40):
        again.learn((3, number), "words")
    assert len(again.to_json()) == 20
    assert again.text((3, 39)) == "words"


@pytest.mark.parametrize(
    "kept", [None, 5, [], "x", {"x": "y", "1.2": 5, "²": "y", "": "y", "1.": "y", "1" * 5000: "y"}]
)
def test_kept_instructions_that_are_odd_are_none(kept):
    book = InstructionBook()
    book.restore(kept)
    assert book.to_json() == {}


def test_our_own_instruction_is_recognised_as_one():
    from dbproxy_double_buffer.detect import compact_request

    found = compact_request([{"role": "user", "content": OWN_INSTRUCTION}], Fields.of([]))
    assert found is not None
    assert found.servable
