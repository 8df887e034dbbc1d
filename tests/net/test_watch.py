"""The watch for peers that hang up: it tells once, and never the wrong connection."""

from __future__ import annotations

import socket
import sys

import pytest
import trio

from dbproxy.net.watch import HangupWatch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="neither epoll nor kqueue")


@pytest.fixture
async def watch(nursery):
    made = HangupWatch()
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    return made


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    left.setblocking(False)
    yield left, right
    left.close()
    right.close()


async def test_a_peer_that_closes_is_told_once(watch, pair):
    left, right = pair
    calls = []
    watch.add(left.fileno(), lambda: calls.append(1))
    right.send(b"data is no hang-up")
    await trio.sleep(0.02)
    assert not calls
    right.shutdown(socket.SHUT_WR)
    await trio.sleep(0.02)
    right.close()
    await trio.sleep(0.02)
    assert calls == [1]


async def test_after_remove_nothing_is_told(watch, pair):
    left, right = pair
    calls = []
    watch.add(left.fileno(), lambda: calls.append(1))
    watch.remove(left.fileno())
    right.close()
    await trio.sleep(0.02)
    assert not calls
    assert len(watch) == 0


class Connection:
    def __init__(self):
        self.gone = 0

    def hung_up(self):
        self.gone += 1


async def test_a_number_that_was_given_again_stays_watched(watch, pair):
    """A connection that ends late must not stop the watch of the one that got its number."""
    left, right = pair
    old, new = Connection(), Connection()
    watch.add(left.fileno(), old.hung_up)
    watch.remove(left.fileno(), old.hung_up)
    watch.add(left.fileno(), new.hung_up)
    watch.remove(left.fileno(), old.hung_up)
    right.close()
    await trio.sleep(0.02)
    assert (old.gone, new.gone) == (0, 1)
    watch.remove(left.fileno(), new.hung_up)
    assert len(watch) == 0
