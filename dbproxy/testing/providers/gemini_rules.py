"""What Gemini's generateContent refuses, as strictly as it is documented.

One function, `check`; raises Objection at the first fault. Marks of sources as in ``objections``; the wording of
protobuf's JSON reader and of the API is [iss]. Must never import a codec.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from dbproxy.testing.providers.objections import Objection, words
from dbproxy.testing.providers.signatures import SENTINELS, is_thought_signature

if TYPE_CHECKING:
    from collections.abc import Collection

_TOP: Final = words(
    "contents systemInstruction tools toolConfig safetySettings generationConfig cachedContent labels store serviceTier"
)
_CONFIG: Final = words(
    "stopSequences responseMimeType responseSchema responseJsonSchema candidateCount maxOutputTokens temperature topP "
    "topK seed presencePenalty frequencyPenalty responseLogprobs logprobs thinkingConfig responseModalities "
    "mediaResolution speechConfig imageConfig enableEnhancedCivicAnswers"
)
# One of these holds what a part says [docs].
_DATA: Final = (
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
)
_PART: Final = frozenset({*_DATA, "thought", "thoughtSignature", "videoMetadata", "mediaResolution"})
_TOOL: Final = words(
    "functionDeclarations googleSearch googleSearchRetrieval codeExecution urlContext computerUse fileSearch googleMaps"
)
_DECLARED: Final = words("name description parameters parametersJsonSchema response responseJsonSchema behavior")
# Letters, digits, underscores, colons, dots and dashes, beginning with a letter or an underscore; 64 long, 128 by newer
# pages [docs]: the shorter counts here.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_:.-]{0,63}\Z")
# The Schema message of `parameters` and `responseSchema` [docs].
_SCHEMA: Final = words(
    "type format title description nullable enum maxItems minItems properties required minProperties maxProperties "
    "minLength maxLength pattern example anyOf propertyOrdering default items minimum maximum additionalProperties "
    "prefixItems ref defs"
)
# What the page names for responseJsonSchema; parametersJsonSchema takes any JSON, and may take more of it [unsure]:
# seed-001 case 22 wants the cautious reading.
_JSON_SCHEMA: Final = words(
    "$id $defs $ref $anchor type format title description enum items prefixItems minItems maxItems minimum maximum "
    "anyOf oneOf properties additionalProperties required propertyOrdering default nullable minLength maxLength "
    "pattern"
)
_MODES: Final = ("AUTO", "ANY", "NONE", "VALIDATED")
_MOST_STOPS: Final = 5  # [docs]


def check(model: str, body: dict[str, Any]) -> None:
    """Raises Objection for a request that the API would not take."""
    _fields(body, _TOP, "")
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        raise Objection("* GenerateContentRequest.contents: contents is not specified")
    if "systemInstruction" in body:
        _fields(body["systemInstruction"], {"parts", "role"}, "system_instruction")
        _parts(body["systemInstruction"].get("parts"), "system_instruction", ("text",))
    for number, content in enumerate(contents):
        _content(content, f"contents[{number}]")
    _turns(contents)
    _signatures(model, contents)
    names = _tools(body.get("tools", []))
    _choice(body.get("toolConfig"), names)
    _config(model, body.get("generationConfig", {}))


def _fields(value: Any, known: Collection[str], where: str) -> None:
    """protobuf's JSON reader refuses a field that it does not know (CPA#97, #2142) [iss]."""
    if not isinstance(value, dict):
        raise Objection(f"Invalid value at '{where}'.")
    for key in value:
        if key not in known:
            place = f" at '{where}'" if where else ""
            raise Objection(f'Invalid JSON payload received. Unknown name "{key}"{place}: Cannot find field.')


def _content(content: Any, where: str) -> None:
    _fields(content, {"role", "parts"}, where)
    role = content.get("role", "user")
    if role not in ("user", "model"):
        raise Objection("Please use a valid role: user, model.")
    _parts(content.get("parts"), where, _DATA)


def _parts(parts: Any, where: str, allowed: Collection[str]) -> None:
    if not parts:
        raise Objection(f"* GenerateContentRequest.{where}.parts: contents.parts must not be empty.")
    for number, part in enumerate(parts):
        place = f"{where}.parts[{number}]"
        _fields(part, _PART, place)
        found = [key for key in _DATA if key in part]
        if len(found) != 1:  # `data` is a oneof
            raise Objection(f"* GenerateContentRequest.{place}.data: required oneof field 'data' must have one field")
        if found[0] not in allowed:
            raise Objection(f"* GenerateContentRequest.{place}: {found[0]} is not allowed here")
        if part.get("text") == "":  # Vertex refuses it [iss], the Gemini API may take it [unsure]
            raise Objection("Unable to submit request because it must have a text parameter.")
        _data(found[0], part[found[0]], place)


def _data(kind: str, value: Any, where: str) -> None:
    if kind == "functionCall":
        _fields(value, {"id", "name", "args"}, f"{where}.function_call")
        _name(value.get("name"))
        if not isinstance(value.get("args", {}), dict):
            raise Objection(
                f"Invalid value at '{where}.function_call.args' (type.googleapis.com/google.protobuf.Struct)"
            )
    elif kind == "functionResponse":
        _fields(value, {"id", "name", "response", "parts", "willContinue", "scheduling"}, f"{where}.function_response")
        _name(value.get("name"))
        if not isinstance(value.get("response"), dict):
            raise Objection(
                f"Invalid value at '{where}.function_response.response' (type.googleapis.com/google.protobuf.Struct)"
            )
    elif kind == "inlineData":
        _fields(value, {"mimeType", "data", "displayName"}, f"{where}.inline_data")
        if not value.get("mimeType") or not value.get("data"):
            raise Objection(f"* GenerateContentRequest.{where}.inline_data: mime type and data are required")


def _turns(contents: list[dict[str, Any]]) -> None:
    """Calls are answered by the next turn, all of them, and nothing else is answered [iss]."""
    calls: list[str] = []
    for content in contents:
        responses = [part["functionResponse"]["name"] for part in content["parts"] if "functionResponse" in part]
        if sorted(responses) != sorted(calls):
            raise Objection(
                "Please ensure that the number of function response parts is equal to the number of function call "
                "parts of the function call turn."
            )
        calls = [part["functionCall"]["name"] for part in content["parts"] if "functionCall" in part]
        if calls and content.get("role") != "model":
            raise Objection("Please ensure that function call turns come from the model.")
        if responses and content.get("role") == "model":
            raise Objection("Please ensure that function response turns come from the user.")
    if calls:
        raise Objection("Please ensure that function call turn is followed by a function response turn.")
    if contents[-1].get("role") == "model":  # [iss; older models took it]
        raise Objection("Please ensure that multiturn requests end with a user turn or a function response.")


def _signatures(model: str, contents: list[dict[str, Any]]) -> None:
    """From Gemini 3 on the first call of each of the model's turns must bring its signature back.

    Page "Thought signatures" [docs]: enforced for the current turn alone; here for every turn (seed-001 3.3: "on every
    replayed functionCall"), which is stricter. CPA #2360, CCR #1431. A signature of anybody else's is corrupted.
    """
    for number, content in enumerate(contents):
        for part in content["parts"]:
            given = part.get("thoughtSignature")
            if given is not None and given not in SENTINELS and not is_thought_signature(given):
                raise Objection("Corrupted thought signature.")
        first = next((part for part in content["parts"] if "functionCall" in part), None)
        if first is not None and "thoughtSignature" not in first and _signs(model):
            raise Objection(
                "Function call is missing a thought_signature in functionCall parts. This is required for tools to "
                f"work correctly. Function call `default_api:{first['functionCall']['name']}`, position {number}."
            )


def _signs(model: str) -> bool:
    version = re.match(r"gemini-(\d+)", model)
    return version is not None and int(version[1]) >= 3


def _name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.match(name):
        raise Objection(
            f"Invalid function name: {name!r}. Must start with a letter or an underscore. Must be alphameric (a-z, "
            "A-Z, 0-9), underscores (_), dots (.), colons (:), or dashes (-), with a maximum length of 64."
        )


# ---- tools


def _tools(tools: Any) -> list[str]:
    names: list[str] = []
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        _fields(tool, _TOOL, where)
        for place, declared in enumerate(tool.get("functionDeclarations", [])):
            names.append(_declared(declared, f"{where}.function_declarations[{place}]"))
        if tool.get("functionDeclarations") == []:
            raise Objection(f"* GenerateContentRequest.{where}.tool_type: required one_of 'tool_type' must be set")
    if len(set(names)) < len(names):
        raise Objection("Duplicate function declaration found.")
    return names


def _declared(declared: Any, where: str) -> str:
    _fields(declared, _DECLARED, where)
    _name(declared.get("name"))
    if "parameters" in declared and "parametersJsonSchema" in declared:
        raise Objection(f"* GenerateContentRequest.{where}: parameters and parameters_json_schema are exclusive")
    if "parameters" in declared:
        _schema(declared["parameters"], f"{where}.parameters", _SCHEMA)
        if declared["parameters"].get("properties") == {}:  # [iss]
            raise Objection(
                f"* GenerateContentRequest.{where}.parameters.properties: should be non-empty for OBJECT type"
            )
    if "parametersJsonSchema" in declared:
        _schema(declared["parametersJsonSchema"], f"{where}.parameters_json_schema", _JSON_SCHEMA)
    name: str = declared["name"]
    return name


def _schema(schema: Any, where: str, known: frozenset[str]) -> None:
    """Walk a schema; names of properties are no keywords."""
    if isinstance(schema, bool) and where.endswith(("additionalProperties", "items")):
        return
    _fields(schema, known, where)
    for word in ("properties", "$defs", "defs"):
        for key, inner in schema.get(word, {}).items():
            _schema(inner, f"{where}.{word}[{key}]", known)
    for word in ("items", "additionalProperties"):
        if word in schema:
            _schema(schema[word], f"{where}.{word}", known)
    for word in ("anyOf", "oneOf", "prefixItems"):
        for number, inner in enumerate(schema.get(word, [])):
            _schema(inner, f"{where}.{word}[{number}]", known)
    if not all(isinstance(value, str) for value in schema.get("enum", [])):  # [iss]
        raise Objection(f"Invalid value at '{where}.enum' (TYPE_STRING)")
    for name in schema.get("required", []):
        if name not in schema.get("properties", {}):  # [iss]
            raise Objection(f"* GenerateContentRequest.{where}.required: property is not defined: {name}")


def _choice(config: Any, names: list[str]) -> None:
    if config is None:
        return
    _fields(config, {"functionCallingConfig", "retrievalConfig", "includeServerSideToolInvocations"}, "tool_config")
    calling = config.get("functionCallingConfig")
    if calling is None:
        return
    _fields(calling, {"mode", "allowedFunctionNames"}, "tool_config.function_calling_config")
    if calling.get("mode") not in _MODES:
        raise Objection("Invalid value at 'tool_config.function_calling_config.mode'")
    if not names:  # [iss]
        raise Objection("Function calling config is set without function_declarations.")
    allowed = calling.get("allowedFunctionNames", [])
    if allowed and calling["mode"] not in ("ANY", "VALIDATED"):  # [docs]
        raise Objection("Allowed function names should be set only if the mode is ANY or VALIDATED.")
    if not set(allowed) <= set(names):
        raise Objection("Allowed function names should be in the function declarations.")


def _config(model: str, config: dict[str, Any]) -> None:
    _fields(config, _CONFIG, "generation_config")
    if len(config.get("stopSequences", [])) > _MOST_STOPS:
        raise Objection("The number of stop sequences must be at most 5.")
    if config.get("maxOutputTokens", 1) < 1:
        raise Objection("max_output_tokens must be positive.")
    if not 0 <= config.get("temperature", 1) <= 2:  # [docs]
        raise Objection("temperature must be in the range [0.0, 2.0].")
    if "responseSchema" in config and "responseJsonSchema" in config:
        raise Objection("response_schema and response_json_schema are exclusive.")
    for key, known in (("responseSchema", _SCHEMA), ("responseJsonSchema", _JSON_SCHEMA)):
        if key in config:
            if config.get("responseMimeType") != "application/json":  # [docs]
                raise Objection("response_schema needs response_mime_type application/json.")
            _schema(config[key], f"generation_config.{key}", known)
    thinking = config.get("thinkingConfig")
    if thinking is not None:
        _thinking(model, thinking)


def _thinking(model: str, thinking: dict[str, Any]) -> None:
    _fields(thinking, {"thinkingBudget", "thinkingLevel", "includeThoughts"}, "generation_config.thinking_config")
    if "thinkingBudget" in thinking and "thinkingLevel" in thinking:  # [docs]
        raise Objection("You can only set only one of thinking budget and thinking level.")
    if "thinkingLevel" in thinking:
        if not _signs(model):  # [docs]
            raise Objection("Thinking level is not supported for this model.")
        levels = ("minimal", "low", "medium", "high")
        if str(thinking["thinkingLevel"]).lower() not in levels:
            raise Objection("Invalid value at 'generation_config.thinking_config.thinking_level'")
    budget = thinking.get("thinkingBudget", 0)
    if "gemini-2.5-pro" in model and budget == 0 and "thinkingBudget" in thinking:  # [docs]
        raise Objection("Budget 0 is invalid. This model only works in thinking mode.")
