"""`dbproxy doctor`: each thing that would break is found, said and explained."""

from __future__ import annotations

import json
import shutil
import socket
import threading

import pytest

from dbproxy.state import pause_for


@pytest.fixture
def upstream():
    """A port that takes connections: enough for a plain-HTTP upstream to count as reachable."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def ask(shell, upstream):
    """The findings of a doctor who finds the way to the API open."""

    def findings(*words, **env):
        done = shell.run(*words, "doctor", "--json", **{"DBPROXY_UPSTREAM_URL": upstream, **env})
        report = json.loads(done.stdout)
        assert done.returncode == (0 if report["ok"] else 1)
        assert report["ok"] == all(item["level"] != "fail" for item in report["findings"])
        for item in report["findings"]:
            assert item["level"] in ("ok", "warn", "fail")
            assert "failed itself" not in item["what"], item
            assert item["level"] != "fail" or item["why"] or item["advice"]
        return report["findings"]

    return findings


def of(findings, check, level=None):
    return [item for item in findings if item["check"] == check and level in (None, item["level"])]


def test_a_sound_installation_has_no_failure(shell, ask, upstream):
    shell.run("start", DBPROXY_UPSTREAM_URL=upstream)
    findings = ask()
    assert [item for item in findings if item["level"] == "fail"] == []
    for check in ("settings", "disk", "proxy", "root", "trust", "client settings", "upstream", "rejections", "plugins"):
        assert of(findings, check, "ok"), check
    assert of(findings, "background agents")[0]["advice"]
    if shutil.which("node", path=shell.env["PATH"]):
        assert any("node" in item["what"] for item in of(findings, "trust", "ok"))


def test_the_doctor_leaves_no_trace(shell, ask, upstream):
    """Its own handshakes must not count as clients that reject our certificate."""
    assert of(ask(), "proxy", "ok")
    assert not shell.data.exists()
    shell.run("start", DBPROXY_UPSTREAM_URL=upstream)
    for _ in range(3):
        findings = ask()
    assert of(findings, "rejections", "ok")
    assert of(findings, "trust", "ok")


def test_plain_output_explains_what_is_wrong(shell):
    done = shell.run("doctor", DBPROXY_UPSTREAM_URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "fail  upstream: 127.0.0.1:1 cannot be reached" in done.stdout
    assert "      why: " in done.stdout
    assert "      do:  " in done.stdout


def test_a_wrong_setting_is_a_failure_and_not_the_end(ask):
    findings = ask(DBPROXY_TRESHOLD="1")
    assert "DBPROXY_TRESHOLD" in of(findings, "settings", "fail")[0]["what"]
    assert of(findings, "upstream")


def test_a_data_folder_that_cannot_be_used(shell, ask):
    (shell.home / "data").write_text("in the way")
    assert of(ask(), "disk", "fail")


def test_a_taken_port(ask):
    with socket.create_server(("127.0.0.1", 0)) as other:
        findings = ask(DBPROXY_LISTEN=f"127.0.0.1:{other.getsockname()[1]}")
    assert "taken by another program" in of(findings, "proxy", "warn")[0]["what"]


def test_a_stale_record(shell, ask):
    shell.run("start")
    record = (shell.data / "run" / "daemon.json").read_text()
    shell.run("stop", "--force")
    (shell.data / "run" / "daemon.json").write_text(record)
    assert any("stale" in item["what"] for item in of(ask(), "proxy"))


def test_an_older_proxy_and_one_with_other_settings(shell, ask, upstream):
    shell.run("start", DBPROXY_UPSTREAM_URL=upstream)
    file = shell.data / "run" / "daemon.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": "0.0.1"}))
    warnings = of(ask("--log-level", "DEBUG"), "proxy", "warn")
    assert any("0.0.1" in item["what"] for item in warnings)
    assert any("log_level" in item["what"] for item in warnings)


def test_a_damaged_root_certificate(shell, ask):
    shell.run("start")
    (shell.data / "ca" / "bundle.pem").write_text("damaged")
    assert of(ask(), "root", "fail")


def test_an_open_folder_of_keys(shell, ask):
    shell.run("start")
    (shell.data / "ca").chmod(0o755)
    assert "open to others" in of(ask(), "root", "fail")[0]["what"]


def test_a_missing_client_and_its_version(shell, ask):
    assert of(ask(), "client", "warn")
    shell.script("claude", "#!/bin/sh\necho '2.1.329 (Claude Code)'\n")
    assert "2.1.329" in of(ask(), "client", "ok")[0]["what"]
    shell.script("claude", "#!/bin/sh\necho '0.2.9 (Claude Code)'\n")
    assert of(ask(), "client", "warn")
    shell.script("claude", "#!/bin/sh\necho huh\n")
    assert of(ask(), "client", "warn")


def test_overriding_settings_files_and_variables(shell, ask):
    file = shell.home / ".claude" / "settings.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"env": {"HTTPS_PROXY": "http://corp:1", "NODE_EXTRA_CA_CERTS": "/x"}}))
    found = of(ask(ANTHROPIC_BASE_URL="https://gw.example", CLAUDE_CODE_USE_VERTEX="1"), "client settings", "fail")
    assert len(found) == 4
    assert sum(str(file) in item["what"] for item in found) == 2
    file.write_text("{broken")
    assert "JSON" in of(ask(), "client settings", "warn")[0]["what"]


def test_no_proxy_and_own_bundles(ask):
    findings = ask(NO_PROXY="*", CURL_CA_BUNDLE="/own.pem")
    assert "NO_PROXY" in of(findings, "NO_PROXY", "ok")[0]["what"]
    assert "CURL_CA_BUNDLE" in of(findings, "CA variables", "warn")[0]["what"]


def test_the_persons_own_proxy_is_tried(ask, upstream):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse():
            connection, _ = proxy.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        own = f"http://me:secret@127.0.0.1:{proxy.getsockname()[1]}"
        found = of(ask(HTTPS_PROXY=own), "upstream", "fail")
        thread.join(10)
    assert asked[0].startswith(b"CONNECT ")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in asked[0]
    assert "407" in found[0]["what"]
    assert "secret" not in json.dumps(found)


def test_a_kind_of_proxy_that_we_do_not_speak(ask):
    assert "socks5" in of(ask(HTTPS_PROXY="socks5://127.0.0.1:1080"), "upstream", "warn")[0]["what"]


def test_clients_that_reject_our_certificate_are_shown(shell, ask, upstream):
    """A client that knows only the system's roots, through the real proxy."""
    shell.run("start", DBPROXY_UPSTREAM_URL=upstream)
    code = """
import os, socket, ssl
from urllib.parse import urlsplit
proxy = urlsplit(os.environ["DBPROXY_URL"])
raw = socket.create_connection((proxy.hostname, proxy.port), timeout=10)
raw.sendall(b"CONNECT api.anthropic.com:443 HTTP/1.1\\r\\n\\r\\n")
raw.recv(4096)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
try:
    context.wrap_socket(raw, server_hostname="api.anthropic.com")
except ssl.SSLError:
    pass
"""
    import sys

    shell.run("run", sys.executable, "-c", code)
    pause_for(0.2)
    findings = ask()
    assert "rejected our certificate for api.anthropic.com 1 times" in of(findings, "rejections", "warn")[0]["what"]
