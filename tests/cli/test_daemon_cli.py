"""`dbproxy start / stop / restart / status / logs / serve`, with real background proxies."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from dbproxy.state import is_alive, pause_for

SERVE = [sys.executable, "-c", "import sys; from dbproxy.cli import main; sys.exit(main())"]


def until(true, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        pause_for(0.02)
    return true()


def test_start_status_stop(shell):
    assert shell.run("status").stdout == "not running\n"
    assert shell.run("status").returncode == 1
    started = shell.run("start")
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith("started: http://127.0.0.1:")
    again = shell.run("start")
    assert again.stdout.startswith("already running: ")
    status = shell.run("status")
    assert status.returncode == 0
    assert "api.anthropic.com" in status.stdout
    pid = shell.state()["pid"]
    assert shell.run("stop").stdout == "stopped\n"
    assert not is_alive(pid)
    assert not (shell.data / "run" / "daemon.json").exists()
    assert shell.run("stop").stdout == "not running\n"
    assert shell.run("stop").returncode == 0


def test_status_as_json(shell):
    off = shell.run("status", "--json")
    assert off.returncode == 1
    assert json.loads(off.stdout)["running"] is False
    shell.run("start")
    on = json.loads(shell.run("status", "--json").stdout)
    assert on["running"] is True
    assert on["url"] == f"http://{shell.state()['listen'][0]}"
    assert on["pid"] == shell.state()["pid"]
    assert on["health"]["status"] == "ok"


def test_the_daemon_keeps_its_files_to_itself(shell):
    shell.run("start")
    for name in ("daemon.json", "control-token", "start.lock"):
        assert stat.S_IMODE((shell.data / "run" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((shell.data / "logs" / "daemon.stderr").stat().st_mode) == 0o600
    assert stat.S_IMODE(shell.data.stat().st_mode) == 0o700


def test_a_taken_port_means_another_one_and_says_who_must_know(shell):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        done = shell.run("start", DBPROXY_LISTEN=taken)
    assert done.returncode == 0
    assert taken in done.stderr
    listen = shell.state()["listen"][0]
    assert listen != taken
    assert f"ANTHROPIC_BASE_URL=http://{listen}" in done.stderr


def test_restart_keeps_the_port(shell):
    shell.run("start")
    before = shell.state()
    done = shell.run("restart", DBPROXY_LISTEN="")
    assert done.returncode == 0, done.stderr
    after = shell.state()
    assert after["listen"] == before["listen"]
    assert after["pid"] != before["pid"]
    assert until(lambda: not is_alive(before["pid"]))
    assert shell.state()["pid"] == after["pid"]


@pytest.fixture
def tunnel(shell):
    """A tunnel through the background proxy to a server that echoes, with a transfer under way."""
    shell.run("start")
    host, port = shell.state()["listen"][0].split(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection((host, int(port)), timeout=20)
        target = f"127.0.0.1:{server.getsockname()[1]}"
        client.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        far, _ = server.accept()
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        with client, far:
            yield client, far


def carries(client, far):
    client.sendall(b"up")
    far.sendall(b"down")
    return far.recv(10) == b"up" and client.recv(10) == b"down"


def test_restart_lets_what_runs_finish(shell, tunnel):
    before = shell.state()
    done = shell.run("restart", DBPROXY_LISTEN="")
    assert done.returncode == 0, done.stderr
    assert shell.state()["listen"] == before["listen"]
    assert is_alive(before["pid"])
    assert carries(*tunnel)
    for end in tunnel:
        end.close()
    assert until(lambda: not is_alive(before["pid"]))
    assert shell.run("status").returncode == 0


def family(shell):
    """The pids of the background proxy: its supervisor's, then its workers'."""
    pid = shell.state()["pid"]
    note = json.loads((shell.data / "run" / "supervisors" / f"{pid}.json").read_text())
    return [pid, *(worker for worker, _ in note["workers"])]


def test_stop_closes_the_port_and_lets_what_runs_finish(shell, tunnel):
    pid = shell.state()["pid"]
    done = shell.run("stop")
    assert done.stdout == "stopped: the port is closed; running answers finish first\n"
    assert carries(*tunnel)
    assert is_alive(pid)
    assert shell.run("start").stdout.startswith("started: ")
    for end in tunnel:
        end.close()
    assert until(lambda: not is_alive(pid))


def test_restart_without_a_daemon_starts_one(shell):
    assert shell.run("restart").stdout.startswith("started: ")


def test_a_killed_daemon_is_replaced(shell):
    shell.run("start")
    pids = family(shell)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not any(map(is_alive, pids)))
    assert shell.run("status").stdout == "not running\n"
    assert shell.run("start").stdout.startswith("started: ")
    assert shell.state()["pid"] not in pids


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "\x00" * 100])
def test_a_broken_record_heals(shell, text):
    (shell.data / "run").mkdir(parents=True)
    (shell.data / "run" / "daemon.json").write_text(text)
    assert shell.run("status").stdout == "not running\n"
    assert shell.run("stop").stdout == "not running\n"
    assert shell.run("start").returncode == 0


def test_a_record_of_somebody_elses_process_is_never_signalled(shell):
    shell.run("start")
    state = shell.state()
    shell.run("stop")
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        record = shell.data / "run" / "daemon.json"
        record.write_text(json.dumps(state | {"pid": bystander.pid}))
        assert shell.run("stop").stdout == "not running\n"
        record.write_text(json.dumps(state | {"pid": bystander.pid}))
        assert shell.run("stop", "--force").stdout == "not running\n"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_older_daemon_makes_way_for_a_newer_version(shell):
    shell.run("start")
    before = shell.state()
    (shell.data / "run" / "daemon.json").write_text(json.dumps(before | {"version": "0.0.9"}))
    done = shell.run("start")
    assert "0.0.9 is replaced" in done.stderr
    assert shell.state()["listen"] == before["listen"]
    assert shell.state()["pid"] != before["pid"]
    (shell.data / "run" / "daemon.json").write_text(json.dumps(shell.state() | {"version": "99.0"}))
    assert shell.run("start").stdout.startswith("already running")


def test_a_hung_daemon_is_named_and_force_ends_it(shell):
    shell.run("start")
    pid, *workers = family(shell)
    for stopped in (pid, *workers):
        os.kill(stopped, signal.SIGSTOP)
    try:
        done = shell.run("start")
        assert done.returncode == 1
        assert f"pid {pid}" in done.stderr
        assert "stop --force" in done.stderr
        assert "lives" in shell.run("status").stdout
    finally:
        assert shell.run("stop", "--force").stdout == "stopped\n"
    assert not any(map(is_alive, (pid, *workers)))


def test_serve_in_the_foreground_ends_well_on_a_signal(shell):
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [*SERVE, "serve", "--listen", "127.0.0.1:0", "--log-level", "debug", "--passthrough"],
            env=shell.environment(DBPROXY_LISTEN=""),
            stderr=subprocess.PIPE,
        )
        try:
            assert b"listens on" in process.stderr.readline()
            health = json.loads(shell.run("status", "--json").stdout)["health"]
            assert health["passthrough"] is True
            process.send_signal(number)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def test_serve_on_a_taken_port_is_one_clear_line(shell):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        done = shell.run("--listen", taken, "serve")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert taken in done.stderr


def test_options_of_start_reach_the_daemon(shell):
    done = shell.run("start", "--intercept", "one.example", "--intercept=two.example", "--log-days", "3")
    assert done.returncode == 0, done.stderr
    assert shell.state()["intercept"] == ["one.example", "two.example"]
    assert shell.state()["settings"]["log_days"] == "3"


def test_a_relative_data_folder_means_the_one_here(shell):
    done = shell.run("start", DBPROXY_DATA_DIR="here")
    assert done.returncode == 0, done.stderr
    try:
        assert (shell.cwd / "here" / "run" / "daemon.json").exists()
    finally:
        shell.run("stop", "--force", DBPROXY_DATA_DIR="here")


def test_logs_shows_the_end_and_reaches_back_over_a_rotation(shell):
    folder = shell.data / "logs"
    folder.mkdir(parents=True)
    (folder / "dbproxy.jsonl.2026-01-01T00").write_text("1\n2\n")
    os.utime(folder / "dbproxy.jsonl.2026-01-01T00", (1, 1))
    (folder / "dbproxy.jsonl").write_text("3\n4\n")
    assert shell.run("logs", "-n", "3").stdout == "2\n3\n4\n"
    assert shell.run("logs").stdout == "1\n2\n3\n4\n"
    assert shell.run("logs", "-n", "0").stdout == ""
    assert shell.run("logs", "-n", "-3").returncode == 2


def test_logs_without_a_log(shell):
    done = shell.run("logs")
    assert done.returncode == 1
    assert "no log yet" in done.stderr


def test_logs_follows_over_a_rotation(shell):
    folder = shell.data / "logs"
    folder.mkdir(parents=True)
    log = folder / "dbproxy.jsonl"
    log.write_text("old\n")
    process = subprocess.Popen([*SERVE, "logs", "-f"], env=shell.environment(), stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"old\n"
        pause_for(0.5)
        with log.open("a") as file:
            file.write("added\n")
        assert process.stdout.readline() == b"added\n"
        log.rename(folder / "dbproxy.jsonl.1")
        log.write_text("after\n")
        assert process.stdout.readline() == b"after\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_reader_that_leaves_is_no_error(shell):
    (shell.data / "logs").mkdir(parents=True)
    (shell.data / "logs" / "dbproxy.jsonl").write_text("x" * 70 + "\n" + "y\n" * 100_000)
    code = (
        f'"{sys.executable}" -c "from dbproxy.cli import main; import sys; sys.exit(main())" logs -n 100000 | head -1'
    )
    done = subprocess.run(["sh", "-c", code], env=shell.environment(), capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
