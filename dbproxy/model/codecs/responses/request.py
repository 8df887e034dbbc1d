"""A request in the words of the Responses API: one flat list of items, each in its place.

Owns the whole body. Pure. Invariants: items stand in the order in which things were said; a call's result follows it
before anything else of that turn; a reasoning item stands only before something that it led to, and goes only to the
family that made it; nothing that names a user or a session leaves; nothing is stored upstream.

Sources: seed-001 sections 3.1 to 3.3, API facts 5.2; the types of the ``openai`` package say what each item may hold
(``function_call_output`` takes a list of texts, pictures and files; measured by strands-agents harness-sdk PR#3576, a
file as a data URL there too).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import effort
from dbproxy.model.codecs.lacking import lacking
from dbproxy.model.codecs.naming import upstream_id
from dbproxy.model.codecs.request import (
    Call,
    Document,
    Image,
    Result,
    Text,
    Thinking,
    Unroutable,
    result_text,
)
from dbproxy.model.codecs.responses.carried import phase_key, phase_of, split_reasoning
from dbproxy.model.codecs.schemas import strict_schema, with_items
from dbproxy.model.codecs.vault import split_signature

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Request, ServerTool, Tool, Turn
    from dbproxy.model.codecs.translation import Translation

#: The least that the API takes ("Expected a value >= 16": hindsight#58); clients ask for 1 to see whether it answers.
_LEAST_OUTPUT: Final = 16
_CALL_ID: Final = 64  # characters
_SEARCH: Final = "web_search"
_PLACE: Final = ("city", "region", "country", "timezone")
# What a request is not one without, whatever a model refuses.
_NEEDED: Final = frozenset({"model", "input", "stream", "tools"})


def write_request(request: Request, translation: Translation) -> bytes:
    """The body. Sets ``translation.stops``, since the API has no stop sequences. Raises Unroutable."""
    reason = lacking(request, translation.capabilities)
    if reason:
        raise Unroutable(reason)
    body: dict[str, Any] = {"model": translation.model}
    if request.system:
        body["instructions"] = "\n\n".join(request.system)
    body["input"] = _Input(translation).of(request.turns)
    body["store"] = False
    if request.stream:
        body["stream"] = True
    _put_limit(body, request, translation)
    _put_tools(body, request, translation)
    _put_thinking(body, request, translation)
    _put_form(body, request, translation)
    plain = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "service_tier": request.service_tier,
        "safety_identifier": request.user,
        "prompt_cache_key": request.session,
    }
    body.update({name: value for name, value in plain.items() if value is not None and value != ""})
    if request.top_k is not None:
        translation.note("top_k was left out: the API has none")
    translation.stops = request.stop
    _take_out(body, translation)
    return shapes.written(body)


def _put_limit(body: dict[str, Any], request: Request, translation: Translation) -> None:
    asked, most = request.max_tokens, translation.capabilities.output
    if asked is None:
        return
    limit = max(min(asked, most) if most else asked, _LEAST_OUTPUT)
    if limit != asked:
        translation.note(f"max_tokens {asked} became {limit}, what the model allows")
    body["max_output_tokens"] = limit


def _put_thinking(body: dict[str, Any], request: Request, translation: Translation) -> None:
    efforts = translation.capabilities.efforts
    if not efforts:
        return
    # Without it the reasoning would be gone at the next turn, since nothing is stored.
    body.setdefault("include", []).append("reasoning.encrypted_content")
    word = effort.nearest(request.effort, efforts)
    if word == "minimal" and request.server_tools:
        word = effort.nearest("low", efforts)  # with the least the API refuses its search (guide to web search)
    if word:
        # A model that does not think has nothing to sum up. Organisations that are not verified get no summaries, and
        # a refusal (OpenHands software-agent-sdk#987): they name ``reasoning.summary`` among what is refused.
        body["reasoning"] = {"effort": word} if word == "none" else {"effort": word, "summary": "auto"}
    if word != request.effort:
        translation.note(f"effort {request.effort} became {word or 'the default'}, what the model allows")


def _put_form(body: dict[str, Any], request: Request, translation: Translation) -> None:
    """The schema that the answer must fit: strict where it can be, since the client relies on it."""
    if request.schema is None:
        return
    if not translation.capabilities.structured:
        raise Unroutable(f"{translation.model} cannot answer in the form of a schema")
    strict = strict_schema(request.schema)
    if strict is None:
        translation.note("the answer's schema is not enforced: it has optional properties or is beyond strict mode")
    schema = request.schema if strict is None else strict
    body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": strict is not None}}


def _take_out(body: dict[str, Any], translation: Translation) -> None:
    """Leave out what the model refuses, by the parameter's name (``reasoning.summary`` for a part of one)."""
    for refused in sorted(translation.capabilities.refuses - _NEEDED):
        name, _, inner = refused.partition(".")
        holder = body.get(name) if inner else body
        if not isinstance(holder, dict) or holder.pop(inner or name, None) is None:
            continue
        if refused == "parallel_tool_calls":
            translation.single = True  # the writer sees to it
        else:
            translation.note(f"{refused} was left out: the model refuses it")


# ---- tools


def _put_tools(body: dict[str, Any], request: Request, translation: Translation) -> None:
    tools = [_function(tool, translation) for tool in request.tools]
    tools.extend(_search(server, body, translation) for server in request.server_tools)
    if not tools:
        return  # a choice without tools is refused (CliRelay PR#739)
    body["tools"] = tools
    choice = request.choice
    if choice is None:
        return
    if choice.single:
        body["parallel_tool_calls"] = False
    body["tool_choice"] = _choice(request, tools, translation)


def _function(tool: Tool, translation: Translation) -> dict[str, Any]:
    # The API makes a tool strict unless told otherwise, and then every parameter required (seed-001 3.1).
    strict = strict_schema(tool.schema) if tool.strict else None
    if tool.strict and strict is None:
        translation.note(f"{tool.name} is not strict: it has optional parameters or is beyond strict mode")
    found: dict[str, Any] = {"type": "function", "name": translation.names.out(tool.name)}
    if tool.description:
        found["description"] = tool.description
    found["parameters"] = with_items(tool.schema) if strict is None else strict
    found["strict"] = strict is not None
    return found


def _search(server: ServerTool, body: dict[str, Any], translation: Translation) -> dict[str, Any]:
    """A search of the web, the one server tool that has a twin. Raises Unroutable for others."""
    if not server.type.startswith(_SEARCH):
        raise Unroutable(f"the server tool {server.name} has no twin in the Responses API")
    if not translation.capabilities.web_search:
        raise Unroutable(f"{translation.model} cannot search the web")
    settings = server.settings
    if settings.get("blocked_domains"):
        raise Unroutable("the Responses API cannot keep domains out of a search")
    found: dict[str, Any] = {"type": _SEARCH}
    domains = [domain for domain in shapes.sequence(settings.get("allowed_domains")) if isinstance(domain, str)]
    if domains:
        found["filters"] = {"allowed_domains": domains}
    place = shapes.mapping(settings.get("user_location"))
    if place:
        known = {name: place[name] for name in _PLACE if isinstance(place.get(name), str)}
        found["user_location"] = {"type": "approximate", **known}
    uses = shapes.count(settings.get("max_uses"))
    if uses:
        body["max_tool_calls"] = uses  # counts the server's own tools only
    # The pages that a search found are told only on request.
    body.setdefault("include", []).append("web_search_call.action.sources")
    return found


def _choice(request: Request, tools: list[dict[str, Any]], translation: Translation) -> str | dict[str, Any]:
    choice = request.choice
    assert choice is not None
    if choice.mode != "tool":
        return "required" if choice.mode == "any" else choice.mode
    if any(tool.name == choice.name for tool in request.tools):
        return {"type": "function", "name": translation.names.out(choice.name)}
    if len(tools) > 1 and any(server.name == choice.name for server in request.server_tools):
        # The choice of a single tool cannot name this one (openai types, ``ToolChoiceTypesParam``); a list of one can.
        return {"type": "allowed_tools", "mode": "required", "tools": [{"type": _SEARCH}]}
    return "required"


# ---- the conversation


class _Input:
    """The list of items, turn by turn."""

    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self._given: set[str] = set()  # ids of reasoning items: each may stand there once

    def of(self, turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for turn in turns:
            if turn.role == "assistant":
                found.extend(self._assistant(turn))
            else:
                found.extend(self._other(turn))
        return found

    def _other(self, turn: Turn) -> list[dict[str, Any]]:
        """What the user or, in the middle of a conversation, the system said. Results come first (`read_request`)."""
        role = "user" if turn.role == "user" else "developer"
        found: list[dict[str, Any]] = []
        content: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, Result):
                id = upstream_id(part.id, limit=_CALL_ID)
                found.append({"type": "function_call_output", "call_id": id, "output": _output(part)})
            elif isinstance(part, Text | Image | Document):
                content.append(_part(part))
        if content:
            found.append({"type": "message", "role": role, "content": content})
        return found

    def _assistant(self, turn: Turn) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        last_call = max((at for at, part in enumerate(turn.parts) if isinstance(part, Call)), default=-1)
        for at, part in enumerate(turn.parts):
            if isinstance(part, Text):
                found.append(self._said(part.text, goes_on=at < last_call))
            elif isinstance(part, Thinking):
                family, payload = split_signature(part.signature)
                if family == self._translation.family:
                    self._reason(found, len(found), payload, part.text)
            elif isinstance(part, Call):
                self._recall(found, part)
                found.append(self._called(part))
            elif isinstance(part, Image | Document):  # an item of the model's can hold none
                found.append({"type": "message", "role": "user", "content": [_part(part)]})
        # "... was provided without its required following item" (openai-agents-python#1611): an answer that was cut.
        while found and found[-1]["type"] == "reasoning":
            found.pop()
        return found

    def _said(self, text: str, *, goes_on: bool) -> dict[str, Any]:
        # As a plain string: parts of the model's own (``output_text``) need the id of an item that nobody keeps, and
        # servers that hold on to the types, as vLLM does, refuse them without (MiaAI-Lab DeepSeek-v4-Flash#138).
        found: dict[str, Any] = {"type": "message", "role": "assistant", "content": text}
        translation = self._translation
        phase = phase_of(translation.vault.get(phase_key(text), translation.family)) if translation.vault else None
        if phase is not None and not (goes_on and phase == "final_answer"):
            found["phase"] = phase
        return found

    def _called(self, call: Call) -> dict[str, Any]:
        return {
            "type": "function_call",
            "call_id": upstream_id(call.id, limit=_CALL_ID),
            "name": self._translation.names.out(call.name),
            "arguments": shapes.written(call.arguments).decode("utf-8", "replace"),
        }

    def _recall(self, found: list[dict[str, Any]], call: Call) -> None:
        """The reasoning that led to a call, where the client's history has lost it."""
        kept = self._translation.vault.get(call.id, self._translation.family)
        if kept is None:
            return
        at = len(found)
        while at and found[at - 1]["type"] == "message":  # what was said on the way came behind it
            at -= 1
        self._reason(found, at, kept.payload, kept.text)

    def _reason(self, found: list[dict[str, Any]], at: int, payload: str, text: str) -> None:
        id, encrypted = split_reasoning(payload)
        if not id or id in self._given:
            return
        self._given.add(id)
        summary = [{"type": "summary_text", "text": text}] if text else []
        # Never with its text as ``content``: the API refuses that (agent-framework-go PR#784).
        found.insert(at, {"type": "reasoning", "id": id, "summary": summary, "encrypted_content": encrypted})


def _part(part: Text | Image | Document) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "input_text", "text": part.text}
    if isinstance(part, Image):
        url = part.url or f"data:{part.media_type};base64,{part.data}"
        return {"type": "input_image", "image_url": url, "detail": "auto"}
    if part.url:
        return {"type": "input_file", "file_url": part.url}
    data = f"data:{part.media_type};base64,{part.data}"
    return {"type": "input_file", "filename": part.title or "document.pdf", "file_data": data}


def _output(result: Result) -> str | list[dict[str, Any]]:
    """A result: one text, or a list of parts where there is something to see in it."""
    if all(isinstance(part, Text) for part in result.parts):
        return result_text(result)
    parts = [_part(part) for part in result.parts]
    if result.is_error:
        parts.insert(0, {"type": "input_text", "text": "Error:"})
    return parts
