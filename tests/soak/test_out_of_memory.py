"""No memory to be had: by the system's rules a kill, by a limit an error at any line. Neither may look like success.

What Linux does to a process when the machine is full is SIGKILL, which tests/proc/test_supervisor.py sends in plenty.
Here the worker meets its limit itself: every allocation may fail, in Python, in OpenSSL, in any library.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import trio
from fleet import BODY, HOST, WHOLE, Broken, open_fleet

from dbproxy.state import is_alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of another process")


def virtual_size(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


async def ask_on(fleet, finished, results):
    """Every answer is the whole one or visibly broken; anything else is kept for the verdict."""
    number = 0
    while not finished.is_set():
        number += 1
        try:
            results.append(await fleet.attempt(tunnel=number % 2 == 0, seconds=30))
        except Broken:
            results.append(None)
            await trio.sleep(0.05)


async def hog(fleet):
    """Requests that never end, with much to hold."""
    head = f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: k\r\nContent-Length: {64 << 20}\r\n\r\n"
    while True:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", fleet.port) as stream:
                await stream.send_all(head.encode() + BODY)
                for _ in range(60):
                    await stream.send_all(bytes(1 << 20))
                await trio.sleep_forever()
        except (OSError, trio.BrokenResourceError):
            await trio.sleep(0.1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("megabytes", [1, 8])
async def test_a_worker_without_memory_corrupts_nothing_and_comes_back(tmp_path, megabytes):
    async with open_fleet(tmp_path, "--supervision=crashes=1000") as fleet:
        worker = await fleet.worker()
        results, finished = [], trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask_on, fleet, finished, results)
            await trio.sleep(1.2)
            _, hard = resource.prlimit(worker, resource.RLIMIT_AS)
            resource.prlimit(worker, resource.RLIMIT_AS, (virtual_size(worker) + megabytes * (1 << 20), hard))
            async with trio.open_nursery() as hogs:
                for _ in range(24):
                    hogs.start_soon(hog, fleet)
                await trio.sleep(4)
                hogs.cancel_scope.cancel()
            if is_alive(worker):
                resource.prlimit(worker, resource.RLIMIT_AS, (hard, hard))
            finished.set()
        log = fleet.log()  # every line of it is whole
        failed = [line["error"] for line in log if line["event"].endswith("_crashed")]
        assert any("MemoryError" in error for error in failed) or not is_alive(worker), (failed, results.count(None))
        assert {body for body in results if body is not None} == {WHOLE}
        assert [await fleet.persist(tunnel=tunnel) for tunnel in (True, False)] == [1, 1]
        assert (await fleet.health())["status"] == "ok"
        assert is_alive(fleet.supervisor())
