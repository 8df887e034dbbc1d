"""Sessions: who was seen, and what their status files say."""

from __future__ import annotations

import os
import threading
import time

import pytest

from dbproxy.app.sessions import Sessions
from dbproxy.exchange import Exchange, Fields, RequestHead, Via
from dbproxy.model.record import RateLimit

ID = "3f2a1b00-0000-4000-8000-000000000001"


def exchange(session: str | None, scope: str | None = "s1") -> Exchange:
    fields = [(b"X-Claude-Code-Session-Id", session.encode("latin-1"))] if session is not None else []
    head = RequestHead(b"POST", b"/v1/messages", b"HTTP/1.1", Fields.of(fields))
    return Exchange(
        id="x1",
        connection="c1",
        via=Via.TUNNEL,
        scheme="https",
        host="api.anthropic.com",
        port=443,
        path="/v1/messages",
        request=head,
        scope=scope,
        loopback=True,
        passthrough=False,
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "status"


@pytest.fixture
def sessions(folder):
    return Sessions(folder, 100.0)


def text(folder, session=ID):
    return (folder / session).read_text()


def test_a_seen_session_has_a_file(sessions, folder) -> None:
    sessions.seen(exchange(ID))
    sessions.seen(exchange(ID))
    sessions.write_status(passthrough=False)
    assert text(folder) == "ON IDLE 0\n"
    assert (folder / ID).stat().st_mode & 0o777 == 0o600
    (session,) = sessions.all()
    assert (session.requests, session.scope, len(sessions)) == (2, "s1", 1)
    sessions.write_status(passthrough=True)
    assert text(folder) == "ON RELAY 0\n"


@pytest.mark.parametrize(
    "name", ["", "short", "../../etc/passwd", "a/b/c/d/e/f", "x" * 65, ".hidden-file", "a b c d e f"]
)
def test_a_name_that_is_no_file_name_is_not_taken(sessions, folder, name) -> None:
    sessions.seen(exchange(name))
    sessions.seen(exchange(None))
    sessions.note(name, context_tokens=5)
    sessions.linked(name, 1.0)
    sessions.tell(name, {"phase": "X"})
    sessions.write_status(passthrough=False)
    assert len(sessions) == 0
    assert list(folder.iterdir()) == []


def test_what_answers_told_is_written(sessions, folder) -> None:
    limits = (
        RateLimit("unified", "allowed"),
        RateLimit("5h", "allowed_warning", 0.29, 1784560000.0),
        RateLimit("7d", "", 0.999),
        RateLimit("overage", "rejected"),
    )
    sessions.note(ID, context_tokens=120_000, window_tokens=200_000, cost_usd=0.25, limits=limits)
    sessions.note(ID, cost_usd=0.5)  # an agent's: its context is not the session's
    sessions.write_status(passthrough=False)
    assert text(folder) == ("ON IDLE 120000\nwindow 200000\ncost 0.750000\n5h 29 1784560000 allowed_warning\n7d 99 0\n")


def test_later_answers_win_and_windows_without_figures_stay(sessions, folder) -> None:
    sessions.note(ID, context_tokens=10, window_tokens=20, cost_usd=0.0, limits=[RateLimit("5h", "", 0.5, 9.0)])
    sessions.note(ID, context_tokens=30, cost_usd=0.0, limits=[RateLimit("7d", "rejected", 1.0, 8.0)])
    sessions.write_status(passthrough=False)
    assert text(folder) == "ON IDLE 30\n5h 50 9\n7d 100 8 rejected\n"
    # A window that an answer names without its utilization is not known any more.
    sessions.note(ID, limits=[RateLimit("5h", "allowed")])
    sessions.write_status(passthrough=False)
    assert text(folder) == "ON IDLE 30\n7d 100 8 rejected\n"


def test_a_cost_with_a_gap_says_so(sessions, folder) -> None:
    sessions.note(ID, context_tokens=10, cost_usd=0.5)
    sessions.note(ID, cost_usd=None)  # an answer without usage costs nothing
    sessions.write_status(passthrough=False)
    assert "cost 0.500000\n" in text(folder)
    sessions.note(ID, context_tokens=11, cost_usd=None)
    sessions.write_status(passthrough=False)
    assert "cost 0.500000 +\n" in text(folder)


def test_a_new_process_goes_on_where_the_last_one_ended(folder) -> None:
    first = Sessions(folder, 100.0)
    first.note(ID, context_tokens=1000, window_tokens=2000, cost_usd=1.5)
    first.write_status(passthrough=False)
    second = Sessions(folder, 100.0)
    second.seen(exchange(ID))
    second.note(ID, cost_usd=0.25)
    second.write_status(passthrough=False)
    assert text(folder) == "ON IDLE 1000\nwindow 2000\ncost 1.750000\n"
    second.note(ID, context_tokens=1100, window_tokens=2000, cost_usd=None)
    second.write_status(passthrough=False)
    third = Sessions(folder, 100.0)
    third.note(ID, cost_usd=1.0)
    third.write_status(passthrough=False)
    assert text(folder) == "ON IDLE 1100\nwindow 2000\ncost 2.750000 +\n"


@pytest.mark.parametrize("old", ["", "ON\n", "ON IDLE\n", "ON IDLE x\nwindow\ncost\ncost x\ncost 1e9\n", "\xff\n"])
def test_an_older_or_broken_file_is_taken_for_what_it_holds(folder, old) -> None:
    folder.mkdir(parents=True)
    (folder / ID).write_bytes(old.encode("latin-1"))
    sessions = Sessions(folder, 100.0)
    sessions.note(ID, cost_usd=0.5)
    sessions.write_status(passthrough=False)
    assert text(folder) == "ON IDLE 0\ncost 0.500000\n"


def test_a_policys_phase_is_shown_and_other_facts_are_kept(sessions, folder) -> None:
    sessions.linked("c-0123456789abcdef", time.time() + 5)
    sessions.tell(ID, {"phase": "WAL_ACTIVE", "checkpoint": 3})
    sessions.tell(ID, {"phase": "not a word\n", "more": 4})
    sessions.write_status(passthrough=False)
    assert text(folder) == "ON WAL_ACTIVE 0\n"
    assert [session.id for session in sessions.all()] == ["c-0123456789abcdef", ID]
    assert sessions.all()[1].facts == {"phase": "not a word\n", "checkpoint": 3, "more": 4}


def test_an_unchanged_file_is_not_written_again(sessions, folder) -> None:
    sessions.note(ID, context_tokens=10)
    sessions.write_status(passthrough=False)
    before = (folder / ID).stat().st_ino
    sessions.write_status(passthrough=False)
    assert (folder / ID).stat().st_ino == before


def test_silent_sessions_and_their_files_go(sessions, folder) -> None:
    sessions.seen(exchange(ID))
    sessions.write_status(passthrough=False)
    sessions.expire(time.time() + 101)
    assert len(sessions) == 0
    sessions.write_status(passthrough=False)
    assert (folder / ID).exists()  # another process's session may be that young
    os.utime(folder / ID, (time.time() - 101,) * 2)
    sessions.write_status(passthrough=False)
    assert list(folder.iterdir()) == []


def test_reset_by_prefix(sessions) -> None:
    other = ID.replace("3f2a", "4f2a")
    for name in (ID, other):
        sessions.seen(exchange(name))
    assert sessions.reset("3f2a") == [ID]
    assert sessions.reset() == [other]


def test_sessions_are_bounded(sessions, monkeypatch) -> None:
    monkeypatch.setattr("dbproxy.app.sessions._MOST", 3)
    for n in range(10):
        sessions.seen(exchange(f"session-{n:04}"))
    assert len(sessions) == 3


def test_threads_may_call_while_others_come_and_go(sessions) -> None:
    stop = threading.Event()
    failures = []

    def write() -> None:
        try:
            while not stop.is_set():
                sessions.write_status(passthrough=False)
                sessions.all()
                sessions.expire(time.time() - 1000)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    for n in range(300):
        sessions.seen(exchange(f"session-{n % 40:04}"))
        sessions.note(f"session-{n % 40:04}", context_tokens=n + 1, cost_usd=0.001)
        if n % 50 == 0:
            sessions.reset("session-00")
    stop.set()
    thread.join(20)
    assert failures == []
