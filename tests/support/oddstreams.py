"""Streams that real servers were seen to send, beyond the regular ones that the conformance kit spells (seed-001 4.2).

One table: for each dialect the events, and what the client must read out of them (None: an error). Used to hold our
answers against the official SDKs, and as seeds of the fuzz.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

TEXT, THOUGHT, CALL = "text", "thinking", "call"


@dataclass(frozen=True)
class Odd:
    """One stream. ``content`` are blocks as (kind, ...); ``can`` are changed capabilities."""

    dialect: str
    name: str
    data: bytes
    content: list[tuple[Any, ...]] | None
    stop: str = "end_turn"
    can: dict[str, Any] = field(default_factory=dict)


def lines(*events: Any, end: str = "\n\n") -> bytes:
    """Events without names; strings stand as they are."""
    return b"".join(f"data: {e if isinstance(e, str) else json.dumps(e)}{end}".encode() for e in events)


def named(*events: dict[str, Any]) -> bytes:
    """Events that are named by their type."""
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


# ---- Chat Completions


def chunk(delta: Any = None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta if delta is not None else {}, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
        **more,
    }


def tool(index: int | None = 0, id: str | None = None, name: str | None = None, arguments: str | None = None) -> Any:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    call = {key: value for key, value in (("index", index), ("id", id)) if value is not None}
    return {"tool_calls": [{**call, "function": function}]}


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk(finish="stop")
CALLS = chunk(finish="tool_calls")
USED = {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57, "prompt_tokens_details": {"cached_tokens": 40}}
USAGE = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": USED}
DONE = "[DONE]"
READ = (CALL, "Read", {"path": "x"})
ARGS = '{"path": "x"}'


def chat(name: str, *events: Any, content: Any, stop: str = "end_turn", raw: bytes = b"", **can: Any) -> Odd:
    return Odd("chat", name, raw or lines(*events), content, stop, can)


CHAT = [
    chat("usage behind the finish", ROLE, chunk({"content": "Hi"}), STOP, USAGE, DONE, content=[(TEXT, "Hi")]),
    chat(
        "usage beside the finish",
        ROLE,
        chunk({"content": "Hi"}),
        chunk(finish="stop", usage=USED),
        DONE,
        content=[(TEXT, "Hi")],
    ),
    chat(
        "usage on every chunk, growing",
        chunk({"content": "H"}, usage={**USED, "completion_tokens": 1}),
        chunk({"content": "i"}, usage={**USED, "completion_tokens": 2}),
        chunk(finish="stop", usage=USED),
        DONE,
        content=[(TEXT, "Hi")],
    ),
    chat("no usage at all", ROLE, chunk({"content": "Hi"}), STOP, DONE, content=[(TEXT, "Hi")]),
    chat("text beside the role", chunk({"role": "assistant", "content": "Hi"}), STOP, DONE, content=[(TEXT, "Hi")]),
    chat("text beside the finish", ROLE, chunk({"content": "Hi"}, finish="stop"), DONE, content=[(TEXT, "Hi")]),
    chat(
        "empty and null pieces",
        ROLE,
        ROLE,
        chunk({"content": None}),
        chunk({"content": ""}),
        chunk({"content": "Hi", "tool_calls": None, "refusal": None}),
        chunk({"content": "", "tool_calls": []}),
        STOP,
        DONE,
        content=[(TEXT, "Hi")],
    ),
    chat("no last line", ROLE, chunk({"content": "Hi"}), STOP, USAGE, content=[(TEXT, "Hi")]),
    chat("content in parts", chunk({"content": [{"type": "text", "text": "Hi"}]}), STOP, DONE, content=[(TEXT, "Hi")]),
    chat(
        "comments between",
        raw=b": OPENROUTER PROCESSING\n\n" + lines(ROLE) + b": wait\n\n" + lines(chunk({"content": "Hi"}), STOP, DONE),
        content=[(TEXT, "Hi")],
    ),
    chat("a reason of its own", chunk({"content": "Hi"}), chunk(finish="eos"), DONE, content=[(TEXT, "Hi")]),
    chat(
        "reasoning_content",
        chunk({"reasoning_content": "Hm"}),
        chunk({"content": "Hi"}),
        STOP,
        DONE,
        content=[(THOUGHT, "Hm"), (TEXT, "Hi")],
        reasoning="reasoning_content",
    ),
    chat(
        "reasoning",
        chunk({"reasoning": "Hm", "content": ""}),
        chunk({"content": "Hi"}),
        STOP,
        DONE,
        content=[(THOUGHT, "Hm"), (TEXT, "Hi")],
        reasoning="reasoning",
    ),
    chat(
        "think tags over chunks",
        *(chunk({"content": piece}) for piece in ("<think", ">H", "m</think", ">\n\nH", "i")),
        STOP,
        DONE,
        content=[(THOUGHT, "Hm"), (TEXT, "Hi")],
        reasoning="think",
    ),
    chat(
        "a whole call at once",
        chunk(tool(0, "c1", "Read", ARGS), finish="tool_calls"),
        DONE,
        content=[READ],
        stop="tool_use",
    ),
    chat(
        "a call in pieces, its id on each",
        chunk(tool(0, "c1", "Read", "")),
        *(chunk(tool(0, "c1", None, piece)) for piece in ('{"pa', 'th": ', '"x"}')),
        CALLS,
        DONE,
        content=[READ],
        stop="tool_use",
    ),
    chat(
        "an empty id behind the first",
        chunk(tool(0, "c1", "Read", "")),
        chunk(tool(0, "", None, ARGS)),
        CALLS,
        DONE,
        content=[READ],
        stop="tool_use",
    ),
    chat("no index", chunk(tool(None, "c1", "Read", ARGS)), CALLS, DONE, content=[READ], stop="tool_use"),
    chat(
        "no index, two calls",
        chunk(tool(None, "c1", "Read", ARGS)),
        chunk(tool(None, "c2", "Read", ARGS)),
        CALLS,
        DONE,
        content=[READ, READ],
        stop="tool_use",
    ),
    chat("no id", chunk(tool(0, None, "Read", ARGS)), CALLS, DONE, content=[READ], stop="tool_use"),
    chat("no arguments", chunk(tool(0, "c1", "Now", "")), CALLS, DONE, content=[(CALL, "Now", {})], stop="tool_use"),
    chat(
        "a name in two",
        chunk(tool(0, "c1", "Re")),
        chunk(tool(0, None, "ad", ARGS)),
        CALLS,
        DONE,
        content=[READ],
        stop="tool_use",
    ),
    chat(
        "interleaved",
        chunk(tool(0, "c1", "Read", "")),
        chunk(tool(1, "c2", "Read", "")),
        chunk(tool(0, None, None, '{"path": ')),
        chunk(tool(1, None, None, '{"path": ')),
        chunk(tool(0, None, None, '"x"}')),
        chunk(tool(1, None, None, '"y"}')),
        CALLS,
        DONE,
        content=[READ, (CALL, "Read", {"path": "y"})],
        stop="tool_use",
    ),
    chat(
        "text, call, text",
        chunk({"content": "a"}),
        chunk(tool(0, "c1", "Read", ARGS)),
        chunk({"content": "b"}),
        CALLS,
        DONE,
        content=[(TEXT, "a"), READ, (TEXT, "b")],
        stop="tool_use",
    ),
    chat("stop behind a call", chunk(tool(0, "c1", "Read", ARGS)), STOP, DONE, content=[READ], stop="tool_use"),
    chat("calls that never came", chunk({"content": "Hi"}), CALLS, DONE, content=[(TEXT, "Hi")]),
    chat(
        "an id that needs folding",
        chunk(tool(0, "call_ab:c/1", "Read", ARGS)),
        CALLS,
        DONE,
        content=[READ],
        stop="tool_use",
    ),
    chat(
        "blanks before the arguments",
        chunk(tool(0, "c1", "Read", " ")),
        chunk(tool(0, None, None, "\n" + ARGS)),
        CALLS,
        DONE,
        content=[READ],
        stop="tool_use",
    ),
    chat(
        "half a character, escaped",
        chunk(tool(0, "c1", "Read", '{"path": "x\\ud8')),
        chunk(tool(0, None, None, '3d"}')),
        CALLS,
        DONE,
        content=[(CALL, "Read", {"path": "x\ufffd"})],
        stop="tool_use",
    ),
    chat(
        "characters cut in two",
        chunk({"content": "a\ud83d"}),
        chunk({"content": "\ude00b"}),
        STOP,
        DONE,
        content=[(TEXT, "a\U0001f600b")],
    ),
    chat(
        "loose JSON",
        chunk(tool(0, "c1", "Read", "{'path': 'x',}")),
        CALLS,
        DONE,
        content=[READ],
        stop="tool_use",
        reliable_json=False,
    ),
    chat("length", chunk({"content": "Hi"}), chunk(finish="length"), DONE, content=[(TEXT, "Hi")], stop="max_tokens"),
    chat(
        "a refusal",
        chunk({"refusal": "I "}),
        chunk({"refusal": "won't."}),
        STOP,
        DONE,
        content=[(TEXT, "I won't.")],
        stop="refusal",
    ),
    chat(
        "filtered",
        chunk({"content": "Hi"}),
        chunk(finish="content_filter"),
        DONE,
        content=[(TEXT, "Hi")],
        stop="refusal",
    ),
    chat("nothing", ROLE, STOP, USAGE, DONE, content=[]),
    chat("an error behind text", chunk({"content": "Hi"}), {"error": {"message": "busy", "code": 503}}, content=None),
    chat(
        "an error beside a chunk",
        chunk({"content": "Hi"}),
        {**chunk(finish="error"), "error": {"message": "busy", "code": 502}},
        content=None,
    ),
    chat("cut off", ROLE, chunk({"content": "Hi"}), content=None),
    chat("loose JSON of a server that is trusted", chunk(tool(0, "c1", "Read", "{'path'")), CALLS, DONE, content=None),
]

# ---- Responses


def item(kind: str, index: int, **keys: Any) -> dict[str, Any]:
    return {"type": f"response.output_item.{kind}", "output_index": index, "item": keys}


def final(status: str = "completed", **keys: Any) -> dict[str, Any]:
    used = {"input_tokens": 50, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 7, "total_tokens": 57}
    return {
        "type": f"response.{status}",
        "response": {"id": "resp_1", "status": status, "usage": used, "output": [], **keys},
    }


CREATED = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": []}}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "content": []}
FUNCTION = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "Read"}
ARGUMENTS = {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 0}


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def delta(text: str, index: int = 0) -> dict[str, Any]:
    return {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": index,
        "content_index": 0,
        "delta": text,
    }


def responses(name: str, *events: Any, content: Any, stop: str = "end_turn", **can: Any) -> Odd:
    return Odd("responses", name, named(*events), content, stop, can)


RESPONSES = [
    responses("text", CREATED, item("added", 0, **MESSAGE), delta("H"), delta("i"), final(), content=[(TEXT, "Hi")]),
    responses(
        "text only in its done",
        CREATED,
        item("added", 0, **MESSAGE),
        {"type": "response.output_text.done", "item_id": "msg_1", "output_index": 0, "content_index": 0, "text": "Hi"},
        item("done", 0, **{**MESSAGE, "content": [part("Hi")]}),
        final(),
        content=[(TEXT, "Hi")],
    ),
    responses(
        "text only in the item",
        CREATED,
        item("done", 0, **{**MESSAGE, "content": [part("Hi")]}),
        final(),
        content=[(TEXT, "Hi")],
    ),
    responses(
        "text only in the end", CREATED, final(output=[{**MESSAGE, "content": [part("Hi")]}]), content=[(TEXT, "Hi")]
    ),
    responses(
        "text in pieces and in its done",
        CREATED,
        item("added", 0, **MESSAGE),
        delta("Hi"),
        item("done", 0, **{**MESSAGE, "content": [part("Hi")]}),
        final(output=[{**MESSAGE, "content": [part("Hi")]}]),
        content=[(TEXT, "Hi")],
    ),
    responses(
        "arguments only in the done",
        CREATED,
        item("added", 0, **FUNCTION, arguments=""),
        {**ARGUMENTS, "type": "response.function_call_arguments.done", "arguments": ARGS},
        final(),
        content=[READ],
        stop="tool_use",
    ),
    responses(
        "arguments only in the item",
        CREATED,
        item("done", 0, **FUNCTION, arguments=ARGS),
        final(),
        content=[READ],
        stop="tool_use",
    ),
    responses(
        "arguments in pieces and in the done",
        CREATED,
        item("added", 0, **FUNCTION, arguments=""),
        {**ARGUMENTS, "delta": '{"path": '},
        {**ARGUMENTS, "delta": '"x"}'},
        {**ARGUMENTS, "type": "response.function_call_arguments.done", "arguments": ARGS},
        item("done", 0, **FUNCTION, arguments=ARGS),
        final(output=[{**FUNCTION, "arguments": ARGS}]),
        content=[READ],
        stop="tool_use",
    ),
    responses(
        "reasoning with ciphertext",
        CREATED,
        item("added", 0, type="reasoning", id="rs_1", summary=[]),
        {
            "type": "response.reasoning_summary_text.delta",
            "item_id": "rs_1",
            "output_index": 0,
            "summary_index": 0,
            "delta": "Hm",
        },
        item(
            "done",
            0,
            type="reasoning",
            id="rs_1",
            summary=[{"type": "summary_text", "text": "Hm"}],
            encrypted_content="gAAAAx",
        ),
        item("added", 1, **MESSAGE),
        delta("Hi", 1),
        final(),
        content=[(THOUGHT, "Hm"), (TEXT, "Hi")],
    ),
    responses(
        "reasoning without a word",
        CREATED,
        item("done", 0, type="reasoning", id="rs_1", summary=[], encrypted_content="gAAAAx"),
        item("done", 1, **FUNCTION, arguments=ARGS),
        final(),
        content=[(THOUGHT, ""), READ],
        stop="tool_use",
    ),
    responses(
        "a refusal",
        CREATED,
        item("added", 0, **MESSAGE),
        {
            "type": "response.refusal.delta",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": "I won't.",
        },
        final(),
        content=[(TEXT, "I won't.")],
        stop="refusal",
    ),
    responses(
        "cut by the limit",
        CREATED,
        item("added", 0, **MESSAGE),
        delta("Hi"),
        final("incomplete", incomplete_details={"reason": "max_output_tokens"}),
        content=[(TEXT, "Hi")],
        stop="max_tokens",
    ),
    responses(
        "filtered",
        CREATED,
        item("added", 0, **MESSAGE),
        delta("Hi"),
        final("incomplete", incomplete_details={"reason": "content_filter"}),
        content=[(TEXT, "Hi")],
        stop="refusal",
    ),
    responses(
        "unknown events between",
        CREATED,
        {"type": "response.novelty", "sequence_number": 9},
        item("added", 0, **MESSAGE),
        delta("Hi"),
        {"type": "response.queued"},
        final(),
        content=[(TEXT, "Hi")],
    ),
    responses("no usage", CREATED, item("added", 0, **MESSAGE), delta("Hi"), final(usage=None), content=[(TEXT, "Hi")]),
    responses(
        "failed",
        CREATED,
        item("added", 0, **MESSAGE),
        delta("Hi"),
        final("failed", error={"code": "server_error", "message": "busy"}),
        content=None,
    ),
    responses(
        "an error event",
        CREATED,
        item("added", 0, **MESSAGE),
        delta("Hi"),
        {"type": "error", "code": "server_error", "message": "busy"},
        content=None,
    ),
    responses("cut off", CREATED, item("added", 0, **MESSAGE), delta("Hi"), content=None),
]

# ---- Gemini


def parts(*given: dict[str, Any], finish: str = "", **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(given), "role": "model"}, "index": 0}
    return {"candidates": [{**candidate, "finishReason": finish} if finish else candidate], "responseId": "g1", **more}


COUNTED = {
    "usageMetadata": {
        "promptTokenCount": 50,
        "cachedContentTokenCount": 40,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 2,
    }
}
LOOK = {"functionCall": {"name": "Read", "args": {"path": "x"}}}


def gemini(name: str, *events: Any, content: Any, stop: str = "end_turn", **can: Any) -> Odd:
    return Odd("gemini", name, lines(*events, end="\r\n\r\n"), content, stop, can)


GEMINI = [
    gemini("text", parts({"text": "H"}), parts({"text": "i"}, finish="STOP", **COUNTED), content=[(TEXT, "Hi")]),
    gemini(
        "usage on every chunk",
        parts({"text": "H"}, **COUNTED),
        parts({"text": "i"}, **COUNTED),
        parts(finish="STOP", **COUNTED),
        content=[(TEXT, "Hi")],
    ),
    gemini(
        "an end without content",
        parts({"text": "Hi"}),
        {"candidates": [{"finishReason": "STOP", "index": 0}], **COUNTED},
        content=[(TEXT, "Hi")],
    ),
    gemini(
        "a thought",
        parts({"text": "Hm", "thought": True}),
        parts({"text": "Hi"}, finish="STOP"),
        content=[(THOUGHT, "Hm"), (TEXT, "Hi")],
    ),
    gemini(
        "a signed call", parts({**LOOK, "thoughtSignature": "c2ln"}, finish="STOP"), content=[READ], stop="tool_use"
    ),
    gemini(
        "two calls in a chunk",
        parts({**LOOK, "thoughtSignature": "c2ln"}, LOOK, finish="STOP"),
        content=[READ, READ],
        stop="tool_use",
    ),
    gemini(
        "a call with an id",
        parts({"functionCall": {**LOOK["functionCall"], "id": "f-1"}}, finish="STOP"),
        content=[READ],
        stop="tool_use",
    ),
    gemini(
        "a call without arguments",
        parts({"functionCall": {"name": "Now"}}, finish="STOP"),
        content=[(CALL, "Now", {})],
        stop="tool_use",
    ),
    gemini(
        "a signature in an empty text",
        parts({"text": "Hi"}),
        parts({"text": "", "thoughtSignature": "c2ln"}, finish="STOP"),
        content=[(TEXT, "Hi")],
    ),
    gemini("cut by the limit", parts({"text": "Hi"}, finish="MAX_TOKENS"), content=[(TEXT, "Hi")], stop="max_tokens"),
    gemini(
        "safety without a word", {"candidates": [{"finishReason": "SAFETY", "index": 0}]}, content=[], stop="refusal"
    ),
    gemini(
        "safety behind text",
        parts({"text": "Hi"}),
        parts(finish="PROHIBITED_CONTENT"),
        content=[(TEXT, "Hi")],
        stop="refusal",
    ),
    gemini("a blocked prompt", {"promptFeedback": {"blockReason": "SAFETY"}, **COUNTED}, content=[], stop="refusal"),
    gemini(
        "an error",
        parts({"text": "Hi"}),
        {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}},
        content=None,
    ),
    gemini("a malformed call", parts({"text": "Hi"}), parts(finish="MALFORMED_FUNCTION_CALL"), content=None),
    gemini("cut off", parts({"text": "Hi"}), content=None),
]

# ---- Messages, as other servers speak it

START = {
    "type": "message_start",
    "message": {"id": "m1", "type": "message", "role": "assistant", "content": [], "model": "q"},
}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
SAID = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
BLOCK_STOP = {"type": "content_block_stop", "index": 0}
ENDED = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
LAST = {"type": "message_stop"}
USE = {
    "type": "content_block_start",
    "index": 0,
    "content_block": {"type": "tool_use", "id": "c1", "name": "Read", "input": {}},
}


def native(name: str, *events: Any, content: Any, stop: str = "end_turn", raw: bytes = b"") -> Odd:
    return Odd("messages", name, raw or named(*events), content, stop)


NATIVE = [
    native("no usage anywhere", START, BLOCK, SAID, BLOCK_STOP, {**ENDED, "usage": None}, LAST, content=[(TEXT, "Hi")]),
    native("no names", raw=lines(START, BLOCK, SAID, BLOCK_STOP, ENDED, LAST), content=[(TEXT, "Hi")]),
    native("no message_stop", START, BLOCK, SAID, BLOCK_STOP, ENDED, content=[(TEXT, "Hi")]),
    native("no block stop", START, BLOCK, SAID, ENDED, LAST, content=[(TEXT, "Hi")]),
    native("the start twice", START, START, BLOCK, SAID, BLOCK_STOP, ENDED, LAST, content=[(TEXT, "Hi")]),
    native(
        "a text that begins full",
        START,
        {**BLOCK, "content_block": {"type": "text", "text": "Hi"}},
        BLOCK_STOP,
        ENDED,
        LAST,
        content=[(TEXT, "Hi")],
    ),
    native(
        "an input that begins full",
        START,
        {**USE, "content_block": {**USE["content_block"], "input": {"path": "x"}}},
        BLOCK_STOP,
        {**ENDED, "delta": {"stop_reason": "tool_use"}},
        LAST,
        content=[READ],
        stop="tool_use",
    ),
    native(
        "unknown events and pings",
        START,
        {"type": "ping"},
        BLOCK,
        {"type": "novelty"},
        SAID,
        BLOCK_STOP,
        ENDED,
        LAST,
        content=[(TEXT, "Hi")],
    ),
    native(
        "an error",
        START,
        BLOCK,
        SAID,
        {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
        content=None,
    ),
    native("cut off", START, BLOCK, SAID, content=None),
]

ALL = [*CHAT, *RESPONSES, *GEMINI, *NATIVE]
