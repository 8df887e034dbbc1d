"""What a strict server objects to, and the checks that several dialects share.

Owns `Objection` (an error answer on its way) and the helpers that raise it. Pure. Each rule names its source where it
is applied, by a fact (seed-001, API facts), a report, or a word: [docs] = the provider's documentation, [iss] = error
texts that users reported, [unsure] = not checked. Rules about keys, needed values, types and literals, which have no
mark, follow the official SDKs' types of 2026-11 (openai 3.52.0, google-genai 3.6.1).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection

#: Names of functions [docs; seed-001 3.1].
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


class Objection(ValueError):
    """The request is refused. ``param`` names the place, ``code`` the server's word for the fault."""

    def __init__(
        self, message: str, *, status: int = 400, param: str = "", code: str = "", kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind


def known_keys(value: dict[str, Any], known: Collection[str], where: str = "") -> None:
    """Object to a key that the documentation does not name: OpenAI refuses each (seed-001 3.1, case 29)."""
    for key in value:
        if key not in known:
            place = f"{where}.{key}" if where else key
            raise Objection(f"Unknown parameter: '{place}'.", param=place, code="unknown_parameter")


def typed(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    """``value`` if it has that type."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Objection(f"Invalid type for '{where}'.", param=where, code="invalid_type")
    return value


def needed(value: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a key that must be there."""
    place = f"{where}.{key}" if where else key
    if key not in value:
        raise Objection(f"Missing required parameter: '{place}'.", param=place, code="missing_required_parameter")
    return typed(value[key], kind, place)


def one_of(value: Any, allowed: Collection[Any], where: str) -> Any:
    """``value`` if it is one of these."""
    if value not in allowed:
        listed = ", ".join(f"'{one}'" for one in sorted(map(str, allowed)))
        raise Objection(f"Invalid value: '{value}'. Supported values are: {listed}.", param=where, code="invalid_value")
    return value


def not_longer(value: str, most: int, where: str) -> None:
    """Object to a text that is too long."""
    if len(value) > most:
        raise Objection(
            f"Invalid '{where}': string too long. Expected a string with maximum length {most}, "
            f"but got a string with length {len(value)} instead.",
            param=where,
            code="string_above_max_length",
        )


def tool_name(value: str, where: str) -> None:
    """Object to what cannot be the name of a function [docs]."""
    not_longer(value, 64, where)
    if not NAME.match(value):
        raise Objection(
            f"Invalid '{where}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
            param=where,
            code="invalid_value",
        )


def object_schema(schema: Any, name: str, where: str) -> None:
    """Object to parameters that describe no object (seed-001 cases 19, 20) [iss]."""
    typed(schema, dict, where)
    if schema.get("type") != "object":
        raise Objection(
            f"Invalid schema for function '{name}': schema must be a JSON Schema of 'type: \"object\"', "
            f"got 'type: \"{schema.get('type')}\"'.",
            param=where,
            code="invalid_function_parameters",
        )
    if "properties" not in schema:
        raise Objection(
            f"Invalid schema for function '{name}': In context=(), object schema missing properties.",
            param=where,
            code="invalid_function_parameters",
        )


def strict_schema(schema: Any, name: str, where: str, context: tuple[str, ...] = ()) -> None:
    """Object to a schema that strict mode cannot take: every property required, none beyond them [docs]."""
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        fault = ""
        if schema.get("additionalProperties") is not False:
            fault = "'additionalProperties' is required to be supplied and to be false"
        elif set(schema.get("required", [])) != set(properties):
            fault = "'required' is required to be supplied and to be an array including every key in properties"
        if fault:
            raise Objection(
                f"Invalid schema for '{name}': In context={context}, {fault}.", param=where, code="invalid_schema"
            )
        for key, inner in properties.items():
            strict_schema(inner, name, where, (*context, "properties", key))
    strict_schema(schema.get("items"), name, where, (*context, "items"))
    for word in ("anyOf", "$defs", "definitions"):
        inner = schema.get(word, [])
        for key, one in inner.items() if isinstance(inner, dict) else enumerate(inner):
            strict_schema(one, name, where, (*context, word, str(key)))
