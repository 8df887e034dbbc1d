"""The daemon's record: believed only when it is true."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from dbproxy.errors import LaunchError
from dbproxy.state import (
    DaemonState,
    http_get,
    is_alive,
    load,
    pause_for,
    probe,
    process_identity,
    split_address,
    start_lock,
)


@contextmanager
def answering(reply, host="127.0.0.1"):
    """A server that gives every connection the bytes ``reply`` (a callable gets the request)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    seen = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                try:
                    seen.append(connection.recv(65536))
                    for part in [reply] if isinstance(reply, bytes) else reply:
                        connection.sendall(part)
                        pause_for(0.01)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], seen
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def health(state, **changes):
    body = json.dumps({"status": "ok", "version": "1.2", "instance": state.instance} | changes).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def of(port, host="127.0.0.1"):
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    from pathlib import Path

    return DaemonState.of_this_process(listen=(address,), data_dir=Path("/data"), settings={"a": "b"})


def test_a_record_survives_the_disk(tmp_path):
    path = tmp_path / "run" / "daemon.json"
    state = of(8080)
    state.save(path)
    assert load(path) == state
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert state.pid == os.getpid()
    assert state.pid_identity == process_identity(os.getpid())


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:81", "http://127.0.0.1:81"),
        ("[::]:82", "http://[::1]:82"),
        ("[::1]:83", "http://[::1]:83"),
        ("10.1.2.3:84", "http://10.1.2.3:84"),
    ],
)
def test_the_url_is_one_that_a_child_can_reach(listen, url):
    assert replace(of(1), listen=(listen,)).url == url


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "host:-1", "host:٣"])
def test_an_address_without_a_port_is_an_error(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(text)


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"pid": 0},
        {"pid": "12"},
        {"pid": -5},
        {"listen": []},
        {"listen": ["nonsense"]},
        {"listen": ["127.0.0.1:99999"]},
        {"settings": "x"},
        {"instance": None},
    ],
)
def test_a_record_that_makes_no_sense_is_none(tmp_path, change):
    path = tmp_path / "daemon.json"
    of(8080).save(path)
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    assert load(path) is None
    assert load(tmp_path / "missing") is None


def test_forget_leaves_a_successors_record_alone(tmp_path):
    path = tmp_path / "daemon.json"
    old, new = of(1), of(2)
    new.save(path)
    old.forget(path)
    assert load(path) == new
    new.forget(path)
    assert load(path) is None


def test_probe_believes_its_own_instance():
    state = of(1)
    with answering(health(state)) as (port, seen):
        found = probe(replace(state, listen=(f"127.0.0.1:{port}",)), 5)
    assert found is not None
    assert (found.status, found.version) == ("ok", "1.2")
    assert seen[0].startswith(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:")


def test_probe_reads_an_answer_in_pieces_over_ipv6():
    state = of(1, "::1")
    reply = health(state)
    with answering([reply[:9], reply[9:40], reply[40:]], "::1") as (port, _):
        assert probe(replace(state, listen=(f"[::1]:{port}",)), 5) is not None


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    ],
)
def test_another_program_on_the_port_is_not_our_daemon(reply):
    with answering(reply) as (port, _):
        assert probe(of(port), 2) is None


def test_another_users_daemon_on_the_port_is_not_ours():
    state = of(1)
    for changes in ({"instance": "other"}, {"instance": "other", "pid": state.pid}, {"pid": state.pid + 1}):
        with answering(health(state, **changes)) as (port, _):
            assert probe(replace(state, listen=(f"127.0.0.1:{port}",)), 2) is None


def test_probe_gives_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert probe(of(silent.getsockname()[1]), 0.2) is None
        assert time.monotonic() - started < 2


def test_a_trickle_does_not_stretch_the_time():
    with answering([b"x"] * 500) as (port, _):
        started = time.monotonic()
        assert http_get(("127.0.0.1", port), "/", timeout=0.3) is None
        assert time.monotonic() - started < 2


def test_a_record_of_a_dead_or_another_process_is_stale():
    state = of(1)
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    with answering(health(state)) as (port, seen):
        here = replace(state, listen=(f"127.0.0.1:{port}",))
        assert probe(replace(here, pid=ended.pid), 2) is None
        assert probe(replace(here, pid_identity="1"), 2) is None
        assert seen == []


def test_a_zombie_is_not_alive():
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    deadline = time.monotonic() + 10
    try:
        while is_alive(ended.pid) and time.monotonic() < deadline:
            pause_for(0.01)
        assert not is_alive(ended.pid)
    finally:
        ended.wait()


def test_liveness_of_impossible_pids():
    assert not is_alive(0)
    assert not is_alive(-1)
    assert is_alive(os.getpid())
    assert is_alive(os.getpid(), process_identity(os.getpid()))
    assert not is_alive(os.getpid(), "not-me")


def test_the_start_lock_lets_one_in_and_says_so_to_the_other(tmp_path):
    path = tmp_path / "run" / "start.lock"
    with start_lock(path, 1), pytest.raises(LaunchError, match="starting or stopping"), start_lock(path, 0.05):
        pass
    with start_lock(path, 0):
        pass


def test_the_start_lock_dies_with_its_holder(tmp_path):
    path = tmp_path / "run" / "start.lock"
    code = (
        "import sys; from pathlib import Path; from dbproxy.state import start_lock, pause_for\n"
        "with start_lock(Path(sys.argv[1]), 1):\n    print('held', flush=True); pause_for(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LaunchError), start_lock(path, 0.05):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with start_lock(path, 5):
        pass
