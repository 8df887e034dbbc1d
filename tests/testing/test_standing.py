"""Our servers as processes: a line when they listen, a clean end, one line when they cannot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

SERVERS = pytest.mark.parametrize("name", ["origin", "providers"])


def command(name, *words):
    return [sys.executable, "-m", f"dbproxy.testing.{name}", *words]


@SERVERS
def test_an_address_that_is_not_ours_is_one_line(name):
    # TEST-NET-1 of RFC 5737 is nobody's.
    done = subprocess.run(command(name, "--host", "192.0.2.1"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1


@SERVERS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(name, number):
    with subprocess.Popen(command(name), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert json.loads(server.stdout.readline())
        server.send_signal(number)
        assert server.wait(20) == 0
        assert server.stderr.read() == ""


@SERVERS
def test_the_end_of_its_input_ends_it_if_it_is_told_so(name):
    done = subprocess.run(command(name, "--until-eof"), input="", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)
