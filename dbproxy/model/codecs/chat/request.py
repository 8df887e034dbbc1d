"""A Messages request as the body of a Chat Completions request.

Owns the parameters; the messages are ``history``'s. Pure. Sources: seed-001 sections 3.1 and 3.2, API facts 5.1, the
types of the official SDK (``openai.types.chat.CompletionCreateParams``).

Invariants: no parameter that the model refuses, none that Chat does not know, nothing that tells who the user is; what
was asked for and left out stands in a note; what must not be lost makes the request `Unroutable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import effort
from dbproxy.model.codecs.chat.history import messages_of
from dbproxy.model.codecs.lacking import lacking
from dbproxy.model.codecs.request import Unroutable
from dbproxy.model.codecs.schemas import strict_schema, with_items

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Choice, Request, ServerTool, Tool
    from dbproxy.model.codecs.translation import Translation

#: What a request may ask for that has no twin in Chat and can be missed.
_LEFT_OUT: Final = ("mcp_servers", "container", "inference_geo", "top_k")
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def written_request(request: Request, translation: Translation) -> bytes:
    """The body. Sets ``translation.stops`` and ``.single`` for what must be seen to here. Raises Unroutable."""
    reason = lacking(request, translation.capabilities) or _no_twin(request, translation)
    if reason:
        raise Unroutable(reason)
    body = _Body(request, translation)
    body.values["messages"] = messages_of(request, translation)
    body.length()
    body.tools()
    body.sampling()
    body.effort()
    body.form()
    body.rest()
    found = shapes.written(body.values)
    if not found:
        raise Unroutable("a schema nests too deeply")
    return found


def _no_twin(request: Request, translation: Translation) -> str:
    """The server tool that Chat has no twin of, "" if there is none."""
    for tool in request.server_tools:
        if not (translation.capabilities.web_search and _is_web_search(tool)):
            return f"the server tool {tool.name}"
        if tool.settings.get("allowed_domains") or tool.settings.get("blocked_domains"):
            return "a web search restricted to certain domains"
    return ""


class _Body:
    def __init__(self, request: Request, translation: Translation) -> None:
        self.request = request
        self.translation = translation
        self.can = translation.capabilities
        self.values: dict[str, Any] = {"model": translation.model}

    def put(self, name: str, value: object) -> bool:
        """Set a parameter unless the model refuses it."""
        if name in self.can.refuses:
            self.translation.note(f"{name} was left out: the model refuses it")
            return False
        self.values[name] = value
        return True

    def length(self) -> None:
        """The most tokens that may come: no more than the model can, and no more than fit behind the prompt, since a
        server refuses a prompt and a limit that do not fit together as it refuses a prompt that is too long. An eighth
        of the window is always asked for: the prompt's size is a guess, and some windows hold the prompt alone."""
        asked = self.request.max_tokens
        if asked is None:
            return
        most = asked
        if self.can.output:
            most = min(most, self.can.output)
        if self.can.context:
            most = min(most, max(self.can.context - self.translation.estimate, self.can.context // 8))
        if most < asked:
            self.translation.note(f"max_tokens was {asked}, and is {most} for this model")
        self.put(self.can.max_tokens_key or "max_tokens", most)

    def tools(self) -> None:
        """The tools and how to choose among them. Without tools neither key, which are refused then."""
        request = self.request
        choice = request.choice
        if choice is not None and choice.single:
            # Also where it can be asked for: not every server that takes the parameter keeps to it.
            self.translation.single = True
        for server_tool in request.server_tools:
            self._web_search(server_tool)
        if not request.tools:
            return
        if choice is not None and choice.mode == "none" and "tool_choice" in self.can.refuses:
            self.translation.note("the tools were left out: none may be called, and the model cannot be told so")
            return
        self.values["tools"] = [self._tool(tool) for tool in request.tools]
        if choice is None:
            return
        self.put("tool_choice", self._choice(choice))
        if choice.single:
            self.put("parallel_tool_calls", False)

    def _tool(self, tool: Tool) -> dict[str, Any]:
        schema = with_items(tool.schema)
        function: dict[str, Any] = {"name": self.translation.names.out(tool.name), "parameters": schema}
        if tool.description:
            function["description"] = tool.description
        if tool.strict is not None and "strict" not in self.can.refuses:
            # What strict means there is narrower than here: a schema that does not fit would be refused.
            strict = strict_schema(tool.schema) if tool.strict else None
            function["strict"] = strict is not None
            function["parameters"] = strict or schema
            if tool.strict and strict is None:
                self.translation.note(f"{tool.name} is not strict: strict schemas are narrower in this dialect")
        return {"type": "function", "function": function}

    def _choice(self, choice: Choice) -> object:
        if choice.mode != "tool":
            return _CHOICES[choice.mode]
        if all(tool.name != choice.name for tool in self.request.tools):
            self.translation.note("the tool that had to be called is none of the tools; any may be called")
            return "required"
        return {"type": "function", "function": {"name": self.translation.names.out(choice.name)}}

    def _web_search(self, tool: ServerTool) -> None:
        options: dict[str, Any] = {}
        location = shapes.mapping(tool.settings.get("user_location"))
        place = {
            name: location[name]
            for name in ("city", "country", "region", "timezone")
            if shapes.text(location.get(name))
        }
        if place:
            options["user_location"] = {"type": "approximate", "approximate": place}
        if tool.settings.get("max_uses"):
            self.translation.note("max_uses of the web search was left out: Chat has no such limit")
        self.values["web_search_options"] = options

    def sampling(self) -> None:
        """Temperature, top_p, and the stop sequences: those that cannot be sent are watched for here."""
        request = self.request
        if request.temperature is not None:
            self.put("temperature", request.temperature)
        if request.top_p is not None:
            self.put("top_p", request.top_p)
        if not request.stop:
            return
        sent = request.stop[: self.can.most_stops]
        if "stop" in self.can.refuses or not sent:
            self.translation.stops = request.stop
            return
        self.values["stop"] = list(sent)
        self.translation.stops = request.stop[len(sent) :]

    def effort(self) -> None:
        """How hard to think, in the model's nearest word."""
        asked = self.request.effort
        if self.request.tools and not self.can.tools_with_effort:
            # The newest models have an effort unless they are told otherwise, and refuse tools beside it (litellm
            # PR#34569).
            if "none" in self.can.efforts:
                self.put("reasoning_effort", "none")
            if asked not in ("", "none"):
                self.translation.note(f"effort {asked} was left out: in Chat the model takes none beside tools")
            return
        if not asked:
            return
        word = effort.nearest(asked, self.can.efforts)
        if not word:
            if asked != "none":
                self.translation.note(f"effort {asked} was left out: the model takes none")
        elif self.put("reasoning_effort", word) and word != asked:
            self.translation.note(f"effort {asked} became {word}")

    def form(self) -> None:
        """The schema that the answer must fit."""
        schema = self.request.schema
        if schema is None:
            return
        if not self.can.structured:
            self.translation.note("response_format was left out: the model takes no schema")
            return
        strict = strict_schema(schema)
        form = {"name": "answer", "strict": strict is not None, "schema": schema if strict is None else strict}
        self.put("response_format", {"type": "json_schema", "json_schema": form})

    def rest(self) -> None:
        """The stream, the price class, and names by which the server tells users and conversations apart."""
        request = self.request
        self.values["stream"] = request.stream
        if request.stream:
            self.put("stream_options", {"include_usage": True})
        if request.service_tier:
            self.put("service_tier", request.service_tier)
        # Not worth a note: nobody asked for these.
        for name, value in (("safety_identifier", request.user), ("user", request.user)):
            if value and name not in self.can.refuses:
                self.values[name] = value
                break
        if request.session and "prompt_cache_key" not in self.can.refuses:
            self.values["prompt_cache_key"] = request.session
        for name in _LEFT_OUT:
            if request.raw.get(name):
                self.translation.note(f"{name} was left out: Chat has no such thing")


def _is_web_search(tool: ServerTool) -> bool:
    return tool.type.startswith("web_search")
