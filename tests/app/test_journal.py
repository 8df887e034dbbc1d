"""The journal: what it writes, when it rotates, what it survives, what it hides."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.app import journal as journal_module
from dbproxy.app.journal import MAX_LINE_BYTES, Journal, mask

HOUR = 3600.0
START = datetime(2026, 3, 1, 10, 59, 58, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self, now=START):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_journal(tmp_path, clock):
    opened = []

    def opener(level="info", path=tmp_path / "logs" / "dbproxy.jsonl", **options):
        made = Journal(path, level, clock=clock, gather=0.001, retry=0.01, **options)
        opened.append(made)
        return made

    yield opener
    for made in opened:
        made.close(5)


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(path: Path):
    return [line["event"] for line in lines(path)]


def rotated(path: Path):
    return sorted(item.name for item in path.parent.iterdir() if item.name.startswith(path.name + "."))


def test_a_line_is_one_json_object_with_the_common_fields_first(open_journal):
    journal = open_journal()
    journal.emit("connect_redirect", conv_id="c1", exchange_id=7, host="api.anthropic.com")
    assert journal.flush(5)
    text = journal.path.read_text()
    assert text == (
        '{"timestamp":"2026-03-01T10:59:58.000Z","level":"info","event":"connect_redirect",'
        '"conv_id":"c1","exchange_id":7,"host":"api.anthropic.com"}\n'
    )
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


def test_what_is_below_the_level_is_not_kept(open_journal):
    journal = open_journal("WARNING")
    journal.emit("quiet", level="debug")
    journal.emit("usual")
    journal.emit("loud", level="warning")
    journal.emit("worse", level="error")
    assert journal.flush(5)
    assert events(journal.path) == ["loud", "worse"]


def test_rotation_goes_on_after_the_first_one(open_journal, clock):
    journal = open_journal()
    for number in range(4):
        journal.emit(f"e{number}")
        assert journal.flush(5)
        clock.now += HOUR
    names = [f"dbproxy.jsonl.2026-03-01T{hour}" for hour in (10, 11, 12)]
    assert rotated(journal.path) == names
    assert [events(journal.path.with_name(name)) for name in names] == [["e0"], ["e1"], ["e2"]]
    assert events(journal.path) == ["e3"]


def test_a_restart_in_a_later_hour_rotates_what_it_finds(open_journal, clock):
    first = open_journal()
    first.emit("before")
    assert first.close(5)
    clock.now += 3 * HOUR
    second = open_journal()
    second.emit("after")
    assert second.flush(5)
    assert rotated(second.path) == ["dbproxy.jsonl.2026-03-01T10"]
    assert events(second.path) == ["after"]


def test_a_clock_that_goes_back_rotates_nothing(open_journal, clock):
    journal = open_journal()
    for step in (0, -2 * HOUR, 2 * HOUR):
        clock.now += step
        journal.emit("e")
        assert journal.flush(5)
    assert rotated(journal.path) == []
    assert len(lines(journal.path)) == 3


def test_two_writers_of_one_file_rotate_once_and_lose_nothing(open_journal, clock):
    one, other = open_journal(), open_journal()
    for number in range(3):
        for journal in (one, other):
            journal.emit(f"e{number}")
            assert journal.flush(5)
        clock.now += HOUR
    assert rotated(one.path) == ["dbproxy.jsonl.2026-03-01T10", "dbproxy.jsonl.2026-03-01T11"]
    for name in rotated(one.path):
        assert len(lines(one.path.with_name(name))) == 2
    assert events(one.path) == ["e2", "e2"]


WRITER = """
import sys, time
from pathlib import Path
from dbproxy.app.journal import Journal
path, name, start = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
now = [start]
journal = Journal(path, clock=lambda: now[0], gather=0.001)
for hour in range(5):
    for number in range(200):
        journal.emit("e", writer=name, hour=hour, number=number)
    if not journal.flush(10): sys.exit("not flushed")
    now[0] += 3600
sys.exit(0 if journal.close(10) and not journal.dropped else "lost")
"""


def test_processes_that_share_a_file_tear_no_line_and_lose_none(tmp_path):
    path = tmp_path / "logs" / "dbproxy.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name, str(START)]) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    files = [path, *(path.with_name(name) for name in rotated(path))]
    seen = [(line["writer"], line["hour"], line["number"]) for file in files for line in lines(file)]
    assert len(seen) == len(set(seen)) == 3 * 5 * 200


def test_who_waited_for_the_rotation_of_another_process_does_not_rotate_again(open_journal, clock):
    journal = open_journal()
    journal.emit("one")
    assert journal.flush(5)
    lock = os.open(journal.path.parent / ".dbproxy.jsonl.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    clock.now += HOUR
    journal.emit("two")
    assert not journal.flush(0.2)
    journal.path.rename(journal.path.with_name("dbproxy.jsonl.2026-03-01T10"))
    journal.path.write_text('{"timestamp":"2026-03-01T11:59:58.000Z","level":"info","event":"theirs"}\n')
    os.close(lock)
    assert journal.flush(5)
    assert rotated(journal.path) == ["dbproxy.jsonl.2026-03-01T10"]
    assert events(journal.path) == ["theirs", "two"]


def test_old_files_go_after_the_days_to_keep_and_strangers_stay(open_journal, clock):
    journal = open_journal(days=7)
    journal.emit("first")
    assert journal.flush(5)
    folder = journal.path.parent
    for name in ("2026-02-22T11", "2026-02-22T12", "2026-02-22T12-0001", "2026-03-01T09"):
        (folder / f"dbproxy.jsonl.{name}").write_text("{}\n")
    (folder / "dbproxy.jsonl.mine").write_text("keep")
    (folder / "other.jsonl.2020-01-01T00").write_text("keep")
    clock.now += HOUR  # 2026-03-01T11: seven days back is 2026-02-22T11
    journal.emit("second")
    assert journal.flush(5)
    clock.now += HOUR
    journal.emit("third")
    assert journal.flush(5)
    assert rotated(journal.path) == [
        "dbproxy.jsonl.2026-02-22T12",
        "dbproxy.jsonl.2026-02-22T12-0001",
        "dbproxy.jsonl.2026-03-01T09",
        "dbproxy.jsonl.2026-03-01T10",
        "dbproxy.jsonl.2026-03-01T11",
        "dbproxy.jsonl.mine",
    ]
    assert (folder / "other.jsonl.2020-01-01T00").exists()


def test_at_most_168_files_are_kept(open_journal, clock):
    journal = open_journal(days=7)
    journal.emit("first")
    assert journal.flush(5)
    for number in range(1, 300):
        (journal.path.parent / f"dbproxy.jsonl.2026-03-01T10-{number:04}").write_text("{}\n")
    clock.now += HOUR
    journal.emit("second")
    assert journal.flush(5)
    assert len(rotated(journal.path)) == 168


def test_size_is_bounded_within_an_hour_and_in_all(open_journal):
    journal = open_journal(max_file_bytes=2000, max_total_bytes=10_000)
    for number in range(300):
        journal.emit("e", number=number, text="x" * 100)
        assert journal.flush(5)
    sizes = [journal.path.with_name(name).stat().st_size for name in rotated(journal.path)]
    assert 3 <= len(sizes) <= 5
    assert sum(sizes) <= 10_000
    assert lines(journal.path)[-1]["number"] == 299


def test_a_file_that_was_removed_comes_back(open_journal):
    journal = open_journal()
    journal.emit("one")
    assert journal.flush(5)
    journal.path.unlink()
    journal.emit("two")
    assert journal.flush(5)
    assert events(journal.path) == ["two"]
    assert journal.degraded == ""


def test_a_folder_that_was_removed_comes_back(open_journal):
    journal = open_journal()
    journal.emit("one")
    assert journal.flush(5)
    journal.path.unlink()
    (journal.path.parent / ".dbproxy.jsonl.lock").unlink(missing_ok=True)
    journal.path.parent.rmdir()
    journal.emit("two")
    assert journal.flush(5)
    assert events(journal.path) == ["two"]


def wait_for(condition, timeout=5.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.005)


def test_a_full_disk_degrades_counts_and_heals(open_journal):
    full = [True]

    def opener(path):
        if full[0]:
            return os.open("/dev/full", os.O_WRONLY)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    journal = open_journal(max_queue_bytes=2000, opener=opener)
    for number in range(100):
        journal.emit("e", number=number)
    wait_for(lambda: journal.degraded)
    assert journal.degraded == "the disk is full"
    lost = journal.dropped
    assert 0 < lost < 100
    full[0] = False
    wait_for(lambda: not journal.degraded)
    journal.emit("later")
    assert journal.flush(5)
    found = lines(journal.path)
    assert [line["count"] for line in found if line["event"] == "log_dropped"] == [lost]
    assert [line["number"] for line in found if line["event"] == "e"] == list(range(100 - lost))
    assert found[-1]["event"] == "later"
    assert journal.dropped == lost


LIMITED = """
import json, resource, sys
from pathlib import Path
from dbproxy.app.journal import Journal
path = Path(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
journal = Journal(path, gather=0.2, retry=0.01)
for number in range(50):
    journal.emit("e", number=number)
assert not journal.flush(0.6), "the limit did not bite"
assert journal.degraded, "not degraded"
assert path.stat().st_size == 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert journal.flush(10), "not healed"
assert not journal.degraded and not journal.dropped and journal.close(10)
"""


def test_a_line_that_was_cut_by_the_disk_is_written_again_whole(tmp_path):
    path = tmp_path / "dbproxy.jsonl"
    subprocess.run([sys.executable, "-c", LIMITED, str(path)], check=True, timeout=60)
    whole, torn = [], 0
    for line in path.read_text().splitlines():
        try:
            whole.append(json.loads(line)["number"])
        except ValueError:
            torn += 1
    assert whole == list(range(50))
    assert torn == 1


def test_a_folder_that_cannot_be_made_degrades_and_heals(open_journal, tmp_path):
    (tmp_path / "logs").write_text("in the way")
    journal = open_journal()
    journal.emit("one")
    wait_for(lambda: journal.degraded)
    assert "in the way" in journal.degraded
    (tmp_path / "logs").unlink()
    assert journal.flush(5)
    assert events(journal.path) == ["one"]
    assert journal.degraded == ""


def test_a_rotation_that_is_refused_is_said_and_the_old_file_written_on(open_journal, clock, monkeypatch):
    journal = open_journal()
    journal.emit("one")
    assert journal.flush(5)
    rename = Path.rename

    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    clock.now += HOUR
    journal.emit("two")
    assert journal.flush(5)
    assert "cannot be rotated" in journal.degraded
    assert events(journal.path) == ["one", "two"]
    monkeypatch.setattr(Path, "rename", rename)
    clock.now += 61
    journal.emit("three")
    assert journal.flush(5)
    assert journal.degraded == ""
    assert events(journal.path) == ["three"]


def test_a_fifo_or_a_link_in_its_place_does_not_hang_or_lead_away(open_journal, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    os.mkfifo(logs / "fifo")
    (logs / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("fifo", "link"):
        journal = open_journal(path=logs / name)
        journal.emit("one")
        wait_for(lambda journal=journal: journal.degraded)
        assert journal.close(5)
        assert journal.dropped == 1
    assert not (tmp_path / "elsewhere").exists()


def test_emit_does_not_wait_for_a_disk_that_hangs(open_journal, tmp_path):
    hang = threading.Event()

    def opener(path):
        hang.wait(20)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    journal = open_journal(opener=opener, max_queue_bytes=100_000)
    started = time.monotonic()
    for number in range(2000):
        journal.emit("e", number=number)
    assert time.monotonic() - started < 5
    assert journal.dropped > 0
    assert not journal.close(0.05)
    hang.set()
    assert journal.close(5)
    assert len(lines(journal.path)) == 2000 - journal.dropped + 1  # and the note about what was dropped


def test_the_queue_bound_is_in_bytes_and_freed_by_writing(open_journal):
    journal = open_journal(max_queue_bytes=10_000)
    for _ in range(20):
        for _ in range(10):
            journal.emit("e", text="x" * 500)
        assert journal.flush(5)
    assert journal.dropped == 0


def test_closing_writes_what_waits_and_later_events_count_as_lost(open_journal):
    journal = open_journal()
    for number in range(500):
        journal.emit("e", number=number)
    assert journal.close(5)
    assert len(lines(journal.path)) == 500
    journal.emit("late")
    assert journal.dropped == 1
    assert len(lines(journal.path)) == 500
    assert journal.close(5)


def test_closing_on_a_failing_disk_is_quick_and_counted(open_journal):
    journal = open_journal(opener=lambda path: os.open("/dev/full", os.O_WRONLY))
    for _ in range(10):
        journal.emit("e")
    started = time.monotonic()
    assert journal.close(5)
    assert time.monotonic() - started < 4
    assert journal.dropped == 10


def test_a_forked_child_neither_hangs_nor_writes(open_journal):
    journal = open_journal()
    journal.emit("parent")
    assert journal.flush(5)
    with journal._lock:  # the worst moment for a fork
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(10)
                journal.emit("child")
                journal.close(1)
                code = 0 if journal.dropped == 1 else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    journal.emit("parent again")
    assert journal.flush(5)
    assert events(journal.path) == ["parent", "parent again"]


def test_subscribers_see_every_line_and_a_broken_one_is_removed(open_journal):
    journal = open_journal()
    seen, calls = [], []

    def broken(line):
        calls.append(line)
        raise RuntimeError

    end = journal.subscribe(seen.append)
    journal.subscribe(broken)
    journal.emit("one")
    journal.emit("two")
    end()
    journal.emit("three")
    assert [json.loads(line)["event"] for line in seen] == ["one", "two"]
    assert len(calls) == 1


class Nasty:
    def __str__(self):
        raise RuntimeError


def test_a_field_that_cannot_be_shown_costs_its_event_and_raises_nothing(open_journal):
    journal = open_journal()
    journal.emit("one", nasty=Nasty())
    journal.emit("two")
    assert journal.flush(5)
    assert journal.dropped == 1
    assert events(journal.path) == ["log_dropped", "two"]


def test_a_huge_event_is_cut(open_journal):
    journal = open_journal()
    journal.emit("long", text="x" * 1_000_000)
    journal.emit("wide", many={f"k{n}": "y" * 4000 for n in range(60)})
    deep: list = []
    deep.append(deep)
    journal.emit("deep", value=deep)
    assert journal.flush(5)
    assert max(map(len, journal.path.read_bytes().splitlines())) <= MAX_LINE_BYTES
    assert events(journal.path) == ["long", "wide", "deep"]
    assert lines(journal.path)[1]["truncated"] > MAX_LINE_BYTES


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-api03-AbCdEf_0123-456",
        "Bearer abc.DEF-123_456",
        "authorization: Basic dXNlcjpwYXNzd29yZA==",
        "http://user:pass@proxy.example:3128/",
        "https://token@host/",
        "cannot reach http://user:p@ss@proxy.example:3128 now",
        "/v1?api_key=abcdef123456&x=1",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "password='hunter22'",
    ],
)
def test_what_looks_like_a_credential_is_masked_anywhere(open_journal, secret):
    journal = open_journal()
    journal.emit("e", text=secret, raw=secret.encode(), many=[secret], deep={"a": {"b": secret}}, error=OSError(secret))
    assert journal.flush(5)
    text = journal.path.read_text()
    for part in ("AbCdEf", "DEF-123", "dXNlcjpwYXNz", "pass@", "ss@", "token@", "abcdef123456", "c2lnbmF0", "hunter22"):
        assert part not in text
    assert text.count("***") >= 5


@pytest.mark.parametrize(
    "name", ["authorization", "x-api-key", "Proxy_Authorization", "cookie", "set-cookie", "control_token", "password"]
)
def test_fields_and_headers_with_a_secret_name_are_masked(open_journal, name):
    journal = open_journal()
    journal.emit("e", **{name: "opensesame"}, headers=[(name, "opensesame"), (name.encode(), b"opensesame")])
    assert journal.flush(5)
    assert "opensesame" not in journal.path.read_text()
    assert lines(journal.path)[0]["headers"] == [[name, "***"], [name, "***"]]


def test_what_is_no_credential_is_left_alone(open_journal):
    journal = open_journal()
    fields = {
        "input_tokens": 5,
        "token_count": 7,
        "host": "api.anthropic.com",
        "url": "https://api.anthropic.com/v1/messages?beta=true",
        "model": "claude-opus-4-5-20251101",
        "reason": "the peer closed the connection: task-sk is fine",
        "cost": 0.5,
        "ok": True,
        "none": None,
    }
    journal.emit("e", **fields)
    assert journal.flush(5)
    assert {key: value for key, value in lines(journal.path)[0].items() if key in fields} == fields


def test_odd_values_stay_one_line_of_json(open_journal):
    journal = open_journal()
    values = {
        "newline": "a\nb\r\u2028",
        "surrogate": "\udc80",
        "nan": float("nan"),
        "path": Path("/x"),
        "raw": b"\xff\n",
    }
    journal.emit("e", **values, event="taken", timestamp="taken")
    assert journal.flush(5)
    (line,) = [json.loads(raw) for raw in journal.path.read_bytes().split(b"\n") if raw]
    assert line["newline"] == "a\nb\r\u2028"
    assert (line["event"], line["event_"], line["timestamp_"]) == ("e", "taken", "taken")
    assert (line["nan"], line["path"]) == ("nan", "/x")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.text("abcXYZ019_-", min_size=12, max_size=40))
def test_masking_finds_a_key_in_any_surroundings(around, key):
    assert key not in mask(f"{around} sk-ant-{key} {around}").replace(around, "")
    assert mask(mask(around)) == mask(around)


def test_emit_itself_never_touches_the_disk(open_journal, monkeypatch):
    journal = open_journal()
    threads = []
    monkeypatch.setattr(
        journal._file, "write", lambda lines, _now: (threads.append(threading.current_thread()), lines.clear())
    )
    monkeypatch.setattr(journal_module.os, "open", lambda *_: threads.append(threading.current_thread()))
    journal.emit("e")
    assert journal.flush(5)
    assert {thread.name for thread in threads} == {"journal"}
