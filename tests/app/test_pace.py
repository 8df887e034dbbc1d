"""When the analyst's thread works: in quiet moments, behind the requests, at once when somebody waits."""

from __future__ import annotations

import threading
import time

import pytest

from dbproxy.app import pace
from dbproxy.app.pace import OLDEST, PATIENCE, QUIET, REST, SLICE, Pace


def empty():
    return 0.0


class Traffic:
    """Counts beats as the event loop of a busy proxy does."""

    def __init__(self, one):
        self.pace = one
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.over.wait(QUIET / 20):
            self.pace.beats += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def test_a_quiet_loop_is_not_waited_for_longer_than_it_takes_to_see_that():
    one = Pace()
    assert not one.ready(1)
    began = time.monotonic()
    one.wait(1, began, empty)
    assert QUIET <= time.monotonic() - began < PATIENCE / 2
    assert one.ready(2)
    one.beats += 1
    assert not one.ready(3), "something passed"


def test_beside_traffic_a_job_waits_for_its_patience_and_then_for_a_pause_after_each_slice(monkeypatch):
    monkeypatch.setattr(pace, "PATIENCE", 0.1)
    monkeypatch.setattr(pace, "QUIET", 0.02)  # what a busy machine does not make of traffic
    monkeypatch.setattr(pace, "SLICE", 0.005)
    one = Pace()
    with Traffic(one):
        began = time.monotonic()
        one.wait(1, began, empty)
        assert time.monotonic() - began >= 0.1
        assert one.ready(2), "a slice is more than one job"
        threading.Event().wait(0.01)
        one.done()
        assert not one.ready(3)
        rest = time.monotonic()
        one.wait(3, began, empty)  # old enough, and what grows older rests less
        assert time.monotonic() - rest >= REST * 0.01 * 0.7


def test_the_more_waits_the_less_is_waited(monkeypatch):
    monkeypatch.setattr(pace, "PATIENCE", 0.4)
    monkeypatch.setattr(pace, "QUIET", 0.02)
    one = Pace()
    with Traffic(one):
        took = []
        for crowd in (0.0, 0.75, 1.0):
            began = time.monotonic()
            one.wait(1, began, lambda crowd=crowd: crowd)
            took.append(time.monotonic() - began)
    assert took[0] >= 0.4 > took[1] >= 0.1 > took[2]


def test_what_is_old_waits_for_nothing():
    one = Pace()
    with Traffic(one):
        began = time.monotonic()
        one.wait(1, began - OLDEST, empty)
        assert time.monotonic() - began < QUIET


@pytest.mark.parametrize("first", [True, False], ids=["before", "during"])
def test_what_somebody_waits_for_does_not_wait(monkeypatch, first):
    monkeypatch.setattr(pace, "PATIENCE", 20.0)
    monkeypatch.setattr(pace, "OLDEST", 40.0)
    monkeypatch.setattr(pace, "QUIET", 10.0)
    one = Pace()
    timer = threading.Timer(0.0 if first else 0.1, one.hurry, (5,))
    timer.start()
    if first:
        timer.join()
    began = time.monotonic()
    one.wait(5, began, empty)
    assert time.monotonic() - began < 5.0
    assert one.ready(4)
    assert not one.ready(6)
    timer.join()


def test_the_figures_fit():
    """A slice and its pause make a twentieth of the time; several fit into what a job waits."""
    assert pytest.approx(1 / 20) == SLICE / (SLICE + REST * SLICE)
    assert REST * SLICE < PATIENCE
