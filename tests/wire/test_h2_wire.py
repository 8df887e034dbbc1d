"""The frame gate, the protocol state over it, and the two notations of a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.errors import ProtocolViolation
from dbproxy.wire import h1, h2
from dbproxy.wire.h2bridge import (
    Incoming,
    Malformed,
    OutgoingAnswer,
    OutgoingRequest,
    SendData,
    SendHead,
    SendTrailers,
    incoming_answer,
    incoming_request,
)
from dbproxy.wire.h2gate import END_HEADERS, END_STREAM, HELPING, Allowance, Code, FrameGate, H2Violation, Type, frame
from dbproxy.wire.sniff import H2_PREFACE

REQUEST = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.example"), (b":path", b"/v1/x?y=1")]
BEGIN = H2_PREFACE + frame(Type.SETTINGS, 0, 0)
CALM = Code.ENHANCE_YOUR_CALM


def pieces(data, cuts):
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def gated(parts, *, now=0.0, **how):
    """Everything that passes the gate, and how it ended."""
    gate = FrameGate(**{"preface": True, "max_block": 65536, **how})
    passed = []
    for part in parts:
        gate.feed(part)
        try:
            while (helping := gate.take(now)) is not None:
                assert len(helping.frames) <= HELPING + 1
                passed += helping.frames
                if helping.goaway is not None:
                    passed.append(("goaway", helping.goaway))
        except H2Violation as error:
            return passed, error.code
    return passed, None


def traffic():
    payload = st.binary(max_size=40)
    kinds = st.sampled_from([*Type, 0x16])
    one = st.builds(frame, kinds, st.integers(0, 255), st.integers(0, 5), payload)
    return st.lists(one, max_size=40).map(b"".join)


class TestGate:
    @given(traffic(), st.binary(max_size=30), st.lists(st.integers(0, 1500)))
    def test_any_cut_lets_the_same_frames_pass(self, sent, tail, cuts):
        whole = BEGIN + sent + tail
        expected = gated([whole])
        assert gated(pieces(whole, cuts)) == expected
        assert gated([whole[i : i + 1] for i in range(len(whole))]) == expected

    def test_frames_pass_unchanged_and_a_graceful_goaway_does_not(self):
        data = frame(Type.DATA, 0, 1, b"x" * 100)
        goaway = frame(Type.GOAWAY, 0, 0, (5).to_bytes(4, "big") + bytes(4) + b"bye")
        passed, code = gated([BEGIN + data + goaway + data])
        assert passed == [H2_PREFACE, frame(Type.SETTINGS, 0, 0), data, ("goaway", 5), data]
        assert code is None

    @pytest.mark.parametrize(
        "other",
        [
            frame(Type.GOAWAY, 0, 0, bytes(7) + b"\2"),
            frame(Type.GOAWAY, 0, 1, bytes(8)),
            frame(Type.GOAWAY, 0, 0, bytes(7)),
        ],
    )
    def test_any_other_goaway_is_for_h2_to_judge(self, other):
        assert gated([BEGIN + other])[0][-1] == other

    def test_an_overlong_frame_is_refused_by_its_header(self):
        assert gated([BEGIN + frame(Type.DATA, 0, 1, bytes(16385))[:9]])[1] == Code.FRAME_SIZE_ERROR
        assert gated([BEGIN + frame(Type.DATA, 0, 1, bytes(16384))])[1] is None

    def test_what_came_before_a_violation_still_passes(self):
        good = frame(Type.DATA, 0, 1, b"x")
        passed, code = gated([BEGIN + good + b"\xff\xff\xff" + good[3:]])
        assert passed[-1] == good
        assert code == Code.FRAME_SIZE_ERROR

    @pytest.mark.parametrize("first", [frame(Type.SETTINGS, 1, 0), frame(Type.PING, 0, 0, bytes(8))])
    def test_settings_come_first(self, first):
        assert gated([H2_PREFACE + first])[1] == Code.PROTOCOL_ERROR
        assert gated([first], preface=False)[1] == Code.PROTOCOL_ERROR

    def test_the_peer_owes_what_it_began(self):
        gate = FrameGate(preface=True, max_block=1000)
        for part, owes in (
            (H2_PREFACE, True),
            (frame(Type.SETTINGS, 0, 0), False),
            (frame(Type.HEADERS, END_STREAM, 1, b"x"), True),
            (frame(Type.CONTINUATION, 0, 1, b"x"), True),
            (frame(Type.CONTINUATION, END_HEADERS, 1, b""), False),
            (frame(Type.HEADERS, 0, 1, b""), True),
        ):
            gate.feed(part)
            while gate.take(0.0):
                pass
            assert gate.in_block is owes

    def test_a_block_is_bounded_in_bytes_and_in_frames(self):
        begin = BEGIN + frame(Type.HEADERS, 0, 1, b"")
        many = frame(Type.CONTINUATION, 0, 1, b"") * 33
        assert gated([begin + many])[1] == CALM
        assert gated([begin + frame(Type.CONTINUATION, 0, 1, bytes(600)) * 2], max_block=1000)[1] == CALM
        assert gated([begin + frame(Type.CONTINUATION, 0, 1, bytes(400)) * 2], max_block=1000)[1] is None

    @pytest.mark.parametrize(
        ("one", "limit"),
        [
            (frame(Type.PING, 0, 0, bytes(8)), 1000),
            (frame(Type.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), 1000),
            (frame(Type.PRIORITY, 0, 1, bytes(5)), 1000),
            (frame(0x77, 0, 1), 1000),
            (frame(Type.DATA, 0, 1), 1000),
            (frame(Type.DATA, 8, 1, b"\2\0\0"), 1000),
            (frame(Type.RST_STREAM, 0, 1, bytes(4)), 500),
            (frame(Type.SETTINGS, 0, 0), 99),
        ],
    )
    def test_what_costs_its_sender_nothing_is_counted(self, one, limit):
        passed, code = gated([BEGIN + one * (limit + 1)])
        assert len(passed) == limit + 2
        assert code == CALM

    def test_time_and_useful_work_pay_back(self):
        ping, data = frame(Type.PING, 0, 0, bytes(8)), frame(Type.DATA, 0, 1, b"x")
        assert gated([BEGIN + (ping + data) * 5000])[1] is None
        gate = FrameGate(preface=False, max_block=1000)
        gate.feed(frame(Type.SETTINGS, 0, 0))
        for second in range(30):
            gate.feed(ping * 90)
            while gate.take(float(second)):
                pass

    def test_an_allowance_never_grows_beyond_its_size(self):
        allowance = Allowance(2, 1)
        allowance.earn(100)
        assert [allowance.spend(1000.0) for _ in range(3)] == [True, True, False]
        assert allowance.spend(1001.5)


def connected():
    """A client and a server that know each other's settings."""
    client, server = h2.Wire(client=True, max_head=65536), h2.Wire(client=False, max_head=65536)
    for _ in range(2):
        exchange(client, server)
        exchange(server, client)
    return client, server


def exchange(source, sink):
    sink.feed(source.out())
    return drained(sink)


def drained(wire):
    events = []
    while (some := wire.step(0.0)) is not None:
        events += some
    return events


class TestWire:
    def test_windows_are_raised_and_bounded(self):
        client, server = connected()
        assert client.windows() == (h2.UPSTREAM_WINDOW, h2.CLIENT_WINDOW)
        assert server.windows() == (h2.CLIENT_WINDOW, h2.UPSTREAM_WINDOW)
        assert client.can_open == h2.MAX_STREAMS

    def test_data_is_acknowledged_only_when_it_was_taken(self):
        client, server = connected()
        number = client.open()
        client.send_head(number, REQUEST, end=False)
        sent = 0
        while (room := client.room(number)) > 0:
            client.send_data(number, bytes(room), end=False, cut=True)
            sent += room
        assert sent == h2.STREAM_WINDOW
        events = exchange(client, server)
        assert sum(event.length for event in events if isinstance(event, h2.Data)) == sent
        assert not server.out()
        server.took(number, sent)
        exchange(server, client)
        assert client.room(number) > 0

    def test_a_reset_stream_gives_its_window_back(self):
        client, server = connected()
        before = server.windows()[0]
        for _ in range(20):
            number = client.open()
            client.send_head(number, REQUEST, end=False)
            exchange(client, server)
            server.reset(number, Code.CANCEL)
            for _ in range(10):
                client.send_data(number, bytes(16384), end=False, cut=True)
            exchange(client, server)
            exchange(server, client)
        assert server.windows()[0] == before
        assert server.open_streams() == client.open_streams() == 0

    @pytest.mark.parametrize("role", ["client", "server"])
    def test_a_graceful_goaway_lets_what_is_under_way_finish(self, role):
        client, server = connected()
        number = client.open()
        client.send_head(number, REQUEST, end=True)
        exchange(client, server)
        server.send_head(number, [(b":status", b"200")], end=False)
        (server if role == "server" else client).goaway(Code.NO_ERROR)
        server.send_data(number, b"first", end=False, cut=False)
        if role == "client":
            assert exchange(client, server) == [h2.GoneAway(0, 0)]
        server.send_data(number, b"last", end=True, cut=False)
        events = exchange(server, client)
        assert [event.data for event in events if isinstance(event, h2.Data)] == [b"first", b"last"]
        assert client.draining is (role == "server")
        assert client.can_open == (0 if role == "server" else 100)

    def test_a_goaway_with_an_error_ends_it(self):
        client, server = connected()
        server.goaway(Code.INTERNAL_ERROR)
        assert exchange(server, client) == [h2.GoneAway(0, 2)]
        assert client.room(1) == -1

    def test_what_came_before_a_violation_is_told(self):
        client, server = connected()
        number = client.open()
        client.send_head(number, REQUEST, end=True)
        server.feed(client.out() + frame(Type.DATA, 0, 0, b"x"))
        events = server.step(0.0)
        assert [type(event) for event in events] == [h2.Head]
        for _ in range(2):
            with pytest.raises(H2Violation) as caught:
                server.step(0.0)
            assert caught.value.code == Code.PROTOCOL_ERROR
        assert server.out()[3] == Type.GOAWAY

    def test_what_h2_says_about_a_field_is_told_without_its_value(self):
        client, server = connected()
        number = client.open()
        client.send_head(number, [*REQUEST, (b"X-Key", b"sk-secret")], end=True)
        with pytest.raises(H2Violation) as caught:
            exchange(client, server)
        assert "secret" not in str(caught.value)

    def test_sending_on_a_stream_that_is_gone_says_so(self):
        client, server = connected()
        number = client.open()
        client.send_head(number, REQUEST, end=True)
        exchange(client, server)
        client.reset(number, Code.CANCEL)
        assert exchange(client, server) == [h2.Reset(number, Code.CANCEL)]
        assert not server.send_head(number, [(b":status", b"200")], end=True)
        assert not server.send_data(number, b"x", end=True, cut=False)
        server.reset(number, Code.CANCEL)

    @given(st.lists(st.integers(0, 400)))
    def test_any_cut_gives_the_same_events(self, cuts):
        client, server = connected()
        number = client.open()
        client.send_head(number, REQUEST, end=False)
        client.send_data(number, b"body", end=False, cut=False)
        client.send_head(number, [(b"x-sum", b"1")], end=True)
        other = client.open()
        client.send_head(other, REQUEST, end=True)
        client.reset(other, Code.CANCEL)
        sent = client.out()
        got = []
        for part in pieces(sent, cuts):
            server.feed(part)
            got += drained(server)
        assert [type(event) for event in got] == [h2.Head, h2.Data, h2.Trailers, h2.Head, h2.Reset]


class TestIncoming:
    def test_a_request_becomes_a_head(self):
        pairs = [*REQUEST, (b"accept", b"*/*"), (b"content-length", b"3"), (b"te", b"trailers"), (b"x-a", b"1")]
        head, body = incoming_request(pairs, ended=False, max_fields=100)
        assert h1.serialise_request(head) == (
            b"POST /v1/x?y=1 HTTP/1.1\r\nhost: api.example\r\naccept: */*\r\ncontent-length: 3\r\nx-a: 1\r\n\r\n"
        )
        assert body.data(b"abc") == b"abc"
        assert body.end() == b""

    def test_host_stands_in_for_a_missing_authority(self):
        head, _ = incoming_request([*REQUEST[:2], REQUEST[3], (b"host", b"h")], ended=True, max_fields=9)
        assert head.fields.get_all(b"host") == [b"h"]
        with pytest.raises(Malformed):
            incoming_request([*REQUEST, (b"x", b"a\r\nhost: evil")], ended=True, max_fields=9)

    @pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b"])
    def test_nothing_brings_a_line_of_its_own(self, value):
        for pairs in (
            [*REQUEST, (b"x", value)],
            [*REQUEST[:3], (b":path", b"/" + value)],
            [*REQUEST[:2], (b":authority", value), REQUEST[3]],
            [(b":method", value), *REQUEST[1:]],
            [*REQUEST, (value, b"x")],
        ):
            with pytest.raises(Malformed):
                incoming_request(pairs, ended=True, max_fields=9)
        with pytest.raises(Malformed):
            incoming_answer([(b":status", b"200"), (b"x", value)], b"GET", ended=True)

    @given(
        st.lists(st.tuples(st.binary(min_size=1, max_size=6), st.binary(max_size=6)), max_size=4),
        st.binary(max_size=6),
        st.binary(max_size=6),
    )
    def test_fields_never_become_more_than_they_were(self, fields, path, host):
        pairs = [*REQUEST[:2], (b":authority", host), (b":path", b"/" + path), *fields]
        try:
            head, _ = incoming_request(pairs, ended=True, max_fields=100)
        except (Malformed, ProtocolViolation):
            return
        assert len(head.fields) <= len(fields) + 2
        assert head.target == b"/" + path

    @pytest.mark.parametrize("path", [b"", b"x", b"http://evil/", b"*"])
    def test_a_target_is_a_path(self, path):
        with pytest.raises(Malformed):
            incoming_request([*REQUEST[:3], (b":path", path)], ended=True, max_fields=9)

    def test_options_has_a_target_of_its_own(self):
        head, _ = incoming_request(
            [(b":method", b"OPTIONS"), *REQUEST[1:3], (b":path", b"*")], ended=True, max_fields=9
        )
        assert head.target == b"*"

    @pytest.mark.parametrize(
        ("length", "ended", "sent"),
        [
            (b"1", True, []),
            (b"2", False, [b"abc"]),
            (b"4", False, [b"abc"]),
            (b"-1", False, []),
            (b"9" * 19, False, []),
        ],
    )
    def test_a_body_is_as_long_as_it_says(self, length, ended, sent):
        def whole():
            body = incoming_request([*REQUEST, (b"content-length", length)], ended=ended, max_fields=9)[1]
            return b"".join(map(body.data, sent)) + body.end()

        with pytest.raises(Malformed):
            whole()

    @given(st.lists(st.binary(max_size=30)), st.booleans())
    def test_a_body_without_a_length_is_chunked(self, sent, trailers):
        body = Incoming(None, ended=False)
        fields = (
            [(b"x-sum", b"7"), (b"content-length", b"1"), (b":path", b"/"), (b"x", b"a\r\nb: c")] if trailers else None
        )
        wire = b"".join(map(body.data, sent)) + body.end(fields)
        walk = h1.Body(h1.Framing(h1.Kind.CHUNKED), keep=True)
        assert walk.feed(wire) == len(wire)
        assert walk.done
        assert walk.take() == b"".join(sent)
        assert walk.trailers == ([b"x-sum: 7"] if trailers else [])

    def test_answers(self):
        head, body = incoming_answer([(b":status", b"200"), (b"a", b"b")], b"GET", ended=False)
        assert head == b"HTTP/1.1 200 \r\na: b\r\ntransfer-encoding: chunked\r\n\r\n"
        assert body.chunked
        assert incoming_answer([(b":status", b"200")], b"GET", ended=True)[0].endswith(b"content-length: 0\r\n\r\n")
        for status, method in ((b"204", b"GET"), (b"304", b"GET"), (b"200", b"HEAD"), (b"103", b"GET")):
            head, body = incoming_answer([(b":status", status)], method, ended=status != b"103")
            assert head == b"HTTP/1.1 " + status + b" \r\n\r\n"
        head, body = incoming_answer([(b":status", b"200"), (b"content-length", b"5")], b"HEAD", ended=True)
        assert head.endswith(b"content-length: 5\r\n\r\n")
        for status in (b"", b"20", b"abc", b"101", b"099"):
            with pytest.raises(Malformed):
                incoming_answer([(b":status", status)], b"GET", ended=False)


def fed(outgoing, data, cuts):
    sends = []
    for part in pieces(data, cuts):
        sends += outgoing.feed(part)
    return sends


class TestOutgoing:
    ANSWER = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Mixed:  a b \r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 7\r\nContent-Length: 3\r\n\r\n"
    )

    @given(st.lists(st.integers(0, 300)))
    def test_any_cut_of_an_answer_means_the_same(self, cuts):
        outgoing = OutgoingAnswer(b"GET", head_limit=1000, max_fields=50)
        sends = fed(outgoing, self.ANSWER, cuts)
        assert outgoing.done
        assert sends[0] == SendHead([(b":status", b"103"), (b"link", b"x")], False)
        assert sends[1] == SendHead(
            [(b":status", b"200"), (b"content-type", b"text/plain"), (b"x-mixed", b"a b")], False
        )
        assert b"".join(send.data for send in sends[2:-1]) == b"abcde"
        assert not any(send.end for send in sends[2:-1])
        assert sends[-1] == SendTrailers([(b"x-sum", b"7")])

    @pytest.mark.parametrize(
        ("text", "method", "end"),
        [
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", True),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"GET", True),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", True),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", False),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", False),
        ],
    )
    def test_a_head_ends_the_stream_only_without_a_body(self, text, method, end):
        outgoing = OutgoingAnswer(method, head_limit=1000, max_fields=50)
        (head,) = outgoing.feed(text)
        assert head.end is outgoing.done is end

    def test_the_last_bytes_of_a_known_length_end_the_stream(self):
        outgoing = OutgoingAnswer(b"GET", head_limit=1000, max_fields=50)
        sends = outgoing.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab") + outgoing.feed(b"cde")
        assert sends[1:] == [SendData(b"ab", False), SendData(b"cde", True)]
        assert outgoing.close() == []

    def test_only_a_body_without_an_end_of_its_own_is_ended_by_closing(self):
        outgoing = OutgoingAnswer(b"GET", head_limit=1000, max_fields=50)
        outgoing.feed(b"HTTP/1.1 200 OK\r\n\r\nabc")
        assert not outgoing.done
        assert outgoing.close() == [SendData(b"", True)]
        assert outgoing.done
        for cut in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"):
            outgoing = OutgoingAnswer(b"GET", head_limit=1000, max_fields=50)
            outgoing.feed(cut)
            assert outgoing.close() == []
            assert not outgoing.done

    def test_switching_protocols_has_no_form(self):
        with pytest.raises(ProtocolViolation):
            OutgoingAnswer(b"GET", head_limit=1000, max_fields=50).feed(b"HTTP/1.1 101 Switching\r\n\r\n")

    @given(st.lists(st.integers(0, 300)))
    def test_requests(self, cuts):
        outgoing = OutgoingRequest(b"https", head_limit=1000, max_fields=50)
        sends = fed(
            outgoing,
            b"POST /x HTTP/1.1\r\nAccept: a\r\nHost: h\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
            cuts,
        )
        assert outgoing.method == b"POST"
        assert sends[0].pairs == [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", b"h"),
            (b":path", b"/x"),
            (b"accept", b"a"),
            (b"content-length", b"3"),
        ]
        assert b"".join(send.data for send in sends[1:]) == b"abc"
        assert sends[-1].end
        assert outgoing.done
