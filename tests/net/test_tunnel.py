"""Blind tunnels over real sockets: every byte, every kind of ending, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import socket
import struct
import sys

import pytest
import trio
import trio.testing

from dbproxy.net import tunnel
from dbproxy.net.tunnel import IDLE_PIPES, WATCH_SECONDS, TunnelStats, relay

MB = 1 << 20
BOTH_WAYS = pytest.mark.parametrize("splice", [True, False], ids=["spliced", "copied"])


async def tcp_pair():
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = trio.socket.socket()
        await near.connect(listener.getsockname())
        far, _ = await listener.accept()
    return near, far


@pytest.fixture
def clock(autojump_clock):
    """Virtual time that lets the kernel finish: what is sent over loopback still takes a moment to arrive."""
    autojump_clock.autojump_threshold = 0.01
    return autojump_clock


class Setup:
    """client <-> (a: relay :b) <-> server"""

    def __init__(self, nursery, client, server, a, b, options):
        self.client, self.server, self.a, self.b = client, server, a, b
        self.stats: TunnelStats | None = None
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, options)

    async def _run(self, options):
        try:
            with self.scope:
                self.stats = await relay(self.a, self.b, **options)
        finally:
            self.done.set()

    async def ended(self):
        with trio.fail_after(30):
            await self.done.wait()
        return self.stats


@pytest.fixture
async def start(nursery):
    opened = []

    async def start(*, sndbuf=0, slow_client=False, **options):
        client, a = await tcp_pair()
        b, server = await tcp_pair()
        if sndbuf:
            a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        if slow_client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * MB)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MB)
        opened.extend([client, server])
        return Setup(nursery, client, server, a, b, options)

    yield start
    for sock in opened:
        sock.close()


async def read_all(sock):
    data = bytearray()
    while chunk := await sock.recv(MB):
        data += chunk
    return bytes(data)


async def send_all(sock, data):
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def open_fds():
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


@BOTH_WAYS
async def test_bytes_go_both_ways_and_each_side_may_stop_first(start, splice):
    t = await start(splice=splice)
    await send_all(t.client, b"question")
    t.client.shutdown(socket.SHUT_WR)
    assert await read_all(t.server) == b"question"
    # The server learnt the client's end, and may still say as much as it likes.
    await send_all(t.server, b"answer" * 100_000)
    t.server.shutdown(socket.SHUT_WR)
    assert await read_all(t.client) == b"answer" * 100_000
    assert await t.ended() == TunnelStats(8, 600_000, "closed", splice and tunnel._PIPES.usable)


@BOTH_WAYS
async def test_the_server_may_stop_first_and_still_listen(start, splice):
    t = await start(splice=splice)
    t.server.shutdown(socket.SHUT_WR)
    assert await read_all(t.client) == b""
    await send_all(t.client, b"last words")
    t.client.shutdown(socket.SHUT_WR)
    assert await read_all(t.server) == b"last words"
    stats = await t.ended()
    assert (stats.bytes_a_to_b, stats.bytes_b_to_a, stats.how) == (10, 0, "closed")


@BOTH_WAYS
async def test_the_preface_goes_first_and_does_not_wait_for_the_client(start, splice):
    t = await start(splice=splice, preface_to_b=b"hello ")
    assert await t.server.recv(100) == b"hello "
    await send_all(t.client, b"world")
    assert await t.server.recv(100) == b"world"
    t.client.close()
    t.server.close()
    assert (await t.ended()).bytes_a_to_b == 11


@BOTH_WAYS
async def test_random_traffic_in_both_directions_arrives_unchanged(start, splice):
    t = await start(splice=splice)
    dice = random.Random(20)
    up, down = dice.randbytes(5 * MB + 17), dice.randbytes(3 * MB + 5)

    async def send(sock, data):
        at = 0
        while at < len(data):
            size = dice.choice([1, 7, 100, 5000, 16_401, 300_000])
            await send_all(sock, data[at : at + size])
            at += size
        sock.shutdown(socket.SHUT_WR)

    got = {}

    async def receive(name, sock):
        got[name] = await read_all(sock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, t.client, up)
        nursery.start_soon(send, t.server, down)
        nursery.start_soon(receive, "up", t.server)
        nursery.start_soon(receive, "down", t.client)
    assert hashlib.sha256(got["up"]).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got["down"]).digest() == hashlib.sha256(down).digest()
    assert (await t.ended()).how == "closed"


@pytest.mark.parametrize("resetting", ["client", "server"])
@BOTH_WAYS
async def test_a_reset_on_one_side_becomes_a_reset_on_the_other(start, splice, resetting):
    t = await start(splice=splice)
    near, far = (t.client, t.server) if resetting == "client" else (t.server, t.client)
    await send_all(near, b"x")
    assert await far.recv(1) == b"x"
    reset(near)
    with trio.fail_after(10), pytest.raises(ConnectionResetError):
        await far.recv(1)
    assert (await t.ended()).how == ("reset_by_a" if resetting == "client" else "reset_by_b")


@BOTH_WAYS
async def test_an_answer_sent_before_a_reset_still_arrives(start, splice):
    """A server that answers 413 and closes with the upload unread: the answer is there, then the reset."""
    t = await start(splice=splice)
    await send_all(t.client, b"u" * 100_000)
    await t.server.recv(10)
    await send_all(t.server, b"HTTP/1.1 413 Content Too Large\r\n\r\n")
    t.server.close()  # unread input: the kernel resets
    got = b""
    with trio.fail_after(10):
        while True:  # a client that goes on uploading; what the kernel holds for it survives its failing writes
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await t.client.send(b"u" * 1000)
            with trio.move_on_after(0.01):
                try:
                    data = await t.client.recv(1000)
                except ConnectionResetError:
                    break
                if not data:
                    break
                got += data
    assert got == b"HTTP/1.1 413 Content Too Large\r\n\r\n"
    assert (await t.ended()).how == "reset_by_b"


@BOTH_WAYS
async def test_an_answer_survives_whichever_call_notices_the_reset_first(start, splice):
    for _ in range(20):
        t = await start(splice=splice)
        await t.client.send(b"x")
        await t.server.recv(1)
        # All at once, so that both directions wake up to it and either may be first.
        os.write(t.server.fileno(), b"the answer")
        os.write(t.client.fileno(), b"more")
        reset(t.server)
        with trio.fail_after(10):
            assert await t.client.recv(100) == b"the answer"
            with pytest.raises(ConnectionResetError):
                await t.client.recv(1)
        assert (await t.ended()).how == "reset_by_b"


@pytest.mark.parametrize("noticed_by", ["read", "write"])
@BOTH_WAYS
async def test_a_slow_client_gets_all_that_came_before_the_reset(start, splice, noticed_by, monkeypatch):
    monkeypatch.setattr(tunnel, "WATCH_SECONDS", 0.02)
    t = await start(splice=splice, slow_client=True, sndbuf=65536)
    answer = random.Random(2).randbytes(500_000)
    await send_all(t.server, answer)
    await trio.testing.wait_all_tasks_blocked(0.1)
    reset(t.server)
    if noticed_by == "write":
        await t.client.send(b"x")
        await trio.testing.wait_all_tasks_blocked(0.05)
    await trio.sleep(5 * tunnel.WATCH_SECONDS)
    got = bytearray()

    async def read_slowly():
        while chunk := await t.client.recv(10_000):
            got.extend(chunk)
            await trio.sleep(0.005)

    with trio.fail_after(20), pytest.raises(ConnectionResetError):
        await read_slowly()
    if sys.platform == "linux":
        assert got == answer
    assert (await t.ended()).how == "reset_by_b"


@BOTH_WAYS
async def test_a_half_closed_client_that_dies_is_noticed(start, splice, clock):
    t = await start(splice=splice)
    t.client.shutdown(socket.SHUT_WR)
    assert await read_all(t.server) == b""
    reset(t.client)
    began = trio.current_time()
    assert (await t.ended()).how == "reset_by_a"  # nothing to write: the tunnel has to find out by itself
    assert trio.current_time() - began <= 2 * WATCH_SECONDS


@BOTH_WAYS
async def test_a_stopped_peer_is_backpressure_for_as_long_as_it_likes(start, splice, clock):
    t = await start(splice=splice)
    payload = random.Random(1).randbytes(40 * MB)
    sent = 0

    async def send():
        nonlocal sent
        while sent < len(payload):
            sent += await t.client.send(payload[sent : sent + MB])
        t.client.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(60)  # Ctrl-Z
        stopped_at = sent
        assert stopped_at < 30 * MB  # kernel buffers, and one round of ours
        await trio.sleep(60)
        assert sent == stopped_at
        assert not t.done.is_set()
        assert await read_all(t.server) == payload


@BOTH_WAYS
async def test_a_client_that_dies_while_the_server_is_stopped_is_noticed(start, splice, clock):
    t = await start(splice=splice)

    async def flood():
        while True:
            await t.client.send(bytes(MB))

    with trio.move_on_after(5):
        await flood()
    reset(t.client)
    began = trio.current_time()
    assert (await t.ended()).how == "reset_by_a"
    assert trio.current_time() - began <= 2 * WATCH_SECONDS


@BOTH_WAYS
async def test_an_idle_limit_cuts_and_every_byte_moves_it(start, splice, clock):
    t = await start(splice=splice, idle_timeout=100)
    for _ in range(5):
        await trio.sleep(90)
        await send_all(t.server, b".")
        assert await t.client.recv(10) == b"."
    began = trio.current_time()
    with pytest.raises(ConnectionResetError):
        await t.client.recv(1)
    assert trio.current_time() - began == pytest.approx(100, abs=1)
    assert (await t.ended()).how == "idle"


async def test_no_idle_limit_means_none(start, clock):
    t = await start()
    await trio.sleep(10 * 86_400)
    await send_all(t.server, b"still here")
    assert await t.client.recv(100) == b"still here"


@BOTH_WAYS
async def test_cancelled_in_mid_transfer_resets_both_and_leaves_nothing_open(start, splice):
    before = open_fds()
    t = await start(splice=splice)
    with trio.move_on_after(0.2):
        while True:
            await t.client.send(bytes(MB))
    t.scope.cancel()
    await t.ended()
    with pytest.raises(ConnectionResetError):
        await read_all(t.server)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await send_all(t.client, bytes(100 * MB))
    t.client.close()
    t.server.close()
    assert open_fds() <= before + 2 * IDLE_PIPES


async def test_cancelled_after_a_clean_end_leaves_that_end_clean(start):
    """The answer was whole, but most of it is still in our kernel because the client reads slowly."""
    t = await start(sndbuf=4 * MB)
    answer = random.Random(9).randbytes(MB)
    await send_all(t.server, answer)
    t.server.shutdown(socket.SHUT_WR)
    await trio.testing.wait_all_tasks_blocked(0.1)
    t.scope.cancel()
    await t.ended()
    assert await read_all(t.client) == answer  # no reset over a complete answer
    with pytest.raises(ConnectionResetError):
        await t.server.recv(1)  # but the upload was cut, and says so


async def test_bytes_of_a_cut_tunnel_never_show_up_in_the_next_one(start):
    for _ in range(IDLE_PIPES + 2):
        t = await start()
        with trio.move_on_after(0.1):
            while True:
                await t.client.send(b"secret" * 100_000)
        t.scope.cancel()
        await t.ended()
    for _ in range(2 * IDLE_PIPES):
        t = await start()
        await send_all(t.client, b"mine")
        t.client.shutdown(socket.SHUT_WR)
        assert await read_all(t.server) == b"mine"


async def test_idle_tunnels_hold_no_pipe(start):
    if not tunnel._PIPES.usable:
        return
    before = open_fds()
    tunnels = []
    for _ in range(30):
        t = await start()
        await send_all(t.client, b"ping")
        assert await t.server.recv(10) == b"ping"
        tunnels.append(t)
    assert open_fds() <= before + 30 * 4 + 2 * IDLE_PIPES
    assert len(tunnel._PIPES._empty) <= IDLE_PIPES


async def test_blocked_tunnels_give_their_pipes_back(start):
    tunnels = []
    for _ in range(3 * IDLE_PIPES):
        t = await start()
        tunnels.append(t)
        with trio.move_on_after(0.05):
            while True:
                await t.client.send(bytes(MB))
    for t in tunnels:
        t.client.shutdown(socket.SHUT_WR)
        assert len(await read_all(t.server)) > 0
    assert len(tunnel._PIPES._empty) <= IDLE_PIPES


async def test_without_file_descriptors_for_a_pipe_the_bytes_are_copied(start, monkeypatch):
    def none_left(flags):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tunnel._PIPES, "_empty", [])
    monkeypatch.setattr(os, "pipe2", none_left, raising=False)
    t = await start()
    await send_all(t.client, b"x" * 300_000)
    t.client.shutdown(socket.SHUT_WR)
    assert await read_all(t.server) == b"x" * 300_000
    t.server.close()
    assert await t.ended() == TunnelStats(300_000, 0, "closed", False)


@pytest.mark.parametrize("stage", ["filling", "draining"])
async def test_where_splice_is_refused_the_bytes_are_copied(start, monkeypatch, stage):
    if not tunnel._PIPES.usable:
        return
    real = os.splice
    pipes = set()

    def refused(source, sink, count, *, flags):
        is_filling = source not in pipes
        if is_filling:
            pipes.clear()
        if is_filling == (stage == "filling"):
            raise OSError(errno.EINVAL, "Invalid argument")
        moved = real(source, sink, count, flags=flags)
        pipes.update(pipe.out for pipe in made)
        return moved

    made = []
    borrow = tunnel._PIPES.borrow

    def noting():
        made.append(borrow())
        return made[-1]

    monkeypatch.setattr(tunnel._PIPES, "borrow", noting)
    monkeypatch.setattr(os, "splice", refused)
    t = await start()
    payload = random.Random(3).randbytes(3 * MB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, t.client, payload)
        got = bytearray()
        while len(got) < len(payload):
            got += await t.server.recv(MB)
    assert got == payload
    t.client.close()
    t.server.close()
    assert (await t.ended()).spliced is False


async def test_a_hundred_megabytes_take_no_memory(start):
    t = await start()
    size = 100 * MB

    async def send():
        left = size
        block = bytes(MB)
        while left:
            left -= await t.client.send(block[: min(left, MB)])
        t.client.shutdown(socket.SHUT_WR)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    buffer = bytearray(MB)
    got = 0
    peak = before = resident() if sys.platform == "linux" else 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while count := await t.server.recv_into(buffer):
            got += count
            if sys.platform == "linux":
                peak = max(peak, resident())
    assert got == size
    assert peak - before < 8 * MB
    t.server.close()
    assert (await t.ended()).bytes_a_to_b == size


async def test_unix_sockets_and_the_standard_librarys_are_taken_as_well(nursery):
    client, a = socket.socketpair()
    b, server = socket.socketpair()
    client, server = trio.socket.from_stdlib_socket(client), trio.socket.from_stdlib_socket(server)
    nursery.start_soon(relay, a, b)
    await client.send(b"over unix")
    assert await server.recv(100) == b"over unix"
    client.close()
    assert await server.recv(100) == b""
    server.close()


@BOTH_WAYS
async def test_a_reset_that_a_write_notices_first_is_still_a_reset(start, splice):
    for _ in range(20):  # which of the two directions notices is up to the scheduler
        t = await start(splice=splice)
        await t.client.send(b"x")
        await t.server.recv(1)
        await t.client.send(b"y")
        reset(t.server)
        with trio.fail_after(10), pytest.raises(ConnectionResetError):
            await t.client.recv(1)
        assert (await t.ended()).how == "reset_by_b"
