"""``dbproxy config`` as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def config(home):
    def run(*words, cwd=home, **env):
        clean = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
        return subprocess.run(
            [sys.executable, "-m", "dbproxy", "config", *words],
            cwd=cwd,
            env=clean | env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_show(config):
    done = config("show")
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["listen"] == "127.0.0.1:8080"
    assert rows["parent_proxy"] == "(unset)"


def test_show_with_origins(config, home):
    folder = home / ".config" / "dbproxy"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("log_days = 3\n[plugins.thing]\nkey = 'hidden-value'\n")
    done = config("show", "--origin", DBPROXY_BUFFER="off")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["buffer"].endswith("environment (DBPROXY_BUFFER)")
    assert lines["log_days"].endswith(f"user ({folder / 'config.toml'})")
    assert lines["listen"].endswith("default")
    assert "hidden-value" not in done.stdout


def test_show_as_json(config):
    done = config("show", "--origin", "--json", DBPROXY_LISTEN="[::1]:0")
    document = json.loads(done.stdout)
    assert document["settings"]["listen"] == ["[::1]:0"]
    assert document["settings"]["plugins.disabled"] == []
    assert document["settings"]["control_token"] is None
    assert document["origins"]["listen"] == "environment (DBPROXY_LISTEN)"
    assert document["problems"] == document["refused"] == []


@pytest.mark.parametrize(
    "words", [("show",), ("show", "--origin"), ("show", "--origin", "--json"), ("check",), ("path",)]
)
def test_no_secret_is_ever_shown(config, home, words):
    folder = home / ".config" / "dbproxy"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[plugins.thing]\ntoken = 'open-sesame'\n")
    done = config(
        *words,
        DBPROXY_CONTROL_TOKEN="open-sesame",
        HTTPS_PROXY="http://user:open-sesame@corp:1",
        DBPROXY_POOL_SIZE="open-sesame",
    )
    assert "open-sesame" not in done.stdout + done.stderr


def test_check_when_all_is_well(config):
    done = config("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "the settings are good" in done.stdout


def test_check_says_each_problem_on_a_line(config):
    done = config("check", DBPROXY_LISEN="1", DBPROXY_BUFFER="x")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "dbproxy: DBPROXY_BUFFER: expected one of on, observe, off",
        "dbproxy: DBPROXY_LISEN: unknown setting in the environment; did you mean DBPROXY_LISTEN?",
    ]


def test_path(config, home):
    (home / "dbproxy.toml").write_text("")
    found = json.loads(config("path", "--json").stdout)
    assert found == {
        "user": str(home / ".config" / "dbproxy" / "config.toml"),
        "project": str(home / "dbproxy.toml"),
        "data": str(home / ".local" / "share" / "dbproxy"),
    }
    assert "(not there yet)" in config("path").stdout


def test_import(config, home):
    (home / "old.env").write_text("SYNIX_PROXY_PORT=4000\nOTHER=x\n")
    tried = config("import", "--dry-run", "old.env")
    assert "nothing written" in tried.stdout
    assert not (home / ".config").exists()
    done = config("import", "old.env")
    assert done.returncode == 0
    assert 'listen = ["127.0.0.1:4000"]' in done.stdout
    assert done.stderr == "dbproxy: left out: OTHER: no such setting here\n"
    assert "127.0.0.1:4000" in config("show").stdout
    assert config("import", "old.env").returncode == 1
    missing = config("import", "none.env")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("dbproxy: cannot read none.env")


def test_a_project_that_tries_to_redirect_traffic_and_trust(config, home):
    project = home / "clone"
    project.mkdir()
    file = project / "dbproxy.toml"
    file.write_text('buffer = "off"\nupstream_url = "https://evil.example"\n')
    before = config("show", "--json", cwd=project)
    assert before.returncode == 0
    assert json.loads(before.stdout)["settings"]["upstream_url"] == "https://api.anthropic.com"
    assert json.loads(before.stdout)["settings"]["buffer"] == "off"
    assert before.stderr.splitlines() == [
        f"dbproxy: {file}: ignored: upstream_url: a project file may not set this unless you trust it",
        f"dbproxy: if you wrote that file: dbproxy config trust {project}",
    ]
    trusted = config("trust", "clone")
    assert trusted.returncode == 0
    assert "upstream_url = https://evil.example" in trusted.stdout
    after = config("show", "--json", cwd=project)
    assert json.loads(after.stdout)["settings"]["upstream_url"] == "https://evil.example"
    assert after.stderr == ""
    assert config("trust", "--forget", "clone").returncode == 0
    assert config("trust", "--forget", "clone").returncode == 1
    assert "ignored" in config("show", cwd=project).stderr


@pytest.mark.parametrize("words", [(), ("nonsense",), ("show", "--nonsense"), ("import",)])
def test_wrong_usage(config, words):
    done = config(*words)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr
