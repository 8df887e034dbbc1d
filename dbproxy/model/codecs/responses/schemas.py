"""JSON schemas as the API takes them: arrays that say what is in them, and the closed form that strict mode asks for.

Pure; never changes what it is given. Invariants: a schema that needs nothing comes back as it is; none is made to mean
something else, but that an object without a word on other properties has none.

Sources: a function's schema with an array without ``items`` is refused ("array schema missing items"); strict mode
wants every object closed and every property required, and knows part of JSON Schema only (OpenAI's guide to structured
outputs). Seed-001 3.1: what is optional must not be made required, or the model makes values up for it.
"""

from __future__ import annotations

from typing import Any, Final

from dbproxy.model import shapes

# What strict mode does not know; a schema that uses it goes unstrict.
_UNKNOWN: Final = frozenset(
    {
        "allOf",
        "contains",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxProperties",
        "minProperties",
        "not",
        "oneOf",
        "patternProperties",
        "prefixItems",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
_MAPS: Final = ("properties", "$defs", "definitions")  # names to schemas
_DEEPEST: Final = 100


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
        if isinstance(value, dict | list) and name not in ("enum", "const", "default", "examples", "required"):
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


class _Open(Exception):
    """A schema that strict mode cannot say."""


def strict(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema in strict mode's form, None if it has none."""
    if schema.get("type") != "object" or "anyOf" in schema:  # not at the top
        return None
    try:
        return _closed(schema, 0)
    except _Open:
        return None


def _closed(node: Any, depth: int) -> dict[str, Any]:
    if not isinstance(node, dict) or depth > _DEEPEST or not _UNKNOWN.isdisjoint(node):
        raise _Open
    found = dict(node)
    for name in _MAPS:
        if name in node:
            inner = shapes.mapping(node[name])
            found[name] = {key: _closed(value, depth + 1) for key, value in inner.items()}
    if "items" in node:
        found["items"] = _closed(node["items"], depth + 1)
    if "anyOf" in node:
        found["anyOf"] = [_closed(value, depth + 1) for value in shapes.sequence(node["anyOf"])]
    if _is(node, "object") or "properties" in node:
        if node.get("additionalProperties", False) is not False or not isinstance(node.get("properties"), dict):
            raise _Open  # a map with free names
        names = list(node["properties"])
        if not set(names) <= set(map(str, shapes.sequence(node.get("required")))):
            raise _Open
        found["additionalProperties"] = False
        found["required"] = names
    return found


def _is(node: dict[str, Any], kind: str) -> bool:
    type = node.get("type")
    return type == kind or (isinstance(type, list) and kind in type)
