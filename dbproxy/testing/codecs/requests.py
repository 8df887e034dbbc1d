"""The cases about requests: what a Messages request must look like to the other server (seed-001 section 7).

Each looks at the request as the dialect reads it, so that it says what has to arrive, not how it is spelled. Must never
import a codec.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model.codecs.request import Call, Choice, Document, Image, Result, Text, Thinking, Unroutable
from dbproxy.model.codecs.vault import join_signature
from dbproxy.testing.codecs.bench import Failed, expect, require, whole
from dbproxy.testing.codecs.case import case

if TYPE_CHECKING:
    from dbproxy.testing.codecs.bench import Bench, Written

_BILLING: Final = "x-anthropic-billing-header: cc_version=2.1.329.7b2; cc_entrypoint=cli; cch=0c0de;"
_IDENTITY: Final = "You are Claude Code, Anthropic's official CLI for Claude."
_ACCOUNT: Final = "5d8f7a3e-aaaa-bbbb-cccc-0123456789ab"
_USER: Final = json.dumps({"device_id": "d" * 64, "account_uuid": _ACCOUNT, "session_id": "e" * 36})
_PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_PDF: Final = "JVBERi0xLjQKJcOkw7zDtsOfCg=="
_LONG: Final = "mcp__a_server_with_a_very_long_name__a_tool_whose_name_is_longer_still_x1"
_TWIN: Final = _LONG[:-1] + "2"
#: What the Messages API takes as the id of a call, and most servers as the name of a tool (API facts 5.3).
_ID: Final = re.compile(r"[A-Za-z0-9_-]+\Z")


def _user(*blocks: dict[str, Any] | str) -> dict[str, Any]:
    return {"role": "user", "content": [_text(block) if isinstance(block, str) else block for block in blocks]}


def _assistant(*blocks: dict[str, Any] | str) -> dict[str, Any]:
    return {**_user(*blocks), "role": "assistant"}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _call(id: str, name: str = "Read", /, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def _result(id: str, content: Any = "done", **keys: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **keys}


def _tool(name: str = "Read", **keys: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"path": {"type": "string"}, "all": {"type": "boolean"}}}
    return {"name": name, "description": f"Does {name}", "input_schema": {**schema, "required": ["path"]}, **keys}


def _image(data: str = _PIXEL) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def _shape(written: Written) -> list[tuple[str, str]]:
    """The conversation's parts as (role and kind, what tells them apart)."""
    found = []
    for turn in written.turns:
        for part in turn.parts:
            if isinstance(part, Text | Thinking):
                found.append((f"{turn.role} {type(part).__name__.lower()}", part.text))
            elif isinstance(part, Call):
                found.append((f"{turn.role} call", part.name))
            elif isinstance(part, Result):
                found.append((f"{turn.role} result", _said(part)))
            else:
                found.append((f"{turn.role} {type(part).__name__.lower()}", ""))
    return found


def _said(result: Result) -> str:
    return "\n".join(part.text for part in result.parts if isinstance(part, Text))


def _results(written: Written) -> list[Result]:
    return [part for part in written.parts if isinstance(part, Result)]


# ---- the system prompt


@case(1, "the billing line of a system string is left out")
def _(bench: Bench) -> None:
    written = bench.write(_user("hi"), system=f"{_BILLING}\nBe brief.\nBe kind.")
    require(b"x-anthropic-billing-header" not in written.body, "the billing line was sent")
    expect("\n".join(written.seen.system), "Be brief.\nBe kind.", "the system prompt")


@case(3, "no billing block")
def _(bench: Bench) -> None:
    written = bench.write(_user("hi"), system=[_text(_BILLING), _text(_IDENTITY), _text("Be brief.")])
    require(b"x-anthropic-billing-header" not in written.body, "the billing block was sent")
    seen = "\n".join(written.seen.system)
    require(_IDENTITY in seen and seen.endswith("Be brief."), f"the system prompt lost a text: {seen!r}")


@case(3, "no cache_control")
def _(bench: Bench) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    said = {"role": "user", "content": [{**_text("hi"), **mark}]}
    written = bench.write(said, system=[{**_text(_IDENTITY), **mark}], tools=[{**_tool(), **mark}])
    require(b"cache_control" not in written.body, "cache_control was sent")
    expect((written.text, len(written.seen.tools)), (f"{_IDENTITY}\nhi", 1), "what bore the marks")


@case(4, "a system message in mid-conversation keeps its place")
def _(bench: Bench) -> None:
    written = bench.write(
        _user("one"),
        {"role": "system", "content": "NOTE"},
        _assistant("two"),
        {"role": "system", "content": []},
        _user("three"),
    )
    text = "\n".join(text for _, text in _shape(written))
    places = [text.find(word) for word in ("one", "NOTE", "two", "three")]
    require(-1 not in places, f"a text is missing: {text!r}")
    expect(places, sorted(places), "the order of the texts")


# ---- calls and results


@case(5, "text and two calls of one turn keep their order")
def _(bench: Bench) -> None:
    written = bench.write(
        _user("go"), _assistant("I look.", _call("a"), _call("b", "Bash")), _user(_result("a", "A"), _result("b", "B"))
    )
    wanted = [
        ("user text", "go"),
        ("assistant text", "I look."),
        ("assistant call", "Read"),
        ("assistant call", "Bash"),
        ("user result", "A"),
        ("user result", "B"),
    ]
    expect(_shape(written), wanted, "the conversation")
    expect([call.id for call in written.calls], [result.id for result in _results(written)], "the ids of the results")
    expect(len({call.id for call in written.calls}), 2, "how many different ids there are")


@case(5, "the input of a call arrives as it was")
def _(bench: Bench) -> None:
    given = {"path": 'ä\n"q"', "depth": {"a": [1, 2.5, None, True]}, "empty": {}}
    written = bench.write(_user("go"), _assistant(_call("a", **given)), _user(_result("a")))
    expect([call.arguments for call in written.calls], [given], "the call's input")


@case(7, "results stand before the text of their turn")
def _(bench: Bench) -> None:
    written = bench.write(_user("go"), _assistant(_call("a")), _user("and now?", _result("a", "A")))
    expect(_shape(written)[-2:], [("user result", "A"), ("user text", "and now?")], "the last turn")


@case(8, "a failed result is told from a good one")
def _(bench: Bench) -> None:
    bodies = []
    for failed in (True, False):
        written = bench.write(_user("go"), _assistant(_call("a")), _user(_result("a", "boom", is_error=failed)))
        require("boom" in _said(_results(written)[0]), "the result's text is missing")
        expect(_results(written)[0].is_error, failed, "the mark of a failed result")
        bodies.append(written.body)
    require(bodies[0] != bodies[1], "both are written alike")


@case(9, "the picture in a result arrives", "images", "results with images")
def _(bench: Bench) -> None:
    content = [_text("a screenshot"), _image()]
    written = bench.write(_user("go"), _assistant(_call("a")), _user(_result("a", content), "what is it?"))
    inside = [part for result in _results(written) for part in result.parts]
    pictures = [part for part in [*written.parts, *inside] if isinstance(part, Image)]
    expect([picture.data for picture in pictures], [_PIXEL], "the pictures")
    shape = [kind for kind, _ in _shape(written)]
    require("a screenshot" in written.text, "the result's text is missing")
    require(shape[-1] == "user text" and "user result" in shape, f"the question stands before the result: {shape}")


@case(10, "an empty result arrives as something")
def _(bench: Bench) -> None:
    for content in ("", [], [_text("")], None):
        result = _result("a", content)
        if content is None:
            del result["content"]
        written = bench.write(_user("go"), _assistant(_call("a")), _user(result))
        require(_said(_results(written)[0]).strip(), f"a result with content {content!r} has no text")


@case(11, "a tool reference in a result becomes text")
def _(bench: Bench) -> None:
    content = [{"type": "tool_reference", "tool_name": "WebFetch"}]
    written = bench.write(_user("go"), _assistant(_call("a")), _user(_result("a", content)))
    require("WebFetch" in _said(_results(written)[0]), "the tool's name is missing")


@case(12, "a call without a result gets one")
def _(bench: Bench) -> None:
    for last in ([_user("never mind")], []):
        written = bench.write(_user("go"), _assistant(_call("a"), _call("b")), _user(_result("b", "B")), *last)
        expect([result.id for result in _results(written)], [call.id for call in written.calls], "results and calls")
        expect(_said(_results(written)[1]), "B", "the result that there was")


@case(12, "a result without a call becomes text")
def _(bench: Bench) -> None:
    written = bench.write(_user(_result("lost", "found text"), "go on"))
    expect(_results(written), [], "results of calls that are not there")
    require("found text" in written.text, "the stray result's text is missing")


# ---- tools and the choice among them


def _choice(bench: Bench, choice: dict[str, Any], *names: str) -> Written:
    return bench.write(_user("go"), tools=[_tool(name) for name in names or ("Read",)], tool_choice=choice)


@case(13, "tool_choice any")
def _(bench: Bench) -> None:
    expect(_mode(_choice(bench, {"type": "any"})), ("any", ""), "the choice")


@case(13, "tool_choice of one tool, by the name that was sent")
def _(bench: Bench) -> None:
    for name in ("Bash", _LONG):
        written = _choice(bench, {"type": "tool", "name": name}, "Read", name)
        expect(_mode(written), ("tool", written.seen.tools[1].name), "the choice")


@case(13, "tool_choice auto, and none at all")
def _(bench: Bench) -> None:
    expect(_mode(_choice(bench, {"type": "auto"})), ("auto", ""), "the choice")
    expect(_mode(bench.write(_user("go"), tools=[_tool()])), ("auto", ""), "without a choice")


def _mode(written: Written) -> tuple[str, str]:
    choice = written.seen.choice or Choice()
    return choice.mode, choice.name


@case(14, "tool_choice none")
def _(bench: Bench) -> None:
    expect(_mode(_choice(bench, {"type": "none"})), ("none", ""), "the choice")


@case(15, "one call at a time")
def _(bench: Bench) -> None:
    for kind in ("auto", "any"):
        written = _choice(bench, {"type": kind, "disable_parallel_tool_use": True})
        told = written.seen.choice is not None and written.seen.choice.single
        require(told or written.translation.single, f"with {kind} parallel calls are neither forbidden nor left out")


@case(16, "no tools, no choice")
def _(bench: Bench) -> None:
    written = bench.write(_user("go"), tools=[], tool_choice={"type": "auto"})
    expect((written.seen.tools, written.seen.choice), ((), None), "tools and choice")


@case(17, "a long tool name is short upstream, and whole again in the answer")
def _(bench: Bench) -> None:
    written = bench.write(_user("go"), _assistant(_call("a", _LONG)), _user(_result("a")), tools=[_tool(_LONG)])
    name = written.seen.tools[0].name
    require(len(name) <= 64 and _ID.match(name), f"no name for a tool: {name!r}")
    expect([call.name for call in written.calls], [name], "the name in the history")
    heard = bench.hear(bench.spell(whole(0, name, {"path": "x"})), translation=written.translation)
    expect(heard.content, [("call", _LONG, {"path": "x"})], "the answer")


@case(18, "two names alike in their first 64 characters stay two")
def _(bench: Bench) -> None:
    written = bench.write(_user("go"), tools=[_tool(_LONG), _tool(_TWIN), _tool("with.dot and space")])
    names = [tool.name for tool in written.seen.tools]
    expect(len(set(names)), 3, "how many different names there are")
    require(all(len(name) <= 64 and _ID.match(name) for name in names), f"no names for tools: {names}")
    steps = [whole(number, name, {}) for number, name in enumerate(names)]
    heard = bench.hear(bench.spell(*steps), translation=written.translation)
    expect([name for _, name, _ in heard.content], [_LONG, _TWIN, "with.dot and space"], "the answer's names")


@case(19, "keys that only the Messages API knows of a tool are left out")
def _(bench: Bench) -> None:
    odd = {"type": "custom", "input_examples": [{"path": "EXAMPLE"}], "eager_input_streaming": True}
    later = _tool("Later", defer_loading=True)
    written = bench.write(_user("go"), tools=[{**_tool(), **odd}, later])
    expect([tool.name for tool in written.seen.tools], ["Read"], "the tools (one is deferred)")
    expect(written.seen.tools[0].schema.get("type"), "object", "the schema's type")
    for word in (b"input_examples", b"defer_loading", b"eager_input_streaming"):
        require(word not in written.body, f"{word.decode()} was sent")


@case(20, "a schema without properties gets some")
def _(bench: Bench) -> None:
    for schema in ({}, {"type": "object"}):
        written = bench.write(_user("go"), tools=[{"name": "Now", "input_schema": schema}])
        sent = written.seen.tools[0].schema
        expect((sent.get("type"), sent.get("properties")), ("object", {}), f"the schema for {schema}")


@case(21, "what a tool requires stays as it is")
def _(bench: Bench) -> None:
    written = bench.write(_user("go"), tools=[_tool()])
    tool = written.seen.tools[0]
    expect((tool.name, tool.description), ("Read", "Does Read"), "the tool")
    expect(tool.schema.get("required"), ["path"], "what is required")
    expect(set(tool.schema["properties"]), {"path", "all"}, "the properties")


# ---- what must not leave


@case(28, "no account id leaves")
def _(bench: Bench) -> None:
    written = bench.write(_user("hi"), metadata={"user_id": _USER})
    for secret in (_ACCOUNT, "d" * 64, "e" * 36, "account_uuid"):
        require(secret.encode() not in written.body, "something of metadata.user_id was sent as it is")


@case(29, "keys that only the Messages API knows are left out")
def _(bench: Bench) -> None:
    odd: dict[str, Any] = {
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "diagnostics": {"previous_message_id": None},
        "a_key_of_the_future": 1,
        "betas": ["x"],
        "safeguards": [{"type": "dangerous_tool_use"}],
    }
    written = bench.write(_user("hi"), **odd)
    for word in odd:
        require(word.encode() not in written.body, f"{word} was sent")


@case(30, "a picture arrives", "images")
def _(bench: Bench) -> None:
    written = bench.write(_user("what is it?", _image()))
    pictures = [part for part in written.parts if isinstance(part, Image)]
    expect([(picture.media_type, picture.data) for picture in pictures], [("image/png", _PIXEL)], "the pictures")


@case(31, "a PDF arrives", "files")
def _(bench: Bench) -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": _PDF}
    written = bench.write(_user({"type": "document", "source": source, "title": "a.pdf"}, "sum it up"))
    files = [part for part in written.parts if isinstance(part, Document)]
    expect([(file.media_type, file.data) for file in files], [("application/pdf", _PDF)], "the files")


@case(32, "what another model thought is told to nobody else")
def _(bench: Bench) -> None:
    for signature in ("ErUB" + "c2ln" * 20, join_signature("somebody-else", "c2lnc2ln"), ""):
        thought = {"type": "thinking", "thinking": "SECRET THOUGHT", "signature": signature}
        hidden = {"type": "redacted_thinking", "data": "UkVEQUNURUQ="}
        written = bench.write(_user("go"), _assistant(thought, hidden, "Hello."), _user("on"))
        for word in (b"SECRET THOUGHT", b"c2lnc2ln", b"UkVEQUNURUQ"):
            require(word not in written.body, "thinking that is not this model's own was sent")
        require("Hello." in written.text, "the text beside it is missing")


@case(36, "empty texts of the history are left out")
def _(bench: Bench) -> None:
    written = bench.write(_user("", "go"), _assistant("", _call("a")), _user(_result("a", [_text(""), _text("A")])))
    expect(_shape(written), [("user text", "go"), ("assistant call", "Read"), ("user result", "A")], "the history")


# ---- of our own


@case(77, "an upstream's own id of a call comes back to it", "ids")
def _(bench: Bench) -> None:
    for id in ("call_ab:c/1", "call_1", "\u00f6 1"):
        heard = bench.hear(bench.spell(whole(0, "Read", {}, id=id)))
        shown = heard.ids[0]
        require(_ID.match(shown), f"an id that the Messages API refuses: {shown!r}")
        written = bench.write(_user("go"), _assistant(_call(shown)), _user(_result(shown)))
        expect([call.id for call in written.calls], [id], "the id that the server gave")


# ---- of our own


@case(0, "an unknown block becomes text")
def _(bench: Bench) -> None:
    written = bench.write(_user({"type": "a_block_of_the_future", "words": "HEAR ME"}, "go"))
    require("HEAR ME" in written.text, "what the block says is missing")


@case(0, "the same request is written the same way, and the next one begins like it")
def _(bench: Bench) -> None:
    """Else no prompt cache would ever hit."""
    history = [_user("go"), _assistant("I look.", _call("a")), _user(_result("a", "A"))]
    keys = {"system": [_text(_BILLING), _text("Be brief.")], "tools": [_tool(_LONG), _tool()]}
    first, again = (bench.write(*history, **keys) for _ in range(2))
    expect(again.body, first.body, "the same request")
    longer = bench.write(*history, _assistant("Done."), _user("thanks"), **keys)
    expect(_shape(longer)[: len(_shape(first))], _shape(first), "the beginning of the next request")


@case(0, "the model, the stream and the limit are passed on")
def _(bench: Bench) -> None:
    written = bench.write(_user("hi"), max_tokens=777)
    expect(written.seen.model or bench.dialect.model, bench.dialect.model, "the model")
    expect(written.seen.max_tokens, 777, "the limit")
    expect(written.seen.stream, True, "whether it is streamed")


@case(0, "half a character does not break the request")
def _(bench: Bench) -> None:
    written = bench.write(_user("half \ud83d"), _assistant("ok \ude00"), _user("on"))
    require("half " in written.text, "the text is missing")


@case(0, "a server's own tools are refused or mapped, never sent as tools of the client")
def _(bench: Bench) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}, _tool()]
    try:
        written = bench.write(_user("go"), tools=tools)
    except Unroutable:
        return
    names = [tool.name for tool in written.seen.tools]
    if "web_search" in names:
        raise Failed("a server tool became a function that nobody runs")
