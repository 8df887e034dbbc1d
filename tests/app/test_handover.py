"""Restart and upgrade under load: the port is never closed, and what runs is finished by whom it began with."""

from __future__ import annotations

import shutil
import socket

import pytest
import trio
from fleet import ROOT, open_fleet, until

from dbproxy.state import is_alive


def newer(folder, version="99.0.1"):
    """A copy of this program that calls itself another version."""
    copy = folder / "newer"
    shutil.copytree(ROOT / "dbproxy", copy / "dbproxy", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "dbproxy" / "__init__.py").write_text(f'"""Newer."""\n\n__version__ = "{version}"\n')
    return copy


async def load(fleet, results, finished, tunnel):
    while not finished.is_set():
        results.append(await fleet.attempt(tunnel=tunnel))


async def knock(fleet, finished, counts):
    """Connect all the time: a refused connection is what must not be."""
    port = fleet.port
    while not finished.is_set():
        with trio.fail_after(5):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.aclose()
        counts.append(1)
        await trio.sleep(0.002)


async def under_load(fleet, act, *, streams=6):
    """Run ``act`` while streams run and begin all the time; every one of them must be whole at its first attempt."""
    results, counts, finished = [], [], trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(knock, fleet, finished, counts)
        for number in range(streams):
            nursery.start_soon(load, fleet, results, finished, number % 2 == 0)
            await trio.sleep(0.15)
        await act()
        await trio.sleep(0.5)
        finished.set()
    from fleet import WHOLE

    assert len(results) >= streams
    assert [len(body) for body in results if body != WHOLE] == []
    assert len(counts) > 50


async def test_restart_under_load_loses_no_stream(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        before = fleet.state()
        old = [fleet.supervisor(), await fleet.worker()]

        async def act():
            done = await fleet.run("restart", DBPROXY_LISTEN="")
            assert done.returncode == 0, done

        await under_load(fleet, act)
        assert fleet.state()["listen"] == before["listen"]
        assert fleet.state()["instance"] != before["instance"]
        assert (await fleet.health())["instance"] == fleet.state()["instance"]
        await until(lambda: not any(map(is_alive, old)))
        fleet.processes[0].wait()


async def test_upgrade_under_load_loses_no_stream(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        before = fleet.state()
        fleet.root = newer(tmp_path)

        async def act():
            done = await fleet.run("start", DBPROXY_LISTEN="")
            assert done.returncode == 0, done
            assert b"is replaced by 99.0.1" in done.stderr

        await under_load(fleet, act)
        assert fleet.state()["listen"] == before["listen"]
        assert fleet.state()["version"] == (await fleet.health())["version"] == "99.0.1"
        await until(lambda: not is_alive(before["pid"]))


async def test_an_upgrade_that_cannot_start_leaves_the_old_one_serving(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        before = fleet.state()
        fleet.root = newer(tmp_path)
        (fleet.root / "dbproxy" / "app" / "run.py").write_text('"""Broken."""\n\nraise RuntimeError\n')

        async def act():
            done = await fleet.run("start", DBPROXY_LISTEN="")
            assert done.returncode == 0, done
            assert b"goes on" in done.stderr

        await under_load(fleet, act)
        assert fleet.state() == before
        assert is_alive(before["pid"])
        assert len(fleet.families()) == 1


async def test_a_restart_that_cannot_start_leaves_the_old_one_serving(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        before = fleet.state()
        (tmp_path / "bad.pem").write_text("no certificate")
        done = await fleet.run("restart", DBPROXY_LISTEN="", DBPROXY_UPSTREAM_CA=str(tmp_path / "bad.pem"))
        assert done.returncode == 1
        assert b"bad.pem" in done.stderr
        assert fleet.state() == before
        assert await fleet.persist(tunnel=True) == 1


async def test_another_address_is_bound_the_old_way(tmp_path):
    async with open_fleet(tmp_path) as fleet:
        before = fleet.state()
        with socket.create_server(("127.0.0.1", 0)) as other:
            free = f"127.0.0.1:{other.getsockname()[1]}"
        done = await fleet.run("restart", DBPROXY_LISTEN=free)
        assert done.returncode == 0, done
        assert fleet.state()["listen"] == [free]
        await until(lambda: not is_alive(before["pid"]))


async def test_the_second_listener_is_handed_over_too(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
    async with open_fleet(tmp_path, settings=("--dashboard-port", port)) as fleet:
        before = fleet.state()
        assert len(before["listen"]) == 2

        async def act():
            done = await fleet.run("restart", DBPROXY_LISTEN="", DBPROXY_DASHBOARD_PORT=port)
            assert done.returncode == 0, done

        await under_load(fleet, act, streams=2)
        assert fleet.state()["listen"] == before["listen"]
        assert fleet.state()["dashboard"] == before["dashboard"]


@pytest.mark.parametrize("length", [10, 120])
async def test_the_socket_in_run_works_below_a_long_path_too(tmp_path, length):
    home = tmp_path / ("x" * length)
    home.mkdir()
    async with open_fleet(home) as fleet:

        async def act():
            assert (await fleet.run("restart", DBPROXY_LISTEN="")).returncode == 0

        await under_load(fleet, act, streams=1)


async def test_several_restarts_at_once(tmp_path):
    async with open_fleet(tmp_path) as fleet:

        async def act():
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(one)

        async def one():
            done = await fleet.run("restart", DBPROXY_LISTEN="")
            assert done.returncode == 0, done

        await under_load(fleet, act, streams=2)
        pid = fleet.supervisor()
        await until(lambda: [family.supervisor[0] for family in fleet.families()] == [pid])
