"""A Messages request as the body of Gemini's generateContent.

Owns the body but for a tool's schema (``schema``); the model's id and the way of answering stand in the URL, which is
the provider's. Pure. Sources: seed-001 sections 3.1 to 3.3, API facts 5.4, Google's pages on thinking, on thought
signatures and on combined tools, ``google.genai.types``.

Invariants: the user speaks first, and in turns with the model; a function's responses come directly behind its call, as
many as there were calls; a thought signature goes back to the family that gave it, on the call that it came with;
nothing that tells who the user is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import effort
from dbproxy.model.codecs.gemini.schema import converted, parameters
from dbproxy.model.codecs.lacking import lacking
from dbproxy.model.codecs.naming import upstream_id
from dbproxy.model.codecs.request import Call, Document, Image, Result, Text, Thinking, Unroutable, media
from dbproxy.model.codecs.vault import split_signature

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbproxy.model.codecs.capabilities import Capabilities
    from dbproxy.model.codecs.request import Choice, Request, Turn
    from dbproxy.model.codecs.translation import Translation

#: Stands for a signature that is not known: Gemini 3 and later take it, and refuse a call without any (CCR#1032).
NO_SIGNATURE: Final = "skip_thought_signature_validator"
_MOST_STOPS: Final = 5
_REMINDER: Final = "<system-reminder>\n{}\n</system-reminder>"
_BEFORE: Final = "[The beginning of this conversation is not shown.]"
_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"})
_ENDINGS: Final = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".heic": "image/heic",
    ".heif": "image/heif",
}
#: Of thinking tokens: the least that every model takes which cannot go without, the most of Flash, that of Pro.
_LEAST_BUDGET: Final = 512
_MOST_BUDGET: Final = 24_576
_PRO_BUDGET: Final = 32_768
_LEVELS: Final = frozenset({"minimal", "low", "medium", "high", "xhigh"})
#: An answer of no more tokens than this leaves no room for thoughts, which count as well.
_SHORT: Final = 2048
#: Ids that the Messages API made, or our writer for a call without one: Gemini has never seen them.
_MINTED: Final = "toolu_"
#: What a request may ask for that has no twin here and can be missed.
_LEFT_OUT: Final = ("mcp_servers", "container", "inference_geo", "speed")


def written_request(request: Request, translation: Translation) -> bytes:
    """The body. Sets ``translation.stops`` and ``.single`` for what must be seen to here. Raises Unroutable."""
    reason = lacking(request, translation.capabilities) or _no_twin(request, translation.capabilities)
    if reason:
        raise Unroutable(reason)
    body: dict[str, Any] = {}
    if request.system:
        body["systemInstruction"] = {"parts": [{"text": text} for text in request.system]}
    body["contents"] = _contents(request, translation)
    _add_tools(body, request, translation)
    generation = _generation(request, translation)
    if generation:
        body["generationConfig"] = generation
    for name in _LEFT_OUT:
        if request.raw.get(name):
            translation.note(f"{name} was left out: Gemini has no such thing")
    found = shapes.written(body)
    if not found:
        raise Unroutable("the request nests too deeply")
    return found


def _no_twin(request: Request, can: Capabilities) -> str:
    """What Gemini has no twin of, "" if there is nothing."""
    if not request.turns:
        return "there is nothing in its messages"
    for tool in request.server_tools:
        if not (can.web_search and tool.type.startswith("web_search")):
            return f"the server tool {tool.name}"
        if tool.settings.get("allowed_domains") or tool.settings.get("blocked_domains"):
            return "a web search restricted to certain domains"
        if request.tools:
            # Possible from Gemini 3 on, if what the search did is sent back with every request, which nobody keeps.
            return "a web search beside other tools"
    return ""


# ---- the conversation


def _contents(request: Request, translation: Translation) -> list[dict[str, Any]]:
    contents: list[dict[str, Any]] = []
    calls: list[Call] = []
    for turn in request.turns:
        if turn.role == "assistant":
            role, parts = "model", _model_parts(turn, translation)
            calls = [part for part in turn.parts if isinstance(part, Call)]
        else:
            role, parts = "user", _user_parts(turn, calls, translation)
            calls = []
        if not parts:
            continue  # it only thought
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"].extend(parts)
        else:
            contents.append({"role": role, "parts": parts})
    if not contents or contents[0]["role"] == "model":
        contents.insert(0, {"role": "user", "parts": [{"text": _BEFORE}]})
    return contents


def _model_parts(turn: Turn, translation: Translation) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    family = translation.family
    signature, called = "", False
    for part in turn.parts:
        if isinstance(part, Thinking):
            # What it thought need not come back, only the seal on it.
            maker, payload = split_signature(part.signature)
            signature = payload if maker == family else ""
        elif isinstance(part, Call):
            kept = translation.vault.get(part.id, family)
            seal = kept.payload if kept is not None else signature
            if not seal and not called and translation.capabilities.thinking == "level":
                seal = NO_SIGNATURE  # parallel calls have one signature, on the first
            parts.append(_call(part, seal, translation))
            signature, called = "", True
        elif isinstance(part, Text | Image | Document):
            signature = ""
            parts.append(_content(part))
    return parts


def _call(call: Call, seal: str, translation: Translation) -> dict[str, Any]:
    function: dict[str, Any] = {"name": translation.names.out(call.name), "args": call.arguments}
    part: dict[str, Any] = {"functionCall": {**_id(call.id), **function}}
    if seal:
        part["thoughtSignature"] = seal
    return part


def _id(client: str) -> dict[str, str]:
    """The id that Gemini gave the call, if it gave one."""
    return {} if not client or client.startswith(_MINTED) else {"id": upstream_id(client)}


def _user_parts(turn: Turn, calls: Iterable[Call], translation: Translation) -> list[dict[str, Any]]:
    """What the user says behind these ``calls``. Each gets a response, even if two of them have one id."""
    if turn.role == "system":
        text = "\n\n".join(part.text for part in turn.parts if isinstance(part, Text))
        return [{"text": _REMINDER.format(text)}] if text else []
    results = {part.id: part for part in turn.parts if isinstance(part, Result)}
    return [
        *(_response(results[call.id], translation) for call in calls if call.id in results),
        *_enclosed(results.values()),
        *(_content(part) for part in turn.parts if isinstance(part, Text | Image | Document)),
    ]


def _response(result: Result, translation: Translation) -> dict[str, Any]:
    text = "\n\n".join(part.text for part in result.parts if isinstance(part, Text))
    if not text:
        text = "(what it gave follows behind the results)"
    response = {"error" if result.is_error else "output": text}
    function: dict[str, Any] = {"name": translation.names.out(result.name), "response": response}
    return {"functionResponse": {**_id(result.id), **function}}


def _enclosed(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The pictures and files of results, each call's behind a line that names it. They may stand inside the response
    from Gemini 3 on; beside it every model reads them."""
    parts: list[dict[str, Any]] = []
    before = None
    for result, part in media(results):
        if result is not before:
            before = result
            parts.append({"text": f"[What follows is part of the result of the call of {result.name}.]"})
        parts.append(_content(part))
    if parts:
        parts.append({"text": "[End of the tool results.]"})
    return parts


def _content(part: Text | Image | Document) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Image):
        if part.url:
            return _file(part.url, next((kind for end, kind in _ENDINGS.items() if _ends(part.url, end)), ""))
        if part.media_type not in _IMAGES:
            raise Unroutable(f"a picture of the type {part.media_type}")
        return {"inlineData": {"mimeType": part.media_type, "data": part.data}}
    if part.url:
        return _file(part.url, part.media_type)
    return {"inlineData": {"mimeType": part.media_type, "data": part.data}}


def _ends(url: str, ending: str) -> bool:
    return url.partition("?")[0].partition("#")[0].lower().endswith(ending)


def _file(url: str, media_type: str) -> dict[str, Any]:
    return {"fileData": {"fileUri": url, **({"mimeType": media_type} if media_type else {})}}


# ---- tools


def _add_tools(body: dict[str, Any], request: Request, translation: Translation) -> None:
    choice = request.choice
    if choice is not None and choice.single:
        translation.single = True
    for tool in request.server_tools:
        body["tools"] = [{"googleSearch": {}}]
        for name in ("max_uses", "user_location"):
            if tool.settings.get(name):
                translation.note(f"{name} of the web search was left out: Gemini's has no such setting")
    if not request.tools:
        return
    declarations = []
    for declared in request.tools:
        name = translation.names.out(declared.name)
        found: dict[str, Any] = {"name": name, "description": declared.description or name}
        schema = parameters(declared.schema)
        if schema is not None:
            found["parametersJsonSchema"] = schema
        declarations.append(found)
    body["tools"] = [{"functionDeclarations": declarations}]
    if choice is not None:
        body["toolConfig"] = {"functionCallingConfig": _choice(choice, request, translation)}


def _choice(choice: Choice, request: Request, translation: Translation) -> dict[str, Any]:
    if choice.mode in ("auto", "none"):
        return {"mode": choice.mode.upper()}
    if choice.mode == "any":
        return {"mode": "ANY"}
    if all(tool.name != choice.name for tool in request.tools):
        translation.note("the tool that had to be called is none of the tools; any may be called")
        return {"mode": "ANY"}
    return {"mode": "ANY", "allowedFunctionNames": [translation.names.out(choice.name)]}


# ---- how to answer


def _generation(request: Request, translation: Translation) -> dict[str, Any]:
    can = translation.capabilities
    found: dict[str, Any] = {}
    asked = request.max_tokens
    if asked is not None:
        most = min(asked, can.output) if can.output else asked
        if most < asked:
            translation.note(f"max_tokens was {asked}, and is {most} for this model")
        found["maxOutputTokens"] = most
    for name, key, value in (
        ("temperature", "temperature", request.temperature),
        ("top_p", "topP", request.top_p),
        ("top_k", "topK", request.top_k),
    ):
        if value is None:
            continue
        if name in can.refuses:
            translation.note(f"{name} was left out: the model refuses it")
        else:
            found[key] = value
    if request.stop:
        sent = () if "stop" in can.refuses else request.stop[: min(_MOST_STOPS, can.most_stops)]
        if sent:
            found["stopSequences"] = list(sent)
        translation.stops = request.stop[len(sent) :]
    if request.schema is not None:
        _add_form(found, request.schema, request, translation)
    thinking = _thinking(request, translation)
    if thinking:
        found["thinkingConfig"] = thinking
    return found


def _add_form(found: dict[str, Any], schema: dict[str, Any], request: Request, translation: Translation) -> None:
    can = translation.capabilities
    if not can.structured:
        translation.note("the answer's schema was left out: the model takes none")
    elif request.tools and can.thinking != "level":
        # "Function calling with a response mime type 'application/json' is unsupported", up to Gemini 2.5.
        translation.note("the answer's schema was left out: the model takes none beside tools")
    else:
        found["responseMimeType"] = "application/json"
        found["responseJsonSchema"] = converted(schema)


def _thinking(request: Request, translation: Translation) -> dict[str, Any]:
    can = translation.capabilities
    asked = request.effort
    if not asked and request.max_tokens is not None and request.max_tokens <= _SHORT:
        asked = "none"  # the model would think of its own accord, and say nothing
    if not asked or can.thinking not in ("budget", "level"):
        return {}
    if can.thinking == "budget":
        found: dict[str, Any] = {"thinkingBudget": _budget(asked, request, can)}
    else:
        word = effort.nearest(asked, [known for known in can.efforts or ("low", "high") if known in _LEVELS])
        found = {"thinkingLevel": word.upper()} if word else {}
        if word != asked and request.effort:
            translation.note(f"effort {asked} became {word or 'what the model does by itself'}")
    if asked != "none":
        found["includeThoughts"] = True
    return found


def _budget(asked: str, request: Request, can: Capabilities) -> int:
    if asked == "none":
        return 0 if "none" in can.efforts else _LEAST_BUDGET
    # Of those with budgets, Pro is the one that cannot be switched off.
    most = _PRO_BUDGET if can.efforts and "none" not in can.efforts else _MOST_BUDGET
    budget = request.budget or effort.budget_of(effort.nearest(asked, can.efforts) or asked)
    if request.max_tokens:
        budget = min(budget, request.max_tokens // 2)  # thoughts count as a part of the answer
    return max(_LEAST_BUDGET, min(budget, most))
