"""The island itself: nothing gets off it, nothing of the person is seen on it, nothing survives it."""

from __future__ import annotations

import os
import pwd
import struct
import subprocess
import sys
import time
from pathlib import Path

import fakedns
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.realclient
HERE = Path(__file__).resolve().parent


@pytest.fixture
def ashore(client):
    """Runs a Python snippet on an island; the client fixture skips where there are no namespaces."""

    def run(code, *keep, python=sys.executable):
        command = [sys.executable, str(HERE / "isolate.py")]
        for path in (sys.base_prefix, sys.prefix, *keep):
            command += ["--keep", str(path)]
        return subprocess.run(
            [*command, "--", python, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_only_loopback_is_there(ashore):
    code = (
        "import socket\n"
        "print(socket.if_nameindex())\n"
        "server = socket.create_server(('127.0.0.1', 443))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "try: socket.create_connection(('192.0.2.1', 443), 5)\n"
        "except OSError as error: print(error.errno)\n"
    )
    result = ashore(code)
    assert result.stdout == "[(1, 'lo')]\n101\n", result.stderr


def test_homes_and_sockets_of_the_machine_are_hidden(ashore):
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    shown = {
        path.relative_to(home).parts[0]
        for path in map(Path, (sys.prefix, sys.base_prefix))
        if path.is_relative_to(home)
    }
    result = ashore(f"import os; print(os.listdir('/run'), sorted(os.listdir({str(home)!r})))")
    assert result.stdout == f"['island-resolv.conf'] {sorted(shown)}\n", result.stderr


def test_the_exit_code_comes_back_and_orphans_end(ashore, tmp_path):
    mark = tmp_path / "alive"
    code = (
        "import subprocess, sys\n"
        f"subprocess.Popen(['sh', '-c', 'while :; do date +%N > {mark}; sleep 0.05; done'], start_new_session=True)\n"
        "import time; time.sleep(0.3)\n"
        "sys.exit(7)\n"
    )
    assert ashore(code, tmp_path).returncode == 7
    before = mark.read_text()
    time.sleep(0.3)  # noqa: TID251  the orphan would have written by now
    assert mark.read_text() == before


def test_a_missing_program_is_said(ashore):
    result = ashore("", python="/nowhere/python")
    assert result.returncode == 127
    assert "/nowhere/python" in result.stderr


def question(name, kind):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0" + labels + b"\0" + struct.pack(">HH", kind, 1)


def test_every_name_is_here():
    name, answer = fakedns.reply(question("api.anthropic.com", 1))
    assert name == "api.anthropic.com"
    assert answer[:2] == b"\x12\x34"
    assert answer.endswith(b"\0\4\x7f\0\0\1")
    name, answer = fakedns.reply(question("api.anthropic.com", 28))
    assert struct.unpack_from(">HH", answer, 4) == (1, 0)


@given(st.binary(max_size=64))
def test_garbage_does_not_end_the_name_server(query):
    try:
        fakedns.reply(query)
    except (IndexError, struct.error, UnicodeDecodeError):
        pass
