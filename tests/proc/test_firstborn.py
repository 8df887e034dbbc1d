"""The first worker of a proxy goes on in the process of the command that started it, and looks like any other."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from fleet import open_fleet, until

from dbproxy.proc import firstborn
from dbproxy.state import is_alive

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PROMPT = "what-nobody-else-may-read"
#: With it, `python -m dbproxy` finds modules where an executed worker would, as the executable does.
SAFE = {"PYTHONSAFEPATH": "1"}


def words_of(pid: int) -> list[str]:
    return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]


def signals_of(pid: int, row: str) -> set[int]:
    text = Path(f"/proc/{pid}/status").read_text().split(f"{row}:\t", 1)[1].split("\n", 1)[0]
    return {number for number in range(1, 65) if int(text, 16) >> (number - 1) & 1}


async def launched(fleet, **env) -> int:
    """The first worker of the proxy that a launch started."""
    done = await fleet.run("run", "true", PROMPT, **env)
    assert done.returncode == 0, done.stderr
    await fleet.ready()
    return await fleet.worker()


@linux
async def test_a_worker_that_went_on_here_looks_like_an_executed_one(tmp_path):
    async with open_fleet(tmp_path, serve=False) as fleet:
        first = await launched(fleet, **SAFE)
        words = words_of(first)
        assert words[0].startswith("python"), words
        assert words[1:4] == ["-m", "dbproxy", "work"], words
        assert not any(PROMPT in word for word in words)
        environ = Path(f"/proc/{first}/environ").read_bytes()
        assert environ.strip(b"\0") == b""
        ignored = signals_of(first, "SigIgn")
        os.kill(first, signal.SIGKILL)
        await until(lambda: fleet.workers() not in ([first], []))
        second = await fleet.worker()
        await fleet.health()
        assert words_of(second)[1:4] == words[1:4]
        assert signals_of(second, "SigIgn") == ignored >= {signal.SIGPIPE, signal.SIGINT, signal.SIGTERM}
        assert signals_of(second, "SigBlk") == set()


@linux
async def test_a_worker_that_went_on_here_keeps_no_descriptor_of_others(tmp_path):
    async with open_fleet(tmp_path, serve=False) as fleet:
        worker = await launched(fleet, **SAFE)
        links = [os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")]
        assert not [link for link in links if "memfd" in link or link.endswith((".sock", ".lock"))], links
        assert os.readlink(f"/proc/{worker}/cwd") == "/"


@linux
async def test_where_modules_could_come_from_the_working_folder_a_worker_is_executed(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "trio.py").write_text(f"open({str(trace)!r}, 'w')\nraise SystemExit\n")
    async with open_fleet(tmp_path, serve=False) as fleet:
        first = await launched(fleet)
        assert words_of(first)[1:4] == ["-m", "dbproxy", "work"]
        assert Path(f"/proc/{first}/environ").read_bytes().count(b"=") > 1
        assert not trace.exists()


@linux
async def test_a_worker_that_cannot_go_on_says_why_in_the_foreground(tmp_path):
    async with open_fleet(tmp_path, serve=False) as fleet:
        nothing = tmp_path / "nothing.pem"
        done = await fleet.run("serve", DBPROXY_UPSTREAM_CA=str(nothing), **SAFE)
        assert done.returncode == 1
        assert f"dbproxy: DBPROXY_UPSTREAM_CA: {nothing} cannot be read".encode() in done.stderr
        assert not fleet.families()


def test_a_worker_without_a_supervisor_is_ended():
    first = firstborn.start(["sleep"], lambda control: ["60"], os.environ, fds=(), here=None)
    assert first is not None
    assert is_alive(first.pid)
    first.give_up()
    assert not is_alive(first.pid)


def test_without_a_descriptor_left_the_supervisor_has_to_start_it(monkeypatch):
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(firstborn.socket, "socketpair", none_left)
    assert firstborn.start(["true"], lambda control: [], os.environ, fds=(), here=None) is None
