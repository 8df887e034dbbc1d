"""Routes, providers and the client key on the command line, in a launch and in a background proxy that runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

SHOW = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
KEY = "open-sesame-0123456789"


def user_file(shell):
    folder = shell.home / ".config" / "dbproxy"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "config.toml"


def scope_of(shell, done):
    assert done.returncode == 0, done.stderr
    user = urlsplit(json.loads(done.stdout)["HTTPS_PROXY"]).username
    return json.loads((shell.data / "run" / "scopes" / f"{user}.json").read_text())


def logged(shell, event, seconds=5.0):
    """The first event of this name in the journal."""
    until = time.monotonic() + seconds
    journal = shell.data / "logs" / "dbproxy.jsonl"
    while time.monotonic() < until:
        for line in journal.read_text().splitlines() if journal.exists() else ():
            if (found := json.loads(line))["event"] == event:
                return found
        time.sleep(0.05)  # noqa: TID251 - another process writes it
    raise AssertionError(f"no {event}")


def test_show_lists_every_entry_with_its_source(shell):
    user_file(shell).write_text(
        '[routes]\n"type:Explore" = ["a", "b"]\ncode-reviewer = "x"\n[providers.o]\nretries = 2\n'
    )
    done = shell.run("config", "show", "--origin", SUBAGENT_MAPPINGS="code-reviewer:o3")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    found = {name: " ".join(rest.split()) for name, rest in rows if name.startswith(("routes", "providers"))}
    assert found == {
        "routes": "2 of them environment (SUBAGENT_MAPPINGS)",
        "routes.code-reviewer": '"o3" environment (SUBAGENT_MAPPINGS)',
        'routes."type:Explore"': f'["a", "b"] user ({user_file(shell)})',
        "providers": f"1 of them user ({user_file(shell)})",
        "providers.o": f"{{ retries = 2 }} user ({user_file(shell)})",
    }
    document = json.loads(shell.run("config", "show", "--json", "--origin").stdout)
    assert document["settings"]["routes"] == {"type:Explore": ["a", "b"], "code-reviewer": "x"}
    assert document["settings"]["providers"] == {"o": {"retries": 2}}
    assert document["origins"]["providers.o"].startswith("user")


def test_check_names_what_is_wrong_and_no_key(shell):
    user_file(shell).write_text(f'[providers.o]\napi_key = "{KEY}"\n[routes]\na = 1\n')
    done = shell.run("config", "check")
    assert done.returncode == 1
    assert "providers: o.api_key: a key does not belong into the settings" in done.stderr
    assert "routes: a: expected a model" in done.stderr
    assert KEY not in done.stderr + done.stdout


def test_trusting_a_project_says_which_entries_it_sets(shell):
    (shell.cwd / "dbproxy.toml").write_text('[routes]\na = "b"\n[providers.p]\nbase_url = "http://p"\n')
    done = shell.run("config", "trust")
    assert '  routes.a = "b"\n' in done.stdout
    assert '  providers.p = { base_url = "http://p" }\n' in done.stdout


def test_a_launch_takes_along_what_it_was_told_and_not_what_stands_in_files(shell):
    user_file(shell).write_text('[routes]\na = "user"\n')
    (shell.cwd / "dbproxy.toml").write_text('[routes]\nb = "project"\nbad = { to = "x", url = "y" }\n')
    done = shell.run("run", *SHOW)
    scope = scope_of(shell, done)
    assert "routes" not in scope["settings"]
    assert scope["project"] == {"routes": {"b": "project"}}
    assert "ignored routes.bad" in done.stderr
    scope = scope_of(
        shell, shell.run("--routes", "z:cli", "--routes", "y:cli", "run", *SHOW, SUBAGENT_MAPPINGS="c:env")
    )
    assert list(scope["settings"]["routes"].items()) == [("z", "cli"), ("y", "cli"), ("c", "env")]


def test_what_start_is_told_reaches_the_proxy_and_its_files_are_followed(shell):
    words = ("--routes", "a:told", "--labels", "team=blue", "--providers", '{"x": {"base_url": "http://x"}}')
    done = shell.run("start", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(shell.state()["settings"]["providers"].replace("'", '"')) == {"x": {"base_url": "http://x"}}
    user_file(shell).write_text('[providers.y]\nbase_url = "http://y"\n')
    assert logged(shell, "settings_reloaded")["settings"] == ["providers"]
    user_file(shell).write_text("[providers.y\n")
    assert "not valid TOML" in logged(shell, "settings_invalid")["message"]


def test_other_providers_than_those_of_the_running_proxy_are_said(shell):
    same, other = '{"x": {"base_url": "http://x"}}', '{"x": {"base_url": "http://z"}}'
    assert shell.run("start", "--providers", same).returncode == 0
    user_file(shell).write_text('[providers.y]\nbase_url = "http://y"\n')  # that file is followed: nothing to say
    assert shell.run("run", *SHOW).stderr == ""
    assert shell.run("run", *SHOW, DBPROXY_PROVIDERS=same).stderr == ""
    done = shell.run("run", *SHOW, DBPROXY_PROVIDERS=other)
    assert "the providers that were given here are not those of the running proxy: `dbproxy restart`" in done.stderr


def test_the_client_key_reaches_the_proxy_and_no_file(shell):
    assert shell.run("start", "--client-key", KEY).returncode == 0
    process = Path("/proc", str(shell.state()["pid"]))
    if process.is_dir():
        assert f"\0DBPROXY_CLIENT_KEY={KEY}\0".encode() in b"\0" + (process / "environ").read_bytes()
        assert KEY.encode() not in (process / "cmdline").read_bytes()
    assert KEY not in shell.run("config", "show", DBPROXY_CLIENT_KEY=KEY).stdout
    for file in shell.data.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
