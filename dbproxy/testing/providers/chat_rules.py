"""What OpenAI's Chat Completions refuses, as strictly as it is documented.

One function, `check`; raises Objection at the first fault. Marks of sources as in ``objections``. Must never import a
codec.
"""

from __future__ import annotations

import json
from typing import Any, Final

from dbproxy.testing.providers import openai_models
from dbproxy.testing.providers.objections import (
    Objection,
    known_keys,
    needed,
    not_longer,
    object_schema,
    one_of,
    strict_schema,
    tool_name,
    typed,
    words,
)

# Keys of CompletionCreateParams; `functions` and `function_call` are left out: nobody may still send them.
_TOP: Final = words(
    "audio frequency_penalty logit_bias logprobs max_completion_tokens max_tokens messages metadata modalities model "
    "moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options "
    "prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream "
    "stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options"
)
_MESSAGE: Final = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "refusal", "tool_calls", "audio"},
    "tool": {"role", "content", "tool_call_id"},
}
# Content parts by role.
_PARTS: Final = {
    "system": {"text"},
    "developer": {"text"},
    "user": {"text", "image_url", "input_audio", "file"},
    "assistant": {"text", "refusal"},
    "tool": {"text"},
}
_REFUSED_BY_REASONING: Final = ("max_tokens", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs")


def check(body: dict[str, Any]) -> None:
    """Raises Objection for a request that the API would not take."""
    known_keys(body, _TOP)
    model = needed(body, "model", str, "")
    messages = needed(body, "messages", list, "")
    if not messages:
        raise Objection("Invalid 'messages': empty array.", param="messages", code="empty_array")
    _limits(model, body)
    _tools(body)
    _form(body)
    for number, message in enumerate(messages):
        _message(message, f"messages[{number}]")
    _pairing(messages)


def _limits(model: str, body: dict[str, Any]) -> None:
    openai_models.sampling(model, body, _REFUSED_BY_REASONING)
    for key in ("max_tokens", "max_completion_tokens"):
        if key in body:
            openai_models.longest(model, typed(body[key], int, key), key)
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise Objection("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")  # [iss]
    if "reasoning_effort" in body:
        if not openai_models.reasons(model):  # [iss]
            raise Objection("Unrecognized request argument supplied: reasoning_effort", param="reasoning_effort")
        openai_models.effort(model, body["reasoning_effort"], "reasoning_effort")
    if body.get("tools"):
        openai_models.tools_or_effort(model, body.get("reasoning_effort"))
    openai_models.parallel(model, body)
    for key, least, most in (("temperature", 0, 2), ("top_p", 0, 1)):
        if key in body and not least <= typed(body[key], (int, float), key) <= most:
            raise Objection(f"Invalid '{key}': must be between {least} and {most}.", param=key, code="invalid_value")
    for key in ("user", "safety_identifier", "prompt_cache_key"):  # 64 [iss]; user was longer once [unsure]
        if key in body:
            not_longer(typed(body[key], str, key), 64, key)
    if len(body.get("stop") or ()) > 4 and not isinstance(body["stop"], str):  # [docs]
        raise Objection("Invalid 'stop': array too long. Expected an array with maximum length 4.", param="stop")
    if "stream_options" in body:
        if body.get("stream") is not True:  # [docs]
            raise Objection("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        known_keys(body["stream_options"], {"include_usage", "include_obfuscation"}, "stream_options")


def _tools(body: dict[str, Any]) -> None:
    tools = body.get("tools")
    if tools is None:
        for key in ("tool_choice", "parallel_tool_calls"):  # [iss]; CliRelay PR#739
            if key in body:
                raise Objection(f"'{key}' is only allowed when 'tools' are specified.", param=key)
        return
    if not typed(tools, list, "tools"):
        raise Objection("Invalid 'tools': empty array.", param="tools", code="empty_array")
    not_more = 128  # [docs]
    if len(tools) > not_more:
        raise Objection("Invalid 'tools': array too long.", param="tools", code="array_above_max_length")
    names = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        known_keys(choice, {"type", "function"}, "tool_choice")
        if needed(needed(choice, "function", dict, "tool_choice"), "name", str, "tool_choice.function") not in names:
            raise Objection("Tool choice names a function that is not among 'tools'.", param="tool_choice")
    else:
        one_of(choice, ("auto", "none", "required"), "tool_choice")


def _tool(tool: dict[str, Any], where: str) -> str:
    known_keys(typed(tool, dict, where), {"type", "function"}, where)
    one_of(needed(tool, "type", str, where), ("function",), f"{where}.type")
    function = needed(tool, "function", dict, where)
    known_keys(function, {"name", "description", "parameters", "strict"}, f"{where}.function")
    name: str = needed(function, "name", str, f"{where}.function")
    tool_name(name, f"{where}.function.name")
    if "parameters" in function:
        object_schema(function["parameters"], name, f"{where}.function.parameters")
    if function.get("strict") is True:  # a missing one is tolerated: Chat is not strict by itself [docs]
        strict_schema(function.get("parameters"), name, f"{where}.function.parameters")
    return name


def _form(body: dict[str, Any]) -> None:
    form = body.get("response_format")
    if form is None:
        return
    if one_of(form.get("type"), ("text", "json_object", "json_schema"), "response_format.type") == "json_schema":
        schema = needed(form, "json_schema", dict, "response_format")
        known_keys(schema, {"name", "description", "schema", "strict"}, "response_format.json_schema")
        name = needed(schema, "name", str, "response_format.json_schema")
        tool_name(name, "response_format.json_schema.name")
        if schema.get("strict") is True:
            strict_schema(schema.get("schema"), name, "response_format")


# ---- messages


def _message(message: Any, where: str) -> None:
    role = one_of(needed(typed(message, dict, where), "role", str, where), _MESSAGE, f"{where}.role")
    known_keys(message, _MESSAGE[role], where)
    calls = message.get("tool_calls")
    if "tool_calls" in message and not typed(calls, list, f"{where}.tool_calls"):
        raise Objection(f"Invalid '{where}.tool_calls': empty array.", param=f"{where}.tool_calls", code="empty_array")
    for number, call in enumerate(calls or []):
        _call(call, f"{where}.tool_calls[{number}]")
    content = message.get("content")
    if content is None:
        if not (role == "assistant" and (calls or message.get("refusal"))):  # [docs]
            raise Objection(
                f"Invalid value for 'content': expected a string, got null ({where}).", param=f"{where}.content"
            )
        return
    if role == "tool":
        not_longer(needed(message, "tool_call_id", str, where), 40, f"{where}.tool_call_id")
        if not content:  # some servers refuse an empty one (seed-001 3.3); OpenAI itself may take it [unsure]
            raise Objection(f"Invalid '{where}.content': a tool message has no content.", param=f"{where}.content")
    for number, part in enumerate(content if isinstance(content, list) else []):
        _part(part, role, f"{where}.content[{number}]")
    if content == []:
        raise Objection(f"Invalid '{where}.content': empty array.", param=f"{where}.content", code="empty_array")
    typed(content, (str, list), f"{where}.content")


def _call(call: Any, where: str) -> None:
    known_keys(typed(call, dict, where), {"id", "type", "function"}, where)
    # 40 characters (dify#28987, autogen#6377, langmanus#119) [iss]; one report of 2026-07 could not reproduce it.
    not_longer(needed(call, "id", str, where), 40, f"{where}.id")
    one_of(needed(call, "type", str, where), ("function",), f"{where}.type")
    function = needed(call, "function", dict, where)
    known_keys(function, {"name", "arguments"}, f"{where}.function")
    tool_name(needed(function, "name", str, f"{where}.function"), f"{where}.function.name")
    arguments = needed(function, "arguments", str, f"{where}.function")
    try:
        value = json.loads(arguments)
    except ValueError:
        value = None
    if not isinstance(value, dict):  # other servers parse it and fail (seed-001 5.1)
        raise Objection(
            f"Invalid '{where}.function.arguments': not a JSON object.", param=f"{where}.function.arguments"
        )


def _part(part: Any, role: str, where: str) -> None:
    kind = one_of(needed(typed(part, dict, where), "type", str, where), _PARTS[role], f"{where}.type")
    if kind == "text":
        known_keys(part, {"type", "text"}, where)
        if not needed(part, "text", str, where):  # claude-code#62396: others refuse an empty text [iss]
            raise Objection(f"Invalid '{where}.text': empty string.", param=f"{where}.text")
    elif kind == "image_url":
        known_keys(part, {"type", "image_url"}, where)
        url = needed(needed(part, "image_url", dict, where), "url", str, f"{where}.image_url")
        if not url.startswith(("https://", "http://", "data:image/")):
            raise Objection(f"Invalid image_url at {where}.", param=f"{where}.image_url", code="invalid_image_url")
    elif kind == "file":
        known_keys(part, {"type", "file"}, where)
        file = needed(part, "file", dict, where)
        known_keys(file, {"file_data", "file_id", "filename"}, f"{where}.file")
        if "file_data" in file:
            needed(file, "filename", str, f"{where}.file")  # [docs]
            if not file["file_data"].startswith("data:application/pdf;base64,"):
                raise Objection(f"Invalid '{where}.file.file_data'.", param=f"{where}.file.file_data")


def _pairing(messages: list[dict[str, Any]]) -> None:
    """Each call is answered at once, each answer belongs to a call [docs, iss]."""
    waiting: list[str] = []
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise Objection(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
                    "'tool_calls'.",
                    param=f"messages[{number}].role",
                )
            waiting.remove(message["tool_call_id"])
            continue
        _all_answered(waiting)
        waiting = [call["id"] for call in message.get("tool_calls") or []]
        if len(set(waiting)) < len(waiting):
            raise Objection("Duplicate ids in 'tool_calls'.", param=f"messages[{number}].tool_calls")
    _all_answered(waiting)


def _all_answered(waiting: list[str]) -> None:
    if waiting:
        raise Objection(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(waiting)}",
            param="messages",
        )
