"""The page tells what is: every server, every key of a table, every capability, every event; its examples work."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from dbproxy_providers import tables
from dbproxy_providers.provider import Configured
from dbproxy_providers.servers import KINDS, SERVERS

from dbproxy.api.codecs import Capabilities, parse_target

FOLDER = Path(tables.__file__).parent
PAGE = (FOLDER.parent / "README.md").read_text("utf-8")
EXAMPLES = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
SOURCES = "".join(path.read_text("utf-8") for path in sorted(FOLDER.glob("*.py")))


def section(title: str) -> str:
    found = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, title
    return found


def test_every_example_is_a_provider_that_can_be_used():
    given = {name: table for example in EXAMPLES for name, table in example["providers"].items()}
    assert set(given) == {"ollama", "groq", "work", "azure", "gateway"}
    for name, table in given.items():
        found = tables.read_table(name, table)
        assert found.problems == (), name
        variables = dict.fromkeys(("GROQ_API_KEY", "AZURE_OPENAI_KEY", "GATEWAY_KEY"), "test-key")
        provider = Configured(found, lambda variables=variables: variables, "1")
        assert provider.unready() == "" or name == "work", name
    assert tables.read_table("ollama", given["ollama"]).models == (("qwen3*", {"context": 32768}),)


@pytest.mark.parametrize(
    "written",
    [
        "gpt-5.4",
        "gemini-3.8-flash",
        "ollama:qwen3:8b",
        "openrouter/anthropic/claude-opus-5.5",
        "claude-haiku-5-5",
        "haiku",
    ],
)
def test_every_model_on_the_page_has_a_provider(written):
    assert written in PAGE
    provider, _model = parse_target(written, SERVERS)
    assert provider in SERVERS


def test_the_table_of_servers_is_complete():
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \|$", section("Servers that need no table"), re.MULTILINE)
    assert [name for name, _, _ in rows] == list(SERVERS)
    for name, address, key in rows:
        server = SERVERS[name]
        assert tuple(re.findall(r"`([A-Z_]+)`", key)) == server.keys, name
        if name != "anthropic":
            assert f"`{server.base}`" in address
        if server.base_variable:
            assert f"`{server.base_variable}`" in address


def test_every_key_of_a_table_and_every_kind_is_told():
    told = section("Any other")
    rows = "".join(re.findall(r"^\| (`[^|]*`) \|", told, re.MULTILINE))
    assert set(re.findall(r"`([a-z_]+)`", rows)) == tables._KEYS
    assert {kind for kind in KINDS if f"`{kind}`" not in told} == set()
    assert {api for api in tables.APIS if f"`{api}`" not in told} == set()


def test_every_capability_is_named():
    told = section("Any other").partition("Of a model you may say")[2].partition(";")[0]
    assert set(re.findall(r"`([a-z_]+)`", told)) == {field.name for field in fields(Capabilities)}


def test_every_event_is_named():
    events = set(re.findall(r'\.emit\(\s*"([a-z_]+)"', SOURCES))
    assert len(events) == 2
    assert {event for event in events if f"`{event}`" not in PAGE} == set()


def test_every_refused_word_for_a_key_is_refused():
    told = section("What is sent, and what never is")
    assert {"`key`", "`api_key`"} <= set(re.findall(r"`[a-z_]+`", told))
    assert {"key", "api_key"} <= tables._LITERAL
