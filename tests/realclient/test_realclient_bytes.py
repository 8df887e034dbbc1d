"""Byte fidelity with the real client: what our listener decrypted is what the API received, and back the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import wirebytes

pytestmark = pytest.mark.realclient
HERE = Path(__file__).resolve().parent


# A CONNECT proxy that knows nothing: what the comparison says without a proxy of ours in the way.
BLIND = """
import os, socket, subprocess, sys, threading
server = socket.create_server(("127.0.0.1", 0))
def copy(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
def serve():
    while True:
        client, _ = server.accept()
        head = b""
        while not head.endswith(b"\\r\\n\\r\\n"):
            head += client.recv(1)
        origin = socket.create_connection(("127.0.0.1", 443))
        client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        for pair in ((client, origin), (origin, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
env = dict(os.environ, HTTPS_PROXY=proxy, NODE_EXTRA_CA_CERTS=sys.argv[1])
sys.exit(subprocess.run(sys.argv[2:], env=env).returncode)
"""
ARGUMENTS = ("-p", "please do it", "--allowedTools", "Bash")
SCRIPT = {"scenario": "tools", "options": {"steps": 3}}


def listener(island, client):
    """The client with the eavesdropper before it."""
    return [sys.executable, str(HERE / "eavesdrop.py"), str(island.folder / "heard"), *client.command(), *ARGUMENTS]


def heard(island):
    """What went through the tunnels: requests and answers."""
    sent, got = [], []
    for file in sorted((island.folder / "heard").glob("*.host")):
        assert file.read_text() == "api.anthropic.com"
        sent += wirebytes.messages(file.with_suffix(".sent").read_bytes())
        got += wirebytes.messages(file.with_suffix(".got").read_bytes())
    return sorted(sent), sorted(got)


def at_the_api(story):
    """What the fake API received and answered."""
    received = [wirebytes.messages(request.head + request.body) for request in story.requests]
    answered = []
    for request in story.requests:
        answer = request.about["answer"]
        start, fields = wirebytes.end_to_end(answer["head"].encode("latin-1"))
        answered.append(wirebytes.Message(start, fields, answer["body"].encode("latin-1")))
    return sorted(message for (message,) in received), sorted(answered)


def test_the_comparison_holds_without_a_proxy_of_ours(island, client):
    blind = island.folder / "blind.py"
    blind.write_text(BLIND)
    command = [sys.executable, str(blind), str(island.ca), *listener(island, client)]
    story = island.run(SCRIPT, island.step(*command))
    assert story.steps[0].code == 0, story
    assert len(story.messages) >= 4, story
    assert heard(island) == at_the_api(story)


def test_every_decrypted_byte_arrives_both_ways(island, client):
    run = island.step("dbproxy", "run", "--", *listener(island, client))
    story = island.run(SCRIPT, run, island.step("dbproxy", "stop"))
    assert [step.code for step in story.steps] == [0, 0], story
    assert len(story.messages) >= 4, story
    assert heard(island) == at_the_api(story)
