"""Programs that an agent starts: curl in its ways, git through a blind tunnel to a server of its own."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
import trustme

from dbproxy.scope import Scope, new_id, new_secret
from dbproxy.testing.origin import say

BODY = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})
STREAM = json.dumps({"model": "m", "max_tokens": 1, "stream": True, "messages": [{"role": "user", "content": "x"}]})
FIELDS = ("-H", "x-api-key: k", "-H", "anthropic-version: 2023-06-01", "-H", "content-type: application/json")
URL = "https://api.anthropic.com/v1/messages"


def run(served, *command, **how):
    done = subprocess.run(command, env=served.env, capture_output=True, timeout=60, check=False, **how)
    assert done.returncode == 0, done.stderr.decode()
    return done


def curl(served, *arguments):
    return run(served, program("curl"), "-sS", "--max-time", "30", *arguments).stdout


def program(name):
    path = shutil.which(name)
    assert path, f"{name} is needed for this test: install the system package {name}"
    return path


# -- curl -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_curl_asks_for_a_message(served, version):
    got = curl(served, version, *FIELDS, "-d", BODY, URL)
    assert json.loads(got)["type"] == "message"
    assert served.requests[0].body.decode() == BODY


def test_curl_streams(served):
    served.script(say("word " * 200, gap=0.02))
    got = curl(served, "-N", *FIELDS, "-d", STREAM, URL)
    assert got == bytes(served.requests[0].sent.body)
    assert b"message_stop" in got


@pytest.mark.parametrize("chunked", [False, True])
def test_curl_uploads_with_its_expectation(served, tmp_path, chunked):
    """Above a megabyte curl says Expect: 100-continue by itself."""
    path = tmp_path / "upload"
    path.write_bytes(b"0123456789abcdef" * 200_000)
    extra = ("-H", "Transfer-Encoding: chunked") if chunked else ()
    curl(served, *FIELDS, *extra, "-T", str(path), "https://api.anthropic.com/v1/files")
    received = served.requests[0]
    assert received.method == "PUT"
    assert received.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_curl_by_base_url(served):
    got = curl(served, *FIELDS, "-d", BODY, f"http://127.0.0.1:{served.port}/some/prefix/v1/messages")
    assert json.loads(got)
    assert served.requests[0].target == "/some/prefix/v1/messages"


def test_curl_by_base_url_with_tls(served, tmp_path):
    own = tmp_path / "own.pem"
    own.write_bytes(served.rig.proxy.authority.own_pem())
    url = f"https://localhost:{served.port}/v1/messages"
    assert json.loads(curl(served, "--cacert", str(own), *FIELDS, "-d", BODY, url))["type"] == "message"


def test_curl_asks_in_absolute_form(served):
    """With a proxy for http: URLs, which is how some clients spell everything."""
    proxy = f"http://127.0.0.1:{served.port}"
    got = curl(served, "-x", proxy, *FIELDS, "-d", BODY, "http://api.anthropic.com/v1/messages")
    assert json.loads(got)["type"] == "message"
    assert served.requests[0].target == "/v1/messages"


def test_curl_with_the_credentials_of_a_launch(served):
    scope = Scope(new_id(), new_secret())
    scope.save(served.rig.proxy.paths.scopes)
    curl(served, "--proxy-user", scope.userinfo, *FIELDS, "-d", BODY, URL)
    curl(served, "--proxy-user", "some:body", *FIELDS, "-d", BODY, URL)
    assert len(served.requests) == 2
    assert all(received.header("proxy-authorization") is None for received in served.requests)
    log, until = served.rig.proxy.paths.log_file, time.monotonic() + 10
    while not log.exists() or log.read_text().count("exchange_finished") < 2:
        assert time.monotonic() < until
        threading.Event().wait(0.05)
    assert scope.id in log.read_text()
    assert scope.secret not in log.read_text()


def test_curl_head_and_many_at_once(served):
    head = curl(served, "-I", "https://api.anthropic.com/v1/models").decode().lower()
    assert "content-length" in head
    urls = [f"https://api.anthropic.com/v1/models?n={number}" for number in range(20)]
    curl(served, "-Z", "--parallel-max", "20", *FIELDS, *urls)
    assert len(served.requests) == 21


def test_curl_says_why_when_a_tunnel_is_refused(served):
    done = subprocess.run(
        [program("curl"), "-sS", "--max-time", "30", "https://no-such-host.invalid/"],
        env=served.env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 56
    assert b"502" in done.stderr


# -- git --------------------------------------------------------------------------------------------------------------


class Backend(http.server.CGIHTTPRequestHandler):
    """Git's own HTTP back end: a CGI program."""

    folder = ""
    path_taken: list[str] = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.serve()

    def do_POST(self):
        self.serve()

    def serve(self):
        self.path_taken.append(self.path)
        path, _, query = self.path.partition("?")
        length = self.headers.get("content-length", "")
        body = self.rfile.read(int(length)) if length else b""
        env = {
            "PATH": self.server.search,
            "GIT_PROJECT_ROOT": self.folder,
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": length,
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
        }
        done = subprocess.run(
            [program("git"), "http-backend"], input=body, env=env, capture_output=True, timeout=30, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n"))
        status = int(lines.pop(b"Status", b"200 OK").split(b" ")[0])
        self.send_response(status)
        for name, value in lines.items():
            self.send_header(name.decode(), value.decode())
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def git_server(folder, search):
    """A git server over TLS with a certificate of its own; gives its port and what to trust."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("git.localhost", "localhost").configure_cert(context)
    seen = []
    handler = type("Handler", (Backend,), {"folder": str(folder), "path_taken": seen})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.search = search
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1], authority.cert_pem.bytes(), seen
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_git_clones_through_a_blind_tunnel(served, tmp_path):
    git = program("git")
    project, work = tmp_path / "served", tmp_path / "work"
    work.mkdir()
    served.env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "NO_PROXY": "", "no_proxy": ""}
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.test")
    run(served, git, "init", "-q", "-b", "main", cwd=work)
    (work / "large.bin").write_bytes(hashlib.shake_256(b"git").digest(3_000_000))
    (work / "text.txt").write_text("text\n")
    run(served, git, "add", ".", cwd=work)
    run(served, git, *identity, "commit", "-q", "-m", "first", cwd=work)
    run(served, git, "clone", "-q", "--bare", str(work), str(project / "x.git"))
    with git_server(project, served.env["PATH"]) as (port, pem, seen):
        trusted = tmp_path / "git.pem"
        trusted.write_bytes(pem)
        trust = ("-c", f"http.sslCAInfo={trusted}")
        run(served, git, *trust, "clone", "-q", f"https://localhost:{port}/x.git", str(tmp_path / "clone"))
        (work / "text.txt").write_text("more\n")
        run(served, git, *identity, "commit", "-q", "-am", "second", cwd=work)
        run(served, git, "push", "-q", str(project / "x.git"), "main", cwd=work)
        run(served, git, *trust, "pull", "-q", cwd=tmp_path / "clone")
    assert (tmp_path / "clone" / "large.bin").read_bytes() == (work / "large.bin").read_bytes()
    assert (tmp_path / "clone" / "text.txt").read_text() == "more\n"
    assert any("git-upload-pack" in path for path in seen)
    assert served.rig.proxy.counters.connects_tunnelled_total >= 2
