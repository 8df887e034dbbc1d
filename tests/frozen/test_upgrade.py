"""Build N is replaced by build N+1 under load: two executables, as two downloads are, and no stream is lost."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from fleet import STREAM, WHOLE, Fleet, until

from dbproxy.state import is_alive
from dbproxy.testing.origin import open_origin

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(400)]


@dataclass
class BuiltFleet(Fleet):
    """A fleet whose proxy is an executable; nothing of this working tree is on its path."""

    program: Path = Path()

    def environment(self, **env):
        kept = super().environment(**env)
        del kept["PYTHONPATH"]
        return kept | {"PATH": os.defpath}

    def serve(self, *words):
        with (self.home / "serve.err").open("ab") as err:
            command = [str(self.program), "serve", *words]
            process = subprocess.Popen(command, env=self.environment(), stderr=err, cwd=self.home)
        self.processes.append(process)
        return process

    async def run(self, *words, **env):
        return await trio.run_process(
            [str(self.program), *words],
            env=self.environment(**env),
            cwd=self.home,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )

    def programs(self):
        """Where the processes on record run from."""
        family = next(family for family in self.families() if family.supervisor[0] == self.supervisor())
        pids = [family.supervisor[0], *(pid for pid, identity in family.workers if is_alive(pid, identity))]
        return {Path(os.readlink(f"/proc/{pid}/exe")).parent for pid in pids}


@dataclass
class Load:
    """Streams that run and begin all the time, and somebody who knocks without pause."""

    fleet: Fleet
    results: list
    knocks: int = 0

    async def stream(self, finished, tunnel):
        while not finished.is_set():
            self.results.append(await self.fleet.attempt(tunnel=tunnel))

    async def knock(self, finished, port):
        while not finished.is_set():
            with trio.fail_after(5):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.aclose()
            self.knocks += 1
            await trio.sleep(0.002)

    async def during(self, act):
        finished = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.knock, finished, self.fleet.port)
            for number in range(8):
                nursery.start_soon(self.stream, finished, number % 2 == 0)
                await trio.sleep(0.12)
            result = await act()
            await trio.sleep(0.5)
            finished.set()
        return result


@pytest.mark.parametrize("kind", ["folder", "one file", "installed"])
async def test_an_upgrade_under_load_loses_no_stream(built, built_next, own_home, kind):
    """Every answer is whole at the first attempt, no connection is refused, and all of it is the new build then."""
    async with open_origin(STREAM, tls=True) as origin:
        fleet = BuiltFleet(own_home, origin)
        if kind == "installed":
            fleet.program = own_home / ".local" / "bin" / "dbproxy"

        async def use(build):
            if kind == "installed":
                command = ["sh", str(build.folder / "install.sh"), str(build.archive)]
                await trio.run_process(command, env=fleet.environment(), capture_stdout=True, capture_stderr=True)
            else:
                fleet.program = build.program if kind == "folder" else build.single

        await use(built)
        try:
            fleet.serve()
            await fleet.ready()
            before, old = fleet.state(), [fleet.supervisor(), await fleet.worker()]
            old_places = fleet.programs()

            async def act():
                await use(built_next)
                return await fleet.run("start", DBPROXY_LISTEN="")

            load = Load(fleet, [])
            done = await load.during(act)
            assert done.returncode == 0, done
            assert b"is replaced by 99.0.1" in done.stderr
            assert len(load.results) >= 8
            assert [len(body) for body in load.results if body != WHOLE] == []
            assert load.knocks > 50
            after = fleet.state()
            assert before["version"] != after["version"] == (await fleet.health())["version"] == "99.0.1"
            assert after["listen"] == before["listen"]
            await until(lambda: not any(map(is_alive, old)))
            assert old_places.isdisjoint(fleet.programs())
            assert await fleet.persist(tunnel=True) == 1
        finally:
            fleet.end()
