"""Each rule of the fake servers refuses what it is there for, and nothing that the real client's requests become."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from dbproxy.model.codecs.capabilities import capabilities
from dbproxy.model.codecs.chat import CHAT
from dbproxy.model.codecs.gemini import GEMINI
from dbproxy.model.codecs.request import read_request
from dbproxy.model.codecs.responses import RESPONSES
from dbproxy.model.codecs.translation import Translation
from dbproxy.testing.providers import chat_rules, gemini_rules, responses_rules
from dbproxy.testing.providers.objections import Objection
from dbproxy.testing.providers.signatures import SENTINELS, thought_signature

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
STRICT = {**SCHEMA, "additionalProperties": False}
LONG = "n" * 65


def changed(body, *path_and_value):
    """``body`` with another value at a path; DROP takes the key away."""
    *path, value = path_and_value
    out = copy.deepcopy(body)
    place = out
    for key in path[:-1]:
        place = place[key]
    if value is DROP:
        del place[path[-1]]
    elif isinstance(place, list) and path[-1] == len(place):
        place.append(value)
    else:
        place[path[-1]] = value
    return out


DROP = object()

# ---- Chat Completions

CHAT_TOOL = {"type": "function", "function": {"name": "Read", "description": "d", "parameters": SCHEMA}}
CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "Read", "arguments": '{"path": "x"}'}}
CHAT_BODY = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "go"}]},
        {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "developer", "content": "NOTE"},
        {"role": "user", "content": "on"},
    ],
    "tools": [CHAT_TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 1000,
    "temperature": 0.5,
    "stop": ["a", "b", "c", "d"],
    "user": "u" * 64,
}
REASONING = {
    **{key: value for key, value in CHAT_BODY.items() if key not in ("max_tokens", "temperature", "stop")},
    "model": "gpt-5",
    "max_completion_tokens": 1000,
    "reasoning_effort": "minimal",
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}}


@pytest.mark.parametrize(
    "body",
    [
        CHAT_BODY,
        REASONING,
        changed(CHAT_BODY, "messages", 1, "content", 1, IMAGE),
        changed(CHAT_BODY, "messages", 1, "content", 1, FILE),
        changed(CHAT_BODY, "tool_choice", {"type": "function", "function": {"name": "Read"}}),
        changed(CHAT_BODY, "tools", 0, "function", "strict", False),
        changed(
            changed(CHAT_BODY, "tools", 0, "function", "strict", True), "tools", 0, "function", "parameters", STRICT
        ),
        changed(CHAT_BODY, "messages", 3, "content", [{"type": "text", "text": "done"}]),
        changed(REASONING, "model", "gpt-5.4") | {"reasoning_effort": "none"},
        {"model": "o3", "messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "high"},
    ],
)
def test_good_chat_requests_pass(body):
    chat_rules.check(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (changed(CHAT_BODY, "top_k", 5), "Unknown parameter: 'top_k'"),
        (changed(CHAT_BODY, "metadata_user", {}), "Unknown parameter"),
        (changed(CHAT_BODY, "model", DROP), "Missing required parameter: 'model'"),
        (changed(CHAT_BODY, "messages", []), "empty array"),
        (changed(CHAT_BODY, "messages", "hi"), "Invalid type for 'messages'"),
        (changed(CHAT_BODY, "tools", []), "Invalid 'tools': empty array"),
        (changed(CHAT_BODY, "tools", DROP), "only allowed when 'tools'"),
        (changed(CHAT_BODY, "tool_choice", "any"), "Invalid value: 'any'"),
        (changed(CHAT_BODY, "tool_choice", {"type": "function", "function": {"name": "Other"}}), "not among 'tools'"),
        (changed(CHAT_BODY, "tools", 0, "function", "name", LONG), "maximum length 64"),
        (changed(CHAT_BODY, "tools", 0, "function", "name", "a.b"), "does not match pattern"),
        (changed(CHAT_BODY, "tools", 0, "function", "parameters", {}), "got 'type"),
        (changed(CHAT_BODY, "tools", 0, "function", "parameters", {"type": "object"}), "missing properties"),
        (changed(CHAT_BODY, "tools", 0, "function", "strict", True), "additionalProperties"),
        (changed(CHAT_BODY, "tools", 0, "cache_control", {}), "Unknown parameter: 'tools[0].cache_control'"),
        (changed(CHAT_BODY, "tools", 0, "function", "input_schema", {}), "Unknown parameter"),
        (changed(CHAT_BODY, "tools", [CHAT_TOOL] * 129), "array too long"),
        (changed(CHAT_BODY, "stream", False), "only allowed when 'stream'"),
        (changed(CHAT_BODY, "stop", list("abcde")), "maximum length 4"),
        (changed(CHAT_BODY, "temperature", 2.5), "between 0 and 2"),
        (changed(CHAT_BODY, "top_p", 1.5), "between 0 and 1"),
        (changed(CHAT_BODY, "user", LONG), "maximum length 64"),
        (changed(CHAT_BODY, "max_tokens", 64_000), "at most 16384"),
        (changed(CHAT_BODY, "max_completion_tokens", 5), "at the same time"),
        (changed(CHAT_BODY, "reasoning_effort", "low"), "Unrecognized request argument"),
        (
            changed(CHAT_BODY, "response_format", {"type": "json_schema", "json_schema": {"schema": {}}}),
            "'response_format",
        ),
        (changed(CHAT_BODY, "messages", 0, "role", "root"), "Invalid value: 'root'"),
        (changed(CHAT_BODY, "messages", 1, "content", []), "empty array"),
        (changed(CHAT_BODY, "messages", 1, "content", None), "expected a string, got null"),
        (changed(CHAT_BODY, "messages", 1, "content", 0, "text", ""), "empty string"),
        (changed(CHAT_BODY, "messages", 1, "content", 0, "cache_control", {}), "Unknown parameter"),
        (changed(CHAT_BODY, "messages", 1, "content", 0, {"type": "input_text", "text": "x"}), "Invalid value"),
        (changed(CHAT_BODY, "messages", 2, "content", [IMAGE]), "Invalid value: 'image_url'"),
        (changed(CHAT_BODY, "messages", 3, "content", [IMAGE]), "Invalid value: 'image_url'"),
        (
            changed(CHAT_BODY, "messages", 1, "content", 1, changed(IMAGE, "image_url", "url", "AAAA")),
            "Invalid image_url",
        ),
        (changed(CHAT_BODY, "messages", 1, "content", 1, changed(FILE, "file", "filename", DROP)), "filename"),
        (changed(CHAT_BODY, "messages", 1, "content", 1, changed(FILE, "file", "file_data", "AAAA")), "file_data"),
        (changed(CHAT_BODY, "messages", 2, "reasoning_content", "hm"), "Unknown parameter"),
        (changed(CHAT_BODY, "messages", 2, "tool_calls", []), "empty array"),
        (changed(CHAT_BODY, "messages", 2, "tool_calls", 0, "id", "c" * 41), "maximum length 40"),
        (changed(CHAT_BODY, "messages", 2, "tool_calls", 0, "function", "arguments", {"path": "x"}), "Invalid type"),
        (changed(CHAT_BODY, "messages", 2, "tool_calls", 0, "function", "arguments", "[1]"), "not a JSON object"),
        (changed(CHAT_BODY, "messages", 2, "tool_calls", 0, "function", "arguments", ""), "not a JSON object"),
        (changed(CHAT_BODY, "messages", 2, "tool_calls", 1, CHAT_CALL), "Duplicate ids"),
        (changed(CHAT_BODY, "messages", 3, DROP), "did not have response messages: call_1"),
        (changed(CHAT_BODY, "messages", 3, {"role": "user", "content": "x"}), "did not have response messages: call_1"),
        (changed(CHAT_BODY, "messages", CHAT_BODY["messages"][:3]), "did not have response messages: call_1"),
        (changed(CHAT_BODY, "messages", 2, DROP), "must be a response to a preceding message"),
        (changed(CHAT_BODY, "messages", 6, CHAT_BODY["messages"][3]), "must be a response to a preceding message"),
        (changed(CHAT_BODY, "messages", 3, "content", ""), "a tool message has no content"),
        (changed(CHAT_BODY, "messages", 3, "tool_call_id", DROP), "Missing required parameter"),
        (changed(CHAT_BODY, "messages", 3, "name", "Read"), "Unknown parameter"),
        (changed(REASONING, "temperature", 0.5), "'temperature' does not support 0.5"),
        (changed(REASONING, "top_p", 0.5), "'top_p' does not support 0.5"),
        (changed(REASONING, "max_tokens", 5), "'max_tokens' is not supported"),
        (changed(REASONING, "stop", ["a"]), "'stop' is not supported"),
        (changed(REASONING, "reasoning_effort", "none"), "does not support 'none'"),
        (changed(REASONING, "reasoning_effort", "much"), "Invalid value: 'much'"),
        (changed(REASONING, "max_completion_tokens", 200_000), "at most 128000"),
        (changed(REASONING, "model", "gpt-5.4") | {"reasoning_effort": "low"}, "Please use /v1/responses"),
        (changed(changed(REASONING, "model", "gpt-5.6-sol"), "reasoning_effort", DROP), "Please use /v1/responses"),
        (
            changed(changed(REASONING, "model", "o3"), "reasoning_effort", "low"),
            "'parallel_tool_calls' is not supported",
        ),
    ],
)
def test_bad_chat_requests_are_refused(body, told):
    with pytest.raises(Objection) as caught:
        chat_rules.check(body)
    assert told in caught.value.message


# ---- Responses

SAID = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAx"}
RESPONSES_BODY = {
    "model": "gpt-5.5",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "go"}]},
        THOUGHT,
        SAID,
        {"type": "function_call", "call_id": "call_1", "name": "Read", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        {"role": "developer", "content": "NOTE"},
        {"role": "user", "content": "on"},
    ],
    "tools": [{"type": "function", "name": "Read", "parameters": SCHEMA, "strict": False}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "max_output_tokens": 1000,
    "store": False,
    "stream": True,
}


@pytest.mark.parametrize(
    "body",
    [
        RESPONSES_BODY,
        {"model": "gpt-4o", "input": "hi", "temperature": 0.5},
        changed(RESPONSES_BODY, "tools", 0, "strict", DROP),
        changed(RESPONSES_BODY, "tools", 1, {"type": "web_search"}),
        changed(RESPONSES_BODY, "tool_choice", {"type": "function", "name": "Read"}),
        changed(RESPONSES_BODY, "input", 4, "output", ""),
        changed(RESPONSES_BODY, "input", 4, "output", [{"type": "input_text", "text": "x"}]),
        changed(RESPONSES_BODY, "input", 0, "content", 1, {"type": "input_image", "image_url": "https://x/y.png"}),
    ],
)
def test_good_responses_requests_pass(body):
    responses_rules.check(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (changed(RESPONSES_BODY, "stop", ["a"]), "Unknown parameter: 'stop'"),
        (changed(RESPONSES_BODY, "max_tokens", 5), "Unknown parameter: 'max_tokens'"),
        (changed(RESPONSES_BODY, "messages", []), "Unknown parameter"),
        (changed(RESPONSES_BODY, "input", []), "Invalid 'input'"),
        (changed(RESPONSES_BODY, "input", DROP), "Missing required parameter: 'input'"),
        (changed(RESPONSES_BODY, "max_output_tokens", 15), "Expected a value >= 16"),
        (changed(RESPONSES_BODY, "temperature", 0.5), "does not support 0.5"),
        (changed(RESPONSES_BODY, "include", ["everything"]), "Invalid value: 'everything'"),
        (changed(RESPONSES_BODY, "reasoning", "effort", "minimal"), "does not support 'minimal'"),
        (changed(RESPONSES_BODY, "reasoning", "budget", 5), "Unknown parameter: 'reasoning.budget'"),
        (changed(RESPONSES_BODY, "reasoning", "summary", "long"), "Invalid value: 'long'"),
        (changed(RESPONSES_BODY, "model", "gpt-4o"), "'reasoning' is not supported"),
        (changed(RESPONSES_BODY, "safety_identifier", LONG), "maximum length 64"),
        (changed(RESPONSES_BODY, "tools", []), "Invalid 'tools': empty array"),
        (changed(changed(RESPONSES_BODY, "tools", DROP), "tool_choice", "required"), "must be specified with 'tools'"),
        (changed(RESPONSES_BODY, "tools", 0, CHAT_TOOL), "Unknown parameter: 'tools[0].function'"),
        (changed(RESPONSES_BODY, "tools", 0, "name", LONG), "maximum length 64"),
        (changed(RESPONSES_BODY, "tools", 0, "parameters", {"type": "object"}), "missing properties"),
        (changed(RESPONSES_BODY, "tools", 0, "strict", True), "additionalProperties"),
        (changed(RESPONSES_BODY, "tool_choice", {"type": "function", "name": "Other"}), "not found in 'tools'"),
        (changed(RESPONSES_BODY, "text", {"format": {"type": "json_schema", "schema": {}}}), "text.format.name"),
        (changed(RESPONSES_BODY, "input", 0, "content", 0, "type", "output_text"), "Invalid value: 'output_text'"),
        (changed(RESPONSES_BODY, "input", 2, "content", 0, "type", "input_text"), "Invalid value: 'input_text'"),
        (changed(RESPONSES_BODY, "input", 0, "content", []), "Invalid 'input[0].content'"),
        (changed(RESPONSES_BODY, "input", 0, "content", 0, "text", ""), "empty string"),
        (changed(RESPONSES_BODY, "input", 0, "content", 0, "cache_control", {}), "Unknown parameter"),
        (changed(RESPONSES_BODY, "input", 0, "role", "tool"), "Invalid value: 'tool'"),
        (changed(RESPONSES_BODY, "input", 1, "encrypted_content", DROP), "not persisted when `store`"),
        (changed(RESPONSES_BODY, "input", 1, "encrypted_content", "ErUBclaude"), "could not be verified"),
        (changed(RESPONSES_BODY, "input", 3, DROP), "No tool call found for function call output with call_id call_1"),
        (changed(RESPONSES_BODY, "input", 4, DROP), "No tool output found for function call call_1"),
        (changed(RESPONSES_BODY, "input", 2, {"role": "user", "content": "x"}), "without its required following item"),
        (changed(RESPONSES_BODY, "input", 3, "call_id", "c" * 65), "maximum length 64"),
        (changed(RESPONSES_BODY, "input", 3, "id", "call_1"), "begins with 'fc'"),
        (changed(RESPONSES_BODY, "input", 3, "arguments", "x"), "not a JSON object"),
        (changed(RESPONSES_BODY, "input", 4, "output", []), "empty array"),
        (changed(RESPONSES_BODY, "input", 4, "is_error", True), "Unknown parameter"),
        (changed(RESPONSES_BODY, "input", 4, {"type": "tool_result"}), "Invalid value: 'tool_result'"),
    ],
)
def test_bad_responses_requests_are_refused(body, told):
    with pytest.raises(Objection) as caught:
        responses_rules.check(body)
    assert told in caught.value.message


# ---- Gemini

CALL = {"functionCall": {"name": "Read", "args": {"path": "x"}}, "thoughtSignature": thought_signature("Read")}
SECOND = {"functionCall": {"name": "Bash", "args": {}}}
GEMINI_BODY = {
    "systemInstruction": {"parts": [{"text": "Be brief."}]},
    "contents": [
        {"role": "user", "parts": [{"text": "go"}]},
        {"role": "model", "parts": [{"text": "I look."}, CALL, SECOND]},
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "Read", "response": {"output": "done"}}},
                {"functionResponse": {"name": "Bash", "response": {"error": "boom"}}},
                {"text": "on"},
            ],
        },
    ],
    "tools": [{"functionDeclarations": [{"name": "Read", "description": "d", "parametersJsonSchema": SCHEMA}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["Read"]}},
    "generationConfig": {"maxOutputTokens": 100, "thinkingConfig": {"thinkingLevel": "low", "includeThoughts": True}},
}


def at(*path_and_value):
    return changed(GEMINI_BODY, *path_and_value)


DECLARED = ("tools", 0, "functionDeclarations", 0)


@pytest.mark.parametrize(
    "body",
    [
        GEMINI_BODY,
        at("contents", 1, "parts", 1, "thoughtSignature", SENTINELS[0]),
        at("contents", 0, "parts", 1, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}),
        at(*DECLARED, "parametersJsonSchema", DROP),
        at("generationConfig", "thinkingConfig", {"thinkingBudget": 0}),
    ],
)
def test_good_gemini_requests_pass(body):
    gemini_rules.check("gemini-3.8-flash", body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (at("model", "gemini"), 'Unknown name "model"'),
        (at("contents", []), "contents is not specified"),
        (at("contents", 0, "role", "assistant"), "valid role: user, model"),
        (at("contents", 0, "cache_control", {}), "Cannot find field"),
        (at("contents", 0, "parts", []), "must not be empty"),
        (at("contents", 0, "parts", 0, {"text": ""}), "must have a text parameter"),
        (at("contents", 0, "parts", 0, {"text": "x", "inlineData": {}}), "required oneof field"),
        (at("contents", 0, "parts", 0, {"thought": True}), "required oneof field"),
        (at("contents", 0, "parts", 0, {"input_text": "x"}), "Cannot find field"),
        (at("contents", 1, "parts", 1, "thoughtSignature", DROP), "missing a thought_signature"),
        (at("contents", 1, "parts", 1, "thoughtSignature", "RXJVQmNsYXVkZQ=="), "Corrupted thought signature"),
        (at("contents", 1, "parts", 1, "functionCall", "name", "1x"), "Invalid function name"),
        (at("contents", 1, "parts", 1, "functionCall", "args", "{}"), "protobuf.Struct"),
        (at("contents", 1, "parts", 1, "functionCall", "arguments", {}), "Cannot find field"),
        (at("contents", 2, "parts", 0, DROP), "number of function response parts"),
        (at("contents", 2, "parts", 0, "functionResponse", "response", "done"), "protobuf.Struct"),
        (at("contents", 2, DROP), "followed by a function response turn"),
        (at("contents", 1, DROP), "number of function response parts"),
        (at("contents", 1, "role", "user"), "come from the model"),
        (at("contents", 3, {"role": "model", "parts": [{"text": "so"}]}), "end with a user turn"),
        (at("systemInstruction", "parts", 0, {"inlineData": {"mimeType": "a", "data": "b"}}), "not allowed here"),
        (at(*DECLARED, "name", "a b"), "Invalid function name"),
        (at(*DECLARED, "name", "Read" + "d" * 61), "Invalid function name"),
        (at(*DECLARED, "input_schema", {}), "Cannot find field"),
        (at(*DECLARED, "parameters", SCHEMA), "exclusive"),
        (at(*DECLARED, "parametersJsonSchema", {**SCHEMA, "$schema": "x"}), 'Unknown name "$schema"'),
        (at(*DECLARED, "parametersJsonSchema", "properties", "path", "uniqueItems", True), "uniqueItems"),
        (at(*DECLARED, "parametersJsonSchema", "properties", "path", "exclusiveMinimum", 0), "exclusiveMinimum"),
        (at(*DECLARED, "parametersJsonSchema", "properties", "path", "enum", [1]), "TYPE_STRING"),
        (at(*DECLARED, "parametersJsonSchema", "required", ["other"]), "property is not defined: other"),
        (at("tools", 0, "functionDeclarations", []), "tool_type"),
        (at("tools", 0, "functionDeclarations", 1, {"name": "Read"}), "Duplicate function declaration"),
        (at("tools", DROP), "without function_declarations"),
        (at("toolConfig", "functionCallingConfig", "mode", "any"), "function_calling_config.mode"),
        (at("toolConfig", "functionCallingConfig", "mode", "AUTO"), "only if the mode is ANY"),
        (at("toolConfig", "functionCallingConfig", "allowedFunctionNames", ["Other"]), "in the function declarations"),
        (at("generationConfig", "stopSequences", list("abcdef")), "at most 5"),
        (at("generationConfig", "max_tokens", 5), "Cannot find field"),
        (at("generationConfig", "maxOutputTokens", 0), "must be positive"),
        (at("generationConfig", "temperature", 3), "range"),
        (at("generationConfig", "responseJsonSchema", SCHEMA), "response_mime_type"),
        (at("generationConfig", "thinkingConfig", "thinkingBudget", 5), "only one of thinking budget"),
        (at("generationConfig", "thinkingConfig", "thinkingLevel", "much"), "thinking_level"),
        (at("generationConfig", "thinkingConfig", "effort", "low"), "Cannot find field"),
    ],
)
def test_bad_gemini_requests_are_refused(body, told):
    with pytest.raises(Objection) as caught:
        gemini_rules.check("gemini-3.8-flash", body)
    assert told in caught.value.message


def test_older_gemini_models_want_no_signature_and_no_level():
    body = at("contents", 1, "parts", 1, "thoughtSignature", DROP)
    with pytest.raises(Objection, match="Thinking level is not supported"):
        gemini_rules.check("gemini-2.5-pro", body)
    gemini_rules.check("gemini-2.5-pro", changed(body, "generationConfig", DROP))
    with pytest.raises(Objection, match="only works in thinking mode"):
        gemini_rules.check(
            "gemini-2.5-pro", changed(body, "generationConfig", {"thinkingConfig": {"thinkingBudget": 0}})
        )


# ---- the real client's requests, as our codecs put them

CAPTURES = sorted((Path(__file__).resolve().parents[1] / "data" / "captures").glob("*.json"))
CHECKS = {
    "chat": (CHAT, lambda model, body: chat_rules.check(body)),
    "responses": (RESPONSES, lambda model, body: responses_rules.check(body)),
    "gemini": (GEMINI, gemini_rules.check),
}
MODELS = [
    *(
        ("openai", "chat", model)
        for model in ("gpt-4o", "gpt-4.1-mini", "gpt-5", "gpt-5.1", "gpt-5.5", "gpt-5.6-sol", "o3", "o4-mini")
    ),
    *(
        ("openai", "responses", model)
        for model in ("gpt-4o", "gpt-5", "gpt-5.3-codex", "gpt-5.6-sol", "gpt-6-luna", "o3")
    ),
    *(("gemini", "gemini", model) for model in ("gemini-2.5-pro", "gemini-3.8-flash", "gemini-4-argon")),
]


def captured():
    """The bodies of the captured requests. The captures name tools without their schemas."""
    for path in CAPTURES:
        exchanges = json.loads(path.read_text())
        for exchange in exchanges if isinstance(exchanges, list) else []:
            body = exchange.get("body")
            if isinstance(body, dict) and "messages" in body:
                tools = [tool if "type" in tool else {"input_schema": SCHEMA, **tool} for tool in body.get("tools", [])]
                yield {"max_tokens": 32_000, **body, "tools": tools}


@pytest.mark.parametrize(("family", "api", "model"), MODELS, ids=[f"{api} {model}" for _, api, model in MODELS])
def test_no_captured_request_becomes_one_that_is_refused(family, api, model):
    codec, check = CHECKS[api]
    bodies = list(captured())
    assert len(bodies) > 100
    for body in bodies:
        can = capabilities(family, model)
        translation = Translation("claude-opus-5-5", model, "m1", capabilities=can, family=family)
        check(model, json.loads(codec.write(read_request(json.dumps(body).encode()), translation)))
