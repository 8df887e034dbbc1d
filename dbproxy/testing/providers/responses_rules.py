"""What OpenAI's Responses refuses, as strictly as it is documented.

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
from dbproxy.testing.providers.signatures import SEALED

# Keys of ResponseCreateParams: `stop`, `max_tokens`, `messages` and `top_k` are none of them.
_TOP: Final = words(
    "access_programs background context_management conversation image include input instructions max_output_tokens "
    "max_tool_calls metadata model moderation parallel_tool_calls previous_response_id prompt prompt_cache_key "
    "prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream stream_options "
    "temperature text tool_choice tools top_logprobs top_p truncation user"
)
_ITEMS: Final = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "function_call": {"type", "call_id", "name", "arguments", "id", "status", "namespace", "caller"},
    "function_call_output": {"type", "call_id", "output", "id", "status", "name", "namespace", "caller"},
    "reasoning": {"type", "id", "summary", "content", "encrypted_content", "status"},
    "web_search_call": {"type", "id", "status", "action"},
}
_PARTS: Final = {
    "input_text": {"type", "text"},
    "input_image": {"type", "image_url", "file_id", "detail"},
    "input_file": {"type", "file_data", "file_id", "file_url", "filename", "detail"},
    "output_text": {"type", "text", "annotations", "logprobs"},
    "refusal": {"type", "refusal"},
}
_GIVEN: Final = ("input_text", "input_image", "input_file")
_SAID: Final = ("output_text", "refusal")


def check(body: dict[str, Any]) -> None:
    """Raises Objection for a request that the API would not take."""
    known_keys(body, _TOP)
    model = needed(body, "model", str, "")
    given = needed(body, "input", (str, list), "")
    if not given:
        raise Objection("Invalid 'input': empty.", param="input")
    _limits(model, body)
    _tools(body)
    _form(body)
    if isinstance(given, list):
        for number, item in enumerate(given):
            _item(item, f"input[{number}]", stored=body.get("store") is not False)
        _pairing(given)


def _limits(model: str, body: dict[str, Any]) -> None:
    openai_models.sampling(model, body, ("top_logprobs",))
    openai_models.parallel(model, body)
    if "max_output_tokens" in body:
        limit = typed(body["max_output_tokens"], int, "max_output_tokens")
        if limit < 16:  # [iss]
            raise Objection(
                f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got {limit} "
                "instead.",
                param="max_output_tokens",
                code="integer_below_min_value",
            )
        openai_models.longest(model, limit, "max_output_tokens")
    reasoning = body.get("reasoning")
    if reasoning is not None:
        known_keys(reasoning, {"effort", "summary", "context", "mode"}, "reasoning")
        if not openai_models.reasons(model):  # [iss]
            raise Objection("Unsupported parameter: 'reasoning' is not supported with this model.", param="reasoning")
        if reasoning.get("effort") is not None:
            openai_models.effort(model, reasoning["effort"], "reasoning.effort")
        if reasoning.get("summary") is not None:
            one_of(reasoning["summary"], ("auto", "concise", "detailed"), "reasoning.summary")
    for key, least, most in (("temperature", 0, 2), ("top_p", 0, 1)):
        if key in body and not least <= typed(body[key], (int, float), key) <= most:
            raise Objection(f"Invalid '{key}': must be between {least} and {most}.", param=key, code="invalid_value")
    for key in ("user", "safety_identifier", "prompt_cache_key"):  # 64 [iss]
        if key in body:
            not_longer(typed(body[key], str, key), 64, key)
    for number, word in enumerate(body.get("include") or []):
        known = ("reasoning.encrypted_content", "web_search_call.action.sources", "web_search_call.results")
        one_of(word, known, f"include[{number}]")


def _tools(body: dict[str, Any]) -> None:
    tools = body.get("tools")
    if not tools:
        if tools is not None:
            raise Objection("Invalid 'tools': empty array.", param="tools", code="empty_array")  # CliRelay PR#739
        if body.get("tool_choice", "auto") not in ("auto", "none"):  # [iss]
            raise Objection("Tool choice must be specified with 'tools'.", param="tool_choice")
        return
    names = [_tool(typed(tool, dict, "tools"), f"tools[{number}]") for number, tool in enumerate(tools)]
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        kind = needed(choice, "type", str, "tool_choice")
        if kind == "function" and needed(choice, "name", str, "tool_choice") not in names:
            raise Objection(f"Tool choice 'function' not found in 'tools' parameter: {choice['name']}.")
    else:
        one_of(choice, ("auto", "none", "required"), "tool_choice")


def _tool(tool: dict[str, Any], where: str) -> str:
    kind = needed(tool, "type", str, where)
    if kind != "function":
        return str(one_of(kind, ("web_search", "web_search_preview"), f"{where}.type"))
    # Flat, unlike Chat's; `strict` may be missing, though then the server makes everything required [docs].
    known_keys(tool, {"type", "name", "description", "parameters", "strict", "defer_loading", "allowed_callers"}, where)
    name: str = needed(tool, "name", str, where)
    tool_name(name, f"{where}.name")
    object_schema(needed(tool, "parameters", dict, where), name, f"{where}.parameters")
    if tool.get("strict") is True:
        strict_schema(tool["parameters"], name, f"{where}.parameters")
    return name


def _form(body: dict[str, Any]) -> None:
    text = body.get("text") or {}
    known_keys(text, {"format", "verbosity"}, "text")
    form = text.get("format")
    if form is None:
        return
    if one_of(form.get("type"), ("text", "json_object", "json_schema"), "text.format.type") == "json_schema":
        known_keys(form, {"type", "name", "schema", "description", "strict"}, "text.format")
        name = needed(form, "name", str, "text.format")
        tool_name(name, "text.format.name")
        if form.get("strict") is True:
            strict_schema(needed(form, "schema", dict, "text.format"), name, "text.format.schema")


# ---- items


def _item(item: Any, where: str, *, stored: bool) -> None:
    kind = typed(item, dict, where).get("type", "message")
    known_keys(item, _ITEMS[one_of(kind, _ITEMS, f"{where}.type")], where)
    if kind == "message":
        _message(item, where)
    elif kind == "reasoning":
        _reasoning(item, where, stored=stored)
    elif kind in ("function_call", "function_call_output"):
        not_longer(needed(item, "call_id", str, where), 64, f"{where}.call_id")  # fastllm#45, 9router#393 [iss]
        if "id" in item and not str(item["id"]).startswith("fc"):  # [iss]
            raise Objection(f"Invalid '{where}.id': expected an ID that begins with 'fc'.", param=f"{where}.id")
        if kind == "function_call":
            tool_name(needed(item, "name", str, where), f"{where}.name")
            _arguments(needed(item, "arguments", str, where), where)
        else:
            _output(needed(item, "output", (str, list), where), where)


def _arguments(text: str, where: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Objection(f"Invalid '{where}.arguments': not a JSON object.", param=f"{where}.arguments")


def _output(output: Any, where: str) -> None:
    if not output:  # an empty text is allowed (seed-001 3.3), an empty list is nothing [unsure]
        if isinstance(output, list):
            raise Objection(f"Invalid '{where}.output': empty array.", param=f"{where}.output", code="empty_array")
        return
    for number, part in enumerate(output if isinstance(output, list) else []):
        _part(part, _GIVEN, f"{where}.output[{number}]")


def _message(item: dict[str, Any], where: str) -> None:
    role = one_of(needed(item, "role", str, where), ("user", "assistant", "system", "developer"), f"{where}.role")
    content = needed(item, "content", (str, list), where)
    if not content:
        raise Objection(f"Invalid '{where}.content': empty.", param=f"{where}.content")
    for number, part in enumerate(content if isinstance(content, list) else []):
        # What the model said is spelled otherwise than what it was given [iss].
        _part(part, _SAID if role == "assistant" else _GIVEN, f"{where}.content[{number}]")


def _part(part: Any, allowed: tuple[str, ...], where: str) -> None:
    kind = one_of(needed(typed(part, dict, where), "type", str, where), allowed, f"{where}.type")
    known_keys(part, _PARTS[kind], where)
    if kind in ("input_text", "output_text") and not needed(part, "text", str, where):
        raise Objection(f"Invalid '{where}.text': empty string.", param=f"{where}.text")
    if kind == "input_image":
        url = part.get("image_url") or ""
        if not url.startswith(("https://", "http://", "data:image/")) and not part.get("file_id"):
            raise Objection(f"Invalid '{where}.image_url'.", param=f"{where}.image_url", code="invalid_value")
    if kind == "input_file" and part.get("file_data"):
        needed(part, "filename", str, where)  # [docs]
        if not part["file_data"].startswith("data:application/pdf;base64,"):
            raise Objection(f"Invalid '{where}.file_data'.", param=f"{where}.file_data")


def _reasoning(item: dict[str, Any], where: str, *, stored: bool) -> None:
    id = needed(item, "id", str, where)
    for part in needed(item, "summary", list, where):
        one_of(part.get("type"), ("summary_text",), f"{where}.summary")
    sealed = item.get("encrypted_content")
    if sealed is None:
        if not stored:  # [iss]
            raise Objection(
                f"Item with id '{id}' not found. Items are not persisted when `store` is set to false.",
                status=404,
                param="input",
            )
    elif not str(sealed).startswith(SEALED):  # ciphertext of another family (seed-001 3.3, case 32)
        raise Objection(f"The encrypted content for item {id} could not be verified.", code="invalid_encrypted_content")


def _pairing(items: list[dict[str, Any]]) -> None:
    """Each call has its output and each output its call, in that order; reasoning is followed by what it led to."""
    called: set[str] = set()
    answered: set[str] = set()
    for number, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "function_call":
            if item["call_id"] in called:
                raise Objection(f"Duplicate call_id '{item['call_id']}'.", param=f"input[{number}].call_id")
            called.add(item["call_id"])
        elif kind == "function_call_output":  # continue#10092, vercel/ai#8216 [iss]
            if item["call_id"] not in called:
                raise Objection(
                    f"No tool call found for function call output with call_id {item['call_id']}.", param="input"
                )
            answered.add(item["call_id"])
        elif kind == "reasoning":
            later = items[number + 1] if number + 1 < len(items) else {}
            following = later.get("type", "message") if later else ""
            if following not in ("function_call", "reasoning", "web_search_call") and not (
                following == "message" and later.get("role") == "assistant"
            ):  # [iss]
                raise Objection(
                    f"Item '{item['id']}' of type 'reasoning' was provided without its required following item.",
                    param="input",
                )
    for id in sorted(called - answered):  # trae-agent#245 [iss]
        raise Objection(f"No tool output found for function call {id}.", param="input")
