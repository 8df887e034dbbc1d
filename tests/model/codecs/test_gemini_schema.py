"""A tool's schema for Gemini: no keyword that refuses the whole request, and nothing lost that can be said."""

from __future__ import annotations

import time

import pytest
from foreigntalk import PATHS
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from dbproxy.model.codecs.gemini.schema import converted, parameters

#: What both of Gemini's ways to write a schema have, with additionalProperties, which the newer one has alone.
KNOWN = {
    "type",
    "format",
    "title",
    "description",
    "enum",
    "items",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "anyOf",
    "properties",
    "additionalProperties",
    "required",
}


def check(node: object) -> None:
    """Every node has known keywords only, and a type or branches; nothing else stands beside branches."""
    assert isinstance(node, dict)
    assert set(node) <= KNOWN
    assert ("type" in node) != ("anyOf" in node)
    if "anyOf" in node:
        assert set(node) == {"anyOf"}
        assert len(node["anyOf"]) > 1
    if node.get("type") == "array":
        assert "items" in node
    assert set(node.get("required", ())) <= set(node.get("properties", ()))
    assert "" not in node.get("enum", ())
    assert node.get("enum") != []
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            check(node[name])
    for inner in [*node.get("anyOf", ()), *node.get("properties", {}).values()]:
        check(inner)


def of(schema: dict) -> dict:
    found = converted(schema)
    check(found)
    types.JSONSchema.model_validate(found)
    return found


def prop(schema: object, **more: object) -> dict:
    """A property's schema, converted."""
    return of({"type": "object", "properties": {"p": schema}, **more})["properties"]["p"]


def test_case_22_gemini_takes_a_schema_with_keywords_that_it_does_not_know():
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "tool",
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 5},
            "count": {"type": "integer", "exclusiveMinimum": 0, "maximum": 10},
            "kind": {"const": "file"},
            "url": {"type": "string", "format": "uri"},
            "at": {"type": "string", "format": "date-time"},
        },
        "required": ["tags"],
        "additionalProperties": False,
    }
    assert of(schema) == {
        "type": "object",
        "properties": {
            "tags": {
                "type": "array",
                "items": {"type": "string"},
                "maxItems": 5,
                "description": "(no item twice)",
            },
            "count": {"type": "integer", "minimum": 1, "maximum": 10},
            "kind": {"type": "string", "enum": ["file"]},
            "url": {"type": "string", "description": "(format: uri)"},
            "at": {"type": "string", "format": "date-time"},
        },
        "required": ["tags"],
        "additionalProperties": False,
    }


def test_case_22_gemini_references_are_resolved():
    definitions = {"P~/Q": {"type": "object", "properties": {"x": {"type": "number"}}, "description": "a point"}}
    found = prop({"$ref": "#/$defs/P~0~1Q"}, **{"$defs": definitions})
    assert found == {"type": "object", "properties": {"x": {"type": "number"}}, "description": "a point"}
    beside = prop({"$ref": "#/definitions/T", "description": "mine"}, definitions={"T": {"type": "string"}})
    assert beside == {"type": "string", "description": "mine"}
    assert prop({"$ref": "#/properties/q"}, properties={"p": {"$ref": "#/properties/q"}, "q": {"type": "integer"}}) == {
        "type": "integer"
    }


@pytest.mark.parametrize("reference", ["#/$defs/None", "https://example.com/schema", "#anchor", "#/$defs/T/0/x"])
def test_a_reference_to_nowhere_becomes_an_object(reference):
    assert prop({"$ref": reference}, **{"$defs": {"T": {"type": "object"}}})["type"] == "object"


def test_case_22_gemini_a_schema_that_contains_itself_ends():
    tree = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
    }
    found = prop({"$ref": "#/$defs/Tree"}, **{"$defs": {"Tree": tree}})
    assert found["properties"]["children"]["items"] == {"type": "object", "description": "(a Tree)"}
    of({"$ref": "#"})
    of({"type": "object", "properties": {"self": {"$ref": "#"}}})
    prop({"$ref": "#/$defs/A"}, **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}})


def test_case_22_gemini_references_that_multiply_do_not_blow_up():
    twice = {
        f"T{n}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/T{n + 1}"} for k in "ab"}} for n in range(40)
    }
    began = time.perf_counter()
    found = prop({"$ref": "#/$defs/T0"}, **{"$defs": {**twice, "T40": {"type": "string"}}})
    assert time.perf_counter() - began < 5
    assert len(str(found)) < 1_000_000


def test_null_beside_one_type_keeps_it_one_node():
    wanted = {"type": ["string", "null"], "description": "d"}
    assert prop({"anyOf": [{"type": "string"}, {"type": "null"}], "description": "d"}) == wanted
    assert prop({"type": ["string", "null"], "description": "d"}) == wanted
    assert prop({"type": "string", "nullable": True, "description": "d"}) == wanted


def test_branches_stand_alone_and_keep_their_common_description():
    assert prop({"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}], "description": "d"}) == {
        "anyOf": [{"type": "string", "description": "d"}, {"type": "integer"}, {"type": "null"}]
    }
    assert prop({"type": ["string", "number"]}) == {"anyOf": [{"type": "string"}, {"type": "number"}]}


def test_what_stands_beside_branches_belongs_to_each():
    found = prop(
        {
            "type": "object",
            "properties": {"id": {"type": "string"}},
            "required": ["id"],
            "anyOf": [
                {"properties": {"a": {"type": "string"}}, "required": ["a"]},
                {"properties": {"b": {"type": "string"}}},
            ],
        }
    )
    assert [sorted(branch["properties"]) for branch in found["anyOf"]] == [["a", "id"], ["b", "id"]]
    assert [sorted(branch["required"]) for branch in found["anyOf"]] == [["a", "id"], ["id"]]


def test_branches_that_only_limit_are_left_out():
    found = prop({**PATHS, "oneOf": [{"required": ["path"]}, {"required": ["other"]}]})
    assert found == PATHS


def test_all_of_is_joined():
    schema = {
        "allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"b": {"type": "string"}}, "required": ["b"]}],
        "description": "both",
    }
    base = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert prop(schema, **{"$defs": {"Base": base}}) == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "required": ["a", "b"],
        "description": "both",
    }


KEYWORDS = [
    ({"enum": ["a", "", "b"]}, {"type": "string", "enum": ["a", "b"]}),
    ({"type": "string", "enum": []}, {"type": "string"}),
    ({"enum": [1, 2]}, {"type": "integer", "enum": [1, 2]}),
    ({"type": "number", "enum": [1, True, "2"]}, {"type": "number", "enum": [1]}),
    ({"enum": ["a", None]}, {"type": ["string", "null"], "enum": ["a"]}),
    ({"const": True}, {"type": "boolean", "description": "(one of: true)"}),
    (
        {"type": "number", "exclusiveMaximum": 1.5},
        {"type": "number", "maximum": 1.5, "description": "(less than 1.5)"},
    ),
    ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, {"type": "integer", "minimum": 4}),
    ({"type": "string", "pattern": "^a"}, {"type": "string", "description": "(matches ^a)"}),
    (
        {"type": "boolean", "default": False, "description": "All."},
        {"type": "boolean", "description": "All. (default: false)"},
    ),
    ({"properties": {}}, {"type": "object"}),
    (
        {"additionalProperties": {"const": 1}},
        {"type": "object", "additionalProperties": {"type": "integer", "enum": [1]}},
    ),
    ({"patternProperties": {"^x": {"type": "null"}}}, {"type": "object", "additionalProperties": {"type": "null"}}),
    ({"type": "object", "additionalProperties": True}, {"type": "object"}),
    ({"prefixItems": [{"const": "a"}, {"const": "a"}]}, {"type": "array", "items": {"type": "string", "enum": ["a"]}}),
    ({"type": "STRING"}, {"type": "string"}),
    ({"type": "string", "format": 5}, {"type": "string"}),
    ({"type": "string", "title": "T", "examples": ["x"], "deprecated": True}, {"type": "string", "title": "T"}),
]


@pytest.mark.parametrize(("schema", "found"), KEYWORDS)
def test_keyword(schema, found):
    assert prop(schema) == found


def test_any_value_has_types_all_the_same():
    for schema in ({}, True, False, None, {"description": "d"}):
        assert [branch["type"] for branch in prop(schema)["anyOf"]] == ["string", "number", "boolean", "object"]
    assert prop({"description": "d"})["anyOf"][0]["description"] == "d"
    assert "anyOf" in prop({"type": "array"})["items"]


def test_required_names_properties_only():
    assert of({**PATHS, "required": ["path", "gone", "path", 3, ["x"]]})["required"] == ["path"]
    assert "required" not in of({"type": "object", "required": ["a"]})


def test_a_property_may_be_named_like_a_keyword():
    named = {name: {"type": "string"} for name in ("$ref", "type", "enum", "properties", "anyOf", "const")}
    assert of({"type": "object", "properties": named})["properties"] == named


def test_a_tool_without_parameters_has_no_schema():
    assert parameters({"type": "object", "properties": {}}) is None
    assert parameters({"anyOf": [{"type": "string"}, {"type": "number"}]}) is None
    assert parameters(PATHS) == PATHS


def test_a_tools_input_is_one_object_even_if_it_was_a_union():
    number = {"type": "object", "properties": {"path": {"type": "integer"}, "n": {"type": "integer"}}}
    found = parameters({"type": "object", "properties": {}, "oneOf": [PATHS, {**number, "required": ["path", "n"]}]})
    assert found == {
        "type": "object",
        "properties": {"path": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["path"],
    }


def test_case_22_gemini_a_part_that_contains_its_whole_ends():
    part = {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"x": {"type": "string"}}}]}
    found = of({"type": "object", "properties": {"p": {"$ref": "#/$defs/A"}, "q": PATHS}, "$defs": {"A": part}})
    assert found["properties"]["p"]["properties"] == {"x": {"type": "string"}}
    assert found["properties"]["q"] == PATHS


def test_the_clients_schema_stays_as_it_is():
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"const": 1}, {"$ref": "#"}], "description": "d"}}}
    before = repr(schema)
    converted(schema)
    converted(schema)
    assert repr(schema) == before


_words = st.sampled_from(
    ["type", "properties", "items", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "required", "description",
     "format", "minimum", "exclusiveMinimum", "default", "additionalProperties", "prefixItems", "nullable", "#",
     "#/properties/a", "string", "object", "array", "null", "integer", "a", ""]
)  # fmt: skip
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | _words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_words, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_words, _values, max_size=6))
def test_whatever_the_schema_is_gemini_takes_it(schema):
    check(converted(schema))
