"""A tool's JSON Schema in what Gemini takes of it.

Owns the conversion. Goes into ``parametersJsonSchema`` and ``responseJsonSchema``, which say more than the older
``parameters`` (unions, maps, numbers in ``enum``), and holds no keyword that either of both refuses, since one unknown
keyword anywhere refuses the whole request. Pure. Sources: Google's reference of responseJsonSchema, the SDK's
``types.JSONSchema``, case 22; the refusals: CLIProxyAPI#97 and #2142, vercel/ai and opencode#12295 ($ref), js-genai#806
(type), LibreChat#6971, google_workspace_mcp#1099, kibana PR#286302 (empty enum).

Invariants: every node has a type or branches; ``required`` names properties only; no ``$ref`` is left, and a schema
that contains itself, or nests without end, ends in a plain object. What has no keyword stands in the description.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from dbproxy.model import shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DEEPEST: Final = 24
_MOST_NODES: Final = 3000
_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
#: What a node may say of its values, by their type. All else becomes words.
_FORMATS: Final = {"string": ("date-time",), "number": ("float", "double"), "integer": ("int32", "int64")}
_NUMERIC: Final = ("number", "integer")
_STRUCTURE: Final = ("type", "properties", "items", "prefixItems", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
_HINTS: Final = {
    "multipleOf": "a multiple of {}",
    "pattern": "matches {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minProperties": "at least {} entries",
    "maxProperties": "at most {} entries",
    "default": "default: {}",
}
_LONGEST_HINT: Final = 120


@lru_cache(maxsize=1024)
def _converted(schema: bytes) -> dict[str, Any]:
    root = shapes.parse(schema)
    return _Converter(root).node(root)


def converted(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as Gemini takes it. Not to be changed: the same tools come with every request, so it is kept."""
    return _converted(shapes.written(schema))


def parameters(schema: dict[str, Any]) -> dict[str, Any] | None:
    """A tool's input as ``parametersJsonSchema``; None for a tool that takes nothing, which goes without."""
    found = converted(schema)
    if found.get("type") != "object":
        found = _widest([branch for branch in found.get("anyOf", ()) if branch.get("type") == "object"])
    return found if found.get("properties") or found.get("additionalProperties") else None


def _widest(branches: list[dict[str, Any]]) -> dict[str, Any]:
    """One object for all of these, since a tool's input may not be a union: every property, and what each requires."""
    properties: dict[str, Any] = {}
    for branch in branches:
        properties = {**branch.get("properties", {}), **properties}
    required = [name for name in properties if all(name in branch.get("required", ()) for branch in branches)]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


class _Converter:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MOST_NODES

    def node(self, schema: Any, depth: int = 0, above: frozenset[str] = frozenset()) -> dict[str, Any]:
        """One schema. ``above`` are the references that led here."""
        self._left -= 1
        given = shapes.mapping(schema)
        resolved = self._resolved(given, above)
        if resolved is None or self._left < 0 or depth > _DEEPEST:
            return _ended(given)
        given, above = resolved
        if isinstance(given.get("allOf"), list):
            given = self._joined(given, above)
        branches = [branch for name in ("anyOf", "oneOf") for branch in shapes.sequence(given.get(name))]
        if branches:
            given = {name: value for name, value in given.items() if name not in ("anyOf", "oneOf")}
            found = self._union(given, branches, depth, above)
            if found is not None:
                return found
        kinds, nullable = _kinds(given)
        if len(kinds) > 1:
            return _branched([self._typed(given, kind, depth, above) for kind in kinds], nullable)
        if not kinds:
            return _described({"type": "null"}, given, ()) if nullable else _anything(given)
        found = self._typed(given, kinds[0], depth, above)
        return _nullable(found) if nullable else found

    # ---- references and combinations

    def _resolved(self, given: dict[str, Any], above: frozenset[str]) -> tuple[dict[str, Any], frozenset[str]] | None:
        """The schema without its reference, None where it leads back to itself or nowhere."""
        while isinstance(name := given.get("$ref"), str):
            target = self._target(name)
            if name in above or target is None:
                return None
            above |= {name}
            given = {**target, **{key: value for key, value in given.items() if key != "$ref"}}
        return given, above

    def _target(self, reference: str) -> dict[str, Any] | None:
        head, *steps = reference.split("/")
        if head != "#":
            return None  # elsewhere, or an anchor
        value = self._root
        for step in steps:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                value = shapes.mapping(value).get(step)
        return value if isinstance(value, dict) else None

    def _joined(self, given: dict[str, Any], above: frozenset[str]) -> dict[str, Any]:
        """The schema and all of ``allOf`` as one: what both say of an object is put together, else the first counts."""
        found = {name: value for name, value in given.items() if name != "allOf"}
        waiting = [(part, above) for part in reversed(shapes.sequence(given.get("allOf")))]
        while waiting and self._left > 0:
            self._left -= 1
            inner, led = waiting.pop()
            resolved = self._resolved(shapes.mapping(inner), led)
            if resolved is None:
                continue
            part, led = resolved
            waiting.extend((deeper, led) for deeper in reversed(shapes.sequence(part.get("allOf"))))
            found = _merged(found, {name: value for name, value in part.items() if name != "allOf"})
        return found

    def _union(
        self, base: dict[str, Any], branches: list[Any], depth: int, above: frozenset[str]
    ) -> dict[str, Any] | None:
        """``anyOf`` with what stands beside it put into each branch; None if the branches only limit, which is words
        to Gemini."""
        telling = [shapes.mapping(branch) for branch in branches]
        telling = [branch for branch in telling if any(name in branch for name in _STRUCTURE)]
        if not telling:
            return None
        rest = {name: value for name, value in base.items() if name != "description"}
        kept, nullable = [], False
        for branch in telling:
            if branch.get("type") == "null" or branch.get("const", branch) is None:
                nullable = True
            else:
                found = self.node(_merged(branch, rest) if rest else branch, depth + 1, above)
                if found not in kept:
                    kept.append(found)
        if not kept:
            return _described({"type": "null"}, base, ())
        found = _branched(kept, nullable)
        return _common(found, shapes.text(base.get("description")))

    # ---- one type

    def _typed(self, given: dict[str, Any], kind: str, depth: int, above: frozenset[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"type": kind}
        hints = list(_words(given))
        if kind == "object":
            self._object(found, given, depth, above)
        elif kind == "array":
            self._array(found, given, hints, depth, above)
        elif kind in _NUMERIC:
            _bounds(found, given, hints, whole=kind == "integer")
        form = given.get("format")
        if isinstance(form, str) and form:
            if form in _FORMATS.get(kind, ()):
                found["format"] = form
            else:
                hints.append(f"format: {form}")
        _values(found, given, hints, kind)
        return _described(found, given, hints)

    def _object(self, found: dict[str, Any], given: dict[str, Any], depth: int, above: frozenset[str]) -> None:
        properties = shapes.mapping(given.get("properties"))
        if properties:
            found["properties"] = {name: self.node(value, depth + 1, above) for name, value in properties.items()}
            named = [name for name in shapes.sequence(given.get("required")) if isinstance(name, str)]
            required = [name for name in dict.fromkeys(named) if name in found["properties"]]
            if required:
                found["required"] = required
        further = given.get("additionalProperties")
        patterns = shapes.mapping(given.get("patternProperties"))
        if not isinstance(further, dict) and patterns and not properties:
            further = next(iter(patterns.values()))
        if further is False:
            found["additionalProperties"] = False
        elif isinstance(further, dict) and further:
            found["additionalProperties"] = self.node(further, depth + 1, above)

    def _array(
        self, found: dict[str, Any], given: dict[str, Any], hints: list[str], depth: int, above: frozenset[str]
    ) -> None:
        items = given.get("items")
        places = shapes.sequence(given.get("prefixItems")) or shapes.sequence(items)
        if places:
            kept: list[dict[str, Any]] = []
            for place in places:
                node = self.node(place, depth + 1, above)
                if node not in kept:
                    kept.append(node)
            found["items"] = _branched(kept, nullable=False)
        else:
            found["items"] = self.node(items, depth + 1, above)
        for name in ("minItems", "maxItems"):
            if isinstance(given.get(name), int) and not isinstance(given[name], bool) and given[name] >= 0:
                found[name] = given[name]
        if given.get("uniqueItems") is True:
            hints.append("no item twice")


def _kinds(given: dict[str, Any]) -> tuple[list[str], bool]:
    """(its types but ``null``, whether it may be null). Types that are not told are read off the other keywords."""
    told = given.get("type")
    names = [told] if isinstance(told, str) else shapes.sequence(told)
    kinds = [name.lower() for name in names if isinstance(name, str) and name.lower() in _TYPES]
    nullable = "null" in kinds or given.get("nullable") is True
    kinds = list(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if not kinds and not nullable:
        values = _allowed(given)
        if values:
            kinds = list(dict.fromkeys(_kind_of(value) for value in values if value is not None))
            nullable = any(value is None for value in values)
        else:
            kinds = [kind for kind, signs in _SIGNS.items() if any(name in given for name in signs)][:1]
    return kinds, nullable


_SIGNS: Final = {
    "object": ("properties", "additionalProperties", "patternProperties", "required"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "integer"
    return "number" if isinstance(value, float) else "array" if isinstance(value, list) else "object"


def _allowed(given: dict[str, Any]) -> list[Any]:
    """The values of ``enum`` or ``const``; none of them: everything is allowed."""
    return [given["const"]] if "const" in given else shapes.sequence(given.get("enum"))


def _values(found: dict[str, Any], given: dict[str, Any], hints: list[str], kind: str) -> None:
    values = [value for value in _allowed(given) if value is not None]
    if not values:
        return
    kept: list[Any] = []
    if kind == "string":
        # An empty text among them is refused.
        kept = list(dict.fromkeys(value for value in values if isinstance(value, str) and value))
    elif kind in _NUMERIC:
        kept = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if kept:
        found["enum"] = kept
    elif kind not in _NUMERIC:
        hints.append("one of: " + ", ".join(_shown(value) for value in values))


def _bounds(found: dict[str, Any], given: dict[str, Any], hints: list[str], *, whole: bool) -> None:
    for name, exclusive, step, words in (
        ("minimum", "exclusiveMinimum", 1, "more than"),
        ("maximum", "exclusiveMaximum", -1, "less than"),
    ):
        bound, beyond = _number(given.get(name)), given.get(exclusive)
        if beyond is True and bound is not None:  # as in the fourth draft
            beyond, bound = bound, None
        beyond = _number(beyond)
        if beyond is not None and bound is None:
            bound = int(beyond) + step if whole and float(beyond).is_integer() else beyond
            if not whole:
                hints.append(f"{words} {beyond}")
        if bound is not None:
            found[name] = bound


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _words(given: dict[str, Any]) -> Iterator[str]:
    """What has no keyword, in words."""
    for name, words in _HINTS.items():
        if name in given and given[name] is not None:
            shown = _shown(given[name])
            if len(shown) <= _LONGEST_HINT:
                yield words.format(shown)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else shapes.written(value).decode("utf-8", "replace")


def _described(found: dict[str, Any], given: dict[str, Any], hints: Iterable[str]) -> dict[str, Any]:
    for name in ("title", "description"):
        if shapes.text(given.get(name)):
            found[name] = given[name]
    said = "; ".join(hints)
    if said:
        found["description"] = f"{found['description']} ({said})" if "description" in found else f"({said})"
    return found


def _anything(given: dict[str, Any]) -> dict[str, Any]:
    """Any value: without a type Gemini refuses it."""
    found = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean", "object")]}
    return _common(found, shapes.text(given.get("description")))


def _ended(given: dict[str, Any]) -> dict[str, Any]:
    """A schema that is not followed any further."""
    kind, reference = given.get("type"), shapes.text(given.get("$ref"))
    plain = kind if kind in ("string", "number", "integer", "boolean") else "object"
    return _described({"type": plain}, given, [f"a {reference.rpartition('/')[2]}"] if reference else ())


def _common(found: dict[str, Any], text: str) -> dict[str, Any]:
    """With a description. Beside branches nothing else may stand, so the first of them tells what holds for all."""
    place = found["anyOf"][0] if "anyOf" in found else found
    words = dict.fromkeys(word for word in (text, shapes.text(place.get("description"))) if word)
    if words:
        place["description"] = " ".join(words)
    return found


def _branched(nodes: list[dict[str, Any]], nullable: bool) -> dict[str, Any]:
    """One of these. A union within it is taken apart, since it may stand alone only."""
    flat: list[dict[str, Any]] = []
    for node in nodes:
        flat.extend(one for one in node.get("anyOf", [node]) if one not in flat)
    if nullable and {"type": "null"} not in flat and not any(_takes_null(node) for node in flat):
        if len(flat) == 1:
            return _nullable(flat[0])
        flat.append({"type": "null"})
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def _takes_null(node: dict[str, Any]) -> bool:
    return "null" in node.get("type", ())


def _nullable(node: dict[str, Any]) -> dict[str, Any]:
    kind = node.get("type")
    return {**node, "type": [kind, "null"]} if isinstance(kind, str) and kind != "null" else node


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both at once: the properties of both, all that either requires; of anything else what the first says."""
    found = {**second, **first}
    for name in ("properties", "$defs", "definitions"):
        if isinstance(first.get(name), dict) and isinstance(second.get(name), dict):
            found[name] = {
                **first[name],
                **{key: value for key, value in second[name].items() if key not in first[name]},
            }
    if isinstance(first.get("required"), list) and isinstance(second.get("required"), list):
        found["required"] = [*first["required"], *second["required"]]
    return found
