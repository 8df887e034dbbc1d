"""Settings of the seeds' routers: mappings, providers and keys on their way into our own files."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.config import SettingsError, load
from dbproxy.config.legacy import convert, import_file, to_toml
from dbproxy.config.seeds import seconds
from dbproxy.errors import ConfigError

SECRET = "sk-" + "not-a-real-key-1"  # an obvious dummy

# The examples of seed 001's page, section Configuration.
BASIC = """\
server:
  port: 3001

providers:
  anthropic:
    base_url: "https://api.anthropic.com"
    
  openai: # if enabling subagent routing
    api_key: "your-openai-key"  # Or set OPENAI_API_KEY env var

storage:
  db_path: "requests.db"
"""  # noqa: W293 - as it stands there
ENABLING = """\
subagents:
  enable: true  # Set to true to enable subagent routing
  mappings:
    code-reviewer: "gpt-4o"
    data-analyst: "o3"
    doc-writer: "gpt-3.5-turbo"
"""
EXAMPLES = {
    1: """\
# config.yaml
subagents:
  enable: true
  mappings:
    code-reviewer: "gpt-4o"
""",
    2: """\
# config.yaml
subagents:
  enable: true
  mappings:
    deep-reasoning: "o3"
""",
    3: """\
# config.yaml
subagents:
  enable: true
  mappings:
    streaming-systems-engineer: "o3"
    frontend-developer: "gpt-4o-mini"
    security-auditor: "gpt-4o"
""",
}
RULES = {
    1: {"code-reviewer": "gpt-4o"},
    2: {"deep-reasoning": "o3"},
    3: {"streaming-systems-engineer": "o3", "frontend-developer": "gpt-4o-mini", "security-auditor": "gpt-4o"},
}
CONTAINER = """\
PORT=8080
WEB_PORT=3000
READ_TIMEOUT=600
WRITE_TIMEOUT=10m
IDLE_TIMEOUT=600
ANTHROPIC_FORWARD_URL=https://api.anthropic.com
ANTHROPIC_VERSION=2023-06-01
ANTHROPIC_MAX_RETRIES=3
DB_PATH=/app/data/custom.db
SUBAGENT_MAPPINGS="code-reviewer:gpt-4o,data-analyst:o3"
"""
FORK = """\
server:
  port: "8001"
  timeouts:
    read: 10m
    write: "600"
    idle: 1h30m
providers:
  anthropic:
    format: anthropic
    base_url: https://api.anthropic.com
    version: "2023-06-01"
    max_retries: 3
  openai:
    format: openai
    base_url: https://api.openai.com
    api_key: ${OPENAI_API_KEY}
    max_retries: 2
    fallback_provider: anthropic
    circuit_breaker:
      enabled: true
      max_failures: 5
      timeout: "30s"
  gemini:
    format: openai
    base_url: https://generativelanguage.googleapis.com/v1beta/openai
    api_key: $GEMINI_API_KEY
  local:
    format: openai
    base_url: "localhost:1234"
    circuit_breaker:
      enabled: false
      timeout: 1500ms
  llama.cpp:
    format: anthropic
    base_url: http://localhost:8080
subagents:
  mappings:
    code-reviewer: "openai:gpt-4o"
    "my-plugin:explorer": "gemini:gemini-2.5-flash"
routing:
  preferences:
    default: cost
"""


@pytest.fixture
def env(tmp_path):
    return {"HOME": str(tmp_path)}


@pytest.fixture
def target(tmp_path):
    return tmp_path / ".config" / "dbproxy" / "config.toml"


def converted(text):
    return convert(text, Path("/old"))


def reasons(found):
    return dict(line.split(": ", 1) for line in found.skipped)


def taken(text, tmp_path, env, **how):
    (tmp_path / "old.yaml").write_text(text)
    return import_file(tmp_path / "old.yaml", env, **how)


def test_the_basic_setup_of_the_page():
    found = converted(BASIC)
    assert found.settings == {"listen": ["127.0.0.1:3001"], "upstream_url": "https://api.anthropic.com"}
    assert reasons(found) == {
        "providers.openai.api_key": "a placeholder stands there, no key",
        "storage.db_path": "the record is a new database in the data directory",
    }
    assert found.keys == {}


def test_the_mappings_of_the_page():
    found = converted(ENABLING)
    assert found.settings == {
        "routes": {"code-reviewer": "gpt-4o", "data-analyst": "o3", "doc-writer": "gpt-3.5-turbo"}
    }
    assert found.skipped == []


@pytest.mark.parametrize("number", EXAMPLES)
def test_the_practical_examples_of_the_page(number, tmp_path, env, target):
    done = taken(EXAMPLES[number], tmp_path, env)
    assert (done.skipped, done.noted) == ((), ())
    assert load({}, env, None).settings.routes.plain() == RULES[number]
    assert target.read_text().startswith("# Taken over from old.yaml\n[routes]\n")


def test_the_container_variables_of_the_page():
    found = converted(CONTAINER)
    assert found.settings == {
        "listen": ["127.0.0.1:8080"],
        "client_idle_timeout": 600,
        "upstream_url": "https://api.anthropic.com",
        "routes": {"code-reviewer": "gpt-4o", "data-analyst": "o3"},
    }
    assert set(reasons(found)) == {
        "WEB_PORT", "READ_TIMEOUT", "WRITE_TIMEOUT", "ANTHROPIC_VERSION", "ANTHROPIC_MAX_RETRIES", "DB_PATH",
    }  # fmt: skip
    assert "no such setting" not in " ".join(found.skipped)


def test_a_file_of_the_fork():
    found = converted(FORK)
    assert found.settings == {
        "listen": ["127.0.0.1:8001"],
        "client_idle_timeout": 5400,
        "upstream_url": "https://api.anthropic.com",
        "routes": {"code-reviewer": "openai:gpt-4o", "my-plugin:explorer": "gemini:gemini-2.5-flash"},
        "providers": {
            "openai": {
                "base_url": "https://api.openai.com",
                "key_env": "OPENAI_API_KEY",
                "retries": 2,
                "failures": 5,
                "cooldown": 30,
            },
            "gemini": {
                "kind": "compatible",
                "base_url": "https://generativelanguage.googleapis.com/v1beta/openai",
                "key_env": "GEMINI_API_KEY",
            },
            "local": {"kind": "compatible", "base_url": "localhost:1234", "cooldown": 1.5},
            "llama.cpp": {"kind": "messages", "base_url": "http://localhost:8080"},
        },
    }
    assert set(reasons(found)) == {
        "server.timeouts.read",
        "server.timeouts.write",
        "providers.anthropic.version",
        "providers.anthropic.max_retries",
        "providers.openai.fallback_provider",
        "providers.local.circuit_breaker.enabled",
        "routing.preferences.default",
    }
    assert "no such setting" not in " ".join(found.skipped)


@pytest.mark.parametrize("word", ["false", "no", "off", '"false"', "False"])
def test_mappings_that_are_switched_off_are_left_out_and_said(word):
    found = converted(ENABLING.replace("true  #", f"{word}  #"))
    assert found.settings == {}
    (line,) = found.skipped
    assert line == "subagents.mappings: switched off by subagents.enable: code-reviewer, data-analyst, doc-writer"


def test_mappings_without_the_switch_count():
    found = converted("subagents:\n  mappings:\n    a: gpt-4o\n")
    assert found.settings == {"routes": {"a": "gpt-4o"}}


@pytest.mark.parametrize("mapping", ["{ a: gpt-4o, 'b:c': \"o3\" }", "{a: gpt-4o, 'b:c': o3}  # here"])
def test_mappings_on_one_line(mapping):
    found = converted(f"subagents:\n  mappings: {mapping}\n")
    assert found.settings == {"routes": {"a": "gpt-4o", "b:c": "o3"}}


@pytest.mark.parametrize("mapping", ["{ a: [x, y] }", "{ a: 'x, y' }", "{ a }", "[a, b]", "{ a: b"])
def test_what_is_no_plain_mapping_is_left_out(mapping):
    found = converted(f"subagents:\n  mappings: {mapping}\n")
    assert found.settings == {}
    assert list(reasons(found)) == ["subagents.mappings"]


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("subagents:\n  mappings:\n    a: ${MODEL}\n", "subagents.mappings.a", "refers to a variable"),
        ("SUBAGENT_MAPPINGS=nonsense\n", "SUBAGENT_MAPPINGS", "expected NAME:MODEL pairs"),
        ("providers:\n  x:\n    base_url: ${URL}\n", "providers.x.base_url", "refers to a variable"),
        (f"providers:\n  x:\n    base_url: https://me:{SECRET}@h\n", "providers.x", "must not hold a key"),
        ("providers:\n  x:\n    format: soap\n", "providers.x.format", "known formats are openai and anthropic"),
        ("providers:\n  x:\n    max_retries: many\n", "providers.x.max_retries", "expected a whole number"),
        ("providers:\n  x:\n    circuit_breaker.timeout: s\n", "providers.x.circuit_breaker.timeout", "as 30s or 600"),
        ("providers:\n  x:\n    colour: red\n", "providers.x.colour", "no such setting"),
        ("providers:\n  'a b':\n    base_url: http://h\n", "providers.a b.base_url", "a provider's name holds"),
        (f"providers:\n  anthropic:\n    api_key: {SECRET}\n", "providers.anthropic.api_key", "the client's own"),
        ("providers:\n  anthropic:\n    format: openai\n", "providers.anthropic.format", "no such setting"),
        (f"ANTHROPIC_API_KEY={SECRET}\n", "ANTHROPIC_API_KEY", "the client's own credential"),
        ("IDLE_TIMEOUT=soon\n", "IDLE_TIMEOUT", "expected seconds"),
        ("IDLE_TIMEOUT=0.5\n", "IDLE_TIMEOUT", "expected seconds, from 1"),
        ("storage: {db_path: x.db, requests_dir: y}\n", "storage.db_path", "a new database"),
        ("storage:\n  other: x\n", "storage.other", "a new database"),
    ],
)  # fmt: skip
def test_what_is_left_out_and_why(text, name, reason):
    found = converted(text)
    assert found.settings == {}
    assert reason in reasons(found)[name]
    assert SECRET not in " ".join(found.skipped + found.noted) + repr(found)


@pytest.mark.parametrize(
    "value",
    ["your-openai-key", "your_key_here", "sk-your-key", "<key>", "sk-...", "xxxxxxxx", "sk-xxxxxxxx", "YOUR-KEY"],
)
def test_a_placeholder_is_no_key(value):
    for text in (f"OPENAI_API_KEY={value}\n", f'providers:\n  openai:\n    api_key: "{value}"\n'):
        found = converted(text)
        assert (found.settings, found.keys) == ({}, {})
        assert "a placeholder stands there" in found.skipped[0]


@pytest.mark.parametrize("value", ["short", "has a blank in it", "ключ-из-букв", "${A}${B}", "${A:-default}", "x" * 7])
def test_what_cannot_be_a_key(value):
    found = converted(f'providers:\n  openai:\n    api_key: "{value}"\n')
    assert (found.settings, found.keys) == ({}, {})
    assert len(found.skipped) == 1


@pytest.mark.parametrize("reference", ["${MY_KEY}", "$MY_KEY"])
def test_a_variable_stays_a_variable(reference):
    found = converted(f"OPENAI_API_KEY={reference}\n")
    assert found.settings == {"providers": {"openai": {"key_env": "MY_KEY"}}}


def test_a_server_of_ones_own_under_openais_name_speaks_chat():
    found = converted(f"OPENAI_BASE_URL=http://localhost:1234/v1\nOPENAI_API_KEY={SECRET}\n")
    assert found.settings["providers"]["openai"] == {
        "base_url": "http://localhost:1234/v1",
        "key_file": "keys/openai",
        "api": "chat",
    }


# ---- keys on disk


def test_a_key_goes_into_a_private_file_and_nowhere_else(tmp_path, env, target):
    done = taken(f"OPENAI_API_KEY={SECRET}\nOPENROUTER_API_KEY={SECRET}2\n", tmp_path, env)
    folder = target.parent / "keys"
    for name, secret in (("openai", SECRET), ("openrouter", f"{SECRET}2")):
        assert (folder / name).read_text() == f"{secret}\n"
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert load({}, env, None).settings.providers[name]["key_file"] == str(folder / name)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert SECRET not in target.read_text() + done.text + " ".join((*done.skipped, *done.noted)) + repr(done)
    assert done.noted[0] == f"the key of openai goes into {folder / 'openai'}, which nobody else can read"
    assert tomllib.loads(done.text)["providers"]["openai"] == {"key_file": "keys/openai"}


def test_a_dry_run_keeps_no_key(tmp_path, env, target):
    done = taken(f"OPENAI_API_KEY={SECRET}\n", tmp_path, env, write=False)
    assert 'key_file = "keys/openai"' in done.text
    assert not target.parent.exists()


def test_another_key_is_never_overwritten(tmp_path, env, target):
    folder = target.parent / "keys"
    folder.mkdir(parents=True)
    (folder / "openai").write_text("another\n")
    taken(f"OPENAI_API_KEY={SECRET}\n", tmp_path, env)
    assert (folder / "openai").read_text() == "another\n"
    assert (folder / "openai-2").read_text() == f"{SECRET}\n"
    assert load({}, env, None).settings.providers["openai"]["key_file"] == str(folder / "openai-2")
    target.unlink()
    taken(f"OPENAI_API_KEY={SECRET}\n", tmp_path, env)  # the same key again needs no third file
    assert sorted(file.name for file in folder.iterdir()) == ["openai", "openai-2"]


@pytest.mark.parametrize("trouble", ["file", "link", "folder"])
def test_a_place_where_no_key_can_be_kept_means_that_nothing_is_written(tmp_path, env, target, trouble):
    target.parent.mkdir(parents=True)
    if trouble == "file":
        (target.parent / "keys").write_text("")
    elif trouble == "link":
        (tmp_path / "elsewhere").mkdir()
        (target.parent / "keys").symlink_to(tmp_path / "elsewhere")
    else:
        (target.parent / "keys" / "openai").mkdir(parents=True)
    with pytest.raises(ConfigError, match="keys"):
        taken(f"OPENAI_API_KEY={SECRET}\n", tmp_path, env)
    assert not target.exists()
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.rglob("*.toml") if file.is_file())
    assert not list((tmp_path / "elsewhere").iterdir() if trouble == "link" else [])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nothing can be made")
def test_a_key_whose_settings_cannot_be_written_does_not_stay(tmp_path, env, target):
    target.parent.mkdir(parents=True)
    target.symlink_to("/proc/nowhere/config.toml")
    with pytest.raises(ConfigError, match="/proc/nowhere"):
        taken(f"OPENAI_API_KEY={SECRET}\n", tmp_path, env)
    assert list((target.parent / "keys").iterdir()) == []


def test_a_key_without_valid_settings_is_not_kept(tmp_path, env, target):
    target.parent.mkdir(parents=True)
    target.write_text("[plugins]\ndisabled = 7\n")
    with pytest.raises(SettingsError):
        taken(f"OPENAI_API_KEY={SECRET}\n", tmp_path, env)
    assert not (target.parent / "keys").exists()


def test_a_key_stays_out_of_a_linked_collection(tmp_path, env, target):
    """Whoever keeps his settings in a repository does not want his keys there."""
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "config.toml").write_text("log_days = 3\n")
    target.parent.mkdir(parents=True)
    target.symlink_to(tmp_path / "dotfiles" / "config.toml")
    taken(f"OPENAI_API_KEY={SECRET}\n", tmp_path, env)
    assert [file.name for file in (tmp_path / "dotfiles").iterdir()] == ["config.toml"]
    assert (target.parent / "keys" / "openai").read_text() == f"{SECRET}\n"
    assert load({}, env, None).settings.providers["openai"]["key_file"] == str(target.parent / "keys" / "openai")


# ---- beside what is there


def test_lines_go_before_and_tables_behind_what_is_there(tmp_path, env, target):
    target.parent.mkdir(parents=True)
    before = 'log_days = 3\n[plugins]\ndisabled = ["x"]'
    target.write_text(before)
    taken(FORK, tmp_path, env)
    text = target.read_text()
    assert text.startswith("# Taken over from old.yaml\n")
    assert f"\n\n{before}\n\n# Taken over from old.yaml\n[routes]\n" in text
    settings = load({}, env, None).settings
    assert (settings.log_days, settings.plugins_disabled, settings.client_idle_timeout) == (3, ("x",), 5400)
    assert list(settings.routes) == ["code-reviewer", "my-plugin:explorer"]
    assert list(settings.providers) == ["openai", "gemini", "local", "llama.cpp"]


def test_what_is_there_wins_provider_by_provider_and_rules_are_never_mixed(tmp_path, env, target):
    target.parent.mkdir(parents=True)
    target.write_text('[routes]\nmine = "o3"\n[providers.OpenAI]\nkey_env = "MINE"\n')
    done = taken(FORK.replace("${OPENAI_API_KEY}", SECRET), tmp_path, env)
    assert f"providers.openai: {target} says it already" in done.skipped
    rules = 'code-reviewer = "openai:gpt-4o"; "my-plugin:explorer" = "gemini:gemini-2.5-flash"'
    assert f"routes: {target} has rules already; add by hand: {rules}" in done.skipped
    settings = load({}, env, None).settings
    assert settings.routes.plain() == {"mine": "o3"}
    assert list(settings.providers) == ["OpenAI", "gemini", "local", "llama.cpp"]
    assert not (target.parent / "keys").exists()
    again = taken(FORK, tmp_path, env)
    assert again.text == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("600", 600),
        ("10m", 600),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("300ms", 0.3),
        ("", None),
        ("10 m", None),
        ("m", None),
    ],
)
def test_times_in_every_spelling(text, value):
    assert seconds(text) == (pytest.approx(value) if value else value)


lines = st.lists(
    st.sampled_from([*FORK.splitlines(), *CONTAINER.splitlines(), *BASIC.splitlines()]) | st.text(max_size=30)
)


@given(lines)
def test_no_text_fails_otherwise_than_by_saying_so(some):
    try:
        found = converted("\n".join(some))
    except ValueError:
        return
    tomllib.loads(to_toml(found.settings))
    assert set(found.keys) <= set(found.settings.get("providers", {}))
