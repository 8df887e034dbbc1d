"""The supervisor and its worker, as processes: killed, stopped, crashing, drained, orphaned."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from fleet import Broken, eventually, open_fleet, until

from dbproxy.state import is_alive

DEGRADING = "--supervision=crashes=3,window=60,quiet=5"


async def traffic(fleet, tunnel, streams, asked):
    for _ in range(streams):
        asked.append(await fleet.persist(tunnel=tunnel, attempts=200))


async def kills(fleet, number, how, pauses):
    for _ in range(number):
        await trio.sleep(pauses())
        os.kill(await fleet.worker(), how)


async def test_ten_kills_in_the_middle_of_streams_and_every_answer_is_whole(tmp_path):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    async with open_fleet(tmp_path, "--supervision=crashes=1000") as fleet:
        asked = []
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                for tunnel in (True, True, False, False):
                    nursery.start_soon(traffic, fleet, tunnel, 6, asked)
                await kills(fleet, 10, signal.SIGKILL, lambda: dice.uniform(0.1, 1.5))
        assert len(asked) == 24
        assert max(asked) > 1, "no stream was hit"
        reasons = [line["reason"] for line in fleet.log() if line["event"] == "worker_replaced"]
        assert reasons
        assert set(reasons) == {"signal 9"}
        assert (await fleet.health())["status"] == "ok"


async def test_a_stopped_worker_is_replaced_after_its_silence(tmp_path):
    async with open_fleet(tmp_path, "--supervision=hung=2.5") as fleet:
        asked = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(traffic, fleet, True, 2, asked)
                nursery.start_soon(traffic, fleet, False, 2, asked)
                await trio.sleep(0.5)
                stopped = await fleet.worker()
                began = trio.current_time()
                os.kill(stopped, signal.SIGSTOP)
                await until(lambda: not is_alive(stopped))
                assert 1.0 < trio.current_time() - began < 5.0
        await until(lambda: any("stood still" in line.get("reason", "") for line in fleet.log()))


@pytest.mark.soak
async def test_a_hundred_kills_and_ten_stops(tmp_path):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    async with open_fleet(tmp_path, "--supervision=crashes=1000,hung=2.5") as fleet:
        asked = []
        with trio.fail_after(900):
            async with trio.open_nursery() as nursery:
                for tunnel in (True, True, False, False):
                    nursery.start_soon(traffic, fleet, tunnel, 40, asked)
                for _ in range(10):
                    await kills(fleet, 10, signal.SIGKILL, lambda: dice.uniform(0.1, 1.5))
                    await kills(fleet, 1, signal.SIGSTOP, lambda: dice.uniform(0.1, 1.5))
        assert len(asked) == 160
        assert (await fleet.health())["status"] == "ok"
        assert (await fleet.run("doctor", "--json")).returncode in (0, 1)


async def test_a_pause_of_everything_is_nobodys_fault(tmp_path):
    """Ctrl-Z in a terminal, or a machine that slept: no heartbeat could have come."""
    async with open_fleet(tmp_path, "--supervision=hung=2") as fleet:
        both = [await fleet.worker(), fleet.supervisor()]
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        await trio.sleep(4.5)
        for pid in reversed(both):
            os.kill(pid, signal.SIGCONT)
        await fleet.health()
        await trio.sleep(1.0)
        assert await fleet.worker() == both[0]


async def test_a_killed_worker_is_replaced_within_a_second(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        taken = []
        for _ in range(3):
            old = await fleet.worker()
            os.kill(old, signal.SIGKILL)
            began = trio.current_time()
            await fleet.health()
            taken.append(trio.current_time() - began)
            assert await fleet.worker() != old
        assert min(taken) < 1.0


async def test_connections_wait_while_no_worker_runs(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        os.kill(fleet.supervisor(), signal.SIGSTOP)  # nobody replaces it for a moment
        try:
            os.kill(await fleet.worker(), signal.SIGKILL)
            with socket.create_connection(("127.0.0.1", fleet.port), timeout=5):
                pass
        finally:
            os.kill(fleet.supervisor(), signal.SIGCONT)
        assert await fleet.persist(tunnel=True) == 1


async def test_the_supervisor_is_small(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        os.kill(await fleet.worker(), signal.SIGKILL)
        await fleet.health()
        facts = Path(f"/proc/{fleet.supervisor()}/status").read_text()
        assert int(facts.partition("VmRSS:")[2].split()[0]) <= 15 * 1024


def test_the_supervisor_imports_nothing_heavy():
    code = (
        "import sys, dbproxy.cli, dbproxy.proc.supervisor\n"
        "heavy = ['trio', 'ssl', 'dataclasses', 'pathlib', 'cryptography', 'dbproxy.config', 'dbproxy.paths']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    isolated = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {os.getcwd()!r})\n{code}"]
    done = subprocess.run(isolated, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


async def test_crashes_lead_to_a_blind_tunnel_that_is_said_and_recovers(tmp_path):
    async with open_fleet(tmp_path, DEGRADING) as fleet:
        instance = (await fleet.health())["instance"]
        for _ in range(3):
            os.kill(await fleet.worker(), signal.SIGKILL)
            await fleet.health()
        health = await fleet.health()
        assert health["status"] == "degraded"
        assert "signal 9" in health["problems"]["worker"]
        assert health["instance"] == instance
        assert health["plugins"] == {}
        assert (fleet.data / "run" / "degraded").exists()
        assert b"DEGRADED" in (await fleet.run("status")).stdout
        assert b"tunnelled blindly" in (await fleet.run("doctor")).stdout
        await until(lambda: any(line["event"] == "degraded" for line in fleet.log()))
        assert await fleet.persist(tunnel=False) == 1  # base-URL requests go on
        with socket.create_server(("127.0.0.1", 0)) as server:  # and so do tunnels, blind
            async with await trio.open_tcp_stream("127.0.0.1", fleet.port) as stream:
                target = f"127.0.0.1:{server.getsockname()[1]}"
                await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")

        async def well():
            return (await fleet.health())["status"] == "ok"

        asked = []
        async with trio.open_nursery() as nursery:  # recovering cuts nothing
            nursery.start_soon(traffic, fleet, False, 5, asked)
            await eventually(well)
        assert asked == [1] * 5
        assert not (fleet.data / "run" / "degraded").exists()
        assert await fleet.persist(tunnel=True) == 1


async def test_a_degraded_proxy_does_not_terminate_the_api(tmp_path):
    async with open_fleet(tmp_path, DEGRADING + "0") as fleet:
        assert await fleet.persist(tunnel=True) == 1
        for _ in range(3):
            os.kill(await fleet.worker(), signal.SIGKILL)
            await fleet.health()
        with pytest.raises(Broken):  # this machine knows no such host, and we do not speak for it
            await fleet.attempt(tunnel=True)


async def test_without_its_supervisor_a_worker_serves_on_and_can_be_stopped(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        parent, worker = fleet.supervisor(), await fleet.worker()
        before = fleet.state()
        asked = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic, fleet, True, 2, asked)
            nursery.start_soon(traffic, fleet, False, 2, asked)
            await trio.sleep(0.5)
            os.kill(parent, signal.SIGKILL)
            fleet.processes[0].wait()
        assert asked == [1] * 4
        await until(lambda: fleet.state()["pid"] == worker)
        assert fleet.state()["listen"] == before["listen"]
        assert b"supervisor" in (await fleet.run("status")).stdout
        done = await fleet.run("stop")
        assert done.stdout == b"stopped\n", done
        assert not is_alive(worker)


async def test_an_orphan_is_replaced_by_restart(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        worker, listen = await fleet.worker(), fleet.state()["listen"]
        os.kill(fleet.supervisor(), signal.SIGKILL)
        fleet.processes[0].wait()
        await until(lambda: fleet.state()["pid"] == worker)
        done = await fleet.run("restart", DBPROXY_LISTEN="")
        assert done.returncode == 0, done
        assert fleet.state()["listen"] == listen
        await until(lambda: not is_alive(worker))
        assert await fleet.persist(tunnel=True) == 1


async def test_force_leaves_nothing_behind(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        pids = [fleet.supervisor(), await fleet.worker()]
        assert (await fleet.run("stop", "--force")).stdout == b"stopped\n"
        fleet.processes[0].wait()
        assert not any(map(is_alive, pids))
        assert not (fleet.data / "run" / "daemon.json").exists()
        assert not list((fleet.data / "run" / "supervisors").iterdir())


async def test_force_ends_a_draining_proxy(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        first = [fleet.supervisor(), await fleet.worker()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swallow, fleet)
            await trio.sleep(0.3)
            assert (await fleet.run("restart", DBPROXY_LISTEN="")).returncode == 0
            assert is_alive(first[1])
            assert (await fleet.run("stop", "--force")).stdout == b"stopped\n"
            fleet.processes[0].wait()
            assert not any(map(is_alive, first))


async def swallow(fleet):
    """Hold a tunnel open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with await trio.open_tcp_stream("127.0.0.1", fleet.port) as stream:
            target = f"127.0.0.1:{server.getsockname()[1]}"
            await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_one_signal_to_the_whole_group_drains_once(tmp_path, number):
    async with open_fleet(tmp_path, serve=False) as fleet:
        with (tmp_path / "err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "dbproxy", "serve"],
                env=fleet.environment(),
                stderr=err,
                process_group=0,
            )
        fleet.processes.append(process)
        await fleet.ready()
        asked = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic, fleet, True, 1, asked)
            nursery.start_soon(traffic, fleet, False, 1, asked)
            await trio.sleep(0.4)
            port = fleet.port
            os.killpg(process.pid, number)  # as the terminal does
            await until(lambda: refused(port), 3)
            assert process.poll() is None
        assert asked == [1, 1]
        with trio.fail_after(10):
            assert await trio.to_thread.run_sync(process.wait) == 0
        assert (tmp_path / "err").read_text().count("\n") == 1
        assert not (fleet.data / "run" / "daemon.json").exists()


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_second_signal_ends_it_at_once(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        workers = fleet.workers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swallow, fleet)
            await trio.sleep(0.3)
            fleet.processes[0].send_signal(signal.SIGINT)
            await trio.sleep(0.5)
            assert fleet.processes[0].poll() is None
            fleet.processes[0].send_signal(signal.SIGINT)
            with trio.fail_after(5):
                assert await trio.to_thread.run_sync(fleet.processes[0].wait) == 0
        assert not any(map(is_alive, workers))


async def test_a_worker_that_cannot_start_is_said_once_and_ends_it(tmp_path):
    async with open_fleet(tmp_path, serve=False) as fleet:
        (tmp_path / "bad.pem").write_text("no certificate")
        done = await fleet.run("serve", DBPROXY_UPSTREAM_CA=str(tmp_path / "bad.pem"))
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
        assert b"bad.pem" in done.stderr
        assert not (fleet.data / "run" / "daemon.json").exists()


async def test_who_counts_on_the_port_gets_tunnels_even_if_no_worker_can_start(tmp_path):
    async with open_fleet(tmp_path, serve=False) as fleet:
        (tmp_path / "bad.pem").write_text("no certificate")
        command = [sys.executable, "-m", "dbproxy", "serve", "--patient"]
        env = fleet.environment(DBPROXY_UPSTREAM_CA=str(tmp_path / "bad.pem"))
        with (tmp_path / "err").open("wb") as err:
            fleet.processes.append(subprocess.Popen(command, env=env, stderr=err))
        health = await fleet.ready()
        assert health["status"] == "degraded"


async def test_settings_are_those_of_the_start(tmp_path):
    async with open_fleet(tmp_path, serve=False) as fleet:
        (tmp_path / ".config/dbproxy").mkdir(parents=True)
        file = tmp_path / ".config/dbproxy/config.toml"
        file.write_text("passthrough = true\n")
        fleet.serve()
        assert (await fleet.ready())["passthrough"] is True
        file.write_text("this is no configuration\n")
        os.kill(await fleet.worker(), signal.SIGKILL)
        assert (await fleet.health())["passthrough"] is True


async def test_a_worker_leaves_no_descriptor_of_its_supervisor_to_others(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        os.kill(await fleet.worker(), signal.SIGKILL)
        await fleet.health()
        worker = await fleet.worker()
        links = [os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")]
        assert not [link for link in links if "memfd" in link or link.endswith(".sock")]
        assert json.dumps(fleet.state())
