"""A provider's table: what it may hold, and what is said of what it may not; keys, out of variables and files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from dbproxy_providers.keys import KeyFile, KeySource, filled
from dbproxy_providers.servers import SERVERS
from dbproxy_providers.tables import read_table
from dbproxy_providers.urls import read_base
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.api import ProviderLimits

if TYPE_CHECKING:
    from pathlib import Path


def test_every_known_server_needs_no_table():
    for name, server in SERVERS.items():
        table = read_table(name)
        assert (table.problems, table.written, table.server, table.kind) == ((), False, server, server.kind), name
        assert read_base(server.base).host
        if server.chat:
            assert read_base(server.chat).host


def test_an_empty_table_of_a_known_server_is_as_none():
    assert read_table("openai", {}).problems == ()
    assert read_table("openai", {}).written


@pytest.mark.parametrize(
    ("name", "given", "kind", "section"),
    [
        ("openai", {}, "openai", "openai"),
        ("gemini", {}, "gemini", "gemini"),
        ("anthropic", {}, "anthropic", "anthropic"),
        ("ollama", {}, "messages", "ollama"),
        ("ollama-cloud", {}, "messages", "ollama"),
        ("ollama", {"api": "chat"}, "compatible", "ollama"),
        ("openrouter", {"kind": "compatible"}, "compatible", "openrouter"),
        ("gemini", {"kind": "compatible"}, "compatible", "compatible"),
        ("groq", {"base_url": "https://api.groq.com/openai/v1"}, "compatible", "compatible"),
        ("work", {"kind": "openai", "key_env": "WORK_KEY"}, "openai", "openai"),
        ("gateway", {"kind": "messages", "base_url": "https://gw.example"}, "messages", "messages"),
    ],
)
def test_what_a_provider_is(name, given, kind, section):
    table = read_table(name, given)
    assert (table.problems, table.kind, table.section) == ((), kind, section)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("openai", "sk", "[providers.openai] must be a table"),
        ("openai", {"bse_url": "x"}, "did you mean base_url?"),
        ("openai", {"colour": "x"}, "knows no 'colour': it may hold api, base_url"),
        ("openai", {"kind": "chat"}, "kind in [providers.openai] must be one of openai, gemini"),
        ("openai", {"api": "messages"}, "api in [providers.openai] must be one of auto, chat, responses"),
        ("gemini", {"api": "chat"}, "api in [providers.gemini] is for the kinds openai and compatible: remove it"),
        ("openai", {"base_url": 7}, "base_url in [providers.openai]"),
        ("openai", {"base_url": "ftp://x"}, "only http:// and https://"),
        ("groq", {}, "no address: set base_url in [providers.groq]"),
        ("openai", {"key_env": "A", "key_file": "/b"}, "both key_env and key_file"),
        ("openai", {"key_file": "key.txt"}, "key_file in [providers.openai] must be a whole path"),
        ("openai", {"key_env": "not-a-name"}, "must be the name of a variable, not its value"),
        ("openai", {"headers": []}, "headers in [providers.openai] must be a table"),
        ("openai", {"headers": {"a b": "c"}}, "has a name that no header may have"),
        ("openai", {"headers": {"Content-Length": "1"}}, "is the sender's business"),
        ("openai", {"headers": {"x": "a\r\ny: b"}}, "must be a text on one line"),
        ("openai", {"headers": {"x": 1}}, "must be a text on one line"),
        ("anthropic", {"headers": {"x": "y"}}, "would go nowhere"),
        ("openai", {"models": []}, "models in [providers.openai] must be a table of tables"),
        ("openai", {"models": {"gpt-x": 1}}, '[providers.openai.models."gpt-x"] must be a table'),
        ("openai", {"models": {"gpt-x": {"contxt": 1}}}, "unknown capability 'contxt'"),
        ("openai", {"connect_timeout": 0}, "connect_timeout in [providers.openai] must be a time in seconds"),
        ("openai", {"first_byte_timeout": "soon"}, "first_byte_timeout"),
        ("openai", {"silence_timeout": True}, "silence_timeout"),
        ("openai", {"silence_timeout": 10**400}, "silence_timeout"),
        ("openai", {"retries": -1}, "retries in [providers.openai] must be a whole number, 0 or more"),
        ("openai", {"failures": 0}, "failures in [providers.openai] must be a whole number, 1 or more"),
        ("openai", {"cooldown": -1}, "cooldown"),
        ("my server", {"base_url": "https://x.example"}, "the name 'my server' may hold letters"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(name, given, said):
    table = read_table(name, given)
    assert any(said in problem for problem in table.problems), table.problems


@pytest.mark.parametrize("word", ["key", "api_key", "API_KEY", "token", "secret"])
def test_a_key_in_the_settings_is_refused_with_advice_and_not_repeated(word):
    table = read_table("openai", {word: "hidden-word"})
    said = "; ".join(table.problems)
    assert "key_env" in said
    assert "key_file" in said
    assert "hidden-word" not in said
    assert "hidden-word" not in repr(table)


def test_a_credential_in_a_header_is_refused_unless_it_comes_from_a_variable():
    for name in ("Authorization", "x-api-key", "Cookie"):
        assert any(
            "credential" in problem for problem in read_table("openai", {"headers": {name: "hidden-word"}}).problems
        )
        table = read_table("openai", {"headers": {name: "Bearer ${MY_KEY}"}})
        assert (table.problems, table.brings_credential) == ((), True)


def test_several_things_may_be_wrong_at_once():
    problems = read_table("x", {"kind": "y", "key": "z", "retries": "many"}).problems
    assert len(problems) == 4
    assert "no address" in problems[1]


def test_patience_as_numbers_or_as_s1_wrote_it():
    given = {"connect_timeout": 5, "first_byte_timeout": "10m", "silence_timeout": "600", "cooldown": 0, "retries": 0}
    table = read_table("openai", {**given, "failures": 2})
    assert table.problems == ()
    assert table.limits == ProviderLimits(5.0, 600.0, 600.0, retries=0, failures=2, cooldown=0.0)


def test_a_server_nearby_gets_more_time():
    assert read_table("ollama").limits.first_byte == 600.0
    assert read_table("x", {"base_url": "gpu-box:8000"}).limits.first_byte == 600.0
    assert read_table("x", {"base_url": "api.example.com"}).limits == ProviderLimits()
    assert read_table("ollama", {"first_byte_timeout": 3}).limits.first_byte == 3.0


def test_a_usual_variable_belongs_to_its_server_and_to_none_other():
    assert read_table("openai").key.variables == ("OPENAI_API_KEY",)
    assert read_table("openai", {"base_url": "http://localhost:1"}).key.variables == ("OPENAI_API_KEY",)
    assert read_table("work", {"kind": "openai"}).key.variables == ("OPENAI_API_KEY",)
    assert read_table("other", {"kind": "openai", "base_url": "https://other.example"}).key.variables == ()
    assert read_table("other", {"base_url": "https://other.example"}).key.variables == ()
    assert read_table("anthropic").key.variables == ()


@given(
    st.text(max_size=12),
    st.dictionaries(
        st.sampled_from(
            ["kind", "base_url", "api", "key_env", "key_file", "headers", "models", "retries", "cooldown", "x"]
        ),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=12)
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(
            st.text(max_size=6), st.text(max_size=6) | st.dictionaries(st.text(max_size=6), st.integers())
        ),
    ),
)
def test_no_table_raises(name, given):
    table = read_table(name, given)
    assert table.name == name
    assert all(isinstance(problem, str) and problem for problem in table.problems)


# ---- keys


def test_the_first_variable_that_is_set_counts():
    source = KeySource(("A_KEY", "B_KEY"))
    assert source.read({"B_KEY": " k-b \n"}).key == "k-b"
    assert source.read({"A_KEY": "k-a", "B_KEY": "k-b"}).key == "k-a"
    assert source.read({"A_KEY": " "}) == source.read({})
    assert (source.read({}).key, source.read({}).problem) == ("", "")


def test_a_variable_that_was_chosen_must_be_set():
    assert "the variable A_KEY is not set" in KeySource(("A_KEY",), chosen=True).read({}).problem
    # A key that was written where its variable's name belongs is not repeated.
    assert "AIzaHidden" not in KeySource(("AIzaHidden",), chosen=True).read({}).problem


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "k\u00e9y", "k\x00"])
def test_a_key_is_one_word(value):
    found = KeySource(("A_KEY",)).read({"A_KEY": value})
    assert found.key == ""
    assert "A_KEY" in found.problem
    assert value not in found.problem


def test_a_file_is_read_again_when_it_changed(tmp_path: Path):
    path = tmp_path / "key"
    source = KeyFile(path)
    assert "cannot be read: No such file" in source.read().problem
    path.write_text("  first-key \n")
    assert source.read().key == "first-key"
    path.write_text("second-key-of-another-length")
    assert source.read().key == "second-key-of-another-length"
    other = tmp_path / "other"
    other.write_text("third-key-of-another-length!")
    os.replace(other, path)
    assert source.read().key == "third-key-of-another-length!"
    path.unlink()
    assert source.read().problem
    path.write_text("")
    assert "is empty" in source.read().problem
    path.write_text("a key with words")
    assert "holds more than a key" in source.read().problem
    path.write_text("k" * 20_000)
    assert "no small regular file" in source.read().problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_is_no_file_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert "no small regular file" in KeyFile(tmp_path / "pipe").read().problem
    assert "cannot be read" in KeyFile(tmp_path).read().problem


@pytest.mark.skipif(os.name != "posix", reason="no such permissions here")
def test_a_file_that_others_can_read_is_warned_about(tmp_path: Path):
    path = tmp_path / "key"
    path.write_text("some-key")
    path.chmod(0o600)
    assert KeyFile(path).warning() == ""
    path.chmod(0o640)
    assert f"chmod 600 {path}" in KeyFile(path).warning()
    assert KeyFile(path).read().key == "some-key"
    assert KeyFile(tmp_path / "none").warning() == ""


def test_a_header_takes_variables():
    assert filled("Bearer ${A}-${B}", {"A": "x ", "B": "y"}) == ("Bearer x-y", ("x", "y"), "")
    assert filled("plain $A", {}) == ("plain $A", (), "")
    assert filled("${A}", {})[2] == "the variable A is not set"
    assert "no header may" in filled("${A}", {"A": "x\r\ny: z"})[2]
