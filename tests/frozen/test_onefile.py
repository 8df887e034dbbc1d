"""The one-file executable: unpacks itself once, whole or not at all, and never keeps the agent from starting."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dbproxy.proc import frozen

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(400)]


@pytest.fixture
def apps(own_home):
    """Where it unpacks itself to."""
    return own_home / ".cache" / "dbproxy-app"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_unpacks_once_for_this_user_alone(built, start, apps):
    first = start(built.single, "--version")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("dbproxy ")
    assert names(apps) == [built.name]
    assert stat.S_IMODE(apps.stat().st_mode) == 0o700
    assert stat.S_IMODE((apps / built.name).stat().st_mode) & 0o077 == 0
    before = {path: path.lstat().st_ino for path in apps.rglob("*")}
    assert start(built.single, "--version").stdout == first.stdout
    assert {path: path.lstat().st_ino for path in apps.rglob("*")} == before
    assert names(apps / built.name) == names(built.folder)


def test_it_works(built, start):
    done = start(built.single, "selftest")
    assert done.returncode == 0, done
    demo = start(built.single, "demo", timeout=120)
    assert demo.returncode == 0, demo


def test_exit_code_arguments_and_environment_are_the_childs(built, start, tmp_path):
    """The script that unpacks becomes the program: nothing of it may stay, neither mask nor variable nor folder."""
    show = 'env; umask; pwd; echo "[$*]"; exit 7'
    words = ("run", "--", "sh", "-c", show, "x", "a b", "", "*")
    single = start(built.single, *words, cwd=tmp_path)
    try:
        folder = start(built.program, *words, cwd=tmp_path)
    finally:
        start(built.program, "stop")
    assert single.returncode == folder.returncode == 7, single
    assert "[a b  *]" in single.stdout

    def comparable(text):
        # The launch's own secret differs each time, and a shell leaves the name of what it started in `_`.
        return [line for line in text.splitlines() if not line.lower().startswith(("https_proxy=", "_="))]

    assert comparable(single.stdout) == comparable(folder.stdout)


def test_two_at_once(built, own_home, apps):
    env = {"HOME": str(own_home), "PATH": os.defpath}
    command = [str(built.single), "--version"]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    results = [(*process.communicate(timeout=120), process.returncode) for process in running]
    assert {result[2] for result in results} == {0}, results
    assert {result[1] for result in results} == {b""}, results
    assert names(apps) == [built.name]
    assert names(apps / built.name) == names(built.folder)


def test_from_a_path_with_spaces_into_one(built, start, tmp_path):
    folder = tmp_path / "with spaces"
    folder.mkdir()
    shutil.copy(built.single, folder / "db proxy")
    cache = tmp_path / "a cache"
    done = start(folder / "db proxy", "--version", XDG_CACHE_HOME=str(cache))
    assert (done.returncode, done.stderr) == (0, "")
    assert names(cache / "dbproxy-app") == [built.name]


def test_the_older_tools_name(built, start, tmp_path):
    shutil.copy(built.single, tmp_path / "claude-db-proxy")
    assert "not running" in start(tmp_path / "claude-db-proxy", "status").stdout


def test_a_killed_unpacking_leaves_nothing_that_is_taken_for_whole(built, own_home, apps, start):
    env = {"HOME": str(own_home), "PATH": os.defpath}
    process = subprocess.Popen([str(built.single), "--version"], env=env, start_new_session=True)
    while not apps.is_dir() or not list(apps.glob(".unpack-*/*/*")):
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()
    (left,) = names(apps)
    assert left != built.name
    # One that lives is not touched, and neither is one whose process may live where we cannot see it.
    words = left.split("-")
    (apps / "-".join([*words[:2], str(os.getpid()), "abc"])).mkdir()
    (apps / "-".join([words[0], words[1] + "0", *words[2:]])).mkdir()
    others = sorted(set(names(apps)) - {left})
    assert start(built.single, "--version").returncode == 0
    assert names(apps) == sorted([*others, built.name])
    assert (apps / built.name / "BUILD").is_file()


#: Files below the cache that tell how far it is.
MOMENTS = {"the cache is made": "dbproxy-app", "the folder is made": "dbproxy-app/.unpack-*"}
MOMENTS |= {"it is filled": "dbproxy-app/.unpack-*/*/*"}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_while_it_unpacks_cleans_up(built, own_home, apps, number, moment):
    """Whoever started it may look as soon as it is gone: nothing of it is there."""
    env = {"HOME": str(own_home), "PATH": os.defpath}
    process = subprocess.Popen(
        [str(built.single), "run", "echo", "started"], env=env, start_new_session=True, stdout=subprocess.PIPE
    )
    while not list(apps.parent.glob(moment)):
        assert process.poll() is None
    os.killpg(process.pid, number)
    assert process.wait(30) == -number
    assert names(apps) == []
    assert process.communicate()[0] == b""


def test_what_is_not_whole_is_replaced(built, start, apps):
    (apps / built.name).mkdir(parents=True)
    (apps / built.name / "dbproxy").write_text("half of it")
    assert start(built.single, "--version").returncode == 0
    assert names(apps) == [built.name]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1000], "is incomplete"),
        (lambda data: data[:-1000] + bytes(1000), "is damaged"),
    ],
    ids=["cut", "altered"],
)
def test_a_bad_download_is_said(built, start, tmp_path, apps, damage, words):
    file = tmp_path / "dbproxy"
    file.write_bytes(damage(built.single.read_bytes()))
    file.chmod(0o755)
    done = start(file, "--version")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Fetch it again" in done.stderr
    assert names(apps) == []


# ---- no place to unpack to: said clearly, and a launch goes on without us -------------------------------------------


@pytest.fixture(params=["--read-only", "--full"])
def nowhere(request, place, tmp_path):
    """A command's beginning and the variables with which there is no place to unpack to."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return [*place, request.param, str(folder), "--"], {"XDG_CACHE_HOME": str(folder)}


def test_no_place_is_said(built, start, nowhere):
    prefix, variables = nowhere
    done = start(*prefix, built.single, "status", **variables)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert variables["XDG_CACHE_HOME"] in done.stderr
    assert "set XDG_CACHE_HOME" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "echo", "a b", "--flag"),
        ("run", "--", "echo", "a b", "--flag"),
        ("--passthrough", "--log-level", "DEBUG", "run", "echo", "a b", "--flag"),
        ("--log-level=DEBUG", "run", "echo", "a b", "--flag"),
        ("claude", "a b", "--flag"),
        ("--swap-threshold", "0.8", "claude", "a b", "--flag"),
    ],
    ids=" ".join,
)
def test_a_launch_goes_on_without_us(built, start, nowhere, tmp_path, words):
    claude = tmp_path / "bin" / "claude"
    claude.parent.mkdir()
    claude.write_text('#!/bin/sh\necho "$@"\n')
    claude.chmod(0o755)
    prefix, variables = nowhere
    done = start(*prefix, built.single, *words, PATH=f"{claude.parent}:{os.defpath}", **variables)
    assert (done.returncode, done.stdout) == (0, "a b --flag\n"), done
    assert "OFF for this run" in done.stderr
    assert "starts without the proxy" in done.stderr


@pytest.mark.parametrize("words", [("start", "run", "echo"), ("logs", "claude"), ("--version",), ("run",)])
def test_what_is_no_launch_starts_nothing(built, start, nowhere, words):
    prefix, variables = nowhere
    done = start(*prefix, built.single, *words, **variables)
    assert (done.returncode, done.stdout) == (1, ""), done


def test_a_temporary_folder_is_not_needed(built, start, read_only_everywhere, aside):
    shutil.copy(built.single, aside / "single")
    done = start(*read_only_everywhere, aside / "single", "--version", cwd=Path("/"), HOME=str(aside))
    assert (done.returncode, done.stderr) == (0, "")
    assert names(aside / ".cache" / "dbproxy-app") == [built.name]


def test_a_folder_from_which_nothing_may_be_executed(built, start, place, tmp_path):
    done = start(*place, "--no-exec", tmp_path, "--", built.single, "status", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "does not run here" in done.stderr


def test_without_a_home(built, start):
    done = start("env", "-i", f"PATH={os.defpath}", built.single, "status")
    assert done.returncode == 1
    assert "HOME is not set" in done.stderr


if os.getuid() == 0:  # nobody else can make files of another user

    def test_another_users_folder_is_not_trusted(built, start, apps):
        program = apps / built.name
        program.mkdir(parents=True)
        (program / "dbproxy").write_text("#!/bin/sh\necho caught\n")
        (program / "dbproxy").chmod(0o755)
        (program / "BUILD").write_text(built.name)
        for path in (apps, program, *program.iterdir()):
            os.chown(path, 12345, 12345)
        done = start(built.single, "--version")
        assert done.returncode == 1
        assert "belongs to another user" in done.stderr
        assert "caught" not in done.stdout


# ---- versions side by side ------------------------------------------------------------------------------------------


def older(apps, name, *, age):
    """A complete version that was last started ``age`` seconds ago."""
    folder = apps / name
    folder.mkdir(parents=True)
    (folder / "BUILD").write_text(name + "\n")
    when = time.time() - age
    os.utime(folder / "BUILD", (when, when))
    return folder


def test_abandoned_versions_go_and_others_stay(built, start, apps):
    abandoned = older(apps, "0.0.1-aaaaaaaaaaaa", age=2 * 86_400)
    recent = older(apps, "0.0.2-bbbbbbbbbbbb", age=3600)
    used = older(apps, "0.0.3-cccccccccccc", age=2 * 86_400)
    foreign = apps / "something else"
    foreign.mkdir()
    stale, fresh = apps / ".unpack-old", apps / ".unpack-new"
    for folder in (stale, fresh):
        folder.mkdir()
    os.utime(stale, (1, 1))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(folder=str(used))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.read(1) == b"."
        assert start(built.single, "--version").returncode == 0
        assert sorted(names(apps)) == sorted([recent.name, used.name, foreign.name, fresh.name, built.name])
    finally:
        holder.communicate(timeout=10)
    assert not abandoned.exists()
    # Once a day is enough.
    older(apps, "0.0.4-dddddddddddd", age=2 * 86_400)
    start(built.single, "--version")
    assert (apps / "0.0.4-dddddddddddd").exists()


HOLD = """
import sys
from dbproxy.proc import frozen
frozen.hold({folder!r})
sys.stdout.write(".")
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_running_proxy_holds_its_version(built, start, apps):
    assert start(built.single, "start").returncode == 0
    try:
        mark = apps / built.name / "BUILD"
        long_ago = time.time() - 10 * 86_400
        os.utime(mark, (long_ago, long_ago))
        newer = older(apps, "9.9.9-eeeeeeeeeeee", age=0)
        assert frozen.tidy(str(newer)) == []
        assert mark.is_file()
    finally:
        assert "stopped" in start(built.single, "stop").stdout
    os.utime(mark, (long_ago, long_ago))
    deadline = time.monotonic() + 10
    while frozen.tidy(str(newer)) == [] and time.monotonic() < deadline:
        pass
    assert names(apps) == [newer.name]
