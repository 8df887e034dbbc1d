"""A conversation told in Chat and told back is the same conversation: texts, calls, results, their order and errors."""

from __future__ import annotations

import json

from asking import ask, tool_result, user
from chattalk import a_translation, call, chunk, heard, sent
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model import shapes
from dbproxy.model.codecs.naming import client_id

#: Names as clients give them: some too long, some with characters that Chat does not take.
NAMES = st.sampled_from(["Read", "mcp__" + "a" * 66, "mcp__" + "a" * 65 + "b", "files.read", "naïve"])
#: An "Error: " that somebody wrote cannot be told from one that was put there.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: not text.startswith(("Error: ", "x-anthropic-billing-header:"))
)
ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), TEXTS, st.lists(TEXTS)),
    max_size=3,
)


@st.composite
def conversations(draw):
    """Turns that alternate; every call has its result at the beginning of the next turn."""
    turns, ids = [], 0
    waiting: list[str] = []
    for number in range(draw(st.integers(1, 6))):
        texts = [{"type": "text", "text": text} for text in draw(st.lists(TEXTS, max_size=3))]
        if number % 2 == 0:
            results = [
                {"type": "tool_result", "tool_use_id": id, "content": draw(TEXTS), "is_error": draw(st.booleans())}
                for id in waiting
            ]
            blocks = results + texts or [{"type": "text", "text": "go on"}]
        else:
            calls = []
            for _ in range(draw(st.integers(0, 3))):
                ids += 1
                id = client_id(draw(st.sampled_from(["toolu_{}", "call_{}", "a:b/{}", "x" * 30 + "{}"])).format(ids))
                calls.append({"type": "tool_use", "id": id, "name": draw(NAMES), "input": draw(ARGUMENTS)})
            waiting = [block["id"] for block in calls]
            blocks = texts + calls or [{"type": "text", "text": "done"}]
        turns.append({"role": "assistant" if number % 2 else "user", "content": blocks})
    if waiting and turns[-1]["role"] == "assistant":
        turns.append({"role": "user", "content": [tool_result(id, "late", is_error=False) for id in waiting]})
    return turns


def _told_back(messages, names):
    """The inverse of the codec, written by the rules of Chat alone."""
    turns: list[dict] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        content = message.get("content") or []
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if message["role"] == "tool":
            text = message["content"]
            blocks = [
                {
                    "type": "tool_result",
                    "tool_use_id": client_id(message["tool_call_id"]),
                    "content": text.removeprefix("Error: "),
                    "is_error": text.startswith("Error: "),
                }
            ]
        else:
            blocks = content + [
                {
                    "type": "tool_use",
                    "id": client_id(call["id"]),
                    "name": names.back(call["function"]["name"]),
                    "input": json.loads(call["function"]["arguments"]),
                }
                for call in message.get("tool_calls", ())
            ]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        else:
            turns.append({"role": role, "content": list(blocks)})
    return turns


@given(conversations())
def test_case_94_a_conversation_survives_the_way_there_and_back(turns):
    translation = a_translation()
    body = sent(ask(*turns), translation)
    assert _told_back(body["messages"], translation.names) == turns


@given(conversations(), st.randoms(use_true_random=False))
def test_case_94_an_answer_survives_the_way_back(turns, random):
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    translation = a_translation()
    sent(ask(user("hi"), *turns), translation)
    for blocks in answers:
        events = []
        for index, block in enumerate(blocks):
            if block["type"] == "text":
                events.append(chunk({"content": block["text"]}))
            else:
                text, name = shapes.written(block["input"]).decode(), translation.names.out(block["name"])
                cut = random.randint(0, len(text))
                events.append(chunk({"tool_calls": [call(index, id=block["id"], name=name, arguments=text[:cut])]}))
                events.append(chunk({"tool_calls": [call(index, arguments=text[cut:])]}))
        answer = heard(*events, chunk({}, "stop"), translation=translation)
        texts = "".join(block["text"] for block in blocks if block["type"] == "text")
        calls = [block for block in blocks if block["type"] == "tool_use"]
        assert "".join(block["text"] for block in answer.content if block["type"] == "text") == texts
        assert [
            (block["id"], block["name"], block["input"]) for block in answer.content if block["type"] != "text"
        ] == [(client_id(block["id"]), block["name"], block["input"]) for block in calls]
