"""What the real client makes of the answer to its compact request: the ground under the double buffer's text.

The answer comes from the fake API, without a proxy; message 0 of the client's next request is compared with the
plugin's own model of the client (`seen`), for texts that hold all that is known to go wrong.
"""

from __future__ import annotations

import json

import pytest
from dbproxy_double_buffer.answer import believable_usage, first_words, form, seen, swap_text
from dbproxy_double_buffer.log import render
from dbproxy_double_buffer.summary import Summary
from dbproxy_double_buffer.wall import Client

pytestmark = pytest.mark.realclient

NASTY = (
    "a $' b $& c $$ d $` e $1 f ${x} g $$$$ </summary> h <analysis>i</analysis> j <summary>k</summary> l </summary-s\n"
    '  indented\twith "quotes" and C:\\path\\n, ä漢🙂\u2028\u200b, \x07 and a carriage return\r\n\r\n\r\n'
    "then\n\none blank line"
)
AFTER = "This session is being continued"
# Answers as a model could write them, good or odd: what the client does is what `seen` says.
ODD = (
    "<analysis>A $&</analysis>\n\n<summary>S $' $$ $& $1</summary>\n\nTAIL $' $& $$ </summary> <analysis>T</analysis>",
    "<analysis>A <summary>no</summary></analysis>\n\n<summary>S </summary> r </summary>\n\n\n\nTAIL\n\n \n \nend  \n",
    "<summary>S</summary>\n\nTAIL <analysis>gone</analysis> end <summary>x</summary>",
    "<summary>S <analysis>gone</analysis> end</summary>\n\nTAIL",
)


def first_message(request) -> str:
    """The text of message 0."""
    content = json.loads(unchunked(request))["messages"][0]["content"]
    blocks = [{"text": content}] if isinstance(content, str) else content
    return next(block["text"] for block in blocks if AFTER in block.get("text", ""))


def unchunked(request) -> bytes:
    if "chunked" not in (request.field("transfer-encoding") or ""):
        return request.body
    body, rest = b"", request.body
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return body
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


def version_of(client) -> tuple[int, ...]:
    return tuple(int(part) for part in client.version.split("."))


def compacted(island, *answers):
    """For each of these answers one run with one automatic compaction."""
    full = {"input_tokens": 10, "cache_read_input_tokens": 990_000, "output_tokens": 50}
    call = {"type": "tool_use", "name": "Bash", "input": {"command": "echo one", "description": "a step"}}
    rules = [
        {"match": {"role": "compaction"}, "answers": list(answers)},
        {"match": {"role": "main", "anywhere": AFTER}, "answer": {"text": "Done.", "usage": {"input_tokens": 3000}}},
        {"match": {"role": "main"}, "answer": {"blocks": [call], "usage": full}},
    ]
    command = ["claude", "-p", "please do it", "--allowedTools", "Bash", "--output-format", "stream-json", "--verbose"]
    agent = island.step(*command, env={"NODE_EXTRA_CA_CERTS": str(island.ca)})
    story = island.run({"rules": rules}, *[agent] * len(answers))
    assert [step.code for step in story.steps] == [0] * len(answers), story
    assert story.roles == ["main", "compaction", "main"] * len(answers), story
    return story


def test_the_log_is_verbatim_in_the_next_request(island, client):
    version = version_of(client)
    messages = [
        {"role": "user", "content": NASTY},
        {"role": "user", "content": "u\n\n\n\n\nv"},
        {"role": "user", "content": "x" * 200_000 + "the far end"},
    ]
    log = render(messages, 200_000, 3.5)
    assert not log.shortened
    text = swap_text(Summary(NASTY, f"It began with this.\n{NASTY}"), log, Client(version, ""))
    usage = believable_usage(990_000, 60_000)
    story = compacted(island, {"text": text, "usage": usage})
    message = first_message(story.messages[-1])
    assert seen(text, version) in message
    assert first_words(text, version) in message
    assert message.count(NASTY) == 1
    assert "Summary:\nIt began with this.\na $' b $& c $$ d $` e $1 f ${x} g $$$$ ‹/summary> h" in message
    assert "u\n\n \n \n \nv" in message
    assert "x" * 200_000 + "the far end" in message
    # The size after the compaction is the client's own estimate, and the answer's usage only counts as cost.
    told = [json.loads(line) for line in story.steps[0].stdout.splitlines() if line.startswith("{")]
    boundary = next(item for item in told if item.get("subtype") == "compact_boundary")
    assert boundary["compact_metadata"]["post_tokens"] < 500_000
    result = told[-1]
    spent = sum(model["cacheReadInputTokens"] for model in result["modelUsage"].values())
    assert spent == 990_000 + usage["cache_read_input_tokens"]
    assert result["usage"]["cache_read_input_tokens"] == 990_000


def test_odd_answers_are_taken_as_the_model_says(island, client):
    version = version_of(client)
    story = compacted(island, *({"text": text} for text in ODD))
    for text, request in zip(ODD, story.messages[2::3], strict=True):
        message = first_message(request)
        expected = seen(text, version)
        assert expected.startswith("Summary:\nS")
        assert f"{expected}\n\nIf you need" in message, (expected, message)
    tail = first_message(story.messages[2])
    assert "TAIL $' $& $$ </summary> <analysis>T</analysis>" in tail
    assert tail.count("\nS $' $$") == (0 if form(version).expands else 1)


def test_a_compaction_by_hand_is_the_same(island, client):
    version = version_of(client)
    text = swap_text(Summary("A", NASTY), render([{"role": "user", "content": NASTY}], 9000, 3.5), Client(version, ""))
    env = {"NODE_EXTRA_CA_CERTS": str(island.ca)}
    steps = [island.step("claude", "-p", "hi", env=env)]
    steps += [island.step("claude", "-p", "--continue", words, env=env) for words in ("/compact", "go on")]
    rule = {"match": {"role": "compaction"}, "answer": {"text": text}}
    story = island.run({"rules": [rule], "scenario": "plain"}, *steps)
    assert [step.code for step in story.steps] == [0, 0, 0], story
    assert story.roles == ["main", "compaction", "main"], story
    assert seen(text, version) in first_message(story.messages[-1])
