"""Dialling over real sockets: which address wins, what a failure says, what is refused, what is left open."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
import threading

import pytest
import trio
import trio.testing

from dbproxy.errors import Refused, UpstreamError
from dbproxy.net import dial
from dbproxy.net.address import parse_ip
from dbproxy.net.dial import FAMILY_MEMORY_SECONDS, Dialer, SystemResolver, is_local, tune


@pytest.fixture
async def listener():
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        sock.listen(50)
        yield sock


@pytest.fixture
async def listener6(listener):
    """On ::1, at the same port as the other one."""
    with trio.socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind(("::1", listener.getsockname()[1]))
        sock.listen(50)
        yield sock


@pytest.fixture
async def black_hole():
    """An address that never answers: its accept queue is full, so the kernel drops what else arrives."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
            fillers.append(filler)
        await trio.sleep(0.01)
        yield sock.getsockname()
        for filler in fillers:
            filler.close()


def resolver(*addresses):
    """A name service that knows one answer: (address, port) pairs or addresses."""
    asked = []

    async def resolve(host, port):
        asked.append(host)
        await trio.lowlevel.checkpoint()
        pairs = [entry if isinstance(entry, tuple) else (entry, port) for entry in addresses]
        return [
            (socket.AF_INET6, (address, to, 0, 0)) if ":" in address else (socket.AF_INET, (address, to))
            for address, to in pairs
        ]

    resolve.asked = asked
    return resolve


def port_of(sock):
    return sock.getsockname()[1]


def open_fds():
    gc.collect()
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


async def fails(dialer, host, port, **options):
    with pytest.raises(UpstreamError) as caught:
        await dialer.connect(host, port, **options)
    return caught.value


async def test_connects_and_carries_bytes(listener):
    with await Dialer().connect("127.0.0.1", port_of(listener)) as sock:
        peer, _ = await listener.accept()
        with peer:
            await sock.send(b"hello")
            assert await peer.recv(10) == b"hello"


async def test_the_socket_is_tuned_and_never_blocks(listener):
    with await Dialer().connect("127.0.0.1", port_of(listener)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sys.platform == "linux":
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        assert not os.get_blocking(sock.fileno())
        assert not os.get_inheritable(sock.fileno())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST.", "api.localhost", "127.1", "2130706433"])
async def test_spellings_of_this_machine(listener, host):
    with await Dialer().connect(host, port_of(listener)) as sock:
        assert sock.getpeername()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost", "0:0:0:0:0:0:0:1"])
async def test_ipv6(listener6, host):
    with await Dialer().connect(host, port_of(listener6)) as sock:
        assert sock.getpeername()[:2] == ("::1", port_of(listener6))


async def test_the_machines_own_resolver_runs_in_its_own_threads(listener, monkeypatch):
    threads = []

    def lookup(host, port, **options):
        threads.append(threading.current_thread())
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with await Dialer().connect("api.example", port_of(listener)):
        pass
    assert threads[0] is not threading.main_thread()


# -- names that do not resolve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "a..b", "a" * 64 + ".example", "x\0y", "bad host", "*", "\ud800", "fe80::1%nope"])
async def test_what_is_no_name_is_a_readable_error(host):
    failure = await fails(Dialer(connect_timeout=5), host, 443)
    assert failure.kind == "dns"
    assert "could not be resolved" in str(failure)
    assert failure.hint


async def test_a_resolvers_failure_is_told(listener):
    async def resolve(host, port):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    failure = await fails(Dialer(resolver=resolve), "api.example", 443)
    assert failure.kind == "dns"
    assert "'api.example' could not be resolved: Temporary failure in name resolution" in str(failure)


async def test_no_address_at_all(listener):
    assert (await fails(Dialer(resolver=resolver()), "api.example", 443)).kind == "dns"


async def test_a_dead_name_server_costs_the_deadline_and_a_bounded_number_of_threads(autojump_clock, monkeypatch):
    autojump_clock.autojump_threshold = 0.05  # threads need real time to start
    release = threading.Event()
    running = []

    def lookup(host, port, **options):
        running.append(host)
        release.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    dialer = Dialer(connect_timeout=10, resolver=SystemResolver(threads=2))

    async def one():
        failure = await fails(dialer, "api.example", 443)
        assert failure.kind == "timeout"
        assert "within 10 s" in str(failure)

    began = trio.current_time()
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)
        assert len(running) == 2
    finally:
        release.set()


# -- several addresses ------------------------------------------------------------------------------------------------


async def test_a_refusing_address_is_passed_over_at_once(listener, autojump_clock):
    began = trio.current_time()
    dialer = Dialer(resolver=resolver("::1", "127.0.0.1"))
    with await dialer.connect("api.example", port_of(listener)) as sock:
        assert sock.getpeername()[0] == "127.0.0.1"
    assert trio.current_time() - began < 0.25


async def test_a_silent_address_costs_the_attempt_delay(listener, black_hole, autojump_clock):
    autojump_clock.autojump_threshold = 0.02
    began = trio.current_time()
    dialer = Dialer(resolver=resolver(black_hole, ("127.0.0.1", port_of(listener))), attempt_delay=0.25)
    before = open_fds()
    with await dialer.connect("api.example", 443) as sock:
        assert sock.getpeername() == listener.getsockname()
        assert 0.25 <= trio.current_time() - began < 0.5
        assert open_fds() == before + 1  # the silent attempt is closed


async def test_a_slow_winner_is_still_waited_for(listener, black_hole, autojump_clock):
    """All addresses silent: the deadline, and one line that tells it."""
    autojump_clock.autojump_threshold = 0.02
    began = trio.current_time()
    before = open_fds()
    failure = await fails(Dialer(resolver=resolver(black_hole, black_hole, ("::1", 1))), "api.example", 443)
    assert failure.kind == "timeout"
    assert str(failure).startswith("no connection to api.example:443 within 10 s; ::1: connection refused. ")
    assert trio.current_time() - began == pytest.approx(10, abs=0.1)
    assert open_fds() == before


async def test_all_refused_names_every_address_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        failure = await fails(
            Dialer(resolver=resolver("::1", "127.0.0.1", "127.0.0.1", "127.0.0.2")), "api.example", port
        )
    assert failure.kind == "connect"
    assert str(failure) == (
        f"cannot connect to api.example:{port}: ::1: connection refused, 127.0.0.1: connection refused, "
        "127.0.0.2: connection refused"
    )


async def test_many_failures_are_summed_up():
    addresses = [f"127.0.0.{i}" for i in range(2, 12)]
    failure = await fails(Dialer(resolver=resolver(*addresses)), "api.example", 1)
    assert str(failure).endswith("127.0.0.5: connection refused, and 6 more")


def endpoints(*addresses):
    return [(socket.AF_INET6 if ":" in a else socket.AF_INET, (a, 443)) for a in addresses]


async def test_families_alternate():
    ordered = Dialer()._ordered("h", endpoints("::1", "::2", "::3", "1.1.1.1", "1.1.1.2"))
    assert [address[0] for _, address in ordered] == ["::1", "1.1.1.1", "::2", "1.1.1.2", "::3"]


async def test_the_family_that_worked_goes_first_for_a_minute(listener, autojump_clock):
    dialer = Dialer(resolver=resolver("::1", "127.0.0.1"))
    (await dialer.connect("api.example", port_of(listener))).close()
    both = endpoints("::1", "127.0.0.1")
    assert dialer._ordered("api.example", both)[0][0] == socket.AF_INET
    assert dialer._ordered("other.example", both)[0][0] == socket.AF_INET6
    await trio.sleep(FAMILY_MEMORY_SECONDS + 1)
    assert dialer._ordered("api.example", both)[0][0] == socket.AF_INET6


async def test_the_memory_of_families_is_bounded():
    dialer = Dialer()
    for i in range(10_000):
        dialer._remember(f"h{i}", socket.AF_INET)
    assert len(dialer._families) <= 256
    assert "h9999" in dialer._families


async def test_two_winners_in_one_tick_leave_one_socket(monkeypatch, nursery):
    both_ready = trio.Event()
    made = []

    async def connects_with_the_other(endpoint):
        made.append(socket.socket())
        await both_ready.wait()
        return made.pop()

    monkeypatch.setattr(dial, "_open", connects_with_the_other)
    before = open_fds()

    async def ready():
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(made) == 2
        both_ready.set()

    nursery.start_soon(ready)
    with await Dialer(resolver=resolver("1.1.1.1", "1.1.1.2"), attempt_delay=0.001).connect("api.example", 443):
        assert open_fds() == before + 1


async def test_cancelled_while_connecting_leaves_nothing(black_hole):
    before = open_fds()
    with trio.move_on_after(0.05) as scope:
        await Dialer(resolver=resolver(black_hole, black_hole), attempt_delay=0.01).connect("api.example", 443)
    assert scope.cancelled_caught
    assert open_fds() == before


async def test_without_file_descriptors_the_message_says_so(monkeypatch):
    def none_left(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    dialer = Dialer()
    monkeypatch.setattr(dial.socket, "socket", none_left)
    failure = await fails(dialer, "127.0.0.1", 443)
    assert failure.kind == "connect"
    assert "too many open files" in str(failure)
    assert "ulimit" in failure.hint


# -- ourselves, and private addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::ffff:127.0.0.1", "127.1", "me.example"])
async def test_our_own_listener_is_never_dialled(listener, host):
    own = [("127.0.0.1", port_of(listener))]
    dialer = Dialer(own_listeners=lambda: own, resolver=resolver("127.0.0.1"))
    if host == "127.1":
        dialer = Dialer(own_listeners=lambda: own)
    failure = await fails(dialer, host, port_of(listener))
    assert failure.kind == "loop"
    assert "is dbproxy itself" in str(failure)
    own.clear()
    (await dialer.connect(host, port_of(listener))).close()


async def test_a_neighbour_of_our_listener_is_dialled(listener, listener6):
    dialer = Dialer(own_listeners=lambda: [("127.0.0.1", port_of(listener))])
    (await dialer.connect("::1", port_of(listener6))).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::1]", "::ffff:127.0.0.1", "inside.example"])
async def test_private_targets_are_refused_to_clients_elsewhere(listener, host):
    dialer = Dialer(resolver=resolver("127.0.0.1", "::1")) if host.endswith("example") else Dialer()
    with pytest.raises(Refused) as caught:
        await dialer.connect(host, port_of(listener), allow_private=False)
    assert caught.value.status == 403


async def test_what_is_checked_is_what_is_connected_to(listener):
    """A name whose answer changes between two questions (DNS rebinding) is asked about once."""
    resolve = resolver("192.0.2.1", "127.0.0.1")
    dialer = Dialer(resolver=resolve)
    with pytest.raises(Refused):
        await dialer.connect("rebind.example", port_of(listener), allow_private=False)
    assert resolve.asked == ["rebind.example"]
    # of a mixed answer the private part is never tried
    mixed = dialer._permitted("mixed.example", 443, endpoints("10.0.0.1", "1.1.1.1", "::1"), allow_private=False)
    assert mixed == endpoints("1.1.1.1")


def test_is_local():
    assert is_local(parse_ip("127.0.0.1"))
    assert is_local(parse_ip("127.9.9.9"))
    assert is_local(parse_ip("::1"))
    assert not is_local(parse_ip("192.0.2.77"))
    assert not is_local(parse_ip("2001:db8::77"))


def test_tuning_what_is_no_tcp_socket_is_harmless():
    near, far = socket.socketpair()
    with near, far:
        tune(near)
