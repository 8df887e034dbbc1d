"""Filters: byte-exact in every split, chained, and harmless when they fail."""

from __future__ import annotations

import itertools
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.exchange import Exchange, Fields, RequestHead, ResponseHead, Via
from dbproxy.hooks.dispatch import Dispatcher
from dbproxy.hooks.filters import StreamFilters
from dbproxy.hooks.manager import PluginManager
from dbproxy.hooks.specs import hookimpl
from dbproxy.wire.sse import SseSplitter, encode

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = ResponseHead(200, b"OK", b"HTTP/1.1", Fields.of([(b"content-type", b"text/event-stream")]))
EXCHANGE = Exchange(
    "x", 1, Via.TUNNEL, "https", "h", 443, "/v1/messages", RequestHead(b"POST", b"/", b"HTTP/1.1", Fields.of([]))
)
STREAM = b"".join(
    [
        b": comment\n\n",
        encode(b"message_start", b'{"type":"message_start"}'),
        b"event: odd\r\ndata: 1\r\n\r\n",
        b"\n",
        *[encode(b"delta", str(n).encode()) for n in range(8)],
        encode(b"message_stop", b"{}"),
    ]
)


class Filter:
    """A filter from one function."""

    def __init__(self, feed: Callable[..., object], end: object = None) -> None:
        self.feed = feed
        self._end = end

    def end(self) -> object:
        return self._end() if callable(self._end) else self._end


def filters(*objects: object) -> tuple[StreamFilters, Dispatcher]:
    """In call order: the first object given sees the stream first. They are named f0, f1, ..."""
    manager = PluginManager(strict=True)
    for number in reversed(range(len(objects))):
        plugin = type("P", (), {"stream_filter": hookimpl(lambda self, exchange, head, n=None: objects[self.number])})()
        plugin.number = number
        manager.register(plugin, f"f{number}")
    dispatch = Dispatcher(manager)
    found = StreamFilters.for_exchange(dispatch, EXCHANGE, HEAD)
    assert found is not None
    return found, dispatch


def run(found: StreamFilters, data: bytes, size: int = 7, complete: bool = True) -> bytes:
    pieces = [found.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return b"".join(pieces) + found.end(complete)


def keep(event):
    return event.raw


def test_hook_stream_filter(plug, dispatch, exchange, stream_head, response) -> None:
    asked = []

    def make(exchange, head):
        asked.append(head.status)
        return Filter(lambda event: event.raw.upper()) if exchange.path == "/v1/messages" else None

    plug("shout", stream_filter=make)
    found = StreamFilters.for_exchange(dispatch, exchange, stream_head)
    assert found.feed(b"event: a\ndata: b\n") == b""
    assert found.feed(b"\nevent: c") == b"EVENT: A\nDATA: B\n\n"
    assert found.end(True) == b"event: c"
    exchange.path = "/other"
    assert StreamFilters.for_exchange(dispatch, exchange, stream_head) is None
    assert len(asked) == 2


def test_nobody_is_asked_for_what_cannot_be_filtered(plug, dispatch, exchange, response) -> None:
    asked = []
    plug("a", stream_filter=lambda: asked.append(1))
    stream = (b"content-type", b"text/event-stream")
    for head, skipped in [
        (response((b"content-type", b"application/json")), 0),
        (response(), 0),
        (response(stream, (b"content-encoding", b"gzip")), 1),
        (response(stream, (b"content-length", b"100")), 2),
    ]:
        assert StreamFilters.for_exchange(dispatch, exchange, head) is None
        assert dispatch.filters_skipped == skipped
    assert asked == []
    assert StreamFilters.for_exchange(dispatch, exchange, response(stream, (b"content-encoding", b"identity"))) is None
    assert asked == [1]
    exchange.passthrough = True
    assert StreamFilters.for_exchange(dispatch, exchange, response(stream)) is None
    assert asked == [1]


@given(st.lists(st.integers(1, len(STREAM)), max_size=20), st.booleans(), st.integers(0, 60))
def test_bytes_are_exact_when_nothing_changes(cuts: list[int], complete: bool, drop: int) -> None:
    data = STREAM[: len(STREAM) - drop]
    found, _ = filters(Filter(keep), Filter(lambda event: None), Filter(lambda event: [event.raw[:3], event.raw[3:]]))
    edges = sorted({0, len(data), *[cut for cut in cuts if cut < len(data)]})
    out = b"".join([found.feed(data[a:b]) for a, b in itertools.pairwise(edges)])
    # An event goes on as soon as it is complete: what was not sent is one unfinished event, without a blank line.
    assert b"\n\n" not in data[len(out) :]
    assert out + found.end(complete) == data


@pytest.mark.parametrize("size", [1, 5, 4096])
def test_change_drop_and_add(size: int) -> None:
    def change(event):
        if event.name == b"delta":
            return b"" if int(event.data) % 2 else (encode(b"delta", event.data * 2), encode(b"extra", b""))
        return None

    seen = []

    def watch(event):
        seen.append((event.name, event.data))

    found, _ = filters(Filter(change, lambda: encode(b"last", b"")), Filter(watch))
    out = run(found, STREAM, size)
    assert [entry for entry in seen if entry[0] == b"delta"] == [(b"delta", d) for d in (b"00", b"22", b"44", b"66")]
    assert sum(entry[0] == b"extra" for entry in seen) == 4
    assert seen[-1] == (b"last", b"")
    assert out.startswith(STREAM[:20])
    assert out.endswith(encode(b"message_stop", b"{}") + encode(b"last", b""))


def test_half_an_event_from_a_filter_keeps_its_place() -> None:
    """A filter may write pieces that are no whole events; order is kept for those behind it."""

    def halves(event):
        return event.raw[: len(event.raw) // 2], event.raw[len(event.raw) // 2 :]

    def unfinished(event):
        return event.raw.removesuffix(b"\n") if event.data == b"3" else None

    found, _ = filters(Filter(unfinished), Filter(halves), Filter(keep))
    expected = STREAM.replace(b"data: 3\n\n", b"data: 3\n")
    assert run(found, STREAM, 11) == expected


def test_pieces_that_several_filters_left_unfinished_come_out_in_order() -> None:
    def cut(which: bytes):
        return lambda event: event.raw[:-1] if event.data == which else None

    found, _ = filters(Filter(cut(b"2")), Filter(cut(b"1")), Filter(keep))
    one, two = encode(b"e", b"1"), encode(b"e", b"2")
    assert run(found, one + two + b"event: three") == one[:-1] + two[:-1] + b"event: three"


@pytest.mark.parametrize("wrong", [7, "text", ["text"], [bytearray(b"x")], [None], object()])
def test_wrong_output_detaches(wrong: object) -> None:
    found, dispatch = filters(Filter(lambda event: wrong), Filter(lambda event: event.raw.upper()))
    assert run(found, STREAM) == STREAM.upper()
    assert dispatch.account("f0").failures == 1


def test_raising_detaches_and_the_event_passes() -> None:
    count = 0

    def fails(event):
        nonlocal count
        count += 1
        if count == 3:
            raise ValueError
        return event.raw.replace(b"comment", b"COMMENT")

    found, dispatch = filters(Filter(fails), Filter(keep, b"!"))
    assert run(found, STREAM, 4096) == STREAM.replace(b"comment", b"COMMENT") + b"!"
    assert count == 3
    assert dispatch.account("f0").failures == 1
    assert dispatch.account("f1").failures == 0


def test_failing_end() -> None:
    def fails() -> None:
        raise ValueError

    found, dispatch = filters(Filter(keep, fails), Filter(keep, "text"))
    assert run(found, STREAM) == STREAM
    assert dispatch.account("f0").failures == dispatch.account("f1").failures == 1


def test_end_only_behind_a_whole_stream() -> None:
    """A stream that broke off must not look complete."""
    for data, complete, added in [(STREAM, True, b"!"), (STREAM, False, b""), (STREAM[:-1], True, b"")]:
        found, _ = filters(Filter(keep, b"!"))
        assert run(found, data, complete=complete) == data + added
        assert found.end(True) == b""


def test_quarantine_over_exchanges() -> None:
    def fails(event):
        raise ValueError

    _, dispatch = filters(Filter(fails))
    for _ in range(5):
        assert not dispatch.account("f0").quarantined
        found = StreamFilters.for_exchange(dispatch, EXCHANGE, HEAD)
        assert run(found, STREAM) == STREAM
    assert dispatch.account("f0").quarantined
    assert StreamFilters.for_exchange(dispatch, EXCHANGE, HEAD) is None


def test_a_good_exchange_resets_the_count() -> None:
    turn = 0

    def sometimes(event):
        if turn != 4:
            raise ValueError

    _, dispatch = filters(Filter(sometimes))
    for turn in range(9):  # noqa: B007 (read by the filter)
        found = StreamFilters.for_exchange(dispatch, EXCHANGE, HEAD)
        assert run(found, STREAM) == STREAM
    assert dispatch.account("f0").failures == 8
    assert not dispatch.account("f0").quarantined


def test_blocking_filter_is_taken_out() -> None:
    calls = 0

    def block(event):
        nonlocal calls
        calls += 1
        until = perf_counter() + 0.055
        while perf_counter() < until:
            pass

    found, dispatch = filters(Filter(block))
    for n in range(8):
        event = encode(b"e", str(n).encode())
        assert found.feed(event) == event
    assert calls == 5
    assert dispatch.account("f0").slow == 5
    assert "blocks the event loop" in dispatch.account("f0").error


def test_oversized_event_passes_unseen() -> None:
    seen = []
    found, _ = filters(Filter(lambda event: seen.append(event.name)))
    big = b"event: big\ndata: " + b"x" * (9 * 1024 * 1024)
    data = encode(b"a", b"1") + big + b"\n\n" + encode(b"b", b"2")
    assert run(found, data, 1024 * 1024) == data
    assert seen == [b"a", b"b"]


def test_untouched_bytes_go_on_as_they_are() -> None:
    """No copy where whole events pass; and never the input where part of an event is held or something changed."""
    found, _ = filters(Filter(lambda event: None), Filter(keep))
    assert found.feed(STREAM) is STREAM
    assert found.feed(STREAM + b"event: a\n") == STREAM
    assert found.feed(b"data: 1\n\n") == b"event: a\ndata: 1\n\n"
    assert found.feed(b"data: 2\n\ndata") == b"data: 2\n\n"
    assert found.end(True) == b"data"
    for objects in (
        [Filter(lambda event: b"" if event.data == b"3" else None), Filter(keep)],
        [Filter(keep), Filter(lambda event: [] if event.data == b"3" else None)],
    ):
        found, _ = filters(*objects)
        assert found.feed(STREAM) == STREAM.replace(encode(b"delta", b"3"), b"")
    held = [b"data: x", b""]
    found, _ = filters(Filter(lambda event: held.pop(0) if held else None), Filter(keep))
    assert found.feed(b"data: 1\n\n") == b""
    assert found.feed(b"data: 2\n\n") == b""
    # What the first filter left open still stands in front of what it does not touch.
    assert found.feed(b"data: 3\n\n") == b"data: xdata: 3\n\n"


def test_the_events_are_there_for_the_taps() -> None:
    """As they came in, whatever the filters make of them, and whatever the split."""
    found, _ = filters(Filter(lambda event: b"data: other\n\n"))
    stream = STREAM.replace(b"\r", b"")
    want = SseSplitter().feed(stream)
    for size in (1, 7, 50, len(stream)):
        seen = []
        for at in range(0, len(stream), size):
            found.feed(stream[at : at + size])
            seen += found.events
        assert seen == want
