"""A Messages body read for other models: what was said, in a history that every other dialect can take."""

from __future__ import annotations

import itertools
import json

import pytest
from asking import ask, tool_result, tool_use, user
from asking import assistant as said
from chattalk import READ
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.model.codecs.estimate import prompt_tokens
from dbproxy.model.codecs.request import (
    INTERRUPTED,
    NO_OUTPUT,
    Call,
    Choice,
    Document,
    Image,
    Result,
    ServerTool,
    Text,
    Thinking,
    Tool,
    Turn,
    Unroutable,
    media,
    read_request,
    result_text,
)

BILLING = "x-anthropic-billing-header: cc_version=2.1.329.7b2; cch=abcde;"


def test_the_user_s_e_mail_address_goes_to_nobody_else():
    context = "# claudeMd\nBe brief.\n# userEmail\nThe user's email address is me@example.org.\n# currentDate\nToday."
    reminder = f"<system-reminder>\n{context}\n</system-reminder>"
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": reminder + " # userEmail?"}]}).encode()
    request = read_request(body)
    assert request.turns[0].parts[0].text == (
        "<system-reminder>\n# claudeMd\nBe brief.\n# currentDate\nToday.\n</system-reminder> # userEmail?"
    )
    assert b"example.org" not in json.dumps(request.raw).encode()
    assert request.body == body


def _read(*messages, **fields):
    return read_request(json.dumps(ask(*messages, **fields)).encode())


def _turns(*messages):
    return [(turn.role, turn.parts) for turn in _read(*messages).turns]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"messages":{}}', b"{" * 100_000, b'{"messages":[' + b"[" * 100_000]
)
def test_what_is_no_request_is_unroutable(body):
    with pytest.raises(Unroutable):
        read_request(body)


def test_a_request_says_what_was_asked():
    request = _read(
        user("hi"),
        system="Be brief.",
        temperature=0.5,
        top_p=1,
        top_k=5,
        stop_sequences=["END", "", 5],
        speed="fast",
        thinking={"type": "enabled", "budget_tokens": 2000},
    )
    assert request.model == "claude-sonnet-5-5"
    assert (request.stream, request.max_tokens, request.system) == (True, 1000, ("Be brief.",))
    assert (request.temperature, request.top_p, request.top_k, request.stop) == (0.5, 1, 5, ("END",))
    assert (request.service_tier, request.effort, request.budget) == ("priority", "medium", 2000)
    assert request.turns == (Turn("user", (Text("hi"),)),)
    assert request.size == len(request.body)


@pytest.mark.parametrize("value", ["5", True, None, [], {}])
def test_what_has_another_type_is_absent(value):
    request = _read(
        user("hi"), max_tokens=value, temperature=value, top_k=value, system=value and [value], metadata=value
    )
    assert (request.max_tokens, request.temperature, request.top_k, request.user) == (None, None, None, "")


def test_an_infinite_number_is_absent():
    request = read_request(b'{"messages":[],"temperature":1e999,"top_k":1e999,"max_tokens":1e999}')
    assert (request.temperature, request.top_k, request.max_tokens) == (None, None, None)


# ---- the system prompt


@pytest.mark.parametrize(
    ("system", "texts"),
    [
        (f"{BILLING}\nBe brief.", ("Be brief.",)),
        (f"{BILLING}\n\nBe brief.\nBe kind.", ("Be brief.\nBe kind.",)),
        (BILLING, ()),
        ("Be brief.", ("Be brief.",)),
        ([{"type": "text", "text": BILLING}, {"type": "text", "text": "a"}, {"type": "text", "text": ""}], ("a",)),
        (None, ()),
    ],
)
def test_case_1_and_3_the_billing_line_is_gone(system, texts):
    assert _read(user("hi"), system=system).system == texts


# ---- turns


def test_neighbours_of_one_role_are_one_turn():
    assert _turns(user("a"), user("b"), said("c"), said("d")) == [
        ("user", (Text("a"), Text("b"))),
        ("assistant", (Text("c"), Text("d"))),
    ]


def test_case_36_empty_texts_and_messages_are_gone():
    assert _turns(user("", "a"), said(""), {"role": "system", "content": []}, user("b")) == [
        ("user", (Text("a"), Text("b")))
    ]


def test_case_4_a_system_message_keeps_its_place():
    turns = _turns(user("a"), {"role": "system", "content": "s"}, said("b"))
    assert [role for role, _ in turns] == ["user", "system", "assistant"]


def test_thinking_keeps_its_signature_and_what_is_encrypted_is_left_out():
    thinking = {"type": "thinking", "thinking": "hm", "signature": "EqQ"}
    turns = _turns(user("a"), said(thinking, {"type": "redacted_thinking", "data": "x"}, "b"))
    assert turns[1][1] == (Thinking("hm", "EqQ"), Text("b"))


def test_calls_are_followed_by_exactly_their_results_in_their_order():
    turns = _turns(
        user("a"),
        said(tool_use("t1"), tool_use("t2")),
        {"role": "system", "content": "between"},
        user("before", tool_result("t2", "two"), "after", tool_result("t1", "one")),
    )
    assert turns[2] == ("user", (Result("t1", "Read", (Text("one"),)), Result("t2", "Read", (Text("two"),))))
    assert turns[3] == ("system", (Text("between"),))
    assert turns[4] == ("user", (Text("before"), Text("after")))


def test_case_12_a_call_without_a_result_gets_one():
    turns = _turns(user("a"), said(tool_use("t1")), said("b"))
    # The two turns of the assistant are one, as the API itself takes them.
    assert turns[-1] == ("user", (Result("t1", "Read", (Text(INTERRUPTED),), is_error=True),))


def test_a_result_that_comes_twice_counts_once():
    turns = _turns(user("a"), said(tool_use("t1")), user(tool_result("t1", "one"), tool_result("t1", "two")))
    assert turns[-1] == ("user", (Result("t1", "Read", (Text("one"),)),))


def test_a_result_without_a_call_is_text():
    assert [part.text for part in _turns(user(tool_result("t9", "lost")))[0][1]][-1] == "lost"


@pytest.mark.parametrize("content", [None, [], "", [{"type": "text", "text": ""}]])
def test_case_10_an_empty_result_has_a_placeholder(content):
    turns = _turns(user("a"), said(tool_use("t1")), user(tool_result("t1", content)))
    assert turns[2][1][0].parts == (Text(NO_OUTPUT),)


def test_a_history_that_ends_with_the_assistant_is_a_prefill():
    assert "prefill" in _read(user("a"), said("{")).features
    assert "prefill" not in _read(user("a")).features


# ---- blocks

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("block", "part", "feature"),
    [
        (IMAGE, Image("image/jpeg", "AAAA"), "images"),
        (
            {"type": "image", "source": {"type": "url", "url": "https://a.example"}},
            Image(url="https://a.example"),
            "images",
        ),
        (
            {"type": "document", "title": "T", "source": {"type": "base64", "data": "BBBB"}},
            Document("application/pdf", "BBBB", title="T"),
            "documents",
        ),
        ({"type": "document", "source": {"type": "url", "url": "u"}}, Document(url="u"), "documents"),
        ({"type": "document", "source": {"type": "text", "data": "text"}}, Text("text"), None),
        (
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}},
            Text("x"),
            None,
        ),
        (
            {"type": "image", "source": {"type": "file", "file_id": "f1"}},
            Text("[image that was uploaded: f1]"),
            "files",
        ),
        ({"type": "tool_reference", "tool_name": "Web"}, Text("[Loaded tool: Web]"), None),
        (
            {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "x"}]},
            Text("[T] S\nx"),
            None,
        ),
        ({"type": "web_search_tool_result", "content": [{"title": "T", "url": "U"}]}, Text("T <U>"), None),
        ({"type": "web_search_tool_result", "content": {"error_code": "e"}}, Text("[web search failed: e]"), None),
        ({"type": "mcp_tool_use", "name": "n", "input": {"a": 1}}, Text('[n: {"a":1}]'), None),
        ({"type": "mcp_tool_result", "content": [{"type": "text", "text": "x"}]}, Text("x"), None),
        ({"type": "bash_code_execution_tool_result", "content": {"stdout": "x"}}, Text('{"stdout":"x"}'), None),
        ({"type": "compaction", "content": "summary"}, Text("summary"), None),
        ({"type": "hologram", "of": 1, "cache_control": {}}, Text('{"type":"hologram","of":1}'), None),
    ],
)
def test_blocks_are_read_and_what_only_some_can_do_is_named(block, part, feature):
    request = _read(user("a", block))
    assert request.turns[0].parts == (Text("a"), part)
    assert request.features == (frozenset() if feature is None else {feature})
    if not isinstance(part, Text) or feature is None:
        inside = _read(user("a"), said(tool_use("t1")), user(tool_result("t1", [block])))
        assert inside.turns[2].parts[0].parts == (part,)


def test_a_result_is_told_as_one_text_and_its_pictures_apart():
    result = Result("t1", "Read", (Text("a"), Image("image/png", "A"), Text("b"), Document()), is_error=True)
    assert result_text(result) == "Error: a\n\n[image: see the next message]\n\nb\n\n[file: see the next message]"
    assert [part for _, part in media([result])] == [Image("image/png", "A"), Document()]


# ---- tools


def _tools(*tools, messages=()):
    return _read(*(messages or [user("a")]), tools=list(tools))


def test_case_19_and_20_tools_have_an_object_s_schema_of_their_own():
    request = _tools(
        {"type": "custom", "name": "A", "input_schema": {}, "input_examples": [1], "strict": True},
        {"name": "B", "description": "b", "input_schema": {"type": "object", "properties": {"x": {}}}, "strict": "yes"},
        {"name": "A", "input_schema": {"type": "object"}},
        {"name": "", "input_schema": {}},
        {"name": "no schema"},
        "nonsense",
    )
    assert request.tools == (
        Tool("A", "", {"type": "object", "properties": {}}, True),
        Tool("B", "b", {"type": "object", "properties": {"x": {}}}),
    )


def test_a_deferred_tool_is_shown_once_the_history_brings_it_in():
    deferred = READ | {"name": "Web", "defer_loading": True}
    assert [tool.name for tool in _tools(READ, deferred).tools] == ["Read"]
    loaded = (
        user("a"),
        said(tool_use("t1")),
        user(tool_result("t1", [{"type": "tool_reference", "tool_name": "Web"}])),
    )
    assert [tool.name for tool in _tools(READ, deferred, messages=loaded).tools] == ["Read", "Web"]


def test_tools_come_and_go_in_the_middle():
    messages = (
        user("a", {"type": "tool_removal", "tool_name": "Read"}),
        user({"type": "tool_addition", "tool": {"name": "New", "input_schema": {}}}, "b"),
    )
    request = _tools(READ, messages=messages)
    assert [tool.name for tool in request.tools] == ["New"]
    assert request.turns[0].parts == (Text("a"), Text("b"))


def test_tools_that_others_run_are_named():
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3, "cache_control": {}}
    request = _tools(search, {"type": "bash_20250124", "name": "bash"})
    assert request.server_tools == (
        ServerTool(
            "web_search_20250305", "web_search", {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
        ),
    )
    assert request.features == {"server tool web_search", "client tool bash_20250124"}


@pytest.mark.parametrize(
    ("given_", "choice"),
    [
        ({"type": "auto"}, Choice()),
        ({"type": "any", "disable_parallel_tool_use": True}, Choice("any", single=True)),
        ({"type": "tool", "name": "Read"}, Choice("tool", "Read")),
        ({"type": "none"}, Choice("none")),
        ({"type": "perhaps"}, None),
        ("auto", None),
        (None, None),
    ],
)
def test_the_choice_among_tools(given_, choice):
    assert _read(user("a"), tools=[READ], tool_choice=given_).choice == choice


@pytest.mark.parametrize("key", ["thread", "mcp_servers", "container"])
def test_what_only_the_messages_api_has_is_named(key):
    assert key.replace("_", " ") in _read(user("a"), **{key: {"type": "create"}}).features
    assert not _read(user("a"), **{key: {}}).features


# ---- who asks


def test_case_28_users_and_sessions_are_digests():
    given_ = json.dumps({"device_id": "d", "account_uuid": "account-1", "session_id": "session-1"})
    request = _read(user("a"), metadata={"user_id": given_})
    assert request.user
    assert request.session
    assert request.user != request.session
    for digest in (request.user, request.session):
        assert len(digest) <= 64
        assert digest.isalnum()
    assert _read(user("b"), metadata={"user_id": given_}).session == request.session
    assert _read(user("b")).session == ""


def test_a_schema_for_the_answer():
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert _read(user("a"), output_config={"format": form}).schema == {"type": "object"}
    assert _read(user("a"), output_config={"format": {"type": "text"}}).schema is None


# ---- anything

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
KINDS = (
    "text",
    "image",
    "document",
    "thinking",
    "tool_use",
    "tool_result",
    "tool_reference",
    "tool_addition",
    "mcp_tool_use",
)


def _odd(strategy):
    return st.one_of(strategy, strategy, strategy, JSON)


SOURCE = st.fixed_dictionaries(
    {}, optional={"type": _odd(st.sampled_from(["base64", "url", "file", "text"])), "data": JSON}
)
BLOCK = st.fixed_dictionaries(
    {"type": _odd(st.sampled_from(KINDS))},
    optional={
        "text": _odd(st.text(max_size=3)),
        "id": _odd(st.sampled_from(["t1", "t2"])),
        "tool_use_id": _odd(st.sampled_from(["t1", "t2"])),
        "name": _odd(st.just("Read")),
        "input": _odd(st.just({})),
        "content": _odd(st.text(max_size=3)),
        "source": _odd(SOURCE),
        "tool": JSON,
    },
)
MESSAGES = st.lists(
    _odd(
        st.fixed_dictionaries(
            {
                "role": _odd(st.sampled_from(["user", "assistant", "system"])),
                "content": _odd(st.lists(_odd(BLOCK), max_size=4)),
            }
        )
    ),
    max_size=6,
)
BODIES = st.fixed_dictionaries(
    {"messages": MESSAGES},
    optional=dict.fromkeys(
        ("system", "tools", "tool_choice", "metadata", "thinking", "output_config", "top_k", "stop_sequences"), JSON
    ),
)


@given(BODIES)
def test_any_history_becomes_one_that_every_dialect_can_take(body):
    request = read_request(json.dumps(body).encode())
    turns = request.turns
    for turn in turns:
        assert turn.parts
        assert all(part.text for part in turn.parts if isinstance(part, Text))
    for before, after in itertools.pairwise(turns):
        assert before.role != after.role
    for at, turn in enumerate(turns):
        calls = list(dict.fromkeys(part.id for part in turn.parts if isinstance(part, Call)))
        results = [part.id for part in turn.parts if isinstance(part, Result)]
        if turn.role == "assistant":
            assert not results
        if calls:
            following = turns[at + 1]
            assert following.role == "user"
            assert [part.id for part in following.parts[: len(calls)]] == calls
        elif results:
            assert any(isinstance(part, Call) for part in turns[at - 1].parts)
    assert prompt_tokens(request) >= 1
