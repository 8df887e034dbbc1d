"""The page about writing a provider shows files that run: the plugin in a real proxy, its agent's requests answered."""

from __future__ import annotations

import json
import re
import sys

import page
import pytest
import trio
from blackbox import read_response, request
from parrot_dialect import ParrotDialect
from rig import open_rig

from dbproxy.api import Route, Target, hookimpl
from dbproxy.testing.codecs import WORDS
from dbproxy.testing.origin import fail, say, tool_use
from dbproxy.testing.origin.grammar import check_stream
from dbproxy.testing.providers import open_anybody

TOOL = {"name": "Read", "description": "Reads", "input_schema": {"type": "object", "properties": {}}}
ASK = {"model": "claude-haiku-4-5", "max_tokens": 64, "stream": True, "tools": [TOOL]}
SAID = say("I look.", tool_use("Read", {"path": "ä"}), usage={"input_tokens": 7, "output_tokens": 5})


class Rule:
    """Sends every message to the parrot."""

    @hookimpl
    def wants_body(self, exchange):
        return True

    @hookimpl
    def route_request(self, exchange):
        return Route((Target("parrot", "macaw-1"),), rule="all = parrot", reason="the test says so")


@pytest.fixture
def plugin(tmp_path):
    """The file in the folder for plugins, as a person puts it there."""
    folder = tmp_path / "data" / "plugins"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "parrot_provider.py").write_text((page.HERE / "parrot_provider.py").read_text())
    yield
    sys.modules.pop("parrot_provider", None)


async def ask(r, **keys):
    stream = await r.tls()
    body = json.dumps({**ASK, "messages": [{"role": "user", "content": "hi"}], **keys}).encode()
    await stream.send_all(request(body=body))
    with trio.fail_after(20):
        return await read_response(stream)


async def test_the_plugin_answers_through_the_proxy(tmp_path, monkeypatch, plugin):
    async with open_anybody(ParrotDialect(), "/squawk", SAID, field="x-parrot-key", key="parrot-key-1") as parrot:
        monkeypatch.setenv("PARROT_URL", parrot.url)
        monkeypatch.setenv("PARROT_KEY", "parrot-key-1")
        async with open_rig(tmp_path, say("from Claude"), plugins=(("rule", Rule()),), tls=False) as r:
            rows = {row.name: row for row in r.proxy.dispatch.manager.rows()}
            assert rows["parrot_provider"].state == "loaded", rows["parrot_provider"].error
            whole = check_stream((await ask(r)).body)
            assert [block["type"] for block in whole["content"]] == ["text", "tool_use"]
            assert whole["content"][1]["input"] == {"path": "ä"}
            assert (whole["model"], whole["stop_reason"]) == ("claude-haiku-4-5", "tool_use")
            assert json.loads((await ask(r, stream=False)).body)["content"][0]["text"] == "I look."
            assert r.origin.requests == []
        sent = parrot.requests[0]
        assert sent.json["lines"] == [{"by": "user", "say": "hi"}]
        assert sent.header("authorization") is None
        assert sent.header("x-api-key") is None


async def test_what_the_parrot_cannot_do_goes_to_claude(tmp_path, monkeypatch, plugin):
    async with open_anybody(ParrotDialect(), "/squawk", fail(503, "busy")) as parrot:
        monkeypatch.setenv("PARROT_URL", parrot.url)
        async with open_rig(tmp_path, say("from Claude"), plugins=(("rule", Rule()),), tls=False) as r:
            assert check_stream((await ask(r)).body)["content"][0]["text"] == "from Claude"  # it has no key
        monkeypatch.setenv("PARROT_KEY", "parrot-key-1")
        async with open_rig(tmp_path, say("from Claude"), plugins=(("rule", Rule()),), tls=False) as r:
            picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
            shown = [{"role": "user", "content": [picture]}]
            assert check_stream((await ask(r, messages=shown)).body)["content"][0]["text"] == "from Claude"
            assert parrot.requests == []
            assert check_stream((await ask(r)).body)["content"][0]["text"] == "from Claude"  # it is busy
            assert parrot.requests != []


def test_the_page_shows_the_files_as_they_are():
    assert page.with_files(page.PAGE.read_text(encoding="utf-8")) == page.PAGE.read_text(encoding="utf-8")


def test_the_page_names_every_word_of_a_dialect():
    table = re.findall(r"^\| (`.*?) \|", page.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for row in table for word in re.findall(r"`([^`]+)`", row)} == WORDS


def test_the_example_imports_the_public_surface_alone():
    for name, allowed in (("parrot_provider.py", {"api"}), ("parrot_dialect.py", {"api", "testing"})):
        found = re.findall(r"^\s*from dbproxy\.(\w+)", (page.HERE / name).read_text(), re.MULTILINE)
        assert set(found) <= allowed
