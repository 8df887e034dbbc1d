"""Taking over settings files of earlier tools."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.config import SettingsError, load
from dbproxy.config.legacy import convert, import_file, to_toml
from dbproxy.errors import ConfigError

OLD_ENV = """\
# the older tool
export SYNIX_PROXY_PORT=47200
SYNIX_PORT=47201
SYNIX_REDIRECTOR_HOST=0.0.0.0
SYNIX_UPSTREAM_URL='https://gateway.example/anthropic/'   # ours
SYNIX_CHECKPOINT_THRESHOLD="70"
SYNIX_SWAP_THRESHOLD=0.95
SYNIX_LOG_LEVEL=warn
SYNIX_PASSTHROUGH=
SYNIX_DB_PATH=data/x.sqlite
DBPROXY_CONVERSATION_TTL_SECONDS=60
DBPROXY_POOL_SIZE=5
OPENAI_API_KEY=sk-very-secret
what is this
"""

OLD_YAML = """\
---
# the older router
server:
  port: "3001"
  timeouts:
    read: 10m
providers:
  anthropic:
    base_url: 'https://gateway.example'   # here
    max_retries: 3
  openai:
    api_key: ${OPENAI_API_KEY}
storage: {db_path: requests.db}
subagents:
  enable: true
  mappings:
    reviewer: gpt-4o
  list:
    - one
    - two
log_level: ~
"""


@pytest.fixture
def env(tmp_path):
    return {"HOME": str(tmp_path)}


def names(found):
    return [line.partition(":")[0] for line in found.skipped]


def test_env_lines():
    found = convert(OLD_ENV, Path("/old"))
    assert found.settings == {
        "upstream_url": "https://gateway.example/anthropic",
        "checkpoint_threshold": 0.7,
        "swap_threshold": 0.95,
        "log_level": "WARNING",
        "conversation_ttl_seconds": 60,
        "pool_size": 5,
        "listen": ["127.0.0.1:47200"],
        "providers": {"openai": {"key_file": "keys/openai"}},
    }
    assert sorted(names(found)) == sorted(["line 14", "SYNIX_PORT", "SYNIX_REDIRECTOR_HOST", "SYNIX_DB_PATH"])
    assert found.keys == {"openai": "sk-very-secret"}
    assert "sk-very-secret" not in " ".join(found.skipped + found.noted) + repr(found)


def test_yaml_mappings():
    found = convert(OLD_YAML, Path("/old"))
    assert found.settings == {
        "listen": ["127.0.0.1:3001"],
        "upstream_url": "https://gateway.example",
        "routes": {"reviewer": "gpt-4o"},
        "providers": {"openai": {"key_env": "OPENAI_API_KEY"}},
    }
    assert sorted(names(found)) == sorted(
        ["server.timeouts.read", "providers.anthropic.max_retries", "storage.db_path", "line 19"]
    )
    assert found.noted == [
        "providers.openai.api_key: is read from the variable OPENAI_API_KEY of the proxy's environment"
    ]


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("SYNIX_CHECKPOINT_THRESHOLD=7000", "SYNIX_CHECKPOINT_THRESHOLD", "expected a fraction"),
        ("ANTHROPIC_FORWARD_URL=localhost:1234", "ANTHROPIC_FORWARD_URL", "expected a URL"),
        ("ANTHROPIC_FORWARD_URL=${GATEWAY}", "ANTHROPIC_FORWARD_URL", "refers to a variable"),
        ("DBPROXY_CONTROL_TOKEN=opensesame", "DBPROXY_CONTROL_TOKEN", "secrets are not copied"),
        ("DBPROXY_PARENT_PROXY=http://u:opensesame@x:1", "DBPROXY_PARENT_PROXY", "secrets are not copied"),
        ("SYNIX_DATA_DIR=/x", "SYNIX_DATA_DIR", "not ours"),
        ("PORT=99999", "PORT", "expected HOST:PORT"),
    ],
)
def test_what_is_left_out_and_why(text, name, reason):
    found = convert(text, Path("/old"))
    assert found.settings == {}
    (line,) = found.skipped
    assert line.startswith(f"{name}: ")
    assert reason in line
    assert "opensesame" not in line


@pytest.mark.parametrize("text", ["", "\n# only this\n", "a\0b"])
def test_what_is_no_settings_file(text):
    with pytest.raises(ValueError):
        convert(text, Path("/old"))


def test_the_import_goes_before_what_is_there_and_what_is_there_wins(env, tmp_path):
    (tmp_path / "old.env").write_text("SYNIX_PROXY_PORT=4000\nSYNIX_LOG_LEVEL=debug\n")
    target = tmp_path / ".config" / "dbproxy" / "config.toml"
    target.parent.mkdir(parents=True)
    before = '# mine\nlog_level = "ERROR"\n[plugins]\ndisabled = ["x"]\n'
    target.write_text(before)
    done = import_file(tmp_path / "old.env", env)
    assert target.read_text() == f'# Taken over from old.env\nlisten = ["127.0.0.1:4000"]\n\n{before}'
    assert done.file == target
    assert done.skipped == (f"log_level: {target} says it already",)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    settings = load({}, env, None).settings
    assert (settings.listen[0].port, settings.log_level, settings.plugins_disabled) == (4000, "ERROR", ("x",))
    again = import_file(tmp_path / "old.env", env)
    assert again.text == ""
    assert target.read_text().endswith(before)


def test_a_dry_run_writes_nothing(env, tmp_path):
    (tmp_path / "old.env").write_text("SYNIX_PROXY_PORT=4000\n")
    assert "4000" in import_file(tmp_path / "old.env", env, write=False).text
    assert not (tmp_path / ".config").exists()


def test_a_linked_configuration_stays_a_link(env, tmp_path):
    (tmp_path / "old.env").write_text("SYNIX_PROXY_PORT=4000\n")
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "config.toml").write_text("log_days = 3\n")
    folder = tmp_path / ".config" / "dbproxy"
    folder.mkdir(parents=True)
    (folder / "config.toml").symlink_to(tmp_path / "dotfiles" / "config.toml")
    import_file(tmp_path / "old.env", env)
    assert (folder / "config.toml").is_symlink()
    assert load({}, env, None).settings.listen[0].port == 4000


def test_nothing_is_written_when_the_result_would_be_wrong(env, tmp_path):
    (tmp_path / "old.env").write_text("SYNIX_SWAP_THRESHOLD=0.2\n")
    with pytest.raises(SettingsError, match="the checkpoint must come first"):
        import_file(tmp_path / "old.env", env)
    target = tmp_path / ".config" / "dbproxy" / "config.toml"
    assert not target.exists()
    target.parent.mkdir(parents=True)
    target.write_text("broken = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        import_file(tmp_path / "old.env", env)
    assert target.read_text() == "broken = \n"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"\0"])
def test_a_file_that_is_neither_shape_is_said(env, tmp_path, content):
    (tmp_path / "old").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot take over"):
        import_file(tmp_path / "old", env)


def test_a_file_that_is_not_there_is_said(env, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        import_file(tmp_path / "none", env)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        import_file(tmp_path / "fifo", env)


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(
    st.dictionaries(st.sampled_from(["a", "b"]), texts | st.booleans() | st.floats(0, 1) | st.lists(texts, max_size=3))
)
def test_what_is_written_as_toml_reads_back(settings):
    assert tomllib.loads(to_toml(settings)) == settings


lines = st.lists(
    st.sampled_from([*OLD_ENV.splitlines(), *OLD_YAML.splitlines(), "\t- x: [", "  a:", ": b", "- "]) | texts
)


@given(lines)
def test_no_text_fails_otherwise_than_by_saying_so(some):
    try:
        found = convert("\n".join(some), Path("/old"))
    except ValueError:
        return
    tomllib.loads(to_toml(found.settings))
