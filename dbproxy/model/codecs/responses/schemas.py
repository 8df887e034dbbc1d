"""JSON schemas as the API takes them: arrays that say what is in them.

Pure; never changes what it is given. Invariant: a schema that needs nothing comes back as it is. Source: the API
refuses a function with an array that has no ``items`` ("array schema missing items": spacectl#402, mcphost#35), which
servers of tools often leave out.
"""

from __future__ import annotations

from typing import Any, Final

#: Where names stand for schemas, and are no keywords.
_MAPS: Final = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
#: Where values stand that are no schemas.
_VALUES: Final = ("enum", "const", "default", "examples", "required")
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
        if isinstance(value, dict | list) and name not in _VALUES:
            inner = _named(value, depth) if name in _MAPS and isinstance(value, dict) else _with_items(value, depth + 1)
            if inner is not value:
                found = {**found, name: inner}
    if _is_array(node) and "items" not in node and "prefixItems" not in node:
        found = {**found, "items": {}}
    return found


def _named(schemas: dict[str, Any], depth: int) -> dict[str, Any]:
    """The same for a map of names to schemas, where a name is no keyword."""
    changed = {name: _with_items(inner, depth + 1) for name, inner in schemas.items()}
    return schemas if all(changed[name] is schemas[name] for name in schemas) else changed


def _is_array(node: dict[str, Any]) -> bool:
    type = node.get("type")
    return type == "array" or (isinstance(type, list) and "array" in type)
