"""JSON schemas as OpenAI takes them, in Chat and in Responses: arrays that say what is in them, and the closed form for
strict mode.

Pure; never changes what it is given. Invariants: a schema that needs nothing comes back as it is; none is made to mean
something else, but that an object without a word on other properties has none; no optional property is made a required
one, since the model would have to make it up.

Sources: a function whose schema has an array without ``items`` is refused ("array schema missing items": spectacl#402,
mcphost#35), which servers of tools often leave out. Strict: seed-001 section 3.1 (output_config.format), the SDK's own
rules (``openai.lib._pydantic``).
"""

from __future__ import annotations

from typing import Any, Final

from dbproxy.model import shapes

#: Where names stand for schemas, and are no keywords.
_MAPS: Final = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
#: Where values stand that are no schemas.
_VALUES: Final = ("enum", "const", "default", "examples", "required")
_DEEPEST: Final = 100
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
#: A schema with none of these allows anything.
_SAYING: Final = frozenset({"type", "$ref", "anyOf", "enum", "const"})
#: Where schemas have names inside a strict schema.
_NAMED: Final = ("properties", "$defs", "definitions")


def with_items(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with ``items`` in every array."""
    found = _with_items(schema, 0)
    return found if isinstance(found, dict) else schema


def _with_items(node: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        return node
    if isinstance(node, list):
        changed = [_with_items(inner, depth + 1) for inner in node]
        return node if all(a is b for a, b in zip(changed, node, strict=True)) else changed
    if not isinstance(node, dict):
        return node
    found = node
    for name, value in node.items():
        if isinstance(value, dict | list) and name not in _VALUES:
            inner = _named(value, depth) if name in _MAPS and isinstance(value, dict) else _with_items(value, depth + 1)
            if inner is not value:
                found = {**found, name: inner}
    if _is(node, "array") and "items" not in node and "prefixItems" not in node:
        found = {**found, "items": {}}
    return found


def _named(schemas: dict[str, Any], depth: int) -> dict[str, Any]:
    """The same for a map of names to schemas, where a name is no keyword."""
    changed = {name: _with_items(inner, depth + 1) for name, inner in schemas.items()}
    return schemas if all(changed[name] is schemas[name] for name in schemas) else changed


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema with ``additionalProperties: false`` in every object, None if it cannot be strict."""
    if schema.get("type") != "object" or "anyOf" in schema:
        return None
    return _closed(schema, 0)


def _closed(schema: object, depth: int) -> dict[str, Any] | None:
    if not isinstance(schema, dict) or depth > _DEEPEST or not _REFUSED.isdisjoint(schema):
        return None
    if _SAYING.isdisjoint(schema) or (_is(schema, "array") and "items" not in schema):
        return None  # anything may stand there
    found: dict[str, Any] = dict(schema)
    if "properties" in schema or _is(schema, "object"):
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


def _is(schema: dict[str, Any], kind: str) -> bool:
    """Is this type the schema's, or one of its types?"""
    type = schema.get("type")
    return type == kind or (isinstance(type, list) and kind in type)
