"""Schemas that may be declared strict: OpenAI refuses a strict one that breaks its rules.

Pure. Sources: seed-001 section 3.1 (output_config.format), the SDK's own rules (``openai.lib._pydantic``). Invariants:
a schema is never loosened, and no optional property is made a required one, since the model would have to make it up.
"""

from __future__ import annotations

from typing import Any, Final

from dbproxy.model import shapes

#: What strict schemas must not hold.
_REFUSED: Final = frozenset(
    {
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "propertyNames",
        "unevaluatedProperties",
        "unevaluatedItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "minProperties",
        "maxProperties",
        "prefixItems",
    }
)
#: Where schemas stand inside a schema: as the values of an object, in a list, or alone.
_NAMED: Final = ("properties", "$defs", "definitions")
_DEEPEST: Final = 64


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema with ``additionalProperties: false`` in every object, None if it cannot be strict."""
    if schema.get("type") != "object" or "anyOf" in schema:
        return None
    return _closed(schema, 0)


def _closed(schema: object, depth: int) -> dict[str, Any] | None:
    if not isinstance(schema, dict) or depth > _DEEPEST or not _REFUSED.isdisjoint(schema):
        return None
    found: dict[str, Any] = dict(schema)
    if _is_object(schema):
        names = shapes.mapping(schema.get("properties"))
        required = shapes.sequence(schema.get("required"))
        # Without properties it is a free object, which would be an empty one if it were closed.
        closed = schema.get("additionalProperties", "properties" not in schema)
        if closed is not False or any(name not in required for name in names):
            return None
        found["additionalProperties"] = False
    for place in _NAMED:
        if place in schema:
            inner = {name: _closed(one, depth + 1) for name, one in shapes.mapping(schema[place]).items()}
            if None in inner.values():
                return None
            found[place] = inner
    if "anyOf" in schema:
        options = [_closed(one, depth + 1) for one in shapes.sequence(schema["anyOf"])]
        if None in options:
            return None
        found["anyOf"] = options
    if "items" in schema:
        found["items"] = _closed(schema["items"], depth + 1)
        if found["items"] is None:
            return None
    return found


def _is_object(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return "properties" in schema or kind == "object" or (isinstance(kind, list) and "object" in kind)
