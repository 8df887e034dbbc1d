"""What capture costs away from the relay, measured in a process of its own: size, work per turn, linking, questions.

    python storing.py size|turn|link|search|many FOLDER

Prints one JSON object. Conversations are those of tests/support/longtalk.py (performance: 58 KB of system and tools,
4 KB more per turn, cache marks that move); bodies go through the thread that makes records and through the store's
writer as in the proxy. CPU is that of the whole process, in which nothing else runs.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import longtalk  # noqa: E402

from dbproxy.app.analyst import Analyst, Tools  # noqa: E402
from dbproxy.app.capture import Capture  # noqa: E402
from dbproxy.config import load  # noqa: E402
from dbproxy.exchange import Exchange, Fields, Outcome, RequestHead, ResponseHead, Timings, Via  # noqa: E402
from dbproxy.model.link import Edge, Link, RequestKind  # noqa: E402
from dbproxy.model.linking.linker import Linker  # noqa: E402
from dbproxy.model.messages import MessagesRequest  # noqa: E402
from dbproxy.model.prices import Prices  # noqa: E402
from dbproxy.model.record import ExchangeClosed, ExchangeOpened  # noqa: E402
from dbproxy.model.redact import redact_text  # noqa: E402
from dbproxy.model.usage import Usage  # noqa: E402
from dbproxy.store import Store  # noqa: E402
from dbproxy.store.history import StoreHistory  # noqa: E402
from dbproxy.store.reader import Reader  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longtalk import Turn

PATIENCE = 60.0
TURNS = 200
CONVERSATIONS = 11  # of 95.6 MB: more than 1 GB
MANY = 10_000
SYSTEM_FIELDS = [(name.encode(), value.encode()) for name, value in longtalk.REQUEST_HEADERS]


def fields(session: str) -> Fields:
    """The request's fields, with hints, as the client sends them."""
    pairs = [(name, value) for name, value in SYSTEM_FIELDS if name != b"X-Claude-Code-Session-Id"]
    hints = [(b"X-Claude-Code-Session-Id", session.encode()), (b"x-claude-code-request-class", b"main")]
    return Fields.of([*pairs, *hints])


def stream(answer: dict[str, Any]) -> list[bytes]:
    """The answer as the pieces of an event stream, some 40 characters in each."""
    from dbproxy.testing.origin.events import encode, message_events

    events = message_events(
        answer["content"], model=answer["model"], message_id=answer["id"], usage=answer["usage"], delta_chars=40
    )
    return [encode(event) for event in events]


@contextlib.contextmanager
def opened(path: Path, *, index: bool = True) -> Iterator[Store]:
    """A store; everything is in its file at the end."""
    store = Store.open(path, redact=lambda text: redact_text(text)[0], index=index)
    try:
        yield store
    finally:
        if not store.close(PATIENCE):
            raise SystemExit(f"the store did not end: {store.state}")


class Line:
    """The thread that makes records, before a store, without a proxy."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store = store
        self.history = StoreHistory(path)
        self.failed: list[str] = []
        self.settings = load({}, {"HOME": str(path.parent)}, None).settings
        self.analyst = Analyst(
            lambda: Tools(store, Linker(self.history), Prices.load(None)),
            key=b"k" * 32,
            post=lambda call: None,  # there is no event loop
            found=lambda finding: None,
            failed=self.failed.append,
            redact_message=lambda body: body,
        )
        self.capture = Capture(self.analyst, lambda exchange: True)
        self.analyst.start()

    def take(self, turn: Turn, session: str) -> None:
        """A turn passes; returns when it is in the file."""
        times = Timings(received=1.0, sent=1.0, first_byte=1.2, finished=2.0)
        exchange = Exchange(
            turn.id, 1, Via.TUNNEL, "https", "api.anthropic.com", 443, "/v1/messages",
            RequestHead(b"POST", b"/v1/messages?beta=true", b"HTTP/1.1", fields(session)),
            timings=times,
        )  # fmt: skip
        kind = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"request-id", b"req_" + turn.id.encode())]
        exchange.response = ResponseHead(200, b"OK", b"HTTP/1.1", Fields.of(kind))
        exchange.outcome = Outcome.OK
        recording = self.capture.begin(exchange, None, self.settings)
        if recording is None:
            raise SystemExit("capture is off")
        recording.started = turn.started
        for start in range(0, len(turn.body), 65536):
            recording.uploaded(turn.body[start : start + 65536])
        recording.request_read()
        for piece in stream(turn.answer):
            recording.data(piece)
        recording.finish()
        if not self.analyst.settle(PATIENCE) or not self.store.flush(PATIENCE):
            raise SystemExit("a turn was not written in time")
        if self.failed:
            raise SystemExit(self.failed[0])
        self.capture.held = 0

    def stop(self) -> None:
        self.analyst.stop(PATIENCE)
        self.history.close()


def whole(path: Path) -> int:
    """Bytes of the file and of what lies beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))


def size(folder: Path) -> dict[str, Any]:
    """The conversation on disk, with and without the search index; every body is rebuilt from it."""
    found: dict[str, Any] = {"raw": 0}
    for name, index in (("with", True), ("without", False)):
        path = folder / f"{name}.sqlite"
        with opened(path, index=index) as store:
            line = Line(store, path)
            for turn in longtalk.Talk().take(TURNS):
                found["raw"] += len(turn.body) * index
                line.take(turn, longtalk.SESSION)
            line.stop()
        found[name] = whole(path)
    with Reader.open(folder / "with.sqlite") as reader:
        found["exact"] = sum(check.result == "exact" for check in reader.verify())
        began = time.perf_counter()
        reader.request_body(longtalk.exchange_id(TURNS // 2))
        found["access_ms"] = (time.perf_counter() - began) * 1e3
    return found


def turn(folder: Path) -> dict[str, Any]:
    """CPU per turn off the event loop, over the last 20 of 200: bodies of 800 to 893 KB."""
    path = folder / "turn.sqlite"
    costs = []
    with opened(path) as store:
        line = Line(store, path)
        for one in longtalk.Talk().take(TURNS):
            # What this thread does, which plays the event loop's part, is not counted.
            before = time.process_time() - time.thread_time()
            line.take(one, longtalk.SESSION)
            costs.append((time.process_time() - time.thread_time() - before) * 1e3)
        line.stop()
    last = costs[-20:]
    return {"ms": statistics.median(last), "longest": max(last), "bytes": len(one.body)}


def _linked(size_wanted: int, growth: int) -> list[float]:
    """Seconds for reading, classifying and linking the last turns of a conversation whose bodies reach a size."""
    talk, linker, taken = longtalk.Talk(growth=growth), Linker(), []
    fields_ = fields(longtalk.SESSION)
    for one in talk.take(1000):
        began = time.perf_counter()
        linker.request(one.id, one.started, MessagesRequest(one.body), fields_, account="a")
        taken.append(time.perf_counter() - began)
        linker.answer(one.id, one.answer, ok=True)
        if len(one.body) >= size_wanted:
            return taken[-10:]
    raise SystemExit("the conversation did not become long enough")


def link(folder: Path) -> dict[str, Any]:
    """Reading, classifying and linking a body whose earlier messages were seen before."""
    small, large = _linked(200_000, 4_000), _linked(2_000_000, 16_000)
    return {"small": statistics.median(small) * 1e3, "large": statistics.median(large) * 1e3}


QUERIES = ("self return", '"is not None"', "nothingofthekind")


def _timed(ask: Callable[[], object], rounds: int = 7) -> float:
    """Milliseconds, the median."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken)


def search(folder: Path) -> dict[str, Any]:
    """Full-text search over more than 1 GB of raw bodies: the slowest of several queries, with opening the file."""
    path = folder / "search.sqlite"
    raw = 0
    with opened(path) as store:
        for number in range(CONVERSATIONS):
            session = str(uuid.UUID(int=number + 1))
            for one in longtalk.Talk(number + 10, session=session).take(TURNS):
                raw += len(one.body)
                for record in longtalk.records(one):
                    store.append(_of(record, session, number))
                if not store.flush(PATIENCE):
                    raise SystemExit("the store is too slow")
    taken, hits = {}, {}
    words = longtalk.Words(10).vocabulary
    for query in (*QUERIES, words[0], words[2900], f"{words[40]} {words[400]}", f'"{words[0]} {words[1]}"'):

        def ask(query: str = query) -> int:
            with Reader.open(path) as reader:
                return len(reader.search(query, limit=20).hits)

        hits[query] = ask()
        taken[query] = _timed(ask)
    return {"raw": raw, "file": whole(path), "ms": taken, "hits": hits}


def _of(record: Any, session: str, number: int) -> Any:
    """The record of another conversation."""
    from dataclasses import replace

    id = f"{record.id[:12]}{number:02x}{record.id[14:]}"
    if isinstance(record, ExchangeOpened):
        assert record.link is not None
        return replace(record, id=id, link=replace(record.link, exchange=id, conversation=session, points=()))
    return replace(record, id=id)


def many(folder: Path) -> dict[str, Any]:
    """10,000 conversations of ten exchanges each, without bodies: the newest 50 exchanges and conversations."""
    path = folder / "data" / "dbproxy.sqlite"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    usage = Usage.of({"input_tokens": 10, "cache_read_input_tokens": 14_000, "output_tokens": 700})
    with opened(path) as store:
        for number in range(MANY * 10):
            at = longtalk.START + number
            id = f"{int(at * 1000):012x}{number & 0xFFFFFF:06x}"
            session = str(uuid.UUID(int=number % MANY + 1))
            place = Link(id, session, "main", 1, RequestKind.MAIN, edge=Edge.NEXT)
            store.append(
                ExchangeOpened(
                    id=id, started=at, method="POST", host="api.anthropic.com", path="/v1/messages", via="tunnel",
                    project=f"/home/user/project{number % 7}", model="claude-opus-5-5", streamed=True, link=place,
                    headers=longtalk.REQUEST_HEADERS,
                )
            )  # fmt: skip
            store.append(
                ExchangeClosed(id=id, finished=at + 9, outcome="ok", status=200, usage=usage, model="claude-opus-5-5")
            )
            if number % 2000 == 1999 and not store.flush(PATIENCE):
                raise SystemExit("the store is too slow")

    def newest() -> None:
        with Reader.open(path) as reader:
            assert len(reader.exchanges(limit=50)) == 50

    def conversations() -> None:
        with Reader.open(path) as reader:
            assert len(reader.conversations(limit=50)) == 50

    return {"newest": _timed(newest), "conversations": _timed(conversations), "file": whole(path)}


if __name__ == "__main__":
    chosen = {one.__name__: one for one in (size, turn, link, search, many)}[sys.argv[1]]
    print(json.dumps(chosen(Path(sys.argv[2]))))
