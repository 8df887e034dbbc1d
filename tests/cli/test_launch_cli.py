"""`dbproxy claude` and `dbproxy run`, line by line of the contract, against the real background proxy."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dbproxy.state import pause_for

SHOW = [sys.executable, "-c", "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"]


def launched(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_claude_gets_every_word_behind_its_name(shell, claude):
    words = ["-p", "hi there", "--listen", "x", "--debug", "--", "--version", "", "ä\n"]
    seen = launched(shell.run("--log-level", "DEBUG", "claude", *words))
    assert seen["args"][1:] == words
    assert seen["cwd"] == str(shell.cwd)


def test_a_launched_child_has_the_environment_of_the_contract(shell, claude):
    env = launched(shell.run("claude"))["env"]
    state = shell.state()
    url = f"http://{state['listen'][0]}"
    proxy = urlsplit(env["HTTPS_PROXY"])
    assert env["https_proxy"] == env["HTTPS_PROXY"]
    assert f"http://{proxy.hostname}:{proxy.port}" == url == env["DBPROXY_URL"]
    assert env["NO_PROXY"] == env["no_proxy"] == "localhost,127.0.0.1,::1"
    assert env["NODE_EXTRA_CA_CERTS"] == str(shell.data / "ca" / "bundle.pem")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        assert env[name] == str(shell.data / "ca" / "child-bundle.pem")
    assert Path(env["NODE_EXTRA_CA_CERTS"]).read_bytes() in Path(env["SSL_CERT_FILE"]).read_bytes()
    assert env["CLAUDE_CODE_GATEWAY_HINT_HEADERS"] == "1"
    assert env["DBPROXY_ACTIVE"] == "1"
    for name in ("DISABLE_AUTO_COMPACT", "CLAUDE_CODE_AUTO_COMPACT_WINDOW", "HTTP_PROXY", "ALL_PROXY"):
        assert name not in env


def test_the_launch_is_registered_as_a_scope(shell, claude):
    seen = launched(
        shell.run("--checkpoint-threshold", "60%", "claude", CLAUDE_AUTOCOMPACT_PCT_OVERRIDE="50", NO_PROXY="a.example")
    )
    proxy = urlsplit(seen["env"]["HTTPS_PROXY"])
    file = shell.data / "run" / "scopes" / f"{proxy.username}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    scope = json.loads(file.read_text())
    assert scope["secret"] == proxy.password
    assert scope["cwd"] == str(shell.cwd)
    assert scope["pid"] == seen["pid"]
    assert scope["settings"]["checkpoint_threshold"] == 0.6
    assert scope["client"] == {"CLAUDE_AUTOCOMPACT_PCT_OVERRIDE": "50"}
    assert scope["no_proxy"] == "a.example"
    assert scope["parent_proxy"] is None
    assert re.fullmatch("[0-9a-f]{64}", scope["root"])


def test_the_root_that_the_scope_names_is_the_current_one(shell, claude):
    shell.run("start")
    fingerprint = json.loads(shell.run("certs", "show", "--json").stdout)
    seen = launched(shell.run("claude"))
    scope = json.loads(
        (shell.data / "run/scopes" / f"{urlsplit(seen['env']['HTTPS_PROXY']).username}.json").read_text()
    )
    assert scope["root"] in json.dumps(fingerprint)


def test_exit_code_is_the_childs(shell, claude):
    assert shell.run("claude", CLAUDE_EXIT="37").returncode == 37
    assert shell.run("run", "sh", "-c", "exit 5").returncode == 5


def test_death_by_signal_is_the_childs(shell):
    assert shell.run("run", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM


def test_a_child_dies_of_a_broken_pipe_as_it_would_without_us(shell):
    shell.run("start")
    assert shell.run("run", "sh", "-c", "kill -PIPE $$; echo alive").returncode == -signal.SIGPIPE


def test_stdin_and_stdout_are_the_childs(shell):
    done = shell.run("run", "--", "cat", stdin="as it is\n")
    assert done.stdout == "as it is\n"


def test_a_second_launch_says_nothing(shell):
    shell.run("start")
    assert shell.run("run", "true").stderr == ""


def test_run_takes_two_dashes_or_none(shell):
    assert shell.run("run", "--", "echo", "--", "-n").stdout == "-- -n\n"
    assert shell.run("run", "echo", "--", "-n").stdout == "-- -n\n"


@pytest.mark.parametrize("words", [["run"], ["run", "--"], ["run", "--json", "sh"]])
def test_run_without_a_program_is_wrong_usage(shell, words):
    done = shell.run(*words)
    assert done.returncode == 2
    assert "dbproxy: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_claude_is_one_clear_line(shell):
    done = shell.run("claude", PATH="/nonexistent")
    assert done.returncode == 1
    assert "claude is not on your PATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (shell.data / "run" / "daemon.json").exists()


def test_a_missing_program_and_one_that_cannot_be_executed(shell):
    done = shell.run("run", "no-such-program")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    (shell.cwd / "data.txt").write_text("x")
    done = shell.run("run", "./data.txt")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "cannot be executed" in done.stderr


def test_a_program_that_the_kernel_refuses_leaves_no_scope(shell):
    shell.script("broken", "\x7fELF nonsense")
    done = shell.run("run", "broken")
    assert done.returncode == 1
    assert "cannot be executed" in done.stderr.splitlines()[-1]
    assert list((shell.data / "run" / "scopes").glob("*.json")) == []


def test_c21_without_a_proxy_the_agent_starts_direct_and_says_so(shell, claude):
    """C21: unhealthy -> the child starts direct with a visible OFF notice."""
    shell.home.joinpath("data").write_text("not a folder")
    mine = {"HTTPS_PROXY": "http://corp.example:3128", "NODE_EXTRA_CA_CERTS": "/mine.pem", "NO_PROXY": "x"}
    done = shell.run("claude", "-p", "hi", **mine)
    seen = launched(done)
    assert seen["args"][1:] == ["-p", "hi"]
    assert len(done.stderr.splitlines()) == 1
    assert "OFF for this run" in done.stderr
    assert "DBPROXY_DATA_DIR" in done.stderr
    assert {name: seen["env"].get(name) for name in mine} == mine
    for name in ("https_proxy", "DBPROXY_ACTIVE", "DBPROXY_URL", "SSL_CERT_FILE", "CLAUDE_CODE_GATEWAY_HINT_HEADERS"):
        assert name not in seen["env"]


def test_c21_a_proxy_that_fails_to_start_says_why(shell, claude):
    (shell.home / "bad.pem").write_text("no certificate")
    (shell.home / ".config/dbproxy").mkdir(parents=True)
    (shell.home / ".config/dbproxy/config.toml").write_text(f'upstream_ca = "{shell.home}/bad.pem"\n')
    done = shell.run("claude")
    seen = launched(done)
    assert "HTTPS_PROXY" not in seen["env"]
    assert len(done.stderr.splitlines()) == 1
    assert "bad.pem" in done.stderr


def test_c21_the_health_probe_ignores_the_persons_proxy(shell, claude):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        dead = f"http://127.0.0.1:{trap.getsockname()[1]}"
        for _ in range(2):
            seen = launched(shell.run("claude", HTTP_PROXY=dead, http_proxy=dead, ALL_PROXY=dead, HTTPS_PROXY=dead))
            assert seen["env"]["DBPROXY_ACTIVE"] == "1"
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_c21_a_fault_of_ours_does_not_keep_the_agent_from_starting(shell, claude, monkeypatch, capsys):
    from dbproxy.cli import main
    from dbproxy.proc import child, daemon

    started = []
    monkeypatch.setenv("PATH", shell.env["PATH"])
    monkeypatch.setattr(daemon, "ensure", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(child, "become", lambda program, words, env: started.append((words, env)) or 7)
    assert main(["claude", "-p"]) == 7
    assert started[0][0] == ["claude", "-p"]
    assert "HTTPS_PROXY" not in started[0][1]
    assert capsys.readouterr().err.startswith("dbproxy: OFF for this run: ZeroDivisionError")


def test_the_persons_own_proxy_goes_to_the_scope(shell, claude):
    own = "http://user:pass@corp.example:3128"
    seen = launched(shell.run("claude", HTTPS_PROXY=own, NO_PROXY="api.anthropic.com, .corp.example"))
    proxy = urlsplit(seen["env"]["HTTPS_PROXY"])
    assert proxy.hostname == "127.0.0.1"
    scope = json.loads((shell.data / "run/scopes" / f"{proxy.username}.json").read_text())
    assert scope["parent_proxy"] == own
    assert "api.anthropic.com" in scope["no_proxy"]
    assert seen["env"]["NO_PROXY"] == ".corp.example,localhost,127.0.0.1,::1"


def test_the_persons_own_certificates_stay_trusted(shell, claude):
    mine = shell.home / "corp.pem"
    mine.write_text("-----BEGIN CERTIFICATE-----\nY29ycA==\n-----END CERTIFICATE-----\n")
    seen = launched(shell.run("claude", NODE_EXTRA_CA_CERTS=str(mine), SSL_CERT_FILE="/own.pem"))
    file = Path(seen["env"]["NODE_EXTRA_CA_CERTS"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == (shell.data / "ca/bundle.pem").read_bytes() + mine.read_bytes()
    assert seen["env"]["SSL_CERT_FILE"] == "/own.pem"


def test_the_persons_own_bundles_get_our_roots_added(shell, claude):
    mine = shell.home / "corp.pem"
    mine.write_text("-----BEGIN CERTIFICATE-----\nY29ycA==\n-----END CERTIFICATE-----\n")
    seen = launched(shell.run("claude", SSL_CERT_FILE=str(mine), CURL_CA_BUNDLE=str(mine)))
    roots = (shell.data / "ca/bundle.pem").read_bytes()
    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        assert Path(seen["env"][name]).read_bytes() == roots + mine.read_bytes()
    assert seen["env"]["REQUESTS_CA_BUNDLE"] == str(shell.data / "ca/child-bundle.pem")
    (scope,) = (shell.data / "run/scopes").glob("*.json")
    assert json.loads(scope.read_text())["extra_ca"] == [str(mine)]


def test_a_missing_own_certificate_file_is_said_and_not_fatal(shell, claude):
    done = shell.run("claude", NODE_EXTRA_CA_CERTS="/nonexistent.pem")
    assert launched(done)["env"]["NODE_EXTRA_CA_CERTS"] == str(shell.data / "ca" / "bundle.pem")
    assert "/nonexistent.pem" in done.stderr


def test_a_launch_inside_a_launch_does_not_take_us_for_the_persons_proxy(shell, claude):
    mine = shell.home / "corp.pem"
    mine.write_text("corp\n")
    own = {"HTTPS_PROXY": "http://corp.example:3128", "NO_PROXY": "x.example", "NODE_EXTRA_CA_CERTS": str(mine)}
    inner = "import sys; sys.argv[1:] = ['claude']; from dbproxy.cli import main; main()"
    done = shell.run("run", sys.executable, "-c", inner, **own)
    seen = launched(done)
    proxy = urlsplit(seen["env"]["HTTPS_PROXY"])
    scopes = {path.stem: json.loads(path.read_text()) for path in (shell.data / "run/scopes").glob("*.json")}
    assert len(scopes) == 2
    scope = scopes[proxy.username]
    assert scope["parent_proxy"] == "http://corp.example:3128"
    assert scope["no_proxy"] == "x.example"
    assert scope["extra_ca"] == [str(mine)]
    assert Path(seen["env"]["NODE_EXTRA_CA_CERTS"]).read_bytes().count(b"corp\n") == 1


def test_early_swap_sets_the_window_once_and_says_it(shell, claude):
    done = shell.run("--early-swap", "--swap-threshold", "80", "claude")
    assert launched(done)["env"]["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "806600"
    assert sum("CLAUDE_CODE_AUTO_COMPACT_WINDOW" in line for line in done.stderr.splitlines()) == 1
    done = shell.run("--early-swap", "claude", CLAUDE_CODE_AUTO_COMPACT_WINDOW="123")
    assert launched(done)["env"]["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "123"


def test_settings_files_of_the_client_that_lead_past_us_are_named(shell, claude):
    folder = shell.home / ".claude"
    folder.mkdir()
    file = folder / "settings.json"
    file.write_text(json.dumps({"env": {"HTTPS_PROXY": "http://corp:1", "CLAUDE_CODE_USE_BEDROCK": "1"}}))
    done = shell.run("claude")
    launched(done)
    lines = [line for line in done.stderr.splitlines() if str(file) in line]
    assert len(lines) == 2
    assert file.read_text().startswith('{"env"')


def test_broken_settings_of_the_client_are_never_fatal(shell, claude):
    (shell.cwd / ".claude").mkdir()
    (shell.cwd / ".claude" / "settings.json").write_text("{broken")
    done = shell.run("claude")
    launched(done)
    assert "not valid JSON" in done.stderr


def test_a_wrong_option_is_wrong_usage_and_a_wrong_variable_is_not(shell, claude):
    done = shell.run("--swap-threshold", "lots", "claude")
    assert done.returncode == 2
    assert "--swap-threshold" in done.stderr
    done = shell.run("claude", DBPROXY_TRESHOLD="1")
    assert launched(done)["env"].get("DBPROXY_ACTIVE") is None
    assert "DBPROXY_TRESHOLD" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_project_file_that_tries_to_redirect_traffic_is_refused_and_said(shell, claude):
    (shell.cwd / "dbproxy.toml").write_text('upstream_url = "https://evil.example"\ncheckpoint_threshold = 0.5\n')
    done = shell.run("claude")
    seen = launched(done)
    assert "upstream_url" in done.stderr
    assert "dbproxy config trust" in done.stderr
    assert "evil" not in json.dumps(shell.state())
    user = urlsplit(seen["env"]["HTTPS_PROXY"]).username
    scope = json.loads((shell.data / "run/scopes" / f"{user}.json").read_text())
    assert scope["settings"]["checkpoint_threshold"] == 0.5


def test_a_process_wide_value_that_differs_is_said(shell, claude):
    shell.run("start")
    done = shell.run("--log-level", "DEBUG", "claude")
    launched(done)
    assert "log_level is DEBUG here, but the running proxy has INFO" in done.stderr
    assert "dbproxy restart" in done.stderr


def test_per_launch_values_of_the_first_launch_do_not_become_everybodys(shell, claude):
    launched(shell.run("--buffer", "off", "claude", DBPROXY_PASSTHROUGH="1"))
    health = json.loads(shell.run("status", "--json").stdout)["health"]
    assert health["passthrough"] is False


def test_concurrent_launches_share_one_proxy(shell):
    command = [sys.executable, "-c", "from dbproxy.cli import main; main()", "run", *SHOW]
    several = [
        subprocess.Popen(
            command, env=shell.environment(), cwd=shell.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(5)
    ]
    urls = []
    for process in several:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        urls.append(json.loads(out)[1]["DBPROXY_URL"])
    assert len(set(urls)) == 1


def test_two_users_have_two_proxies(shell):
    other = shell.environment(DBPROXY_DATA_DIR=str(shell.home / "other"))
    first = json.loads(shell.run("run", *SHOW).stdout)[1]["DBPROXY_URL"]
    second = json.loads(shell.run("run", *SHOW, **other).stdout)[1]["DBPROXY_URL"]
    try:
        assert first != second
    finally:
        shell.run("stop", "--force", **other)


def test_the_childs_certificate_variables_work_against_the_real_proxy(shell):
    """A handshake through the launched environment, as python, curl and node in the agent's shell would make it."""
    code = """
import os, socket, ssl, sys
from base64 import b64encode
from urllib.parse import urlsplit
proxy = urlsplit(os.environ["HTTPS_PROXY"])
raw = socket.create_connection((proxy.hostname, proxy.port), timeout=10)
token = b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
raw.sendall(f"CONNECT api.anthropic.com:443 HTTP/1.1\\r\\nProxy-Authorization: Basic {token}\\r\\n\\r\\n".encode())
assert b" 200" in raw.recv(4096)
context = ssl.create_default_context(cafile=os.environ[sys.argv[1]])
with context.wrap_socket(raw, server_hostname="api.anthropic.com") as secure:
    secure.sendall(b"\\r\\n")
    print(secure.version())
"""
    for name in ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"):
        done = shell.run("run", sys.executable, "-c", code, name)
        assert done.stdout == "TLSv1.3\n", done.stderr


def test_the_launcher_imports_no_event_loop_and_no_cryptography(shell):
    code = (
        "import sys; import dbproxy.cli.launch, dbproxy.proc.daemon, dbproxy.proc.client, dbproxy.scope;"
        "print([name for name in ('trio', 'cryptography', 'argparse', 'h11', 'pluggy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=shell.environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_claude_db_proxy_is_the_short_name(shell, claude):
    seen = launched(shell.run("--full-access", "-p", "--full-access", entry="main_seed"))
    assert seen["args"][1:] == ["--dangerously-skip-permissions", "-p", "--dangerously-skip-permissions"]
    assert seen["env"]["DBPROXY_ACTIVE"] == "1"
    assert shell.run("status", entry="main_seed").stdout.startswith("running")
    assert "already running" in shell.run("start", entry="main_seed").stdout
    assert shell.run("stop", entry="main_seed").stdout == "stopped\n"
    assert "commands:" in shell.run("help", entry="main_seed").stdout


def test_a_running_child_keeps_its_scope_and_the_daemon_is_nobodys_child(shell):
    process = subprocess.Popen(
        [sys.executable, "-c", "from dbproxy.cli import main; main()", "run", "sleep", "30"],
        env=shell.environment(),
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 20
        while not list((shell.data / "run").glob("scopes/*.json")) and time.monotonic() < deadline:
            pause_for(0.02)
        pid = shell.state()["pid"]
        status = Path(f"/proc/{pid}/status")
        if status.exists():
            assert f"PPid:\t{process.pid}\n" not in status.read_text()
        assert os.getsid(pid) != os.getsid(process.pid)
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
